"""Tokens of keys that another server publishes: what it may do, and what its failures may not."""

import asyncio
import base64
import contextlib
import ipaddress
import json
import ssl
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

import key_set
import main
import security
from settings import Settings
from tests.conftest import SECRET, token
from tests.test_identity import base64url, unsigned, with_hmac

KEYS: dict[str, Any] = {
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "ES512": ec.generate_private_key(ec.SECP521R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate(),
    "RS256": rsa.generate_private_key(65537, 2048),
    "PS256": rsa.generate_private_key(65537, 2048),
}


def published(algorithm: str, kid: str | None = None, **members: object) -> dict[str, Any]:
    """Write a public key as a JSON Web Key."""
    public = KEYS[algorithm].public_key()
    write: Any = {"Ed": OKPAlgorithm, "ES": ECAlgorithm}.get(algorithm[:2], RSAAlgorithm)
    key = {**write.to_jwk(public, as_dict=True), "kid": kid or algorithm, **members}
    return {name: value for name, value in key.items() if value is not None}


class Source:
    """An HTTP server on a real socket that publishes keys, or does something worse."""

    def __init__(self) -> None:
        self.answers: Callable[[], Awaitable[bytes]] = self.keys
        self.published = [published(algorithm) for algorithm in KEYS]
        self.fetches = 0
        self.url = ""

    async def keys(self) -> bytes:
        """Publish the keys."""
        return self.written(json.dumps({"keys": self.published}).encode())

    def written(self, body: bytes, status: bytes = b"200 OK") -> bytes:
        """Write an answer."""
        return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)

    def redirects(self, *locations: str) -> None:
        """Send each fetch on to a place, and then answer as before."""
        left, then = [*locations], self.answers

        async def answer() -> bytes:
            if not left:
                return await then()
            head = f"HTTP/1.1 302 Found\r\nLocation: {left.pop(0)}\r\nContent-Length: 0\r\n\r\n"
            return head.encode("latin-1")

        self.answers = answer

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer as told."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                self.fetches += 1
                writer.write(await self.answers())
                await writer.drain()
        writer.close()

    def token(self, algorithm: str = "EdDSA", kid: str | None = None, **claims: object) -> str:
        """Sign claims as this server would."""
        everything = {
            "iss": self.url,
            "aud": self.url,
            "exp": time.time() + 600,
            "sub": "ada",
            **claims,
        }
        present = {name: value for name, value in everything.items() if value is not None}
        headers = {"kid": kid or algorithm}
        return jwt.encode(present, KEYS[algorithm], algorithm, headers=headers)


@contextlib.asynccontextmanager
async def served(source: Source, tls: ssl.SSLContext | None = None) -> AsyncIterator[None]:
    """Run a source of keys until the block ends."""
    server = await asyncio.start_server(source.serve, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    source.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
    yield
    server.close()


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """Make a certificate that everybody trusts."""
    key, address = KEYS["ES256"], ipaddress.ip_address("127.0.0.1")
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(address)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = tmp_path / "tls.pem"
    written = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    pem.write_bytes(written + certificate.public_bytes(serialization.Encoding.PEM))
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem)
    return context


@pytest.fixture
async def other() -> AsyncIterator[Source]:
    """Run another source, on another origin."""
    other = Source()
    async with served(other):
        yield other


@pytest.fixture
async def source() -> AsyncIterator[Source]:
    """Run a source of keys."""
    source = Source()
    async with served(source):
        yield source


@contextlib.asynccontextmanager
async def service(configured: Settings, **changes: object) -> AsyncIterator[httpx.AsyncClient]:
    """Run a service that accepts tokens of a source."""
    app = main.create_app(configured.model_copy(update=changes))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        yield client


