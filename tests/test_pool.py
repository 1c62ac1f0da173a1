"""Connections are shared, given up when they hang, and replaced when they are old."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

import asyncpg
import pytest
from starlette.types import Message, Receive, Scope, Send

import db
import pool
import queries
from errors import Problem
from middleware import Envelope
from pool import Pool
from routes import health
from settings import Settings
from tests.conftest import WAITING, Person, until_waiting
from tests.test_tasks import create

SIZE = 10


async def connections(database: db.Database) -> set[int]:
    """Find the server's processes for the connections of the service."""
    connection = await asyncpg.connect(database.url)
    rows = await connection.fetch(
        "SELECT pid FROM pg_stat_activity"
        " WHERE query ~ 'tasks|revocations' AND pid <> pg_backend_pid()"
    )
    await connection.close()
    return {row["pid"] for row in rows}


async def test_more_requests_than_connections_wait_for_their_turn(ada: Person) -> None:
    path = f"/api/tasks/{(await create(ada))['id']}"

    answers = await asyncio.gather(*(ada.get(path) for _ in range(5 * SIZE)))

    assert {answer.status_code for answer in answers} == {200}


async def test_a_statement_after_one_that_finds_nothing_is_left_out(ada_id: str) -> None:
    find = db.Statement[dict[str, str]]("SELECT id FROM users WHERE id = :owner")
    insert = db.Statement[dict[str, str]](
        "INSERT INTO users (id) VALUES (:owner) RETURNING id", after=find
    )

    assert await insert.first(owner=ada_id) is None
    assert await find.first(owner=ada_id) is None


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
        await asyncio.sleep(0.3)  # the server is told to stop them after they were answered
    await blocker.close()

    assert {answer.status_code for answer in (late, *answers)} == {503}
    assert {answer.headers["Retry-After"] for answer in (late, *answers)} == {"1"}
    assert (await ada.get(path)).json() == task, "what was given up was stopped, too"


