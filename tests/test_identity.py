"""Who is let in: only the bearer of a token that verifies."""

import base64
import hmac
import json
import math
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import db
import make_token
import security
from tests.conftest import SECRET, Person, token

NOW = time.time()


def base64url(part: bytes) -> str:
    """Write a part of a token (RFC 7515, section 2)."""
    return base64.urlsafe_b64encode(part).decode().rstrip("=")


def unsigned(header: object, payload: object, signature: bytes = b"") -> str:
    """Put a token together without a key."""
    parts = (json.dumps(header).encode(), json.dumps(payload).encode(), signature)
    return ".".join(map(base64url, parts))


def with_hmac(text: str, secret: bytes = SECRET.encode()) -> str:
    """Sign header and payload by HMAC, whatever they say and whatever the secret is."""
    return f"{text}.{base64url(hmac.digest(secret, text.encode(), 'sha256'))}"


def signed(header: object, payload: object) -> str:
    """Put a token together that PyJWT would not make, and sign it with the right secret."""
    return with_hmac(unsigned(header, payload).rstrip("."))


ACCEPTED: dict[str, dict[str, Any]] = {
    "sub": {"sub": "ada"},
    "user_id": {"user_id": "ada"},
    "user_id comes first": {"user_id": "ada", "sub": "bob"},
    "an unknown claim": {"sub": "ada", "role": "admin"},
    "an audience nobody asked for": {"sub": "ada", "aud": "somebody"},
    "an issuer nobody asked for": {"sub": "ada", "iss": "somebody"},
    "a client id that is no audience of ours": {"sub": "ada", "client_id": "x", "azp": ["x"]},
    "a fractional exp": {"sub": "ada", "exp": timedelta(seconds=600.5)},
    "expired within the leeway": {"sub": "ada", "exp": timedelta(seconds=-5)},
    "valid from now, clocks differing": {
        "sub": "ada",
        "nbf": timedelta(seconds=5),
        "iat": timedelta(seconds=5),
    },
}

REFUSED: dict[str, str] = {
    "empty payload": token(),
    "no exp": token(sub="ada", exp=None),
    "exp a string": token(sub="ada", exp=str(int(NOW + 600))),
    "exp true": token(sub="ada", exp=True),
    "exp null": signed({"alg": "HS256"}, {"sub": "ada", "exp": None}),
    "exp a list": token(sub="ada", exp=[NOW + 600]),
    "exp in milliseconds": token(sub="ada", exp=(NOW + 600) * 1000),
    "exp in microseconds": token(sub="ada", exp=int((NOW + 600) * 1_000_000)),
    "exp ten years and a day ahead": token(sub="ada", exp=timedelta(days=3654)),
    "exp 1e400": with_hmac(token().partition(".")[0] + "." + base64url(b'{"sub":"a","exp":1e400}')),
    "exp NaN": token(sub="ada", exp=math.nan),
    "exp infinite": token(sub="ada", exp=math.inf),
    "exp larger than any float": token(sub="ada", exp=10**400),
    "not yet valid": token(sub="ada", nbf=timedelta(hours=1)),
    "issued in the future": token(sub="ada", iat=timedelta(hours=1)),
    "iat no number": token(sub="ada", iat="soon"),
    "sub empty": token(sub=""),
    "sub null": signed({"alg": "HS256"}, {"sub": None, "exp": NOW + 600}),
    "user_id a number": token(user_id=1),
    "user_id null": token(sub="ada", user_id=[]),
    "user_id empty beside a sub": token(sub="ada", user_id=""),
    "user_id too long": token(user_id="x" * 256),
    "user_id with NUL": token(user_id="a\0b"),
    "user_id with a lone surrogate": token(user_id="\ud800"),
    "wrong secret": token("another secret that is just as long", sub="ada"),
    "another algorithm": token(algorithm="HS512", sub="ada"),
    "alg none": signed({"alg": "none"}, {"sub": "ada", "exp": NOW + 600}),
    "alg None": signed({"alg": "None"}, {"sub": "ada", "exp": NOW + 600}),
    "alg missing": signed({}, {"sub": "ada", "exp": NOW + 600}),
    "alg a list": signed({"alg": ["HS256"]}, {"sub": "ada", "exp": NOW + 600}),
    "header no object": signed([], {"sub": "ada", "exp": NOW + 600}),
    "payload no object": signed({"alg": "HS256"}, []),
    "unsigned": token(sub="ada").rpartition(".")[0] + ".",
    "another signature": token(sub="ada").rpartition(".")[0] + ".AA",
    "kid no string": signed({"alg": "HS256", "kid": 1}, {"sub": "ada", "exp": NOW + 600}),
    "unknown crit": signed({"alg": "HS256", "crit": ["x"]}, {"sub": "ada", "exp": NOW + 600}),
    "two parts": "a.b",
    "four parts": token(sub="ada") + ".x",
    "no base64": "!.!.!",
    "padded": token(sub="ada") + "=",
    "dots": "..",
    "long": "a" * 5000,
    "too long to be looked at": token(sub="ada", filler="x" * 9000),
    "not ASCII": "é.é.é",
    "two tokens": f"{token(sub='ada')} {token(sub='bob')}",
    "nested JSON": ".".join([base64.urlsafe_b64encode(b"[" * 9000).decode()] * 3),
}


