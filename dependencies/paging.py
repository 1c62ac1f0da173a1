"""Keyset pagination: each page begins where the last one ended, despite writes in between."""

from collections.abc import Callable
from functools import lru_cache
from operator import itemgetter
from typing import Annotated, Any
from urllib.parse import quote

import orjson
from fastapi import Depends, Request, Response

from errors import bad_parameter
from folding import search_key
from schemas import TaskFilter, TaskRead
from security import Cursors, InvalidCursor

_AS_SENT = "/?%:@!$&'()*+,;=~"
_SORT_KEYS: dict[str, Callable[[TaskRead], object]] = {
    "created": itemgetter("created_at"),
    "updated": itemgetter("updated_at"),
    "title": lambda task: search_key(task["title"]),
}


class Paging:
    """Reads a request's cursor, and adds the next page's `Link` (RFC 8288) to the response."""

    def __init__(self, request: Request, response: Response) -> None:
        self._scope, self._response = request.scope, response
        self._cursors: Cursors = request.app.state.cursors

    def start(self, user_id: str, query: TaskFilter) -> dict[str, Any]:
        """Return the place after which the page begins. Raise `Problem` 422."""
        if query.cursor is None:
            return {}
        try:
            place = self._cursors.place(query.cursor, _context(user_id, query))
        except InvalidCursor as error:
            detail = "belongs to another query; take it from Link and change nothing but the limit"
            raise bad_parameter("cursor", detail) from error
        after, after_id = orjson.loads(place)
        return {"after": after, "after_id": after_id}

    def end(self, user_id: str, query: TaskFilter, tasks: list[Any]) -> list[TaskRead]:
        """Drop the extra task that only shows that there are more, and link to the next page."""
        if len(tasks) > query.limit:
            tasks.pop()
            last = tasks[-1]
            name = query.sort.removeprefix("-")
            key = _SORT_KEYS.get(name, itemgetter(name))(last)
            place = orjson.dumps([key, last["id"]])
            cursor = self._cursors.cursor(place, _context(user_id, query))
            self._response.headers["Link"] = f'<{self._path(cursor)}>; rel="next"'
        return tasks

    def _path(self, cursor: str) -> str:
        """Return path and query as the client wrote them: the path may include the user's id."""
        parts = self._scope["query_string"].split(b"&")
        kept = [part for part in parts if part and not part.startswith(b"cursor=")]
        query = b"&".join([*kept, b"cursor=" + cursor.encode()])
        return quote(b"%b?%b" % (self._scope["raw_path"], query), _AS_SENT)


def _context(user_id: str, query: TaskFilter) -> bytes:
    return orjson.dumps([user_id, orjson.Fragment(_meaning(query))])


@lru_cache(maxsize=64)
def _meaning(query: TaskFilter) -> bytes:
    """Serialize what all pages of a list have in common."""
    return orjson.dumps(vars(query) | {"limit": None, "cursor": None})


async def paging(request: Request, response: Response) -> Paging:
    """Return the paging of this request."""
    return Paging(request, response)


TaskPaging = Annotated[Paging, Depends(paging)]
