"""Rate limits: by user, address and account; in memory, and in a real Redis for all workers."""

import asyncio
import contextlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp

import main
import rate_limits
from errors import CannotStart
from settings import Settings
from tests.conftest import Person, token
from tests.contract import PASSWORD
from tests.test_auth import AUTH, code, new_email
from tests.test_service import free_port

Start = Callable[..., Any]
REDIS = shutil.which("redis-server")


@pytest.fixture
async def start(configured: Settings) -> AsyncIterator[Start]:
    """Start workers with limits."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(**changes: object) -> ASGIApp:
            defaults = {"rate_limit": None, "auth_rate_limit": None, "refresh_rate_limit": None}
            app = main.create_app(configured.model_copy(update={**defaults, **changes}))
            await stack.enter_async_context(app.router.lifespan_context(app))
            return app

        yield start


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no second pass between requests, on a busy machine either."""
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)


def connect(app: ASGIApp, token: str | None = None, address: str = "192.0.2.1") -> Person:
    """Make a client with an address."""
    transport = httpx.ASGITransport(app, client=(address, 123))
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.AsyncClient(transport=transport, base_url="https://test", headers=headers)


@pytest.mark.usefixtures("frozen")
async def test_every_answer_says_what_is_left(start: Start, ada_id: str) -> None:
    ada = connect(await start(rate_limit="3/minute"), token(sub=ada_id))

    answers = [await ada.get(f"/api/tasks{path}") for path in ("", "/999", "?x=1", "")]

    assert [answer.status_code for answer in answers] == [200, 404, 422, 429]
    assert {answer.headers["RateLimit-Policy"] for answer in answers} == {'"user";q=3;w=60'}
    assert [answer.headers["RateLimit"] for answer in answers] == [
        f'"user";r={left};t=60' for left in (2, 1, 0, 0)
    ]
    assert await code(answers[-1]) == (429, "rate_limited")
    assert 0 < int(answers[-1].headers["Retry-After"]) <= 60


async def test_users_have_limits_of_their_own(start: Start, ada_id: str, bob_id: str) -> None:
    app = await start(rate_limit="1/minute")
    ada, bob = (connect(app, token(sub=user_id)) for user_id in (ada_id, bob_id))

    assert (await ada.get("/api/tasks")).status_code == 200
    assert (await ada.get("/api/tasks")).status_code == 429
    assert (await bob.get("/api/tasks")).status_code == 200


async def test_a_window_ends(start: Start, ada_id: str) -> None:
    ada = connect(await start(rate_limit="1/second"), token(sub=ada_id))

    assert (await ada.get("/api/tasks")).status_code == 200
    assert (await ada.get("/api/tasks")).status_code == 429
    await asyncio.sleep(1.1)
    assert (await ada.get("/api/tasks")).status_code == 200


async def test_strangers_are_counted_by_address(start: Start, ada_id: str) -> None:
    app = await start(rate_limit="2/minute")
    stranger = connect(app, "not.a.token")
    forger = connect(app, "not.a.token")
    forger.headers["X-Forwarded-For"] = "198.51.100.7"

    assert [(await stranger.get("/api/tasks")).status_code for _ in range(2)] == [401, 401]
    assert (await forger.get("/api/tasks")).status_code == 429
    assert (await connect(app, None, "192.0.2.2").get("/api/tasks")).status_code == 401
    assert (await connect(app, token(sub=ada_id)).get("/api/tasks")).status_code == 200


@pytest.mark.parametrize(
    ("one", "other", "are_one"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("/run/a socket", "/run/a socket", True),
    ],
)
async def test_addresses_that_one_client_may_choose_from_are_one(
    start: Start, one: str, other: str, are_one: bool
) -> None:
    app = await start(rate_limit="1/minute")

    assert (await connect(app, None, one).get("/api/tasks")).status_code == 401
    second = await connect(app, None, other).get("/api/tasks")

    assert second.status_code == (429 if are_one else 401)


FORWARDED: list[tuple[int, list[str | bytes], str]] = [
    (0, ["198.51.100.7"], "192.0.2.1"),
    (1, ["198.51.100.7"], "198.51.100.7"),
    (1, ["203.0.113.9, 198.51.100.7"], "198.51.100.7"),
    (2, ["203.0.113.9, 198.51.100.7"], "203.0.113.9"),
    (2, ["x, 203.0.113.9", "198.51.100.7"], "203.0.113.9"),
    (2, ["198.51.100.7"], "192.0.2.1"),
    (1, [], "192.0.2.1"),
    (1, [""], "192.0.2.1"),
    (1, ["198.51.100.7:4711"], "198.51.100.7"),
    (1, ["2001:DB8::7"], "2001:DB8::7"),
    (1, ["[2001:db8::7]"], "2001:db8::7"),
    (1, ["[2001:db8::7]:4711"], "2001:db8::7"),
    (1, ["::ffff:198.51.100.7"], "::ffff:198.51.100.7"),
    # no addresses
    (1, ["198.51.100.7,"], "192.0.2.1"),
    (1, ["unknown"], "192.0.2.1"),
    (1, ["198.51.100"], "192.0.2.1"),
    (1, ["198.51.100.7/24"], "192.0.2.1"),
    (1, ['"198.51.100.7"'], "192.0.2.1"),
    (1, [b"198.51.100.7\xff"], "192.0.2.1"),
    (1, ["9" * 10_000], "192.0.2.1"),
    (20, ["," * 10_000], "192.0.2.1"),
]


