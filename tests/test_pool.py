"""Connections are shared, given up when they hang, and replaced when they are old."""

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg
import httpx
import pytest
from fastapi import FastAPI
from starlette.types import Message, Receive, Scope, Send

import calls
import db
import pool
import queries
from errors import Problem
from middleware import Envelope
from revocations import Revocations
from routes import health
from settings import Settings
from tests.conftest import WAITING, Person, one_connection, token, until_waiting
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

    call = calls.Call("", {}, "")
    calls.current.set(call)
    await slow.all()
    with pytest.raises(Problem):
        await asyncio.create_task(slow.all())
    call.status = 200  # the answer has begun
    await slow.all()
    await asyncio.create_task(slow.all())


@pytest.mark.usefixtures("ada")
async def test_a_statement_that_may_take_long_leaves_its_call_time_for_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(db, "DEADLINE_SECONDS", 0.3)
    slow = db.Statement[dict[str, str]]("SELECT pg_sleep(0.6)", deadline=0.9)
    quick = db.Statement[dict[str, str]]("SELECT pg_sleep(0.1)")

    calls.current.set(calls.Call("", {}, ""))
    await slow.all()
    await quick.all()
    with pytest.raises(Problem):
        await slow.all()


async def test_whoever_waits_for_the_first_revocations_has_no_more_time_than_others(
    app: FastAPI, database: db.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "DEADLINE_SECONDS", 1.0)
    slow = db.Statement[dict[str, str]]("SELECT pg_sleep(0.7)")
    revocations = Revocations(app.state.settings)  # nobody has called it yet
    claims = app.state.verifier.claims(token(sub="ada"))

    async def serve() -> None:
        calls.current.set(calls.Call("", {}, ""))
        await revocations.check(claims)
        await slow.all()

    async def answers() -> list[BaseException | None]:
        return [*await asyncio.gather(serve(), serve(), return_exceptions=True)]

    blocker = await asyncpg.connect(database.url)
    async with revocations.kept_up():
        async with blocker.transaction():
            await blocker.execute("LOCK TABLE revocations")
            served = asyncio.create_task(answers())
            await asyncio.sleep(0.6)
        assert [type(answer) for answer in await served] == [Problem, Problem]

    revocations = Revocations(app.state.settings)
    async with blocker.transaction(), revocations.kept_up(), asyncio.timeout(2):
        await blocker.execute("LOCK TABLE revocations")
        assert [type(answer) for answer in await answers()] == [Problem, Problem]
    await blocker.close()


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
        find = db.Statement[dict[str, str]](
            "SELECT pg_backend_pid() AS pid FROM pg_sleep(0.05) WHERE :owner <> ''"
        )
        found = await asyncio.gather(*(find.all(owner=str(number)) for number in range(6)))

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
    configured: Settings, database: db.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with db.connect(configured, database.url):
        find = db.Statement[dict[str, int]]("SELECT pg_backend_pid() AS pid")
        before = await find.one()
        assert await find.one() == before
        monkeypatch.setattr(pool, "MAX_IDLE_SECONDS", 0.1)
        await asyncio.sleep(0.2)

        assert await find.one() != before


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


async def test_a_read_whose_connection_dies_is_read_again_but_no_write_is_repeated(
    ada: Person, database: db.Database
) -> None:
    task = await create(ada)
    await asyncio.gather(*(ada.get("/api/tasks") for _ in range(SIZE)))  # some are idle
    blocker = await asyncpg.connect(database.url)
    transaction = blocker.transaction()
    await transaction.start()
    await blocker.execute("LOCK TABLE tasks")
    read = asyncio.create_task(ada.get(f"/api/tasks/{task['id']}"))
    write = asyncio.create_task(ada.post("/api/tasks", json={"title": "x"}))
    async with asyncio.timeout(4):
        await until_waiting(blocker, 2)

    await blocker.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )
    assert (await write).status_code == 503
    await transaction.rollback()
    await blocker.close()

    assert (await read).json() == task
    assert (await ada.get("/api/tasks")).json() == [task]


