"""Measure the service against the practical limit and print a Markdown table.

Both run as uvicorn workers, one at a time, against the same PostgreSQL: the one at `DATABASE_URL`
(use a scratch database: test users stay in it) or a private one that is deleted afterwards. All of
the service is on, including its log line per request; only the rate limits are off.

Some processes of the same program are a tenth slower than others for as long as they live, so
several of each are measured, and their mean is reported.
"""

import argparse
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from http import HTTPStatus
from pathlib import Path
from statistics import mean, median, quantiles
from typing import NamedTuple

import httpx
import jwt
import uvloop

from benchmarks.load import load

ROOT = Path(__file__).parent.parent
SERVICE, LIMIT = "main:app", "benchmarks.limit:app"
USERS, TASKS = 50, 25  # consecutive requests are from different users: no waiting for row locks
MAX_RATIO = {"list": 1.7, "tagged list": 2.2, "get": 1.7, "toggle": 1.5, "create": 2.2}
MAX_P99_MS = 20
MAX_MEMORY_MIB = 120
UNLIMITED = dict.fromkeys(("RATE_LIMIT", "AUTH_RATE_LIMIT", "REFRESH_RATE_LIMIT"), "")
MAX_UNCHANGED_RATIO = 0.6
HEADER = f"""\
| | CPU, us | limit | ratio | req/s | limit | p50 / p99, ms (p99 < {MAX_P99_MS}) | limit |
|---|---|---|---|---|---|---|---|"""


class Server(NamedTuple):
    port: int
    pid: int

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_mib(self, line: str) -> float:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition(f"{line}:")[2].split()[0]) / 1024


class Operation(NamedTuple):
    status: int
    requests: list[bytes]


class Measurement(NamedTuple):
    cpu_us: float
    per_second: float
    p50_ms: float
    p99_ms: float


@contextmanager
def database() -> Iterator[str]:
    if url := os.environ.get("DATABASE_URL"):
        yield url
        return
    from embedded import postgres  # noqa: PLC0415 - a development dependency

    with tempfile.TemporaryDirectory() as folder, postgres(Path(folder)) as server:
        yield server.url


@contextmanager
def serve(app: str, settings: dict[str, str]) -> Iterator[Server]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", app, "--port", str(port)]
    command += ["--no-access-log", "--log-level", "warning"]
    environment = os.environ | settings
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    try:
        wait_until_started(process, port)
        print(f"{app} is process {process.pid}", file=sys.stderr)
        yield Server(port, process.pid)
    finally:
        process.terminate()
        process.wait()


def wait_until_started(process: subprocess.Popen[bytes], port: int) -> None:
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None:
            break
        time.sleep(0.1)
    sys.exit("It did not start.")


def bearer(secret: str) -> str:
    now = int(time.time())
    claims = {"sub": f"bench-{secrets.token_hex(8)}", "iat": now, "exp": now + 24 * 3600}
    return f"Bearer {jwt.encode(claims, secret, 'HS256')}"


def request(
    method: str, path: str, authorization: str, body: str = "", *, known: str = ""
) -> bytes:
    lines = [f"{method} /api/tasks{path} HTTP/1.1", "Host: localhost"]
    lines += [f"Authorization: {authorization}", "Accept: application/json"]
    if known:
        lines.append(f"If-None-Match: {known}")
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", body]).encode()


def seed(server: Server, users: list[str], tags: tuple[str, ...] = ()) -> list[tuple[str, int]]:
    """Create every user's tasks through the API; return pairs of user and task id."""
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}") as client:

        def create(user: str, title: str) -> int:
            headers = {"Authorization": user}
            task = {"title": title, "tags": tags}
            answer = client.post("/api/tasks", headers=headers, json=task)
            assert answer.status_code == HTTPStatus.CREATED, answer.text
            return int(answer.json()["id"])

        return [(user, create(user, f"Task {n}")) for n in range(TASKS) for user in users]


def check_same_answers(servers: Iterable[Server], user: str, task_id: int) -> None:
    for path in ("?limit=20", f"/{task_id}"):
        first, second = (
            httpx.get(
                f"http://127.0.0.1:{server.port}/api/tasks{path}", headers={"Authorization": user}
            ).json()
            for server in servers
        )
        for task in first if isinstance(first, list) else [first]:
            assert task.pop("tags") == []  # the limit has none
        assert first == second, (first, second)


