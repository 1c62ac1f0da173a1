"""Database access: migrations at startup, one pool per worker, statements compiled once."""

import asyncio
import collections
import contextlib
import logging
import math
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Generic, NamedTuple, TypeVar, cast
from urllib.parse import urlsplit

import asyncpg
import orjson
from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError
from sqlalchemy import ClauseElement, Connection, inspect
from sqlalchemy.dialects.postgresql.asyncpg import dialect
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool
from sqlalchemy.sql.compiler import SQLCompiler

import errors
from settings import PROJECT, Settings

Row = TypeVar("Row")
Step = tuple[str, list[Any]]
"""SQL text and its values."""

Fetching = Coroutine[Any, Any, "list[asyncpg.Record]"]

DEADLINE_SECONDS = 5.0
"""How long a request waits for a free connection, and again for the result, before it gets a 503.

A connection that must be opened first may take as long again.
"""

MAX_IDLE_SECONDS = 300.0
"""How long a connection may be idle before it is replaced."""

LISTEN_SECONDS = 15.0
"""How often a listening connection is probed, because nothing else shows that it is dead."""

ATTEMPTS = 3
_FAILURES = (
    *(OSError, asyncpg.PostgresError, asyncpg.InterfaceError),
    asyncpg.InternalClientError,  # a connection that is lost while in use
)
_HARMLESS = {"22", "23", "40", "42"}
"""SQLSTATE classes that blame the statement or its values: the connection stays usable."""

logger = logging.getLogger("todo.database")
_DIALECT = dialect()  # type: ignore[no-untyped-call]

_pool: "_Pool | None" = None


class Statement(Generic[Row]):
    """One SQL statement, written with SQLAlchemy, compiled once, run by asyncpg.

    Each statement is its own transaction: all or nothing, and committed when a method returns.
    Every call passes values for all of the statement's parameters, by name.

    Every method raises `Problem("unavailable")` if the database cannot be reached in time.
    Whether a write took effect is then unknown to the caller, as it is to the client.
    """

    def __init__(
        self,
        statement: ClauseElement,
        row: type[Row],  # noqa: ARG002  (tells mypy)
        *,
        after: "Statement[Any] | None" = None,
        deadline: float | None = None,
    ) -> None:
        """Compile a statement whose rows are dictionaries of type `row`.

        `after` runs first, in the same transaction, so that this statement's snapshot includes
        what `after` waited for. `deadline`, in seconds, replaces the default for slow statements.
        """
        self.deadline = deadline
        self.steps = (after, self) if after else (self,)
        compiled = statement.compile(dialect=_DIALECT)
        assert isinstance(compiled, SQLCompiler)  # noqa: S101  (tells mypy)
        self.sql = str(compiled)
        self.names = tuple(compiled.positiontup or ())

    async def all(self, **values: Any) -> list[Row]:  # noqa: ANN401  (of any column)
        """Run the statement and return its rows."""
        steps = [(step.sql, [*map(values.__getitem__, step.names)]) for step in self.steps]
        for _ in range(ATTEMPTS):
            try:
                records = await _fetch(steps, self.deadline or DEADLINE_SECONDS)
            except _FAILURES as error:
                verdict = errors.from_database(error)
                # Log only class and SQLSTATE: the message may quote a row.
                if isinstance(verdict, errors.DatabaseError):
                    raise verdict from None  # `errors` logs it, with its traceback
                state = getattr(error, "sqlstate", None)
                logger.warning("database: %s, SQLSTATE %s", type(error).__name__, state)
                if not isinstance(verdict, errors.TryAgain):
                    raise verdict from error
            else:
                names = tuple(records[0].keys()) if records else ()
                # Faster than `dict(record)`, which looks up each value by name.
                rows = [dict(zip(names, record)) for record in records]  # noqa: B905  (strict costs a fifth)
                return cast("list[Row]", rows)
        raise errors.Problem("unavailable")

    async def first(self, **values: Any) -> Row | None:  # noqa: ANN401  (of any column)
        """Run the statement and return its first row, or None."""
        rows = await self.all(**values)
        return rows[0] if rows else None

    async def one(self, **values: Any) -> Row:  # noqa: ANN401  (of any column)
        """Run a statement that always returns one row, and return that row."""
        (row,) = await self.all(**values)
        return row


def _fetch(steps: list[Step], deadline: float) -> Fetching:
    pool = _current_pool()
    fetch = pool.fetch if deadline <= DEADLINE_SECONDS else pool.fetch_slowly
    return fetch(steps, deadline)


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
        connection = await asyncpg.connect(url, timeout=DEADLINE_SECONDS, statement_cache_size=0)
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

    with embedded.postgres(PROJECT / ".data") as server:
        yield Database(server.url, settings.better_auth_secret or server.secret)


class _Connection(asyncpg.Connection):
    """A connection whose prepared statements have globally unique names.

    Behind a transaction pooler that is not configured as such, a name could otherwise refer to
    another process's statement, and our SELECT run its DELETE.
    """

    def _get_unique_id(self, prefix: str) -> str:
        return f"todo_{prefix}_{uuid.uuid4().hex}"


