"""The outer layers: each call's id, clock, log line and response headers; and CORS."""

import asyncio
import logging
import random
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any

from fastapi.routing import iter_route_contexts
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import calls
import errors
import logs
from calls import Call, below_root, call_of

_SANE_REQUEST_ID = re.compile(rb"[\w.:/+=-]{1,128}", re.ASCII)

_ALWAYS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
]
_FOR_DATA = [
    *_ALWAYS,
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
]
_UNCACHED = [*_FOR_DATA, (b"cache-control", b"no-store")]
_CACHEABLE = [
    *_FOR_DATA,
    (b"cache-control", b"private, no-cache"),
    (b"vary", b"Authorization"),
]
_FOR_PAGES = [
    *_ALWAYS,
    (
        b"content-security-policy",
        (
            b"default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; "
            b"base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
        ),
    ),
    (b"cache-control", b"no-cache"),
]


class Envelope:
    """The outermost of our layers. Plain ASGI for speed, because every request passes it."""

    def __init__(self, app: ASGIApp, trusted_proxy_hops: int = 0) -> None:
        self.app = app
        self._hops = trusted_proxy_hops

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and its response back."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, _briefly(send))
        if self._hops:
            scope["client"] = _client(scope, self._hops)
        if scope.get("method") == "HEAD":
            send = _headers_of(send)
        started = time.perf_counter()
        call = scope[calls.KEY] = _call(scope)
        calls.current.set(call)
        added = [(b"x-request-id", call.request_id.encode())]
        if b"origin" not in call.headers:
            added.append((b"vary", b"Origin"))  # otherwise the CORS layer adds it

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                call.status = message["status"]
                own = message["headers"]
                message["headers"] = [*own, *_lacking(own, call), *added, *call.limits.items()]
            elif message["type"] == "websocket.accept":
                call.status = HTTPStatus.SWITCHING_PROTOCOLS
            elif message["type"] == "websocket.close":
                call.status = call.status or HTTPStatus.FORBIDDEN  # closed before it was accepted
            await _pass_on(message, send)

        try:
            app = _refuse_upgrade if _loses_its_body(scope, call.headers) else self.app
            await app(scope, receive, send_with_headers)
        except ClientDisconnect:
            await asyncio.sleep(0)  # and the server knows it, too
        finally:
            logs.log_request(_summary(scope, call, time.perf_counter() - started))


async def _pass_on(message: Message, send: Send) -> None:
    """Send a message. Raise `ClientDisconnect` if nobody is there any more."""
    try:
        await send(message)
    except (OSError, RuntimeError) as error:
        if isinstance(error, OSError) or "handler is closed" in str(error):  # uvloop's words
            raise ClientDisconnect from error
        raise


def ignore_trailers() -> None:
    """Keep what follows a chunked body out of the request's headers.

    uvicorn appends it to them, with httptools, unless they are another list by then. Of all that
    the parser calls, only this comes with chunked bodies alone.
    """
    with suppress(ImportError):  # Windows has no httptools
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol  # noqa: PLC0415

        def on_chunk_header(connection: HttpToolsProtocol) -> None:
            if connection.headers is connection.scope["headers"]:
                connection.headers = connection.headers.copy()

        HttpToolsProtocol.on_chunk_header = on_chunk_header  # type: ignore[attr-defined]


def _client(scope: Scope, hops: int) -> tuple[str, int] | None:
    """Return the client that the outermost of so many proxies saw; else that of the connection.

    Each of them appends who connects to it. What is in front of that may be anybody's invention.
    """
    sent = b",".join(value for name, value in scope["headers"] if name == b"x-forwarded-for")
    hosts = [_without_port(part.strip()) for part in sent.decode("latin-1").split(",")]
    if len(hosts) >= hops:
        with suppress(ValueError):  # not an address
            ip_address(hosts[-hops])
            return hosts[-hops], 0
    client: tuple[str, int] | None = scope.get("client")
    # uvicorn may have replaced the connection's with one of these, and then nobody knows it.
    return None if client and client[0] in hosts else client


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0] if host.count(":") == 1 else host


def _headers_of(send: Send) -> Send:
    """Leave out the body, as not all servers do (RFC 9110, section 9.3.2)."""

    async def send_headers(message: Message) -> None:
        if message["type"] == "http.response.body":
            message["body"] = b""
        await send(message)

    return send_headers


