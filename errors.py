"""All errors: each is listed here once, and sent as application/problem+json (RFC 9457).

What routes raise as in any FastAPI application is sent in the same form: an `HTTPException` with
its own detail and headers, and the code `http_error` if it is neither a 404 nor a 405.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from http.client import responses
from typing import Any
from urllib.parse import quote

from asyncpg import PostgresError
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from fastapi.utils import is_body_allowed_for_status_code
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

from calls import call_of

logger = logging.getLogger("todo.errors")

CODES: dict[str, tuple[int, str]] = {
    "not_authenticated": (401, "Sign in first: send Authorization: Bearer <JWT>."),
    "invalid_token": (401, "This token is not valid here. Sign in again."),
    "token_expired": (401, "This token has expired. Refresh it, or sign in again."),
    "token_revoked": (401, "This token was logged out. Sign in again."),
    "invalid_credentials": (401, "Email or password is wrong."),
    "refresh_token_missing": (401, "You are signed out. Sign in again."),
    "refresh_token_invalid": (401, "This session has ended. Sign in again."),
    "wrong_password": (403, "The current password is wrong."),
    "wrong_user": (403, "The user id in the path is not your token's; /api/tasks needs none."),
    "origin_not_allowed": (403, "Pages of this origin may not call; see CORS_ORIGINS."),
    "not_found": (404, "There is nothing at this path. See the API's docs for what there is."),
    "task_not_found": (404, "No such task."),
    "tag_not_found": (404, "No such tag."),
    "method_not_allowed": (405, "This path does not take this method; see the Allow header."),
    "email_taken": (409, "This email already has an account. Sign in instead."),
    "tag_exists": (409, "A tag with this name already exists."),
    "upgrade_refused": (400, "Send this again as plain HTTP/1.1, without Upgrade and Connection."),
    "request_timeout": (408, "The body did not arrive in time. Send it again."),
    "precondition_failed": (412, "This was changed by another write. Read it again, then write."),
    "body_too_large": (413, "The body is larger than 64 KiB."),
    "unsupported_media_type": (415, "Send the body as JSON, with Content-Type: application/json."),
    "validation_error": (422, "The request is invalid."),
    "idempotency_key_reused": (422, "This Idempotency-Key was used with another body."),
    "rate_limited": (429, "Too many requests. Try again later."),
    "internal_error": (
        500,
        "Something went wrong on our side; the request id finds it in the log.",
    ),
    "unavailable": (503, "The service cannot answer right now. Try again in a moment."),
}
"""Code -> status and sentence. Codes are stable: clients rely on them."""

_TAKEN = {"emails_pkey": "email_taken", "tags_name": "tag_exists"}
"""Unique constraints of the database, and the code of a violation."""

_PLAIN_WORDS = {
    "missing": "is required",
    "repeated": "is given more than once",
    "extra_forbidden": "is not known here; the API's docs list what is",
    "string_type": "must be text",
    "string_too_short": "needs {min_length} or more characters",
    "string_too_long": "takes at most {max_length} characters",
    "too_short": "needs {min_length} or more values",
    "too_long": "takes at most {max_length} values",
    "list_type": "must be a list",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "has too many digits",
    "literal_error": "must be {expected}",
    "union_tag_invalid": "must be one of the known kinds: {expected_tags}",  # pydantic's echoes it
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "dict_type": "must be an object",
    "greater_than_equal": "must be {ge} or more",
    "less_than_equal": "must be {le} or less",
    "unwanted": "must be left out: the query says what is meant",
}
"""Plain replacements for pydantic's messages, which are written for programmers."""

RETRY_AFTER_SECONDS = 1
MAX_LISTED = 20
"""How many of a request's errors are reported at once."""


class CannotStart(Exception):
    """The service cannot start; the message is one line that says why and what to do."""


