"""Live changes: PostgreSQL's notifications wake the event streams that wait for a new revision.

They only wake them. The data comes from the same query as `/api/tasks/changes`, so a lost
notification delays a change but loses none.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from typing import NamedTuple

import orjson
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse
from starlette.types import Message, Receive, Scope, Send

import db
import queries
from errors import Problem
from revocations import Revocations
from schemas import TaskRead
from security import Claims
from signals import told_to_stop

MAX_STREAMS = 20
"""How many streams a user may have on one worker."""

TICK_SECONDS = 1.0
"""How often it is checked that the streams' tokens are still valid."""

SILENCE_SECONDS = 15.0
"""After this long without an event, send a comment to keep the connection alive, and look again."""

WATCH_SECONDS = queries.WATCHED_SECONDS / 5
"""How often a feed extends the time in which its user's writes cause notifications."""

DEAF_SECONDS = 60.0
"""How long to poll, where notifications do not arrive, before trying again."""

SLOW_SECONDS = 20.0
"""How long a client may stop reading before it is disconnected."""

CHUNK_BYTES = 64 * 1024
"""How much is sent at once: what a slow client leaves unread, the worker holds."""

KEPT_BYTES = 2**20
"""How much of what was read is kept for those of a user's streams that are behind."""

logger = logging.getLogger("todo.live")


