"""Behind a real Apache and a real nginx: they compress, change ETags, and put us below a prefix."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import httpx
import pytest

import db
from tests.conftest import token
from tests.contract import PASSWORD
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
LoadModule alias_module modules/mod_alias.so
AddOutputFilterByType BROTLI_COMPRESS;DEFLATE application/json application/problem+json
{place}
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
        {place}
    }}
}}
"""
WHOLE = {
    "apache2": "ProxyPass / http://127.0.0.1:8000/",
    "nginx": "location / { proxy_http_version 1.1; proxy_pass http://127.0.0.1:8000; }",
}
OPTIONS = {"apache2": ("-DFOREGROUND", "-f"), "nginx": ("-e", "stderr", "-c")}
CASES = [("apache2", "gzip", '"1-gzip"'), ("apache2", "br", '"1-br"'), ("nginx", "gzip", 'W/"1"')]
"""An encoding, and what each makes of `"1"` for it."""


@contextlib.contextmanager
def proxy(name: str, url: str, folder: Path, place: str = "") -> Iterator[str]:
    """Run a proxy in front of a service, by its configuration of a place; give its URL."""
    program = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if not program:
        assert "CI" not in os.environ, f"{name} is missing"
        pytest.skip(f"needs {name}, from Debian's package of that name")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    configuration = folder / "conf"
    template = APACHE if name == "apache2" else NGINX
    place = (place or WHOLE[name]).replace("http://127.0.0.1:8000", url)
    configuration.write_text(template.format(folder=folder, port=port, place=place))
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


def documented(project: Path, heading: str, name: str) -> str:
    """Read what docs/deploy.md tells to write into a proxy's configuration."""
    page = (project / "docs" / "deploy.md").read_text("utf-8").partition(f"\n## {heading}\n")[2]
    return page.partition(f"```{name.rstrip('2')}\n")[2].partition("```")[0]


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


@pytest.fixture(scope="module")
def prefixed(database: db.Database, project: Path) -> Iterator[Service]:
    """Run a service that knows its prefix."""
    with service(project, "--root-path", "/todo", DATABASE_URL=database.url) as running:
        yield running


@pytest.fixture(params=["nginx", "nginx that leaves it", "apache2"])
def site(
    request: pytest.FixtureRequest, prefixed: Service, folder: Path, project: Path
) -> Iterator[str]:
    """Run a proxy as documented, but for the `Host` that it sends; give the URL of the prefix."""
    name, _, leaves = request.param.partition(" ")
    place = documented(project, "Below a prefix", name)
    place = re.sub(r".*(proxy_set_header Host|ProxyPreserveHost).*\n", "", place)
    if leaves:
        place = place.replace(":8000/;", ":8000;")
    assert "/todo/" in place
    with proxy(name, prefixed.url, folder, place) as url:
        yield f"{url}/todo"


def test_pages_find_all_that_they_need_below_a_prefix(site: str) -> None:
    page = httpx.get(site, follow_redirects=True)  # without the slash at the end
    assert page.url == f"{site}/"
    pages = [page, httpx.get(f"{site}/docs/"), httpx.get(f"{site}/docs")]

    for each in pages:
        links = re.findall(r'(?:src|href)="(?!data:)([^"]+)"', each.text)
        assert len(links) > 2
        for link in links:
            assert httpx.get(each.url.join(link)).status_code == 200, (each.url, link)
    document = httpx.get(f"{site}/openapi.json").json()
    assert document["servers"][0]["url"] == "/todo"
    (flow,) = document["components"]["securitySchemes"]["Password"]["flows"].values()
    assert flow["tokenUrl"] == "/todo/api/v1/auth/token"


