"""The pool of connections to the database: whose turn it is, and what is prepared on them."""

import asyncio
import contextlib
import logging
import math
import time
import uuid
from collections.abc import Coroutine
from typing import Any, NamedTuple

import asyncpg
import asyncpg.prepared_stmt
import orjson

import servers
from settings import Settings

Step = tuple[str, list[Any]]  # SQL text and its values
User = str | None  # whose calls share what is there; None is the service itself
Turn = asyncio.Future["Connection"]

MAX_IDLE_SECONDS = 300.0  # a connection that was idle for longer is replaced
CONNECT_SECONDS = 5.0
RETRY_SECONDS = 0.2
GROW_SECONDS = 10.0  # how long a database that allows no more connections is not asked again
CLOSE_SECONDS = 5.0
LARGE = 50  # rows; 500 tasks take the event loop some milliseconds
_HARMLESS = {"22", "23", "40", "42"}
"""SQLSTATE classes that blame the statement or its values: the connection stays usable."""

_DEAD = ("08", "57P")
"""How the SQLSTATE begins with which a server ends a connection."""

logger = logging.getLogger("todo.database")


class Lost(ConnectionError):
    """A connection died in use: whether a write that ran on it took effect is not known."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(type(cause).__name__)
        self.__cause__ = cause
        self.sqlstate = getattr(cause, "sqlstate", None)


class Refused(Lost):
    """No connection could be opened, for whatever reason: nothing has run."""


class Limits(NamedTuple):
    """By when a call's statement must have begun, and by when it must have ended.

    Both are moments of the monotonic clock, which is the event loop's.
    """

    begin: float
    end: float


PLAN_ONCE = """
SELECT set_config('plan_cache_mode', 'force_generic_plan', false),
    set_config('enable_seqscan', 'off', false), set_config('jit', 'off', false)
WHERE to_regclass('pg_dist_node') IS NULL"""
"""Else PostgreSQL plans a list anew each time, which takes longer than to run it.

