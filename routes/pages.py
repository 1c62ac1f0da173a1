"""The demo page, and Swagger UI with everything it needs: both work without the internet.

Their links are relative, so that they lead somewhere below a proxy's prefix, too.
"""

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.types import Scope

from routing import Route
from settings import PROJECT

STATIC = PROJECT / "static"
DEMO = (STATIC / "index.html").read_text("utf-8")
DOCS = (STATIC / "docs.html").read_text("utf-8")


class Files(StaticFiles):
    """Starlette's, but whole: it answers bad ranges in plain text, and no file here needs any."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Return a file. Its range is taken off the request, which the response reads, too."""
        scope["headers"] = [pair for pair in scope["headers"] if pair[0] != b"range"]
        return await super().get_response(path, scope)


router = APIRouter(include_in_schema=False, route_class=Route)
files = Files(directory=STATIC, packages=[("fastapi_offline", "static")])
router.mount("/static", files)


@router.get("/")
async def get_demo(request: Request) -> Response:
    """Serve the demo page."""
    sent: bytes = request.scope["raw_path"]
    if not sent.endswith(b"/"):  # a prefix alone, from which the links would lead astray
        return RedirectResponse(f"{sent.rpartition(b'/')[2].decode()}/")
    return HTMLResponse(DEMO)


@router.get("/client.js")
@router.get("/client.d.ts")
async def get_client(request: Request) -> Response:
    """Serve the client for pages, or its types, to whoever asks."""
    name = request.scope["path"].rpartition("/")[2]
    response = await files.get_response(name, request.scope)
    response.headers["Access-Control-Allow-Origin"] = "*"
    if name.endswith(".ts"):
        # Else it is a video, or a translation.
        response.headers["Content-Type"] = "text/plain; charset=utf-8"
    return response


@router.get("/docs")
async def get_docs(request: Request) -> HTMLResponse:
    """Serve Swagger UI."""
    sent: bytes = request.scope["raw_path"]
    up = "../" * (len(sent) - len(sent.rstrip(b"/")))  # out of `/docs/`
    return HTMLResponse(DOCS.replace("static/", f"{up}static/"))


@router.get("/openapi.json")
async def get_openapi(request: Request) -> JSONResponse:
    """Serve the description of the API."""
    return JSONResponse(request.app.openapi_below(request.scope.get("root_path", "")))