@pytest.mark.parametrize(("hops", "sent", "seen"), FORWARDED)
async def test_the_client_is_whom_the_outermost_trusted_proxy_saw(
    start: Start,
    log_lines: Callable[[], str],
    hops: int,
    sent: list[str | bytes],
    seen: str,
) -> None:
    app = await start(rate_limit="1/minute", trusted_proxy_hops=hops)
    headers = [
        (b"X-Forwarded-For", one if isinstance(one, bytes) else one.encode()) for one in sent
    ]

    refused = await connect(app).get("/api/tasks", headers=headers)
    direct = await connect(await start(), None, seen).get("/api/tasks")
    again = await connect(app).get("/api/tasks", headers=[(b"X-Forwarded-For", b"x"), *headers])

    lines = [json.loads(line) for line in log_lines().splitlines()]
    assert refused.status_code == direct.status_code == 401
    assert again.status_code == 429
    assert [line["client"] for line in lines if "client" in line] == [seen] * len(lines)


async def test_each_policy_counts_by_itself_also_with_the_numbers_of_another(start: Start) -> None:
    limits = ("rate_limit", "auth_rate_limit", "refresh_rate_limit")
    stranger = connect(await start(**dict.fromkeys(limits, "1/minute")))
    calls = [("GET", "/api/tasks"), ("POST", f"{AUTH}/login"), ("POST", f"{AUTH}/refresh")]
    stranger.headers["Cookie"] = "refresh_token=x"

    statuses = [
        (await stranger.request(method, path, json={})).status_code for method, path in calls * 2
    ]

    assert statuses == [401, 422, 401, 429, 429, 429]


async def test_a_limit_that_is_off_says_nothing(start: Start, ada_id: str) -> None:
    answer = await connect(await start(), token(sub=ada_id)).get("/api/tasks")

    assert "RateLimit" not in answer.headers
    assert "RateLimit-Policy" not in answer.headers


@pytest.mark.usefixtures("frozen")
async def test_sign_ins_are_counted_by_address_and_by_account(start: Start) -> None:
    app = await start(auth_rate_limit="2/minute")
    email = new_email()

    answers = [
        await connect(app, None, f"192.0.2.{n}").post(
            f"{AUTH}/login", json={"email": email, "password": PASSWORD}
        )
        for n in range(3)
    ]

    assert [answer.status_code for answer in answers] == [401, 401, 429]
    assert answers[0].headers["RateLimit-Policy"] == '"address";q=2;w=60, "account";q=2;w=60'
    assert answers[2].headers["RateLimit"] == '"address";r=1;t=60, "account";r=0;t=60'


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "register"),
        ("POST", "login"),
        ("POST", "token"),
        ("POST", "password"),
        ("DELETE", "me"),
    ],
)
async def test_attempts_are_counted_by_address_whatever_they_hold(
    start: Start, ada_id: str, method: str, path: str
) -> None:
    app = await start(auth_rate_limit="2/minute")
    person = connect(app, token(sub=ada_id))

    statuses = [
        (await person.request(method, f"{AUTH}/{path}", content=b"?")).status_code for _ in range(3)
    ]

    assert statuses[2] == 429
    assert 429 not in statuses[:2]


async def test_guessing_the_current_password_is_limited_per_account(
    start: Start,
) -> None:
    app = await start()
    person, who = connect(app), {"email": new_email(), "password": PASSWORD}
    await person.post(f"{AUTH}/register", json=who)
    answer = (await person.post(f"{AUTH}/login", json=who)).json()
    limited = await start(auth_rate_limit="2/minute")

    guesses = [
        await connect(limited, answer["access_token"], f"192.0.2.{n}").request(
            "DELETE", f"{AUTH}/me", json={"password": "wrong"}
        )
        for n in range(3)
    ]

    assert [guess.status_code for guess in guesses] == [403, 403, 429]


@pytest.mark.parametrize(
    "storage", ["redis://h:99999", "redis://h:abc", "redis+cluster://", "redis+sentinel://"]
)
async def test_an_impossible_storage_ends_the_start_with_one_line(
    start: Start, storage: str
) -> None:
    with pytest.raises(CannotStart, match="RATE_LIMIT_STORAGE: must look like"):
        await start(rate_limit_storage=f"async+{storage}")


