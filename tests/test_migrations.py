"""The tables: made at startup, by whoever comes first, and equal to the models."""

import asyncio
import shutil
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import alembic.config
import asyncpg
import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Column, Connection, MetaData, Table
from sqlmodel import AutoString, SQLModel

import db
import errors
import queries
import tables
from settings import Settings
from tests.conftest import SECRET


def config(connection: Connection, project: Path) -> Config:
    """Configure Alembic as the service does."""
    made = Config(toml_file=project / "pyproject.toml")
    made.attributes["connection"] = connection
    return made


async def test_the_models_equal_the_migrations(
    configured: Settings, app: object, project: Path
) -> None:
    assert app

    def check(connection: Connection) -> None:
        command.check(config(connection, project))

    await tables.run_sync(str(configured.database_url), check)


async def test_migrations_can_be_undone_and_done_again(empty: Settings, project: Path) -> None:
    def there_and_back(connection: Connection) -> None:
        for go, revision in ((command.upgrade, "head"), (command.downgrade, "base")) * 2:
            go(config(connection, project), revision)

    await tables.run_sync(str(empty.database_url), there_and_back)


async def test_four_processes_at_once_all_come_up(empty: Settings, project: Path) -> None:
    environment = {"DATABASE_URL": str(empty.database_url), "BETTER_AUTH_SECRET": SECRET}
    start = (
        "import asyncio, settings, tables; loaded = settings.load();"
        "asyncio.run(tables.run_sync(loaded.database_url, tables.upgrade))"
    )

    started = [
        subprocess.Popen([sys.executable, "-c", start], cwd=project, env=environment)
        for _ in range(4)
    ]

    assert [process.wait(60) for process in started] == [0] * 4


async def test_migrations_wait_for_their_turn(empty: Settings) -> None:
    url = str(empty.database_url)
    other = await asyncpg.connect(url)
    await other.execute("SELECT pg_advisory_lock(28880)")  # LOCK of migrations/env.py

    upgrade = asyncio.create_task(tables.run_sync(url, tables.upgrade))
    await asyncio.sleep(0.5)

    assert not upgrade.done()
    assert await other.fetchval("SELECT to_regclass('tasks')") is None
    await other.execute("SELECT pg_advisory_unlock(28880)")
    await upgrade
    assert await other.fetchval("SELECT to_regclass('tasks')") == "tasks"
    await other.close()


@pytest.mark.parametrize(
    ("rule", "table", "row"),
    [
        ("users_id", "users", {"id": ""}),
        ("users_id", "users", {"id": "x" * 261}),
        ("users_email", "users", {"id": "x", "email": "x" * 255}),
        ("users_email", "users", {"id": "x", "email": ""}),
        ("users_name", "users", {"id": "x", "name": "x" * 101}),
        ("users_name", "users", {"id": "x", "name": ""}),
        ("tasks_title", "tasks", {"title": "", "title_key": ""}),
        ("tasks_title", "tasks", {"title": "x" * 201, "title_key": "x"}),
        ("tasks_description", "tasks", {"title": "x", "title_key": "x", "description": "x" * 1001}),
        ("tasks_priority", "tasks", {"title": "x", "title_key": "x", "priority": "urgent"}),
        ("tasks_due_is_day", "tasks", {"title": "x", "title_key": "x", "due_is_day": True}),
        ("tags_name_length", "tags", {"name": "", "name_key": ""}),
        ("tags_name_length", "tags", {"name": "x" * 51, "name_key": "x"}),
        ("tags_color", "tags", {"name": "x", "name_key": "x", "color": "#22AA66"}),
        ("tags_color", "tags", {"name": "x", "name_key": "x", "color": "#22aa66\n"}),
    ],
)
async def test_the_tables_have_rules_of_their_own(
    database: db.Database, app: object, rule: str, table: str, row: dict[str, Any]
) -> None:
    assert app
    other = await asyncpg.connect(database.url)
    await other.execute("INSERT INTO users (id) VALUES ('rules') ON CONFLICT DO NOTHING")
    row = row if table == "users" else {"user_id": "rules", **row}
    places = ", ".join(f"${number}" for number in range(1, len(row) + 1))

    with pytest.raises(asyncpg.CheckViolationError) as refused:
        await other.execute(
            f"INSERT INTO {table} ({', '.join(row)}) VALUES ({places})", *row.values()
        )

    assert refused.value.constraint_name == rule
    await other.close()


