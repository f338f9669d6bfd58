"""The public API under /api/v1: its doors and the routers that it is made of."""

from __future__ import annotations

from webapp.core.problem_api import ProblemAPI
from webapp.fleet.api import router as fleet_router
from webapp.jobs.api import router as jobs_router
from webapp.teams.api import router as teams_router
from webapp.teams.auth import BrowserSession, TokenBearer
from webapp.telemetry.api import router as telemetry_router

api = ProblemAPI(
    title="Trainmaster",
    version="1",
    urls_namespace="api",
    description="Define training jobs, watch them, and take their models home.",
    auth=[TokenBearer(), BrowserSession()],
    unauthorised="Send a valid API token as 'Authorization: Bearer tma_...', or sign in.",
)
api.add_router("", jobs_router)
api.add_router("", telemetry_router)
api.add_router("", fleet_router)
api.add_router("", teams_router)
