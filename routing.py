"""How our own routes are found and run: first the token, then body, validation, and the function.

FastAPI's own handler doubles a request's CPU (docs/design.md has the numbers). Whatever is not
simple enough for this is run by FastAPI all the same.
"""

import asyncio
import logging
import re
from codecs import BOM_UTF8
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import fields
from functools import cache, lru_cache
from inspect import isclass, iscoroutinefunction
from io import BytesIO
from typing import Any, NamedTuple, NoReturn, get_args, get_origin
from urllib.parse import parse_qsl

import orjson
from fastapi import Request, Response
from fastapi.datastructures import DefaultPlaceholder
from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import get_typed_return_annotation
from fastapi.exceptions import RequestValidationError
from fastapi.params import Form
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute, RouteContext, iter_route_contexts
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import from_json
from python_multipart import parse_form
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute
from starlette.routing import Route as PlainRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from typing_extensions import is_typeddict

import spellings
from calls import below_root, call_of
from errors import Problem

logger = logging.getLogger("todo.routing")

MAX_BODY_BYTES = 64 * 1024
BODY_SECONDS = 15.0
NO_CONTENT, NOT_MODIFIED = 204, 304
_JSON = re.compile(r"application/(.*\+)?json")
_URLENCODED, _MULTIPART = "application/x-www-form-urlencoded", "multipart/form-data"

MAX_PATH_CHARACTERS = 4096
"""Longer paths lead nowhere: a router fails at numbers with more digits than Python converts."""

MAX_KEPT_QUERY_BYTES = 256
"""Queries up to this length are parsed once and cached, because clients repeat them."""

_Field = Any
"""A parameter, as FastAPI keeps it; the type has no public name."""

_KNOWN = {
    *("name", "call", "path", "path_params", "query_params", "body_params", "dependencies"),
    *("request_param_name", "response_param_name"),
    *("scope", "own_oauth_scopes", "parent_oauth_scopes"),  # only what is not known reads them
}
"""The fields of FastAPI's `Dependant` that `Operation` does justice to."""

_CONVERSIONS = [
    *("response_model_include", "response_model_exclude", "response_model_exclude_unset"),
    *("response_model_exclude_defaults", "response_model_exclude_none"),
]


class Route(APIRoute):
    """FastAPI's route, declared and documented as usual. If it is simple, `FastPath` runs it.

    Then dependencies run first, so that a stranger's body is not even read, and 401 takes
    precedence over 413, 415 and 422; and what the function returns is not validated again.
    """

    def __init__(self, path: str, endpoint: Any, **options: Any) -> None:  # noqa: ANN401  (as in FastAPI)
        super().__init__(path, endpoint, **options)
        first_sentence = self.description.partition(". ")[0].rstrip(".").replace("`", "")
        self.summary = self.summary or first_sentence
        marks = [vars(inner.call).get("openapi_parameter") for inner in self.dependant.dependencies]
        if headers := [mark for mark in marks if mark]:
            self.openapi_extra = {**(self.openapi_extra or {}), "parameters": headers}
        kind = self.response_class
        is_stream = isclass(kind) and issubclass(kind, StreamingResponse)  # it may never end
        self.answers_head = "GET" in (self.methods or ()) and not is_stream


