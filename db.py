"""Database access: migrations at startup, one pool per worker, statements run on it."""

import asyncio
import collections
import contextlib
import logging
import math
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar, cast
from urllib.parse import urlsplit

import asyncpg
import asyncpg.prepared_stmt
import orjson
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

import errors
from settings import PROJECT, Settings

Row = TypeVar("Row")
Step = tuple[str, list[Any]]  # SQL text and its values

DEADLINE_SECONDS = 5.0  # how long a call waits for the database in all before it gets a 503
MAX_IDLE_SECONDS = 300.0  # a connection that was idle for longer is replaced
LISTEN_SECONDS = 15.0  # how often a listening connection is probed: else it may be dead unnoticed
ATTEMPTS = 3
_FAILURES = (
    *(OSError, asyncpg.PostgresError, asyncpg.InterfaceError),
    asyncpg.InternalClientError,  # a connection that is lost while in use
)
_HARMLESS = {"22", "23", "40", "42"}
"""SQLSTATE classes that blame the statement or its values: the connection stays usable."""

_PARAMETER = re.compile(r"(?<![:\w]):([a-z_]+)")
"""A named parameter such as `:owner`; `::` is a cast."""

logger = logging.getLogger("todo.database")

_pool: "_Pool | None" = None


@dataclass(slots=True)
class Clock:
    """How long a call has waited for the database, so that its statements share one deadline."""

    waited: float = 0.0
    is_running: bool = True
    """Not once the answer has begun: nobody waits for what runs on."""


_clock: ContextVar[Clock | None] = ContextVar("clock", default=None)


def start_clock() -> Clock:
    """Start the clock of a call, which also runs in the tasks that serve it."""
    _clock.set(clock := Clock())
    return clock


class Limits(NamedTuple):
    """By when a call's statement must have begun, and by when it must have ended.

    Both are moments of the monotonic clock, which is the event loop's.
    """

    begin: float
    end: float


class Statement(Generic[Row]):
    """One SQL statement with named parameters, run by asyncpg.

    It is a transaction of its own, with `after` if there is one: all or nothing, and committed when
    a method returns. Every call passes values for all of its parameters, by name.

    Every method raises `Problem("unavailable")` if the database cannot be reached in time.
    Whether a write took effect is then unknown to the caller, as it is to the client.
    """

    def __init__(
        self,
        sql: str,
        *,
        after: "Statement[Any] | None" = None,
        deadline: float | None = None,
    ) -> None:
        """Take the text; rows are dictionaries of the type in brackets: `Statement[TaskRead](...)`.

        `after` runs first, in the same transaction, so that this statement's snapshot includes
        what `after` waited for; if it finds no row, this one is left out. `deadline`, in seconds,
        replaces the default for slow statements; they must begin within the default all the same.
        """
        self.text, self.deadline = sql, deadline
        self.steps = (after, self) if after else (self,)
        self.names = tuple(dict.fromkeys(_PARAMETER.findall(sql)))
        # PostgreSQL's own parameters are numbered.
        self.sql = _PARAMETER.sub(lambda found: f"${self.names.index(found[1]) + 1}", sql)

    async def all(self, **values: Any) -> list[Row]:  # noqa: ANN401  (of any column)
        """Run the statement and return its rows."""
        steps = [(step.sql, [*map(values.__getitem__, step.names)]) for step in self.steps]
        clock = _clock.get() or Clock()
        began = time.monotonic() - (clock.waited if clock.is_running else 0.0)
        limits = Limits(began + DEADLINE_SECONDS, began + (self.deadline or DEADLINE_SECONDS))
        try:
            records = await _fetch(steps, limits)
        finally:
            clock.waited = max(clock.waited, time.monotonic() - began)
        return self.read(records)

    def read(self, records: "list[asyncpg.Record]") -> list[Row]:
        """Return records as rows."""
        names = tuple(records[0].keys()) if records else ()
        # Faster than `dict(record)`, which looks up each value by name.
        rows = [dict(zip(names, record)) for record in records]  # noqa: B905  (strict costs a fifth)
        return cast("list[Row]", rows)

    async def first(self, **values: Any) -> Row | None:  # noqa: ANN401  (of any column)
        """Run the statement and return its first row, or None."""
        rows = await self.all(**values)
        return rows[0] if rows else None

    async def one(self, **values: Any) -> Row:  # noqa: ANN401  (of any column)
        """Run a statement that always returns one row, and return that row."""
        (row,) = await self.all(**values)
        return row


