from django.contrib import admin

from webapp.core.readonly_admin import ReadOnlyAdmin
from webapp.jobs.models import Artifact, Assignment, Attempt, Job, Participation, Round, Stray


@admin.register(Job)
class JobAdmin(ReadOnlyAdmin):
    list_display = ["id", "name", "state", "mode", "team", "owner", "created_at"]
    list_filter = ["state", "mode", "team"]
    list_select_related = ["team", "owner"]
    search_fields = ["name"]
    show_full_result_count = False


@admin.register(Attempt)
class AttemptAdmin(ReadOnlyAdmin):
    list_display = ["id", "job", "number", "state", "state_reason", "started_at", "ended_at"]
    list_filter = ["state"]
    list_select_related = ["job"]


@admin.register(Assignment)
class AssignmentAdmin(ReadOnlyAdmin):
    list_display = ["id", "attempt", "node", "index", "slots", "state"]
    list_filter = ["state"]
    list_select_related = ["attempt", "node"]


@admin.register(Round)
class RoundAdmin(ReadOnlyAdmin):
    list_display = ["id", "attempt", "number", "state", "opened_at", "closed_at"]
    list_filter = ["state"]
    list_select_related = ["attempt"]


@admin.register(Participation)
class ParticipationAdmin(ReadOnlyAdmin):
    list_display = ["id", "round", "assignment", "state", "num_examples", "returned_at"]
    list_filter = ["state"]
    list_select_related = ["round", "assignment"]
    show_full_result_count = False


@admin.register(Artifact)
class ArtifactAdmin(ReadOnlyAdmin):
    list_display = ["id", "job", "name", "size_bytes", "created_at"]
    list_select_related = ["job"]


@admin.register(Stray)
class StrayAdmin(ReadOnlyAdmin):
    list_display = ["node", "kind", "count", "last_reason", "last_at"]
    list_select_related = ["node"]
