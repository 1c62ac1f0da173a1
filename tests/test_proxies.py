"""Behind a real Apache and a real nginx, which compress answers and change their ETags."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import db
from tests.conftest import token
from tests.test_service import Service, service

APACHE = """
ServerName localhost
ServerRoot /usr/lib/apache2
DefaultRuntimeDir {folder}
PidFile {folder}/pid
ErrorLog {folder}/log
Listen 127.0.0.1:{port}
LoadModule mpm_event_module modules/mod_mpm_event.so
LoadModule authz_core_module modules/mod_authz_core.so
LoadModule proxy_module modules/mod_proxy.so
LoadModule proxy_http_module modules/mod_proxy_http.so
LoadModule filter_module modules/mod_filter.so
LoadModule deflate_module modules/mod_deflate.so
LoadModule brotli_module modules/mod_brotli.so
<IfModule unixd_module>
    User nobody
    Group nogroup
</IfModule>
AddOutputFilterByType BROTLI_COMPRESS;DEFLATE application/json application/problem+json
ProxyPass / {url}/
"""
NGINX = """
daemon off;
pid {folder}/pid;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    scgi_temp_path {folder}/scgi;
    uwsgi_temp_path {folder}/uwsgi;
    gzip on;
    gzip_min_length 1;
    gzip_types application/json application/problem+json;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_http_version 1.1;
            proxy_pass {url};
        }}
    }}
}}
"""
OPTIONS = {"apache2": ("-DFOREGROUND", "-f"), "nginx": ("-e", "stderr", "-c")}
CASES = [("apache2", "gzip", '"1-gzip"'), ("apache2", "br", '"1-br"'), ("nginx", "gzip", 'W/"1"')]
"""An encoding, and what each makes of `"1"` for it."""


@contextlib.contextmanager
def proxy(name: str, url: str, folder: Path) -> Iterator[str]:
    """Run a proxy in front of a service; give its URL."""
    program = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if not program:
        assert "CI" not in os.environ, f"{name} is missing"
        pytest.skip(f"needs {name}, from Debian's package of that name")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    configuration = folder / "conf"
    template = APACHE if name == "apache2" else NGINX
    configuration.write_text(template.format(folder=folder, port=port, url=url))
    process = subprocess.Popen([program, *OPTIONS[name], str(configuration)], cwd="/")
    try:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            assert process.poll() is None
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="module")
def running(database: db.Database, project: Path) -> Iterator[Service]:
    """Run the service."""
    with service(project, DATABASE_URL=database.url) as running:
        yield running


@pytest.fixture(params=CASES, ids=str)
def through(
    request: pytest.FixtureRequest, running: Service, folder: Path, ada_id: str
) -> Iterator[httpx.Client]:
    """Make a client that reaches the service through a proxy, and asks for an encoding."""
    name, encoding, _ = request.param
    headers = {"Authorization": f"Bearer {token(sub=ada_id)}", "Accept-Encoding": encoding}
    with (
        proxy(name, running.url, folder) as url,
        httpx.Client(base_url=url, headers=headers) as through,
    ):
        yield through


@pytest.fixture
def task(running: Service, ada_id: str) -> dict[str, Any]:
    """Create a task past the proxy."""
    headers = {"Authorization": f"Bearer {token(sub=ada_id)}"}
    body = {"title": "x", "tags": ["home"]}
    answer = httpx.post(f"{running.url}/api/tasks", json=body, headers=headers)
    created: dict[str, Any] = answer.raise_for_status().json()
    return created


def test_conditions_hold_with_the_etags_that_it_gives(
    request: pytest.FixtureRequest, through: httpx.Client, task: dict[str, Any]
) -> None:
    _, encoding, tag = request.node.callspec.params["through"]
    path, all_tasks = f"/api/tasks/{task['id']}", "/api/tasks"
    link, many = f"{path}/tags/{task['tags'][0]['id']}", f"{all_tasks}?status=completed"

    seen = through.get(path)
    assert (seen.headers["Content-Encoding"], seen.headers["ETag"]) == (encoding, tag)
    for where in (path, all_tasks):
        known = {"If-None-Match": through.get(where).headers["ETag"]}
        assert through.get(where, headers=known).status_code == 304
    for method, where, body in [
        ("PATCH", path, {"title": "y"}),
        ("PUT", path, {"title": "z"}),
        ("PATCH", f"{path}/complete", None),
        ("DELETE", link, None),
        ("PUT", link, None),
        ("PATCH", many, {"completed": False}),
        ("DELETE", path, None),
    ]:
        read = all_tasks if where == many else path
        before = {"If-Match": through.get(read).headers["ETag"]}
        stale = {"If-Match": before["If-Match"].replace(str(task["rev"]), "99")}
        refused = through.request(method, where, json=body, headers=stale)
        assert refused.status_code == 412
        assert refused.headers["ETag"].removeprefix("W/").startswith(f'"{task["rev"]}')
        assert through.request(method, where, json=body, headers=before).is_success
        task["rev"] += 1


def test_head_has_the_headers_of_get(through: httpx.Client, task: dict[str, Any]) -> None:
    for path in ("/api/tasks", f"/api/tasks/{task['id']}", "/health/live", "/docs"):
        got, head = [
            through.request(method, path, headers={"Accept-Encoding": "identity"})
            for method in ("GET", "HEAD")
        ]
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["Content-Length"] == str(len(got.content))
        assert head.headers.get("ETag") == got.headers.get("ETag")
