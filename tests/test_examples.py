"""What frontends are begun with works as it is, in two windows and on another device."""

import faulthandler
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

import db
from tests import node
from tests.test_frontend import served
from tests.test_service import PATIENCE, Service, free_port, service

API = "http://localhost:8000"


def use(chromium: str, project: Path, url: str, running: Service) -> None:
    """Use a page as a person does."""
    ran = subprocess.run(
        ["node", "example.mjs", chromium, url],  # noqa: S607  (wherever it is)
        cwd=node.install(project / "tests" / "frontend"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout + ran.stderr == "done\n", running.printed()


def test_a_page_of_sixty_lines_is_a_whole_frontend(
    chromium: str, project: Path, shared_clone: Path, database: db.Database, tmp_path: Path
) -> None:
    page = (project / "examples" / "page.html").read_text()
    assert page.count(API) == 2
    assert page.count("\n") <= 60

    with (
        served(tmp_path) as origin,
        service(shared_clone, DATABASE_URL=database.url, CORS_ORIGINS=origin) as running,
    ):
        (tmp_path / "page.html").write_text(page.replace(API, running.url))
        use(chromium, project, f"{origin}/page.html", running)


@contextmanager
def nextjs(folder: Path, url: str, **environment: str) -> Iterator[None]:
    """Build a project, and serve it until the block ends."""
    command = ["node", "node_modules/next/dist/bin/next"]
    environment = {
        "PATH": os.environ["PATH"],
        "NEXT_TELEMETRY_DISABLED": "1",
        "BETTER_AUTH_URL": url,
        "BETTER_AUTH_SECRET": "a secret of the Better Auth server of the tests",
        **environment,
    }
    output = subprocess.PIPE
    built = subprocess.run(
        [*command, "build"],
        cwd=folder,
        env=environment,
        stdout=output,
        text=True,
        check=False,
        timeout=600,
    )
    assert built.returncode == 0, built.stdout
    serve = [*command, "start", "-p", url.rpartition(":")[2]]
    with subprocess.Popen(serve, cwd=folder, env=environment) as process:
        try:
            deadline = time.monotonic() + PATIENCE
            answers = False
            while not answers:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
                with suppress(httpx.TransportError):
                    answers = httpx.get(f"{url}/api/auth/jwks").is_success
            yield
        finally:
            process.terminate()


@pytest.mark.campaign
def test_nextjs_with_better_auth(
    chromium: str, project: Path, shared_clone: Path, database: db.Database
) -> None:
    faulthandler.cancel_dump_traceback_later()  # it takes longer than other tests
    folder = node.install(project / "examples" / "nextjs")
    for name in ("client.js", "client.d.ts"):
        shutil.copy(project / "static" / name, folder)
    url = f"http://localhost:{free_port()}"
    settings = {"DATABASE_URL": database.url, "BETTER_AUTH_URL": url}
    with (
        service(shared_clone, CORS_ORIGINS=url, **settings) as running,
        nextjs(folder, url, DATABASE_URL=database.url, NEXT_PUBLIC_API_URL=running.url),
    ):
        use(chromium, project, url, running)
