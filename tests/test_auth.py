"""Accounts: signing up, in and out, staying signed in, and being thrown out."""

import asyncio
import hashlib
import itertools
import math
import os
import time
import unicodedata
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import bcrypt
import httpx
import jwt
import pytest
from fastapi import FastAPI, Request, Response

import account_queries
import calls
import db
import errors
import main
import passwords
import revocations
import schemas
from dependencies.accounts import accounts
from routes import auth
from settings import Settings
from tests.conftest import (
    ORIGIN,
    SECRET,
    Person,
    in_turn,
    one_connection,
    token,
    until_waiting,
)
from tests.contract import PASSWORD
from tests.test_hostile import assert_helpful
from tests.test_tasks import create

AUTH = "/api/v1/auth"
OTHER = "staple the battery again"
_numbers = itertools.count(1)

Connect = Callable[[str | None], Person]


def new_email() -> str:
    """Make an email that no other test uses."""
    return f"ada{next(_numbers)}@example.com"


async def sign_up(person: Person, **who: Any) -> dict[str, Any]:
    """Sign up and in; the client's cookie jar has the cookie then."""
    credentials = {"email": new_email(), "password": PASSWORD, **who}
    response = await person.post(f"{AUTH}/register", json=credentials)
    assert response.status_code == 201, response.text
    del credentials["name"]
    return await sign_in(person, **credentials)


async def sign_in(person: Person, **credentials: Any) -> dict[str, Any]:
    """Sign in."""
    response = await person.post(f"{AUTH}/login", json=credentials)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def bearer(answer: dict[str, Any]) -> dict[str, str]:
    """Make the header of an access token."""
    return {"Authorization": f"Bearer {answer['access_token']}"}


def cookie(person: Person) -> str:
    """Read the refresh token in a client's jar."""
    return str(person.cookies["refresh_token"])


async def refresh(person: Person, refresh_token: str) -> httpx.Response:
    """Refresh with a token that need not be the one in the jar."""
    person.cookies.clear()
    headers = {b"Cookie": f"refresh_token={refresh_token}".encode()}
    return await person.post(f"{AUTH}/refresh", headers=headers)


async def code(response: httpx.Response) -> tuple[int, str]:
    """Read a problem."""
    return response.status_code, response.json()["code"]


async def test_a_user_signs_up_and_in(browser: Person) -> None:
    email = new_email()

    registered = await browser.post(
        f"{AUTH}/register", json={"email": email, "password": PASSWORD, "name": "Ada"}
    )
    answer = await sign_in(browser, email=email, password=PASSWORD)

    user = registered.json()
    assert registered.headers["Cache-Control"] == "no-store"
    assert user.keys() == {"id", "email", "name", "created_at"}
    assert (user["email"], user["name"]) == (email, "Ada")
    assert answer.keys() == {"access_token", "token", "token_type", "expires_in", "user"}
    assert answer["token"] == answer["access_token"]
    assert (answer["token_type"], answer["expires_in"], answer["user"]) == ("bearer", 900, user)
    assert (await browser.get(f"{AUTH}/me", headers=bearer(answer))).json() == user


async def test_the_access_token_says_what_the_contract_says(browser: Person) -> None:
    answer = await sign_up(browser, name=None)

    claims = jwt.decode(answer["access_token"], SECRET, ["HS256"])

    assert jwt.get_unverified_header(answer["access_token"])["typ"] == "at+jwt"
    assert claims.keys() == {"iss", "sub", "sid", "iat", "exp", "jti"}
    assert claims["sub"] == answer["user"]["id"]
    assert claims["exp"] - claims["iat"] == 900


async def test_the_cookie_is_out_of_reach_of_scripts(browser: Person) -> None:
    email = new_email()
    await sign_up(browser, email=email, name=None)

    response = await browser.post(f"{AUTH}/login", json={"email": email, "password": PASSWORD})

    attributes = response.headers["Set-Cookie"].split("; ")[1:]
    assert set(attributes) == {
        *("HttpOnly", "Secure", "SameSite=lax", "Path=/api/v1/auth", "Max-Age=604800")
    }


async def test_oauth2_clients_sign_in_with_a_form(browser: Person) -> None:
    email = new_email()
    await sign_up(browser, email=email, name=None)

    form = {"grant_type": "password", "username": email, "password": PASSWORD, "scope": ""}
    response = await browser.post(f"{AUTH}/token", data=form)
    wrong = await browser.post(f"{AUTH}/token", data={**form, "password": OTHER})
    as_json = await browser.post(f"{AUTH}/token", json=form)

    assert response.json()["user"]["email"] == email
    assert await code(wrong) == (401, "invalid_credentials")
    assert await code(as_json) == (415, "unsupported_media_type")
    assert "x-www-form-urlencoded" in as_json.json()["detail"]


URLENCODED = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data; boundary=b"


def multipart(*fields: bytes, end: bytes = b"--b--\r\n") -> bytes:
    """Write a form: of each field, what follows its name's quote."""
    head = b'--b\r\nContent-Disposition: form-data; name="'
    return b"".join(head + field + b"\r\n" for field in fields) + end


@pytest.mark.parametrize("path", ["login", "token"])
async def test_forms_sign_in(browser: Person, path: str) -> None:
    email = new_email()
    await sign_up(browser, email=email, password="caf\u00e9 ☃ & 1+1=2", name=None)
    form = {"username": email, "password": "caf\u00e9 ☃ & 1+1=2", "client_id": "x", "scope": ""}
    raw = multipart(
        b'username"; x="y"\r\nX-Y: z\r\n\r\n' + email.encode(),
        b'password"\r\nContent-Type: text/plain\r\n\r\n' + form["password"].encode(),
        end=b"--b--",
    )

    urlencoded = await browser.post(f"{AUTH}/{path}", data=form)
    in_parts = await browser.post(
        f"{AUTH}/{path}", files={name: (None, value) for name, value in form.items()}
    )
    shouted = await browser.post(
        f"{AUTH}/{path}", content=raw, headers={"Content-Type": " MULTIPART/form-data ;Boundary=b"}
    )

    for response in (urlencoded, in_parts, shouted):
        assert response.status_code == 200, response.text
        assert response.json()["user"]["email"] == email
        assert "refresh_token=" in response.headers["Set-Cookie"]


async def test_a_page_without_a_script_signs_in(browser: Person) -> None:
    email = new_email()
    await sign_up(browser, email=email, name=None)

    response = await browser.post(f"{AUTH}/login", data={"email": email, "password": PASSWORD})

    assert response.json()["user"]["email"] == email


@pytest.mark.parametrize("path", ["register", "password", "me"])
@pytest.mark.parametrize("content_type", [URLENCODED, MULTIPART, "application/x-url-encoded"])
async def test_only_signing_in_takes_forms(browser: Person, path: str, content_type: str) -> None:
    answer = await sign_up(browser, name=None)
    method = "PATCH" if path == "me" else "POST"

    response = await browser.request(
        method,
        f"{AUTH}/{path}",
        content=b"name=x&email=x%40example.com&password=x",
        headers={"Content-Type": content_type, **bearer(answer)},
    )

    assert await code(response) == (415, "unsupported_media_type")


