"""Tell 20 streams of a bulk change, and see who waits for it: `python -m benchmarks.streams`.

Another user lists tasks meanwhile, as before and after that, and while others have 300 streams.
"""

import argparse
import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx

from benchmarks.run import print_table
from benchmarks.servers import (
    ROOT,
    SERVICE,
    UNLIMITED,
    Server,
    bearer,
    cpu_seconds,
    execute,
    peak_memory_mib,
    postgresql,
    serve,
)

STREAMS, OTHERS = 20, 300
QUIET_SECONDS = 5
FILL = """
INSERT INTO users (id) VALUES ('ada'), ('bob');
INSERT INTO tasks (user_id, title, title_key, description, description_key)
SELECT 'ada', 'Task number ' || n, 'task number ' || n, 'As it is', 'as it is'
FROM generate_series(1, 50000) n;
INSERT INTO tasks (user_id, title, title_key)
SELECT 'bob', 'Task number ' || n, 'task number ' || n FROM generate_series(1, 50) n;
INSERT INTO tags (user_id, name, name_key) VALUES ('ada', 'home', 'home');
INSERT INTO task_tags SELECT user_id, tasks.id, tags.id FROM tasks JOIN tags USING (user_id);
"""
BULK: dict[str, Callable[[httpx.Client, int], httpx.Response]] = {
    "rename a tag": lambda ada, tag: ada.patch(f"/api/tags/{tag}", json={"name": "work"}),
    "complete": lambda ada, _: ada.patch("/api/tasks?status=pending", json={"completed": True}),
    "delete": lambda ada, _: ada.delete("/api/tasks?status=completed"),
}


class Reader(asyncio.Protocol):
    """Reads a stream, and knows how it ends so far."""

    def __init__(self) -> None:
        self.end, self.size, self.came, self.is_lost = b"", 0, asyncio.Event(), False

    def connection_lost(self, _: Exception | None) -> None:
        self.is_lost = True
        self.came.set()

    def data_received(self, data: bytes) -> None:
        self.end, self.size = (self.end + data)[-64:], self.size + len(data)
        self.came.set()

    async def until(self, rev: int) -> None:
        while f"id: {rev}\n\n".encode() not in self.end and not self.is_lost:
            self.came.clear()
            await self.came.wait()


async def read(port: int, users: list[dict[str, str]], pipe: Connection) -> None:
    """Open a stream for each user; then, for each revision that is sent, wait for it on all."""
    loop = asyncio.get_running_loop()
    readers = []
    for user in users:
        transport, reader = await loop.create_connection(Reader, "127.0.0.1", port)
        head = (
            f"GET /api/tasks/events HTTP/1.1\r\nHost: x\r\nAuthorization: {user['Authorization']}"
        )
        transport.write(f"{head}\r\n\r\n".encode())
        await reader.came.wait()
        readers.append(reader)
    pipe.send(0)
    while rev := await loop.run_in_executor(None, pipe.recv):
        async with asyncio.timeout(600):
            await asyncio.gather(*(reader.until(rev) for reader in readers))
        lost = sum(reader.is_lost for reader in readers)
        pipe.send((sum(reader.size for reader in readers), lost))


def run(*arguments: Any) -> None:
    asyncio.run(read(*arguments))


@contextlib.contextmanager
def streams(server: Server, users: list[dict[str, str]]) -> Iterator[Connection]:
    """Read streams in another process."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=run, args=(server.port, users, theirs))
    process.start()
    ours.recv()
    try:
        yield ours
    finally:
        process.kill()
        process.join()


def neighbour(bob: httpx.Client, is_over: Callable[[], bool]) -> tuple[list[float], int]:
    """List tasks again and again; return the milliseconds of each call, and how many failed."""
    took, failed = [], 0
    while not is_over():
        started = time.perf_counter()
        failed += bob.get("/api/tasks?limit=20").status_code != HTTPStatus.OK
        took.append((time.perf_counter() - started) * 1000)
        time.sleep(0.01)
    return took, failed


def quiet(name: str, bob: httpx.Client, server: Server) -> list[str]:
    until, cpu = time.monotonic() + QUIET_SECONDS, cpu_seconds(server.pid)
    took, failed = neighbour(bob, lambda: time.monotonic() > until)
    cpu = (cpu_seconds(server.pid) - cpu) / QUIET_SECONDS
    return [name, "", "", f"{cpu:.0%}", *told(took, failed), memory(server)]


def told(took: list[float], failed: int) -> list[str]:
    p99 = quantiles(took, n=100)[98]
    return [f"{median(took):.1f}", f"{p99:.0f}", f"{max(took):.0f}", str(failed)]


def memory(server: Server) -> str:
    return f"{peak_memory_mib(server.pid):.0f}"


def revision(person: httpx.Client) -> int:
    """Return the user's revision, as soon as the service answers."""
    while not (etag := person.get("/api/tasks?limit=1").headers.get("ETag")):
        time.sleep(0.1)
    return int(json.loads(etag.removeprefix("W/")))


def bulk(name: str, ada: httpx.Client, bob: httpx.Client, tag: int, server: Server) -> list[str]:
    """Change all tasks, and time until every stream has been told."""
    headers = {"Authorization": ada.headers["Authorization"]}
    with streams(server, [headers] * STREAMS) as pipe, ThreadPoolExecutor() as pool:
        started, cpu = time.monotonic(), cpu_seconds(server.pid)

        def change() -> float:
            BULK[name](ada, tag).raise_for_status()
            changed = time.monotonic() - started
            pipe.send(revision(ada))
            return changed

        changing = pool.submit(change)
        took, failed = neighbour(bob, lambda: changing.done() and pipe.poll())
        size, lost = pipe.recv()
        seconds = time.monotonic() - started
        cpu = (cpu_seconds(server.pid) - cpu) / seconds
        return [
            *(f"{name}, {changing.result():.1f} s", f"{seconds:.1f}", f"{size / 1e6:.0f} ({lost})"),
            *(f"{cpu:.0%}", *told(took, failed), memory(server)),
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--of", type=Path, metavar="DIR", default=ROOT, help="another checkout")
    folder = parser.parse_args().of.resolve()
    secret = secrets.token_hex(32)
    with postgresql() as postgres, contextlib.ExitStack() as stack:
        settings = {"DATABASE_URL": postgres.url, "BETTER_AUTH_SECRET": secret, **UNLIMITED}
        server = stack.enter_context(serve(SERVICE, settings, folder))
        asyncio.run(execute(postgres.url, FILL))
        asyncio.run(execute(postgres.url, "VACUUM ANALYZE"))
        ada, bob = (
            stack.enter_context(
                httpx.Client(base_url=server.url, headers=bearer(secret, name), timeout=300)
            )
            for name in ("ada", "bob")
        )
        rows = [quiet("nothing", bob, server)]
        with streams(server, [bearer(secret) for _ in range(OTHERS)]):
            rows.append(quiet(f"{OTHERS} idle streams of others", bob, server))
        tag = ada.get("/api/tags").json()[0]["id"]
        rows += [bulk(name, ada, bob, tag, server) for name in BULK]
    columns = (
        *("meanwhile", "s until told", "MB told (streams lost)", "CPU"),
        *("list, ms: median", "p99", "max", "failed", "MiB, peak"),
    )
    print_table(columns, rows)


if __name__ == "__main__":
    main()