def test_alembics_own_command_line_works(
    empty: Settings, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", str(empty.database_url))
    monkeypatch.setenv("BETTER_AUTH_SECRET", SECRET)

    def alembic_main(*arguments: str) -> None:
        alembic.config.main(["--config", str(project / "pyproject.toml"), *arguments])

    with pytest.raises(SystemExit):
        alembic_main("check")
    alembic_main("upgrade", "head")
    alembic_main("check")


def test_a_made_revision_runs_and_passes_the_linter(
    empty: Settings, project: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", str(empty.database_url))
    monkeypatch.setenv("BETTER_AUTH_SECRET", SECRET)
    tables = MetaData()
    for table in SQLModel.metadata.tables.values():
        table.to_metadata(tables)
    Table("notes", tables, Column("text", AutoString(), nullable=False))
    monkeypatch.setattr(SQLModel, "metadata", tables)
    versions = shutil.copytree(project / "migrations/versions", folder / "versions")
    made = Config(toml_file=project / "pyproject.toml")
    made.set_main_option("path_separator", "os")
    made.set_main_option("version_locations", str(versions))

    command.upgrade(made, "head")
    command.revision(made, "Add notes", autogenerate=True, rev_id="made")
    command.upgrade(made, "head")
    command.check(made)

    path = versions / "made_add_notes.py"
    for options in (["check", "--fix", "--ignore", "INP001"], ["format"]):
        ruff = [sys.executable, "-m", "ruff", *options, "--config", str(project / "pyproject.toml")]
        subprocess.run([*ruff, str(path)], check=True)
    assert "sa.String()" in path.read_text()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u@127.0.0.1:1/d",
        "postgresql:///d?host=/nonexistent",
        "postgresql://u@127.0.0.1:1/d?sslmode=nonsense",
    ],
)
@pytest.mark.parametrize("migrate", [True, False])
async def test_a_database_out_of_reach_ends_the_start_with_one_line(
    url: str, migrate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "START_SECONDS", 0.1)
    settings = Settings(database_url=url, better_auth_secret=SECRET, migrate_on_start=migrate)

    with pytest.raises(
        errors.CannotStart, match=r"^cannot use the database at .+: .+; see DATABASE_URL$"
    ):
        async with db.connect(settings, url):
            pass


@pytest.mark.parametrize("migrate", [True, False])
@pytest.mark.parametrize("revision", ["0006", "newer", "v1, v1"])
async def test_tables_of_an_unknown_revision_end_the_start_and_are_left_alone(
    empty: Settings, revision: str, migrate: bool
) -> None:
    url = str(empty.database_url)
    await tables.run_sync(url, tables.upgrade)
    connection = await asyncpg.connect(url)
    await connection.execute("ALTER TABLE alembic_version DROP CONSTRAINT alembic_version_pkc")
    await connection.execute("DELETE FROM alembic_version")
    for number in revision.split(", "):
        await connection.execute("INSERT INTO alembic_version VALUES ($1)", number)
    settings = empty.model_copy(update={"migrate_on_start": migrate})

    with pytest.raises(errors.CannotStart, match=rf"^the tables are at revision {revision}, "):
        async with db.connect(settings, url):
            pass

    rows = await connection.fetch("SELECT version_num FROM alembic_version")
    assert ", ".join(row["version_num"] for row in rows) == revision
    await connection.close()


async def test_a_role_that_may_only_create_tables_is_enough(empty: Settings) -> None:
    admin = urlsplit(str(empty.database_url))
    connection = await asyncpg.connect(admin.geturl())
    role = f"role_{uuid.uuid4().hex}"
    await connection.execute(f"CREATE ROLE {role} LOGIN; GRANT CREATE ON SCHEMA public TO {role}")
    url = admin._replace(netloc=f"{role}@").geturl()

    async with db.connect(empty, url):
        assert await queries.LIST_TAGS.all(owner="ada") == []

    await connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
    await connection.close()


async def test_tables_are_left_alone_where_the_setting_says_so(empty: Settings) -> None:
    settings = empty.model_copy(update={"migrate_on_start": False})

    with pytest.raises(
        errors.CannotStart, match=r"MIGRATE_ON_START: is false, and there are none: run"
    ):
        async with db.connect(settings, str(empty.database_url)):
            pass

    connection = await asyncpg.connect(str(empty.database_url))
    assert await connection.fetchval("SELECT to_regclass('tasks')") is None
    await connection.close()
    for ready in (empty, settings):
        async with db.connect(ready, str(empty.database_url)):
            assert await queries.LIST_TAGS.all(owner="ada") == []


async def test_tables_of_a_newer_version_and_of_another_program_have_sentences_of_their_own(
    empty: Settings,
) -> None:
    url = str(empty.database_url)
    connection = await asyncpg.connect(url)
    await connection.execute("CREATE TABLE tasks (id int)")
    for settings in (empty, empty.model_copy(update={"migrate_on_start": False})):
        with pytest.raises(errors.CannotStart, match="a table `tasks` of another program"):
            async with db.connect(settings, url):
                pass
    await connection.execute("DROP TABLE tasks")
    await tables.run_sync(url, tables.upgrade)
    await connection.execute("UPDATE alembic_version SET version_num = 'v99'")
    for settings in (empty, empty.model_copy(update={"migrate_on_start": False})):
        with pytest.raises(
            errors.CannotStart, match=r"at revision v99, newer than .* is v\d+; run"
        ):
            async with db.connect(settings, url):
                pass
    await connection.close()