@pytest.mark.parametrize("site", ["nginx"], indirect=True)
def test_a_browser_shows_the_operations_below_a_prefix(
    chromium: str, site: str, folder: Path
) -> None:
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/profile"]
    shown = [
        subprocess.run(
            [chromium, *options, "--virtual-time-budget=20000", "--dump-dom", f"{site}/{page}"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for page in ("docs", "docs/", "")
    ]

    assert ["operations-tasks-createTask" in page for page in shown] == [True, True, False]
    assert '<section id="welcome">' in shown[2]  # no longer hidden


def test_an_account_works_below_a_prefix(site: str) -> None:
    """As a browser calls, on a page of the site; the service sees another `Host` than the page."""
    page = {"Origin": site.removesuffix("/todo"), "Sec-Fetch-Site": "same-origin"}
    who = {"email": f"{uuid.uuid4().hex}@example.com", "password": PASSWORD}
    with httpx.Client(base_url=site, headers=page) as browser:
        assert browser.post("/api/v1/auth/register", json=who).status_code == 201
        signed_in = browser.post("/api/v1/auth/login", json=who)
        assert signed_in.status_code == 200
        assert "; Path=/todo/api/v1/auth;" in signed_in.headers["Set-Cookie"]
        browser.headers["Authorization"] = f"Bearer {signed_in.json()['access_token']}"
        for title in ("first", "second"):
            created = browser.post("/api/todos", json={"title": title})
            where = created.url.join(created.headers["Location"])
            assert httpx.get(where, headers=browser.headers).json() == created.json()
        first = browser.get("/api/tasks?limit=1")
        second = httpx.get(first.url.join(first.links["next"]["url"]), headers=browser.headers)

        foreign = browser.post("/api/v1/auth/login", headers={"Sec-Fetch-Site": "cross-site"})

    assert [task["title"] for task in first.json() + second.json()] == ["second", "first"]
    assert (foreign.status_code, foreign.json()["code"]) == (403, "origin_not_allowed")


CONNECTIONS, PIPELINED = 50, 10
LIST = f"GET /api/tasks HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token(sub='many')}\r\n\r\n"


@pytest.fixture
def guarded(running: Service, folder: Path, project: Path) -> Iterator[str]:
    """Run nginx as documented; give its URL."""
    place = documented(project, "Behind a proxy", "nginx") + WHOLE["nginx"]
    assert "header_timeout 10s;" in place
    place = place.replace("header_timeout 10s;", "header_timeout 1s;")
    with proxy("nginx", running.url, folder, place) as url:
        yield url


def connected(url: str) -> socket.socket:
    """Open a connection that takes little which is not read."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(30)
    connection.connect((urlsplit(url).hostname, urlsplit(url).port))
    return connection


def test_headers_that_do_not_come_to_an_end_are_cut(guarded: str, running: Service) -> None:
    before = running.printed()
    with connected(guarded) as connection:
        connection.sendall(b"GET /health/live HTTP/1.1\r\n")
        connection.settimeout(0.1)
        deadline, is_open = time.monotonic() + 30, True
        while is_open and time.monotonic() < deadline:
            try:
                connection.sendall(b"X: x\r\n")
                is_open = connection.recv(65536) != b""
            except TimeoutError:
                continue
            except ConnectionError:
                is_open = False

    assert not is_open
    assert running.printed() == before


def test_huge_headers_are_refused_and_large_tokens_are_not(guarded: str, running: Service) -> None:
    before = running.printed()

    huge = httpx.get(f"{guarded}/health/live", headers={"X": "x" * 20_000})
    many = httpx.get(f"{guarded}/health/live", headers={f"X{n}": "x" * 9_000 for n in range(9)})

    assert {huge.status_code, many.status_code} <= {400, 414, 431}
    assert running.printed() == before
    token_of_8_kib = {"Authorization": f"Bearer {'x' * 8192}"}
    answer = httpx.get(f"{guarded}/api/tasks", headers=token_of_8_kib)
    assert answer.json()["code"] == "invalid_token"


def memory_mib(process: int) -> float:
    """Return how much memory a process has."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


async def test_slow_readers_of_many_answers_do_not_fill_the_memory(
    guarded: str, running: Service, database: db.Database
) -> None:
    """Without the proxy they do."""
    created = httpx.post(
        f"{running.url}/api/tasks",
        json={"title": "x", "description": "x" * 1000},
        headers={"Authorization": f"Bearer {token(sub='many')}"},
    )
    connection = await asyncpg.connect(database.url)
    await connection.execute(
        "INSERT INTO tasks (user_id, title, title_key, description, description_key)"
        " SELECT user_id, title, title_key, description, description_key"
        " FROM tasks, generate_series(2, 500) WHERE id = $1",
        created.raise_for_status().json()["id"],
    )
    await connection.close()
    grown = []

    for url in (guarded, running.url):
        before, printed = memory_mib(running.process.pid), running.printed().count('"many"')
        with contextlib.ExitStack() as open_connections:
            for _ in range(CONNECTIONS):
                reader = open_connections.enter_context(connected(url))
                reader.sendall(LIST.encode() * PIPELINED)
            answered = [-1, 0]  # until it is as many as a second before
            while answered[-1] > answered[-2] or answered[-1] < CONNECTIONS:
                time.sleep(1)
                answered.append(running.printed().count('"many"') - printed)
            grown.append(memory_mib(running.process.pid) - before)

    through, directly = grown
    assert through < directly / 3, grown
