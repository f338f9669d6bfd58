"""The nodes' HTTP interface under /node/v1: its door and the routers that it is made of. Blobs are served beside it."""

from __future__ import annotations

from webapp.core.problem_api import ProblemAPI
from webapp.fleet.auth import NodeBearer
from webapp.fleet.node_api import router as fleet_router
from webapp.jobs.node_api import router as jobs_router

node_api = ProblemAPI(
    title="Trainmaster nodes",
    version="1",
    urls_namespace="node",
    openapi_url=None,
    auth=NodeBearer(),
    unauthorised="Send the node's secret as 'Authorization: Bearer tms_...'; a node gets it when it joins.",
)
node_api.add_router("", fleet_router)
node_api.add_router("", jobs_router)
