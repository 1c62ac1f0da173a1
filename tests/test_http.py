"""What surrounds every answer: CORS, security headers, request ids, pages, health."""

import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import Message, Receive, Scope, Send

import main
from settings import Settings
from tests.conftest import ORIGIN, Person, token
from tests.contract import PASSWORD
from tests.test_tasks import create

EXPOSED = [
    *("ETag", "Location", "Link", "Retry-After", "RateLimit", "RateLimit-Policy"),
    "Idempotency-Replayed",
    *("WWW-Authenticate", "X-Request-ID"),
]


async def preflight(person: Person, **headers: str) -> dict[str, str]:
    """Ask as a browser does ahead of a request."""
    response = await person.options(
        "/api/tasks",
        headers={
            "Origin": headers.get("origin", ORIGIN),
            "Access-Control-Request-Method": headers.get("method", "PATCH"),
            "Access-Control-Request-Headers": headers.get("headers", "authorization,content-type"),
            "Access-Control-Request-Private-Network": headers.get("private_network", "false"),
        },
    )
    code = response.json()["code"] if response.is_error else ""
    return {"status": str(response.status_code), "code": code, **response.headers}


ORIGINS = ("https://todo-*-team.vercel.app", "capacitor://localhost", "http://localhost:3000")


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("https://todo-git-main-team.vercel.app", 200),
        ("https://todo-a1b2--x-team.vercel.app", 200),
        ("capacitor://localhost", 200),
        ("http://localhost:3000", 200),
        ("https://todo--team.vercel.app", 403),
        ("https://todo-a.b-team.vercel.app", 403),
        ("https://todo-a/b-team.vercel.app", 403),
        ("https://todo-a_b-team.vercel.app", 403),
        ("https://todo-a-team.vercel.app.evil.example", 403),
        ("https://evil.example/todo-a-team.vercel.app", 403),
        ("https://todo-a-teamXvercel.app", 403),
        ("http://todo-a-team.vercel.app", 403),
        ("https://todo-a-team.vercel.app:444", 403),
        ("https://todo-*-team.vercel.app", 403),
        ("capacitor://localhost.evil.example", 403),
        ("http://localhost:30001", 403),
        ("", 403),
    ],
)
async def test_origins_may_have_a_part_that_varies(
    configured: Settings, origin: str, status: int
) -> None:
    """For preflights and for calls with a cookie alike."""
    app = main.create_app(Settings(**{**configured.model_dump(), "cors_origins": ORIGINS}))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as person,
    ):
        assert (await preflight(person, origin=origin))["status"] == str(status)
        headers = {"Origin": origin, "Cookie": "a=b"}
        answer = await person.get("/api/v1/auth/me", headers=headers)

    assert answer.status_code == (status if status == 403 else 401)  # there is no token


async def test_without_origins_no_page_may_call(configured: Settings) -> None:
    app = main.create_app(Settings(**{**configured.model_dump(), "cors_origins": ","}))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as person:
        assert (await preflight(person, origin=""))["status"] == "403"


async def test_an_allowed_origin_may_do_everything(client: Person) -> None:
    wanted = "authorization,baggage,content-type,idempotency-key,sentry-trace,x-any"

    answer = await preflight(client, headers=wanted, private_network="true")

    assert answer["status"] == "200"
    assert answer["access-control-allow-headers"] == wanted
    assert answer["access-control-allow-private-network"] == "true"
    assert answer["access-control-allow-origin"] == ORIGIN
    assert answer["access-control-allow-credentials"] == "true"
    assert answer["access-control-allow-methods"] == "GET, HEAD, POST, PUT, PATCH, DELETE"


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "", f"{ORIGIN}1"])
@pytest.mark.parametrize("method", ["PATCH", "PURGE"])
async def test_a_foreign_origin_is_refused(
    client: Person, log_lines: Callable[[], str], origin: str, method: str
) -> None:
    answer = await preflight(client, origin=origin, method=method, headers="x-other")

    assert (answer["status"], answer["code"]) == ("403", "origin_not_allowed")
    assert f'"origin":"{origin}"' in log_lines()
    assert "access-control-allow-origin" not in answer


