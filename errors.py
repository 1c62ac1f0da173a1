"""All errors: each is listed here once, and sent as application/problem+json (RFC 9457)."""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from asyncpg import PostgresError
from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

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
    "origin_not_allowed": (403, "This origin, method or header is not allowed; see CORS_ORIGINS."),
    "not_found": (404, "There is nothing at this path. See /docs for what there is."),
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

_TAKEN: dict[str | None, str] = {
    "emails_pkey": "email_taken",
    "tags_name": "tag_exists",
}
"""Unique constraints of the database, and the code of a violation."""

_PLAIN_WORDS = {
    "missing": "is required",
    "repeated": "is given more than once",
    "extra_forbidden": "is not known here; /docs lists what is",
    "string_type": "must be text",
    "string_too_short": "needs {min_length} or more characters",
    "string_too_long": "takes at most {max_length} characters",
    "string_pattern_mismatch": "must look like #22aa66",  # only colors have a pattern
    "too_long": "takes at most {max_length} values",
    "list_type": "must be a list",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "int_parsing": "must be a number",
    "int_parsing_size": "has too many digits",
    "literal_error": "must be {expected}",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "dict_type": "must be an object",
    "datetime_parsing": "is not a real date and time",
    "datetime_from_date_parsing": "is not a real date and time",
    "datetime_object_invalid": "is not a real date and time",
    "greater_than_equal": "must be {ge} or more",
    "less_than_equal": "must be {le} or less",
    "null": "must not be null; send an object, or no body at all",
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
        case _, "23505" if code := _TAKEN.get(getattr(error, "constraint_name", None)):
            return Problem(code)
        case _:
            return DatabaseError(f"{type(error).__name__}, SQLSTATE {state}")


async def respond(problem: Problem, scope: Scope, receive: Receive, send: Send) -> None:
    """Render a problem; nothing else does."""
    body = _body(problem.code, problem.detail, scope["request_id"])
    if problem.errors:
        body["errors"] = problem.errors
    headers = dict(problem.headers or {})
    if problem.status_code == HTTPStatus.UNAUTHORIZED:
        bad = problem.code in {"invalid_token", "token_expired", "token_revoked"}
        headers["WWW-Authenticate"] = 'Bearer error="invalid_token"' if bad else "Bearer"
    elif problem.status_code == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    response = Response(to_json(body), problem.status_code, headers, "application/problem+json")
    await response(scope, receive, send)


def _body(code: str, detail: str, request_id: str) -> dict[str, Any]:
    status, _ = CODES[code]
    return {
        "type": "about:blank",
        "title": _title(status),
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": request_id,
    }


def _title(status: int) -> str:
    """Return a status's name in RFC 9110; older Python versions have older names."""
    renamed = {413: "Content Too Large", 422: "Unprocessable Content"}
    return renamed.get(status) or HTTPStatus(status).phrase


class Errors:
    """Plain ASGI middleware that turns whatever is raised inside into a problem response.

    It is inside the CORS middleware, unlike the framework's own handler of `Exception`, because
    otherwise a browser could not read the response.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and answer with a problem if it fails."""
        try:
            await self.app(scope, receive, send)
        except (Exception, asyncio.CancelledError) as error:
            if scope["type"] != "http" or "status" in scope:  # too late for another response
                raise
            await respond(_problem(scope, error), scope, receive, send)


def _problem(scope: Scope, error: BaseException) -> Problem:
    match error:
        case Problem():
            return error
        case RequestValidationError():
            return _invalid(error)
        case HTTPException(status_code=405):
            return Problem("method_not_allowed", headers={"Allow": _allowed(scope)})
        case HTTPException(status_code=404):
            return Problem("not_found")
        case asyncio.CancelledError():  # the service is shutting down
            return Problem("unavailable")
        case _:
            logger.error("unexpected error in request %s", scope["request_id"], exc_info=error)
            return Problem("internal_error")


def _allowed(scope: Scope) -> str:
    """Return all methods of a path: the router's own answer lists only the first match's."""
    methods: set[str] = set()
    for route in scope["app"].routes:
        if route.matches(scope)[0] is not Match.NONE:
            methods |= getattr(route, "methods", set())
    # Only static files are mounted, and a mount that has matched hides its path.
    return ", ".join(sorted(methods or {"GET", "HEAD"}))


def _invalid(error: RequestValidationError) -> Problem:
    items = error.errors()[:MAX_LISTED]
    errors = [_invalid_member(item) for item in items]
    path = "/".join(str(part) for part in items[0]["loc"][1:])
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
    place, *path = item["loc"]
    if place == "body":
        return {"detail": detail, "pointer": json_pointer(path)}
    return {"detail": detail, "parameter": str(path[0])}


def json_pointer(path: Iterable[str | int]) -> str:
    """Return the JSON pointer of a path, as a URI fragment (RFC 6901, section 6)."""
    escaped = "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in path)
    return "#" + quote(escaped, safe="/~!$&'()*+,;=:@")


def header(name: str, description: str, *, required: bool = True, **schema: str) -> dict[str, Any]:
    """Describe a response header, for the OpenAPI document."""
    return {name: {"description": description, "required": required, "schema": schema}}


_RETRY_AFTER = header("Retry-After", "Seconds to wait before trying again.", type="integer")
_HEADERS = {
    401: header("WWW-Authenticate", "The challenge (RFC 6750).", type="string"),
    429: _RETRY_AFTER
    | header(
        "RateLimit", 'Requests and seconds left: `"user";r=0;t=42`.', required=False, type="string"
    ),
    503: _RETRY_AFTER,
}
_EXAMPLES = {
    "validation_error": {
        "detail": "title: needs 1 or more characters",
        "errors": [{"detail": "needs 1 or more characters", "pointer": "#/title"}],
    }
}


def answers(*codes: str) -> dict[int | str, dict[str, Any]]:
    """Describe the problems that a route may return, for the OpenAPI document."""
    responses: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        status, sentence = CODES[code]
        example = _body(code, sentence, "5f0c3a8e9d7b4c61a2e4f6b8c0d2e4f6")
        if status not in responses:
            schema = {"$ref": "#/components/schemas/Problem"}
            content = {"application/problem+json": {"schema": schema, "examples": {}}}
            responses[status] = {"description": _title(status), "content": content}
            if status in _HEADERS:
                responses[status]["headers"] = _HEADERS[status]
        responses[status]["content"]["application/problem+json"]["examples"][code] = {
            "summary": sentence,
            "value": example | _EXAMPLES.get(code, {}),
        }
    return responses


BODY = answers("request_timeout", "body_too_large", "unsupported_media_type")
"""Problems of routes that take a body."""

OWNED = answers(
    *("not_authenticated", "invalid_token", "token_expired", "token_revoked"),
    *("rate_limited", "validation_error", "internal_error", "unavailable"),
)
"""Problems of routes about a user's own data."""
