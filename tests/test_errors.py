"""Every error is a problem, whoever raises it, and the database's verdicts are translated."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable

import asyncpg
import pytest
from fastapi import FastAPI
from starlette.types import Message, Receive, Scope, Send

import db
import errors
import queries
import routing
from middleware import Envelope
from tests.conftest import ORIGIN, Person
from tests.test_tasks import list_ids


@pytest.fixture
async def backdoor(database: db.Database) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """Give a connection of the tests' own."""
    connection = await asyncpg.connect(database.url)
    yield connection
    await connection.close()


@pytest.fixture
async def verdicts(backdoor: "asyncpg.Connection[asyncpg.Record]") -> AsyncIterator[None]:
    """Let the database refuse tasks by their titles: 'STATE times' raises STATE so many times."""
    await backdoor.execute("""
        CREATE SEQUENCE refusals;
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF new.title ~ '^[0-9A-Z]{5} \\d+$'
                AND nextval('refusals') <= split_part(new.title, ' ', 2)::int THEN
                RAISE EXCEPTION 'canary' USING ERRCODE = split_part(new.title, ' ', 1);
            END IF;
            RETURN new;
        END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON tasks FOR EACH ROW EXECUTE FUNCTION refuse();
    """)
    yield
    await backdoor.execute("DROP FUNCTION refuse CASCADE; DROP SEQUENCE refusals")


@pytest.mark.usefixtures("verdicts")
@pytest.mark.parametrize(
    ("title", "status", "code"),
    [
        ("40001 2", 201, ""),
        ("40P01 1", 201, ""),
        ("26000 1", 201, ""),
        ("40001 3", 503, "unavailable"),
        ("53300 1", 503, "unavailable"),
        ("57014 1", 503, "unavailable"),
        ("57P01 1", 503, "unavailable"),
        ("58030 1", 503, "unavailable"),
        ("25006 1", 503, "unavailable"),
        ("55P03 1", 503, "unavailable"),
        ("22000 1", 422, "validation_error"),
        ("42P01 1", 500, "internal_error"),
        ("23514 1", 500, "internal_error"),
    ],
)
async def test_what_the_database_says(ada: Person, title: str, status: int, code: str) -> None:
    response = await ada.post("/api/tasks", json={"title": title})

    assert response.status_code == status
    assert response.json().get("code", "") == code
    assert "canary" not in response.text
    assert len(await list_ids(ada)) == (status == 201)
    assert ("Retry-After" in response.headers) == (status == 503)


async def test_a_500_can_be_read_by_a_browser_and_found_in_the_log(
    ada: Person,
    backdoor: "asyncpg.Connection[asyncpg.Record]",
    log_lines: Callable[[], str],
) -> None:
    await backdoor.execute("ALTER TABLE tasks RENAME TO hidden")
    try:
        response = await ada.get("/api/tasks", headers={"Origin": ORIGIN})
    finally:
        await backdoor.execute("ALTER TABLE hidden RENAME TO tasks")

    assert response.status_code == 500
    assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert "hidden" not in response.text
    assert "does not exist" not in response.text
    assert log_lines().count("Traceback") == 1
    assert response.json()["request_id"] in log_lines()
    assert await list_ids(ada) == []


async def test_a_row_that_the_database_refuses_is_not_in_the_log(
    ada: Person,
    backdoor: "asyncpg.Connection[asyncpg.Record]",
    log_lines: Callable[[], str],
) -> None:
    await backdoor.execute(
        "ALTER TABLE tasks ADD CONSTRAINT no_canary CHECK (title !~ 'canary') NOT VALID"
    )
    try:
        response = await ada.post("/api/tasks", json={"title": "canary"})
    finally:
        await backdoor.execute("ALTER TABLE tasks DROP CONSTRAINT no_canary")

    assert response.status_code == 500
    assert log_lines().count("CheckViolationError, SQLSTATE 23514") == 1
    assert "canary" not in log_lines()


