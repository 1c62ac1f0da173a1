"""Where people put it: under another server."""

import os
from pathlib import Path

import pytest

import db
from tests.test_service import service

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
