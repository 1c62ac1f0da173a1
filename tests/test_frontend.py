"""A page that was written without knowing this service works in a browser, on its own origin."""

import subprocess
import threading
from collections.abc import Iterator
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


@pytest.fixture
def origin(frontend: Path) -> Iterator[str]:
    """Serve the page."""
    handler = partial(SimpleHTTPRequestHandler, directory=frontend)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_all_that_it_offers_works(
    chromium: str, frontend: Path, origin: str, shared_clone: Path, database: db.Database
) -> None:
    with service(shared_clone, DATABASE_URL=database.url, CORS_ORIGINS=origin) as running:
        ran = subprocess.run(
            ["node", "browser.mjs", chromium, f"{origin}/index.html", running.url],  # noqa: S607  (wherever it is)
            cwd=frontend,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (ran.stdout, ran.stderr) == ("done\n", ""), running.printed()
