"""Other names by which frontends that exist call our paths, parameters and members.

These tables are the only place that knows them. Each is applied before anything else looks at what
was sent, and docs/api.md lists it. What is in no table is refused like any other unknown name.
"""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

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
    rf"/api(?:/v1)?(?:(?:/users)?/(?!(?:{'|'.join(RESERVED)})/)(?P<user_id>[^/]+))?"
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
"""Parameters of the list. `order`, `offset` and `page` say what the contract says otherwise."""
PARAMETER_VALUES = {
    "status": STATUSES,
    "status_filter": STATUSES,
    "completed": {"true": "completed", "false": "pending"},
}
SORTS = {
    "created_at": "created",
    "createdAt": "created",
    "updated_at": "updated",
    "updatedAt": "updated",
    "dueDate": "due_date",
    "due": "due_date",
}
LIST_NAMES = frozenset({*PARAMETERS, "order", "offset", "page"})
STARTS = {b"cursor", b"offset", b"skip", b"page"}
"""Where a page of the list begins."""
MAX_DIGITS = 16  # so that what is left out is still a 64-bit number

MEMBERS = {
    "dueDate": "due_date",
    "is_completed": "completed",
    "isCompleted": "completed",
    "status": "completed",
}
"""Members of a task; a status that is not known is no spelling."""
COMPLETED = {"pending": False, "completed": True}
COMPLETED |= {name: COMPLETED[meant] for name, meant in STATUSES.items()}


def path(sent: str) -> tuple[str, str | None]:
    """Return our own path for one that is percent-encoded, and the user's id that was in it."""
    plain = _SLASHES.sub("/", sent).rstrip("/") or "/"
    if found := _OWNED.fullmatch(plain):
        rest, _, action = (found["rest"] or "").rpartition("/")
        end = f"{rest}/{ACTIONS.get(action, action)}" if found["rest"] else ""
        user_id = found["user_id"] and unquote(found["user_id"])
        return f"/api/{COLLECTIONS[found['collection']]}{unquote(end)}", user_id
    if found := _AUTH.fullmatch(plain):
        return f"/api/v1/auth/{ACCOUNT_CALLS.get(found['call'], found['call'])}", None
    return WHOLE_PATHS.get(plain, unquote(plain)), None


def list_query(given: Mapping[str, Any]) -> tuple[dict[str, Any], int, int]:
    """Return the query of a list in our own words, and how many pages and tasks to pass over.

    Raise `ValueError` for two spellings of one thing, and for an order or a number that is none.
    """
    query: dict[str, Any] = {}
    for name, value in given.items():
        own = PARAMETERS.get(name, name)
        if own in query or (isinstance(value, list) and own != "tag"):
            raise ValueError(f"{own}: is given more than once")
        known = PARAMETER_VALUES.get(name)
        query[own] = known.get(value.lower(), value) if known else value
    if sort := query.get("sort"):
        key = sort.removeprefix("-")
        query["sort"] = sort.replace(key, SORTS.get(key, key))
    if order := query.pop("order", "").lower():
        if order not in {"asc", "desc"}:
            raise ValueError("order: must be asc or desc")
        minus = "-" if order == "desc" else ""
        query["sort"] = minus + query.get("sort", "created").removeprefix("-")
    if len({"cursor", "offset", "page"} & query.keys()) > 1:
        raise ValueError("cursor, offset, page: send one of them")
    page, offset = query.pop("page", "1"), query.pop("offset", "0")
    return query, _number("page", page, 1) - 1, _number("offset", offset, 0)


def _number(name: str, digits: str, least: int) -> int:
    is_number = digits.isascii() and digits.isdigit() and len(digits) <= MAX_DIGITS
    if is_number and int(digits) >= least:
        return int(digits)
    raise ValueError(f"{name}: must be a number, {least} or more")


def task_members(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the members of a task in our own words. Raise `ValueError` for two of one thing."""
    members: dict[str, Any] = {}
    for name, value in given.items():
        own, meant = MEMBERS.get(name, name), value
        if name == "status":
            meant = COMPLETED.get(value.lower()) if isinstance(value, str) else None
            own, meant = (own, meant) if meant is not None else (name, value)
        if own in members:
            raise ValueError(f"{own}: is given more than once")
        members[own] = meant
    return members