def operations(
    tasks: list[tuple[str, int]], tagged: list[tuple[str, int]], writers: list[str]
) -> dict[str, Operation]:
    """Prepare the requests; create tasks for other users, so that the lists do not change."""
    return {
        "list": Operation(200, [request("GET", "?limit=20", user) for user, _ in tasks]),
        "tagged list": Operation(200, [request("GET", "?limit=20", user) for user, _ in tagged]),
        "get": Operation(200, [request("GET", f"/{task}", user) for user, task in tasks]),
        "toggle": Operation(
            200, [request("PATCH", f"/{task}/complete", user) for user, task in tasks]
        ),
        "create": Operation(
            201, [request("POST", "", user, '{"title": "Buy oat milk"}') for user in writers]
        ),
    }


def measure(server: Server, operation: Operation, options: argparse.Namespace) -> Measurement:
    cpu, clock = server.cpu_seconds(), time.perf_counter()
    latencies = uvloop.run(load(server.port, *operation, options.connections, options.seconds))
    cpu, clock = server.cpu_seconds() - cpu, time.perf_counter() - clock
    percentiles = quantiles(latencies, n=100)
    return Measurement(
        cpu_us=cpu * 1e6 / len(latencies),
        per_second=len(latencies) / clock,
        p50_ms=percentiles[49] * 1e3,
        p99_ms=percentiles[98] * 1e3,
    )


def interleave(
    sides: list[tuple[Server, Operation]], options: argparse.Namespace
) -> list[Measurement]:
    """Measure each server once per round, after a round that only warms up; return medians."""
    _warm_up, *rounds = (
        [measure(server, operation, options) for server, operation in sides]
        for _ in range(options.rounds + 1)
    )
    return [combine(median, measurements) for measurements in zip(*rounds, strict=True)]


def combine(
    average: Callable[[Iterable[float]], float], measurements: Iterable[Measurement]
) -> Measurement:
    return Measurement(*map(average, zip(*measurements, strict=True)))


def compare_unchanged(server: Server, users: list[str], options: argparse.Namespace) -> str:
    """Compare the 304 of an unchanged list with the response that it replaces."""
    etag = f'W/"{TASKS}"'  # nothing was written since the tasks were created
    whole = Operation(200, [request("GET", "?limit=20", user) for user in users])
    known = Operation(304, [request("GET", "?limit=20", user, known=etag) for user in users])
    first, second = interleave([(server, known), (server, whole)], options)
    return (
        f"An unchanged list (304) takes {first.cpu_us:.0f} us of CPU, the list {second.cpu_us:.0f}:"
        f" {first.cpu_us / second.cpu_us:.2f} (<= {MAX_UNCHANGED_RATIO})."
    )


def row(name: str, service: Measurement, limit: Measurement) -> str:
    ratio = service.cpu_us / limit.cpu_us
    cells = [
        name,
        *(f"{side.cpu_us:.0f}" for side in (service, limit)),
        f"{ratio:.2f} (<= {MAX_RATIO[name]})",
        *(f"{side.per_second:.0f}" for side in (service, limit)),
        *(f"{side.p50_ms:.1f} / {side.p99_ms:.1f}" for side in (service, limit)),
    ]
    return f"| {' | '.join(cells)} |"


def compare(pairs: list[tuple[Server, Server]], options: argparse.Namespace, secret: str) -> None:
    users, taggers, writers = ([bearer(secret) for _ in range(USERS)] for _ in range(3))
    service, _ = pairs[0]
    tasks, tagged = seed(service, users), seed(service, taggers, ("home", "work"))
    check_same_answers(pairs[0], *tasks[0])
    unchanged = compare_unchanged(service, users, options) if not options.operation else ""
    print(HEADER)
    for name, operation in operations(tasks, tagged, writers).items():
        if name not in (options.operation or MAX_RATIO):
            continue
        each = interleave([(server, operation) for pair in pairs for server in pair], options)
        print(row(name, combine(mean, each[::2]), combine(mean, each[1::2])), flush=True)
    now, peak = service.memory_mib("VmRSS"), service.memory_mib("VmHWM")
    print(f"\n{unchanged}")
    print(f"Memory of the worker: {now:.0f} MiB, at most {peak:.0f} (< {MAX_MEMORY_MIB}).")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=1, help="per measurement")
    parser.add_argument("--rounds", type=int, default=7, help="the medians are reported")
    parser.add_argument("--processes", type=int, default=3, help="of each; their mean is reported")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--operation", action="append", choices=MAX_RATIO, help="only this one")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Terminated."))  # and stop the servers
    secret = secrets.token_hex(32)
    with database() as url:
        settings = {"DATABASE_URL": url, "BETTER_AUTH_SECRET": secret, **UNLIMITED}
        with ExitStack() as running:
            pairs = [
                (
                    running.enter_context(serve(SERVICE, settings)),
                    running.enter_context(serve(LIMIT, settings)),
                )
                for _ in range(options.processes)
            ]
            compare(pairs, options, secret)


if __name__ == "__main__":
    main()
