"""The service as a process of its own: started, stopped, killed, and with a failing database."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import httpx
import pytest
from starlette.types import Message

import db
import embedded
import main
from security import InvalidToken, Verifier
from settings import STARTUP_FAILURE, Settings
from tests.conftest import SECRET, copied, token

PATIENCE = 30
UVICORN = (sys.executable, "-m", "uvicorn", "main:app", "--port", "{port}")
HEADERS = {"Authorization": f"Bearer {token(sub='ada')}"}


def free_port() -> int:
    """Find a port that nobody uses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@contextlib.contextmanager
def service(
    project: Path, *options: str, command: Sequence[str] = UVICORN, **environment: str
) -> Iterator["Service"]:
    """Run the service until the block ends."""
    running = Service(project, *options, command=command, **environment)
    try:
        running.wait_until_ready()
        yield running
    finally:
        running.stop()


class Service:
    """A running service; its log is a file."""

    def __init__(
        self,
        project: Path,
        *options: str,
        command: Sequence[str] = UVICORN,
        **environment: str,
    ) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.log = Path(tempfile.mkdtemp(prefix="todo-log-"), "log")
        weakref.finalize(self, shutil.rmtree, self.log.parent)
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [part.replace("{port}", str(port)) for part in (*command, *options)],
                cwd=project,
                env={
                    "PATH": os.environ["PATH"],
                    "PORT": str(port),
                    "BETTER_AUTH_SECRET": SECRET,
                    "RATE_LIMIT": "",
                    **environment,
                },
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def printed(self) -> str:
        """Read what the service printed."""
        return self.log.read_text()

    def wait_until_ready(self) -> None:
        """Wait until the service serves."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.printed()
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/health/ready").is_success:
                    return
            time.sleep(0.05)
        raise AssertionError(self.printed())

    def wait_until_printed(self, text: str, times: int) -> None:
        """Wait until the service has printed a text so many times."""
        deadline = time.monotonic() + PATIENCE
        while self.printed().count(text) < times:
            assert time.monotonic() < deadline, self.printed()
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the process, if it runs, and wait for that."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        self.process.wait(PATIENCE)

    def call(self, method: str, path: str = "", **options: Any) -> httpx.Response:
        """Call as ada."""
        return httpx.request(
            method, f"{self.url}/api/tasks{path}", headers=HEADERS, timeout=PATIENCE, **options
        )

    def create(self, title: str) -> int:
        """Create a task and return its id."""
        task_id: int = self.call("POST", json={"title": title}).raise_for_status().json()["id"]
        return task_id

    def ids(self) -> list[int]:
        """List the ids of ada's tasks, oldest first."""
        response = self.call("GET")
        assert response.is_success, self.printed()
        return sorted(task["id"] for task in response.json())


@pytest.fixture
def clone(project: Path, folder: Path) -> Path:
    """Copy the project into a folder of the test's own."""
    return copied(project, folder)


@pytest.mark.parametrize(
    ("how", "options"), [(signal.SIGTERM, ["--workers", "2"]), (signal.SIGINT, [])]
)
def test_it_can_be_stopped_while_it_waits_for_the_database(
    shared_clone: Path, how: signal.Signals, options: list[str]
) -> None:
    nowhere = "postgresql://todo@127.0.0.1:1/postgres"
    running = Service(shared_clone, *options, DATABASE_URL=nowhere)
    running.wait_until_printed("waiting for 127.0.0.1:1", 1)
    began = time.monotonic()

    running.stop(how)

    assert time.monotonic() - began < 15  # not 30
    assert "stopped while it waited for the database" in running.printed()
    assert "Traceback" not in running.printed()


def test_files_are_read_as_utf_8_whatever_the_locale(clone: Path) -> None:
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    secret, issuer = "\u00fc" * 20, "\u00dcber"
    (clone / ".env").write_text(f"# \u2192\nJWT_ISSUER={issuer}\n", "utf-8")
    (clone / ".data").mkdir()
    (clone / ".data" / "secret").write_text(f"{secret}\n", "utf-8")  # as an editor leaves it
    headers = {"Authorization": f"Bearer {token(secret, sub='ada', iss=issuer)}"}
    with service(
        clone, BETTER_AUTH_SECRET="", PYTHONWARNDEFAULTENCODING="1", **ascii_only
    ) as running:
        answer = httpx.get(f"{running.url}/api/tasks", headers=headers)
        page = httpx.get(running.url)

    assert answer.status_code == 200, running.printed()
    assert page.content == (clone / "static" / "index.html").read_bytes()
    assert "EncodingWarning" not in running.printed()


