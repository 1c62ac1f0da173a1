"""A forgotten password: whoever runs the service gives the account a new one."""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest
from fastapi import FastAPI

import db
import reset_password
from reset_password import email_of, reset
from settings import Settings
from tests.conftest import SECRET, Person, until_waiting
from tests.contract import PASSWORD
from tests.test_auth import AUTH, bearer, code, cookie, new_email, refresh, sign_in, sign_up


async def execute(database: db.Database, sql: str, *values: object) -> str:
    """Write past the service, and tell how many rows."""
    connection = await asyncpg.connect(database.url)
    try:
        return await connection.execute(sql, *values)
    finally:
        await connection.close()


SPELLINGS: list[Callable[[str], str]] = [
    *(str, str.upper, " {}\n".format, lambda email: email.replace("ada", "ＡＤＡ")),
]


@pytest.mark.parametrize("spell", SPELLINGS)
async def test_a_new_password_signs_in_and_all_that_was_signed_in_is_out(
    app: FastAPI,
    browser: Person,
    configured: Settings,
    database: db.Database,
    spell: Callable[[str], str],
) -> None:
    email = new_email()
    old = [await sign_up(browser, email=email, name=None)]
    cookies = [cookie(browser)]
    old += [await sign_in(browser, email=email, password=PASSWORD)]
    cookies += [cookie(browser)]
    await browser.post("/api/tasks", json={"title": "x"}, headers=bearer(old[0]))
    other = await sign_up(browser, name=None)

    new = await reset(configured, email_of(spell(email)))

    await app.state.revocations.load()
    assert new
    for answer in old:
        dead = await browser.get("/api/tasks", headers=bearer(answer))
        assert await code(dead) == (401, "token_revoked")
    for each in cookies:
        assert await code(await refresh(browser, each)) == (401, "refresh_token_invalid")
    left = "SELECT FROM sessions WHERE user_id = $1"
    assert await execute(database, left, old[0]["user"]["id"]) == "SELECT 0"
    forgotten = await browser.post(f"{AUTH}/login", json={"email": email, "password": PASSWORD})
    assert await code(forgotten) == (401, "invalid_credentials")
    again = await sign_in(browser, email=email, password=new)
    assert again["user"] == old[0]["user"]
    assert len((await browser.get("/api/tasks", headers=bearer(again))).json()) == 1
    assert (await browser.get("/api/tasks", headers=bearer(other))).status_code == 200


async def test_an_account_without_a_password_gets_one(
    browser: Person, configured: Settings, database: db.Database
) -> None:
    email = new_email()
    await execute(
        database,
        "WITH moved AS (INSERT INTO users (id, email) VALUES ('local_' || $1, $1) RETURNING id)"
        "INSERT INTO emails (key, user_id) SELECT $1, id FROM moved",
        email,
    )

    new = await reset(configured, email)

    assert new
    assert (await sign_in(browser, email=email, password=new))["user"]["id"] == f"local_{email}"


async def test_a_password_that_is_changed_meanwhile_is_replaced(
    browser: Person, configured: Settings, database: db.Database
) -> None:
    email = new_email()
    await sign_up(browser, email=email, name=None)
    connection = await asyncpg.connect(database.url)

    async with asyncio.timeout(10), connection.transaction():
        await connection.execute(
            "UPDATE users SET password_hash = 'changed' WHERE email = $1", email
        )
        resetting = asyncio.create_task(reset(configured, email))
        await until_waiting(connection, 1)
    new = await resetting
    await connection.close()

    assert new
    assert await sign_in(browser, email=email, password=new)


async def test_no_other_email_has_an_account(configured: Settings) -> None:
    assert await reset(configured, "nobody@example.com") is None


def run(monkeypatch: pytest.MonkeyPatch, email: str) -> None:
    """Run the command."""
    monkeypatch.setattr(sys, "argv", ["reset_password.py", email])
    reset_password.main()


@pytest.fixture
def deployed(monkeypatch: pytest.MonkeyPatch, database: db.Database) -> None:
    """Set what a deployment sets."""
    monkeypatch.setenv("DATABASE_URL", database.url)
    monkeypatch.setenv("BETTER_AUTH_SECRET", SECRET)


@pytest.mark.usefixtures("app", "deployed")
def test_the_new_password_is_printed(
    database: db.Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    email = new_email()
    moved = "INSERT INTO users (id, email, password_hash) VALUES ('local_' || $1, $1, 'forgotten')"
    known = "INSERT INTO emails (key, user_id) VALUES ($1, 'local_' || $1)"
    for sql in (moved, known):
        asyncio.run(execute(database, sql, email))

    run(monkeypatch, email)

    printed = capsys.readouterr().out
    assert printed.endswith("\n")
    assert len(printed.split()) == 1
    assert len(printed) > 16


@pytest.mark.usefixtures("app", "deployed")
@pytest.mark.parametrize("email", ["nobody@example.com", "", "nobody", "' OR true --", "%"])
def test_an_unknown_email_is_an_error_in_a_line(
    monkeypatch: pytest.MonkeyPatch, email: str
) -> None:
    with pytest.raises(SystemExit, match="no account has this email"):
        run(monkeypatch, email)


@pytest.mark.parametrize("email", ["x" * 300, "a\0b@example.com", "\udcff@example.com"])
def test_what_can_be_no_email_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], email: str
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, email)

    assert "invalid email" in capsys.readouterr().err


def test_without_a_database_it_says_so(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    (folder / ".data").write_text("in the way")
    monkeypatch.setattr(db, "PROJECT", folder)

    with pytest.raises(SystemExit, match="set DATABASE_URL"):
        run(monkeypatch, "ada@example.com")