async def test_a_foreign_method_is_not_blamed_on_the_origin(client: Person) -> None:
    answer = await preflight(client, method="PURGE")

    assert (answer["status"], answer["code"]) == ("405", "method_not_allowed")
    assert answer["allow"] == "GET, HEAD, POST, PUT, PATCH, DELETE"
    assert answer["access-control-allow-origin"] == ORIGIN
    assert answer["access-control-allow-credentials"] == "true"


@pytest.mark.parametrize("path", ["/api/tasks", "/nothing", "/health/live"])
async def test_answers_can_be_read_across_origins(client: Person, path: str) -> None:
    answer = await client.get(path, headers={"Origin": ORIGIN})

    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert answer.headers["Access-Control-Allow-Credentials"] == "true"
    assert answer.headers["Access-Control-Expose-Headers"].split(", ") == EXPOSED
    assert answer.headers["Vary"] == "Origin"


@pytest.mark.parametrize("path", ["/", "/docs", "/static/demo.js", "/health/live"])
@pytest.mark.parametrize("origin", [None, ORIGIN, "https://evil.example"])
async def test_pages_say_once_that_they_vary(client: Person, path: str, origin: str | None) -> None:
    answer = await client.get(path, headers={"Origin": origin} if origin else {})

    assert answer.headers.get_list("Vary") == ["Origin"]


async def test_a_foreign_origin_cannot_read_the_answer(client: Person) -> None:
    answer = await client.get("/health/live", headers={"Origin": "https://evil.example"})

    assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize("path", ["/api/tasks", "/nothing", "/health/live", "/", "/docs"])
async def test_security_headers_are_on_every_answer(client: Person, path: str) -> None:
    headers = (await client.get(path)).headers

    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert "unsafe-inline" not in headers["Content-Security-Policy"].partition("style-src")[0]


async def test_tasks_are_not_stored_on_the_way(ada: Person) -> None:
    assert (await ada.get("/api/tasks")).headers["Cache-Control"] == "private, no-cache"
    assert (await ada.get("/api/v1/auth/me")).headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("request_id", ["abc", "4bf92f3577b34da6", "a.b:c/d_e=f+g", "x" * 128])
async def test_a_sane_request_id_is_kept(client: Person, request_id: str) -> None:
    answer = await client.get("/health/live", headers={"X-Request-ID": request_id})

    assert answer.headers["X-Request-ID"] == request_id


@pytest.mark.parametrize("request_id", ["", " ", "a b", "x" * 129, "é", '"', "a\tb", "<script>"])
async def test_any_other_is_replaced(client: Person, request_id: str) -> None:
    header = {b"X-Request-ID": request_id.encode()}

    answer = await client.get("/nothing", headers=header)

    assert len(answer.headers["X-Request-ID"]) == 32
    assert answer.json()["request_id"] == answer.headers["X-Request-ID"]


async def test_request_ids_differ(client: Person) -> None:
    answers = [await client.get("/health/live") for _ in range(3)]

    assert len({answer.headers["X-Request-ID"] for answer in answers}) == 3


@pytest.mark.parametrize("path", ["/health/live", "/health/ready"])
async def test_health(client: Person, path: str) -> None:
    answer = await client.get(path)

    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


async def assert_head_is_get(person: Person, path: str, **headers: str) -> httpx.Response:
    """Fail unless HEAD has the status and headers of GET, and no body."""
    headers["X-Request-ID"] = "same"
    got, head = [await person.request(method, path, headers=headers) for method in ("GET", "HEAD")]
    assert (head.status_code, head.headers.multi_items()) == (
        got.status_code,
        got.headers.multi_items(),
    )
    assert head.content == b""
    assert got.content == b"" or head.headers["Content-Length"] == str(len(got.content))
    return head


