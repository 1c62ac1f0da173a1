"""Random calls while connections are cut and processes killed; `uv run pytest -m campaign`.

`CAMPAIGN_MINUTES` says for how long (see conftest.py).
"""

import asyncio
import contextlib
import faulthandler
import os
import random
import signal
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

import embedded
from tests.conftest import CAMPAIGN, token
from tests.test_service import Service, service

pytestmark = pytest.mark.campaign

USERS = 40
ACTORS = 200  # five devices of each user
GONE: dict[str, Any] = {}
"""What is known of a task that was deleted."""

AUTH = "/api/v1/auth"


class Device:
    """One of a user's devices. It writes only to tasks that it made, and remembers all of them."""

    def __init__(self, client: httpx.AsyncClient, user: str, chance: random.Random) -> None:
        self.client, self.user, self.chance = client, user, chance
        self.headers = {"Authorization": f"Bearer {token(sub=user)}"}
        self.may_be: dict[int, list[dict[str, Any]]] = {}
        """Task -> each state that it may be in: one, unless a write got no answer."""
        self.keyed: dict[str, int | None] = {}
        """Title -> the task made with a key; None: got no answer."""
        self.deleted: list[int] = []
        self.revoked: list[str] = []
        self.acknowledged = self.unanswered = 0

    async def call(self, method: str, path: str, **options: Any) -> httpx.Response | None:
        """Return the answer; None if there was none, or a 503, which leaves open what happened."""
        impatience = self.chance.choice([0.01, 0.1, 20, 20, 20, 20, 20, 20])
        given: dict[str, Any] = {"headers": self.headers, "timeout": impatience} | options
        try:
            answer = await self.client.request(method, path, **given)
        except httpx.TransportError:
            self.unanswered += 1
            return None
        assert answer.status_code < 500 or answer.status_code == 503, answer.text
        if answer.status_code == 503:
            self.unanswered += 1
            return None
        self.acknowledged += 1
        return answer

    async def act(self) -> None:
        """Do something at random."""
        acts: list[Callable[[], Awaitable[None]]] = [self.create, self.create, self.catch]
        if self.sure():
            acts += [self.read, self.update, self.update, self.toggle, self.tag, self.delete]
        if self.chance.random() < 0.004:
            acts = [self.leave]
        await self.chance.choice(acts)()

    def sure(self) -> list[int]:
        """List the tasks whose state is known. Others stay alone: an old write may still come."""
        return [task_id for task_id, states in self.may_be.items() if len(states) == 1]

    async def create(self) -> None:
        """Create a task with a key, at most three times, like a client that needs an answer."""
        title = f"{self.user} {uuid.uuid4().hex}"
        self.keyed[title] = None
        headers = self.headers | {"Idempotency-Key": title}
        body = {"title": title, "tags": self.chance.sample(["home", "work", "later"], 1)}
        for _ in range(3):
            if answer := await self.call("POST", "/api/tasks", json=body, headers=headers):
                assert answer.status_code == 201, answer.text
                task = answer.json()
                assert title == task["title"]
                self.keyed[title] = task["id"]
                self.may_be[task["id"]] = [state(task)]
                return

    async def write(self, method: str, path: str, body: dict[str, Any] | None) -> None:
        """Change a task; without a body, toggle it."""
        task_id = self.chance.choice(self.sure())
        answer = await self.call(method, f"/api/tasks/{task_id}{path}", json=body)
        (before,) = self.may_be[task_id]
        after = before | (body or {"completed": not before["completed"]})
        if answer is None:
            self.may_be[task_id] = [before, after]
        else:
            assert answer.status_code == 200, answer.text
            assert state(answer.json()) == after
            self.may_be[task_id] = [after]

    async def update(self) -> None:
        """Change a task's description."""
        await self.write("PATCH", "", {"description": uuid.uuid4().hex})

    async def toggle(self) -> None:
        """Toggle or complete a task."""
        await self.write("PATCH", "/complete", self.chance.choice([None, {"completed": True}]))

    async def tag(self) -> None:
        """Change a task's tags."""
        tags = sorted(self.chance.sample(["home", "work", "later"], self.chance.randrange(3)))
        await self.write("PUT", "", {"tags": tags})

    async def delete(self) -> None:
        """Delete a task."""
        task_id = self.chance.choice(self.sure())
        answer = await self.call("DELETE", f"/api/tasks/{task_id}")
        if answer is None:
            self.may_be[task_id].append(GONE)
        else:
            assert answer.status_code == 204, answer.text
            del self.may_be[task_id]
            self.deleted.append(task_id)

    async def read(self) -> None:
        """Read a task of one's own."""
        task_id = self.chance.choice(self.sure())
        if answer := await self.call("GET", f"/api/tasks/{task_id}"):
            assert answer.status_code == 200, answer.text
            assert [state(answer.json())] == self.may_be[task_id]

    async def catch(self) -> None:
        """Ask for the changes of all devices; nobody else's tasks are among them."""
        if answer := await self.call("GET", "/api/tasks/changes?since=0"):
            assert {task["user_id"] for task in answer.json()["changed"]} <= {self.user}

    async def leave(self) -> None:
        """Sign up, sign in, and log out everywhere."""
        account = {"email": f"{uuid.uuid4().hex}@example.com", "password": uuid.uuid4().hex}
        async with httpx.AsyncClient(base_url=self.client.base_url, timeout=20) as browser:
            with contextlib.suppress(httpx.TransportError, KeyError):
                await browser.post(f"{AUTH}/register", json=account)
                tokens = [
                    (await browser.post(f"{AUTH}/login", json=account)).json()["access_token"]
                    for _ in range(2)
                ]
                headers = {"Authorization": f"Bearer {tokens[1]}"}
                path = f"{AUTH}/logout?everywhere=true"
                if (await browser.post(path, headers=headers)).status_code == 204:
                    self.revoked += tokens