Citus, whose table that is, has to: it must know the owner. A plan made while a table is small uses
its indexes all the same, for it lasts until the table is analyzed again, which may have grown a
thousandfold by then. (PostgreSQL 17 and older compile, at length, what lacks an index then.)
"""


class Connection:
    """A connection, and the statements that are prepared on it."""

    def __init__(self, connection: asyncpg.Connection, *, is_pooled: bool) -> None:
        self.asyncpg = connection
        self._is_pooled = is_pooled
        self._prepared: dict[str, asyncpg.prepared_stmt.PreparedStatement[asyncpg.Record]] = {}

    async def fetch(self, sql: str, values: list[Any], until: float) -> "list[asyncpg.Record]":
        """Run a statement until a moment of the monotonic clock, and return its rows."""
        if self._is_pooled:  # what is prepared would not survive the transaction
            async with asyncio.timeout_at(until):
                return await self.asyncpg.fetch(sql, *values)
        prepared = self._prepared.get(sql)
        if prepared is None:
            # A name that no other client has. If this is a transaction pooler after all, one of
            # asyncpg's names might stand for another client's statement, and our SELECT delete.
            name = f"todo_{uuid.uuid4().hex}"
            # asyncpg also asks what types there are; its own timeout is for each of its questions.
            async with asyncio.timeout_at(until):
                prepared = await self.asyncpg.prepare(sql, name=name)
            self._prepared[sql] = prepared
        return await prepared.fetch(*values, timeout=left(until))

    async def run(self, steps: list[Step], limits: Limits) -> "list[asyncpg.Record]":
        """Run statements, several in one transaction, and return the rows of the last."""
        *before, last = steps
        if not before:
            return await self.fetch(*last, limits.end)
        await self.asyncpg.execute("BEGIN", timeout=left(limits.begin))
        try:
            # In `before`, to find nothing is to lock nothing: what follows would not be alone.
            is_alone = all([await self.fetch(*step, limits.begin) for step in before])
            records = await self.fetch(*last, limits.end) if is_alone else []
        except asyncpg.PostgresError:
            await self.asyncpg.execute("ROLLBACK", timeout=left(limits.end))
            raise
        await self.asyncpg.execute("COMMIT", timeout=left(limits.end))
        return records


class Pool:
    """A connection pool that lends each connection to one statement at a time, and to all fairly.

    A user's calls hold at most half as many connections as are left to others, so that what takes
    long leaves the database's cores to them, too; who waits is served in turn, user by user. The
    last of several is kept for the service itself.

    asyncpg's own pool spends more on lending a connection than on the statement (24 of 42 us), for
    features not needed here: resetting the session, a task that survives cancellation.
    """

    def __init__(self, url: str, settings: Settings) -> None:
        self.is_pooled = settings.database_pooler
        self._url = url
        self._size = settings.database_pool_size
        self._open = 0
        self._answered = -math.inf  # when a connection was last heard of
        self._is_full = False  # the database has refused another, not long ago
        self._told = -math.inf  # when it was logged that there may be no more
        self._free: list[tuple[float, Connection]] = []  # most recently used last
        self._held: dict[User, int] = {}
        self._waiting: dict[User, list[Turn]] = {}  # the next user first
        self._attempts = 0  # to open one
        self._background: set[asyncio.Task[None]] = set()
        self._large = asyncio.Lock()
        self._ping: asyncio.Task[list[asyncpg.Record]] | None = None

    async def open(self, until: float) -> None:
        """Open a first connection, to find out early whether that is possible."""
        self._give(await self._connect(until))

    async def fetch(self, steps: list[Step], limits: Limits, user: User) -> "list[asyncpg.Record]":
        """Run statements on a connection. Raise `Lost` if it dies meanwhile."""
        left(limits.begin)
        connection = self._take(user) or await self._wait(user, limits.begin)
        began = time.monotonic()
        try:
            records = await connection.run(steps, limits)
            if len(records) > LARGE:  # one at a time: what came meanwhile is served in between
                await self._large.acquire()
                asyncio.get_running_loop().call_soon(self._large.release)
        except BaseException as error:
            state = str(getattr(error, "sqlstate", None))
            if state[:2] in _HARMLESS:
                self._give(connection)
                raise
            has_died = connection.asyncpg.is_closed() or state.startswith(_DEAD)
            self._discard(connection)
            if isinstance(error, asyncio.CancelledError):
                raise
            if has_died or self._answered < began:  # no other has been heard of since
                self._discard_idle()
            if has_died:
                raise Lost(error) from error
            raise
        else:
            self._give(connection)
        finally:
            self._leave(user)
        return records

    def _spare(self) -> int:
        """Return how many idle connections users may have: the last of several is not theirs."""
        return len(self._free) - (self._open > 2)

    def _take(self, user: User) -> Connection | None:
        """Lend an idle connection to a user who holds less than half as many as are idle."""
        held = self._held.get(user, 0)
        while self._free if user is None else 2 * held < self._spare():
            since, connection = self._free.pop()
            # A firewall may have dropped a connection that was idle for long.
            is_fresh = time.monotonic() - since < MAX_IDLE_SECONDS
            if is_fresh and not connection.asyncpg.is_closed():
                self._held[user] = held + 1
                return connection
            self._discard(connection)
        return None

    async def _wait(self, user: User, until: float) -> Connection:
        """Wait for a turn. A semaphore and a timeout cost 10 us more."""
        loop = asyncio.get_running_loop()
        turn: Turn = loop.create_future()
        self._waiting.setdefault(user, []).append(turn)
        self._grow()
        timer = loop.call_later(until - time.monotonic(), _miss, turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if not turn.cancelled() and turn.exception() is None:  # lent at the same moment
                self._give(turn.result())
                self._leave(user)
            raise
        finally:
            timer.cancel()

    def _leave(self, user: User) -> None:
        self._held[user] -= 1
        if not self._held[user]:
            del self._held[user]
        if self._waiting:
            self._admit()

    def _admit(self) -> None:
        """Lend what is idle to those who wait: the service first, then users in turn."""
        while (None in self._waiting and self._lend(None)) or (
            self._spare() > 0 and any(map(self._lend, [*self._waiting]))
        ):
            pass
        self._grow()

    def _lend(self, user: User) -> bool:
        """Lend a connection to a user's first call, if possible; the user then comes last."""
        turns = self._waiting.pop(user, None)
        while turns and turns[0].done():  # nobody waits for it any more
            turns.pop(0)
        if not turns:
            return False
        if connection := self._take(user):
            turns.pop(0).set_result(connection)
        if turns:
            self._waiting[user] = turns
        return connection is not None

    def _grow(self) -> None:
        """Open a connection in the background, if calls wait and there may be one more."""
        has_room = self._open + self._attempts < self._size and not self._is_full
        # One attempt is enough to find out whether the database is there.
        if has_room and self._waiting and (self._open or not self._attempts):
            self._attempts += 1
            self._start(self._add())

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Open or close a connection while others are served."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    def _grow_again(self) -> None:
        self._is_full = False
        self._grow()

    async def _add(self) -> None:
        try:
            try:
                self._give(await self._connect(time.monotonic() + CONNECT_SECONDS))
            finally:
                self._attempts -= 1
        except Exception as error:  # noqa: BLE001  (those who wait raise it)
            self._do_without(error)
        else:
            self._admit()

    def _do_without(self, error: Exception) -> None:
        """Let the connections that there are do. If there are none, those who wait fail."""
        now, is_full = time.monotonic(), isinstance(error, asyncpg.InsufficientResourcesError)
        if self._open or is_full:
            if now > self._told + GROW_SECONDS:
                self._told, state = now, getattr(error, "sqlstate", None)
                words = "database: no more than %d connections, SQLSTATE %s"
                logger.warning(words, self._open, state)
            self._is_full = True
            seconds = GROW_SECONDS if self._open and is_full else RETRY_SECONDS
            asyncio.get_running_loop().call_later(seconds, self._grow_again)
        elif not self._attempts:  # else another may succeed
            turns = [turn for line in self._waiting.values() for turn in line if not turn.done()]
            self._waiting.clear()
            for turn in turns:
                turn.set_exception(Refused(error))

    def ping(self, until: float) -> "asyncio.Task[list[asyncpg.Record]]":
        """Return the ping in progress, or start one."""
        if self._ping is None or self._ping.done():
            ping = self.fetch([("SELECT 1", [])], Limits(until, until), None)
            self._ping = asyncio.create_task(ping)
            # Who waits for it may be gone when it fails.
            self._ping.add_done_callback(lambda done: done.cancelled() or done.exception())
        return self._ping

    def _give(self, connection: Connection) -> None:
        self._answered = time.monotonic()
        self._free.append((self._answered, connection))

    async def _connect(self, until: float) -> Connection:
        opened = await servers.connect(self._url, left(until))
        try:
            if self.is_pooled is None:
                self.is_pooled = await _is_pooled(opened, until)
            if not self.is_pooled:
                await opened.execute(PLAN_ONCE, timeout=left(until))
            # JSON goes into the response unparsed. asyncpg knows this type without a query.
            await opened.set_type_codec(
                "json", schema="pg_catalog", encoder=str, decoder=orjson.Fragment
            )
        except BaseException:
            opened.terminate()
            raise
        self._open += 1
        return Connection(opened, is_pooled=self.is_pooled)

    def _discard(self, connection: Connection) -> None:
        """Close a connection in an unknown state in the background, cancelling its statement."""
        self._open -= 1
        self._is_full &= self._open > 0
        closing = self._start(_close(connection.asyncpg))
        closing.add_done_callback(lambda _: self._grow_again())  # there is room for another

    def _discard_idle(self) -> None:
        """Close the idle connections: they may have died with the one that has."""
        for _, connection in self._free:
            self._discard(connection)
        self._free.clear()

    async def close(self) -> None:
        """Wait until no connection is in use, then close all of them."""
        self._size = 0
        while self._held or self._attempts:  # noqa: ASYNC110  (nothing else needs an event for it)
            await asyncio.sleep(RETRY_SECONDS)
        self._discard_idle()
        await asyncio.gather(*self._background)


def left(until: float) -> float:
    """Return the seconds left until a moment. Raise `TimeoutError` if there are none."""
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


async def _is_pooled(connection: asyncpg.Connection, until: float) -> bool:
    """Return whether a transaction pooler is between us and the server.

    It names a process of its own when a client connects, and each transaction runs in another.
    """
    process = await connection.fetchval("SELECT pg_backend_pid()", timeout=left(until))
    return bool(process != connection.get_server_pid())


def _miss(turn: Turn) -> None:
    if not turn.done():
        turn.set_exception(TimeoutError())


async def _close(connection: asyncpg.Connection) -> None:
    with contextlib.suppress(*servers.FAILURES):  # a failure closes it too
        await connection.close(timeout=CLOSE_SECONDS)