async def status(person: Person, authorization: str | bytes | None) -> tuple[int, str, str | None]:
    """Ask for the list with a header, and tell the status, the code and the challenge."""
    if isinstance(authorization, str):
        authorization = authorization.encode()
    headers = {} if authorization is None else {b"authorization": authorization}
    response = await person.get("/api/tasks", headers=headers)
    code = response.json()["code"] if response.is_error else ""
    return response.status_code, code, response.headers.get("WWW-Authenticate")


INVALID = (401, "invalid_token", 'Bearer error="invalid_token"')


@pytest.mark.parametrize("claims", ACCEPTED.values(), ids=ACCEPTED)
async def test_a_token_that_verifies_is_accepted(client: Person, claims: dict[str, Any]) -> None:
    assert (await status(client, f"Bearer {token(**claims)}"))[0] == 200


@pytest.mark.parametrize("bad", REFUSED.values(), ids=REFUSED)
async def test_a_token_that_does_not_is_refused(client: Person, bad: str) -> None:
    assert await status(client, f"Bearer {bad}".encode()) == INVALID


@pytest.mark.parametrize(
    "claims",
    [
        {"nbf": timedelta(seconds=12)},
        {"iat": timedelta(seconds=12)},
        {"exp": timedelta(seconds=-11)},
    ],
)
async def test_clocks_may_differ_by_ten_seconds_only(
    client: Person, claims: dict[str, Any]
) -> None:
    assert (await status(client, f"Bearer {token(sub='ada', **claims)}"))[0] == 401


async def test_the_first_claim_names_the_user(client: Person) -> None:
    headers = {"Authorization": f"Bearer {token(user_id='claims-ada', sub='claims-bob')}"}

    assert (await client.get("/api/v1/auth/me", headers=headers)).json()["id"] == "claims-ada"


async def test_without_a_header_the_challenge_is_plain(client: Person) -> None:
    assert await status(client, None) == (401, "not_authenticated", "Bearer")


async def test_an_expired_token_says_so(client: Person, expired_token: str) -> None:
    expected = (401, "token_expired", 'Bearer error="invalid_token"')

    assert await status(client, f"Bearer {expired_token}") == expected


async def test_the_named_tokens(
    client: Person,
    valid_token: str,
    wrong_secret_token: str,
    token_without_user: str,
    malformed_token: str,
) -> None:
    assert (await status(client, f"Bearer {valid_token}"))[0] == 200
    for bad in (wrong_secret_token, token_without_user, malformed_token):
        assert await status(client, f"Bearer {bad}") == INVALID


async def test_the_scheme_is_case_insensitive(client: Person, valid_token: str) -> None:
    assert (await status(client, f"bEARER {valid_token}"))[0] == 200


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Basic YTpi", "{}", "Bearer  {}", "Token {}", "Bearer,{}"]
)
async def test_other_headers_are_refused(client: Person, valid_token: str, header: str) -> None:
    assert await status(client, header.format(valid_token)) == INVALID


async def test_two_headers_are_refused(client: Person, valid_token: str) -> None:
    headers = [("Authorization", f"Bearer {valid_token}")] * 2

    response = await client.get("/api/tasks", headers=headers)

    assert response.json()["code"] == "invalid_token"
    assert response.json()["detail"] == "Send one header: Authorization: Bearer <JWT>."


