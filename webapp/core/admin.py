from django.contrib import admin

from webapp.core.models import AuditEntry, Transition
from webapp.core.readonly_admin import ReadOnlyAdmin


@admin.register(Transition)
class TransitionAdmin(ReadOnlyAdmin):
    list_display = ["at", "thread", "subject", "old", "new", "reason", "actor"]
    search_fields = ["thread", "subject", "actor"]
    list_filter = ["new"]
    show_full_result_count = False


@admin.register(AuditEntry)
class AuditEntryAdmin(ReadOnlyAdmin):
    list_display = ["at", "actor_name", "act", "target"]
    search_fields = ["actor_name", "act", "target"]
    list_filter = ["act"]
