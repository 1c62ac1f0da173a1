"""The database: tables at startup, one pool a worker, and statements compiled once."""

import contextlib
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar, cast

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError
from sqlalchemy import ClauseElement, Connection
from sqlalchemy.dialects.postgresql.asyncpg import dialect
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool
from sqlalchemy.sql.compiler import SQLCompiler

import errors
from settings import PROJECT, Settings

Row = TypeVar("Row")

DEADLINE_SECONDS = 5.0
"""How long a request waits for a free connection, and then for the answer, before it is a 503."""

ATTEMPTS = 3
_FAILURES = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError)
_DIALECT = dialect()  # type: ignore[no-untyped-call]

_pool: "asyncpg.Pool[asyncpg.Record] | None" = None


class Statement(Generic[Row]):
    """One SQL statement, written with SQLAlchemy, compiled once, run by asyncpg.

    A statement is a transaction of its own: it happens whole or not at all, and when a method
    returns it is committed. Values are given by the names of the statement's parameters, all of
    them each time.

    Every method raises `Problem("unavailable")` where the database cannot be reached in time.
    What a failed write did is then unknown to the caller, as it is to the client.
    """

    def __init__(
        self,
        statement: ClauseElement,
        row: type[Row],  # noqa: ARG002  (tells mypy)
        *,
        writes: Iterable[str] | None = None,
    ) -> None:
        """Compile a statement whose rows are dictionaries of the type `row`.

        `writes` names the columns that an INSERT or UPDATE takes as values of the same names.
        """
        compiled = statement.compile(dialect=_DIALECT, column_keys=writes and list(writes))
        assert isinstance(compiled, SQLCompiler)  # noqa: S101  (tells mypy)
        self.sql = str(compiled)
        self.names = tuple(compiled.positiontup or ())

    async def all(self, **values: Any) -> list[Row]:  # noqa: ANN401
        """Run the statement and return its rows."""
        arguments = [values[name] for name in self.names]
        for _ in range(ATTEMPTS):
            try:
                records = await _fetch(self.sql, arguments, DEADLINE_SECONDS)
            except _FAILURES as error:
                verdict = errors.from_database(error)
                if not isinstance(verdict, errors.TryAgain):
                    raise verdict from error
            else:
                return cast("list[Row]", [dict(record) for record in records])
        raise errors.Problem("unavailable")

    async def first(self, **values: Any) -> Row | None:  # noqa: ANN401
        """Run the statement and return its first row, if there is one."""
        rows = await self.all(**values)
        return rows[0] if rows else None

    async def one(self, **values: Any) -> Row:  # noqa: ANN401
        """Run a statement that always has one row, and return it."""
        (row,) = await self.all(**values)
        return row


async def _fetch(sql: str, values: list[Any], deadline: float) -> "list[asyncpg.Record]":
    if _pool is None:
        raise asyncpg.InterfaceError("the pool is not open")
    async with _pool.acquire(timeout=deadline) as connection:
        return await connection.fetch(sql, *values, timeout=deadline)


async def ping(deadline: float) -> None:
    """Ask the database for a sign of life.

    Raises `errors.Problem("unavailable")` where it gives none within the deadline, in seconds,
    which is also given to waiting for a connection before, and for the end of the attempt after.
    """
    try:
        await _fetch("SELECT 1", [], deadline)
    except _FAILURES as error:
        raise errors.Problem("unavailable") from error


class Database(NamedTuple):
    """Where the data are, and the secret that tokens are signed with."""

    url: str
    secret: str


@contextlib.contextmanager
def locate(settings: Settings) -> Iterator[Database]:
    """Give the database of `DATABASE_URL`, or run one of our own for as long as it is used.

    Raises `errors.CannotStart` where the embedded one cannot be started.
    """
    if settings.database_url and settings.better_auth_secret:
        yield Database(settings.database_url, settings.better_auth_secret)
        return
    import embedded  # noqa: PLC0415  (it needs fcntl, which Windows has not)

    with embedded.postgres(PROJECT / ".data") as server:
        yield Database(server.url, settings.better_auth_secret or server.secret)


@contextlib.asynccontextmanager
async def connect(settings: Settings, url: str) -> AsyncIterator[None]:
    """Bring the tables to head and keep a pool open for `Statement`s.

    Raises `errors.CannotStart` where the database cannot be reached or the tables cannot be made.
    """
    global _pool  # noqa: PLW0603
    try:
        if settings.migrate_on_start:
            await run_sync(settings, url, upgrade)
        pool = await asyncpg.create_pool(
            url,
            min_size=1,
            max_size=settings.database_pool_size,
            # The default reset costs a round trip a request; statements leave no session state.
            reset=_leave_as_it_is,
            **_options(settings),
        )
    except (*_FAILURES, SQLAlchemyError, CommandError, ValueError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise errors.CannotStart(f"cannot use the database: {reason}; see DATABASE_URL") from error
    async with pool:
        before, _pool = _pool, pool
        try:
            yield
        finally:
            _pool = before


async def _leave_as_it_is(_: object) -> None:
    pass


def _options(settings: Settings) -> dict[str, Any]:
    """Tell asyncpg that a transaction pooler keeps no prepared statement between two of ours."""
    options: dict[str, Any] = {"timeout": DEADLINE_SECONDS}
    if settings.database_pooler:
        options["statement_cache_size"] = 0
    return options


def upgrade(connection: Connection) -> None:
    """Bring the tables to the newest revision; of several workers at once, the first does it."""
    config = Config(toml_file=PROJECT / "pyproject.toml")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


async def run_sync(settings: Settings, url: str, function: Callable[[Connection], None]) -> None:
    """Call a function with an SQLAlchemy connection, for what Alembic does."""
    engine = create_async_engine(
        "postgresql+asyncpg://",
        poolclass=NullPool,
        connect_args={
            "async_creator_fn": lambda **_: asyncpg.connect(url, **_options(settings)),
            # Through a transaction pooler another client's statement may carry the usual name.
            "prepared_statement_name_func": lambda: f"migration_{uuid.uuid4().hex}",
        },
    )
    try:
        async with engine.connect() as connection:
            await connection.run_sync(function)
    finally:
        await engine.dispose()