async def test_head_is_get_without_the_body(ada: Person, app: FastAPI) -> None:
    task = await create(ada, tags=["home"])
    await create(ada)
    ids = {"task_id": task["id"], "tag_id": task["tags"][0]["id"]}
    documented = app.openapi()["paths"]
    paths = {path.format(**ids) for path, methods in documented.items() if "get" in methods}
    assert len(paths) > 6

    for path in paths - {"/api/tasks/events", "/api/tasks/changes"}:
        assert (await assert_head_is_get(ada, path)).status_code == 200
    assert all("head" not in methods for methods in documented.values())
    page = await assert_head_is_get(ada, "/api/tasks/?limit=1", Origin=ORIGIN)
    assert 'rel="next"' in page.headers["Link"]
    known = await assert_head_is_get(ada, "/api/tasks", **{"If-None-Match": page.headers["ETag"]})
    assert known.status_code == 304
    await assert_head_is_get(ada, f"/api/{task['user_id']}/tasks/changes?since=0")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        *(("/", 200), ("/docs", 200), ("/openapi.json", 200), ("/static/docs.js", 200)),
        *(("/nothing", 404), ("/static/nothing", 404), ("/api/tasks/1/complete", 405)),
        *(("/api/tasks", 401), ("/api/tags/", 401), ("/api/tasks/1", 401)),
    ],
)
async def test_head_has_the_headers_of_pages_and_errors_too(
    client: Person, path: str, status: int
) -> None:
    assert (await assert_head_is_get(client, path)).status_code == status


async def test_a_slash_at_the_end_is_never_redirected(client: Person) -> None:
    for path in ("/api/tasks/", "/docs/", "/openapi.json/", "/health/live/", "/api//tasks"):
        for method in ("GET", "HEAD", "POST"):
            answer = await client.request(method, path)
            assert answer.status_code in {200, 401, 405}, (method, path)


async def test_head_sends_no_body_even_to_a_server_that_would_pass_it_on(app: FastAPI) -> None:
    for path in ("/health/live", "/openapi.json", "/docs", "/nowhere"):
        scope: dict[str, Any] = {
            "type": "http",
            "method": "HEAD",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [],
            "http_version": "1.1",
        }
        sent: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message, sent: list[Message] = sent) -> None:
            sent.append(message)

        await app(scope, receive, send)

        assert sent[0]["type"] == "http.response.start"
        assert int(dict(sent[0]["headers"])[b"content-length"]) > 0
        assert b"".join(message.get("body", b"") for message in sent) == b""


async def test_a_stream_has_no_head(ada: Person) -> None:
    answers = [await ada.head(path) for path in ("/api/tasks/events", "/api/x/tasks/events/")]

    for answer in answers:
        assert (answer.status_code, answer.headers["Allow"]) == (405, "GET")


@pytest.mark.parametrize(
    ("path", "media_type", "text"),
    [
        ("/", "text/html", "<title>"),
        ("/docs", "text/html", "swagger-ui"),
        ("/static/docs.js", "text/javascript", "openapi.json"),
        ("/static/swagger-ui-bundle.js", "text/javascript", "SwaggerUIBundle"),
        ("/static/swagger-ui.css", "text/css", ".swagger-ui"),
        ("/openapi.json", "application/json", '"openapi":"3.1.0"'),
    ],
)
async def test_pages_come_from_here(client: Person, path: str, media_type: str, text: str) -> None:
    answer = await client.get(path)

    assert answer.headers["Content-Type"].startswith(media_type)
    assert text in answer.text


@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_pages_load_nothing_from_elsewhere(client: Person, path: str) -> None:
    page = (await client.get(path)).text

    assert not re.search(r"(src|href|action)=.(https?:|/)", page)


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/docs", "/openapi.json", "/static/demo.js", "/static/docs.html"),
        *("/static/swagger-ui.css", "/client.js", "/client.d.ts", "/docs/", "/redoc"),
    ],
)
async def test_the_api_can_be_served_alone(configured: Settings, path: str) -> None:
    app = main.create_app(Settings(**{**configured.model_dump(), "pages": "false"}))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as person,
    ):
        answer = await person.get(path)
        assert (await person.get("/health/live")).status_code == 200

    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize("path", ["/docs", "/docs/", "/docs//"])