class _Pool:
    """A connection pool that lends each connection to one statement at a time.

    asyncpg's own pool spends more on lending a connection than on the statement (24 of 42 us), for
    features not needed here: resetting the session, a task that survives cancellation.
    """

    def __init__(self, url: str, settings: Settings) -> None:
        self._url, self._options = url, _options(settings)
        self._size = settings.database_pool_size
        self._vacant = self._size
        self._waiters: collections.deque[asyncio.Future[None]] = collections.deque()
        self._free: list[tuple[float, _Connection]] = []  # most recently used last
        self._closing: set[asyncio.Task[None]] = set()
        self._ping: asyncio.Task[list[asyncpg.Record]] | None = None
        self._slow_turns = asyncio.Semaphore(max(1, self._size // 2))

    async def open(self) -> None:
        """Open a first connection, to find out early whether that is possible."""
        self._give(await self._connect())

    async def fetch(self, steps: list[Step], deadline: float) -> "list[asyncpg.Record]":
        """Run a statement, or several in one transaction, on a free connection.

        The deadline, in seconds, is for running it; a turn and a connection have the usual one.
        """
        await self._enter(DEADLINE_SECONDS)
        try:
            try:
                connection = self._take() or await self._connect()
            except asyncpg.PostgresError as error:
                raise ConnectionError(error.sqlstate) from error  # refused, whatever the reason
            try:
                records = await _run(connection, steps, deadline)
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

    async def fetch_slowly(self, steps: list[Step], deadline: float) -> "list[asyncpg.Record]":
        """Do the same for what may take long, on at most half of the connections."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            await self._slow_turns.acquire()
        try:
            return await self.fetch(steps, deadline)
        finally:
            self._slow_turns.release()

    async def _enter(self, deadline: float) -> None:
        """Wait for a turn, first come, first served. A semaphore and a timeout cost 10 us more."""
        if self._vacant:
            self._vacant -= 1
            return
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        self._waiters.append(turn)
        timer = loop.call_later(deadline, _miss, turn)
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
            self._ping = asyncio.create_task(self.fetch([("SELECT 1", [])], DEADLINE_SECONDS))
        return self._ping

    def _give(self, connection: "_Connection") -> None:
        self._free.append((time.monotonic(), connection))

    def _take(self) -> "_Connection | None":
        while self._free:
            since, connection = self._free.pop()
            if not connection.is_closed():
                # A firewall may have dropped a connection that was idle for long.
                if time.monotonic() - since < MAX_IDLE_SECONDS:
                    return connection
                self._discard(connection)
        return None

    async def _connect(self) -> "_Connection":
        connection = await asyncpg.connect(
            self._url, timeout=DEADLINE_SECONDS, connection_class=_Connection, **self._options
        )
        # JSON goes into the response unparsed. asyncpg knows this type without a query.
        await connection.set_type_codec(
            "json", schema="pg_catalog", encoder=str, decoder=orjson.Fragment
        )
        return connection

    def _discard(self, connection: "_Connection") -> None:
        """Close a connection in an unknown state in the background, cancelling its statement."""
        closing = asyncio.create_task(_close(connection))
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


def _run(connection: "_Connection", steps: list[Step], deadline: float) -> Fetching:
    """Run all steps, the last one within the deadline, in seconds, and return its rows."""
    if len(steps) > 1:
        return _run_together(connection, steps, deadline)
    sql, values = steps[0]
    return connection.fetch(sql, *values, timeout=deadline)


async def _run_together(
    connection: "_Connection", steps: list[Step], deadline: float
) -> "list[asyncpg.Record]":
    *first, (sql, values) = steps
    # A lock is waited for as long as anything else, whatever its statement may take after that.
    async with asyncio.timeout(DEADLINE_SECONDS) as patience:
        await connection.execute("BEGIN")
        try:
            for sql_before, values_before in first:
                await connection.fetch(sql_before, *values_before)
            patience.reschedule(asyncio.get_running_loop().time() + deadline)
            records = await connection.fetch(sql, *values)
        except asyncpg.PostgresError:
            await connection.execute("ROLLBACK")
            raise
        await connection.execute("COMMIT")
    return records


def _miss(turn: "asyncio.Future[None]") -> None:
    if not turn.done():
        turn.set_exception(TimeoutError())


async def _close(connection: "_Connection") -> None:
    with contextlib.suppress(*_FAILURES):  # a failure closes it too
        await connection.close(timeout=DEADLINE_SECONDS)


@contextlib.asynccontextmanager
async def connect(settings: Settings, url: str) -> AsyncIterator[None]:
    """Run migrations, if so configured, and keep a pool open for `Statement`s.

    Raise `errors.CannotStart` if the database cannot be reached or migrated.
    """
    global _pool  # noqa: PLW0603  (one pool per worker)
    try:
        await run_sync(settings, url, upgrade if settings.migrate_on_start else _check_migrated)
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


def _options(settings: Settings) -> dict[str, Any]:
    """Return asyncpg's options for caching prepared statements: how many, for how many seconds.

    Behind a transaction pooler they do not survive from one transaction to the next. Elsewhere all
    are kept forever (0), because asyncpg closes an evicted one without a timeout.
    """
    size = 0 if settings.database_pooler else 1000
    return {"statement_cache_size": size, "max_cached_statement_lifetime": 0}


def upgrade(connection: Connection) -> None:
    """Migrate to the newest revision; of several workers at once, the first does it."""
    config = Config(toml_file=PROJECT / "pyproject.toml")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _check_migrated(connection: Connection) -> None:
    if not inspect(connection).has_table("alembic_version"):
        line = "MIGRATE_ON_START: is false, and nobody has run `uv run alembic upgrade head`"
        raise errors.CannotStart(line)


async def run_sync(settings: Settings, url: str, function: Callable[[Connection], None]) -> None:
    """Call a function with an SQLAlchemy connection, as Alembic needs one."""
    engine = create_async_engine(
        "postgresql+asyncpg://",
        poolclass=NullPool,
        connect_args={
            "async_creator_fn": lambda **_: asyncpg.connect(
                url, timeout=DEADLINE_SECONDS, **_options(settings)
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
