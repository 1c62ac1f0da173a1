"""Fixtures: the service on a real PostgreSQL, the people who use it, and tokens of every kind."""

import asyncio
import contextlib
import gc
import itertools
import logging
import os
import shutil
import sys
import tempfile
import time
import uuid
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import httpx
import jwt
import pytest
from fastapi import FastAPI

import settings

# The developer's own settings must not reach the tests, and the tests not the developer's data.
settings.Settings.model_config["env_file"] = None
for name in settings.Settings.model_fields:
    os.environ.pop(name.upper(), None)

import db
import embedded
import logs
import main
from tests import node
from tests.contract import SECRETS, Contract

logging.getLogger("httpx").setLevel(logging.WARNING)

SECRET = "a secret of the tests, which is long enough for HS256 and for HS512 as well"
ORIGIN = "http://localhost:3000"

CAMPAIGN = float(os.environ.get("CAMPAIGN_MINUTES", "20"))
"""For how many minutes campaigns call at random, and how often they kill what they kill."""

Person = httpx.AsyncClient
_numbers = itertools.count(1)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Run the whole suite in two processes; any part of it starts sooner in one."""
    is_part = any(config.getoption(name, None) for name in ("file_or_dir", "keyword", "lf"))
    return 0 if is_part or config.getoption("markexpr") != "not campaign" else 2


def open_folder() -> Iterator[Path]:
    """Make a folder that PostgreSQL's user can reach, unlike pytest's own, and remove it."""
    with tempfile.TemporaryDirectory(prefix="todo-tests-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


shared_folder = pytest.fixture(scope="session")(open_folder)
folder = pytest.fixture(open_folder)


@pytest.fixture(scope="session", autouse=True)
def no_secret_is_logged() -> Iterator[None]:
    """Look through all that the whole suite makes the service log."""
    told: list[str] = []
    handle = logging.Logger.handle

    def look(logger: logging.Logger, record: logging.LogRecord) -> None:
        text = f"{record.msg} {record.args} {record.exc_info}"
        if record.name.startswith(("todo", "uvicorn")) and SECRETS.search(text):
            told.append(text)
        handle(logger, record)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(logging.Logger, "handle", look)
        yield
    assert not told


@pytest.fixture(scope="session")
def database(shared_folder: Path) -> Iterator[db.Database]:
    """Run a PostgreSQL of the tests' own."""
    with embedded.postgres(shared_folder) as server:
        yield db.Database(server.url, SECRET)


@pytest.fixture(scope="session")
def configured(database: db.Database) -> settings.Settings:
    """Make settings as a deployment has them."""
    return settings.Settings(
        database_url=database.url,
        better_auth_secret=SECRET,
        log_format="json",
        log_level="debug",
        rate_limit="",
        auth_rate_limit="",
        refresh_rate_limit="",
    )


@pytest.fixture
async def empty(database: db.Database) -> AsyncIterator[settings.Settings]:
    """Give a database without tables."""
    connection = await asyncpg.connect(database.url)
    name = f"empty_{uuid.uuid4().hex}"
    await connection.execute(f"CREATE DATABASE {name}")
    url = urlsplit(database.url)._replace(path=f"/{name}").geturl()
    yield settings.Settings(database_url=url, better_auth_secret=SECRET)
    await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await connection.close()


@pytest.fixture(scope="session")
async def app(configured: settings.Settings) -> AsyncIterator[FastAPI]:
    """Start the service in this process."""
    app = main.create_app(configured)
    async with app.router.lifespan_context(app):
        yield app


@pytest.fixture(scope="session")
def contract(app: FastAPI) -> Contract:
    """Check answers against the OpenAPI document that is served."""
    return Contract(app.openapi())


@pytest.fixture
async def connect(
    app: FastAPI, connect_once: Callable[[str | None], Person]
) -> Callable[[str | None], Person]:
    """Make clients of a service that is up to date: it stood still during tests that block."""
    await app.state.revocations.load()
    return connect_once


@pytest.fixture(scope="session")
async def connect_once(
    app: FastAPI, contract: Contract
) -> AsyncIterator[Callable[[str | None], Person]]:
    """Make clients whose every answer is held against the contract."""
    transport = httpx.ASGITransport(app, client=("192.0.2.1", 123))
    async with contextlib.AsyncExitStack() as stack:

        def connect(token: str | None) -> Person:
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            person = httpx.AsyncClient(
                transport=transport,
                base_url="http://test",
                headers=headers,
                event_hooks={"response": [contract.check]},
            )
            stack.push_async_callback(person.aclose)
            return person

        yield connect


@pytest.fixture
def client(connect: Callable[[str | None], Person]) -> Person:
    """Give a client without a token."""
    return connect(None)


