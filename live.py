"""Live changes: PostgreSQL's notifications wake the event streams that wait for a new revision.

They only wake them. The data comes from the same query as `/api/tasks/changes`, so a lost
notification delays a change but loses none.
"""

import asyncio
import contextlib
import math
import signal
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from operator import itemgetter
from typing import Any, NamedTuple

import orjson
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from starlette.types import Message, Send

import db
import queries
from errors import Problem
from revocations import Revocations
from schemas import TaskRead
from security import Claims

TICK_SECONDS = 1.0
"""How often a stream checks that its token is still valid."""

SILENCE_SECONDS = 15.0
"""After this long without an event, send a comment to keep the connection alive, and look again."""

WATCH_SECONDS = queries.WATCHED_SECONDS / 5
"""How often a stream extends the time in which its user's writes cause notifications."""

DEAF_SECONDS = 60.0
"""How long to poll, where notifications do not arrive, before trying again."""

SLOW_SECONDS = 20.0
"""How long a client may stop reading before it is disconnected."""


class Live:
    """A worker's event streams, and the one connection that listens while there are any."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._following: asyncio.Task[None] | None = None
        self.is_closing = False

    @contextlib.contextmanager
    def waiter(self, user_id: str) -> Iterator[asyncio.Event]:
        """Yield an event that is set when there may be something new for a user."""
        event = asyncio.Event()
        self._waiting[user_id].add(event)
        if self._following is None:
            self._following = asyncio.create_task(self._follow())
        try:
            yield event
        finally:
            self._waiting[user_id].discard(event)
            if not self._waiting[user_id]:
                del self._waiting[user_id]
            if not self._waiting and self._following:
                self._following.cancel()
                self._following = None

    @contextlib.asynccontextmanager
    async def kept_up(self) -> AsyncIterator[None]:
        """End every stream when the server is told to stop, or the block ends."""
        with _told_to_stop(self.close):
            try:
                yield
            finally:
                self.close()

    def close(self) -> None:
        """End every stream: the server waits for them before it stops."""
        self.is_closing = True
        self._wake_all()

    def _wake_all(self) -> None:
        for events in self._waiting.values():
            for event in events:
                event.set()

    def _notified(self, user_id: str) -> None:
        for event in self._waiting.get(user_id, ()):
            event.set()

    async def _follow(self) -> None:
        """Wake the streams of users who wrote, or all of them every second if nobody can listen."""
        deaf_until = math.inf if db.is_pooled() else 0.0  # for ever behind a transaction pooler
        while True:
            if time.monotonic() >= deaf_until:
                hears = await db.listen(self._url, queries.CHANNEL, self._notified, self._wake_all)
                deaf_until = 0.0 if hears else time.monotonic() + DEAF_SECONDS
            self._wake_all()
            await asyncio.sleep(TICK_SECONDS)


@contextlib.contextmanager
def _told_to_stop(function: Callable[[], None]) -> Iterator[None]:
    """Call a function on SIGTERM and SIGINT, before the server's own handlers.

    The server has no event for it: it ends the lifespan only after the last request, and a stream
    does not end by itself.
    """
    loop = asyncio.get_running_loop()
    is_main = threading.current_thread() is threading.main_thread()  # others handle no signals
    found = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    servers: dict[int, Any] = {n: h for n, h in found.items() if is_main and callable(h)}

    def handle(number: int, frame: Any) -> None:  # noqa: ANN401  (as in signal)
        loop.call_soon_threadsafe(function)
        servers[number](number, frame)

    for number in servers:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in servers.items():
            signal.signal(number, handler)


class Page(NamedTuple):
    """A page of changes, by revision, and the revision that it ends with."""

    rev: int
    more: bool
    changed: list[TaskRead]
    deleted: list[tuple[int, int]]
    """Revision and id."""


async def read_changes(owner: str, since: int) -> Page:
    """Return what the owner's writes after a revision have changed. Raise `Problem` 503."""
    rows = await queries.LIST_CHANGES.all(owner=owner, since=since)
    deleted = [(row["deleted_rev"], row["deleted_id"]) for row in rows if row["deleted_id"]]
    rev, upto = rows[0]["owner_rev"], rows[0]["upto"]
    changed = [queries.task_of(row) for row in rows if row["id"] is not None]
    return Page(rev if upto is None else upto, upto not in {None, rev}, changed, deleted)


def _written(page: Page) -> Iterator[bytes]:
    """Yield a page as events. Only a revision's last event has its id, so that none is skipped."""
    events: list[tuple[int, str, object]] = [(task["rev"], "task", task) for task in page.changed]
    events += [(rev, "deleted", {"id": task_id}) for rev, task_id in page.deleted]
    events.sort(key=itemgetter(0))
    for number, (rev, name, data) in enumerate(events, 1):
        is_last = number == len(events) or events[number][0] > rev
        yield _event(name, data, rev if is_last else None)


def _event(name: str, data: object, rev: int | None) -> bytes:
    body = orjson.dumps(data, option=orjson.OPT_UTC_Z).decode()
    return format_sse_event(data_str=body, event=name, id=None if rev is None else str(rev))


class EventStream(EventSourceResponse):
    """FastAPI's event stream, but it disconnects clients that stop reading."""

    async def stream_response(self, send: Send) -> None:
        """Send the events, each part within a time limit."""

        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(SLOW_SECONDS):
                await send(message)

        with contextlib.suppress(TimeoutError):
            await super().stream_response(send_in_time)


async def stream(
    live: Live, revocations: Revocations, claims: Claims, rev: int
) -> AsyncIterator[bytes]:
    """Yield every change after a revision, until the token is no longer valid.

    The caller has already run `queries.WATCH` for the user; the stream keeps renewing it.
    """

    async def is_good() -> bool:
        with contextlib.suppress(Problem):
            await revocations.check(claims)
            return not live.is_closing and not claims.have_expired()
        return False

    silent_since = watched_at = time.monotonic()
    with live.waiter(claims.user_id) as waiter:
        yield _event("ready", {"rev": rev}, rev)
        waiter.set()
        while await is_good():
            if waiter.is_set():
                waiter.clear()
                try:
                    if time.monotonic() - watched_at >= WATCH_SECONDS:
                        await queries.WATCH.one(owner=claims.user_id)
                        watched_at = time.monotonic()
                    page = await read_changes(claims.user_id, rev)
                except Problem:  # the database is unavailable: try again at the next tick
                    waiter.set()
                    await asyncio.sleep(TICK_SECONDS)
                else:
                    for event in _written(page):
                        yield event
                        silent_since = time.monotonic()
                    rev = page.rev
                    if page.more:
                        waiter.set()
            if time.monotonic() - silent_since >= SILENCE_SECONDS:
                yield KEEPALIVE_COMMENT
                silent_since = time.monotonic()
                waiter.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_SECONDS):
                    await waiter.wait()
