"""What wraps every request: its id, timing, log line and response headers."""

import logging
import random
import re
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from starlette._utils import get_route_path
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import errors
from logs import log_event

_SANE_REQUEST_ID = re.compile(rb"[\w.:/+=-]{1,128}", re.ASCII)
_USERS_TASKS = re.compile(r"/api/(?P<user_id>.+)/tasks(?P<rest>/.*)?", re.DOTALL)

_SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
]
_API_HEADERS = [
    *_SECURITY_HEADERS,
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
]
_PAGE_HEADERS = [
    *_SECURITY_HEADERS,
    (
        b"content-security-policy",
        (
            b"default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; "
            b"base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
        ),
    ),
]
_UNCACHED, _REVALIDATED = [(b"cache-control", b"no-store")], [(b"cache-control", b"no-cache")]
_CACHEABLE = [(b"cache-control", b"private, no-cache"), (b"vary", b"Authorization")]


class Envelope:
    """The outermost layer of the service. Plain ASGI for speed, because every request passes it."""

    def __init__(self, app: ASGIApp, log: Callable[[dict[str, Any]], None]) -> None:
        self.app = app
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and its response back."""
        if scope["type"] != "http":
            return await self.app(scope, receive, _briefly(send))
        started = time.perf_counter()
        given = scope["given_headers"] = dict(scope["headers"])  # the last of repeated ones
        request_id = scope["request_id"] = _request_id(given)
        _canonical_path(scope)
        is_api = scope["route_path"].startswith("/api/")
        if not is_api:
            # Starlette answers bad ranges in plain text, and no file here needs range requests.
            scope["headers"] = [pair for pair in scope["headers"] if pair[0] != b"range"]
        added = [
            (b"x-request-id", request_id.encode()),
            *(_API_HEADERS if is_api else _PAGE_HEADERS),
        ]
        caching = _UNCACHED if is_api else _REVALIDATED
        if b"origin" not in given:
            added.append((b"vary", b"Origin"))  # otherwise the CORS layer adds it

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                scope["status"] = message["status"]
                message["headers"] = [*message["headers"], *added]
                message["headers"] += _CACHEABLE if "is_cacheable" in scope else caching
                if limits := scope.get("limits"):
                    message["headers"] += limits.items()
            await send(message)

        try:
            app = _refuse_upgrade if _loses_its_body(scope, given) else self.app
            await app(scope, receive, send_with_headers)
        finally:
            self._log(_summary(scope, time.perf_counter() - started))


def _request_id(given: dict[bytes, bytes]) -> str:
    """Return the caller's id if it is sane, so that both logs can be correlated, or a new one."""
    if _SANE_REQUEST_ID.fullmatch(sent := given.get(b"x-request-id", b"")):
        return sent.decode()
    return f"{random.getrandbits(128):032x}"


def _loses_its_body(scope: Scope, given: dict[bytes, bytes]) -> bool:
    """Return whether uvicorn's parser took the body for another protocol (try `curl --http2`)."""
    return (b"upgrade" in given or scope["method"] == "CONNECT") and (
        given.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in given
    )


async def _refuse_upgrade(scope: Scope, receive: Receive, send: Send) -> None:
    # Close the connection, or the body would be read as the next request.
    problem = errors.Problem("upgrade_refused", headers={"Connection": "close"})
    await errors.respond(problem, scope, receive, send)


def _canonical_path(scope: Scope) -> None:
    """Rewrite every spelling of a path to the one that is routed.

    `/api/tasks/` becomes `/api/tasks`, and `/api/{user_id}/tasks...` becomes `/api/tasks...` with
    an id that `verify_jwt` compares with the token's.
    """
    path = get_route_path(scope).rstrip("/") or "/"
    if match := _USERS_TASKS.fullmatch(path):
        scope["path_user_id"] = match["user_id"]
        path = "/api/tasks" + (match["rest"] or "")
    scope["route_path"], scope["path"] = path, scope.get("root_path", "") + path


def _summary(scope: Scope, seconds: float) -> dict[str, Any]:
    # Log the route's template, not the path, which may contain anything.
    route = scope.get("route")
    return {
        "event": "request",
        "method": scope["method"],
        "route": getattr(route, "path", None),
        "status": scope.get("status"),
        "ms": round(seconds * 1000, 1),
        "user_id": scope.get("user_id"),
        "request_id": scope["request_id"],
        "client": scope["client"][0] if scope.get("client") else None,
    }


def _briefly(send: Send) -> Send:
    """Strip the traceback from a startup that failed for a known reason."""
    prefix = f"{errors.CannotStart.__module__}.{errors.CannotStart.__qualname__}: "

    async def send_briefly(message: Message) -> None:
        if message["type"] == "lifespan.startup.failed":
            last_line = message["message"].strip().rpartition("\n")[2]
            if last_line.startswith(prefix):
                message["message"] = last_line.removeprefix(prefix)
        await send(message)

    return send_briefly


class CORS(CORSMiddleware):
    """Starlette's, but requests without Origin just pass, and refusals are problem responses."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle requests that have an Origin."""
        if scope["type"] == "http" and b"origin" in scope["given_headers"]:
            await super().__call__(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def preflight_response(self, request_headers: Headers) -> Response:
        """Answer `OPTIONS`, which browsers send before requests to another origin."""
        response = super().preflight_response(request_headers)
        return response if response.status_code == HTTPStatus.OK else _RefusedPreflight()


class _RefusedPreflight(Response):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        origin = request.headers["origin"]
        log_event(request, "origin_not_allowed", logging.WARNING, origin=origin)
        await errors.respond(errors.Problem("origin_not_allowed"), scope, receive, send)
