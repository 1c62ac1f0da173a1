"""Measure what accounts and limits cost other requests: `python -m benchmarks.accounts`.

It compares the service with and without limits, and times lists while sign-ins run flat out.
"""

import argparse
import asyncio
import secrets
import time

import httpx
import uvloop

from benchmarks.load import load
from benchmarks.run import (
    MAX_RATIO,
    SERVICE,
    UNLIMITED,
    USERS,
    Server,
    bearer,
    database,
    interleave,
    operations,
    seed,
    serve,
)

HIGH = dict.fromkeys(UNLIMITED, "1000000000/minute")  # counted, but never reached
SIGN_INS = 8
WHO = {"email": "ada@example.com", "password": secrets.token_hex(8)}


async def sign_in_flat_out(server: Server, until: float) -> int:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}/api/v1/auth") as client:
        await client.post("/register", json=WHO)

        async def repeat() -> int:
            count = 0
            while time.perf_counter() < until:
                count += (await client.post("/login", json=WHO)).is_success
            return count

        return sum(await asyncio.gather(*(repeat() for _ in range(SIGN_INS))))


async def list_meanwhile(server: Server, requests: list[bytes], seconds: float) -> str:
    until = time.perf_counter() + seconds
    signing_in = asyncio.create_task(sign_in_flat_out(server, until))
    await asyncio.sleep(0.5)
    latencies = sorted(await load(server.port, 200, requests, 4, seconds - 1))
    signed_in = await signing_in
    p50, p99 = (latencies[int(len(latencies) * part)] * 1e3 for part in (0.5, 0.99))
    return (
        f"While {signed_in / seconds:.0f} sign-ins a second run, a list of 20 takes "
        f"{p50:.1f} ms (p50), {p99:.1f} ms (p99 < 50)."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1, help="per measurement")
    parser.add_argument("--rounds", type=int, default=7, help="the medians are reported")
    parser.add_argument("--connections", type=int, default=16)
    options = parser.parse_args()
    secret = secrets.token_hex(32)
    users, taggers, writers = ([bearer(secret) for _ in range(USERS)] for _ in range(3))
    with database() as url:
        settings = {"DATABASE_URL": url, "BETTER_AUTH_SECRET": secret}
        with (
            serve(SERVICE, settings | HIGH) as limited,
            serve(SERVICE, settings | UNLIMITED) as free,
        ):
            tagged = seed(free, taggers, ("home", "work"))
            todo = operations(seed(free, users), tagged, writers)
            print("| | CPU, us, with limits | without | ratio (<= 1.15) |\n|---|---|---|---|")
            for name in MAX_RATIO:
                counted, not_counted = interleave(
                    [(server, todo[name]) for server in (limited, free)], options
                )
                ratio = counted.cpu_us / not_counted.cpu_us
                print(
                    f"| {name} | {counted.cpu_us:.0f} | {not_counted.cpu_us:.0f} | {ratio:.2f} |",
                    flush=True,
                )
            print("\n" + uvloop.run(list_meanwhile(free, todo["list"].requests, 6)))


if __name__ == "__main__":
    main()