async def test_a_database_that_hangs_is_503_and_then_all_is_well(
    ada: Person,
    backdoor: "asyncpg.Connection[asyncpg.Record]",
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(db, "DEADLINE_SECONDS", 0.2)
    async with backdoor.transaction():
        await backdoor.execute("LOCK TABLE tasks")

        answers = await asyncio.gather(*(ada.get("/api/tasks") for _ in range(30)))

    assert {answer.status_code for answer in answers} == {503}
    assert {answer.headers["Retry-After"] for answer in answers} == {"1"}
    assert await list_ids(ada) == []


async def test_a_statement_outside_of_the_service_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(db, "_pool", None)

    for call in (db.ping(0.1), queries.GET_TASK.first(owner="ada", task_id=1)):
        with pytest.raises(errors.Problem, match=r"cannot answer"):
            await call


@pytest.mark.parametrize(
    "path", ["/nothing", "/api", "/api/", "/api/task", "/static/x", "/static/%00"]
)
async def test_an_unknown_path(client: Person, path: str) -> None:
    response = await client.get(path)

    assert (response.status_code, response.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    "path",
    [
        *("/api/tasks", "/api/tasks/1", "/api/tasks/1/complete", "/api/tags", "/api/v1/tasks"),
        *("/api/ada/tasks", "/api/v1/auth/token", "/api/auth/login", "/health/ready", "/docs"),
    ],
)
@pytest.mark.parametrize("end", ["%0A", "%0a/"])
async def test_a_path_that_ends_its_line_leads_nowhere(client: Person, path: str, end: str) -> None:
    """A router would take it for the one without, and run what we run otherwise by FastAPI."""
    for method in ("GET", "POST", "PATCH"):
        response = await client.request(method, path + end, content="x" * 100_000)

        assert (response.status_code, response.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
async def test_an_id_with_more_digits_than_python_reads(client: Person, method: str) -> None:
    response = await client.request(method, f"/api/tasks/{'9' * 5000}")

    assert (response.status_code, response.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/api/tasks", "DELETE, GET, HEAD, PATCH, POST"),
        ("POST", "/api/tasks/1", "DELETE, GET, HEAD, PATCH, PUT"),
        ("GET", "/api/tasks/1/complete", "PATCH"),
        ("POST", "/api/ada/tasks/1", "DELETE, GET, HEAD, PATCH, PUT"),
        ("OPTIONS", "/api/tasks", "DELETE, GET, HEAD, PATCH, POST"),
        ("POST", "/health/live", "GET, HEAD"),
        ("HEAD", "/api/tasks/1/complete", "PATCH"),
        ("POST", "/docs", "GET, HEAD"),
        ("POST", "/openapi.json", "GET, HEAD"),
        ("POST", "/static/docs.js", "GET, HEAD"),
        ("TRACE", "/api/tasks", "DELETE, GET, HEAD, PATCH, POST"),
        ("NONSENSE", "/api/tasks", "DELETE, GET, HEAD, PATCH, POST"),
        ("PUT", "/api/tasks/changes", "GET, HEAD"),
        ("PATCH", "/api/ada/tasks/changes", "GET, HEAD"),
        ("DELETE", "/api/tasks/changes/", "GET, HEAD"),
        ("POST", "/api/tasks/changes", "GET, HEAD"),
        ("PUT", "/api/todos/events", "GET"),
        ("PATCH", "/api/tasks/events", "GET"),
        ("DELETE", "/api/users/ada/tasks/events", "GET"),
        ("OPTIONS", "/api/tasks/events", "GET"),
        ("HEAD", "/api/tasks/events", "GET"),
    ],
)
async def test_a_method_that_a_path_does_not_take(
    client: Person, method: str, path: str, allowed: str
) -> None:
    response = await client.request(method, path)

    assert response.status_code == 405
    assert method == "HEAD" or response.json()["code"] == "method_not_allowed"
    assert response.headers["Allow"] == allowed


async def chunks(number: int, pause: float = 0) -> AsyncIterator[bytes]:
    """Send a body piece by piece."""
    for _ in range(number):
        await asyncio.sleep(pause)
        yield b" " * 1024


async def test_a_body_that_is_too_large(ada: Person) -> None:
    json = {"Content-Type": "application/json"}

    declared = await ada.post(
        "/api/tasks", content=chunks(1, pause=60), headers={**json, "Content-Length": "65537"}
    )
    streamed = await ada.post("/api/tasks", content=chunks(65), headers=json)

    assert declared.json()["code"] == streamed.json()["code"] == "body_too_large"


async def test_a_body_of_64_kib_is_read(ada: Person) -> None:
    body = b'{"title": "x"}'.ljust(65_536)

    response = await ada.post(
        "/api/tasks", content=body, headers={"Content-Type": "application/json"}
    )

    assert response.status_code == 201


async def test_a_long_list_of_mistakes_is_cut(ada: Person) -> None:
    response = await ada.post("/api/tasks", json={f"unknown-{n}": n for n in range(1000)})

    assert len(response.json()["errors"]) == 20


async def chunked() -> AsyncIterator[bytes]:
    """Yield a body whose length nobody knows."""
    yield b'{"title": "x"}'


@pytest.mark.parametrize("body", [b'{"title": "x"}', chunked()], ids=["whole", "chunked"])
async def test_a_body_that_the_server_would_lose_is_refused(
    ada: Person, body: bytes | AsyncIterator[bytes]
) -> None:
    offer = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c"}

    response = await ada.post("/api/tasks", content=body, headers=offer)

    assert (response.status_code, response.json()["code"]) == (400, "upgrade_refused")
    assert response.headers["Connection"] == "close"


async def test_an_offer_to_upgrade_without_a_body_is_ignored(ada: Person) -> None:
    offer = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c"}

    assert (await ada.get("/api/tasks", headers=offer)).status_code == 200


@pytest.mark.usefixtures("verdicts")
async def test_the_reason_of_a_503_is_logged(ada: Person, log_lines: Callable[[], str]) -> None:
    await ada.post("/api/tasks", json={"title": "53100 1"})

    assert "database: DiskFullError, SQLSTATE 53100" in log_lines()
    assert "canary" not in log_lines()


async def test_names_of_prepared_statements_are_nobody_elses(ada: Person) -> None:
    """Else, through a transaction pooler, one process would run another's statement."""
    await list_ids(ada)

    rows = await db.Statement[dict[str, str]]("SELECT name FROM pg_prepared_statements").all()

    assert rows
    assert all(re.fullmatch(r"todo_[0-9a-f]{32}", row["name"]) for row in rows)


@pytest.mark.parametrize("path", ["/", "/docs", "/static/demo.js", "/client.js"])
@pytest.mark.parametrize("value", ["bytes=9-1", "items=0-1", "bytes=99999999-"])
async def test_ranges_of_files_are_not_served(client: Person, path: str, value: str) -> None:
    assert (await client.get(path, headers={"Range": value})).status_code == 200


async def test_a_body_that_does_not_arrive(ada: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "BODY_SECONDS", 0.05)

    response = await ada.post("/api/tasks", content=chunks(10, pause=0.02))

    assert response.json()["code"] == "request_timeout"


async def test_a_request_that_is_cut_off_by_a_stop_is_told_so(
    app: FastAPI, valid_token: str, database: db.Database
) -> None:
    said: list[Message] = []

    async def wait() -> Message:
        await asyncio.sleep(60)
        raise AssertionError

    async def send(message: Message) -> None:
        said.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/api/tasks",
        "query_string": b"",
        "headers": [(b"authorization", f"Bearer {valid_token}".encode())],
    }
    blocker = await asyncpg.connect(database.url)
    async with blocker.transaction():
        await blocker.execute("LOCK tasks")
        request = asyncio.create_task(app(scope, wait, send))
        await asyncio.sleep(0.05)
        request.cancel()
        await request
    await blocker.close()

    assert said[0]["status"] == 503
    assert b"unavailable" in said[1]["body"]


async def test_an_error_after_the_answer_has_begun_is_not_answered_again() -> None:
    said: list[str] = []

    async def fail_late(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError

    async def note(message: Message) -> None:
        said.append(message["type"])

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    with pytest.raises(RuntimeError):
        await Envelope(errors.Errors(fail_late))(scope, pytest.fail, note)

    assert said == ["http.response.start"]
