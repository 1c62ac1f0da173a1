"""What lets the service run on Citus. Debian has no package of it: see docs/scale.md."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlmodel import SQLModel

import db
import queries
import tables
from settings import Settings
from tests.test_isolation import OWNED, statements

TIME = re.compile(r"\b(now|\w+_timestamp)\(|\binterval\b")


def clauses(sql: str, begin: str) -> Iterator[str]:
    """List what follows each of these words, up to the parenthesis that closes around them."""
    for found in re.finditer(rf"\b{begin}\b", sql):
        depth = 0
        for place in range(found.end(), len(sql)):
            depth += (sql[place] == "(") - (sql[place] == ")")
            if depth < 0:
                yield sql[found.end() : place]
                break
        else:
            yield sql[found.end() :]


def outermost(sql: str) -> str:
    """Leave out what is in parentheses."""
    while sql != (shorter := re.sub(r"\([^()]*\)", "", sql)):
        sql = shorter
    return sql


def faults(sql: str) -> Iterator[str]:
    """Name the forms that Citus refuses."""
    if re.search(r"\b(clock_timestamp|random|gen_random_uuid)\b", sql):
        yield "volatile function"
    if any(
        re.search(r"SELECT|pg_notify", part) or TIME.search(part)
        for part in clauses(sql, "RETURNING")
    ):
        yield "more than columns in RETURNING"
    if any(TIME.search(part.partition("RETURNING")[0]) for part in clauses(sql, "DO UPDATE")):
        yield "time in DO UPDATE"
    updates = [part.partition("WHERE")[0] for part in clauses(sql, "SET")]
    choices = [part for update in updates for part in clauses(update, "CASE")]
    if any(TIME.search(part.partition("END")[0]) for part in choices):
        yield "time in a CASE of UPDATE"
    if any("+ interval" in part.replace("'UTC' + interval", "") for part in updates):
        yield "time with a zone in UPDATE"
    if re.match(r"\s*WITH\b.*\bINSERT\b", outermost(sql), re.DOTALL):
        yield "INSERT outside of WITH"
    if any(
        re.search(r"(?<!:):\w+(?![\w:])", part) for part in clauses(sql, "INSERT INTO revocations")
    ):
        yield "parameter without a type"


def test_no_statement_has_a_form_that_citus_refuses() -> None:
    found = {name: [*faults(statement.text)] for name, statement in statements()}

    assert len(found) > 500
    assert not {name: forms for name, forms in found.items() if forms}


@pytest.mark.parametrize(
    ("sql", "fault"),
    [
        ("UPDATE users SET written_at = clock_timestamp()", "volatile function"),
        ("UPDATE users SET rev = 1 RETURNING now()", "more than columns in RETURNING"),
        ("UPDATE users SET rev = 1 RETURNING pg_notify(id)", "more than columns in RETURNING"),
        ("UPDATE users SET rev = 1 RETURNING id, (SELECT 1)", "more than columns in RETURNING"),
        (
            "INSERT INTO users VALUES (1) ON CONFLICT (id) DO UPDATE SET written_at = now()",
            "time in DO UPDATE",
        ),
        (
            "UPDATE users SET written_at = written_at + interval '1 microsecond'",
            "time with a zone in UPDATE",
        ),
        (
            "UPDATE sessions SET rotated_at = CASE WHEN true THEN now() END",
            "time in a CASE of UPDATE",
        ),
        (
            "WITH bump AS (UPDATE users SET rev = 1) INSERT INTO tasks SELECT rev FROM bump",
            "INSERT outside of WITH",
        ),
        ("INSERT INTO revocations (key) SELECT :key", "parameter without a type"),
    ],
)
def test_each_refused_form_is_found(sql: str, fault: str) -> None:
    assert [*faults(sql)] == [fault]


FOREIGN_KEYS = """
    SELECT conname, conrelid::regclass::text AS of, pg_get_constraintdef(oid) AS definition
    FROM pg_constraint WHERE contype = 'f' ORDER BY 1"""


async def test_every_table_is_distributed_and_keeps_its_foreign_keys(
    empty: Settings, project: Path
) -> None:
    """Run `citus.sql` with functions that only note what they are told."""
    url = str(empty.database_url)
    await tables.run_sync(url, tables.upgrade)
    connection = await asyncpg.connect(url)
    before = await connection.fetch(FOREIGN_KEYS)
    await connection.execute("""
        CREATE TABLE told (name text, of text, beside text);
        CREATE FUNCTION create_reference_table(name text) RETURNS void
        LANGUAGE sql AS 'INSERT INTO told VALUES (name)';
        CREATE FUNCTION create_distributed_table(name text, of text, colocate_with text)
        RETURNS void LANGUAGE sql AS 'INSERT INTO told VALUES (name, of, colocate_with)'""")

    await connection.execute((project / "citus.sql").read_text())

    told = {row["name"]: row["of"] for row in await connection.fetch("SELECT * FROM told")}
    assert told.keys() == SQLModel.metadata.tables.keys()
    assert told == dict.fromkeys(told) | OWNED | {"emails": None}
    after = await connection.fetch(FOREIGN_KEYS)
    assert after == [row for row in before if row["of"] != "emails"]
    await connection.close()


async def test_changes_are_polled_for_because_workers_tell_nobody(empty: Settings) -> None:
    url = str(empty.database_url)

    async with db.connect(empty, url):
        connection = await asyncpg.connect(url)
        await connection.execute("CREATE TABLE pg_dist_node (nodeid int)")  # as Citus has one
        async with asyncio.timeout(10):
            is_heard = await db.listen(url, queries.CHANNEL, print, print)
        await connection.close()

        watched = await queries.WATCH.one(owner="ada")
        told = await db.Statement[Any]("SELECT watched_until FROM users").all()

    assert not is_heard
    assert watched == {"rev": 0}
    assert told == [{"watched_until": None}]


async def test_it_plans_for_each_owner(empty: Settings) -> None:
    url = str(empty.database_url)
    connection = await asyncpg.connect(url)
    await connection.execute("CREATE TABLE pg_dist_node ()")  # by which Citus is known
    await connection.close()
    show = db.Statement[dict[str, str]]("SELECT current_setting('plan_cache_mode') AS mode")

    async with db.connect(empty, url):
        assert await show.one() == {"mode": "auto"}
