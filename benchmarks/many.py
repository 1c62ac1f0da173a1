"""Time the lists of a user with 100,000 of a million tasks: `python -m benchmarks.many`."""

import asyncio
import secrets
import time
from collections.abc import Iterator
from statistics import median

import httpx

from benchmarks.run import print_table
from benchmarks.servers import SERVICE, UNLIMITED, bearer, execute, postgresql, serve
from schemas import SORTS
from tests.test_campaign import FILL, OF_ONE_USER

LATE = OF_ONE_USER * 9 // 10
COLUMNS = ("ms, each < 200", "20 tasks", "500 tasks", f"500 after {LATE}")
ORDERS = [f"sort={sort}" for sort in SORTS]
TEXTS = ["task", "task&sort=title", "f0", "number+4711", "nowhere"]  # in all to none
# On half of them, on 5,000, and on 3.
TAGS = ["tag+1", "tag+1&sort=title", "tag+1&sort=-updated", "tag+7", "rare"]
FILTERS = [*(f"search={text}" for text in TEXTS), *(f"tag={tag}" for tag in TAGS)]


def milliseconds(client: httpx.Client, url: str) -> float:
    taken = []
    for _ in range(11):
        start = time.perf_counter()
        client.get(url).raise_for_status()
        taken.append((time.perf_counter() - start) * 1000)
    return median(taken[5:])  # the first ones prepare the statement


def late_page(client: httpx.Client, url: str) -> str:
    for _ in range(LATE // 500):
        url = client.get(url).raise_for_status().links["next"]["url"]
    return url


def measure(client: httpx.Client) -> Iterator[list[str]]:
    """Yield the rows of the table: orders first, then filters."""
    for query in ORDERS + FILTERS:
        few, many = (f"/api/tasks?{query}&limit={limit}" for limit in (20, 500))
        urls = [few, many] + ([late_page(client, many)] if query in ORDERS else [])
        yield [f"`{query}`", *(f"{milliseconds(client, url):.1f}" for url in urls)]


def main() -> None:
    secret = secrets.token_hex(32)
    with postgresql() as postgres:
        settings = {"DATABASE_URL": postgres.url, "BETTER_AUTH_SECRET": secret, **UNLIMITED}
        with (
            serve(SERVICE, settings) as service,
            httpx.Client(
                base_url=service.url, headers=bearer(secret, "user 3"), timeout=60
            ) as client,
        ):
            asyncio.run(execute(postgres.url, FILL))
            for task in client.get("/api/tasks?sort=priority&limit=3").json():
                client.patch(f"/api/tasks/{task['id']}", json={"tags": ["rare"]}).raise_for_status()
            asyncio.run(execute(postgres.url, "VACUUM ANALYZE"))
            print_table(COLUMNS, measure(client))


if __name__ == "__main__":
    main()
