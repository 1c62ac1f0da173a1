"""Database access: tables and one pool per worker at startup, statements run on it."""

import asyncio
import contextlib
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar, cast

import asyncpg
from alembic.util.exc import CommandError
from sqlalchemy.exc import SQLAlchemyError

import calls
import errors
import servers
import tables
from pool import Limits, Lost, Pool, Refused, Step, User
from settings import PROJECT, Settings
from signals import told_to_stop

Row = TypeVar("Row")
DEADLINE_SECONDS = 5.0  # how long a call waits for the database in all before it gets a 503
START_SECONDS = 30.0  # how long a database that cannot be reached is waited for at startup
RETRY_SECONDS = 1.0
PROBE_SECONDS = 1.0  # how soon a notification arrives where any does
LISTEN_SECONDS = 15.0  # how often a listening connection is probed: else it may be dead unnoticed
ATTEMPTS = 3

_PARAMETER = re.compile(r"(?<![:\w]):([a-z_]+)")
"""A named parameter such as `:owner`; `::` is a cast."""

_WHOSE = ("owner", "session", "email_key", "key")
"""The parameters by which calls share connections fairly: by the first that there is."""

_WRITES = re.compile(r"\b(INSERT|UPDATE|DELETE|MERGE|CALL|nextval|pg_notify)\b", re.IGNORECASE)
"""What no statement contains that may run twice; words that only look like it do no harm."""

logger = logging.getLogger("todo.database")

_pool: "Pool | None" = None


class Waiting:
    """A wait for the database by the current call. All its waits share one time limit.

    Entered, it gives the limits of this one. What runs on once the response has begun, and what
    belongs to no call, has limits of its own.
    """

    __slots__ = ("_began", "_call", "_seconds")  # one is made for each statement

    def __init__(self, seconds: float | None = None) -> None:
        """Let the call wait for so many seconds in all, if that is more than the default."""
        self._seconds = seconds

    def __enter__(self) -> Limits:
        call = calls.current.get()
        self._call = call if call and call.status is None else None
        self._began, begin = time.monotonic(), DEADLINE_SECONDS
        if self._call:
            self._began -= self._call.waited
            begin = self._call.patience or begin
        end = max(begin, self._seconds or begin)
        if self._call:
            self._call.patience = end
        return Limits(self._began + begin, self._began + end)

    def __exit__(self, *_: object) -> None:
        if self._call:
            # Not the sum: some may have been at the same time.
            self._call.waited = max(self._call.waited, time.monotonic() - self._began)


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
        is_own: bool = False,
    ) -> None:
        """Take the text; rows are dictionaries of the type in brackets: `Statement[TaskRead](...)`.

        `after` runs first, in the same transaction, so that this statement's snapshot includes
        what `after` waited for; if it finds no row, this one is left out. `deadline`, in seconds,
        replaces the default for slow statements: for when they end, and then for all that the call
        does after them. Until then, each must begin within the default.
        `is_own` is what keeps the service itself up: it waits behind no user's statements.
        """
        self.text, self.deadline, self.is_own = sql, deadline, is_own
        self.is_read = not _WRITES.search(sql)
        self.steps = (after, self) if after else (self,)
        self.names = tuple(dict.fromkeys(_PARAMETER.findall(sql)))
        # PostgreSQL's own parameters are numbered.
        self.sql = _PARAMETER.sub(lambda found: f"${self.names.index(found[1]) + 1}", sql)
        self._whose = next((name for name in _WHOSE if name in self.names), None)

    async def all(self, **values: Any) -> list[Row]:  # noqa: ANN401  (of any column)
        """Run the statement and return its rows."""
        steps = [(step.sql, [*map(values.__getitem__, step.names)]) for step in self.steps]
        user = None if self.is_own else values[self._whose] if self._whose else ""
        with Waiting(self.deadline) as limits:
            return self.read(await self._fetch(steps, limits, user))

    async def _fetch(self, steps: list[Step], limits: Limits, user: User) -> "list[asyncpg.Record]":
        """Run the steps, again if that is safe. Raise the error that clients get."""
        for _ in range(ATTEMPTS):
            try:
                return await _current_pool().fetch(steps, limits, user)
            except servers.FAILURES as error:
                verdict, state = errors.from_database(error), getattr(error, "sqlstate", None)
                if isinstance(verdict, errors.DatabaseError):
                    raise verdict from None  # `errors` logs it, with its traceback
                if state != "23505":  # nothing is wrong if an email is taken
                    # Log only class and SQLSTATE: the message may quote a row.
                    name = type(error.__cause__ or error).__name__
                    logger.warning("database: %s, SQLSTATE %s", name, state)
                is_safe = isinstance(error, Lost if self.is_read else Refused)
                if not (is_safe or isinstance(verdict, errors.TryAgain)):
                    raise verdict from error
        raise errors.Problem("unavailable")

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