async def test_a_read_is_tried_three_times_at_most(ada: Person, database: db.Database) -> None:
    blocker = await asyncpg.connect(database.url)
    async with blocker.transaction(), asyncio.timeout(4):
        await blocker.execute("LOCK TABLE tasks")
        read = asyncio.create_task(ada.get("/api/tasks"))
        ended: set[int] = set()
        while len(ended) < db.ATTEMPTS:
            rows = await blocker.fetch("SELECT pid FROM pg_locks WHERE NOT granted")
            for pid in {row["pid"] for row in rows} - ended:
                await blocker.execute("SELECT pg_terminate_backend($1)", pid)
                ended.add(pid)

        assert (await read).status_code == 503
    await blocker.close()


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
        async with asyncio.timeout(4):
            answers = await asyncio.gather(
                *(ada.get(path) for path in ("/api/tasks", "/health/ready") for _ in range(SIZE))
            )
    finally:
        await other.execute("ALTER DATABASE postgres ALLOW_CONNECTIONS true")
        await other.close()

    assert {answer.status_code for answer in answers} == {503}


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


@contextlib.asynccontextmanager
async def held_up(
    database: db.Database, *user_ids: str
) -> AsyncIterator["asyncpg.Connection[Any]"]:
    """Let writes of users wait until the block ends."""
    blocker = await asyncpg.connect(database.url)
    async with blocker.transaction():
        await blocker.execute("SELECT FROM users WHERE id = ANY ($1) FOR UPDATE", user_ids)
        yield blocker
    await blocker.close()


def toggles(person: Person, task: dict[str, Any]) -> list[asyncio.Task[httpx.Response]]:
    """Write more often at once than there are connections."""
    path = f"/api/tasks/{task['id']}/complete"
    return [asyncio.create_task(person.patch(path)) for _ in range(2 * SIZE)]