async def test_the_links_of_the_docs_lead_somewhere_from_wherever_they_are(
    client: Person, path: str
) -> None:
    page = await client.get(path)

    links = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(links) == 5
    for link in links:
        assert (await client.get(str(page.url.join(link)))).status_code == 200


@pytest.mark.parametrize(
    "path", ["/api/tasks", "/api/{}/tasks/", "/health/live", "/static/demo.js"]
)
async def test_paths_are_found_below_the_prefix_of_a_proxy(
    app: FastAPI, valid_token: str, ada_id: str, path: str
) -> None:
    transport = httpx.ASGITransport(app, root_path="/todo")
    headers = {"Authorization": f"Bearer {valid_token}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.get("/todo" + path.format(ada_id), headers=headers)

    assert answer.status_code == 200


@pytest.mark.parametrize("written", ["/todo", "/todo/", "todo", "todo/", "/", "/api", "/api/todo"])
@pytest.mark.parametrize("is_left", [False, True])
async def test_a_prefix_may_be_written_anyhow_and_be_left_by_the_proxy(
    app: FastAPI, ada_id: str, written: str, *, is_left: bool
) -> None:
    prefix = f"/{written.strip('/')}".rstrip("/")
    left = prefix if is_left else ""

    async def behind(scope: Scope, receive: Receive, send: Send) -> None:
        """Put in front what `--root-path` says, as uvicorn does."""
        path, raw_path = written + scope["path"], written.encode() + scope["raw_path"]
        below = {**scope, "root_path": written, "path": path, "raw_path": raw_path}
        await app(below, receive, send)

    transport = httpx.ASGITransport(behind)
    headers = {"Authorization": f"Bearer {token(sub=ada_id)}", "Range": "bytes=9-1"}
    async with httpx.AsyncClient(
        transport=transport, base_url=f"http://test{left}", headers=headers
    ) as client:
        for path in (
            *(
                "/api/tasks",
                "/api/v1/auth/me",
                "/api/todos/",
                "/api//tasks",
                f"/api/{ada_id}/tasks",
            ),
            *("/", "/docs", "/openapi.json", "/static/demo.js", "/health", "/health/live"),
        ):
            assert (await client.get(path)).status_code == 200, path
        shown = await client.get(f"http://test{left}", follow_redirects=True)
        created = [await client.post("/api/tasks", json={"title": "x"}) for _ in range(2)]
        page = await client.get("/api/tasks?limit=1")

    assert created[1].headers["Location"] == f"{prefix}/api/tasks/{created[1].json()['id']}"
    assert shown.url.path == f"{left}/"
    assert page.links["next"]["url"].startswith(f"{prefix}/api/tasks?limit=1&cursor=")


async def test_a_prefix_that_is_repeated_without_end_leads_nowhere(app: FastAPI) -> None:
    transport = httpx.ASGITransport(app, root_path="/a")
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.get("/a" * 5000 + "/health/live")

    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_answers_lead_below_the_prefix_of_a_proxy(app: FastAPI, valid_token: str) -> None:
    transport = httpx.ASGITransport(app, root_path="/todo")
    headers = {"Authorization": f"Bearer {valid_token}"}
    who = {"email": "proxied@example.com", "password": PASSWORD}
    async with httpx.AsyncClient(transport=transport, base_url="https://test/todo") as client:
        created = await client.post("/api/tasks", json={"title": "x"}, headers=headers)
        await client.post("/api/v1/auth/register", json=who)
        await client.post("/api/v1/auth/login", json=who)
        refreshed = await client.post("/api/v1/auth/refresh")

    assert created.headers["Location"] == f"/todo/api/tasks/{created.json()['id']}"
    assert refreshed.status_code == 200
