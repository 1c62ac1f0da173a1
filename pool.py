"""The pool of connections to the database, and the statements that are prepared on them."""

import asyncio
import collections
import contextlib
import logging
import math
import time
import uuid
from typing import Any, NamedTuple

import asyncpg
import asyncpg.prepared_stmt
import orjson

import servers
from settings import Settings

Step = tuple[str, list[Any]]  # SQL text and its values

MAX_IDLE_SECONDS = 300.0  # a connection that was idle for longer is replaced
RETRY_SECONDS = 0.2
GROW_SECONDS = 10.0  # how long a database that allows no more connections is not asked again
CLOSE_SECONDS = 5.0
_HARMLESS = {"22", "23", "40", "42"}
"""SQLSTATE classes that blame the statement or its values: the connection stays usable."""

logger = logging.getLogger("todo.database")


class Refused(ConnectionError):
    """The server refuses a connection, for whatever reason."""

    def __init__(self, state: str | None) -> None:
        super().__init__(state)
        self.sqlstate = state


class Limits(NamedTuple):
    """By when a call's statement must have begun, and by when it must have ended.

    Both are moments of the monotonic clock, which is the event loop's.
    """

    begin: float
    end: float


class Connection:
    """A connection, and the statements that are prepared on it."""

    def __init__(self, connection: asyncpg.Connection, *, is_pooled: bool) -> None:
        self.asyncpg = connection
        self._is_pooled = is_pooled
        self._prepared: dict[str, asyncpg.prepared_stmt.PreparedStatement[asyncpg.Record]] = {}

    async def fetch(self, sql: str, values: list[Any], until: float) -> "list[asyncpg.Record]":
        """Run a statement until a moment of the monotonic clock, and return its rows."""
        if self._is_pooled:  # what is prepared would not survive the transaction
            return await self.asyncpg.fetch(sql, *values, timeout=left(until))
        prepared = self._prepared.get(sql)
        if prepared is None:
            # A name that no other client has. If this is a transaction pooler after all, one of
            # asyncpg's names might stand for another client's statement, and our SELECT delete.
            name = f"todo_{uuid.uuid4().hex}"
            prepared = await self.asyncpg.prepare(sql, name=name, timeout=left(until))
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
    """A connection pool that lends each connection to one statement at a time.

    asyncpg's own pool spends more on lending a connection than on the statement (24 of 42 us), for
    features not needed here: resetting the session, a task that survives cancellation.
    """

    def __init__(self, url: str, settings: Settings) -> None:
        self.is_pooled = settings.database_pooler
        self._url = url
        self._size = settings.database_pool_size
        self._vacant = self._size
        self._open = self._withheld = 0
        self._answered = -math.inf  # when a connection was last heard of
        self._told = -math.inf  # when it was logged that there may be no more
        self._waiters: collections.deque[asyncio.Future[None]] = collections.deque()
        self._free: list[tuple[float, Connection]] = []  # most recently used last
        self._closing: set[asyncio.Task[None]] = set()
        self._ping: asyncio.Task[list[asyncpg.Record]] | None = None
        self._slow_turns = asyncio.Semaphore(max(1, self._size // 2))

    async def open(self, until: float) -> None:
        """Open a first connection, to find out early whether that is possible."""
        self._give(await self._connect(until))

    async def fetch(self, steps: list[Step], limits: Limits) -> "list[asyncpg.Record]":
        """Run statements on a connection. Those that may take long have at most half of them."""
        if limits.begin == limits.end:
            return await self._fetch(steps, limits)
        async with asyncio.timeout_at(limits.begin):
            await self._slow_turns.acquire()
        try:
            return await self._fetch(steps, limits)
        finally:
            self._slow_turns.release()

    async def _fetch(self, steps: list[Step], limits: Limits) -> "list[asyncpg.Record]":
        connection, began = await self._borrow(limits.begin), time.monotonic()
        try:
            try:
                records = await connection.run(steps, limits)
            except BaseException as error:
                if str(getattr(error, "sqlstate", None))[:2] in _HARMLESS:
                    self._give(connection)
                else:
                    self._discard(connection)
                    if self._answered < began and not isinstance(error, asyncio.CancelledError):
                        self._discard_idle()  # no other has been heard of since
                raise
            self._give(connection)
            return records
        finally:
            self._leave()

    async def _borrow(self, until: float) -> Connection:
        """Wait for a turn, and return a connection, a new one if none is idle."""
        while True:
            await self._enter(until)
            try:
                if connection := self._take() or await self._grow(until):
                    return connection
            except BaseException:
                self._leave()
                raise
            self._withhold_turns()

    async def _grow(self, until: float) -> Connection | None:
        """Open a connection, or return None if the database allows no more than there are."""
        while True:
            try:
                return await self._connect(until)
            except asyncpg.InsufficientResourcesError as error:
                if time.monotonic() > self._told + GROW_SECONDS:
                    self._told = time.monotonic()
                    words = "database: no more than %d connections, SQLSTATE %s"
                    logger.warning(words, self._open, error.sqlstate)
                if self._open:
                    return None
            await asyncio.sleep(RETRY_SECONDS)

    def _withhold_turns(self) -> None:
        """Let the connections that there are do, all of which are in use; ask again later."""
        number, self._vacant = 1 + self._vacant, 0
        self._withheld += number

        def give_back() -> None:
            self._withheld -= number
            for _ in range(number):
                self._leave()

        asyncio.get_running_loop().call_later(GROW_SECONDS, give_back)

    async def _enter(self, until: float) -> None:
        """Wait for a turn, first come, first served. A semaphore and a timeout cost 10 us more."""
        if self._vacant:
            self._vacant -= 1
            return
        loop, seconds = asyncio.get_running_loop(), left(until)
        turn = loop.create_future()
        self._waiters.append(turn)
        timer = loop.call_later(seconds, _miss, turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled() and turn.exception() is None:  # granted at the same moment
                self._leave()
            raise
        finally:
            timer.cancel()

    def _leave(self) -> None:
        """Admit the next caller that is still waiting."""
        while self._waiters:
            turn = self._waiters.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._vacant += 1

    def ping(self, until: float) -> "asyncio.Task[list[asyncpg.Record]]":
        """Return the ping in progress, or start one."""
        if self._ping is None or self._ping.done():
            self._ping = asyncio.create_task(self.fetch([("SELECT 1", [])], Limits(until, until)))
        return self._ping

    def _give(self, connection: Connection) -> None:
        self._answered = time.monotonic()
        self._free.append((self._answered, connection))

    def _take(self) -> Connection | None:
        while self._free:
            since, connection = self._free.pop()
            # A firewall may have dropped a connection that was idle for long.
            is_fresh = time.monotonic() - since < MAX_IDLE_SECONDS
            if is_fresh and not connection.asyncpg.is_closed():
                return connection
            self._discard(connection)
        return None

    async def _connect(self, until: float) -> Connection:
        try:
            opened = await servers.connect(self._url, left(until))
        except asyncpg.InsufficientResourcesError:
            raise
        except asyncpg.PostgresError as error:
            raise Refused(error.sqlstate) from error
        try:
            if self.is_pooled is None:
                self.is_pooled = await _is_pooled(opened, until)
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
        closing = asyncio.create_task(_close(connection.asyncpg))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    def _discard_idle(self) -> None:
        """Close the idle connections: they may have died with the one that has."""
        for _, connection in self._free:
            self._discard(connection)
        self._free.clear()

    async def close(self) -> None:
        """Wait until no connection is in use, then close all of them."""
        for _ in range(self._size - self._withheld):
            await self._enter(math.inf)
        self._discard_idle()
        await asyncio.gather(*self._closing)


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


def _miss(turn: "asyncio.Future[None]") -> None:
    if not turn.done():
        turn.set_exception(TimeoutError())


async def _close(connection: asyncpg.Connection) -> None:
    with contextlib.suppress(*servers.FAILURES):  # a failure closes it too
        await connection.close(timeout=CLOSE_SECONDS)