async def _fetch(steps: list[Step], limits: Limits) -> "list[asyncpg.Record]":
    """Run the steps, again if the database asks for that. Raise the error that clients get."""
    for _ in range(ATTEMPTS):
        try:
            return await _current_pool().fetch(steps, limits)
        except _FAILURES as error:
            verdict = errors.from_database(error)
            # Log only class and SQLSTATE: the message may quote a row.
            if isinstance(verdict, errors.DatabaseError):
                raise verdict from None  # `errors` logs it, with its traceback
            state = getattr(error, "sqlstate", None)
            logger.warning("database: %s, SQLSTATE %s", type(error).__name__, state)
            if not isinstance(verdict, errors.TryAgain):
                raise verdict from error
    raise errors.Problem("unavailable")


def _current_pool() -> "_Pool":
    if _pool is None:
        raise errors.Problem("unavailable")
    return _pool


async def ping(deadline: float) -> None:
    """Check that the database answers.

    Raise `errors.Problem("unavailable")` if it does not within the deadline, in seconds. All
    callers share one attempt, which continues after that: a slow database is still found in the
    end, and many callers add no load.
    """
    attempt = _current_pool().ping()
    done, _ = await asyncio.wait([attempt], timeout=deadline)
    if not done or attempt.cancelled() or attempt.exception():
        raise errors.Problem("unavailable")


async def listen(
    url: str, channel: str, heard: Callable[[str], None], begun: Callable[[], None]
) -> None:
    """Call `begun` once listening, then `heard` with each payload, until the connection fails."""
    try:
        connection = await asyncpg.connect(url, timeout=DEADLINE_SECONDS, **_UNPREPARED)
        try:
            closed = asyncio.Event()
            connection.add_termination_listener(lambda _: closed.set())
            async with asyncio.timeout(DEADLINE_SECONDS):
                await connection.add_listener(channel, lambda *told: heard(told[-1]))
            begun()
            while True:
                with contextlib.suppress(TimeoutError):
                    # Not wait_for: Python 3.11's may lose a cancellation that arrives as it ends.
                    async with asyncio.timeout(LISTEN_SECONDS):
                        await closed.wait()
                await connection.execute("SELECT 1", timeout=DEADLINE_SECONDS)
        finally:
            connection.terminate()
    except _FAILURES as error:
        logger.warning("database: cannot listen: %s", type(error).__name__)


class Database(NamedTuple):
    """The URL of the database, and the secret that signs tokens."""

    url: str
    secret: str


@contextlib.contextmanager
def locate(settings: Settings) -> Iterator[Database]:
    """Yield the database at `DATABASE_URL`, or run an embedded one until the block ends.

    Raise `errors.CannotStart` if the embedded one cannot be started.
    """
    if settings.database_url and settings.better_auth_secret:
        yield Database(settings.database_url, settings.better_auth_secret)
        return
    import embedded  # noqa: PLC0415  (needs fcntl, which Windows lacks)

    with embedded.postgres(PROJECT / ".data") as private:
        yield Database(private.url, settings.better_auth_secret or private.secret)


class _Connection:
    """A connection, and the statements that are prepared on it."""

    def __init__(self, connection: asyncpg.Connection, *, is_pooled: bool) -> None:
        self.asyncpg = connection
        self._is_pooled = is_pooled
        self._prepared: dict[str, asyncpg.prepared_stmt.PreparedStatement[asyncpg.Record]] = {}

    async def fetch(self, sql: str, values: list[Any], until: float) -> "list[asyncpg.Record]":
        """Run a statement until a moment of the monotonic clock, and return its rows."""
        if self._is_pooled:  # what is prepared would not survive the transaction
            return await self.asyncpg.fetch(sql, *values, timeout=_left(until))
        prepared = self._prepared.get(sql)
        if prepared is None:
            # A name that no other client has. If this is a transaction pooler after all, one of
            # asyncpg's names might stand for another client's statement, and our SELECT delete.
            name = f"todo_{uuid.uuid4().hex}"
            prepared = await self.asyncpg.prepare(sql, name=name, timeout=_left(until))
            self._prepared[sql] = prepared
        return await prepared.fetch(*values, timeout=_left(until))

    async def run(self, steps: list[Step], limits: Limits) -> "list[asyncpg.Record]":
        """Run statements, several in one transaction, and return the rows of the last."""
        *before, last = steps
        if not before:
            return await self.fetch(*last, limits.end)
        await self.asyncpg.execute("BEGIN", timeout=_left(limits.begin))
        try:
            # In `before`, to find nothing is to lock nothing: what follows would not be alone.
            is_alone = all([await self.fetch(*step, limits.begin) for step in before])
            records = await self.fetch(*last, limits.end) if is_alone else []
        except asyncpg.PostgresError:
            await self.asyncpg.execute("ROLLBACK", timeout=_left(limits.end))
            raise
        await self.asyncpg.execute("COMMIT", timeout=_left(limits.end))
        return records


