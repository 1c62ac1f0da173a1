"""What the benchmarks start: a private PostgreSQL, and uvicorn workers that use it."""

import asyncio
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import asyncpg
import jwt

ROOT = Path(__file__).parent.parent
SERVICE = "main:app"
UNLIMITED = dict.fromkeys(("RATE_LIMIT", "AUTH_RATE_LIMIT", "REFRESH_RATE_LIMIT"), "")
BACKEND = b"postgres: todo "  # begins the title of a process that serves a client, no other's


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_memory_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


class Postgres(NamedTuple):
    """A server; if it is a private one, with the id of the process that starts all others."""

    url: str
    pid: int | None = None

    def database(self, name: str) -> str:
        """Create a database, if the server is private; return its URL."""
        if self.pid is None:
            return self.url
        asyncio.run(execute(self.url, f'CREATE DATABASE "{name}"'))
        return urlsplit(self.url)._replace(path=f"/{name}").geturl()

    def cpu_seconds(self) -> dict[int, float]:
        """Return what each process that serves a client has used, by its id."""
        if self.pid is None:
            return {}
        used = {}
        for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split():
            with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(BACKEND):
                    used[int(pid)] = cpu_seconds(int(pid))
        return used


async def execute(url: str, sql: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute(sql)
    await connection.close()


@contextmanager
def postgresql(url: str | None = None) -> Iterator[Postgres]:
    """Use the server at the URL, or run a private one and delete it afterwards."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Terminated."))  # and stop the servers
    if url:
        yield Postgres(url)
        return
    from embedded import postgres  # noqa: PLC0415 - a development dependency

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # else PostgreSQL, which does not run as root, would live elsewhere
        with postgres(folder) as server:
            yield Postgres(server.url, int((folder / "data/postmaster.pid").read_text().split()[0]))


class Server(NamedTuple):
    url: str
    port: int
    pid: int


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def serve(app: str, settings: dict[str, str], folder: Path = ROOT) -> Iterator[Server]:
    """Run an app of a checkout, with the virtual environment that is in its folder."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    python = sys.executable if folder == ROOT else folder / ".venv/bin/python"
    command = [python, "-m", "uvicorn", app, "--port", str(port)]
    command += ["--no-access-log", "--log-level", "warning"]
    environment = os.environ | settings
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    try:
        while not answers(port):
            if process.poll() is not None:
                sys.exit("It did not start.")
            time.sleep(0.1)
        print(f"{app} of {folder} is process {process.pid}", file=sys.stderr)
        yield Server(f"http://127.0.0.1:{port}", port, process.pid)
    finally:
        process.terminate()
        process.wait()


def bearer(secret: str, user_id: str = "") -> dict[str, str]:
    """Return what the requests of a user carry; of a new one unless named."""
    now = int(time.time())
    claims = {"sub": user_id or f"bench-{secrets.token_hex(8)}", "iat": now, "exp": now + 86400}
    return {"Authorization": f"Bearer {jwt.encode(claims, secret, 'HS256')}"}
