"""Pages work in a browser: one written without knowing this service, and the service's own demo."""

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import db
from tests import node
from tests.test_service import service


@pytest.fixture
def frontend(project: Path) -> Path:
    """Name the folder of the page, with what drives the browser."""
    return node.install(project / "tests" / "frontend")


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder's files, at the origin that is yielded."""
    handler = partial(SimpleHTTPRequestHandler, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@pytest.fixture
def origin(frontend: Path) -> Iterator[str]:
    """Serve the page."""
    with served(frontend) as origin:
        yield origin


def run(frontend: Path, *arguments: str) -> tuple[str, str]:
    """Run a script that uses a page; return what it printed, and what it complained of."""
    ran = subprocess.run(
        ["node", *arguments],  # noqa: S607  (wherever it is)
        cwd=frontend,
        capture_output=True,
        text=True,
        check=False,
    )
    return ran.stdout, ran.stderr


def test_all_that_a_page_offers_works(
    chromium: str, frontend: Path, origin: str, shared_clone: Path, database: db.Database
) -> None:
    with service(shared_clone, DATABASE_URL=database.url, CORS_ORIGINS=origin) as running:
        ran = run(frontend, "browser.mjs", chromium, f"{origin}/index.html", running.url)

        assert ran == ("done\n", ""), running.printed()


def test_the_demo_keeps_its_promises(
    chromium: str, frontend: Path, shared_clone: Path, database: db.Database
) -> None:
    with service(shared_clone, DATABASE_URL=database.url, AUTH_RATE_LIMIT="") as running:
        ran = run(frontend, "demo.mjs", chromium, running.url)

        assert ran == ("done\n", ""), running.printed()


def test_the_demo_is_short(project: Path) -> None:
    page = [path for path in (project / "static").iterdir() if path.stem not in ("client", "docs")]
    code = [
        path.read_text("utf-8").splitlines() for path in page if path.suffix in (".html", ".js")
    ]

    assert sum(map(len, code)) <= 500
    assert max(len(line) for lines in code for line in lines) <= 120
