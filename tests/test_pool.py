"""Connections are shared, given up when they hang, and replaced when they are old."""

import asyncio
import time

import asyncpg
import pytest

import db
from tests.conftest import Person
from tests.test_tasks import create

SIZE = 10


async def connections(database: db.Database) -> set[int]:
    """Find the server's processes for the connections of the service."""
    connection = await asyncpg.connect(database.url)
    rows = await connection.fetch(
        "SELECT pid FROM pg_stat_activity WHERE query ~ 'tasks' AND pid <> pg_backend_pid()"
    )
    await connection.close()
    return {row["pid"] for row in rows}


async def test_more_requests_than_connections_wait_for_their_turn(ada: Person) -> None:
    path = f"/api/tasks/{(await create(ada))['id']}"

    answers = await asyncio.gather(*(ada.get(path) for _ in range(5 * SIZE)))

    assert {answer.status_code for answer in answers} == {200}


async def test_when_all_connections_hang_it_says_so_in_time_and_recovers(
    ada: Person, database: db.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = await create(ada)
    path = f"/api/tasks/{task['id']}"
    blocker = await asyncpg.connect(database.url)
    monkeypatch.setattr(db, "DEADLINE_SECONDS", 0.5)

    async with blocker.transaction():
        await blocker.execute("SELECT FROM tasks WHERE id = $1 FOR UPDATE", task["id"])
        toggles = [asyncio.create_task(ada.patch(f"{path}/complete")) for _ in range(SIZE)]
        await asyncio.sleep(0.1)
        monkeypatch.setattr(db, "DEADLINE_SECONDS", 0.2)
        started = time.monotonic()
        late = await ada.get(path)
        assert time.monotonic() - started < 0.5
        answers = await asyncio.gather(*toggles)
    await blocker.close()

    assert {answer.status_code for answer in (late, *answers)} == {503}
    assert {answer.headers["Retry-After"] for answer in (late, *answers)} == {"1"}
    assert (await ada.get(path)).json() == task, "what was given up was stopped, too"


async def test_a_connection_that_was_silent_for_long_is_replaced(
    ada: Person, database: db.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create(ada)
    before = await connections(database)
    monkeypatch.setattr(db, "MAX_IDLE_SECONDS", 0)

    await create(ada)

    after = await connections(database)
    assert len(after) == 1
    assert not after & before


async def test_a_connection_that_the_server_closed_is_replaced(
    ada: Person, database: db.Database
) -> None:
    task = await create(ada)
    other = await asyncpg.connect(database.url)
    for pid in await connections(database):
        await other.execute("SELECT pg_terminate_backend($1)", pid)
    await other.close()
    await asyncio.sleep(0.2)

    assert (await ada.get(f"/api/tasks/{task['id']}")).json() == task