FORMS: dict[str, tuple[str, bytes]] = {
    "repeated": (URLENCODED, b"username=x&username=y&password=x"),
    "repeated, the same": (URLENCODED, b"username=x&password=x&password=x"),
    "cut in a character": (URLENCODED, b"username=x&password=%C3"),
    "not UTF-8": (URLENCODED, b"username=x&password=\xff"),
    "a lone surrogate": (URLENCODED, b"username=x&password=%ED%A0%80"),
    "NUL": (URLENCODED, b"username=x&password=%00"),
    "UTF-16": (URLENCODED, "username=x&password=x".encode("utf-16")),
    "JSON": (URLENCODED, b'{"username": "x", "password": "x"}'),
    "semicolons": (URLENCODED, b"username=x;password=x"),
    "brackets": (URLENCODED, b"username[]=x&password[]=x"),
    "16,000 fields": (URLENCODED, b"a=1&" * 16_000),
    "empty fields": (URLENCODED, b"username=&password="),
    "no boundary": ("multipart/form-data", multipart(b'username"\r\n\r\nx')),
    "an empty boundary": ("multipart/form-data; boundary=", multipart(b'username"\r\n\r\nx')),
    "another boundary": (MULTIPART + "x", multipart(b'username"\r\n\r\nx')),
    "an endless boundary": (MULTIPART + "x" * 8000, multipart(b'username"\r\n\r\nx')),
    "a boundary that is no text": ("multipart/form-data; boundary=\xff", b"--\xff\r\n"),
    "a boundary in another notation": ("multipart/form-data; boundary*=utf-8''%ff", b"--\xff\r\n"),
    "no part": (MULTIPART, b"--b--\r\n"),
    "a part without a head": (MULTIPART, b"--b\r\n\r\nx\r\n--b--\r\n"),
    "a part without a name": (
        MULTIPART,
        b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--",
    ),
    "a head without an end": (MULTIPART, b"--b\r\n" + b"A:" * 30_000),
    "1,000 heads": (MULTIPART, b"--b\r\n" + b"A:b\r\n" * 1_000),
    "repeated parts": (
        MULTIPART,
        multipart(b'username"\r\n\r\nx', b'password"\r\n\r\nx', b'password"\r\n\r\ny'),
    ),
    "a file": (
        MULTIPART,
        multipart(b'username"\r\n\r\nx', b'password"; filename="x"\r\n\r\nx'),
    ),
    "cut short": (
        MULTIPART,
        multipart(b'username"\r\n\r\nx', b'password"\r\n\r\nx', end=b""),
    ),
    "parts that are not UTF-8": (
        MULTIPART,
        multipart(b'username"\r\n\r\nx', b'password"\r\n\r\n\xff'),
    ),
    "bad base64": (
        MULTIPART,
        multipart(
            b'username"\r\n\r\nx', b'password"\r\nContent-Transfer-Encoding: base64\r\n\r\n!!!!!'
        ),
    ),
    "1,000 parts": (MULTIPART, multipart(*[b'a"\r\n\r\n1'] * 1_000)),
    "empty parts": (MULTIPART, multipart(b'username"\r\n\r\n', b'password"\r\n\r\n')),
    "a long password": (
        MULTIPART,
        multipart(b'username"\r\n\r\nx', b'password"\r\n\r\n' + b"x" * 60_000),
    ),
}