async def test_turn_and_statement_share_one_deadline(
    ada: Person, configured: Settings, database: db.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"/api/tasks/{(await create(ada))['id']}/complete"
    monkeypatch.setattr(db, "DEADLINE_SECONDS", 1.0)
    blocker = await asyncpg.connect(database.url)
    async with (
        db.connect(configured.model_copy(update={"database_pool_size": 1}), database.url),
        blocker.transaction(),
    ):
        await blocker.execute("LOCK TABLE tasks")
        first = asyncio.create_task(ada.patch(path))
        await asyncio.sleep(0.5)
        started = time.monotonic()
        second = await ada.patch(path)  # it gets its turn when the first is given up
        seconds = time.monotonic() - started

    await blocker.close()
    assert {(await first).status_code, second.status_code} == {503}
    assert 0.9 < seconds < 1.3


async def test_the_statements_of_a_call_share_one_deadline(
    app: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert app
    monkeypatch.setattr(db, "DEADLINE_SECONDS", 0.5)
    slow = db.Statement[dict[str, str]]("SELECT pg_sleep(0.3)")

    clock = db.start_clock()
    await slow.all()
    with pytest.raises(Problem):
        await asyncio.create_task(slow.all())
    clock.is_running = False  # the answer has begun
    await slow.all()
    await asyncio.create_task(slow.all())


@pytest.mark.parametrize("begun", ["http.response.start", "websocket.accept", None])
async def test_what_runs_on_after_the_answer_has_begun_has_deadlines_of_its_own(
    app: object, monkeypatch: pytest.MonkeyPatch, begun: str | None
) -> None:
    assert app
    monkeypatch.setattr(db, "DEADLINE_SECONDS", 0.5)
    slow = db.Statement[dict[str, str]]("SELECT pg_sleep(0.3)")

    async def run_on(_: Scope, __: Receive, send: Send) -> None:
        if begun:
            await send({"type": begun, "status": 200, "headers": []})
        await slow.all()
        await asyncio.create_task(slow.all())

    async def ignore(_: Message) -> None:
        pass

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    with contextlib.nullcontext() if begun else pytest.raises(Problem):
        await Envelope(run_on)(scope, pytest.fail, ignore)


async def test_what_may_take_long_does_not_wait_for_long(
    ada: Person, ada_id: str, database: db.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create(ada)
    blocker = await asyncpg.connect(database.url)
    monkeypatch.setattr(db, "DEADLINE_SECONDS", 0.2)

    async with blocker.transaction():
        await blocker.execute("SELECT FROM users WHERE id = $1 FOR NO KEY UPDATE", ada_id)
        async with asyncio.timeout(2):
            answer = await ada.delete("/api/tasks?status=all")
    await blocker.close()

    assert answer.status_code == 503
    assert (await ada.delete("/api/tasks?status=all")).json() == {"deleted": 1}


async def test_a_statement_whose_answer_a_migration_has_changed_is_prepared_again(
    ada: Person, database: db.Database
) -> None:
    task = await create(ada)
    migration = await asyncpg.connect(database.url)

    await migration.execute("ALTER TABLE tasks ALTER COLUMN title TYPE varchar(200)")
    try:
        answers = [await ada.get(f"/api/tasks/{task['id']}") for _ in range(SIZE)]
    finally:
        await migration.execute("ALTER TABLE tasks ALTER COLUMN title TYPE text")
        await migration.close()

    assert [answer.json() for answer in answers] == [task] * SIZE


async def test_what_a_call_waits_for_but_the_database_does_not_count(
    ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "DEADLINE_SECONDS", 0.2)

    async def slowly() -> AsyncIterator[bytes]:
        for part in (b'{"title": ', b'"x"}'):
            await asyncio.sleep(0.2)
            yield part

    answer = await ada.post(
        "/api/tasks", content=slowly(), headers={"Content-Type": "application/json"}
    )

    assert answer.status_code == 201


async def test_there_are_as_many_connections_as_the_setting_says(
    configured: Settings, database: db.Database
) -> None:
    async with db.connect(configured.model_copy(update={"database_pool_size": 2}), database.url):
        find = db.Statement[dict[str, str]]("SELECT pg_backend_pid() AS pid FROM pg_sleep(0.05)")
        found = await asyncio.gather(*(find.all() for _ in range(6)))

    assert len({row["pid"] for rows in found for row in rows}) == 2


@pytest.mark.parametrize("pooler", [True, False])
async def test_through_a_pooler_no_statement_stays_prepared(
    configured: Settings, database: db.Database, pooler: bool
) -> None:
    settings = configured.model_copy(update={"database_pooler": pooler})
    async with db.connect(settings, database.url):
        await queries.GET_TASK.first(owner="ada", task_id=1)
        find = db.Statement[dict[str, str]](
            "SELECT name FROM pg_prepared_statements WHERE name <> ''"
        )
        kept = await find.all()

    assert bool(kept) is not pooler


async def test_a_connection_that_was_silent_for_long_is_replaced(
    ada: Person, database: db.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create(ada)
    before = await connections(database)
    monkeypatch.setattr(pool, "MAX_IDLE_SECONDS", 0)

    await create(ada)

    after = await connections(database)
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


async def test_a_connection_that_lost_its_statements_is_replaced(ada: Person) -> None:
    """As behind a transaction pooler that nobody told us of."""
    task = await create(ada)
    await db.Statement[dict[str, str]]("DEALLOCATE ALL").all()

    assert (await ada.get(f"/api/tasks/{task['id']}")).json() == task


async def test_a_connection_to_a_server_that_became_read_only_is_replaced(ada: Person) -> None:
    """As after a failover, when the name leads to another server by now."""
    await db.Statement[dict[str, str]]("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY").all()

    answers = [await ada.post("/api/tasks", json={"title": "x"}) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [503, 201]


async def test_a_database_that_lets_nobody_in_is_unavailable(
    ada: Person, database: db.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "MAX_IDLE_SECONDS", 0)  # every statement needs a new connection
    other = await asyncpg.connect(database.url.replace("/postgres?", "/template1?"))
    await other.execute("ALTER DATABASE postgres ALLOW_CONNECTIONS false")
    try:
        answers = [await ada.get(path) for path in ("/api/tasks", "/health/ready")]
    finally:
        await other.execute("ALTER DATABASE postgres ALLOW_CONNECTIONS true")
        await other.close()

    assert [answer.status_code for answer in answers] == [503, 503]


async def test_many_who_ask_whether_it_is_ready_watch_one_attempt(
    client: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "PING_SECONDS", db.DEADLINE_SECONDS)  # on a busy machine, too
    assert db._pool  # noqa: SLF001
    until = time.monotonic() + db.DEADLINE_SECONDS
    attempts = {db._pool.ping(until) for _ in range(50)}  # noqa: SLF001

    answers = await asyncio.gather(*(client.get("/health/ready") for _ in range(50)))

    assert {answer.status_code for answer in answers} == {200}
    assert len(attempts) == 1


async def test_many_bulk_changes_leave_connections_to_others(
    ada: Person, bob: Person, ada_id: str, database: db.Database
) -> None:
    await create(ada)
    blocker = await asyncpg.connect(database.url)
    transaction = blocker.transaction()
    await transaction.start()
    await blocker.execute("SELECT FROM users WHERE id = $1 FOR NO KEY UPDATE", ada_id)
    calls = [asyncio.create_task(ada.delete("/api/tasks?status=all")) for _ in range(SIZE + 2)]
    async with asyncio.timeout(5):
        await until_waiting(blocker, SIZE // 2)

    others = await asyncio.gather(*(bob.get("/api/tasks") for _ in range(SIZE)))
    waiting = await blocker.fetchval(WAITING)
    await transaction.commit()
    await blocker.close()

    assert {answer.status_code for answer in others} == {200}
    assert waiting == SIZE // 2
    assert {answer.status_code for answer in await asyncio.gather(*calls)} == {200}


async def test_bulk_changes_of_one_user_do_not_deadlock(
    ada: Person, log_lines: Callable[[], str]
) -> None:
    await asyncio.gather(*(create(ada) for _ in range(300)))

    answers = await asyncio.gather(
        *(
            ada.patch("/api/tasks?status=all", json={"completed": number % 2 == 0})
            for number in range(40)
        )
    )

    assert {answer.status_code for answer in answers} == {200}
    assert "40P01" not in log_lines()


async def test_making_one_tag_in_two_ways_does_not_deadlock(
    ada: Person, ada_id: str, database: db.Database, log_lines: Callable[[], str]
) -> None:
    await create(ada)
    other = await asyncpg.connect(database.url)
    async with other.transaction():
        await other.execute("SELECT FROM users WHERE id = $1 FOR UPDATE", ada_id)
        calls = []
        for path, body in [
            ("/api/tasks", {"title": "x", "tags": ["home"]}),
            ("/api/tags", {"name": "home"}),
        ]:
            calls.append(asyncio.create_task(ada.post(path, json=body)))
            await asyncio.sleep(0.2)  # now it waits
    answers = await asyncio.gather(*calls)
    await other.close()

    assert [answer.status_code for answer in answers] == [201, 409]
    assert "40P01" not in log_lines()


async def test_a_turn_that_nobody_takes_any_more_is_passed_on(configured: Settings) -> None:
    pool = Pool("", configured.model_copy(update={"database_pool_size": 1}))
    soon = time.monotonic() + 1
    await pool._enter(soon)  # noqa: SLF001

    waiting = [asyncio.create_task(pool._enter(soon)) for _ in range(2)]  # noqa: SLF001
    await asyncio.sleep(0)
    waiting[0].cancel()  # while it waits
    await asyncio.sleep(0)
    pool._leave()  # noqa: SLF001
    waiting[1].cancel()  # when its turn has just come
    results = await asyncio.gather(*waiting, return_exceptions=True)

    assert [type(result) for result in results] == [asyncio.CancelledError] * 2
    await asyncio.wait_for(pool._enter(soon), 0.1)  # noqa: SLF001


async def test_a_turn_that_comes_with_the_deadline_is_taken(configured: Settings) -> None:
    pool = Pool("", configured.model_copy(update={"database_pool_size": 1}))
    soon = time.monotonic() + 1
    await pool._enter(soon)  # noqa: SLF001

    waiting = asyncio.create_task(pool._enter(time.monotonic() + 0.01))  # noqa: SLF001
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_soon(pool._leave)  # noqa: SLF001
    time.sleep(0.02)
    await waiting

    with pytest.raises(TimeoutError):
        await pool._enter(time.monotonic() + 0.01)  # noqa: SLF001


async def test_who_comes_too_late_takes_no_turn(configured: Settings) -> None:
    pool = Pool("", configured.model_copy(update={"database_pool_size": 1}))
    await pool._enter(time.monotonic() + 1)  # noqa: SLF001

    with pytest.raises(TimeoutError):
        await pool._enter(time.monotonic() - 1)  # noqa: SLF001
    pool._leave()  # noqa: SLF001

    await pool._enter(time.monotonic() + 0.1)  # noqa: SLF001