class Problem(HTTPException):
    """The one way to refuse a request: `raise Problem("task_not_found")`."""

    def __init__(
        self,
        code: str,
        detail: str | None = None,
        *,
        errors: list[dict[str, str]] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        status, sentence = CODES[code]
        super().__init__(status, detail or sentence, headers)
        self.code = code
        self.errors = errors


def bad_parameter(name: str, detail: str) -> Problem:
    """Return the problem of a parameter, by the name that clients know."""
    errors = [{"detail": detail, "parameter": name}]
    return Problem("validation_error", f"{name}: {detail}", errors=errors)


class TryAgain(Exception):
    """The database rolled the statement back, and it should be run again."""


class DatabaseError(Exception):
    """A bug of ours, found by the database. Its message is left out: it may quote a row."""


def from_database(error: Exception) -> Exception:
    """Translate an asyncpg error to `TryAgain`, `Problem` or `DatabaseError` (a bug of ours).

    By SQLSTATE (PostgreSQL manual, appendix A). Anything that is not the server's own response,
    such as a refused or reset connection or a timeout, means that the server is unavailable.
    """
    state = error.sqlstate if isinstance(error, PostgresError) else "08000"
    match state[:2], state:
        # 26000: a transaction pooler switched servers between parsing and running a statement.
        # 23503: a row was deleted between being found and being referenced.
        # 0A000: a migration has changed what a prepared statement returns.
        case _, "40001" | "40P01" | "26000" | "23503" | "0A000":
            return TryAgain(state)
        case ("08" | "53" | "57" | "58", _) | (_, "25006" | "55P03" | "28000" | "28P01" | "3D000"):
            return Problem("unavailable")
        case "22", _:
            return Problem("validation_error")
        case _, "23505" if code := _taken(error):
            return Problem(code)
        case _:
            return DatabaseError(f"{type(error).__name__}, SQLSTATE {state}")


def _taken(error: Exception) -> str | None:
    # Citus names the constraint only in the message, as PostgreSQL does, and the shard with it.
    said = str(getattr(error, "message", ""))
    return next((code for name, code in _TAKEN.items() if name in said), None)


async def answer(request: Request, error: HTTPException | RequestValidationError) -> Response:
    """Answer what is raised on purpose, by us or by FastAPI."""
    if isinstance(error, RequestValidationError):
        error = _invalid(error)
    elif not isinstance(error, Problem):
        error = _coded(request, error)
    return _response(error, call_of(request).request_id)


async def respond(problem: Problem, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with a problem in a layer where nothing can be raised any more."""
    await _response(problem, call_of(scope).request_id)(scope, receive, send)


def _coded(request: Request, error: HTTPException) -> HTTPException:
    """Give what FastAPI itself raises our codes and words."""
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return Problem("method_not_allowed", headers={"Allow": _allowed(request)})
    if error.status_code == HTTPStatus.NOT_FOUND:
        words = error.detail if error.detail != title(error.status_code) else None
        return Problem("not_found", words, headers=error.headers)
    return error


def _allowed(request: Request) -> str:
    """Return all methods of a path: the router's own answer lists only the first match's."""
    methods: set[str] = set()
    for context in iter_route_contexts(request.app.routes):
        if context.matches(request.scope)[0] is not Match.NONE:
            methods.update(context.methods or ())
            if getattr(context.original_route, "answers_head", False):
                methods.add("HEAD")
    # Without the method that was refused: another place of this path may name it. And a mount that
    # has matched hides its path; static files take these.
    return ", ".join(sorted(methods - {request.method} or {"GET", "HEAD"}))


def _response(error: HTTPException, request_id: str) -> Response:
    """Render an error; nothing else does."""
    status, headers = error.status_code, error.headers
    if not is_body_allowed_for_status_code(status):
        return Response(status_code=status, headers=headers)
    code = error.code if isinstance(error, Problem) else "http_error"
    # FastAPI allows any JSON as detail.
    detail = error.detail if isinstance(error.detail, str) else to_json(error.detail).decode()
    document = body(status, code, detail, request_id)
    if isinstance(error, Problem) and error.errors:
        document["errors"] = error.errors
    response = Response(to_json(document), status, headers, "application/problem+json")
    if status == HTTPStatus.UNAUTHORIZED:
        bad = code in {"invalid_token", "token_expired", "token_revoked"}
        challenge = 'Bearer error="invalid_token"' if bad else "Bearer"
        response.headers.setdefault("WWW-Authenticate", challenge)
    elif status == HTTPStatus.SERVICE_UNAVAILABLE:
        response.headers.setdefault("Retry-After", str(RETRY_AFTER_SECONDS))
    return response


def body(status: int, code: str, detail: str, request_id: str) -> dict[str, Any]:
    """Return the members that every problem has (RFC 9457)."""
    return {
        "type": "about:blank",
        "title": title(status),
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": request_id,
    }


def title(status: int) -> str:
    """Return a status's name in RFC 9110; older Python versions have older names."""
    renamed = {413: "Content Too Large", 422: "Unprocessable Content"}
    return renamed.get(status) or responses.get(status, "Error")


class Errors:
    """Plain ASGI middleware that turns whatever is raised inside into a response.

    It is inside the CORS middleware, unlike FastAPI's own handling of `Exception`, because
    otherwise a browser could not read the response. `routing.FastPath`, inside of it, runs routes
    without FastAPI's handling of other exceptions; their handlers are asked here.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and answer it if that fails."""
        try:
            await self.app(scope, receive, send)
        except (Exception, asyncio.CancelledError) as error:
            is_gone = isinstance(error, ClientDisconnect)  # or it is too late for another response
            if scope["type"] != "http" or call_of(scope).status or is_gone:
                raise
            if isinstance(error, asyncio.CancelledError):  # the service is shutting down
                error = Problem("unavailable")
            try:
                await _handle(error, scope, receive, send)
            except Exception as failure:  # noqa: BLE001  (of the handler)
                _log(scope, failure)
                await respond(Problem("internal_error"), scope, receive, send)


async def _handle(error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
    """Let the app's own handler of such an error answer; Starlette finds and runs it."""

    async def fail(*_: object) -> None:
        raise error

    handlers = scope["app"].exception_handlers
    if not handlers.keys() & {*type(error).__mro__} - {Exception}:
        _log(scope, error)
    unexpected = {Exception: handlers.get(500, _answer_unexpected)}
    await ExceptionMiddleware(fail, unexpected | handlers)(scope, receive, send)


async def _answer_unexpected(request: Request, _: Exception) -> Response:
    return _response(Problem("internal_error"), call_of(request).request_id)


def _log(scope: Scope, error: Exception) -> None:
    logger.error("unexpected error in request %s", call_of(scope).request_id, exc_info=error)


def _location(item: Mapping[str, Any]) -> tuple[str | int, ...]:
    """Return where an error is: one of `spellings` is raised outside of the member it is about."""
    about = (item["ctx"]["name"],) if item["type"] == "spelling" else ()
    return (*item["loc"], *about)


def _invalid(error: RequestValidationError) -> Problem:
    items = error.errors()[:MAX_LISTED]
    errors = [_invalid_member(item) for item in items]
    path = "/".join(str(part) for part in _location(items[0])[1:])
    place = errors[0].get("parameter", path or "body") or "a parameter without a name"
    return Problem("validation_error", f"{place}: {errors[0]['detail']}", errors=errors)


def plainly(item: Mapping[str, Any]) -> str:
    """Return what pydantic found wrong in plain words, never the value: it may be a password."""
    words = _PLAIN_WORDS.get(item["type"])
    detail: str = words.format_map(item.get("ctx", {})) if words else item["msg"]
    return detail.removeprefix("Value error, ")


def _invalid_member(item: Mapping[str, Any]) -> dict[str, str]:
    """Return what is wrong, and where."""
    detail = plainly(item)
    place, *path = _location(item)
    if place == "body":
        return {"detail": detail, "pointer": json_pointer(path)}
    return {"detail": detail, "parameter": str(path[0] if path else place)}


def json_pointer(path: Iterable[str | int]) -> str:
    """Return the JSON pointer of a path, as a URI fragment (RFC 6901, section 6)."""
    escaped = "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in path)
    return "#" + quote(escaped, safe="/~!$&'()*+,;=:@")