async def test_a_user_who_waits_holds_a_third_of_the_connections_and_nobody_else_waits(
    ada: Person, bob: Person, ada_id: str, database: db.Database
) -> None:
    task = await create(ada)
    async with held_up(database, ada_id) as blocker, asyncio.timeout(4):
        writes = toggles(ada, task)
        await until_waiting(blocker, SIZE // 3)
        answers = await asyncio.gather(*(bob.get("/api/tasks") for _ in range(2 * SIZE)))
        assert await blocker.fetchval(WAITING) == SIZE // 3

    assert {answer.status_code for answer in answers} == {200}
    assert {answer.status_code for answer in await asyncio.gather(*writes)} == {200}


async def test_however_many_users_wait_the_service_does_not(
    app: FastAPI, connect: Callable[[str | None], Person], database: db.Database
) -> None:
    names = [f"waiting-{number}" for number in range(SIZE)]
    people = [connect(token(sub=name)) for name in names]
    tasks = [await create(person) for person in people]
    async with held_up(database, *names) as blocker, asyncio.timeout(4):
        writes = [
            asyncio.create_task(person.patch(f"/api/tasks/{task['id']}/complete"))
            for person, task in zip(people, tasks, strict=True)
        ]
        await until_waiting(blocker, SIZE - 1)

        assert (await people[0].get("/health/ready")).status_code == 200
        await asyncio.gather(*(app.state.revocations.load() for _ in range(3)))
        assert await blocker.fetchval(WAITING) == SIZE - 1

    assert {answer.status_code for answer in await asyncio.gather(*writes)} == {200}


async def test_who_waits_is_served_in_turn_user_by_user(
    configured: Settings, database: db.Database
) -> None:
    wait = db.Statement[dict[str, str]]("SELECT pg_sleep(0.05) WHERE :owner <> ''")
    served: list[str] = []

    async def run(owner: str) -> None:
        await wait.all(owner=owner)
        served.append(owner)

    async with (
        db.connect(configured.model_copy(update={"database_pool_size": 1}), database.url),
        asyncio.TaskGroup() as calls,
    ):
        for owner in ("ada",) * 6 + ("bob",) * 3 + ("eve",):
            calls.create_task(run(owner))

    assert "".join(name[0] for name in served) == "aabeababaa"


async def test_large_results_are_handled_one_at_a_time(app: FastAPI) -> None:
    assert app
    large = db.Statement[dict[str, int]](
        f"SELECT generate_series(1, {pool.LARGE} + 1) WHERE :owner <> ''"
    )
    await asyncio.gather(*(large.all(owner=str(number)) for number in range(SIZE // 2)))
    turns, ended = 0, []

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def run(owner: str) -> None:
        await large.all(owner=owner)
        ended.append(turns)

    calls = [asyncio.create_task(run(str(number))) for number in range(SIZE // 2)]
    await asyncio.sleep(0)
    time.sleep(0.3)  # now all of them are there
    counting = asyncio.create_task(count())
    await asyncio.gather(*calls)
    counting.cancel()

    assert len({*ended}) == len(calls)


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


async def test_a_turn_that_nobody_takes_any_more_is_passed_on(
    configured: Settings, database: db.Database
) -> None:
    mine = pool.Pool(database.url, configured.model_copy(update={"database_pool_size": 1}))
    until = time.monotonic() + 10
    wait: list[pool.Step] = [("SELECT pg_sleep(0.5)", [])]

    def run(user: str) -> asyncio.Task[list[Any]]:
        return asyncio.create_task(mine.fetch(wait, pool.Limits(until, until), user))

    await run("ada")
    waiting = [run("bob") for _ in range(2)]
    asyncio.get_running_loop().call_later(0.2, waiting[0].cancel)  # while it waits
    await mine.fetch(wait, pool.Limits(until, until), "ada")
    waiting[1].cancel()  # when its turn has just come
    results = await asyncio.gather(*waiting, return_exceptions=True)

    assert [type(result) for result in results] == [asyncio.CancelledError] * 2
    async with asyncio.timeout(3):
        await run("bob")
    await mine.close()


async def test_statements_are_planned_once(configured: Settings, database: db.Database) -> None:
    show = db.Statement[dict[str, str]]("SELECT current_setting('plan_cache_mode') AS mode")
    async with one_connection(configured, database):
        assert await show.one() == {"mode": "force_generic_plan"}


async def test_small_tables_are_read_by_their_indexes_too(empty: Settings) -> None:
    """A plan lasts until its tables are analyzed again, however large they are by then."""
    url = str(empty.database_url)
    shape = queries.Shape(
        "all", sort="title", tagged=False, searched=False, due=False, continued=False
    )
    explain = db.Statement[Any](f"EXPLAIN {queries.list_tasks(shape).text}")
    async with db.connect(empty, url):
        await queries.CREATE_OWNER.all(owner="ada", issued=0.0)
        connection = await asyncpg.connect(url)
        await connection.execute("ANALYZE")
        await connection.close()

        values: dict[str, Any] = {"known": [], "priority": None, "limit": 20, "offset": 0}
        plan = str(await explain.all(owner="ada", **values))

    assert "Index Scan" in plan
    assert "Seq Scan" not in plan


async def test_a_ping_that_nobody_waits_for_fails_quietly(
    configured: Settings,
    database: db.Database,
    monkeypatch: pytest.MonkeyPatch,
    log_lines: Callable[[], str],
) -> None:
    monkeypatch.setattr(db, "DEADLINE_SECONDS", 0.2)
    async with one_connection(configured, database):
        busy = asyncio.create_task(db.Statement[Any]("SELECT pg_sleep(1)", deadline=5).all())
        await asyncio.sleep(0.05)
        with pytest.raises(Problem):
            await db.ping(0.05)
        await busy
    gc.collect()

    assert "never retrieved" not in log_lines()


async def test_who_comes_too_late_takes_no_turn(
    configured: Settings, database: db.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = db.Statement[dict[str, int]]("SELECT pg_backend_pid() AS pid")
    async with one_connection(configured, database):
        before = await find.one()
        monkeypatch.setattr(db, "DEADLINE_SECONDS", -1)
        with pytest.raises(Problem):
            await find.one()
        monkeypatch.undo()
        assert await find.one() == before


async def test_a_turn_that_comes_with_the_deadline_is_taken(
    configured: Settings, database: db.Database
) -> None:
    mine = pool.Pool(database.url, configured.model_copy(update={"database_pool_size": 1}))
    long = time.monotonic() + 10
    for seconds in (0.0, 0.1):  # the second time it is already prepared
        steps: list[pool.Step] = [("SELECT pg_sleep($1)", [seconds])]
        first = asyncio.create_task(mine.fetch(steps, pool.Limits(long, long), "ada"))
        await asyncio.sleep(0) if seconds else await first
    soon = time.monotonic() + 0.8
    second = asyncio.create_task(mine.fetch([("SELECT 1", [])], pool.Limits(soon, long), "bob"))
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_soon(time.sleep, 0.5)
    time.sleep(0.5)  # now the first is done, and when the service looks, the deadline has passed

    assert [*(await second)[0]] == [1]
    await first
    await mine.close()


async def test_who_may_have_no_more_does_not_hold_up_those_behind(
    configured: Settings, database: db.Database
) -> None:
    wait = db.Statement[dict[str, str]]("SELECT pg_sleep(:seconds) WHERE :owner <> ''")
    served: list[str] = []

    async def run(owner: str, seconds: float) -> None:
        await wait.all(owner=owner, seconds=seconds)
        served.append(owner)

    async with (
        db.connect(configured.model_copy(update={"database_pool_size": 2}), database.url),
        asyncio.TaskGroup() as calls,
    ):
        await asyncio.gather(run("ada", 0.1), run("bob", 0.1))  # both are open
        served.clear()
        for owner, seconds in (("ada", 0.8), ("eve", 0.2), ("ada", 0.0), ("bob", 0.0)):
            calls.create_task(run(owner, seconds))

    assert served == ["eve", "bob", "ada", "ada"]


async def test_the_last_of_three_connections_is_the_services(
    configured: Settings, database: db.Database
) -> None:
    wait = db.Statement[dict[str, str]]("SELECT pg_sleep(1.5) WHERE :owner <> ''")
    async with db.connect(configured.model_copy(update={"database_pool_size": 3}), database.url):
        served = asyncio.gather(*(wait.all(owner=owner) for owner in ("ada", "bob", "eve")))
        await asyncio.sleep(0.5)  # all that there may be are open
        await db.ping(0.7)
        await served


async def test_a_connection_whose_call_is_cancelled_is_replaced(
    configured: Settings, database: db.Database
) -> None:
    """Its transaction may be open."""
    mine = pool.Pool(database.url, configured.model_copy(update={"database_pool_size": 1}))
    until = time.monotonic() + 10
    limits, pid = pool.Limits(until, until), ("SELECT pg_backend_pid()", list[Any]())
    before = await mine.fetch([pid], limits, "ada")
    call = asyncio.create_task(mine.fetch([pid, ("SELECT pg_sleep(5)", [])], limits, "ada"))
    await asyncio.sleep(0.3)
    call.cancel()
    await asyncio.wait([call])

    assert await mine.fetch([pid], limits, "bob") != before
    await mine.close()


async def test_a_service_that_stops_waits_for_what_is_in_progress(
    configured: Settings, database: db.Database
) -> None:
    async with db.connect(configured, database.url):
        call = asyncio.create_task(db.Statement[Any]("SELECT pg_sleep(0.5)").all())
        await asyncio.sleep(0.1)

    assert call.done()
    await call
