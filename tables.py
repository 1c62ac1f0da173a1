"""Bringing the tables to the revision of this version, with Alembic."""

import re
import uuid
from collections.abc import Callable

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

import errors
import servers
from models import Task
from settings import PROJECT

CONNECT_SECONDS = 5.0
_NUMBERED = re.compile(r"v(\d+)")


def upgrade(connection: Connection) -> None:
    """Migrate to the newest revision; of several workers at once, the first does it.

    Raise `errors.CannotStart` if the tables are those of another version or program.
    """
    config = Config(toml_file=PROJECT / "pyproject.toml")
    config.attributes["connection"] = connection
    _revisions(config, connection)
    command.upgrade(config, "head")


def check(connection: Connection) -> None:
    """Raise `errors.CannotStart` unless the tables are at the newest revision."""
    found, wanted = _revisions(Config(toml_file=PROJECT / "pyproject.toml"), connection)
    if found != wanted:
        state = f"the tables are at revision {found}, not {wanted}" if found else "there are none"
        raise errors.CannotStart(
            f"MIGRATE_ON_START: is false, and {state}: run `uv run alembic upgrade head`"
        )


def _revisions(config: Config, connection: Connection) -> tuple[str | None, str]:
    """Return the revisions that the tables have and that they should have.

    Raise `errors.CannotStart` for tables that these migrations do not know; they stay as they are.
    """
    scripts = ScriptDirectory.from_config(config)
    newest = str(scripts.get_current_head())
    with connection.begin():
        # In this order: another worker may make the tables meanwhile.
        is_taken = inspect(connection).has_table(str(Task.__tablename__))
        found = ", ".join(MigrationContext.configure(connection).get_current_heads())
    if is_taken and not found:
        raise errors.CannotStart(
            "DATABASE_URL: this database has a table `tasks` of another program; use an empty one"
        )
    known = {script.revision for script in scripts.walk_revisions()}
    if not found or found in known:
        return found or None, newest
    numbers = [int(number[1]) for name in (found, newest) if (number := _NUMBERED.fullmatch(name))]
    if len(numbers) == 2 and numbers[0] > numbers[1]:
        raise errors.CannotStart(
            f"the tables are at revision {found}, newer than this version, whose is {newest}; "
            "run the newer version"
        )
    raise errors.CannotStart(
        f"the tables are at revision {found}, which this version does not know: they were made "
        "before the first release, or by another program; use an empty database (if it is the "
        "private one, delete .data/)"
    )


async def run_sync(url: str, function: Callable[[Connection], None]) -> None:
    """Call a function with an SQLAlchemy connection, as Alembic needs one."""
    engine = create_async_engine(
        "postgresql+asyncpg://",
        poolclass=NullPool,
        connect_args={
            "async_creator_fn": lambda **_: servers.connect(url, CONNECT_SECONDS),
            # Behind a transaction pooler, another client's statement may have the default name.
            "prepared_statement_name_func": lambda: f"migration_{uuid.uuid4().hex}",
        },
    )
    try:
        async with engine.connect() as connection:
            await connection.run_sync(function)
    finally:
        await engine.dispose()