def _current_pool() -> "Pool":
    if _pool is None:
        raise errors.Problem("unavailable")
    return _pool


async def ping(deadline: float) -> None:
    """Check that the database answers.

    Raise `errors.Problem("unavailable")` if it does not within the deadline, in seconds. All
    callers share one attempt, which continues after that: a slow database is still found in the
    end, and many callers add no load.
    """
    attempt = _current_pool().ping(time.monotonic() + DEADLINE_SECONDS)
    done, _ = await asyncio.wait([attempt], timeout=deadline)
    if not done or attempt.cancelled() or attempt.exception():
        raise errors.Problem("unavailable")


async def listen(
    url: str, channel: str, heard: Callable[[str], None], begun: Callable[[], None]
) -> bool:
    """Call `begun` once listening, then `heard` with each payload, until the connection fails.

    Return False if nothing can be heard on it, as through a pooler that was not recognized.
    """
    probe, closed, arrived = uuid.uuid4().hex, asyncio.Event(), asyncio.Event()

    def told(*notification: Any) -> None:  # noqa: ANN401  (its last part is the payload)
        if notification[-1] == probe:
            arrived.set()
        else:
            heard(notification[-1])

    try:
        connection = await servers.connect(url, DEADLINE_SECONDS)
        try:
            connection.add_termination_listener(lambda _: closed.set())
            async with asyncio.timeout(DEADLINE_SECONDS):
                await connection.add_listener(channel, told)
            until = time.monotonic() + DEADLINE_SECONDS
            # Not in Citus, whose workers' notifications do not arrive.
            sql = "SELECT pg_notify($1, $2) WHERE to_regclass('pg_dist_node') IS NULL"
            notify: Step = (sql, [channel, probe])
            await _current_pool().fetch([notify], Limits(until, until), None)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PROBE_SECONDS):
                    await arrived.wait()
            if not arrived.is_set():
                logger.warning("database: notifications do not arrive, so changes are polled for")
                return False
            begun()
            while True:
                with contextlib.suppress(TimeoutError):
                    # Not wait_for: Python 3.11's may lose a cancellation that arrives as it ends.
                    async with asyncio.timeout(LISTEN_SECONDS):
                        await closed.wait()
                await connection.execute("SELECT 1", timeout=DEADLINE_SECONDS)
        finally:
            connection.terminate()
    except servers.FAILURES as error:
        logger.warning("database: cannot listen: %s", type(error).__name__)
        return True


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


@contextlib.asynccontextmanager
async def connect(settings: Settings, url: str) -> AsyncIterator[None]:
    """Migrate, if so configured, and keep a pool open. Raise `errors.CannotStart` if it fails."""
    global _pool  # noqa: PLW0603  (one pool per worker)
    pool = Pool(url, settings)
    opening = asyncio.create_task(_open(pool, url, settings))
    try:
        with told_to_stop(opening.cancel):
            await asyncio.wait([opening])
    finally:
        opening.cancel()  # which is nothing if it is done
    if opening.cancelled():
        raise errors.CannotStart("stopped while it waited for the database")
    opening.result()
    before, _pool = _pool, pool
    try:
        yield
    finally:
        _pool = before
        await pool.close()


async def _open(pool: Pool, url: str, settings: Settings) -> None:
    """Wait until the database can be used."""
    until = time.monotonic() + START_SECONDS
    while not await _opened(pool, url, settings, until):  # noqa: ASYNC110  (of another program)
        await asyncio.sleep(RETRY_SECONDS)


async def _opened(pool: Pool, url: str, settings: Settings, until: float) -> bool:
    """Return whether the database can be used; not yet, if it is starting or cannot be reached.

    Raise `errors.CannotStart` if it never will be, or if the time is over.
    """
    where = ", ".join(servers.hosts(url)) or "a socket"
    try:
        await tables.run_sync(url, tables.upgrade if settings.migrate_on_start else tables.check)
        await pool.open(time.monotonic() + DEADLINE_SECONDS)
    except (*servers.FAILURES, SQLAlchemyError, CommandError, ValueError) as error:
        cause = getattr(error, "orig", None) or error
        reason = str(cause).partition("\n")[0].rpartition(">: ")[2] or type(cause).__name__
        if not _may_pass(cause) or time.monotonic() > until:
            line = f"cannot use the database at {where}: {reason}; see DATABASE_URL"
            raise errors.CannotStart(line) from error
        logger.warning("database: waiting for %s: %s", where, reason)
        return False
    return True


def _may_pass(error: BaseException) -> bool:
    """Return whether a server is starting, full, not promoted yet or out of reach."""
    state = getattr(error, "sqlstate", None)
    passing = isinstance(error, (OSError, asyncpg.InternalClientError))
    return passing or str(state)[:2] in {"08", "53", "57"}


def is_pooled() -> bool:
    """Return whether the database is behind a transaction pooler."""
    return bool(_current_pool().is_pooled)