class FastPath:
    """The innermost layer: it runs our routes, and passes all else on to FastAPI.

    It finds a route by the number of the path's segments, where a router tries them all.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._number = 0
        """How many routes there were when they were read; 0 before the service has started."""
        self._places: dict[int, list[_Place]] = {}
        self._has_complained = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        operation = self._find(scope) if scope["type"] == "http" else None
        if operation is None:
            await self.app(scope, receive, send)
        elif scope["app"].dependency_overrides:
            # Only FastAPI's own handler knows how to override dependencies, but it takes no HEAD.
            is_head = scope["method"] == "HEAD"
            await self.app({**scope, "method": "GET"} if is_head else scope, receive, send)
        elif self._number:
            await operation.run(scope, receive, send)
        else:
            operation.tell(scope)
            self._refuse()

    def _find(self, scope: Scope, *, may_shorten: bool = True) -> "Operation | None":
        routes = scope["app"].routes
        if self._number != len(routes):
            self._places = _places(routes)
            self._number = len(routes) if scope["app"].state.is_started else 0
        call = call_of(scope)
        # A router would take a path that ends its line for the one without.
        if len(call.path) > MAX_PATH_CHARACTERS or call.path.rstrip("/").endswith("\n"):
            raise Problem("not_found")
        is_known, operation = self._look_up(scope, call.path)
        if not is_known:
            sent = below_root(scope, scope["raw_path"].decode("latin-1"))
            path, user_id = spellings.path(sent)
            is_known, operation = self._look_up(scope, path)
            if not is_known:
                # Once: whoever repeats it without end is looking for nothing.
                return (
                    self._find(scope, may_shorten=False)
                    if may_shorten and _is_shortened(scope)
                    else None
                )
            call.path, call.path_user_id = path, user_id
        # Also for FastAPI's router, which answers if the method is another.
        scope["path"] = scope.get("root_path", "") + call.path
        return operation

    def _refuse(self) -> NoReturn:
        """Refuse a call for which nothing is open. Raise `Problem` 503, and log why, once."""
        if not self._has_complained:
            self._has_complained = True
            logger.error(
                "called without its lifespan, so nothing is connected, and calls are answered with "
                "503: let the server, the adapter or the app that mounts it run the lifespan"
            )
        raise Problem("unavailable")

    def _look_up(self, scope: Scope, path: str) -> "tuple[bool, Operation | None]":
        """Return whether there is anything at a path, and what runs the request, if we do."""
        is_known = False
        for place in self._places.get(path.count("/"), ()):
            if match := place.pattern.fullmatch(path):
                is_known = True
                if scope["method"] in place.operations:
                    scope["path_params"] = match.groupdict()
                    return True, place.operations[scope["method"]]
        return is_known, None


def _is_shortened(scope: Scope) -> bool:
    """Take off a prefix that the proxy has left, and that the server has put in front again."""
    call = call_of(scope)
    path = below_root(scope, call.path)
    if path == call.path:
        return False
    root: str = scope["root_path"]
    call.path, scope["path"] = path, root + path
    scope["raw_path"] = scope["raw_path"].removeprefix(root.encode())
    return True


class _Place(NamedTuple):
    pattern: re.Pattern[str]
    operations: "dict[str, Operation | None]"
    """By method; None is left to FastAPI."""


def _places(routes: list[BaseRoute]) -> dict[int, list[_Place]]:
    """Return the places of routes, in the order of declaration, by number of segments."""
    found: dict[str, _Place] = {}
    for context in iter_route_contexts(routes):
        if isinstance(context.original_route, PlainRoute):
            place = found.setdefault(str(context.path), _Place(context.path_regex, {}))
            is_ours = isinstance(context.original_route, Route) and _is_simple(context)
            operation = Operation(context) if is_ours else None
            for method in context.methods or ():
                place.operations.setdefault(method, operation)
            if "GET" in place.operations and getattr(context.original_route, "answers_head", False):
                place.operations.setdefault("HEAD", operation)
    numbered = defaultdict(list)
    for path, place in found.items():
        numbered[path.count("/")].append(place)
    return numbered


class Operation:
    """Runs a simple route, as it and the routers that include it declare it.

    A `Response` that the function returns is sent as it is.
    """

    def __init__(self, context: RouteContext) -> None:
        self._route = context.original_route
        self._path = str(context.path)
        self._dependant: Dependant = context.dependant
        self._function: Any = context.endpoint
        self._status = context.status_code or 200
        self._has_body = context.response_model is not None

    async def run(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request for this route's path and method."""
        self.tell(scope)
        request, response = Request(scope, receive), Response(status_code=self._status)
        response.raw_headers.clear()
        errors: list[Any] = []
        values = await _arguments(self._dependant, request, response, errors)
        for field in self._dependant.body_params:  # one at most
            await _add_body(field, request, values, errors)
        if errors:
            raise RequestValidationError(errors)
        result = await self._function(**values)
        if isinstance(result, Response):
            return await result(scope, receive, send)
        status, headers, body = response.status_code, response.raw_headers, b""
        if self._has_body and status != NOT_MODIFIED:
            body = orjson.dumps(result, option=orjson.OPT_UTC_Z)
            headers.append((b"content-type", b"application/json"))
            headers.append((b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        return await send({"type": "http.response.body", "body": body})

    def tell(self, scope: Scope) -> None:
        """Name the route to our log, and to others' tools as FastAPI does."""
        call_of(scope).route = self._path
        scope["route"], scope["endpoint"] = self._route, self._function
        if telemetry := scope.get("fastapi.telemetry"):
            telemetry.route = scope.get("root_path", "") + self._path
            if telemetry.span:
                telemetry.span.set_attribute("http.route", telemetry.route)
                telemetry.span.update_name(f"{telemetry.span_method} {telemetry.route}")


def _is_simple(context: RouteContext) -> bool:
    """Return whether `Operation` does all that a route asks for."""
    function, *dependencies = everything = list(_all(context.dependant))
    return (
        context.max_body_size is None
        and _returns_rows(context)
        and all(map(_is_plain, everything))
        and all(field is context.body_field for field in function.body_params)
        and not any(inner.query_params or inner.body_params for inner in dependencies)
        # FastAPI would call a dependency once, however often it is declared.
        and len({dependant.call for dependant in everything}) == len(everything)
    )


def _all(dependant: Dependant) -> Iterator[Dependant]:
    yield dependant
    for inner in dependant.dependencies:
        yield from _all(inner)


def _returns_rows(context: RouteContext) -> bool:
    """Return whether the result is sent unchanged: rows, nothing, or a response."""
    result = get_typed_return_annotation(context.dependant.call)
    if isclass(result) and issubclass(result, Response):
        return True
    row = get_args(result)[0] if get_origin(result) is list else result
    return (
        (is_typeddict(row) or context.status_code == NO_CONTENT)
        and result == context.response_model
        and isinstance(context.response_class, DefaultPlaceholder)
        and not any(getattr(context, name) for name in _CONVERSIONS)
    )


def _is_plain(dependant: Dependant) -> bool:
    """Return whether it is an async function that takes nothing but what `Operation` gives."""
    call, bare = dependant.call, Dependant()
    others = [field.name for field in fields(bare) if field.name not in _KNOWN]
    queries: list[Any] = [field.field_info.annotation for field in dependant.query_params]
    return (
        (iscoroutinefunction(call) or iscoroutinefunction(type(call).__call__))
        and all(getattr(dependant, name) == getattr(bare, name) for name in others)
        and len(queries) <= 1
        and all(isclass(kind) and issubclass(kind, BaseModel) for kind in queries)
    )


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
    for field in dependant.query_params:  # one at most
        values[field.name], wrong = _query(request, field)
        errors += wrong
    if dependant.request_param_name:
        values[dependant.request_param_name] = request
    if dependant.response_param_name:
        values[dependant.response_param_name] = response
    return values


async def _add_body(
    field: _Field, request: Request, values: dict[str, Any], errors: list[Any]
) -> None:
    is_required = field.field_info.is_required()
    if body := await read_body(request):
        content_type = call_of(request).headers.get(b"content-type", b"").decode("latin-1")
        document = _document(field, body, content_type)
        if not is_required and (document is None or document == {}):
            return
        ignores = request.app.state.settings.unknown_fields == "ignore"
        try:
            values[field.name] = _validator(field).validate_python(
                document, extra="ignore" if ignores else None
            )
        except ValidationError as error:
            found = error.errors(include_url=False)
            errors += [{**each, "loc": ("body", *each["loc"])} for each in found]
    elif is_required:
        errors.append({"type": "missing", "loc": ("body",)})


@cache
def _validator(field: _Field) -> TypeAdapter[Any]:
    """Return what validates a body; FastAPI's own could not be told to drop unknown members."""
    return TypeAdapter(field.field_info.annotation)


def _query(request: Request, field: _Field) -> tuple[Any, list[Any]]:
    sent = request.scope["query_string"]
    read = _read_query if len(sent) <= MAX_KEPT_QUERY_BYTES else _read_query.__wrapped__
    return read(sent, field)


@lru_cache(maxsize=512)
def _read_query(sent: bytes, field: _Field) -> tuple[Any, list[Any]]:
    """Parse a query. Refuse a repeated name, because neither value could be preferred.

    For a list in the model, repeated values are its items.
    """
    given = parse_qsl(sent.decode("latin-1"), keep_blank_values=True)
    values: dict[str, Any] = dict(given)
    lists = _lists(field)
    if len(values) < len(given) and (errors := _repeated("query", given, lists)):
        return None, errors
    for name in lists & values.keys():
        values[name] = [value for given_name, value in given if given_name == name]
    found: tuple[Any, list[Any]] = field.validate(values, loc=("query",))
    return found


def _repeated(
    place: str, pairs: list[tuple[str, str]], lists: frozenset[str] = frozenset()
) -> list[Any]:
    counts = Counter(name for name, _ in pairs if name not in lists)
    return [{"type": "repeated", "loc": (place, name)} for name in counts if counts[name] > 1]


@cache
def _lists(query: _Field) -> frozenset[str]:
    model: Any = query.field_info.annotation
    fields = model.model_fields.items()
    own = {name for name, field in fields if get_origin(field.annotation) is list}
    return frozenset(own | {name for name, meant in spellings.PARAMETERS.items() if meant in own})


async def read_body(request: Request) -> bytes:
    """Read a body of at most 64 KiB. Raise `Problem` 408 or 413."""
    headers: dict[bytes, bytes] = call_of(request).headers
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
    return body


def _document(field: _Field, body: bytes, content_type: str) -> Any:  # noqa: ANN401  (JSON)
    """Parse a body of a type that the route takes. Raise `Problem` 415 or 422."""
    is_form = isinstance(field.field_info, Form)
    media_type = content_type.partition(";")[0].strip().lower()
    if not is_form and _JSON.fullmatch(media_type):
        return _parse(body)
    names = getattr(field.field_info.annotation, "form_names", None)
    if media_type in {_URLENCODED, _MULTIPART} and (is_form or names):
        return _parse_form(body, content_type, names)
    wanted = _URLENCODED if is_form else "application/json"
    raise Problem("unsupported_media_type", f"Send the body with Content-Type: {wanted}.")


def _parse(body: bytes) -> Any:  # noqa: ANN401  (any JSON value)
    """Parse JSON (RFC 8259). Raise `Problem` 422.

    Unlike the standard library's, this parser refuses NaN, lone surrogates and deep nesting.
    """
    try:
        return from_json(body.removeprefix(BOM_UTF8), allow_inf_nan=False)
    except ValueError as error:
        raise _unreadable(f"The body is not valid JSON: {error}.") from error


def _parse_form(body: bytes, content_type: str, names: dict[str, str] | None) -> dict[str, str]:
    """Parse a form: its text, by the names that the route's model has. Raise `Problem` 422.

    What is empty counts as absent (RFC 6749, section 3.2), like what is uploaded.
    """
    parts: list[Any] = []
    headers = {"Content-Type": content_type.encode("latin-1")}
    try:
        if content_type.strip().lower().startswith(_URLENCODED):
            pairs = parse_qsl(body.decode(), errors="strict")
        else:
            parse_form(headers, BytesIO(body), on_field=parts.append, on_file=None)
            texts = [(part.field_name or b"", part.value or b"") for part in parts]
            pairs = [(name.decode(), value.decode()) for name, value in texts if value]
    except ValueError as error:
        raise _unreadable("The body is not a valid form in UTF-8.") from error
    if names:
        pairs = [(names[name], value) for name, value in pairs if name in names]
    if repeated := _repeated("body", pairs):
        raise RequestValidationError(repeated)
    return dict(pairs)


def _unreadable(detail: str) -> Problem:
    return Problem("validation_error", detail, errors=[{"detail": detail, "pointer": "#"}])