def state(task: dict[str, Any]) -> dict[str, Any]:
    """Return what the devices change."""
    tags = sorted(tag["name"] for tag in task["tags"])
    return {"completed": task["completed"], "description": task["description"], "tags": tags}


@pytest.fixture
async def running(project: Path, folder: Path) -> AsyncIterator[tuple[Service, str]]:
    """Run two workers on a PostgreSQL whose processes may be killed."""
    with embedded.postgres(folder) as private:
        options = {"DATABASE_URL": private.url, "AUTH_RATE_LIMIT": "", "LOG_LEVEL": "warning"}
        with service(project, "--workers", "2", **options) as started:
            yield started, private.url


async def disturb(running: Service, url: str, chance: random.Random) -> None:
    """Cut connections all the time, and kill a process now and then."""
    children = Path(f"/proc/{running.process.pid}/task/{running.process.pid}/children")
    while True:
        await asyncio.sleep(chance.uniform(0.5, 3))
        with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            connection = await asyncpg.connect(url, timeout=5)
            try:
                pids = await connection.fetch(
                    "SELECT pid FROM pg_stat_activity"
                    " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
                )
                for row in chance.sample(pids, min(1, len(pids))):
                    if chance.random() < 0.1:
                        os.kill(row["pid"], signal.SIGKILL)  # the whole server starts again
                    else:
                        await connection.execute("SELECT pg_terminate_backend($1)", row["pid"])
            finally:
                connection.terminate()
        if chance.random() < 0.05:
            with contextlib.suppress(OSError):  # it has just ended
                workers = [
                    int(pid)
                    for pid in children.read_text().split()
                    if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
                ]
                for pid in chance.sample(workers, min(1, len(workers))):
                    os.kill(pid, signal.SIGKILL)


async def test_under_random_calls_and_kills_nothing_is_lost_or_doubled_or_revived(
    running: tuple[Service, str],
) -> None:
    faulthandler.cancel_dump_traceback_later()  # it takes longer than other tests
    started, url = running
    seed = random.randrange(10**6)
    print("seed", seed)  # noqa: T201  (shown when it fails)
    chance = random.Random(seed)
    async with contextlib.AsyncExitStack() as stack:

        async def client() -> httpx.AsyncClient:
            return await stack.enter_async_context(httpx.AsyncClient(base_url=started.url))

        devices = [
            Device(await client(), f"user {number % USERS}", random.Random(chance.random()))
            for number in range(ACTORS)
        ]

        async def live(device: Device) -> None:
            until = asyncio.get_running_loop().time() + CAMPAIGN * 60
            while asyncio.get_running_loop().time() < until:
                await device.act()
                await asyncio.sleep(device.chance.uniform(0, 0.4))

        trouble = asyncio.create_task(disturb(started, url, chance))
        await asyncio.gather(*map(live, devices))
        assert not trouble.done(), trouble.exception()
        trouble.cancel()
        await asyncio.gather(trouble, return_exceptions=True)
        started.wait_until_ready()
        await asyncio.sleep(7)  # what got no answer has ended

        for number in range(USERS):
            mine = [device for device in devices if device.user == f"user {number}"]
            tasks = await every_task(mine[0])
            assert await copied(mine[0]) == tasks
            titles = [task["title"] for task in tasks.values()]
            assert len(titles) == len({*titles})
            for device in mine:
                for title, task_id in device.keyed.items():
                    assert task_id or titles.count(title) <= 1
                for task_id, expected in device.may_be.items():
                    assert (state(tasks[task_id]) if task_id in tasks else GONE) in expected
                assert tasks.keys().isdisjoint(device.deleted)
        revoked = [token for device in devices for token in device.revoked]
        for dead in revoked:
            answer = httpx.get(
                f"{started.url}/api/tasks", headers={"Authorization": f"Bearer {dead}"}
            )
            assert answer.json()["code"] in {"token_revoked", "token_expired"}

    acknowledged = sum(device.acknowledged for device in devices)
    unanswered = sum(device.unanswered for device in devices)
    print(f"{acknowledged} answered, {unanswered} not; {len(revoked)} tokens")  # noqa: T201
    assert acknowledged > unanswered
    assert revoked


async def every_task(device: Device) -> dict[int, Any]:
    """Read all pages of a list."""
    tasks: dict[int, Any] = {}
    path: str | None = "/api/tasks?limit=100"
    while path:
        answer = await device.client.get(path, headers=device.headers, timeout=20)
        tasks |= {task["id"]: task for task in answer.raise_for_status().json()}
        path = answer.links.get("next", {}).get("url")
    return tasks


async def copied(device: Device) -> dict[int, Any]:
    """Make a copy from all changes."""
    tasks: dict[int, Any] = {}
    since, more = 0, True
    while more:
        path = f"/api/tasks/changes?since={since}"
        answer = await device.client.get(path, headers=device.headers, timeout=20)
        page = answer.raise_for_status().json()
        tasks |= {task["id"]: task for task in page["changed"]}
        for task_id in page["deleted"]:
            tasks.pop(task_id, None)
        since, more = page["rev"], page["more"]
    return tasks