@pytest.mark.parametrize("path", ["?access_token={}", "?token={}", "?authorization=Bearer%20{}"])
async def test_a_token_elsewhere_does_not_count(
    client: Person, valid_token: str, path: str
) -> None:
    response = await client.get("/api/tasks" + path.format(valid_token), cookies=None)

    assert response.json()["code"] == "not_authenticated"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("GET", "/api/tasks"), ("POST", "/api/tasks"), ("PATCH", "/api/tasks?status=all")),
        *(("DELETE", "/api/tasks?status=all"), ("GET", "/api/tasks/1"), ("PUT", "/api/tasks/1")),
        *(
            ("PATCH", "/api/tasks/1"),
            ("PATCH", "/api/tasks/1/complete"),
            ("DELETE", "/api/tasks/1"),
        ),
        *(("GET", "/api/v1/auth/me"), ("GET", "/api/ada/tasks"), ("GET", "/api/tasks/1")),
    ],
)
@pytest.mark.parametrize("body", [b"", b"{not json", b"x" * 70_000])
async def test_every_route_is_closed_to_strangers_whatever_they_send(
    client: Person, method: str, path: str, body: bytes
) -> None:
    response = await client.request(method, path, content=body)

    assert (response.status_code, response.json()["code"]) == (401, "not_authenticated")


async def test_refusals_are_logged_without_the_token(
    client: Person, wrong_secret_token: str, log_lines: Callable[[], str]
) -> None:
    await status(client, f"Bearer {wrong_secret_token}")

    refusals = [json.loads(line) for line in log_lines().splitlines() if "todo.security" in line]
    assert refusals[0]["event"] == "invalid_token"
    assert refusals[0]["reason"] == "InvalidSignatureError"
    assert refusals[0]["client"] == "192.0.2.1"
    assert wrong_secret_token not in log_lines()
    assert wrong_secret_token.rpartition(".")[2] not in log_lines()


SESSION_TOKEN = "dVzIvQhMu0UuhgHdCEjwHCpUhZ7s3nQb"
MISTAKES: dict[str, tuple[str, str]] = {
    "undefined": ("undefined", "the word undefined or null"),
    "null": ("null", "the word undefined or null"),
    "in quotes": (f'"{token(sub="ada")}"', "in quotes"),
    "in single quotes": (f"'{token(sub='ada')}'", "in quotes"),
    "undefined in quotes": ('"undefined"', "in quotes"),
    "a JWE": (".".join(map(base64url, [b'{"alg":"RSA-OAEP"}', b"k", b"iv", b"c", b"t"])), "a JWE"),
    "a JWE without a key": (base64url(b'{"alg":"dir"}') + "..aXY.Yw.dA", "a JWE"),
    "a session token": (SESSION_TOKEN, "authClient.token()"),
    "a session cookie": (f"{SESSION_TOKEN}.{'x/+' * 14}x=", "authClient.token()"),
    "an encoded session cookie": (f"{SESSION_TOKEN}.{'%2B%2F' * 22}%3D", "authClient.token()"),
    "exp in milliseconds": (token(sub="ada", exp=NOW * 1000), "not milliseconds"),
}
"""What developers send by mistake, and what the answer says of it."""


@pytest.mark.parametrize(("sent", "told"), MISTAKES.values(), ids=MISTAKES)
async def test_what_is_sent_in_place_of_a_token_is_named(
    client: Person, log_lines: Callable[[], str], sent: str, told: str
) -> None:
    response = await client.get("/api/tasks", headers={"Authorization": f"Bearer {sent}"})

    assert (response.status_code, response.json()["code"]) == (401, "invalid_token")
    assert told in response.json()["detail"]
    reasons = [json.loads(line).get("reason") for line in log_lines().splitlines()]
    assert response.json()["detail"] in reasons
    assert SESSION_TOKEN not in log_lines()


@pytest.mark.parametrize(
    "sent",
    [
        *("Undefined", "nul", "undefined.null.x", "a.b.c.d", "a.b.c.d.e.f", "a.b.c.d.!", '"x'),
        *(SESSION_TOKEN[:-1], f"{SESSION_TOKEN}.x", token("x" * 32, sub="ada"), token()),
    ],
)
async def test_of_anything_else_nothing_is_told(client: Person, sent: str) -> None:
    response = await client.get("/api/tasks", headers={"Authorization": f"Bearer {sent}"})

    assert response.json()["detail"] == "This token is not valid here. Sign in again."