@pytest.fixture
def browser(connect: Callable[[str | None], Person]) -> Person:
    """Give a client that keeps cookies, as over HTTPS."""
    person = connect(None)
    person.base_url = httpx.URL("https://test")
    return person


@pytest.fixture
def ada_id() -> str:
    """Give an id that no other test uses."""
    return f"ada-{next(_numbers)}"


@pytest.fixture
def bob_id() -> str:
    """Give an id that no other test uses."""
    return f"bob-{next(_numbers)}"


@pytest.fixture
def ada(connect: Callable[[str | None], Person], ada_id: str) -> Person:
    """Give a signed-in client."""
    return connect(token(sub=ada_id))


@pytest.fixture
def bob(connect: Callable[[str | None], Person], bob_id: str) -> Person:
    """Give another one."""
    return connect(token(sub=bob_id))


@pytest.fixture
def log_lines(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """Collect what the service logs, as it is printed."""
    printed = ""

    def lines() -> str:
        nonlocal printed
        printed += capsys.readouterr().out
        return printed

    class Printer(logging.Handler):
        """Prints to where requests are logged; the service's own has what stdout was before."""

        def emit(self, record: logging.LogRecord) -> None:
            sys.stdout.write(self.format(record) + "\n")

    printer = Printer()
    printer.setFormatter(logs.JSONFormatter())
    logging.getLogger().addHandler(printer)
    yield lines
    logging.getLogger().removeHandler(printer)


def token(secret: str = SECRET, algorithm: str = "HS256", **claims: object) -> str:
    """Sign claims; one that is `None` is left out, and a `timedelta` counts from now."""
    all_claims = {"exp": timedelta(hours=2), **claims}  # longer than any campaign
    present = {
        name: time.time() + value.total_seconds() if isinstance(value, timedelta) else value
        for name, value in all_claims.items()
        if value is not None
    }
    return jwt.encode(present, secret, algorithm)


def one_connection(
    configured: settings.Settings, database: db.Database
) -> contextlib.AbstractAsyncContextManager[None]:
    """Let two requests take turns: the second is written between two statements of the first."""
    return db.connect(configured.model_copy(update={"database_pool_size": 1}), database.url)


@pytest.fixture
def forgiving() -> Iterator[None]:
    """Collect what libraries leave open: or a later test would get the warning."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


WAITING = "SELECT count(*) FROM pg_locks WHERE NOT granted"


async def until_waiting(connection: asyncpg.Connection, number: int) -> None:
    """Return when so many statements wait for a lock."""
    while await connection.fetchval(WAITING) < number:
        await asyncio.sleep(0.005)


async def in_turn(
    database: db.Database, user_id: str, *calls: Coroutine[Any, Any, httpx.Response]
) -> list[httpx.Response]:
    """Let a user's writes all begin before any is done; the first is done first."""
    connection = await asyncpg.connect(database.url)
    waiting: list[asyncio.Task[httpx.Response]] = []
    async with asyncio.timeout(10), connection.transaction():
        await connection.execute("SELECT FROM users WHERE id = $1 FOR NO KEY UPDATE", user_id)
        for call in calls:
            waiting.append(asyncio.create_task(call))
            await until_waiting(connection, len(waiting))
    await connection.close()
    return await asyncio.gather(*waiting)


@pytest.fixture
def valid_token(ada_id: str) -> str:
    """Give a token that is accepted."""
    return token(sub=ada_id)


@pytest.fixture
def expired_token(ada_id: str) -> str:
    """Give a token that was accepted until a minute ago."""
    return token(sub=ada_id, exp=timedelta(minutes=-1))


@pytest.fixture
def wrong_secret_token(ada_id: str) -> str:
    """Give a token that somebody else signed."""
    return token("another secret that is just as long", sub=ada_id)


@pytest.fixture
def token_without_user() -> str:
    """Give a token that names nobody."""
    return token()


@pytest.fixture
def malformed_token() -> str:
    """Give what is no token at all."""
    return "not.a.token"


@pytest.fixture(scope="session")
def project() -> Path:
    """Name the folder of the project."""
    return settings.PROJECT


@pytest.fixture
def chromium() -> str:
    """Find the browser, or skip the test."""
    found = shutil.which("chromium")
    if not found:
        assert not os.environ.get(node.NEEDED), "Chromium is missing"
        pytest.skip("needs Chromium")
    return found


def copied(project: Path, folder: Path) -> Path:
    """Copy the project, without the developer's .env."""
    ignored = shutil.ignore_patterns(".*", "__pycache__", "node_modules")
    return Path(shutil.copytree(project, folder / "clone", ignore=ignored))


@pytest.fixture(scope="session")
def shared_clone(project: Path, shared_folder: Path) -> Path:
    """Copy the project, for services that are told where their database is."""
    return copied(project, shared_folder)
