"""The demo page, and Swagger UI with everything it needs: both work without the internet."""

from fastapi import APIRouter
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

from routing import Route
from settings import PROJECT

STATIC = PROJECT / "static"

router = APIRouter(include_in_schema=False, route_class=Route)
router.mount("/static", StaticFiles(directory=STATIC, packages=[("fastapi_offline", "static")]))


@router.get("/")
async def get_demo() -> FileResponse:
    """Serve the demo page."""
    return FileResponse(STATIC / "index.html")


@router.get("/docs")
async def get_docs() -> FileResponse:
    """Serve Swagger UI."""
    return FileResponse(STATIC / "docs.html")
