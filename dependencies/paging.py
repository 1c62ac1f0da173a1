"""Pages of a list. The next begins where one ended, whatever is written in between."""

from functools import lru_cache
from typing import Annotated, Any
from urllib.parse import quote

import orjson
from fastapi import Depends, Request, Response

from errors import bad_parameter
from schemas import TaskFilter, TaskRead
from security import Cursors, InvalidCursor

_AS_SENT = "/?%:@!$&'()*+,;=~"
_MEMBERS = {"created": "created_at", "updated": "updated_at"}


class Paging:
    """Reads the cursor of a request, and gives its answer the `Link` (RFC 8288) to the next."""

    def __init__(self, request: Request, response: Response) -> None:
        self._scope, self._response = request.scope, response
        self._cursors: Cursors = request.app.state.cursors

    def start(self, user_id: str, query: TaskFilter) -> dict[str, Any]:
        """Say after which task the page begins. Raises `Problem` 422."""
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
        """Cut off the task that only says that there are more, and link to them."""
        if len(tasks) > query.limit:
            tasks.pop()
            last = tasks[-1]
            name = query.sort.removeprefix("-")
            place = orjson.dumps([last[_MEMBERS.get(name, name)], last["id"]])
            cursor = self._cursors.cursor(place, _context(user_id, query))
            self._response.headers["Link"] = f'<{self._path(cursor)}>; rel="next"'
        return tasks

    def _path(self, cursor: str) -> str:
        """Write the path and the query as the client did: it may be below its user's id."""
        parts = self._scope["query_string"].split(b"&")
        kept = [part for part in parts if part and not part.startswith(b"cursor=")]
        query = b"&".join([*kept, b"cursor=" + cursor.encode()])
        return quote(b"%b?%b" % (self._scope["raw_path"], query), _AS_SENT)


def _context(user_id: str, query: TaskFilter) -> bytes:
    return orjson.dumps([user_id, orjson.Fragment(_meaning(query))])


@lru_cache(maxsize=64)
def _meaning(query: TaskFilter) -> bytes:
    """Say what all pages of a list have in common."""
    return orjson.dumps(vars(query) | {"limit": None, "cursor": None})


async def paging(request: Request, response: Response) -> Paging:
    """Look after the pages of one request."""
    return Paging(request, response)


TaskPaging = Annotated[Paging, Depends(paging)]
