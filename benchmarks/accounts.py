"""Measure what accounts and limits cost other requests: `python -m benchmarks.accounts`.

It compares the service with and without limits, and times lists while sign-ins run flat out.
"""

import asyncio
import json
import os
import secrets
from contextlib import ExitStack

import httpx
import uvloop

from benchmarks import run
from benchmarks.load import load
from benchmarks.servers import SERVICE, UNLIMITED, Server, postgresql, serve

HIGH = dict.fromkeys(UNLIMITED, "1000000000/minute")  # counted, but never reached
MAX_RATIO = 1.15
SIGN_INS = 8
SECONDS = 6
WHO = {"email": f"{secrets.token_hex(8)}@example.com", "password": secrets.token_hex(8)}


async def list_meanwhile(server: Server, operation: run.Operation) -> str:
    sign_in = [run.request("POST", "/api/v1/auth/login", {}, json.dumps(WHO))]
    signing_in = asyncio.create_task(load(server.port, 200, sign_in, SIGN_INS, SECONDS))
    await asyncio.sleep(0.5)
    latencies = sorted(await load(server.port, *operation, 4, SECONDS - 1))
    signed_in = len(await signing_in)
    p50, p99 = (latencies[int(len(latencies) * part)] * 1e3 for part in (0.5, 0.99))
    return (
        f"While {signed_in / SECONDS:.0f} sign-ins a second run, a list of 20 takes "
        f"{p50:.1f} ms (p50), {p99:.1f} ms (p99 < 50)."
    )


def main() -> None:
    options = run.parser(__doc__).parse_args()
    secret = secrets.token_hex(32)
    with postgresql(os.environ.get("DATABASE_URL")) as postgres, ExitStack() as running:
        settings = {"DATABASE_URL": postgres.url, "BETTER_AUTH_SECRET": secret}
        limited, free = (
            [running.enter_context(serve(SERVICE, each)) for _ in range(options.processes)]
            for each in (settings | HIGH, settings | UNLIMITED)
        )
        todo = run.operations(free[0], secret)
        sides = {"limited": run.Side(limited, todo), "free": run.Side(free, todo)}
        measured = run.interleave(sides, postgres, options)
        rows = []
        for name in todo:
            limits, none = (measured[side, name].cpu_us for side in sides)
            ratio = run.bounded(limits / none, MAX_RATIO)
            rows.append((name, f"{limits:.0f}", f"{none:.0f}", ratio))
        run.print_table(("CPU, us", "with limits", "without", "ratio"), rows)
        httpx.post(f"{free[0].url}/api/v1/auth/register", json=WHO).raise_for_status()
        print("\n" + uvloop.run(list_meanwhile(free[0], todo["list"])))


if __name__ == "__main__":
    main()
