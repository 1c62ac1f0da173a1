"""Health checks for load balancers and orchestrators."""

from fastapi import APIRouter, Request

import db
from openapi import answers
from routing import Route
from schemas import Health

router = APIRouter(prefix="/health", tags=["health"], route_class=Route)

PING_SECONDS = 0.3


@router.get("/live")
async def get_liveness() -> Health:
    """Report that the process is alive. This does not query the database."""
    return {"status": "ok"}


@router.get("/ready", responses=answers("unavailable"))
async def get_readiness(request: Request) -> Health:
    """Report whether requests can be served. 503 within a second if the database is down."""
    await db.ping(PING_SECONDS)
    request.app.state.revocations.check_age()
    return {"status": "ok"}