class _Pool:
    """A connection pool that lends each connection to one statement at a time.

    asyncpg's own pool spends more on lending a connection than on the statement (24 of 42 us), for
    features not needed here: resetting the session, a task that survives cancellation.
    """

    def __init__(self, url: str, settings: Settings) -> None:
        self.is_pooled = settings.database_pooler
        self._url = url
        self._size = settings.database_pool_size
        self._vacant = self._size
        self._waiters: collections.deque[asyncio.Future[None]] = collections.deque()
        self._free: list[tuple[float, _Connection]] = []  # most recently used last
        self._closing: set[asyncio.Task[None]] = set()
        self._ping: asyncio.Task[list[asyncpg.Record]] | None = None
        self._slow_turns = asyncio.Semaphore(max(1, self._size // 2))

    async def open(self) -> None:
        """Open a first connection, to find out early whether that is possible."""
        self._give(await self._connect(time.monotonic() + DEADLINE_SECONDS))

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
        await self._enter(limits.begin)
        try:
            connection = self._take() or await self._connect(limits.begin)
            try:
                records = await connection.run(steps, limits)
            except BaseException as error:
                if str(getattr(error, "sqlstate", None))[:2] in _HARMLESS:
                    self._give(connection)
                else:
                    self._discard(connection)
                raise
            self._give(connection)
            return records
        finally:
            self._leave()

    async def _enter(self, until: float) -> None:
        """Wait for a turn, first come, first served. A semaphore and a timeout cost 10 us more."""
        if self._vacant:
            self._vacant -= 1
            return
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        self._waiters.append(turn)
        timer = loop.call_later(_left(until), _miss, turn)
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

    def ping(self) -> "asyncio.Task[list[asyncpg.Record]]":
        """Return the ping in progress, or start one."""
        if self._ping is None or self._ping.done():
            until = time.monotonic() + DEADLINE_SECONDS
            self._ping = asyncio.create_task(self.fetch([("SELECT 1", [])], Limits(until, until)))
        return self._ping

    def _give(self, connection: _Connection) -> None:
        self._free.append((time.monotonic(), connection))

    def _take(self) -> _Connection | None:
        while self._free:
            since, connection = self._free.pop()
            if not connection.asyncpg.is_closed():
                # A firewall may have dropped a connection that was idle for long.
                if time.monotonic() - since < MAX_IDLE_SECONDS:
                    return connection
                self._discard(connection)
        return None

    async def _connect(self, until: float) -> _Connection:
        try:
            opened = await asyncpg.connect(self._url, timeout=_left(until), **_UNPREPARED)
        except asyncpg.PostgresError as error:
            raise ConnectionError(error.sqlstate) from error  # refused, whatever the reason
        if self.is_pooled is None:
            self.is_pooled = await _is_pooled(opened, until)
        # JSON goes into the response unparsed. asyncpg knows this type without a query.
        await opened.set_type_codec(
            "json", schema="pg_catalog", encoder=str, decoder=orjson.Fragment
        )
        return _Connection(opened, is_pooled=self.is_pooled)

    def _discard(self, connection: _Connection) -> None:
        """Close a connection in an unknown state in the background, cancelling its statement."""
        closing = asyncio.create_task(_close(connection.asyncpg))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Wait until no connection is in use, then close all of them."""
        for _ in range(self._size):
            await self._enter(math.inf)
        for _, connection in self._free:
            self._discard(connection)
        self._free.clear()
        await asyncio.gather(*self._closing)


def _left(until: float) -> float:
    """Return the seconds left until a moment. Raise `TimeoutError` if there are none."""
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


async def _is_pooled(connection: asyncpg.Connection, until: float) -> bool:
    """Return whether a transaction pooler is between us and the server.

    It names a process of its own when a client connects, and each transaction runs in another.
    """
    process = await connection.fetchval("SELECT pg_backend_pid()", timeout=_left(until))
    return bool(process != connection.get_server_pid())


def _miss(turn: "asyncio.Future[None]") -> None:
    if not turn.done():
        turn.set_exception(TimeoutError())


async def _close(connection: asyncpg.Connection) -> None:
    with contextlib.suppress(*_FAILURES):  # a failure closes it too
        await connection.close(timeout=DEADLINE_SECONDS)


@contextlib.asynccontextmanager
async def connect(settings: Settings, url: str) -> AsyncIterator[None]:
    """Migrate, if so configured, and keep a pool open. Raise `errors.CannotStart` if it fails."""
    global _pool  # noqa: PLW0603  (one pool per worker)
    try:
        await run_sync(url, upgrade if settings.migrate_on_start else _check_migrated)
        pool = _Pool(url, settings)
        await pool.open()
    except (*_FAILURES, SQLAlchemyError, CommandError, ValueError) as error:
        cause = getattr(error, "orig", None) or error
        reason = str(cause).partition("\n")[0].rpartition(">: ")[2] or type(cause).__name__
        parts = urlsplit(url)
        where = f"{parts.hostname}:{parts.port or 5432}" if parts.hostname else "a socket"
        line = f"cannot use the database at {where}: {reason}; see DATABASE_URL"
        raise errors.CannotStart(line) from error
    before, _pool = _pool, pool
    try:
        yield
    finally:
        _pool = before
        await pool.close()


_UNPREPARED: dict[str, Any] = {"statement_cache_size": 0}
"""asyncpg's own cache of statements is off: their names are not safe, see `_Connection`."""


def is_pooled() -> bool:
    """Return whether the database is behind a transaction pooler."""
    return bool(_current_pool().is_pooled)


def upgrade(connection: Connection) -> None:
    """Migrate to the newest revision; of several workers at once, the first does it."""
    config = Config(toml_file=PROJECT / "pyproject.toml")
    config.attributes["connection"] = connection
    _refuse_unknown(config, connection)
    command.upgrade(config, "head")


def _check_migrated(connection: Connection) -> None:
    config = Config(toml_file=PROJECT / "pyproject.toml")
    found = _refuse_unknown(config, connection)
    wanted = ScriptDirectory.from_config(config).get_current_head()
    if found != wanted:
        line = f"MIGRATE_ON_START: is false, and the tables are at revision {found}, not {wanted}"
        raise errors.CannotStart(f"{line}: run `uv run alembic upgrade head`")


def _refuse_unknown(config: Config, connection: Connection) -> str | None:
    """Return the revision of the tables, None if there are none.

    Raise `errors.CannotStart` for one that these migrations do not know, and leave it as it is.
    """
    with connection.begin():
        found = ", ".join(MigrationContext.configure(connection).get_current_heads())
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if not found or found in known:
        return found or None
    raise errors.CannotStart(
        f"the tables are at revision {found}, which this version does not know: it is older than "
        "they are, or they were made before the first release; run the version that made them, or "
        "use an empty database (if it is the private one, delete .data/)"
    )


async def run_sync(url: str, function: Callable[[Connection], None]) -> None:
    """Call a function with an SQLAlchemy connection, as Alembic needs one."""
    engine = create_async_engine(
        "postgresql+asyncpg://",
        poolclass=NullPool,
        connect_args={
            "async_creator_fn": lambda **_: asyncpg.connect(
                url, timeout=DEADLINE_SECONDS, **_UNPREPARED
            ),
            # Behind a transaction pooler, another client's statement may have the default name.
            "prepared_statement_name_func": lambda: f"migration_{uuid.uuid4().hex}",
        },
    )
    try:
        async with engine.connect() as connection:
            await connection.run_sync(function)
    finally:
        await engine.dispose()
