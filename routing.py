"""How a route is found and run: first the token, then body, validation, and the function."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Any, get_origin
from urllib.parse import parse_qsl

import orjson
from fastapi import Request, Response
from fastapi._compat import ModelField
from fastapi.dependencies.models import Dependant, _is_coroutine_callable
from fastapi.exceptions import RequestValidationError
from fastapi.params import Form
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic_core import from_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match, Router
from starlette.types import Receive, Scope, Send

from errors import Problem

MAX_BODY_BYTES = 64 * 1024
BODY_SECONDS = 15.0
NOT_MODIFIED = 304

MAX_KEPT_QUERY_BYTES = 256
"""Queries up to this length are parsed once and cached, because clients repeat them."""


class Route(APIRoute):
    """FastAPI's route, declared and documented as usual, but run by this class.

    It guarantees the order that clients rely on: dependencies run first, so that a stranger's body
    is not even read, and 401 takes precedence over 413, 415 and 422. It supports only what our
    routes use: FastAPI's own handler, with its generators, streams, forms and telemetry, takes
    twice as long as the rest of a request. A `Response` that a function returns is sent as it is.

    Anything unsupported raises a `TypeError` where the route is declared: functions that are not
    `async`, header and cookie parameters, a query that is not one model, more than one body.
    """

    def __init__(self, path: str, endpoint: Any, **options: Any) -> None:  # noqa: ANN401  (as in FastAPI)
        super().__init__(path, endpoint, **options)
        for reason in _unsupported(self.dependant):
            raise TypeError(f"{path}: {reason}.")
        marks = [vars(inner.call).get("openapi_parameter") for inner in self.dependant.dependencies]
        if headers := [mark for mark in marks if mark]:
            self.openapi_extra = {"parameters": headers}

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match a path; the framework's own method costs several times as much."""
        match = self.path_regex.match(scope["route_path"]) if scope["type"] == "http" else None
        if match is None:
            return Match.NONE, {}
        found = Match.FULL if scope["method"] in (self.methods or ()) else Match.PARTIAL
        return found, {"route": self, "path_params": match.groupdict()}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request for this route's path."""
        if scope["method"] not in (self.methods or ()):
            raise HTTPException(405)
        request, extra = Request(scope, receive), _Headers()
        errors: list[Any] = []
        values = await _arguments(self.dependant, request, extra, errors)
        if self.body_field:
            await self._add_body(request, values, errors)
        if errors:
            raise RequestValidationError(errors)
        result = await self.endpoint(**values)
        if isinstance(result, Response):
            return await result(scope, receive, send)
        headers, body = extra.raw_headers, b""
        status = extra.status_code or self.status_code or 200
        if self.response_field and status != NOT_MODIFIED:
            # Do not validate again what mypy and the database have checked.
            body = orjson.dumps(result, option=orjson.OPT_UTC_Z)
            headers.append((b"content-type", b"application/json"))
            headers.append((b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        return await send({"type": "http.response.body", "body": body})

    async def _add_body(self, request: Request, values: dict[str, Any], errors: list[Any]) -> None:
        (field,) = self.dependant.body_params
        is_form = isinstance(field.field_info, Form)
        if body := await _read(request, "x-www-form-urlencoded" if is_form else "json"):
            document = dict(parse_qsl(body.decode(errors="replace"))) if is_form else _parse(body)
            if document is None:
                errors.append({"type": "null", "loc": ("body",)})
                return
            values[field.name], wrong = field.validate(document, loc=("body",))
            errors += wrong
        elif field.field_info.is_required():
            errors.append({"type": "missing", "loc": ("body",)})


class Routes:
    """Finds a route by method and number of path segments, where a router tries them all.

    Starlette's router handles the rest: static files, OpenAPI, 404, 405, startup and shutdown.
    """

    def __init__(self, router: Router) -> None:
        self._router = router
        self._routes: defaultdict[tuple[str, int], list[Route]] = defaultdict(list)
        for route in router.routes:
            if isinstance(route, Route):
                for method in route.methods or ():
                    self._routes[method, route.path.count("/")].append(route)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "http":
            key = scope["method"], scope["route_path"].count("/")
            for route in self._routes.get(key, ()):
                match, found = route.matches(scope)
                if match is Match.FULL:
                    scope.update(found)
                    return await route.handle(scope, receive, send)
        return await Router.app(self._router, scope, receive, send)


def _unsupported(dependant: Dependant, *, inner: bool = False) -> Iterator[str]:
    """Yield what in a declaration would be silently ignored."""
    name = getattr(dependant.call, "__name__", dependant.call)
    bodies = dependant.body_params
    if not _is_coroutine_callable(dependant.call):
        yield f"{name} must be an async function that returns"
    if dependant.header_params or dependant.cookie_params:
        yield f"{name} must read headers and cookies from the Request"
    if dependant.query_params and not _is_one_model(dependant.query_params):
        yield f"{name} must take the whole query as one model"
    if inner and bodies:
        yield f"{name} must do without a body of its own"
    if len(bodies) > 1:
        yield f"{name} must take one body"
    if (
        dependant.http_connection_param_name
        or dependant.background_tasks_param_name
        or dependant.security_scopes_param_name
    ):
        yield f"{name} must take nothing of the framework's but Request and Response"
    for dependency in dependant.dependencies:
        yield from _unsupported(dependency, inner=True)


def _is_one_model(fields: list[ModelField]) -> bool:
    kind = fields[0].field_info.annotation
    return len(fields) == 1 and isinstance(kind, type) and issubclass(kind, BaseModel)


class _Headers(Response):
    """Collects the headers that a function sets, without the cost of a whole response."""

    status_code: int | None = None  # type: ignore[assignment]

    def __init__(self) -> None:
        self.raw_headers = []


async def _arguments(
    dependant: Dependant, request: Request, response: Response, errors: list[Any]
) -> dict[str, Any]:
    """Resolve a function's arguments: dependencies, then parameters."""
    values: dict[str, Any] = {}
    for inner in dependant.dependencies:
        found = await _arguments(inner, request, response, errors)
        value = await inner.call(**found)  # type: ignore[misc]
        if inner.name:  # a router's dependency has none, and no value
            values[inner.name] = value
    for field in dependant.path_params:
        raw = request.path_params[field.alias]
        values[field.name], wrong = field.validate(raw, loc=("path", field.alias))
        errors += wrong
    for field in dependant.query_params:
        values[field.name], wrong = _query(request, field)
        errors += wrong
    if dependant.request_param_name:
        values[dependant.request_param_name] = request
    if dependant.response_param_name:
        values[dependant.response_param_name] = response
    return values


def _query(request: Request, field: ModelField) -> tuple[Any, list[Any]]:
    sent = request.scope["query_string"]
    read = _read_query if len(sent) <= MAX_KEPT_QUERY_BYTES else _read_query.__wrapped__
    return read(sent, field)


@lru_cache(maxsize=512)
def _read_query(sent: bytes, field: ModelField) -> tuple[Any, list[Any]]:
    """Parse a query. Refuse a repeated name, because neither value could be preferred.

    For a list in the model, repeated values are its items.
    """
    given = parse_qsl(sent.decode("latin-1"), keep_blank_values=True)
    values: dict[str, Any] = dict(given)
    lists = _lists(field)
    if len(values) < len(given):
        counts = Counter(name for name, _ in given)
        if repeated := [name for name in counts if counts[name] > 1 and name not in lists]:
            return None, [{"type": "repeated", "loc": ("query", name)} for name in repeated]
    for name in lists & values.keys():
        values[name] = [value for given_name, value in given if given_name == name]
    return field.validate(values, loc=("query",))


@cache
def _lists(query: ModelField) -> frozenset[str]:
    model: Any = query.field_info.annotation
    fields = model.model_fields.items()
    return frozenset(name for name, field in fields if get_origin(field.annotation) is list)


async def _read(request: Request, subtype: str) -> bytes:
    """Read a body of at most 64 KiB. Raise `Problem` 408, 413 or 415."""
    headers: dict[bytes, bytes] = request.scope["given_headers"]
    length = int(headers.get(b"content-length", 0))
    if not length and b"transfer-encoding" not in headers:
        return b""
    if length > MAX_BODY_BYTES:
        raise Problem("body_too_large")
    body = b""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise Problem("body_too_large")
    except (TimeoutError, ClientDisconnect) as error:
        raise Problem("request_timeout") from error
    if body and not _is(subtype, headers.get(b"content-type", b"").decode("latin-1")):
        raise Problem(
            "unsupported_media_type", f"Send the body with Content-Type: application/{subtype}."
        )
    return body


def _is(wanted: str, content_type: str) -> bool:
    kind, _, subtype = content_type.partition(";")[0].strip().lower().partition("/")
    return kind == "application" and (subtype == wanted or subtype.endswith("+" + wanted))


def _parse(body: bytes) -> Any:  # noqa: ANN401  (any JSON value)
    """Parse JSON (RFC 8259). Raise `Problem` 422.

    Unlike the standard library's, this parser refuses NaN, lone surrogates and deep nesting.
    """
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        detail = f"The body is not valid JSON: {error}."
        errors = [{"detail": detail, "pointer": "#"}]
        raise Problem("validation_error", detail, errors=errors) from error
