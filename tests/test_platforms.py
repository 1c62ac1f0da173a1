"""Where people put it: in an image, on a platform, behind its proxies, under another server."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

import db
import main
from settings import Settings
from tests.conftest import ORIGIN, SECRET
from tests.test_service import Service, service

OTHERS = {  # as docs/deploy.md has them
    "gunicorn": [
        "--preload",
        "--no-control-socket",
        "-k",
        "uvicorn_worker.UvicornWorker",
        "-b",
        "127.0.0.1:{port}",
    ],
    "hypercorn": ["-b", "127.0.0.1:{port}", "--error-logfile", "/dev/null"],
    "granian": ["--interface", "asgi", "--port", "{port}"],
}
URL = "postgresql://u:p@db.example/todo"


def commands(project: Path) -> tuple[list[str], list[str]]:
    """Read the image's health check and its command."""
    found = re.findall(r"^ *CMD (\[.+\])$", (project / "Dockerfile").read_text(), re.MULTILINE)
    check, command = map(json.loads, found)
    return check, command


@pytest.fixture
def image(
    project: Path, shared_clone: Path, database: db.Database, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Service]:
    """Run the command of the image, on loopback."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    command = [part.replace("0.0.0.0", "127.0.0.1") for part in commands(project)[1]]  # noqa: S104
    with service(shared_clone, command=command, DATABASE_URL=database.url) as running:
        yield running


def test_the_image_listens_where_the_platform_says_and_stops_when_told(
    image: Service, project: Path
) -> None:
    check, _ = commands(project)
    port = image.url.rpartition(":")[2]

    healthy = subprocess.run([*check], env={**os.environ, "PORT": port}, check=False)
    elsewhere = subprocess.run(
        [*check], env={**os.environ, "PORT": "1"}, check=False, stderr=subprocess.DEVNULL
    )
    image.stop()

    assert (healthy.returncode, elsewhere.returncode) == (0, 1)
    assert "Application shutdown complete" in image.printed()


@pytest.mark.parametrize("port", [{}, {"PORT": ""}])
def test_without_a_port_the_image_listens_on_8000(project: Path, port: dict[str, str]) -> None:
    _, (shell, option, script) = commands(project)
    script = script.replace("exec uvicorn", "echo")

    printed = subprocess.check_output([shell, option, script], env=port, text=True)

    assert "--port 8000 " in printed


@pytest.mark.parametrize("name", main.PLATFORMS)
def test_a_platform_on_which_nothing_lasts_is_told_loudly(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(name, "canary")

    main.warn_of_loss(Settings())
    monkeypatch.setenv("POSTGRES_URL", "postgresql://canary")
    main.warn_of_loss(Settings())
    main.warn_of_loss(Settings(database_url=URL, better_auth_secret=SECRET))

    without, beside = [record.getMessage() for record in caplog.records]
    for told in (without, beside):
        assert "WILL BE GONE" in told
        assert f"({name} is set)" in told
        assert "canary" not in told
    assert without.endswith("set DATABASE_URL to a PostgreSQL")
    assert beside.endswith("set DATABASE_URL to the value of POSTGRES_URL")


def test_elsewhere_the_private_database_is_no_reason_to_warn(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in main.PLATFORMS:
        monkeypatch.setenv(name, "")

    main.warn_of_loss(Settings())

    assert not caplog.records


async def test_the_warning_is_the_first_that_a_start_says(
    folder: Path, monkeypatch: pytest.MonkeyPatch, log_lines: Callable[[], str]
) -> None:
    monkeypatch.setattr(db, "PROJECT", folder)
    monkeypatch.setenv("RENDER", "true")
    (folder / ".data").write_text("in the way")
    app = main.create_app(Settings(log_format="json"))

    with pytest.raises(Exception, match="private PostgreSQL"):
        async with app.router.lifespan_context(app):
            pass

    assert "WILL BE GONE" in log_lines().splitlines()[0]


def paths(app: FastAPI) -> list[tuple[str, str]]:
    """List every operation, our pages, another spelling, and `HEAD`."""
    documented = [
        (method.upper(), re.sub(r"\{\w+\}", "1", path))
        for path, methods in app.openapi()["paths"].items()
        for method in methods
    ]
    return [*documented, ("GET", "/"), ("GET", "/docs"), ("GET", "/api/todos"), ("HEAD", "/docs")]


async def test_without_its_lifespan_every_call_is_503_and_the_log_says_why_once(
    configured: Settings, log_lines: Callable[[], str]
) -> None:
    app = main.create_app(configured)
    transport = httpx.ASGITransport(app)

    async with httpx.AsyncClient(
        transport=transport, base_url="http://test", headers={"Origin": ORIGIN}
    ) as client:
        answers = [await client.request(method, path) for method, path in paths(app)]

    for answer in answers:
        assert answer.status_code == 503, answer.url
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert answer.headers["Retry-After"]
        assert answer.request.method == "HEAD" or answer.json()["code"] == "unavailable"
    assert log_lines().count("called without its lifespan") == 1
    assert "Traceback" not in log_lines()


def clients(running: Service) -> list[Any]:
    """Read the addresses of clients from the lines of calls to the list."""
    lines = [json.loads(line) for line in running.printed().splitlines()]
    return [line["client"] for line in lines if line.get("route") == "/api/tasks"]


def test_an_address_is_not_invented_where_uvicorn_trusts_who_connects(
    shared_clone: Path, database: db.Database
) -> None:
    environment = {"DATABASE_URL": database.url, "FORWARDED_ALLOW_IPS": "*"}
    sent = ["203.0.113.9, 198.51.100.7, 198.51.100.8", "203.0.113.9", "203.0.113.9:1", None]
    with service(shared_clone, TRUSTED_PROXY_HOPS="2", **environment) as running:
        for value in sent:
            headers = {"X-Forwarded-For": value} if value else {}
            assert httpx.get(f"{running.url}/api/tasks", headers=headers).status_code == 401

        running.wait_until_printed('"route":"/api/tasks"', len(sent))

    assert clients(running) == ["198.51.100.7", None, None, "127.0.0.1"]


@pytest.mark.campaign
@pytest.mark.parametrize("name", OTHERS)
def test_other_servers_start_serve_and_log_each_event_once(
    name: str, project: Path, database: db.Database
) -> None:
    """In an environment of their own, which uv makes: none of them is a dependency."""
    uv = os.environ.get("UV")
    if not uv:
        pytest.skip("needs to be run by uv")
    packages = [f"--with={package}" for package in (name, "uvicorn-worker")]
    command = [
        uv,
        "run",
        "-q",
        "--no-sync",
        *packages,
        "python",
        "-m",
        name,
        *OTHERS[name],
        "main:app",
    ]
    # uv itself may need more of the environment than the service does.
    environment = {**os.environ, "DATABASE_URL": database.url, "LOG_FORMAT": "json"}
    with service(project, command=command, **environment) as running:
        created = running.create("Buy milk")
        assert created in running.ids()
        running.call("DELETE", f"/{created}")

    printed = running.printed()
    assert printed.count('"method":"DELETE"') == 1
    assert printed.count("Running on") == (name == "hypercorn")
    # All lines are ours but granian's own.
    assert [line for line in printed.splitlines() if line[:6] not in {'{"time', "[INFO]"}] == []