@pytest.mark.parametrize("path", ["login", "token"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
async def test_forms_against_the_rules_are_refused(
    browser: Person, path: str, form: tuple[str, bytes]
) -> None:
    content_type, content = form

    response = await browser.post(
        f"{AUTH}/{path}",
        content=content,
        headers={b"Content-Type": content_type.encode("latin-1")},
    )

    assert_helpful(response, 422)
    assert "Set-Cookie" not in response.headers


async def test_an_email_in_a_form_has_one_name(browser: Person) -> None:
    form = {"username": "x@example.com", "email": "y@example.com", "password": PASSWORD}

    response = await browser.post(f"{AUTH}/login", data=form)

    assert_helpful(response, 422)
    assert response.json()["detail"] == "email: is given more than once"


@pytest.mark.parametrize("path", ["login", "token"])
@pytest.mark.parametrize("content_type", [URLENCODED, MULTIPART])
async def test_a_form_larger_than_64_kib_is_not_read(
    browser: Person, path: str, content_type: str
) -> None:
    content = multipart(b'x"\r\n\r\n' + b"x" * 70_000)

    response = await browser.post(
        f"{AUTH}/{path}", content=content, headers={"Content-Type": content_type}
    )

    assert await code(response) == (413, "body_too_large")


async def test_the_name_in_oauth2s_form_is_none_in_json(browser: Person) -> None:
    response = await browser.post(
        f"{AUTH}/login", json={"username": "x@example.com", "password": PASSWORD}
    )

    assert_helpful(response, 422)


@pytest.mark.parametrize("spelling", ["{}", " {} ", "{}\n", "ＡＤＡ", "upper"])
async def test_emails_are_compared_without_case_and_form(
    browser: Person, spelling: str, log_lines: Callable[[], str]
) -> None:
    email = new_email()
    await sign_up(browser, email=email, name=None)
    same = email.upper() if spelling == "upper" else spelling.format(email)
    if spelling == "ＡＤＡ":
        same = email.replace("ada", spelling)

    taken = await browser.post(f"{AUTH}/register", json={"email": same, "password": PASSWORD})

    assert await code(taken) == (409, "email_taken")
    assert "SQLSTATE" not in log_lines()
    assert (await sign_in(browser, email=same, password=PASSWORD))["user"]["email"] == email


async def test_emails_of_international_domains_can_be_given_in_both_forms(
    browser: Person,
) -> None:
    local = new_email().partition("@")[0]
    await sign_up(browser, email=f"{local}@xn--bcher-kva.example.com", name=None)

    assert await sign_in(browser, email=f"{local}@b\u00fccher.example.com", password=PASSWORD)
    assert await sign_in(browser, email=f"{local}@xn--bcher-kva.example.com", password=PASSWORD)


async def test_passwords_are_compared_as_they_are_typed(browser: Person) -> None:
    email = new_email()
    await sign_up(browser, email=email, password="\u00e9cole ｆｕｌｌ \t☃", name=None)

    assert await sign_in(browser, email=email, password="e\u0301cole full \t☃")


async def test_unknown_email_and_wrong_password_are_the_same(browser: Person) -> None:
    email = new_email()
    await sign_up(browser, email=email, name=None)

    wrong = await browser.post(f"{AUTH}/login", json={"email": email, "password": OTHER})
    unknown = await browser.post(f"{AUTH}/login", json={"email": "x" + email, "password": OTHER})

    for response in (wrong, unknown):
        assert await code(response) == (401, "invalid_credentials")
        assert response.headers["WWW-Authenticate"] == "Bearer"
    assert {**wrong.json(), "request_id": ""} == {**unknown.json(), "request_id": ""}
    assert "Set-Cookie" not in wrong.headers


async def test_unknown_emails_cost_a_verification_too(
    browser: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified: list[str] = []
    verify = passwords._verify  # noqa: SLF001

    def counted(password: str, known: str) -> tuple[bool, str | None]:
        verified.append(known)
        return verify(password, known)

    monkeypatch.setattr(passwords, "_verify", counted)

    await browser.post(f"{AUTH}/login", json={"email": new_email(), "password": "of nobody"})

    assert len(verified) == 1
    assert verified[0].startswith("$argon2id$v=19$m=19456,t=2,p=1$")


EMAILS = [
    *("", "x", "x@", "@x", "x@y@z.com", "x y@example.com", "x@example", "x@-a.com", "x@a..com"),
    *("x@exa\nmple.com", "x\r\nBcc: y@example.com", "<x@example.com>"),
    *("Ada <ada@example.com>", "x@example.com,y@example.com", "x" * 250 + "@example.com"),
    *("x\0@example.com", "x@[127.0.0.1]", "x@localhost", ".x@example.com", "\u202ex@example.com"),
]


@pytest.mark.parametrize("email", [*EMAILS, None, 1, ["x@example.com"], {}])
async def test_invalid_emails_are_refused(browser: Person, email: Any) -> None:
    response = await browser.post(f"{AUTH}/register", json={"email": email, "password": PASSWORD})

    assert_helpful(response, 422)
    assert response.json()["errors"][0]["pointer"] == "#/email"
    assert not isinstance(email, str) or len(email) < 5 or email not in response.text


WEAK: list[Any] = [
    *("", "short77", "x" * 129, "password1", "PASSWORD1", "iloveyou", "a\0bcdefghijk"),
    *(None, 12345678, ["correct horse"], {}, True),
]


@pytest.mark.parametrize("password", WEAK)
async def test_weak_passwords_are_refused_and_never_echoed(browser: Person, password: Any) -> None:
    response = await browser.post(
        f"{AUTH}/register", json={"email": new_email(), "password": password}
    )

    assert_helpful(response, 422)
    assert response.json()["errors"][0]["pointer"] == "#/password"
    assert not isinstance(password, str) or len(password) < 8 or password not in response.text
    assert "items" not in response.text


@pytest.mark.parametrize("password", ["x7!q " * 25 + "123", "x7!q 123"])
async def test_the_longest_and_the_shortest_password_are_good(
    browser: Person, password: str
) -> None:
    assert len(password) in {8, 128}

    assert await sign_up(browser, password=password, name=None)


async def test_the_longest_email_is_good(browser: Person) -> None:
    local = new_email().partition("@")[0]
    labels = ".".join(["d" * 60] * 3)
    email = f"{local}@{'d' * (254 - len(f'{local}@.{labels}.com'))}.{labels}.com"
    assert len(email) == 254

    answer = await sign_up(browser, email=email, name=None)
    longer = await browser.post(
        f"{AUTH}/register", json={"email": f"x{email}", "password": PASSWORD}
    )

    assert answer["user"]["email"] == email
    assert_helpful(longer, 422)


async def test_the_email_is_refused_as_password(browser: Person) -> None:
    email = new_email()

    response = await browser.post(
        f"{AUTH}/register", json={"email": email, "password": email.upper()}
    )

    assert_helpful(response, 422)


@pytest.mark.parametrize("body", [rb'"\ud800longenough"', b'"\xff\xfelongenough"'])
async def test_passwords_that_are_not_text_are_refused(browser: Person, body: bytes) -> None:
    content = b'{"email": "x@example.com", "password": %s}' % body

    for path in ("register", "login"):
        response = await browser.post(
            f"{AUTH}/{path}", content=content, headers={"Content-Type": "application/json"}
        )
        assert_helpful(response, 422)


@pytest.mark.parametrize(
    "form",
    [
        *(
            b"",
            b"=",
            b"&&",
            b"username=x",
            b"username=%00&password=x",
            b"username=%ff&password=%ff",
        ),
        *(b"grant_type=x&username=x&password=x", b"username=" + b"x" * 300 + b"&password=x"),
        b"password[]=x&username=x",
    ],
)
async def test_broken_forms_are_refused(browser: Person, form: bytes) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}

    assert_helpful(await browser.post(f"{AUTH}/token", content=form, headers=headers), 401, 422)


async def test_50_registrations_of_one_email_make_one_account(
    browser: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passwords, "WAIT_SECONDS", 60)  # the machine may be busy
    who = {"email": new_email(), "password": PASSWORD}

    statuses = [
        response.status_code
        for batch in range(2)
        for response in await asyncio.gather(
            *(browser.post(f"{AUTH}/register", json=who) for _ in range(25))
        )
    ]

    assert sorted(statuses) == [201, *[409] * 49]


async def test_bcrypt_hashes_of_an_older_backend_are_upgraded(
    browser: Person, database: db.Database
) -> None:
    email, password = new_email(), "longer than what bcrypt looks at, " * 3
    old = bcrypt.hashpw(password.encode()[:72], bcrypt.gensalt(4)).decode()
    connection = await asyncpg.connect(database.url)
    await connection.execute(
        "WITH taken AS (INSERT INTO emails (key, user_id) VALUES ($2, $1))"
        " INSERT INTO users (id, email, password_hash) VALUES ($1, $2, $3)",
        *(f"local_{hashlib.md5(email.encode()).hexdigest()}", email, old),  # noqa: S324
    )

    refused = await browser.post(f"{AUTH}/login", json={"email": email, "password": OTHER})
    answers = await asyncio.gather(
        *(sign_in(browser, email=email, password=password) for _ in range(4))
    )

    better = await connection.fetchval("SELECT password_hash FROM users WHERE email = $1", email)
    await connection.close()
    assert refused.status_code == 401
    assert better.startswith("$argon2id$")
    assert len({answer["access_token"] for answer in answers}) == 4
    assert await sign_in(browser, email=email, password=password)


async def test_refresh_gives_a_new_token_and_a_new_cookie(browser: Person) -> None:
    first = await sign_up(browser, name=None)
    before = cookie(browser)

    response = await browser.post(f"{AUTH}/refresh")

    assert response.status_code == 200
    assert response.json()["user"] == first["user"]
    assert response.json()["access_token"] != first["access_token"]
    assert cookie(browser) != before
    assert (await browser.get("/api/tasks", headers=bearer(response.json()))).status_code == 200


async def test_20_refreshes_at_once_are_one_rotation_and_nobody_is_signed_out(
    browser: Person,
) -> None:
    await sign_up(browser, name=None)
    before = cookie(browser)

    responses = await asyncio.gather(*(refresh(browser, before) for _ in range(20)))

    assert {response.status_code for response in responses} == {200}
    (after,) = {response.cookies["refresh_token"] for response in responses}
    assert after != before
    assert (await refresh(browser, after)).status_code == 200


async def test_an_older_token_ends_the_session_and_all_that_it_issued(browser: Person) -> None:
    first = await sign_up(browser, name=None)
    oldest = cookie(browser)
    for _ in range(2):
        last = (await browser.post(f"{AUTH}/refresh")).json()
    newest = cookie(browser)

    stolen = await refresh(browser, oldest)

    assert await code(stolen) == (401, "refresh_token_invalid")
    assert await code(await refresh(browser, newest)) == (401, "refresh_token_invalid")
    for answer in (first, last):
        dead = await browser.get("/api/tasks", headers=bearer(answer))
        assert await code(dead) == (401, "token_revoked")


@pytest.mark.parametrize(("seconds", "status"), [(9, 200), (11, 401)])
async def test_the_previous_token_is_good_for_ten_seconds_only(
    browser: Person, database: db.Database, seconds: int, status: int
) -> None:
    await sign_up(browser, name=None)
    previous = cookie(browser)
    await browser.post(f"{AUTH}/refresh")
    connection = await asyncpg.connect(database.url)
    await connection.execute(
        "UPDATE sessions SET rotated_at = rotated_at - $2::interval WHERE id = $1",
        *(previous.split(".")[0], timedelta(seconds=seconds)),
    )
    await connection.close()

    assert (await refresh(browser, previous)).status_code == status


@pytest.mark.parametrize(("column", "days"), [("rotated_at", 7), ("created_at", 30)])
async def test_sessions_end_by_themselves(
    browser: Person, app: FastAPI, database: db.Database, column: str, days: int
) -> None:
    await sign_up(browser, name=None)
    session = cookie(browser).split(".")[0]
    connection = await asyncpg.connect(database.url)

    for minutes, status, left in ((-1, 200, 1), (1, 401, 0)):
        await connection.execute(
            f"UPDATE sessions SET {column} = now() - $2::interval WHERE id = $1",
            *(session, timedelta(days=days, minutes=minutes)),
        )
        answer = await browser.post(f"{AUTH}/refresh")
        await app.state.revocations.clean_up()
        query = "SELECT count(*) FROM sessions WHERE id = $1"
        assert (answer.status_code, await connection.fetchval(query, session)) == (status, left)
    await connection.close()


@pytest.mark.parametrize(("column", "days"), [("rotated_at", 2), ("created_at", 3)])
async def test_lifetimes_and_cookies_follow_the_settings(
    configured: Settings, database: db.Database, column: str, days: int
) -> None:
    changes = {
        "access_token_seconds": 60,
        "refresh_idle_days": 2,
        "refresh_max_days": 3,
        "cookie_secure": False,
        "cookie_samesite": "strict",
    }
    app = main.create_app(configured.model_copy(update=changes))
    who = {"email": new_email(), "password": PASSWORD}
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as person,
    ):
        await sign_up(person, **who, name=None)
        answer = await person.post(f"{AUTH}/login", json=who)
        connection = await asyncpg.connect(database.url)
        await connection.execute(
            f"UPDATE sessions SET {column} = now() - $2::interval WHERE id = $1",
            *(cookie(person).split(".")[0], timedelta(days=days, minutes=1)),
        )
        await connection.close()
        ended = await person.post(f"{AUTH}/refresh")

    claims = jwt.decode(answer.json()["access_token"], SECRET, ["HS256"])
    assert claims["exp"] - claims["iat"] == answer.json()["expires_in"] == 60
    assert set(answer.headers["Set-Cookie"].split("; ")[1:]) == {
        *("HttpOnly", "SameSite=strict", "Path=/api/v1/auth", "Max-Age=172800")
    }
    assert await code(ended) == (401, "refresh_token_invalid")


async def test_without_a_cookie_there_is_nothing_to_refresh(browser: Person) -> None:
    response = await browser.post(f"{AUTH}/refresh")

    assert await code(response) == (401, "refresh_token_missing")
    assert response.headers["WWW-Authenticate"] == "Bearer"


async def test_forged_cookies_are_refused(browser: Person) -> None:
    await sign_up(browser, name=None)
    session, counter, mac = cookie(browser).split(".")
    forged = [
        *("", "x", "..", f"{session}.{counter}", f"{session}.{counter}.", f"{session}.{counter}.é"),
        *(f"{session}.1.{mac}", f"{session}.00.{mac}", f"{'0' * 32}.0.{mac}", f"{mac}.0.{session}"),
        *(f"{session}.{counter}.{mac[:-1]}", f"{session}.{counter}.{mac}0", f"{session}.-1.{mac}"),
        *(f"{session}.{counter}.{mac.upper()}x", f"{session}.{'9' * 400}.{mac}", "x" * 8000),
        f"{session}.{counter}.{mac}; refresh_token={session}.{counter}.{mac}",
    ]

    for value in forged:
        response = await refresh(browser, value)
        assert await code(response) == (401, "refresh_token_invalid"), value
    assert (await refresh(browser, f"{session}.{counter}.{mac}")).status_code == 200


async def test_logout_with_the_cookie_alone_ends_the_session(browser: Person) -> None:
    answer = await sign_up(browser, name=None)
    before = cookie(browser)

    response = await browser.post(f"{AUTH}/logout")

    assert response.status_code == 204
    assert 'refresh_token=""' in response.headers["Set-Cookie"]
    assert await code(await browser.get("/api/tasks", headers=bearer(answer))) == (
        401,
        "token_revoked",
    )
    assert await code(await refresh(browser, before)) == (401, "refresh_token_invalid")


async def test_logout_with_the_token_alone_ends_the_session(browser: Person) -> None:
    answer = await sign_up(browser, name=None)
    before = cookie(browser)
    browser.cookies.clear()

    assert (await browser.post(f"{AUTH}/logout", headers=bearer(answer))).status_code == 204

    dead = await browser.get("/api/tasks", headers=bearer(answer))
    assert await code(dead) == (401, "token_revoked")
    assert dead.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'
    assert await code(await refresh(browser, before)) == (401, "refresh_token_invalid")


@pytest.mark.parametrize("jti", [None, "one"])
async def test_logout_revokes_an_external_token_and_no_other(
    connect: Connect, ada_id: str, bob_id: str, jti: str | None
) -> None:
    ada = connect(token(sub=ada_id, jti=jti))
    again = connect(token(sub=ada_id, jti=f"other {jti}", exp=timedelta(minutes=9)))
    bob = connect(token(sub=bob_id, jti=jti))

    assert (await ada.post(f"{AUTH}/logout")).status_code == 204

    assert await code(await ada.get("/api/tasks")) == (401, "token_revoked")
    assert (await again.get("/api/tasks")).status_code == 200
    assert (await bob.get("/api/tasks")).status_code == 200


async def test_a_token_of_ten_years_can_be_logged_out(connect: Connect, ada_id: str) -> None:
    ada = connect(token(sub=ada_id, exp=timedelta(days=3652)))

    assert (await ada.post(f"{AUTH}/logout")).status_code == 204
    assert await code(await ada.get("/api/tasks")) == (401, "token_revoked")


async def test_logout_everywhere(browser: Person) -> None:
    email = new_email()
    answers = [await sign_up(browser, email=email, name=None)]
    answers += [await sign_in(browser, email=email, password=PASSWORD) for _ in range(2)]

    await browser.post(f"{AUTH}/logout?everywhere=true", headers=bearer(answers[0]))

    for answer in answers:
        dead = await browser.get("/api/tasks", headers=bearer(answer))
        assert await code(dead) == (401, "token_revoked")
    again = await sign_in(browser, email=email, password=PASSWORD)
    assert (await browser.get("/api/tasks", headers=bearer(again))).status_code == 200


async def test_logout_everywhere_with_the_cookie_alone(browser: Person) -> None:
    email = new_email()
    other = await sign_up(browser, email=email, name=None)
    await sign_in(browser, email=email, password=PASSWORD)

    await browser.post(f"{AUTH}/logout?everywhere=true")

    dead = await browser.get("/api/tasks", headers=bearer(other))
    assert await code(dead) == (401, "token_revoked")


async def test_logout_everywhere_refuses_external_tokens_issued_until_then(
    connect: Connect, ada_id: str
) -> None:
    now = time.time()
    old = [
        connect(token(sub=ada_id, iat=now - 60)),
        connect(token(sub=ada_id, exp=timedelta(minutes=8))),
    ]
    await old[0].post(f"{AUTH}/logout?everywhere=true")

    for person in old:
        assert await code(await person.get("/api/tasks")) == (401, "token_revoked")
    assert (await connect(token(sub=ada_id, iat=now + 8)).get("/api/tasks")).status_code == 200


async def test_an_expired_token_ends_its_session(browser: Person) -> None:
    answer = await sign_up(browser, name=None)
    claims = jwt.decode(answer["access_token"], SECRET, ["HS256"])
    claims |= {"exp": claims["iat"] - 60}
    expired = jwt.encode(claims, SECRET, "HS256", headers={"typ": "at+jwt"})
    before = cookie(browser)
    browser.cookies.clear()

    await browser.post(f"{AUTH}/logout", headers={"Authorization": f"Bearer {expired}"})

    assert await code(await refresh(browser, before)) == (401, "refresh_token_invalid")


async def test_an_expired_external_token_ends_nothing(connect: Connect, ada_id: str) -> None:
    ada = connect(token(sub=ada_id))
    old = connect(token(sub=ada_id, exp=timedelta(minutes=-5)))

    assert (await old.post(f"{AUTH}/logout?everywhere=true")).status_code == 204
    assert (await ada.get("/api/tasks")).status_code == 200


@pytest.mark.parametrize("headers", [{}, {"Cookie": "refresh_token=x"}, {"Authorization": "x"}])
async def test_logout_needs_nothing(client: Person, headers: dict[str, str]) -> None:
    assert (await client.post(f"{AUTH}/logout", headers=headers)).status_code == 204


@pytest.mark.parametrize(
    "claims", [{"sid": None}, {"sid": 5}, {"sid": "a\0"}, {"sub": "ada"}, {"iss": "x"}]
)
async def test_tokens_of_ours_need_all_their_claims(
    browser: Person, claims: dict[str, Any]
) -> None:
    answer = await sign_up(browser, name=None)
    forged = jwt.decode(answer["access_token"], SECRET, ["HS256"]) | claims
    forged = {name: value for name, value in forged.items() if value is not None}
    other = jwt.encode(forged, SECRET, "HS256", headers={"typ": "at+jwt"})

    response = await browser.get("/api/tasks", headers={"Authorization": f"Bearer {other}"})

    assert await code(response) == (401, "invalid_token")


async def test_another_issuers_user_cannot_have_a_local_id(
    browser: Person, connect: Connect
) -> None:
    answer = await sign_up(browser, name=None)

    response = await connect(token(sub=answer["user"]["id"])).get("/api/tasks")

    assert await code(response) == (401, "invalid_token")


async def test_the_name_can_be_changed(browser: Person, ada: Person) -> None:
    answer = await sign_up(browser, name="Ada")

    renamed = await browser.patch(f"{AUTH}/me", headers=bearer(answer), json={"name": " Ada L. "})
    cleared = await browser.patch(f"{AUTH}/me", headers=bearer(answer), json={"name": None})

    assert renamed.json() == {**answer["user"], "name": "Ada L."}
    assert cleared.json() == {**answer["user"], "name": None}
    assert (await ada.patch(f"{AUTH}/me", json={"name": "Ada"})).json()["name"] == "Ada"
    for wrong in ({}, {"name": ""}, {"name": "x" * 101}, {"name": "x\0"}, {"email": "x"}):
        assert_helpful(await ada.patch(f"{AUTH}/me", json=wrong), 422)


async def test_a_changed_password_ends_every_other_session(browser: Person) -> None:
    email = new_email()
    old = [await sign_up(browser, email=email, name=None)]
    old += [await sign_in(browser, email=email, password=PASSWORD)]
    before = cookie(browser)

    changed = await browser.post(
        f"{AUTH}/password",
        headers=bearer(old[0]),
        json={"current_password": PASSWORD, "new_password": OTHER},
    )

    assert changed.status_code == 200
    assert (await browser.get("/api/tasks", headers=bearer(changed.json()))).status_code == 200
    assert (await browser.post(f"{AUTH}/refresh")).status_code == 200
    for answer in old:
        dead = await browser.get("/api/tasks", headers=bearer(answer))
        assert await code(dead) == (401, "token_revoked")
    assert await code(await refresh(browser, before)) == (401, "refresh_token_invalid")
    refused = await browser.post(f"{AUTH}/login", json={"email": email, "password": PASSWORD})
    assert await code(refused) == (401, "invalid_credentials")
    assert await sign_in(browser, email=email, password=OTHER)


async def test_a_wrong_password_is_403_and_changes_nothing(browser: Person, ada: Person) -> None:
    answer = await sign_up(browser, name=None)
    change = {"current_password": OTHER, "new_password": OTHER}

    wrong = await browser.post(f"{AUTH}/password", headers=bearer(answer), json=change)
    without = await ada.post(f"{AUTH}/password", json=change)
    kept = await browser.request(
        "DELETE", f"{AUTH}/me", headers=bearer(answer), json={"password": OTHER}
    )
    weak = await browser.post(
        f"{AUTH}/password",
        headers=bearer(answer),
        json={"current_password": PASSWORD, "new_password": "iloveyou"},
    )
    missing = await browser.delete(f"{AUTH}/me", headers=bearer(answer))

    for response in (wrong, without, kept):
        assert await code(response) == (403, "wrong_password")
    assert weak.json()["errors"][0]["pointer"] == "#/new_password"
    assert missing.json()["errors"] == [{"detail": "is required", "pointer": "#/password"}]
    assert (await browser.get(f"{AUTH}/me", headers=bearer(answer))).json() == answer["user"]


async def test_passwords_changed_at_once_change_once(browser: Person) -> None:
    email = new_email()
    answer = await sign_up(browser, email=email, name=None)

    responses = await asyncio.gather(
        *(
            browser.post(
                f"{AUTH}/password",
                headers=bearer(answer),
                json={"current_password": PASSWORD, "new_password": f"{OTHER} {number}"},
            )
            for number in range(5)
        )
    )

    statuses = sorted(response.status_code for response in responses)
    assert statuses[0] == 200
    assert set(statuses[1:]) <= {401, 403}


async def test_a_deleted_account_is_gone_with_its_tokens(
    browser: Person, database: db.Database
) -> None:
    email = new_email()
    answer = await sign_up(browser, email=email, name=None)
    await browser.post("/api/tasks", headers=bearer(answer), json={"title": "Buy milk"})

    response = await browser.request(
        "DELETE", f"{AUTH}/me", headers=bearer(answer), json={"password": PASSWORD}
    )

    connection = await asyncpg.connect(database.url)
    left = await connection.fetchval(
        "SELECT (SELECT count(*) FROM users WHERE id = $1)"
        " + (SELECT count(*) FROM tasks WHERE user_id = $1)"
        " + (SELECT count(*) FROM sessions WHERE user_id = $1)",
        answer["user"]["id"],
    )
    await connection.close()
    assert response.status_code == 204
    assert left == 0
    claims = jwt.decode(answer["access_token"], options={"verify_signature": False})
    by_a_clock_ahead = claims | {"iat": claims["iat"] + 5}
    other = jwt.encode(by_a_clock_ahead, SECRET, "HS256", headers={"typ": "at+jwt"})
    for dead_token in (answer["access_token"], other):
        for method in ("GET", "POST"):
            dead = await browser.request(
                method,
                "/api/tasks",
                headers={"Authorization": f"Bearer {dead_token}"},
                json={"title": "x"},
            )
            assert await code(dead) == (401, "token_revoked")
    assert (await browser.post(f"{AUTH}/refresh")).status_code == 401
    assert await sign_up(browser, email=email, name=None)


async def test_an_external_user_needs_no_password_to_go(ada: Person) -> None:
    await create(ada)

    assert (await ada.delete(f"{AUTH}/me")).status_code == 204

    assert await code(await ada.get("/api/tasks")) == (401, "token_revoked")


async def test_a_write_in_progress_brings_no_deleted_user_back(
    ada: Person, ada_id: str, connect: Connect, database: db.Database
) -> None:
    await create(ada)

    deleted, *late = await in_turn(
        database,
        ada_id,
        ada.delete(f"{AUTH}/me"),
        ada.post("/api/tasks", json={"title": "Buy milk"}),
        ada.post("/api/tasks", json={"title": "x"}, headers={"Idempotency-Key": "1"}),
    )

    assert deleted.status_code == 204
    assert [await code(each) for each in late] == [(401, "token_revoked")] * 2
    assert await account_queries.FIND_USER.first(owner=ada_id) is None
    fresh = connect(token(sub=ada_id, iat=time.time() + 5))
    assert (await create(fresh))["rev"] == 1


FOREIGN = ["https://evil.example", "null", "http://[", "https://test.evil.example", "http://test:1"]


@pytest.mark.parametrize("origin", FOREIGN)
@pytest.mark.parametrize("path", ["refresh", "logout", "login", "register", "token"])
async def test_cookies_from_a_foreign_page_are_refused(
    browser: Person, origin: str, path: str
) -> None:
    answer = await sign_up(browser, name=None)

    response = await browser.post(f"{AUTH}/{path}", headers={"Origin": origin})

    assert await code(response) == (403, "origin_not_allowed")
    assert (await browser.get("/api/tasks", headers=bearer(answer))).status_code == 200


@pytest.mark.parametrize("origin", [ORIGIN, "https://test"])
async def test_cookies_from_allowed_pages_are_accepted(browser: Person, origin: str) -> None:
    await sign_up(browser, name=None)

    assert (await browser.post(f"{AUTH}/refresh", headers={"Origin": origin})).status_code == 200


@pytest.mark.parametrize(
    ("site", "status"),
    [("same-origin", 200), ("same-site", 403), ("cross-site", 403), ("none", 403), ("", 403)],
)
async def test_the_browser_says_that_a_page_is_ours(
    browser: Person, site: str, status: int
) -> None:
    """Behind a proxy with another `Host` nothing else does."""
    await sign_up(browser, name=None)
    headers = {"Origin": "https://proxied.example", "Sec-Fetch-Site": site}

    assert (await browser.post(f"{AUTH}/refresh", headers=headers)).status_code == status


async def slow_account(database: db.Database) -> str:
    """Create an account of an older backend whose hash takes 0.2 s; return its email."""
    email = f"{uuid.uuid4().hex}@example.com"
    connection = await asyncpg.connect(database.url)
    await connection.execute(
        "WITH taken AS (INSERT INTO emails (key, user_id) VALUES ($2, $1))"
        " INSERT INTO users (id, email, password_hash) VALUES ($1, $2, $3)",
        *(f"local_{email}", email, bcrypt.hashpw(OTHER.encode(), bcrypt.gensalt(12)).decode()),
    )
    await connection.close()
    return email


async def test_too_many_hashes_at_once_are_refused_and_the_rest_served(browser: Person) -> None:
    who = {"email": new_email(), "password": PASSWORD}
    many = 2 * passwords.THREADS + passwords.QUEUE + 20

    responses = await asyncio.gather(
        *(browser.post(f"{AUTH}/login", json=who) for _ in range(many))
    )

    statuses = [response.status_code for response in responses]
    assert set(statuses) == {401, 503}
    refused = next(response for response in responses if response.status_code == 503)
    assert refused.headers["Retry-After"] == "1"


async def test_nobody_waits_for_long(
    browser: Person, database: db.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here each hash takes longer than anybody may wait."""
    who = {"email": await slow_account(database), "password": PASSWORD}
    monkeypatch.setattr(passwords, "WAIT_SECONDS", 0.05)
    turns = 2 * passwords.THREADS

    responses = await asyncio.gather(
        *(browser.post(f"{AUTH}/login", json=who) for _ in range(turns + 5))
    )

    statuses = [response.status_code for response in responses]
    assert sorted(statuses) == [401] * turns + [503] * 5
    refused = responses[statuses.index(503)]
    assert refused.headers["Retry-After"] == "1"
    assert refused.elapsed < min(
        response.elapsed for response in responses if response.status_code == 401
    )


@pytest.mark.parametrize(
    ("written", "number"), [("max 100000", 64), ("250000 100000", 2), ("50000 100000", 0)]
)
def test_as_many_processors_count_as_may_be_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch, written: str, number: int
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(passwords, "QUOTA", folder / "cpu.max")

    assert passwords.processors() == 64
    (folder / "cpu.max").write_text(f"{written}\n")
    assert passwords.processors() == number


@pytest.fixture
async def other_worker(configured: Settings) -> AsyncIterator[Person]:
    """Start another worker on the same database."""
    other = main.create_app(configured)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(other.router.lifespan_context(other))
        yield await stack.enter_async_context(
            httpx.AsyncClient(transport=httpx.ASGITransport(other), base_url="https://test")
        )


async def when_refused(person: Person, answer: dict[str, Any]) -> httpx.Response:
    """Ask until a token is refused; a busy machine gets more than the second that it may take."""
    assert revocations.INTERVAL_SECONDS < 1
    for _ in range(60):
        response = await person.get("/api/tasks", headers=bearer(answer))
        if not response.is_success:
            break
        await asyncio.sleep(0.05)
    return response


async def test_other_workers_refuse_within_a_second(browser: Person, other_worker: Person) -> None:
    answer = await sign_up(browser, name=None)
    assert (await other_worker.get("/api/tasks", headers=bearer(answer))).status_code == 200

    await browser.post(f"{AUTH}/logout")

    dead = await when_refused(other_worker, answer)
    assert await code(dead) == (401, "token_revoked")


async def test_a_revocation_that_commits_late_is_seen(
    browser: Person, database: db.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revocations, "INTERVAL_SECONDS", 0.1)
    answer = await sign_up(browser, name=None)
    session = cookie(browser).split(".")[0]
    connection = await asyncpg.connect(database.url)
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(
        "INSERT INTO revocations (key, expires_at) VALUES ($1, now() + interval '1 min')",
        f"session:{session}",
    )
    await asyncio.sleep(1.2)
    assert (await browser.get("/api/tasks", headers=bearer(answer))).status_code == 200

    await transaction.commit()
    await connection.close()

    dead = await when_refused(browser, answer)
    assert await code(dead) == (401, "token_revoked")


async def test_cleaning_up_delays_no_logout(
    browser: Person,
    other_worker: Person,
    database: db.Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer = await sign_up(browser, name=None)
    async with locked_row(database):
        monkeypatch.setattr(revocations, "RELOAD_SECONDS", -1)  # it has to clean up at once
        assert (await other_worker.get("/api/tasks", headers=bearer(answer))).status_code == 200
        connection = await asyncpg.connect(database.url)
        async with asyncio.timeout(10):
            await until_waiting(connection, 1)
        await connection.close()
        await browser.post(f"{AUTH}/logout")

        dead = await when_refused(other_worker, answer)

    assert await code(dead) == (401, "token_revoked")


@asynccontextmanager
async def locked_row(database: db.Database) -> AsyncIterator[None]:
    """Lock an expired revocation, so that whoever deletes it waits."""
    key = f"session:{uuid.uuid4().hex}"
    connection = await asyncpg.connect(database.url)
    await connection.execute(
        "INSERT INTO revocations (key, expires_at) VALUES ($1, now() - interval '1 min')", key
    )
    async with connection.transaction():
        await connection.execute("SELECT FROM revocations WHERE key = $1 FOR UPDATE", key)
        yield
    await connection.close()


async def test_a_stale_list_of_revocations_refuses_every_call(
    ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await ada.get("/api/tasks")).status_code == 200

    monkeypatch.setattr(revocations, "MAX_AGE_SECONDS", -1)

    for path in ("/api/tasks", "/health/ready"):
        assert await code(await ada.get(path)) == (503, "unavailable")


async def last_statement(connection: "asyncpg.Connection[asyncpg.Record]") -> object:
    """Read when the last statement of anybody else began, and whether anybody listens."""
    return await connection.fetchrow(
        "SELECT max(query_start), count(*) FILTER (WHERE query LIKE 'LISTEN%')"
        " FROM pg_stat_activity WHERE datname IS NOT NULL AND pid <> pg_backend_pid()"
    )


async def test_a_service_that_nobody_calls_asks_its_database_nothing(
    ada: Person, database: db.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revocations, "INTERVAL_SECONDS", 0.02)
    monkeypatch.setattr(revocations, "PAUSE_SECONDS", 1.0)
    other = await asyncpg.connect(database.url)
    await ada.get("/api/tasks")
    before = await last_statement(other)
    async with asyncio.timeout(5):
        while await last_statement(other) == before:  # revocations are kept up
            await asyncio.sleep(0.01)
    await asyncio.sleep(2)
    before = await last_statement(other)
    await asyncio.sleep(0.6)

    assert await last_statement(other) == before
    assert before["count"] == 0  # type: ignore[index]
    await other.close()


async def test_what_was_revoked_during_a_pause_is_refused_at_once(
    browser: Person, other_worker: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revocations, "INTERVAL_SECONDS", 0.02)
    monkeypatch.setattr(revocations, "PAUSE_SECONDS", 0.1)
    answer = await sign_up(browser, name=None)
    assert (await other_worker.get("/api/tasks", headers=bearer(answer))).status_code == 200
    await asyncio.sleep(0.4)
    await browser.post(f"{AUTH}/logout")

    calls = [other_worker.get("/api/tasks", headers=bearer(answer)) for _ in range(5)]

    assert {response.status_code for response in await asyncio.gather(*calls)} == {401}


async def test_loading_revocations_survives_every_failure(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch, log_lines: Callable[[], str]
) -> None:
    monkeypatch.setattr(revocations, "INTERVAL_SECONDS", 0.01)
    failures: list[Exception] = [errors.Problem("unavailable"), ValueError("canary")]
    followed = revocations.Revocations(app.state.settings)

    async def load() -> None:
        if failures:
            raise failures.pop(0)

    monkeypatch.setattr(followed, "load", load)
    followed._called = math.inf  # noqa: SLF001  (calls come all the time)
    following = asyncio.create_task(followed.follow())
    await asyncio.sleep(0.2)

    assert not following.done()
    assert not failures
    assert "cannot read the revocations" in log_lines()
    following.cancel()


async def test_security_events_are_logged_without_secrets(
    browser: Person, log_lines: Callable[[], str]
) -> None:
    email = new_email()
    who = {"email": email, "password": "canary-password"}
    await browser.post(f"{AUTH}/register", json=who)
    await browser.post(f"{AUTH}/login", json={**who, "password": "canary-wrong"})
    answer = await sign_in(browser, **who)
    oldest = cookie(browser)
    for _ in range(2):
        await browser.post(f"{AUTH}/refresh")
    change = {"current_password": "canary-password", "new_password": "canary-changed"}
    await browser.post(f"{AUTH}/password", headers=bearer(answer), json=change)
    answer = await sign_in(browser, email=email, password="canary-changed")
    newer = cookie(browser)
    for _ in range(2):
        await browser.post(f"{AUTH}/refresh")
    await refresh(browser, newer)
    answer = await sign_in(browser, email=email, password="canary-changed")
    await browser.post(f"{AUTH}/logout", headers=bearer(answer))

    log = log_lines()
    for event in (
        *("signed_up", "signed_in", "sign_in_refused", "refreshed", "refresh_reused"),
        *("logged_out", "password_changed"),
    ):
        assert f'"event":"{event}"' in log, event
    for secret in ("canary", email, answer["access_token"], oldest, oldest.split(".")[2], newer):
        assert secret not in log


@pytest.mark.parametrize("call", ["password", "delete", "login"])
async def test_a_password_that_was_just_changed_is_refused(
    browser: Person, database: db.Database, call: str
) -> None:
    email = new_email()
    answer = await sign_up(browser, email=email, name=None)
    connection = await asyncpg.connect(database.url)

    async with connection.transaction():
        await connection.execute(
            "UPDATE users SET password_hash = $2 WHERE email = $1",
            email,
            passwords._HASHES.hash(OTHER),  # noqa: SLF001
        )
        if call == "password":
            change = {"current_password": PASSWORD, "new_password": OTHER + "!"}
            waiting = browser.post(f"{AUTH}/password", headers=bearer(answer), json=change)
        elif call == "delete":
            farewell = {"password": PASSWORD}
            waiting = browser.request("DELETE", f"{AUTH}/me", headers=bearer(answer), json=farewell)
        else:
            who = {"email": email, "password": PASSWORD}
            waiting = browser.post(f"{AUTH}/login", json=who)
        request = asyncio.create_task(waiting)
        await asyncio.sleep(0.5)
        assert not request.done()
    await connection.close()

    refused = (401, "invalid_credentials") if call == "login" else (403, "wrong_password")
    assert await code(await request) == refused
    assert await sign_in(browser, email=email, password=OTHER)


async def test_logout_can_be_repeated(browser: Person) -> None:
    answer = await sign_up(browser, name=None)
    headers = {"Cookie": f"refresh_token={cookie(browser)}", **bearer(answer)}
    browser.cookies.clear()

    for _ in range(2):
        response = await browser.post(f"{AUTH}/logout?everywhere=true", headers=headers)
        assert response.status_code == 204


async def test_a_very_long_password_is_refused_without_being_normalized(browser: Person) -> None:
    """That would take quadratic time, in which nobody else is served."""
    password = "\u0301\u0316" * 5000

    response = await browser.post(
        f"{AUTH}/login", json={"email": new_email(), "password": password}
    )

    assert_helpful(response, 422)
    assert schemas._nfkc(password) == password != unicodedata.normalize("NFKC", password)  # noqa: SLF001


async def test_logout_is_503_when_it_can_end_nothing(
    browser: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = await sign_up(browser, name=None)
    monkeypatch.setattr(revocations, "MAX_AGE_SECONDS", -1)

    response = await browser.post(f"{AUTH}/logout", headers=bearer(answer))

    assert await code(response) == (503, "unavailable")


async def test_a_slow_load_undoes_no_later_revocation(
    app: FastAPI, browser: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = await sign_up(browser, name=None)
    revoked = app.state.revocations
    until = time.monotonic() + 30
    old: list[Any] = await account_queries.LIST_REVOCATIONS.all(window=timedelta(days=1))
    sent = asyncio.Event()

    class Slow:
        async def all(self, **_: object) -> list[Any]:
            await sent.wait()
            return old

    monkeypatch.setattr(revoked, "_reloaded", -1e9)
    with monkeypatch.context() as patch:
        patch.setattr(account_queries, "LIST_REVOCATIONS", Slow())
        loading = asyncio.create_task(revoked.load())
        await asyncio.sleep(0)
    await browser.post(f"{AUTH}/logout", headers=bearer(answer))
    sent.set()
    await loading

    assert time.monotonic() < until
    dead = await browser.get("/api/tasks", headers=bearer(answer))
    assert await code(dead) == (401, "token_revoked")


async def test_with_two_cookies_both_sessions_end(browser: Person) -> None:
    tokens = []
    for _ in range(2):
        await sign_up(browser, name=None)
        tokens.append(cookie(browser))
        browser.cookies.clear()
    both = "; ".join(f"refresh_token={value}" for value in tokens)

    await browser.post(f"{AUTH}/logout", headers={"Cookie": both})

    for value in tokens:
        assert await code(await refresh(browser, value)) == (401, "refresh_token_invalid")


async def test_a_token_of_an_ended_session_can_still_end_the_others(browser: Person) -> None:
    email = new_email()
    first = await sign_up(browser, email=email, name=None)
    browser.cookies.clear()
    await browser.post(f"{AUTH}/logout", headers=bearer(first))
    second = await sign_in(browser, email=email, password=PASSWORD)
    browser.cookies.clear()

    await browser.post(f"{AUTH}/logout?everywhere=true", headers=bearer(first))

    dead = await browser.get("/api/tasks", headers=bearer(second))
    assert await code(dead) == (401, "token_revoked")


async def test_an_ancient_token_ends_nothing(browser: Person) -> None:
    email = new_email()
    first = await sign_up(browser, email=email, name=None)
    claims = jwt.decode(first["access_token"], SECRET, ["HS256"])
    for days, status in ((31, 200), (29, 401)):
        old = {**claims, "exp": time.time() - days * 24 * 3600}
        ancient = jwt.encode(old, SECRET, "HS256", headers={"typ": "at+jwt"})
        browser.cookies.clear()
        await browser.post(
            f"{AUTH}/logout?everywhere=true", headers=bearer({"access_token": ancient})
        )
        listed = await browser.get("/api/tasks", headers=bearer(first))
        assert listed.status_code == status


async def test_a_foreign_page_cannot_sign_anybody_in(client: Person) -> None:
    """It could make the browser keep a cookie of the attacker's account."""
    for path in ("login", "token", "token/"):
        response = await client.post(f"{AUTH}/{path}", headers={"Origin": "https://evil.example"})
        assert await code(response) == (403, "origin_not_allowed")


@pytest.mark.parametrize("hashed", ["$2y$12$" + "a" * 53, "{SSHA}x", "", "$argon2id$x"])
async def test_a_corrupt_hash_matches_no_password(
    browser: Person, database: db.Database, hashed: str
) -> None:
    email = new_email()
    await sign_up(browser, email=email, name=None)
    connection = await asyncpg.connect(database.url)
    await connection.execute("UPDATE users SET password_hash = $2 WHERE email = $1", email, hashed)
    await connection.close()

    response = await browser.post(f"{AUTH}/login", json={"email": email, "password": PASSWORD})

    assert await code(response) == (401, "invalid_credentials")


async def test_a_user_who_is_deleted_meanwhile_is_signed_out(app: FastAPI) -> None:
    scope = {"type": "http", "app": app, "client": None, calls.KEY: calls.Call("1", {}, "/")}
    request = Request(scope)

    for call in (
        auth.update_me(schemas.UserPatch(name="Ada"), {}, request),  # type: ignore[typeddict-item]
        (await accounts(request, Response())).delete("nobody", None),
    ):
        with pytest.raises(errors.Problem) as raised:
            await call
        assert raised.value.code == "token_revoked"


async def test_tokens_of_a_deleted_account_make_no_user(
    browser: Person, database: db.Database
) -> None:
    answer = await sign_up(browser, name=None)
    connection = await asyncpg.connect(database.url)
    await connection.execute("DELETE FROM users WHERE id = $1", answer["user"]["id"])
    await connection.close()

    response = await browser.get(f"{AUTH}/me", headers=bearer(answer))

    assert await code(response) == (401, "token_revoked")


async def test_the_second_of_two_deletions_does_not_blame_the_password(
    browser: Person, ada: Person, configured: Settings, database: db.Database
) -> None:
    answer = await sign_up(browser, name=None)
    await create(ada)

    async with one_connection(configured, database):
        ours = await asyncio.gather(
            *(
                browser.request(
                    "DELETE", f"{AUTH}/me", json={"password": PASSWORD}, headers=bearer(answer)
                )
                for _ in range(2)
            )
        )
        others = await asyncio.gather(*(ada.delete(f"{AUTH}/me") for _ in range(2)))

    for answers in (ours, others):
        first, second = sorted(answers, key=lambda answer: answer.status_code)
        assert first.status_code == 204
        assert await code(second) == (401, "token_revoked")


async def test_a_session_that_is_being_started_with_the_old_password_ends(
    browser: Person, database: db.Database
) -> None:
    answer = await sign_up(browser, name=None)
    user_id = answer["user"]["id"]
    connection = await asyncpg.connect(database.url)
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("SELECT FROM users WHERE id = $1 FOR SHARE", user_id)
    await connection.execute("INSERT INTO sessions (id, user_id) VALUES ('late', $1)", user_id)

    change = asyncio.create_task(
        browser.post(
            f"{AUTH}/password",
            json={"current_password": PASSWORD, "new_password": OTHER},
            headers=bearer(answer),
        )
    )
    async with asyncio.timeout(5):
        await until_waiting(connection, 1)
    await transaction.commit()
    changed = await change

    left = await connection.fetch("SELECT id FROM sessions WHERE user_id = $1", user_id)
    await connection.close()
    assert changed.status_code == 200
    assert [row["id"] for row in left] == [cookie(browser).split(".")[0]]


async def test_logging_out_everywhere_can_be_tried_again(
    browser: Person, connect: Connect, database: db.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    email = new_email()
    await sign_up(browser, email=email, name=None)
    other = connect(None)
    other.base_url = browser.base_url
    await sign_in(other, email=email, password=PASSWORD)
    connection = await asyncpg.connect(database.url)

    async with connection.transaction():
        session = cookie(other).split(".")[0]
        await connection.execute("SELECT FROM sessions WHERE id = $1 FOR UPDATE", session)
        with monkeypatch.context() as impatient:
            impatient.setattr(db, "DEADLINE_SECONDS", 0.2)
            failed = await browser.post(f"{AUTH}/logout?everywhere=true")
    await connection.close()
    again = await browser.post(f"{AUTH}/logout?everywhere=true")

    assert (failed.status_code, again.status_code) == (503, 204)
    assert (await other.post(f"{AUTH}/refresh")).status_code == 401


async def test_a_slow_load_keeps_the_later_of_two_moments(
    app: FastAPI, connect: Connect, ada_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def log_out_everywhere() -> None:
        await asyncio.sleep(0.02)
        person = connect(token(sub=ada_id, iat=timedelta()))
        await asyncio.sleep(0.02)
        response = await person.post(f"{AUTH}/logout?everywhere=true")
        assert response.status_code == 204

    await log_out_everywhere()
    old: list[Any] = await account_queries.LIST_REVOCATIONS.all(window=timedelta(days=1))
    await asyncio.sleep(0.02)
    between = connect(token(sub=ada_id, iat=timedelta(), jti="between"))
    assert (await between.get("/api/tasks")).status_code == 200
    await log_out_everywhere()

    class Late:
        async def all(self, **_: object) -> list[Any]:
            return old

    with monkeypatch.context() as patch:
        patch.setattr(account_queries, "LIST_REVOCATIONS", Late())
        await app.state.revocations.load()

    assert (await between.get("/api/tasks")).status_code == 401


async def test_calls_of_a_user_who_is_being_deleted_are_answered(connect: Connect) -> None:
    for number in range(8):
        person = connect(token(sub=f"leaver-{number}", iat=timedelta(seconds=-5)))
        await create(person)
        answers = await asyncio.gather(
            *(person.delete(f"{AUTH}/me") for _ in range(3)),
            *(person.patch(f"{AUTH}/me", json={"name": "Ada"}) for _ in range(3)),
            *(
                person.post("/api/tasks", json={"title": "x"}, headers={"Idempotency-Key": "k"})
                for _ in range(3)
            ),
        )
        assert {answer.status_code for answer in answers} <= {200, 201, 204, 401, 404, 503}


async def revoke_long_ago(database: db.Database, key: str) -> None:
    """Store a revocation as it was made five minutes ago."""
    await account_queries.REVOKE.one(key=key, lifetime=timedelta(hours=1))
    other = await asyncpg.connect(database.url)
    long_ago = "UPDATE revocations SET revoked_at = now() - interval '5 min' WHERE key = $1"
    await other.execute(long_ago, key)
    await other.close()


async def test_a_revocation_of_long_ago_is_kept_while_recent_ones_are_loaded(
    app: FastAPI, ada_id: str, database: db.Database
) -> None:
    claims = app.state.verifier.claims(token(sub=ada_id))
    await revoke_long_ago(database, claims.keys[-1])
    followed = revocations.Revocations(app.state.settings)

    async with followed.kept_up():
        for _ in range(2):
            await followed.load()  # all of them, then the recent ones
            with pytest.raises(errors.Problem, match="401"):
                await followed.check(claims)


async def test_what_was_revoked_early_in_a_long_pause_is_refused(
    app: FastAPI, ada_id: str, database: db.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    followed = revocations.Revocations(app.state.settings)
    await followed.load()
    claims = app.state.verifier.claims(token(sub=ada_id))
    await revoke_long_ago(database, claims.keys[-1])
    monkeypatch.setattr(followed, "_asked", time.monotonic() - 360)

    async with followed.kept_up():
        with pytest.raises(errors.Problem, match="401"):
            await followed.check(claims)


async def test_what_has_expired_is_forgotten(
    app: FastAPI, ada_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    followed, key = revocations.Revocations(app.state.settings), f"token:{ada_id}"
    await account_queries.REVOKE.one(key=key, lifetime=timedelta(seconds=1))
    await followed.load()
    assert key in followed._until  # noqa: SLF001
    await asyncio.sleep(1)
    await followed.load()
    assert key in followed._until  # noqa: SLF001
    monkeypatch.setattr(revocations, "RELOAD_SECONDS", -1)
    await followed.load()

    assert key not in followed._until  # noqa: SLF001


async def test_it_is_cleaned_up_now_and_then_only(
    app: FastAPI, ada_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revocations, "INTERVAL_SECONDS", 0.02)
    followed, numbers = revocations.Revocations(app.state.settings), itertools.count()

    async def clean_up() -> None:
        next(numbers)

    monkeypatch.setattr(followed, "clean_up", clean_up)
    async with followed.kept_up():
        await followed.check(app.state.verifier.claims(token(sub=ada_id)))
        await asyncio.sleep(0.5)

    assert next(numbers) == 1


async def test_the_dummys_password_is_nobodys(ada: Person) -> None:
    """Ada has no password: another issuer signs her tokens."""
    body = {"current_password": "of nobody", "new_password": PASSWORD}

    assert await code(await ada.post(f"{AUTH}/password", json=body)) == (403, "wrong_password")
    await ada.get(f"{AUTH}/me")  # now there is a row
    assert await code(await ada.post(f"{AUTH}/password", json=body)) == (403, "wrong_password")


async def test_who_waited_for_too_long_waits_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "WAIT_SECONDS", 0.01)
    monkeypatch.setattr(passwords, "QUEUE", 1)
    mine = passwords.Passwords()
    mine._turns = asyncio.Semaphore(0)  # noqa: SLF001  (others have them all)
    with pytest.raises(errors.Problem):
        await mine.hash("x")
    mine._turns.release()  # noqa: SLF001

    assert await mine.hash("x")
    mine.close()


async def test_cleaning_up_leaves_what_is_still_refused(
    app: FastAPI, ada_id: str, database: db.Database
) -> None:
    for name, minutes in (("good", 1), ("expired", -1)):
        lifetime = timedelta(minutes=minutes)
        await account_queries.REVOKE.one(key=f"token:{ada_id} {name}", lifetime=lifetime)

    await app.state.revocations.clean_up()

    connection = await asyncpg.connect(database.url)
    query = "SELECT key FROM revocations WHERE starts_with(key, $1)"
    left = await connection.fetch(query, f"token:{ada_id} ")
    await connection.close()
    assert [row["key"] for row in left] == [f"token:{ada_id} good"]


async def test_a_hash_that_is_upgraded_replaces_no_password_that_was_just_changed(
    browser: Person, database: db.Database
) -> None:
    email = new_email()
    await sign_up(browser, email=email, name=None)
    connection = await asyncpg.connect(database.url)
    change = "UPDATE users SET password_hash = $2 WHERE email = $1"
    old = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    await connection.execute(change, email, old)

    async with asyncio.timeout(10), connection.transaction():
        await connection.execute(change, email, passwords._HASHES.hash(OTHER))  # noqa: SLF001
        who = {"email": email, "password": PASSWORD}
        late = asyncio.create_task(browser.post(f"{AUTH}/login", json=who))
        await until_waiting(connection, 1)
    await connection.close()

    assert await code(await late) == (401, "invalid_credentials")
    assert await sign_in(browser, email=email, password=OTHER)


async def test_a_previous_token_does_not_stay_good_by_being_used(
    browser: Person, database: db.Database
) -> None:
    await sign_up(browser, name=None)
    previous = cookie(browser)
    await browser.post(f"{AUTH}/refresh")
    connection = await asyncpg.connect(database.url)
    earlier = "UPDATE sessions SET rotated_at = rotated_at - interval '6 seconds' WHERE id = $1"

    statuses = []
    for _ in range(2):
        await connection.execute(earlier, previous.split(".")[0])
        statuses.append((await refresh(browser, previous)).status_code)
    await connection.close()

    assert statuses == [200, 401]


async def test_a_cookie_of_a_session_that_ended_by_itself_ends_no_other(
    browser: Person, database: db.Database
) -> None:
    email = new_email()
    other = await sign_up(browser, email=email, name=None)
    await sign_in(browser, email=email, password=PASSWORD)
    connection = await asyncpg.connect(database.url)
    await connection.execute(
        "UPDATE sessions SET rotated_at = now() - interval '8 days' WHERE id = $1",
        cookie(browser).split(".")[0],
    )
    await connection.close()

    await browser.post(f"{AUTH}/logout?everywhere=true")

    assert (await browser.get("/api/tasks", headers=bearer(other))).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "which"),
    [("POST", "logout", -1), ("POST", "logout?everywhere=true", 0), ("DELETE", "me", 0)],
)
async def test_a_token_of_ten_years_is_refused_for_as_long(
    connect: Connect,
    ada_id: str,
    app: FastAPI,
    database: db.Database,
    method: str,
    path: str,
    which: int,
) -> None:
    sent = token(sub=ada_id, exp=timedelta(days=3652))
    claims = app.state.verifier.claims(sent)
    await create(connect(sent))

    await connect(sent).request(method, f"{AUTH}/{path}")

    connection = await asyncpg.connect(database.url)
    query = "SELECT expires_at FROM revocations WHERE key = $1"
    until = await connection.fetchval(query, claims.keys[which])
    await connection.close()
    assert until.timestamp() > claims.expires
