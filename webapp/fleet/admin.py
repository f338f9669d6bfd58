from django.contrib import admin

from webapp.core.readonly_admin import ReadOnlyAdmin
from webapp.fleet.models import EnrolmentToken, Node


@admin.register(Node)
class NodeAdmin(ReadOnlyAdmin):
    list_display = ["name", "state", "slots", "last_seen_at", "created_at"]
    list_filter = ["state"]
    search_fields = ["name"]
    exclude = ["secret_hash"]


@admin.register(EnrolmentToken)
class EnrolmentTokenAdmin(ReadOnlyAdmin):
    list_display = ["id", "created_by", "created_at", "expires_at", "preapproved", "used_at", "node"]
    list_select_related = ["created_by", "node"]
    exclude = ["hash"]
