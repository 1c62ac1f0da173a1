"""Tokens of a real Better Auth server, fetched by its own client after a fresh sign-up."""

import asyncio
import itertools
import json
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

import db
import key_set
from settings import Settings
from tests import node, test_key_set
from tests.conftest import token
from tests.test_identity import base64url, with_hmac
from tests.test_key_set import Source, outcome
from tests.test_service import Service, service

_numbers = itertools.count()


class BetterAuth:
    """The server, in a process of its own."""

    def __init__(self, folder: Path, algorithm: str) -> None:
        self.algorithm = algorithm
        self.process = subprocess.Popen(
            ["node", "server.mjs", algorithm],  # noqa: S607  (wherever it is)
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.url = self._line()

    def _line(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline().strip()
        assert line
        return line

    def tell(self, command: str) -> str:
        """Have it do something, and return what it says."""
        assert self.process.stdin
        print(command, file=self.process.stdin, flush=True)
        return self._line()

    def sign_up(self) -> dict[str, str]:
        """Sign a new user up, and return the user's id and token."""
        signed_up: dict[str, str] = json.loads(self.tell(f"sign-up u{next(_numbers)}@example.com"))
        return signed_up

    def sign(self, claims: dict[str, Any]) -> str:
        """Make a token that says what we like."""
        return self.tell(f"sign {json.dumps(claims, separators=(',', ':'))}")

    def stop(self) -> None:
        """End it, as an outage does."""
        self.process.kill()
        self.process.communicate()


ALGORITHMS = [
    "EdDSA",  # which it signs by unless told otherwise
    *(pytest.param(each, marks=pytest.mark.campaign) for each in ("ES256", "RS256")),
]


@pytest.fixture(scope="module", params=ALGORITHMS)
def better_auth(request: pytest.FixtureRequest, project: Path) -> Iterator[BetterAuth]:
    """Run a Better Auth server that signs by one of its algorithms."""
    server = BetterAuth(node.install(project / "tests" / "better_auth"), request.param)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def running(
    better_auth: BetterAuth, database: db.Database, shared_clone: Path
) -> Iterator[Service]:
    """Run the service that accepts its tokens."""
    settings = {"DATABASE_URL": database.url, "BETTER_AUTH_URL": better_auth.url}
    with service(shared_clone, **settings) as running:
        yield running


@pytest.fixture(scope="module", autouse=True)
def early(better_auth: BetterAuth) -> list[str]:
    """Sign two users up before any key is rotated."""
    return [better_auth.sign_up()["token"] for _ in range(2)]


@pytest.fixture
def signed_up(better_auth: BetterAuth) -> dict[str, str]:
    """Sign a new user up."""
    return better_auth.sign_up()


def connect(running: Service, token: str) -> httpx.Client:
    """Make a client that sends a token."""
    return httpx.Client(base_url=running.url, headers={"Authorization": f"Bearer {token}"})


def code(running: Service, token: str) -> str | None:
    """Tell why a token is refused, if it is."""
    with connect(running, token) as client:
        response = client.get("/api/tasks")
    return None if response.is_success else response.json()["code"]


def test_a_fresh_user_lists_creates_completes_and_deletes(
    running: Service, signed_up: dict[str, str]
) -> None:
    user_id = signed_up["user_id"]
    with connect(running, signed_up["token"]) as client:
        assert client.get("/api/tasks").json() == []
        task = client.post("/api/tasks", json={"title": "Buy milk"}).json()
        assert task["user_id"] == user_id
        done = client.patch(f"/api/{user_id}/tasks/{task['id']}/complete").json()
        assert done["completed"] is True
        assert client.get("/api/tasks?status=completed").json() == [done]
        assert client.delete(f"/api/tasks/{task['id']}").status_code == 204
        assert client.get("/api/tasks").json() == []
        assert client.get("/api/v1/auth/me").json()["id"] == user_id
        assert client.get("/api/somebody/tasks").status_code == 403


def test_the_frontends_server_can_call_for_a_user(
    running: Service, signed_up: dict[str, str]
) -> None:
    with connect(running, signed_up["server_token"]) as client:
        assert client.get("/api/v1/auth/me").json()["id"] == signed_up["user_id"]


def test_a_user_of_the_shared_secret_with_the_same_id_is_somebody_else(
    running: Service, signed_up: dict[str, str]
) -> None:
    with (
        connect(running, signed_up["token"]) as theirs,
        connect(running, token(sub=signed_up["user_id"])) as shared,
    ):
        task = theirs.post("/api/tasks", json={"title": "Buy milk"}).json()

        assert shared.get("/api/tasks").json() == []
        assert shared.get(f"/api/tasks/{task['id']}").status_code == 404


def test_forged_variants_are_refused(
    better_auth: BetterAuth, running: Service, signed_up: dict[str, str]
) -> None:
    head, payload, signature = signed_up["token"].split(".")
    header = jwt.get_unverified_header(signed_up["token"])
    claims = jwt.decode(signed_up["token"], options={"verify_signature": False})
    keys = httpx.get(f"{better_auth.url}/api/auth/jwks").json()["keys"]
    (key,) = (key for key in keys if key["kid"] == header["kid"])
    pem = jwt.PyJWK(key, header["alg"]).key.public_bytes(
        Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
    )

    def encoded(part: dict[str, Any]) -> str:
        return base64url(json.dumps(part).encode())

    def hmac_signed(secret: bytes) -> str:
        return with_hmac(f"{encoded({**header, 'alg': 'HS256'})}.{payload}", secret)

    forged = [
        hmac_signed(json.dumps(key).encode()),
        hmac_signed(key.get("x", key.get("n")).encode()),
        hmac_signed(pem),
        f"{encoded({'alg': 'none', 'kid': header['kid']})}.{payload}.{signature}",
        f"{head}.{encoded({**claims, 'sub': 'somebody else'})}.{signature}",
    ]
    assert {code(running, each) for each in forged} == {"invalid_token"}


def test_a_session_token_is_told_from_a_jwt(running: Service, signed_up: dict[str, str]) -> None:
    in_the_cookie = signed_up["cookie"].partition("session_token=")[2].partition(";")[0]
    assert signed_up["session"] in in_the_cookie

    for mistaken in (signed_up["session"], in_the_cookie, unquote(in_the_cookie)):
        with connect(running, mistaken) as client:
            assert "authClient.token()" in client.get("/api/tasks").json()["detail"]


@pytest.mark.parametrize("claim", ["iss", "aud"])
def test_a_token_of_the_same_key_must_be_of_and_for_the_server(
    better_auth: BetterAuth, running: Service, signed_up: dict[str, str], claim: str
) -> None:
    claims = jwt.decode(signed_up["token"], options={"verify_signature": False})

    same, other = better_auth.sign(claims), better_auth.sign({**claims, claim: "https://x.example"})

    assert (code(running, same), code(running, other)) == (None, "invalid_token")


class Relay(Source):
    """What stands between a service and the server: it passes its keys on, or does worse."""

    def __init__(self, server: BetterAuth) -> None:
        super().__init__()
        self.server = server
        self.is_over = asyncio.Event()
        self.answers = self.pass_on

    async def pass_on(self) -> bytes:
        """Answer as the server does."""
        async with httpx.AsyncClient() as client:
            response = await client.get(f"{self.server.url}/api/auth/jwks")
        return self.written(response.content)

    async def hangs(self) -> bytes:
        """Say nothing until it is over, and answer then."""
        await self.is_over.wait()
        return await self.pass_on()

    async def answers_rubbish(self) -> bytes:
        """Answer with what is no key set."""
        return self.written(b"<html>")

    async def fails(self) -> bytes:
        """Answer as a proxy does whose server is down."""
        return self.written(b"{}", b"502 Bad Gateway")

    async def is_down(self) -> bytes:
        """Hang up."""
        raise ConnectionError


@pytest.fixture
async def relay(better_auth: BetterAuth) -> AsyncIterator[Relay]:
    """Run a relay."""
    relay = Relay(better_auth)
    async with test_key_set.served(relay):
        yield relay


@pytest.fixture
async def relayed(
    configured: Settings, better_auth: BetterAuth, relay: Relay, signed_up: dict[str, str]
) -> AsyncIterator[httpx.AsyncClient]:
    """Give a client of a service that has the server's keys through the relay."""
    urls = {"better_auth_url": better_auth.url, "jwks_url": relay.url}
    async with test_key_set.service(configured, **urls) as client:
        assert await outcome(client, signed_up["token"]) == (200, "")
        yield client


@pytest.mark.parametrize("trouble", ["hangs", "answers_rubbish", "fails", "is_down"])
async def test_while_its_keys_cannot_be_had_known_ones_are_good_and_others_get_an_answer(
    better_auth: BetterAuth,
    relayed: httpx.AsyncClient,
    relay: Relay,
    signed_up: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    trouble: str,
) -> None:
    monkeypatch.setattr(key_set, "COOLDOWN_SECONDS", 0.0)
    if better_auth.algorithm != "EdDSA":  # to wait once in full is enough
        monkeypatch.setattr(key_set, "WAIT_SECONDS", 1.0)
    claims = jwt.decode(signed_up["token"], options={"verify_signature": False})
    fresh = [better_auth.sign({**claims, "jti": str(number)}) for number in range(3)]
    better_auth.tell("rotate")
    unknown = better_auth.sign_up()["token"]
    relay.answers = getattr(relay, trouble)
    before = relay.fetches

    async def refused() -> tuple[tuple[int, str], float]:
        started = time.monotonic()
        return await outcome(relayed, unknown), time.monotonic() - started

    refusals = [asyncio.create_task(refused()) for _ in range(5)]
    while relay.fetches == before:
        await asyncio.sleep(0.01)
    known = [await outcome(relayed, each) for each in (signed_up["token"], *fresh)]
    had_to_wait = [not each.done() for each in refusals]
    found = await asyncio.gather(*refusals)

    assert known == [(200, "")] * 4
    if trouble == "hangs":  # then those of known keys were all served before the first refusal
        assert all(had_to_wait)
        assert relay.fetches == before + 1
    assert {answer for answer, _ in found} == {(503, "unavailable")}
    assert max(waited for _, waited in found) < 3
    relay.answers = relay.pass_on
    relay.is_over.set()
    assert await outcome(relayed, unknown) == (200, "")


async def test_a_flood_of_unknown_kids_fetches_once_per_cooldown(
    relayed: httpx.AsyncClient,
    relay: Relay,
    signed_up: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cooldown = 0.3
    monkeypatch.setattr(key_set, "COOLDOWN_SECONDS", cooldown)
    header = jwt.get_unverified_header(signed_up["token"])
    _, rest = signed_up["token"].split(".", 1)

    def of_an_unknown_key() -> str:
        part = json.dumps({**header, "kid": f"unknown {next(_numbers)}"}).encode()
        return f"{base64url(part)}.{rest}"

    found: set[tuple[int, str]] = set()
    before, started = relay.fetches, time.monotonic()
    async with asyncio.timeout(10):
        while relay.fetches < before + 3:
            flood = (outcome(relayed, of_an_unknown_key()) for _ in range(20))
            found |= set(await asyncio.gather(*flood))
            assert relay.fetches - before <= 1 + (time.monotonic() - started) / cooldown

    assert found == {(401, "invalid_token")}
    assert await outcome(relayed, signed_up["token"]) == (200, "")


def test_keys_rotate_and_the_server_goes_away(
    better_auth: BetterAuth, running: Service, early: list[str]
) -> None:
    old, unsent_old = early
    assert code(running, old) is None

    assert better_auth.tell("rotate") == "rotated"
    new = better_auth.sign_up()["token"]
    deadline = time.monotonic() + 10  # for the cooldown, where a test before this one fetched
    while code(running, new) and time.monotonic() < deadline:
        time.sleep(0.2)

    assert jwt.get_unverified_header(new)["kid"] != jwt.get_unverified_header(old)["kid"]
    assert (code(running, new), code(running, old)) == (None, None)
    unsent_new = better_auth.sign_up()["token"]
    better_auth.stop()
    assert (code(running, new), code(running, old)) == (None, None)
    assert (code(running, unsent_new), code(running, unsent_old)) == (None, None)