class Live:
    """A worker's event streams, and the one connection that listens while there are any."""

    def __init__(self, url: str, revocations: Revocations) -> None:
        self._url = url
        self._revocations = revocations
        self._feeds: dict[str, Feed] = {}
        self._running: list[asyncio.Task[None]] = []
        self._is_closing = False

    def check_room(self, user_id: str) -> None:
        """Raise `Problem` 429 if the user has as many streams as one may have."""
        if user_id in self._feeds and len(self._feeds[user_id].places) >= MAX_STREAMS:
            detail = f"You have {MAX_STREAMS} event streams open. Close one first, or share one."
            # By then, those whose clients have vanished without a word have been sent something.
            headers = {"Retry-After": str(math.ceil(SILENCE_SECONDS))}
            raise Problem("rate_limited", detail, headers=headers)

    @contextlib.contextmanager
    def place(self, claims: Claims, rev: int) -> Iterator["Place"]:
        """Yield a place for a stream that begins after a revision. Raise `Problem` 429."""
        self.check_room(claims.user_id)
        feed = self._feeds.setdefault(claims.user_id, Feed(claims.user_id))
        place = Place(feed, claims, rev, is_over=self._is_closing)
        feed.places.add(place)
        if not self._running:
            self._running = [asyncio.create_task(each) for each in (self._follow(), self._check())]
        try:
            yield place
        finally:
            feed.places.discard(place)
            if not feed.places:
                del self._feeds[claims.user_id]
            if not self._feeds:
                for task in self._running:
                    task.cancel()
                self._running = []

    @contextlib.asynccontextmanager
    async def kept_up(self) -> AsyncIterator[None]:
        """End every stream when the server is told to stop, or the block ends."""
        with told_to_stop(self.close):
            try:
                yield
            finally:
                self.close()

    def close(self) -> None:
        """End every stream: the server waits for them before it stops."""
        self._is_closing = True
        for place in self._places():
            place.end()

    def _places(self) -> "list[Place]":
        return [place for feed in self._feeds.values() for place in feed.places]

    def _wake_all(self) -> None:
        for feed in self._feeds.values():
            feed.tell()

    def _notified(self, user_id: str) -> None:
        if feed := self._feeds.get(user_id):
            feed.tell()

    async def _follow(self) -> None:
        """Wake the streams of users who wrote, or all of them every second if nobody can listen."""
        deaf_until = math.inf if db.is_pooled() else 0.0  # for ever behind a transaction pooler
        while True:
            if time.monotonic() >= deaf_until:
                hears = await db.listen(self._url, queries.CHANNEL, self._notified, self._wake_all)
                deaf_until = 0.0 if hears else time.monotonic() + DEAF_SECONDS
            self._wake_all()
            await asyncio.sleep(TICK_SECONDS)

    async def _check(self) -> None:
        """End the streams whose tokens are no longer valid; look again where all was silent."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            for place in self._places():
                if not await self._is_good(place.claims):
                    place.end()
            for feed in self._feeds.values():
                feed.look_again()

    async def _is_good(self, claims: Claims) -> bool:
        try:
            await self._revocations.check(claims)
        except Problem:
            return False
        except Exception:
            logger.exception("cannot check the token of a stream")
            return False
        return not claims.have_expired()


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


class Part(NamedTuple):
    """A page of changes as events."""

    rev: int
    more: bool
    events: bytes
    told: int
    """How often there may have been something new, before it was read."""


class Feed:
    """One user's changes: read and written once for all of the user's streams at the same place.

    The caller of the first stream has already run `queries.WATCH`; the feed keeps renewing it.
    """

    def __init__(self, user_id: str) -> None:
        self.places: set[Place] = set()
        self.told = 0
        """How often there may have been something new."""
        self._user_id = user_id
        self._parts: dict[int, Part] = {}
        self._turn = asyncio.Lock()
        self._read_at = self._watched_at = time.monotonic()
        self._down_until = -math.inf

    def tell(self) -> None:
        """Let the streams look for something new."""
        self.told += 1
        for place in self.places:
            place.woken.set()

    def look_again(self) -> None:
        """Look for something new if nobody did for long: a notification may have been lost."""
        if time.monotonic() - self._read_at >= SILENCE_SECONDS:
            self.tell()

    async def part(self, since: int) -> Part:
        """Return what comes after a revision. Raise `Problem` 503.

        What somebody else has read for the same place will do; but that nothing has come may not be
        true any more.
        """
        async with self._turn:
            part = self._parts.get(since)
            if part is None or not (part.events or part.told == self.told):
                part = await self._read(since)
                self._keep(since, part)
            return part

    async def _read(self, since: int) -> Part:
        told, now = self.told, time.monotonic()
        if now < self._down_until:
            raise Problem("unavailable")  # those who waited for one that failed need not try too
        try:
            if now - self._watched_at >= WATCH_SECONDS:
                await queries.WATCH.one(owner=self._user_id)
                self._watched_at = now
            page = await read_changes(self._user_id, since)
        except Problem:
            self._down_until = time.monotonic() + TICK_SECONDS
            raise
        self._read_at = now
        return Part(page.rev, page.more, b"".join(_written(page)), told)

    def _keep(self, since: int, part: Part) -> None:
        """Keep a part, and what those need who are behind, but not too much."""
        last = min(place.rev for place in self.places)
        self._parts = {rev: each for rev, each in self._parts.items() if last <= rev != since}
        self._parts[since] = part
        while (
            len(self._parts) > 1 and sum(len(x.events) for x in self._parts.values()) > KEPT_BYTES
        ):
            del self._parts[next(iter(self._parts))]


@dataclass(eq=False, slots=True)
class Place:
    """A stream's place: where it is in its user's feed, and whether it is to end."""

    feed: Feed
    claims: Claims
    rev: int
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    is_over: bool = False

    def end(self) -> None:
        """Let the stream end."""
        self.is_over = True
        self.woken.set()

    async def events(self) -> AsyncIterator[bytes]:
        """Yield every change after the revision, until the end."""
        yield _event(b"ready", {"rev": self.rev}, self.rev)
        told, sent_at = -1, time.monotonic()
        while not self.is_over:
            until = sent_at + SILENCE_SECONDS
            if time.monotonic() >= until:
                yield KEEPALIVE_COMMENT
                sent_at = time.monotonic()
            elif told != self.feed.told:
                try:
                    part = await self.feed.part(self.rev)
                except Problem:  # the database is unavailable: try again at the next tick
                    await asyncio.sleep(TICK_SECONDS)
                    continue
                for start in range(0, len(part.events), CHUNK_BYTES):
                    yield part.events[start : start + CHUNK_BYTES]
                    sent_at = time.monotonic()
                self.rev = part.rev
                if not part.more:
                    told = part.told
            else:
                self.woken.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(until - time.monotonic()):
                        await self.woken.wait()


def _written(page: Page) -> Iterator[bytes]:
    """Yield a page as events. Only a revision's last event has its id, so that none is skipped."""
    events: list[tuple[int, bytes, object]] = [
        (task["rev"], b"task", task) for task in page.changed
    ]
    events += [(rev, b"deleted", {"id": task_id}) for rev, task_id in page.deleted]
    events.sort(key=itemgetter(0))
    for number, (rev, name, data) in enumerate(events, 1):
        is_last = number == len(events) or events[number][0] > rev
        yield _event(name, data, rev if is_last else None)


def _event(name: bytes, data: object, rev: int | None) -> bytes:
    body = orjson.dumps(data, option=orjson.OPT_UTC_Z)  # on one line
    return b"event: %b\ndata: %b\n%b\n" % (name, body, b"" if rev is None else b"id: %d\n" % rev)


class EventStream(EventSourceResponse):
    """FastAPI's event stream, of what a user's writes after a revision have changed.

    It disconnects clients that stop reading.
    """

    def __init__(self, live: Live, claims: Claims, rev: int) -> None:
        super().__init__((), headers={"X-Accel-Buffering": "no"})  # or nginx would buffer it
        self._live, self._claims, self._rev = live, claims, rev

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until the token is no longer valid. Raise `Problem` 429."""
        with self._live.place(self._claims, self._rev) as place:
            self.body_iterator = place.events()
            await super().__call__(scope, receive, send)

    async def stream_response(self, send: Send) -> None:
        """Send the events, each part within a time limit."""

        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(SLOW_SECONDS):
                await send(message)

        with contextlib.suppress(TimeoutError):
            await super().stream_response(send_in_time)