def _call(scope: Scope) -> Call:
    if root := scope.get("root_path"):
        _settle(scope, root)
    given = dict(scope["headers"])
    return Call(_request_id(given), given, below_root(scope, scope["path"]))


def _settle(scope: Scope, root: str) -> None:
    """Read `todo` and `/todo/` as `/todo`: cookies, links and routes depend on it."""
    scope["root_path"] = clean = f"/{root.strip('/')}".rstrip("/")
    for name, old, new in (("path", root, clean), ("raw_path", root.encode(), clean.encode())):
        scope[name] = new + scope[name].removeprefix(old)


def _request_id(given: dict[bytes, bytes]) -> str:
    """Return the caller's id if it is sane, so that both logs can be correlated, or a new one."""
    if _SANE_REQUEST_ID.fullmatch(sent := given.get(b"x-request-id", b"")):
        return sent.decode()
    return f"{random.getrandbits(128):032x}"


def _lacking(own: list[tuple[bytes, bytes]], call: Call) -> list[tuple[bytes, bytes]]:
    """Return the headers that every response gets, but for those that this one sets itself."""
    names = {name for name, _ in own}
    defaults = _FOR_PAGES
    if call.path.startswith("/api/"):
        defaults = _CACHEABLE if call.is_cacheable else _UNCACHED
    return [pair for pair in defaults if pair[0] not in names]


def _loses_its_body(scope: Scope, given: Mapping[bytes, bytes]) -> bool:
    """Return whether uvicorn's parser took the body for another protocol (try `curl --http2`)."""
    upgrades = scope["type"] == "http" and (b"upgrade" in given or scope["method"] == "CONNECT")
    return upgrades and (
        given.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in given
    )


async def _refuse_upgrade(scope: Scope, receive: Receive, send: Send) -> None:
    # Close the connection, or the body would be read as the next request.
    problem = errors.Problem("upgrade_refused", headers={"Connection": "close"})
    await errors.respond(problem, scope, receive, send)


def _summary(scope: Scope, call: Call, seconds: float) -> dict[str, Any]:
    return {
        "event": "request",
        "method": scope.get("method", "WEBSOCKET"),
        "route": call.route or _template(scope),
        "status": call.status,
        "ms": round(seconds * 1000, 1),
        "user_id": call.user_id or None,
        "request_id": call.request_id,
        "client": scope["client"][0] if scope.get("client") else None,
    }


def _template(scope: Scope) -> str | None:
    """Return a route's path as it is declared: the one that was sent may contain anything."""
    route = scope.get("route")
    for context in iter_route_contexts(scope["app"].routes if route else ()):
        if context.original_route is route:
            return context.path  # with the prefix of the router that includes it
    return getattr(route, "path", None)  # of an app that is mounted


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
        if scope["type"] == "http" and b"origin" in call_of(scope).headers:
            await super().__call__(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    @staticmethod
    def allow_explicit_origin(headers: MutableHeaders, origin: str) -> None:
        """Allow an origin, unless all are."""
        if "access-control-allow-origin" not in headers:
            CORSMiddleware.allow_explicit_origin(headers, origin)

    def preflight_response(self, request_headers: Headers) -> Response:
        """Answer `OPTIONS`, which browsers send before requests to another origin."""
        response = super().preflight_response(request_headers)
        if response.status_code == HTTPStatus.OK:
            return response
        origin = request_headers["origin"]
        if not self.is_allowed_origin(origin):
            return _RefusedPreflight(errors.Problem("origin_not_allowed"))
        # The origin must not be blamed for the method.
        allowed = {"Access-Control-Allow-Origin": origin, "Allow": ", ".join(self.allow_methods)}
        headers = self.simple_headers | allowed
        return _RefusedPreflight(errors.Problem("method_not_allowed", headers=headers))


class _RefusedPreflight(Response):
    def __init__(self, problem: errors.Problem) -> None:
        super().__init__()
        self._problem = problem

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        event, origin = self._problem.code, request.headers["origin"]
        logs.log_event(request, event, logging.WARNING, origin=origin)
        await errors.respond(self._problem, scope, receive, send)
