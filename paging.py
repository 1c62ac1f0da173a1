"""Keyset pagination: each page begins where the last one ended, despite writes in between."""

from typing import Any
from urllib.parse import quote, unquote

import orjson
from starlette.requests import Request

from dates import first_moment
from errors import bad_parameter
from folding import search_key
from schemas import TaskFilter, TaskRead
from security import Cursors
from spellings import PARAMETERS, STARTS

_AS_SENT = "/?%:@!$&'()*+,;=~"
_MEMBERS = {"created": "created_at", "updated": "updated_at"}


def start(request: Request, user_id: str, query: TaskFilter) -> dict[str, Any]:
    """Return the place after which the page begins, from its cursor. Raise `Problem` 422."""
    if query.cursor is None:
        return {}
    cursors: Cursors = request.app.state.cursors
    try:
        place = cursors.place(query.cursor, _context(user_id, query))
    except ValueError as error:
        detail = "belongs to another query; take it from Link and change nothing but the limit"
        raise bad_parameter("cursor", detail) from error
    after, after_id = orjson.loads(place)
    if query.sort.endswith("title"):  # a key may be many times as long as its title
        after = search_key(after)
    return {"after": after, "after_id": after_id}


def next_link(request: Request, user_id: str, query: TaskFilter, last: TaskRead) -> str:
    """Return the `Link` (RFC 8288) to the page after this task."""
    cursors: Cursors = request.app.state.cursors
    name = query.sort.removeprefix("-")
    row: dict[str, Any] = {**last, "due_date": last["due_date"] and first_moment(last["due_date"])}
    place = orjson.dumps([row[_MEMBERS.get(name, name)], last["id"]])
    cursor = b"cursor=" + cursors.cursor(place, _context(user_id, query)).encode()
    # Path and query as the client wrote them: the path may include the user's id. But for two
    # slashes in front, behind which a client would read a host.
    parts = request.scope["query_string"].split(b"&")
    kept = [part for part in parts if part and not _is_start(part.partition(b"=")[0])]
    path = b"/%b?%b" % (request.scope["raw_path"].lstrip(b"/"), b"&".join([*kept, cursor]))
    return f'<{quote(path, _AS_SENT)}>; rel="next"'


def _is_start(name: bytes) -> bool:
    decoded = unquote(name.decode("latin-1"))
    return PARAMETERS.get(decoded, decoded) in STARTS


def _context(user_id: str, query: TaskFilter) -> bytes:
    """Serialize what all pages of a list have in common."""
    return orjson.dumps([user_id, vars(query) | {"limit": None, "cursor": None}])
