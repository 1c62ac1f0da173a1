"""Measure what the service and its PostgreSQL use per request, and print a Markdown table.

The service is compared with the practical limit (`limit.py`) and, with `--against`, with another
checkout. Each side has a database of its own and is measured alone, in turn with the others. If
`DATABASE_URL` is set, all share that database, and what PostgreSQL uses is not known.
"""

import argparse
import os
import secrets
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from statistics import mean, median, quantiles
from typing import NamedTuple

import httpx
import uvloop

from benchmarks import servers
from benchmarks.load import load
from benchmarks.servers import ROOT, SERVICE, UNLIMITED, Postgres, Server, bearer, serve

LIMIT = "benchmarks.limit:app"
LIST = "/api/tasks?limit=20"
USERS, TASKS = 64, 25  # consecutive requests are from different users: no waiting for row locks
POLL = "poll, 304"
NAMES = ("list", "tagged list", POLL, "get", "toggle", "create")
MAX_RATIO = {"list": 1.4, POLL: 0.6, "get": 1.4, "toggle": 1.55, "create": 1.65}
MAX_POSTGRES_CHANGE = {"toggle": 0.75, "create": 0.8}

Headers = dict[str, str]
Operation = tuple[int, list[bytes]]  # the status and the requests


class Side(NamedTuple):
    """The processes of one program, and what to ask them."""

    servers: list[Server]
    operations: dict[str, Operation]


class Measurement(NamedTuple):
    cpu_us: float
    postgres_us: float
    p50_ms: float
    p99_ms: float


Measured = dict[tuple[str, str], Measurement]  # by side and operation


def request(method: str, path: str, headers: Headers, body: str = "") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Accept: application/json"]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", body]).encode()


def seed(server: Server, users: list[Headers], *tags: str) -> list[tuple[str, Headers]]:
    """Create every user's tasks through the API; return their paths and owners."""
    created = []
    with httpx.Client(base_url=server.url) as client:
        for n, user in product(range(TASKS), users):
            task = {"title": f"Task {n}", "tags": tags}
            answer = client.post("/api/tasks", headers=user, json=task).raise_for_status()
            created.append((f"/api/tasks/{answer.json()['id']}", user))
    return created


def operations(server: Server, secret: str) -> dict[str, Operation]:
    """Create tasks and prepare the requests; those who write are not those who read."""
    readers, taggers, togglers, writers = ([bearer(secret) for _ in range(USERS)] for _ in range(4))
    mine, toggled = seed(server, readers), seed(server, togglers)
    seed(server, taggers, "home", "work")
    body = '{"title": "Buy oat milk"}'
    todo = {
        "list": (200, [request("GET", LIST, user) for user in readers]),
        "tagged list": (200, [request("GET", LIST, user) for user in taggers]),
        "get": (200, [request("GET", path, user) for path, user in mine]),
        "toggle": (200, [request("PATCH", f"{path}/complete", user) for path, user in toggled]),
        "create": (201, [request("POST", "/api/tasks", user, body) for user in writers]),
    }
    if etag := httpx.get(server.url + LIST, headers=readers[0]).headers.get("ETag"):
        known = {"If-None-Match": etag}  # the same for all readers; the limit has none
        todo[POLL] = 304, [request("GET", LIST, user | known) for user in readers]
    return todo


def measure(
    server: Server, operation: Operation, postgres: Postgres, options: argparse.Namespace
) -> Measurement:
    before, cpu = postgres.cpu_seconds(), servers.cpu_seconds(server.pid)
    latencies = uvloop.run(load(server.port, *operation, options.connections, options.seconds))
    after, cpu = postgres.cpu_seconds(), servers.cpu_seconds(server.pid) - cpu
    if before.keys() - after.keys():
        print("A connection has ended, and its CPU is missing in one round.", file=sys.stderr)
    of_postgres = sum(used - before.get(pid, 0) for pid, used in after.items())
    percentiles = quantiles(latencies, n=100)
    each = 1e6 / len(latencies)
    return Measurement(cpu * each, of_postgres * each, percentiles[49] * 1e3, percentiles[98] * 1e3)