def test_without_settings_it_keeps_its_data_and_its_secret(clone: Path) -> None:
    with service(clone, BETTER_AUTH_SECRET="") as first:
        assert first.printed().count("made the secret") == 1
        made = subprocess.run(
            [sys.executable, "make_token.py", "ada"],
            cwd=clone,
            env={"PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        headers = {"Authorization": f"Bearer {made}"}
        created = httpx.post(f"{first.url}/api/tasks", json={"title": "Buy milk"}, headers=headers)

    with service(clone, BETTER_AUTH_SECRET="") as again:
        assert "made the secret" not in again.printed()
        listed = httpx.get(f"{again.url}/api/tasks", headers=headers)

    assert listed.json() == [created.json()]


def test_killed_while_it_writes_it_has_lost_nothing_it_acknowledged(clone: Path) -> None:
    acknowledged = []
    with service(clone) as first:
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            acknowledged.append(first.create("Buy milk"))
        first.stop(signal.SIGKILL)

    with service(clone) as again:
        assert set(acknowledged) <= set(again.ids())


def test_four_workers_start_on_an_empty_folder(clone: Path) -> None:
    with service(clone, "--workers", "4") as running:
        running.wait_until_printed("Application startup complete", 4)
        created = [running.create("Buy milk") for _ in range(20)]

        assert running.ids() == created
        assert "Traceback" not in running.printed()


def test_two_services_share_a_folder_and_the_last_stops_the_database(clone: Path) -> None:
    with service(clone) as first, service(clone) as second:
        task_id = first.create("Buy milk")
        first.stop()
        with embedded.postgres(clone / ".data") as server:
            before = asyncio.run(start_of(server.url))

        assert second.ids() == [task_id]

    with embedded.postgres(clone / ".data") as server:
        assert asyncio.run(start_of(server.url)) > before


async def start_of(url: str) -> datetime:
    """Ask when the database was started."""
    connection = await asyncpg.connect(url)
    started: datetime = await connection.fetchval("SELECT pg_postmaster_start_time()")
    await connection.close()
    return started


@pytest.mark.parametrize("options", [(), ("--workers", "2", "--timeout-worker-healthcheck", "2")])
def test_a_start_that_fails_says_why_in_one_line(
    clone: Path, database: db.Database, options: tuple[str, ...]
) -> None:
    nowhere = urlsplit(database.url)._replace(path="/nowhere").geturl()
    failed = Service(clone, *options, DATABASE_URL=nowhere)

    assert failed.process.wait(PATIENCE) == (STARTUP_FAILURE if not options else 0)
    assert "cannot use the database at " in failed.printed()
    assert "see DATABASE_URL" in failed.printed()
    assert "Traceback" not in failed.printed()
    failed.stop()


async def backends(url: str) -> list[int]:
    """Find the processes of a PostgreSQL server, its postmaster first."""
    connection = await asyncpg.connect(url)
    pid = await connection.fetchval("SELECT pg_backend_pid()")
    postmaster = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    await connection.close()
    return [postmaster, *(child for child in map(int, children) if child != pid)]


@contextlib.asynccontextmanager
async def writing(url: str) -> AsyncIterator[tuple[list[int], set[int], httpx.AsyncClient]]:
    """Create tasks until the block ends; yield what was acknowledged and answered, and a client."""
    acknowledged: list[int] = []
    statuses: set[int] = set()
    enough = asyncio.Event()

    async def write(client: httpx.AsyncClient) -> None:
        while not enough.is_set():
            answer = await client.post("/api/tasks", json={"title": "Buy milk"})
            statuses.add(answer.status_code)
            if answer.status_code == httpx.codes.CREATED:
                acknowledged.append(answer.json()["id"])

    async with (
        httpx.AsyncClient(base_url=url, headers=HEADERS, timeout=PATIENCE) as client,
        # With a client of its own, because the writers' may never let another request through.
        httpx.AsyncClient(base_url=url, timeout=PATIENCE) as observer,
        asyncio.TaskGroup() as writers,
    ):
        for _ in range(8):
            writers.create_task(write(client))
        await asyncio.sleep(0.5)
        yield acknowledged, statuses, observer
        await asyncio.sleep(0.5)
        enough.set()


async def test_a_database_killed_under_load_loses_nothing_and_comes_back(clone: Path) -> None:
    with service(clone) as running:
        with embedded.postgres(clone / ".data") as server:
            pass
        async with writing(running.url) as (acknowledged, statuses, observer):
            async with asyncio.timeout(PATIENCE):
                for pid in await backends(server.url):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                before = len(acknowledged)
                assert (await observer.get("/health/live")).status_code == 200
                while 503 not in statuses or not (await observer.get("/health/ready")).is_success:
                    await asyncio.sleep(0.05)
        kept = await count(server.url, acknowledged)

    assert statuses == {201, 503}
    assert 0 < before < len(acknowledged) == kept


async def count(url: str, ids: list[int]) -> int:
    connection = await asyncpg.connect(url)
    kept: int = await connection.fetchval("SELECT count(*) FROM tasks WHERE id = ANY($1)", ids)
    await connection.close()
    return kept


async def statuses_at_once(url: str) -> list[int]:
    """Read and write at the same time."""
    async with httpx.AsyncClient(base_url=url, headers=HEADERS, timeout=PATIENCE) as client:
        answers = await asyncio.gather(
            client.get("/api/tasks"),
            client.post("/api/tasks", json={"title": "x"}),
            client.delete("/api/tags/1"),  # takes several statements
        )
    return [answer.status_code for answer in answers]


def test_a_database_that_hangs_is_503_in_time(
    clone: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "SILENCE", PATIENCE)  # it would be started again
    with (
        embedded.postgres(folder) as server,
        service(clone, DATABASE_URL=server.url) as running,
    ):
        task_id = running.create("Buy milk")
        assert asyncio.run(statuses_at_once(running.url)) == [200, 201, 404]
        frozen = asyncio.run(backends(server.url))
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        try:
            started = time.monotonic()
            assert httpx.get(f"{running.url}/health/ready").status_code == 503
            assert time.monotonic() - started < 1
            assert asyncio.run(statuses_at_once(running.url)) == [503, 503, 503]
        finally:
            for pid in frozen:
                os.kill(pid, signal.SIGCONT)
        running.wait_until_ready()

        assert task_id in running.ids(), running.printed()


async def _start(app: Callable[..., Any]) -> list[Message]:
    """Start an app as a server does, and collect what it says."""
    said: list[Message] = []
    asked = asyncio.Queue[Message]()
    await asked.put({"type": "lifespan.startup"})

    async def send(message: Message) -> None:
        said.append(message)
        await asked.put({"type": "lifespan.shutdown"})

    with contextlib.suppress(Exception):
        await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, asked.get, send)
    return said


async def test_a_start_that_fails_for_a_known_reason_has_no_traceback(
    database: db.Database,
) -> None:
    url = urlsplit(database.url)._replace(path="/nowhere").geturl()
    app = main.create_app(Settings(database_url=url, better_auth_secret=SECRET))

    (said,) = await _start(app)

    assert said["message"].startswith("cannot use the database at ")
    assert "\n" not in said["message"]


async def test_a_start_that_fails_for_an_unknown_reason_has_one(
    configured: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "connect", None)

    (said,) = await _start(main.create_app(configured))

    assert said["message"].startswith("Traceback")


async def test_a_start_and_a_stop_that_succeed_say_so(configured: Settings) -> None:
    said = await _start(main.create_app(configured))

    assert [message["type"] for message in said] == [
        "lifespan.startup.complete",
        "lifespan.shutdown.complete",
    ]


async def test_what_tokens_must_say_is_set(configured: Settings) -> None:
    settings = configured.model_copy(
        update={"jwt_issuer": "https://app", "jwt_audience": "todo", "jwt_user_claims": ("uid",)}
    )
    app = main.create_app(settings)

    async with app.router.lifespan_context(app):
        verifier: Verifier = app.state.verifier
        assert verifier.claims(token(uid="ada", iss="https://app", aud="todo")).user_id == "ada"
        for wrong in ({"iss": "x"}, {"aud": "x"}, {"uid": None, "sub": "ada"}):
            claims: dict[str, Any] = {"uid": "ada", "iss": "https://app", "aud": "todo", **wrong}
            with pytest.raises(InvalidToken):
                verifier.claims(token(**claims))


def test_without_a_url_the_database_is_our_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "PROJECT", folder)

    with db.locate(Settings(database_url=None, better_auth_secret=None)) as made:
        assert len(made.secret) >= 32
    with db.locate(Settings(database_url=None, better_auth_secret=SECRET)) as chosen:
        assert chosen == (made.url, SECRET)


@pytest.mark.parametrize("command", ["dev", "run"])
def test_fastapis_command_serves_and_logs_each_request_once(
    command: str, shared_clone: Path, database: db.Database
) -> None:
    environment = {"DATABASE_URL": database.url, "LOG_FORMAT": "text"}
    fastapi = (sys.executable, "-m", "fastapi", command, "--port", "{port}")
    with service(shared_clone, command=fastapi, **environment) as running:
        assert running.call("GET").is_success

        running.wait_until_printed("GET /api/tasks 200", 1)

    assert running.printed().count("/api/tasks") == 1