async def test_refreshes_are_limited(start: Start) -> None:
    app = await start(refresh_rate_limit="2/minute")
    person, who = connect(app), {"email": new_email(), "password": PASSWORD}
    await person.post(f"{AUTH}/register", json=who)
    await person.post(f"{AUTH}/login", json=who)
    forger = connect(app, None, "192.0.2.9")

    statuses = [(await person.post(f"{AUTH}/refresh")).status_code for _ in range(3)]
    forged = [
        (await forger.post(f"{AUTH}/refresh", headers={"Cookie": "refresh_token=x"})).status_code
        for _ in range(3)
    ]

    assert statuses == [200, 200, 429]
    assert forged == [401, 401, 429]


async def test_expired_windows_take_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limits, "SWEEP_SECONDS", 0)
    memory = rate_limits.Memory()
    for number in range(100):
        await memory.incr(str(number), 0.01)
    await asyncio.sleep(0.02)

    await memory.incr("x", 60)

    assert list(memory.storage) == ["x"]
    assert await memory.get("1") == 0
    assert await memory.check()
    await memory.clear("x")
    await memory.incr("y", 60)
    await memory.reset()
    assert not memory.storage


@contextlib.contextmanager
def redis(folder: Path, port: int) -> Iterator[None]:
    """Run a Redis."""
    assert REDIS
    process = subprocess.Popen(
        [REDIS, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)],
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def port() -> int:
    """Find a free port."""
    return free_port()


@pytest.mark.skipif(not REDIS, reason="needs redis-server, from Debian's package of that name")
@pytest.mark.usefixtures("forgiving")  # Redis's client is not closed, and need not be
async def test_redis_makes_limits_exact_across_workers(
    start: Start, ada_id: str, folder: Path, port: int
) -> None:
    with redis(folder, port):
        options = {
            "rate_limit": "30/minute",
            "rate_limit_storage": f"async+redis://127.0.0.1:{port}",
        }
        workers = [connect(await start(**options), token(sub=ada_id)) for _ in range(2)]

        answers = [
            answer
            for _ in range(8)
            for answer in await asyncio.gather(
                *(worker.get("/api/tasks") for worker in workers for _ in range(5))
            )
        ]

    statuses = [answer.status_code for answer in answers]
    assert statuses.count(200) == 30
    assert statuses.count(429) == 50


@pytest.mark.skipif(not REDIS, reason="needs redis-server, from Debian's package of that name")
@pytest.mark.usefixtures("forgiving")
async def test_without_its_storage_signing_in_is_closed_and_the_rest_open(
    start: Start,
    ada_id: str,
    folder: Path,
    port: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(rate_limits, "RETRY_SECONDS", 0.2)
    options = {"rate_limit_storage": f"async+redis://127.0.0.1:{port}"}
    app = await start(rate_limit="30/minute", auth_rate_limit="9/minute", **options)
    ada = connect(app, token(sub=ada_id))
    who = {"email": new_email(), "password": PASSWORD}

    started = time.monotonic()
    tasks = [await ada.get("/api/tasks") for _ in range(20)]
    login = await ada.post(f"{AUTH}/login", json=who)
    await asyncio.sleep(0.21)
    tasks.append(await ada.get("/api/tasks"))
    assert time.monotonic() - started < 5
    with redis(folder, port):
        await asyncio.sleep(0.3)
        again = await ada.post(f"{AUTH}/login", json=who)

    assert {answer.status_code for answer in tasks} == {200}
    assert await code(login) == (503, "unavailable")
    assert await code(again) == (401, "invalid_credentials")
    assert capsys.readouterr().out.count("the storage of rate limits is down") == 1


async def test_windows_that_last_are_kept_when_expired_ones_are_swept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rate_limits, "SWEEP_SECONDS", 0)
    memory = rate_limits.Memory()

    assert [await memory.incr("x", 60) for _ in range(3)] == [1, 2, 3]


@pytest.mark.usefixtures("forgiving")
async def test_not_every_call_waits_for_a_storage_that_hangs(
    start: Start, ada_id: str, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_limits, "STORAGE_SECONDS", 0.5)
    storage = {"rate_limit_storage": f"async+redis://127.0.0.1:{port}"}
    with socket.create_server(("127.0.0.1", port)):  # which accepts, and says nothing
        app = await start(rate_limit="30/minute", auth_rate_limit="9/minute", **storage)
        ada = connect(app, token(sub=ada_id))
        await ada.get("/api/tasks")
        async with asyncio.timeout(3):
            answers = [await ada.get("/api/tasks") for _ in range(8)]
            who = {"email": new_email(), "password": PASSWORD}
            logins = [await ada.post(f"{AUTH}/login", json=who) for _ in range(3)]

    assert {answer.status_code for answer in answers} == {200}
    assert [await code(login) for login in logins] == [(503, "unavailable")] * 3