def interleave(sides: dict[str, Side], postgres: Postgres, options: argparse.Namespace) -> Measured:
    """Measure each server once per round, after one that only warms up; combine the medians."""
    turns = [
        (side, name, server, sides[side].operations[name])
        for name in NAMES
        for together in zip(*(side.servers for side in sides.values()), strict=True)
        for side, server in zip(sides, together, strict=True)
        if name in sides[side].operations
    ]
    ways = [(-1) ** n for n in range(options.rounds + 1)]  # there and back: none is always first
    _warm_up, *rounds = (
        [measure(*turn[2:], postgres, options) for turn in turns[::way]][::way] for way in ways
    )
    medians = defaultdict(list)
    for (side, name, _, _), *measurements in zip(turns, *rounds, strict=True):
        medians[side, name].append(combine(median, measurements))
    return {which: combine(mean, each) for which, each in medians.items()}


def combine(average: Callable[..., float], measurements: Iterable[Measurement]) -> Measurement:
    return Measurement(*map(average, zip(*measurements, strict=True)))


def bounded(ratio: float, most: float | None) -> str:
    return f"{ratio:.2f}" + (f" (<= {most})" if most else "")


def cells(name: str, measured: Measured) -> dict[str, str]:
    """Return a row of the table, by column; without the columns of what was not measured."""
    service, before = measured["service", name], measured.get(("before", name))
    limit = measured["service", "list"] if name == POLL else measured["limit", name]
    row = {
        "CPU": name,
        "service, us": f"{service.cpu_us:.0f}",
        "limit, us": f"{'list: ' * (name == POLL)}{limit.cpu_us:.0f}",
        "ratio": bounded(service.cpu_us / limit.cpu_us, MAX_RATIO.get(name)),
        "PostgreSQL, us": f"{service.postgres_us:.0f}",
        "p50 / p99, ms (p99 < 20)": f"{service.p50_ms:.1f} / {service.p99_ms:.1f}",
    }
    if not service.postgres_us:
        del row["PostgreSQL, us"]
    if before:
        change = service.postgres_us / before.postgres_us
        row["service, now / before"] = bounded(service.cpu_us / before.cpu_us, 1.1)
        row["PostgreSQL, now / before"] = bounded(change, MAX_POSTGRES_CHANGE.get(name))
    return row


def print_table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    columns = [*columns]
    for row in (columns, ["---"] * len(columns), *rows):
        print(f"| {' | '.join(row)} |")


def start(running: ExitStack, postgres: Postgres, options: argparse.Namespace) -> dict[str, Side]:
    """Start the processes of every side, on a database of its own, and create tasks in it."""
    secret = secrets.token_hex(32)
    programs = {"service": (SERVICE, ROOT), "limit": (LIMIT, ROOT)}
    if options.against:
        programs["before"] = SERVICE, options.against.resolve()
    sides = {}
    for side, (app, folder) in programs.items():
        own = {"DATABASE_URL": postgres.database(side), "BETTER_AUTH_SECRET": secret}
        settings = own | UNLIMITED
        if app == LIMIT:
            with serve(SERVICE, settings):
                pass  # it has made the tables
        each = [serve(app, settings, folder) for _ in range(options.processes)]
        workers = [running.enter_context(worker) for worker in each]
        sides[side] = Side(workers, operations(workers[0], secret))
    return sides


def parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seconds", type=float, default=1, help="per measurement")
    parser.add_argument("--rounds", type=int, default=8, help="an even number; medians count")
    parser.add_argument("--processes", type=int, default=3, help="of each; their mean is reported")
    parser.add_argument("--connections", type=int, default=16)
    return parser


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--against", type=Path, metavar="DIR", help="another checkout")
    options = arguments.parse_args()
    server_url = os.environ.get("DATABASE_URL")
    if options.against and server_url:
        arguments.error("--against needs a private PostgreSQL: unset DATABASE_URL")
    with servers.postgresql(server_url) as postgres, ExitStack() as running:
        sides = start(running, postgres, options)
        measured = interleave(sides, postgres, options)
        peak = max(servers.peak_memory_mib(server.pid) for server in sides["service"].servers)
    rows = [cells(name, measured) for name in NAMES]
    print_table(rows[0], (row.values() for row in rows))
    print(f"\nA worker needs at most {peak:.0f} MiB of memory (< 120).")
    if postgres.pid is None:
        print("What PostgreSQL uses is not known: DATABASE_URL names another server.")


if __name__ == "__main__":
    main()