@pytest.fixture
async def client(configured: Settings, source: Source) -> AsyncIterator[httpx.AsyncClient]:
    """Give a client of such a service, without a token."""
    async with service(configured, better_auth_url=source.url) as client:
        await call(client, source.token())
        yield client


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a second of tests be many of a deployment."""
    monkeypatch.setattr(key_set, "COOLDOWN_SECONDS", 0.0)
    monkeypatch.setattr(key_set, "WAIT_SECONDS", 0.2)
    monkeypatch.setattr(key_set, "FETCH_SECONDS", 0.4)
    monkeypatch.setattr(key_set, "RETRY_SECONDS", 0.05)


async def call(client: httpx.AsyncClient, token: str, path: str = "/api/tasks") -> httpx.Response:
    """List tasks with a token."""
    return await client.get(path, headers={"Authorization": f"Bearer {token}"})


async def outcome(client: httpx.AsyncClient, token: str) -> tuple[int, str]:
    """Tell how a token is received."""
    response = await call(client, token)
    return response.status_code, "" if response.is_success else response.json()["code"]


@pytest.mark.parametrize("algorithm", KEYS)
async def test_tokens_of_every_algorithm_are_accepted(
    client: httpx.AsyncClient, source: Source, algorithm: str
) -> None:
    token = source.token(algorithm, sub=f"ada {algorithm}")
    headers = {"Authorization": f"Bearer {token}"}

    task = (await client.post("/api/tasks", json={"title": "x"}, headers=headers)).json()

    assert task["user_id"] == f"ada {algorithm}"
    assert (await call(client, token, f"/api/ada {algorithm}/tasks")).json() == [task]
    assert (await call(client, token, f"/api/jwks_ada {algorithm}/tasks")).status_code == 403
    me = (await call(client, token, "/api/v1/auth/me")).json()
    assert me["id"] == f"ada {algorithm}"


async def test_the_longest_id_is_accepted(client: httpx.AsyncClient, source: Source) -> None:
    headers = {"Authorization": f"Bearer {source.token(sub='é' * 255)}"}

    response = await client.post("/api/tasks", json={"title": "x"}, headers=headers)

    assert response.json()["user_id"] == "é" * 255
    assert await outcome(client, source.token(sub="é" * 256)) == (401, "invalid_token")


async def test_users_of_different_issuers_never_meet(
    client: httpx.AsyncClient, source: Source
) -> None:
    theirs = source.token(sub="carol")
    shared = token(sub="carol")
    for each in (theirs, shared):
        await client.post(
            "/api/tasks", json={"title": "x"}, headers={"Authorization": f"Bearer {each}"}
        )

    lists = [(await call(client, each)).json() for each in (theirs, shared)]

    assert [len(tasks) for tasks in lists] == [1, 1]
    assert lists[0][0]["id"] != lists[1][0]["id"]
    assert {tasks[0]["user_id"] for tasks in lists} == {"carol"}
    assert await outcome(client, token(sub="jwks_carol")) == (401, "invalid_token")
    for kept in ("local_carol", "jwks_carol"):
        assert (await call(client, source.token(sub=kept))).json() == []


async def test_users_change_and_delete_only_themselves(
    client: httpx.AsyncClient, source: Source
) -> None:
    theirs, shared = (
        {"Authorization": f"Bearer {each}"}
        for each in (source.token(sub="erin", iat=time.time()), token(sub="erin"))
    )
    await client.post("/api/tasks", json={"title": "x"}, headers=shared)
    await client.post("/api/tasks", json={"title": "x"}, headers=theirs)

    renamed = await client.patch("/api/v1/auth/me", json={"name": "Erin"}, headers=theirs)
    deleted = await client.delete("/api/v1/auth/me", headers=theirs)

    assert (renamed.status_code, renamed.json()["id"]) == (200, "erin")
    assert deleted.status_code == 204
    assert (await client.get("/api/v1/auth/me", headers=shared)).json()["name"] is None
    assert len((await client.get("/api/tasks", headers=shared)).json()) == 1


def hmac_of(secret: bytes, **header: object) -> str:
    """Sign by HMAC with what is public, which PyJWT itself refuses to do."""
    claims = {"sub": "ada", "exp": time.time() + 600}
    return with_hmac(unsigned({"alg": "HS256", **header}, claims).rstrip("."), secret)


def pem(algorithm: str) -> bytes:
    """Write a public key as text."""
    written: bytes = (
        KEYS[algorithm]
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return written


FORGED: dict[str, Callable[[Source], str]] = {
    "another issuer": lambda source: source.token(iss="http://127.0.0.1"),
    "no issuer": lambda source: source.token(iss=None),
    "an issuer with a slash": lambda source: source.token(iss=source.url + "/"),
    "another audience": lambda source: source.token(aud="http://127.0.0.1"),
    "no audience": lambda source: source.token(aud=None),
    "an audience beside a client": lambda source: source.token(aud="x", azp=source.url),
    "an empty audience beside a client": lambda source: source.token(aud=[], azp=source.url),
    "another client": lambda source: source.token(aud=None, azp="http://127.0.0.1"),
    "another client id": lambda source: source.token(aud=None, client_id=source.url + "/"),
    "two clients": lambda source: source.token(aud=None, azp="x", client_id=source.url),
    "a list of clients": lambda source: source.token(aud=None, azp=[source.url]),
    "an object as client": lambda source: source.token(aud=None, azp={source.url: 1}),
    "true as client": lambda source: source.token(aud=None, client_id=True),
    "no user": lambda source: source.token(sub=None),
    "no expiry": lambda source: source.token(exp=None),
    "not yet valid": lambda source: source.token(nbf=time.time() + 60),
    "another key's kid": lambda source: source.token(kid="ES256"),
    "an RSA key's other padding": lambda source: jwt.encode(
        {"iss": source.url, "aud": source.url, "sub": "ada", "exp": time.time() + 600},
        KEYS["PS256"],
        "RS384",
        headers={"kid": "PS256"},
    ),
    "no kid": lambda source: jwt.encode(
        {"iss": source.url, "aud": source.url, "sub": "ada", "exp": time.time() + 600},
        KEYS["EdDSA"],
        "EdDSA",
    ),
    "no algorithm": lambda _: unsigned({"alg": "none", "kid": "EdDSA"}, {"sub": "ada"}, b"x"),
    "HMAC with a public key": lambda _: hmac_of(pem("RS256"), kid="RS256"),
    "HMAC with a JWK": lambda _: hmac_of(json.dumps(published("EdDSA")).encode(), kid="EdDSA"),
    "our own kind": lambda _: jwt.encode(
        {"iss": "todo-api", "sub": "local_1", "sid": "1" * 32, "exp": time.time() + 600},
        KEYS["EdDSA"],
        "EdDSA",
        headers={"kid": "EdDSA", "typ": "at+jwt"},
    ),
    "the secret's HS512": lambda _: token(algorithm="HS512", sub="ada"),
}


@pytest.mark.parametrize("name", FORGED)
async def test_forged_tokens_are_refused(
    client: httpx.AsyncClient, source: Source, name: str
) -> None:
    assert await outcome(client, FORGED[name](source)) == (401, "invalid_token")


@pytest.mark.parametrize("claim", ["azp", "client_id"])
async def test_a_token_without_audience_is_held_to_its_client(
    client: httpx.AsyncClient, source: Source, claim: str
) -> None:
    assert await outcome(client, source.token(aud=None, **{claim: source.url})) == (200, "")


@pytest.mark.parametrize("of_the_key", ["EdDSA", "Ed25519", None])
def test_both_names_of_an_algorithm_mean_the_same(of_the_key: str | None) -> None:
    verifier = security.Verifier(SECRET)
    verifier.trust(security.read_keys({"keys": [published("EdDSA", "one", alg=of_the_key)]}))

    for name in ("EdDSA", "Ed25519"):
        theirs = jwt.encode(
            {"sub": "ada", "exp": time.time() + 600}, KEYS["EdDSA"], name, headers={"kid": "one"}
        )
        assert verifier.claims(theirs).subject == "ada"


async def test_an_expired_token_says_so(client: httpx.AsyncClient, source: Source) -> None:
    assert await outcome(client, source.token(exp=time.time() - 60)) == (401, "token_expired")


async def test_a_token_that_was_logged_out_is_refused(
    client: httpx.AsyncClient, source: Source
) -> None:
    theirs = source.token(sub="dora", jti="1")
    headers = {"Authorization": f"Bearer {theirs}"}

    assert (await client.post("/api/v1/auth/logout", headers=headers)).status_code == 204

    assert await outcome(client, theirs) == (401, "token_revoked")


async def test_the_three_kinds_work_side_by_side(client: httpx.AsyncClient, source: Source) -> None:
    form = {"email": "side@example.com", "password": "canary horse battery"}
    await client.post("/api/v1/auth/register", json=form)
    local = (await client.post("/api/v1/auth/login", json=form)).json()["access_token"]

    found = [await outcome(client, each) for each in (local, token(sub="a"), source.token())]

    assert found == [(200, "")] * 3


async def test_without_the_setting_no_such_token_is_accepted(
    configured: Settings, source: Source
) -> None:
    async with service(configured) as client:
        assert await outcome(client, source.token()) == (401, "invalid_token")
    assert source.fetches == 0


async def test_another_provider_is_known_by_three_settings(
    configured: Settings, source: Source
) -> None:
    settings = {"jwks_url": f"{source.url}/keys", "jwt_issuer": "https://idp", "jwt_audience": "a"}
    async with service(configured, **settings) as client:
        theirs = source.token(iss="https://idp", aud=["a", "b"])
        assert await outcome(client, theirs) == (200, "")
        assert await outcome(client, source.token()) == (401, "invalid_token")


async def test_a_new_key_is_learned_and_a_flood_of_unknown_ones_fetches_once(
    client: httpx.AsyncClient, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.published.append(published("EdDSA", "new"))
    monkeypatch.setattr(key_set, "COOLDOWN_SECONDS", 0.0)
    assert await outcome(client, source.token(kid="new")) == (200, "")
    monkeypatch.setattr(key_set, "COOLDOWN_SECONDS", 5.0)
    before = source.fetches

    found = await asyncio.gather(
        *(outcome(client, source.token(kid=f"unknown {number}")) for number in range(100))
    )

    assert set(found) == {(401, "invalid_token")}
    assert source.fetches == before
    monkeypatch.setattr(key_set, "COOLDOWN_SECONDS", 0.0)

    async def slowly() -> bytes:
        await asyncio.sleep(0.1)
        return await source.keys()

    source.answers = slowly
    await asyncio.gather(
        *(outcome(client, source.token(kid=f"unknown {number}")) for number in range(100))
    )
    assert source.fetches == before + 1


@pytest.mark.usefixtures("impatient")
async def test_a_withdrawn_key_is_refused_after_the_cache_time(
    configured: Settings, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_set, "CACHE_SECONDS", 0.5)
    async with service(configured, better_auth_url=source.url) as client:
        assert await outcome(client, source.token()) == (200, "")
        source.published = [published("ES256"), published("RS256", "EdDSA")]
        await asyncio.sleep(0.6)

        assert await outcome(client, source.token()) == (401, "invalid_token")
        assert await outcome(client, source.token("ES256")) == (200, "")


async def hang() -> bytes:
    """Say nothing."""
    await asyncio.sleep(3600)
    return b""


RUBBISH: dict[str, bytes] = {
    "no JSON": b"<html>",
    "no object": b"[]",
    "no list": b'{"keys": {}}',
    "too many": json.dumps({"keys": [{}] * 101}).encode(),
    "too large": b'{"keys": [' + b" " * 300_000 + b"]}",
    "deep": b"[" * 100_000,
}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("trouble", ["hangs", "is down", "is no HTTP", "says 500", *RUBBISH])
async def test_what_is_wrong_with_the_source_breaks_nothing(
    client: httpx.AsyncClient, source: Source, trouble: str
) -> None:
    async def answer() -> bytes:
        match trouble:
            case "hangs":
                return await hang()
            case "is down":
                raise ConnectionError
            case "is no HTTP":
                return b"rubbish\r\n\r\n" * 100
            case "says 500":
                return source.written(b'{"keys": []}', b"500 Oops")
        return source.written(RUBBISH[trouble])

    source.answers = answer
    started = time.monotonic()
    unknown = await outcome(client, source.token(kid="unknown"))
    waited = time.monotonic() - started

    known = [await outcome(client, source.token(jti=str(number))) for number in range(3)]

    assert unknown == (503, "unavailable")
    assert waited < 1
    assert known == [(200, "")] * 3


async def test_a_redirect_within_the_origin_is_followed(
    configured: Settings, source: Source
) -> None:
    source.redirects("/moved", f"{source.url}/moved/again", "last?x=1")
    async with service(configured, better_auth_url=source.url) as client:
        assert await outcome(client, source.token()) == (200, "")
    assert source.fetches == 4


async def test_a_redirect_to_https_is_followed(
    configured: Settings, source: Source, tls: ssl.SSLContext
) -> None:
    secure = Source()
    async with served(secure, tls):
        source.redirects(f"{secure.url}/keys")
        secure.redirects("/moved")
        async with service(configured, better_auth_url=source.url) as client:
            assert await outcome(client, source.token()) == (200, "")
        assert (source.fetches, secure.fetches) == (1, 2)


@pytest.mark.usefixtures("impatient")
async def test_a_redirect_from_https_to_http_is_not_followed(
    configured: Settings, source: Source, tls: ssl.SSLContext
) -> None:
    secure = Source()
    async with served(secure, tls):
        secure.redirects(*[source.url] * 50)
        async with service(configured, better_auth_url=secure.url) as client:
            assert await outcome(client, secure.token()) == (503, "unavailable")
    assert source.fetches == 0
    assert secure.fetches > 0


@pytest.mark.usefixtures("forgiving", "impatient")  # httpcore, if it is cancelled in a handshake
@pytest.mark.parametrize(
    "location",
    [
        *("{other}", "{other}/api/auth/jwks", "//{host}/", "http://localhost:{port}/", "/again"),
        *("file:///etc/passwd", "file:{source}", "ftp://{host}/", "data:application/json,{{}}"),
        *("javascript:0", "http://[", "http://", "http://127.0.0.1:99999/", "//", "\xff\xfe", ""),
        *("https://{host}/", "https://127.0.0.1:1/", "http://{user}@{host}/"),
    ],
)
async def test_other_redirects_are_not_followed(
    client: httpx.AsyncClient, source: Source, other: Source, location: str
) -> None:
    host = other.url.partition("//")[2]
    port, before = source.url.rpartition(":")[2], source.fetches
    place = location.format(other=other.url, source=source.url, host=host, port=port, user="u:p")
    source.redirects(*[place] * 50)

    assert await outcome(client, source.token(kid="unknown")) == (503, "unavailable")
    assert other.fetches == 0
    assert source.fetches <= before + 1 + key_set.MAX_REDIRECTS
    assert await outcome(client, source.token(jti="known")) == (200, "")


@pytest.mark.usefixtures("impatient")
async def test_known_tokens_do_not_wait_for_a_source_that_hangs(
    configured: Settings, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_set, "CACHE_SECONDS", 0.5)
    async with service(configured, better_auth_url=source.url) as client:
        await outcome(client, source.token())
        source.answers = hang
        delays, until = [], time.monotonic() + 1
        while time.monotonic() < until:
            started = time.monotonic()
            assert await outcome(client, source.token()) == (200, "")
            delays.append(time.monotonic() - started)
            await asyncio.sleep(0.01)
        assert len(delays) > 5
        assert statistics.median(delays) < 0.15


@pytest.mark.usefixtures("impatient")
async def test_keys_stay_good_during_an_outage_for_a_limited_time(
    configured: Settings, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_set, "CACHE_SECONDS", 0.5)
    monkeypatch.setattr(key_set, "MAX_OUTAGE_SECONDS", 1.0)
    answers = source.keys
    async with service(configured, better_auth_url=source.url) as client:
        assert await outcome(client, source.token()) == (200, "")

        async def down() -> bytes:
            raise ConnectionError

        source.answers = down
        await asyncio.sleep(0.3)
        assert await outcome(client, source.token()) == (200, "")
        await asyncio.sleep(1.2)
        assert await outcome(client, source.token()) == (503, "unavailable")
        source.answers = answers
        await asyncio.sleep(0.2)
        assert await outcome(client, source.token()) == (200, "")


UNUSABLE: list[dict[str, Any]] = [
    {"kty": "oct", "k": "c2VjcmV0", "alg": "HS256"},
    {"kty": "oct", "k": "c2VjcmV0"},
    published("EdDSA", use="enc"),
    published("EdDSA", alg="HS256"),
    published("EdDSA", alg="Ed448"),
    published("EdDSA", alg=["Ed25519"]),
    published("RS256", alg="HS256"),
    published("RS256", alg=["RS256"]),
    published("EdDSA", x="short"),
    published("EdDSA", x=1),
    published("EdDSA", x=None),
    published("ES256", crv="secp256k1"),
    published("ES256", crv=["P-256"]),
    published("ES256", y="AAAA"),
    published("RS256", n=base64url(b"\xff" * 128)),
    OKPAlgorithm.to_jwk(KEYS["EdDSA"], as_dict=True),
]


def test_unusable_keys_are_skipped() -> None:
    keys = [{"kid": "bad", **key} for key in UNUSABLE]
    odd: list[Any] = [None, 1, "x", published("EdDSA", kid=None) | {"kid": 5}]

    found = security.read_keys({"keys": [*keys, *odd, published("ES256", "good")]})

    assert {kid: key.algorithms for kid, key in found.items()} == {"good": ["ES256"]}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@given(
    key=st.fixed_dictionaries(
        {"kid": st.just("x"), "kty": st.sampled_from(["OKP", "EC", "RSA", "oct"]) | json_values},
        optional={
            "crv": st.sampled_from(["Ed25519", "P-256", "P-521"]) | json_values,
            **dict.fromkeys(("x", "y", "n", "e", "alg", "use", "key_ops"), json_values),
        },
    )
)
def test_no_key_that_anybody_publishes_raises(key: dict[str, Any]) -> None:
    assert set(security.read_keys({"keys": [key]})) <= {"x"}


async def test_what_is_verified_once_is_not_verified_again(source: Source) -> None:
    verifier = security.Verifier(SECRET, foreign=security.Issued(source.url, source.url))
    verifier.trust(security.read_keys({"keys": source.published}))
    theirs = source.token()

    assert verifier.claims(theirs) is verifier.claims(theirs)
    verifier.trust(security.read_keys({"keys": source.published}))
    assert verifier.claims(theirs) is verifier.claims(theirs)
    verifier.trust({})
    with pytest.raises(security.UnknownKey):
        verifier.claims(theirs)


async def test_logging_out_everywhere_ends_the_tokens_of_ones_own_issuer(
    client: httpx.AsyncClient, source: Source
) -> None:
    theirs, shared = source.token(sub="fay", iat=time.time()), token(sub="fay", iat=time.time())
    headers = {"Authorization": f"Bearer {theirs}"}

    await client.post("/api/v1/auth/logout?everywhere=true", headers=headers)

    assert await outcome(client, source.token(sub="fay", jti="2")) == (401, "token_revoked")
    assert await outcome(client, theirs) == (401, "token_revoked")
    assert await outcome(client, shared) == (200, "")


async def test_a_token_that_was_logged_out_is_refused_with_its_other_signature_too(
    client: httpx.AsyncClient, source: Source
) -> None:
    """Whoever has one signature of ECDSA has two: (r, s) and (r, n - s)."""
    sent = source.token("ES256", sub="gil")
    signed, _, signature = sent.rpartition(".")
    pair = base64.urlsafe_b64decode(signature + "==")
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    negative = (order - int.from_bytes(pair[32:])).to_bytes(32)
    same = f"{signed}.{base64url(pair[:32] + negative)}"
    assert await outcome(client, same) == (200, "")

    await client.post("/api/v1/auth/logout", headers={"Authorization": f"Bearer {sent}"})

    assert await outcome(client, same) == (401, "token_revoked")