@pytest.mark.parametrize(("seconds", "accepted"), [(0, True), (10, True), (11, False)])
def test_a_token_lives_ten_years_at_most(
    monkeypatch: pytest.MonkeyPatch, seconds: int, accepted: bool
) -> None:
    monkeypatch.setattr(time, "time", lambda: NOW)
    long = token(sub="ada", exp=NOW + 10 * 365.25 * 86_400 + seconds)

    if accepted:
        assert security.Verifier(SECRET).claims(long).user_id == "ada"
    else:
        with pytest.raises(security.InvalidToken):
            security.Verifier(SECRET).claims(long)


def test_a_token_dies_while_it_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = security.Verifier(SECRET)
    short = token(sub="ada", exp=NOW + 600)
    assert {verifier.claims(short).user_id for _ in range(3)} == {"ada"}
    assert verifier._claims.cache_info().hits == 2  # noqa: SLF001  (nothing else tells)

    monkeypatch.setattr(time, "time", lambda: NOW + 600 + security.LEEWAY_SECONDS)

    with pytest.raises(security.ExpiredToken):
        verifier.claims(short)


@pytest.mark.parametrize(
    ("claims", "accepted"),
    [
        ({"iss": "https://app", "aud": "todo"}, True),
        ({"iss": "https://app", "aud": ["todo", "other"]}, True),
        ({"iss": "https://app/", "aud": "todo"}, False),
        ({"iss": "https://app", "aud": "other"}, False),
        ({"aud": "todo"}, False),
        ({"iss": "https://app"}, False),
        ({"iss": "https://app", "azp": "todo", "client_id": "todo"}, False),
        ({"iss": "https://app", "aud": ["other", 5]}, False),
        ({"iss": "https://app", "aud": {"todo": 1}}, False),
        ({"iss": "https://app", "aud": "todo", "azp": "other"}, True),
    ],
)
def test_issuer_and_audience_count_where_they_are_set(
    claims: dict[str, Any], accepted: bool
) -> None:
    verifier = security.Verifier(SECRET, shared=security.Issued("https://app", "todo"))

    if accepted:
        assert verifier.claims(token(sub="ada", **claims)).user_id == "ada"
    else:
        with pytest.raises(security.InvalidToken):
            verifier.claims(token(sub="ada", **claims))


def test_the_claims_that_may_name_the_user_can_be_chosen() -> None:
    verifier = security.Verifier(SECRET, user_claims=["uid"])

    assert verifier.claims(token(uid="ada", sub="bob")).user_id == "ada"
    with pytest.raises(security.InvalidToken):
        verifier.claims(token(sub="bob"))


@pytest.mark.parametrize("user_id", ["", "x" * 256, "local_x", "jwks_x"])
def test_no_token_is_made_for_an_impossible_id(
    monkeypatch: pytest.MonkeyPatch, user_id: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["make_token.py", user_id])

    with pytest.raises(SystemExit):
        make_token.main()


def test_no_token_is_made_where_there_is_no_secret(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    (folder / ".data").write_text("in the way")
    monkeypatch.setattr(db, "PROJECT", folder)
    monkeypatch.setattr(sys, "argv", ["make_token.py", "ada"])

    with pytest.raises(SystemExit, match="set DATABASE_URL"):
        make_token.main()


def test_a_token_made_by_hand_is_accepted(
    database: db.Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", database.url)
    monkeypatch.setenv("BETTER_AUTH_SECRET", SECRET)
    monkeypatch.setattr(sys, "argv", ["make_token.py", "ada"])

    make_token.main()

    assert security.Verifier(SECRET).claims(capsys.readouterr().out.strip()).user_id == "ada"


def test_a_token_made_by_hand_has_the_claims_that_are_asked_for(
    database: db.Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", database.url)
    monkeypatch.setenv("BETTER_AUTH_SECRET", SECRET)
    monkeypatch.setenv("JWT_ISSUER", "https://app")
    monkeypatch.setenv("JWT_AUDIENCE", "todo")
    monkeypatch.setenv("JWT_USER_CLAIMS", "uid,id")
    monkeypatch.setattr(sys, "argv", ["make_token.py", "ada"])

    make_token.main()

    verifier = security.Verifier(
        SECRET, shared=security.Issued("https://app", "todo"), user_claims=["uid", "id"]
    )
    assert verifier.claims(capsys.readouterr().out.strip()).user_id == "ada"
