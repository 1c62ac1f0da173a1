"""Tokens of a real Better Auth server, fetched by its own client after a fresh sign-up."""

import base64
import hmac
import itertools
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

import db
from tests import node
from tests.conftest import token
from tests.test_service import Service, service

_numbers = itertools.count()


class BetterAuth:
    """The server, in a process of its own."""

    def __init__(self, folder: Path, algorithm: str) -> None:
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


@pytest.fixture(scope="module", params=["EdDSA", "ES256", "RS256"])
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
        return base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")

    def hmac_signed(secret: bytes) -> str:
        signed = f"{encoded({**header, 'alg': 'HS256'})}.{payload}"
        mac = hmac.digest(secret, signed.encode(), "sha256")
        return f"{signed}.{base64.urlsafe_b64encode(mac).decode().rstrip('=')}"

    forged = [
        hmac_signed(json.dumps(key).encode()),
        hmac_signed(key.get("x", key.get("n")).encode()),
        hmac_signed(pem),
        f"{encoded({'alg': 'none', 'kid': header['kid']})}.{payload}.{signature}",
        f"{head}.{encoded({**claims, 'sub': 'somebody else'})}.{signature}",
    ]
    assert {code(running, each) for each in forged} == {"invalid_token"}


@pytest.mark.parametrize("claim", ["iss", "aud"])
def test_a_token_of_the_same_key_must_be_of_and_for_the_server(
    better_auth: BetterAuth, running: Service, signed_up: dict[str, str], claim: str
) -> None:
    claims = jwt.decode(signed_up["token"], options={"verify_signature": False})

    same, other = better_auth.sign(claims), better_auth.sign({**claims, claim: "https://x.example"})

    assert (code(running, same), code(running, other)) == (None, "invalid_token")


def test_keys_rotate_and_the_server_goes_away(
    better_auth: BetterAuth, running: Service, signed_up: dict[str, str]
) -> None:
    old = signed_up["token"]
    assert code(running, old) is None

    assert better_auth.tell("rotate") == "rotated"
    new = better_auth.sign_up()["token"]
    deadline = time.monotonic() + 10  # for the cooldown, where a test before this one fetched
    while code(running, new) and time.monotonic() < deadline:
        time.sleep(0.2)

    assert jwt.get_unverified_header(new)["kid"] != jwt.get_unverified_header(old)["kid"]
    assert (code(running, new), code(running, old)) == (None, None)
    better_auth.stop()
    assert (code(running, new), code(running, old)) == (None, None)
