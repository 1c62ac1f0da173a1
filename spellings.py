"""Other names by which frontends that exist call our paths, parameters and members.

Each table is applied before anything else looks at what was sent, and docs/api.md lists it. What is
in none is refused like any other unknown name. (The forms of OAuth have theirs in `schemas.py`.)
"""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from pydantic_core import PydanticCustomError

COLLECTIONS = {"tasks": "tasks", "todos": "tasks", "tags": "tags"}
ACTIONS = {"toggle": "complete"}
ACCOUNT_CALLS = {
    "signup": "register",
    "sign-up": "register",
    "signin": "login",
    "sign-in": "login",
}
WHOLE_PATHS = {"/health": "/health/ready"}
RESERVED = ("api", "auth", "tags", "tasks", "todos", "users", "v1")
"""What is never a user's id in a path."""

_SLASHES = re.compile("/{2,}")
_OWNED = re.compile(
    r"/api(?:/v1)?(?:(?:/users)?/(?P<user_id>[^/]+))?"
    rf"/(?P<collection>{'|'.join(COLLECTIONS)})(?P<rest>/.*)?"
)
_AUTH = re.compile(r"/api(?:/v1)?/auth/(?P<call>.+)")

STATUSES = {
    "incomplete": "pending",
    "active": "pending",
    "open": "pending",
    "todo": "pending",
    "complete": "completed",
    "done": "completed",
}
PARAMETERS = {
    "sort_by": "sort",
    "sortBy": "sort",
    "sort_order": "order",
    "sortOrder": "order",
    "status_filter": "status",
    "completed": "status",
    "q": "search",
    "query": "search",
    "tags": "tag",
    "tag[]": "tag",
    "tags[]": "tag",
    "skip": "offset",
    "page_size": "limit",
    "per_page": "limit",
    "pageSize": "limit",
}
"""Parameters of the list.

`order`, `offset` and `page` have no other name: `list_query` makes `sort` of them, and numbers.
"""
TRUTHS = {"true": "completed", "false": "pending"}
SORTS = {
    "created_at": "created",
    "createdAt": "created",
    "updated_at": "updated",
    "updatedAt": "updated",
    "dueDate": "due_date",
    "due": "due_date",
}
STARTS = ("cursor", "offset", "page")
"""Where a page of the list begins: one of them at most."""
LIST_NAMES = frozenset({*PARAMETERS, *STARTS, "order"})
MAX_DIGITS = 16  # so that what is left out is still a 64-bit number

MEMBERS = {
    "dueDate": "due_date",
    "is_completed": "completed",
    "isCompleted": "completed",
    "status": "completed",
}
"""Members of a task."""
COMPLETED = {"pending": False, "completed": True}
COMPLETED |= {name: COMPLETED[meant] for name, meant in STATUSES.items()}


def path(sent: str) -> tuple[str, str | None]:
    """Return our own path for one that is percent-encoded, and the user's id that was in it."""
    plain = _SLASHES.sub("/", sent).rstrip("/") or "/"
    if found := _OWNED.fullmatch(plain):
        rest, _, action = (found["rest"] or "").rpartition("/")
        end = f"{rest}/{ACTIONS.get(action, action)}" if found["rest"] else ""
        user_id = found["user_id"] and unquote(found["user_id"])
        if user_id not in RESERVED:
            return f"/api/{COLLECTIONS[found['collection']]}{unquote(end)}", user_id
    if found := _AUTH.fullmatch(plain):
        return f"/api/v1/auth/{ACCOUNT_CALLS.get(found['call'], found['call'])}", None
    return WHOLE_PATHS.get(plain, unquote(plain)), None


def list_query(given: Mapping[str, Any]) -> tuple[dict[str, Any], int, int]:
    """Return the query of a list in our own words, and how many pages and tasks to pass over.

    Raise `PydanticCustomError` for two spellings of one thing, and for a value that is none.
    """
    query: dict[str, Any] = {}
    for name, value in _once(given, PARAMETERS).items():
        own = PARAMETERS.get(name, name)
        if isinstance(value, list) and own != "tag":
            raise _wrong(name, "is given more than once")
        if name == "completed" and value.lower() not in TRUTHS:
            raise _wrong(name, "must be true or false")
        query[own] = TRUTHS[value.lower()] if name == "completed" else value
    if status := query.get("status", "").lower():
        query["status"] = STATUSES.get(status, status)
    if sort := query.get("sort"):
        key = sort.removeprefix("-")
        query["sort"] = sort.replace(key, SORTS.get(key, key))
    if order := query.pop("order", "").lower():
        if order not in {"asc", "desc"}:
            raise _wrong("order", "must be asc or desc")
        minus = "-" if order == "desc" else ""
        query["sort"] = minus + query.get("sort", "created").removeprefix("-")
    starts = [name for name in STARTS if name in query]
    if len(starts) > 1:
        raise _wrong(starts[1], f"cannot be sent with {starts[0]}")
    page, offset = query.pop("page", "1"), query.pop("offset", "0")
    return query, _number("page", page, 1) - 1, _number("offset", offset, 0)


def task_members(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the members of a task in our own words.

    Raise `PydanticCustomError` for two spellings of one thing.
    """
    known, table = dict(given), MEMBERS
    if isinstance(status := given.get("status"), str) and status.lower() in COMPLETED:
        known["status"] = COMPLETED[status.lower()]
    else:
        table = MEMBERS | {"status": "status"}  # which is not known
    return {table.get(name, name): value for name, value in _once(known, table).items()}


def _once(given: Mapping[str, Any], table: Mapping[str, str]) -> Mapping[str, Any]:
    """Return what was given, unless two names mean the same."""
    first: dict[str, str] = {}
    for name in given:
        other = first.setdefault(table.get(name, name), name)
        if other != name:
            raise _wrong(name, f"means the same as {other}; send one of them")
    return given


def _number(name: str, digits: str, least: int) -> int:
    is_number = digits.isascii() and digits.isdigit() and len(digits) <= MAX_DIGITS
    if is_number and int(digits) >= least:
        return int(digits)
    raise _wrong(name, f"must be a number from {least} to {10**MAX_DIGITS - 1}")


def _wrong(name: str, detail: str) -> PydanticCustomError:
    """Return the error of a parameter or member by the name that was sent."""
    return PydanticCustomError("spelling", "{detail}", {"name": name, "detail": detail})
