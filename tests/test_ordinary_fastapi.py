"""Whatever FastAPI's tutorial shows works inside the service, and has what all answers have."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Annotated, Any, Literal

import httpx
import pytest
from fastapi import (
    APIRouter,
    BackgroundTasks,
    Body,
    Cookie,
    Depends,
    FastAPI,
    File,
    Form,
    Header,
    HTTPException,
    Query,
    Request,
    Response,
    UploadFile,
    WebSocket,
)
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.middleware.gzip import GZipMiddleware

import main
import routing
from dependencies import UserId, verify_jwt
from routing import Route
from schemas import Completion, Health, TaskFilter, UserRead
from settings import Settings
from tests.conftest import ORIGIN, Person, token
from tests.contract import PASSWORD
from tests.test_auth import new_email

COLORED = {"X-Color": "red", "Cookie": "session=7"}
happened: list[str] = []


class NotFunnyError(Exception):
    """An error of the developer's own."""


class Note(BaseModel):
    text: str = Field(max_length=10)


class StoredNote(Note):
    owner: str


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Range(BaseModel):
    low: int = 0
    high: int = 0

    @model_validator(mode="after")
    def _in_order(self) -> "Range":
        if self.low > self.high:
            raise ValueError("low must not be above high")
        return self


def connection() -> Iterator[str]:
    happened.append("opened")
    try:
        yield "connection"
    finally:
        happened.append("closed")


def happen(what: str) -> None:
    happened.append(what)


Connection = Annotated[str, Depends(connection)]

plain = APIRouter()


@plain.get("/hello")
def hello(name: str = "world", times: Annotated[int, Query(le=3)] = 1) -> str:
    return f"hello {name}" * times


@plain.get("/headers")
async def read_headers(
    x_color: Annotated[str, Header()], session: Annotated[int, Cookie()], response: Response
) -> dict[str, Any]:
    response.set_cookie("seen", "yes")
    return {"color": x_color, "session": session}


@plain.get("/file")
async def read_file() -> FileResponse:
    return FileResponse(__file__)


@plain.get("/items/")
async def list_items() -> list[int]:
    return [1, 2]


@plain.get("/connected")
def connected(held: Connection) -> str:
    happened.append("used")
    return held


@plain.get("/connected/broken")
def broken_while_connected(held: Connection) -> None:
    raise ValueError(f"canary {held}")


@plain.post("/later", status_code=202)
async def later(tasks: BackgroundTasks) -> None:
    tasks.add_task(happen, "done later")


@plain.post("/notes", response_model=Note)
async def create_note(note: Note) -> Any:
    return {**note.model_dump(), "owner": "canary"}


@plain.post("/form")
async def read_form(name: Annotated[str, Form()], age: Annotated[int, Form()]) -> dict[str, Any]:
    return {"name": name, "age": age}


@plain.post("/upload")
async def upload(file: UploadFile, small: Annotated[bytes, File()]) -> list[Any]:
    return [file.filename, len(await file.read()), small.decode()]


@plain.post("/pets")
async def create_pet(pet: Annotated[Cat | Dog, Body(discriminator="kind")]) -> str:
    return pet.kind


@plain.post("/strict")
async def take_nothing(nothing: Strict) -> None: ...


@plain.get("/range")
async def read_range(asked: Annotated[Range, Query()]) -> int:
    return asked.high


@plain.get("/cached")
async def read_cached(response: Response) -> None:
    response.headers["Cache-Control"] = "max-age=60"
    response.headers["Content-Security-Policy"] = "default-src 'self'"


@plain.get("/raise/{status}")
def refuse(status: int, detail: str | None = None) -> None:
    raise HTTPException(status, detail, {"X-Own": "1", "WWW-Authenticate": "Basic"})


@plain.get("/raise-json")
def refuse_with_json() -> None:
    raise HTTPException(409, {"reason": "taken"})


@plain.get("/not-funny")
def not_funny() -> None:
    raise NotFunnyError


@plain.get("/mine")
async def read_mine(user_id: UserId) -> str:
    return user_id


@plain.websocket("/echo")
async def echo(socket: WebSocket, name: str) -> None:
    await socket.accept()
    await socket.send_text(f"{name}: {await socket.receive_text()}")
    await socket.close()


@plain.websocket("/refused")
async def refuse_socket(socket: WebSocket) -> None:
    await socket.close()


guarded = APIRouter(prefix="/items", dependencies=[Depends(verify_jwt)])


@guarded.get("/{item_id}")
async def get_item(item_id: int) -> int:
    return item_id


fast = APIRouter(route_class=Route)


@fast.get("/api/fast/{reason}")
async def fail_fast(reason: str) -> Health:
    raise {"not-funny": NotFunnyError(), "broken": ValueError("canary")}.get(reason) or (
        HTTPException(418, "teapot")
    )


async def answer_not_funny(request: Request, error: Exception) -> Response:
    return JSONResponse({"joke": type(error).__name__}, 499)


async def add_own_header(
    request: Request, call_next: Callable[[Request], Awaitable[Response]]
) -> Response:
    response = await call_next(request)
    response.headers["X-Middleware"] = "passed"
    return response


def add_to(app: FastAPI) -> None:
    """Add everything as the tutorial does."""
    app.middleware("http")(add_own_header)
    app.add_middleware(GZipMiddleware, minimum_size=1000)
    app.add_exception_handler(NotFunnyError, answer_not_funny)
    app.include_router(plain)
    app.include_router(guarded, prefix="/shop")
    app.include_router(fast)
    mounted = FastAPI()
    mounted.include_router(plain)
    app.mount("/mounted", mounted)


@pytest.fixture(scope="module")
async def app(configured: Settings) -> AsyncIterator[FastAPI]:
    """Start the service with ordinary routes."""
    app = main.create_app(configured)
    add_to(app)
    async with app.router.lifespan_context(app):
        yield app


async def check(response: httpx.Response) -> None:
    """Hold an answer against what all answers have."""
    await response.aread()
    assert response.headers["X-Request-ID"]
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert "Content-Security-Policy" in response.headers
    assert response.headers["X-Middleware"] == "passed"
    assert "canary" not in response.text
    if response.status_code >= 400 and response.status_code != 499:
        assert response.headers["Content-Type"] == "application/problem+json"
        assert response.json()["request_id"] == response.headers["X-Request-ID"]
        assert response.json()["status"] == response.status_code


@pytest.fixture
async def person(app: FastAPI) -> AsyncIterator[Person]:
    """Give a browser's page without a token."""
    happened.clear()
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app),
        base_url="http://test",
        headers={"Origin": ORIGIN},
        event_hooks={"response": [check]},
    ) as person:
        yield person


@pytest.mark.parametrize(
    ("method", "path", "options", "result"),
    [
        ("GET", "/hello", {}, "hello world"),
        ("GET", "/hello?name=ada&times=2", {}, "hello adahello ada"),
        ("GET", "/headers", {"headers": COLORED}, {"color": "red", "session": 7}),
        ("GET", "/items/", {}, [1, 2]),
        ("POST", "/notes", {"json": {"text": "x"}}, {"text": "x"}),
        ("POST", "/form", {"data": {"name": "Ada", "age": "36"}}, {"name": "Ada", "age": 36}),
        (
            "POST",
            "/upload",
            {"files": {"file": ("large.txt", b"x" * 100_000), "small": b"y"}},
            ["large.txt", 100_000, "y"],
        ),
        ("POST", "/pets", {"json": {"kind": "dog"}}, "dog"),
        ("GET", "/range?low=1&high=2", {}, 2),
        ("GET", "/mounted/hello?name=bob", {}, "hello bob"),
        ("GET", "/mounted/items/", {}, [1, 2]),
    ],
)
async def test_what_the_tutorial_shows(
    person: Person, method: str, path: str, options: dict[str, Any], result: object
) -> None:
    response = await person.request(method, path, **options)

    assert (response.status_code, response.json()) == (200, result)


async def test_a_slash_is_redirected_as_the_developer_declared_it(person: Person) -> None:
    response = await person.get("/items")

    assert (response.status_code, response.headers["Location"]) == (307, "http://test/items/")


async def test_a_dependency_is_closed_after_an_answer_and_after_an_error(person: Person) -> None:
    await person.get("/connected")
    await person.get("/connected/broken")

    assert happened == ["opened", "used", "closed", "opened", "closed"]


async def test_a_background_task_runs(person: Person) -> None:
    assert (await person.post("/later")).status_code == 202
    assert happened == ["done later"]


async def test_a_router_is_included_with_prefix_and_dependencies(
    person: Person, ada_id: str, log_lines: Callable[[], str]
) -> None:
    bearer = {"Authorization": f"Bearer {token(sub=ada_id)}"}

    stranger = await person.get("/shop/items/7")
    known = await person.get("/shop/items/7", headers=bearer)

    assert (stranger.status_code, stranger.json()["code"]) == (401, "not_authenticated")
    assert known.json() == 7
    line = json.loads(log_lines().splitlines()[-1])
    assert (line["route"], line["user_id"], line["status"]) == (
        "/shop/items/{item_id}",
        ada_id,
        200,
    )


async def test_headers_that_a_route_sets_are_kept(person: Person) -> None:
    own, page, data = [await person.get(path) for path in ("/cached", "/hello", "/api/fast/teapot")]

    assert own.headers.get_list("Cache-Control") == ["max-age=60"]
    assert own.headers.get_list("Content-Security-Policy") == ["default-src 'self'"]
    assert page.headers["Cache-Control"] == "no-cache"
    assert "img-src" in page.headers["Content-Security-Policy"]
    assert data.headers["Content-Security-Policy"].startswith("default-src 'none'")


@pytest.mark.parametrize(
    ("path", "status", "code", "detail"),
    [
        ("/raise/418?detail=teapot", 418, "http_error", "teapot"),
        ("/raise/499?detail=gone", 499, "http_error", "gone"),
        ("/raise/401", 401, "http_error", "Unauthorized"),
        ("/raise/503", 503, "http_error", "Service Unavailable"),
        (
            "/raise/404",
            404,
            "not_found",
            "There is nothing at this path. See the API's docs for what there is.",
        ),
        ("/raise/404?detail=No+item.", 404, "not_found", "No item."),
        ("/raise-json", 409, "http_error", '{"reason":"taken"}'),
        (
            "/lost",
            404,
            "not_found",
            "There is nothing at this path. See the API's docs for what there is.",
        ),
        ("/api/fast/teapot", 418, "http_error", "teapot"),
    ],
)
async def test_http_exceptions_are_problems(
    person: Person, path: str, status: int, code: str, detail: str
) -> None:
    response = await person.get(path)

    problem = response.json()
    assert (response.status_code, problem["code"], problem["detail"]) == (status, code, detail)
    assert problem["title"]
    if path.startswith("/raise/"):
        assert response.headers["X-Own"] == "1"
        assert response.headers.get_list("WWW-Authenticate") == ["Basic"]


async def test_an_exception_without_a_body_has_none(person: Person) -> None:
    response = await person.get("/raise/304")

    assert (response.status_code, response.content) == (304, b"")
    assert response.headers["X-Own"] == "1"


async def test_a_range_of_a_file_is_served(person: Person) -> None:
    response = await person.get("/file", headers={"Range": "bytes=0-3"})

    assert (response.status_code, len(response.content)) == (206, 4)


async def test_all_methods_of_a_path_are_allowed(person: Person) -> None:
    response = await person.delete("/shop/items/7")

    assert (response.status_code, response.headers["Allow"]) == (405, "GET")


@pytest.mark.parametrize(
    ("method", "path", "body", "place"),
    [
        ("GET", "/hello?times=canary", None, {"parameter": "times"}),
        ("GET", "/hello?times=9", None, {"parameter": "times"}),
        ("GET", "/headers", None, {"parameter": "x-color"}),
        ("GET", "/range?low=2&high=1", None, {"parameter": "query"}),
        ("GET", "/raise/canary", None, {"parameter": "status"}),
        ("POST", "/notes", b'{"text": "canary-canary"}', {"pointer": "#/text"}),
        ("POST", "/notes", b"canary", {"pointer": "#/0"}),
        ("POST", "/notes", b"", {"pointer": "#"}),
        ("POST", "/pets", b'{"kind": "canary"}', {"pointer": "#"}),
        ("POST", "/strict", b'{"\\ud800": 1}', {"pointer": "#"}),
    ],
)
async def test_an_invalid_request_is_a_problem_that_echoes_nothing(
    person: Person, method: str, path: str, body: bytes | None, place: dict[str, str]
) -> None:
    json = {"Content-Type": "application/json"}

    response = await person.request(method, path, content=body, headers=json)

    assert (response.status_code, response.json()["code"]) == (422, "validation_error")
    (error,) = [error for error in response.json()["errors"] if place.items() <= error.items()]
    assert error["detail"]


@pytest.mark.parametrize("path", ["/not-funny", "/api/fast/not-funny"])
async def test_an_exception_handler_answers_for_every_route(
    person: Person, path: str, log_lines: Callable[[], str]
) -> None:
    response = await person.get(path)

    assert (response.status_code, response.json()) == (499, {"joke": "NotFunnyError"})
    assert "Traceback" not in log_lines()


@pytest.mark.parametrize("path", ["/connected/broken", "/api/fast/broken"])
async def test_what_nobody_expects_is_500_and_logged_once(
    person: Person, path: str, log_lines: Callable[[], str]
) -> None:
    response = await person.get(path)

    assert (response.status_code, response.json()["code"]) == (500, "internal_error")
    assert log_lines().count("Traceback") == 1
    assert response.json()["request_id"] in log_lines()


def answer_all(request: Request, error: Exception) -> Response:
    return PlainTextResponse(type(error).__name__, 499)


async def answer_badly(request: Request, error: Exception) -> Response:
    raise RuntimeError("a bug in the handler")


@pytest.mark.parametrize("path", ["/connected/broken", "/api/fast/broken"])
@pytest.mark.parametrize("key", [Exception, 500])
async def test_a_handler_of_all_exceptions_answers_what_nobody_expects(
    app: FastAPI,
    person: Person,
    path: str,
    key: Any,
    monkeypatch: pytest.MonkeyPatch,
    log_lines: Callable[[], str],
) -> None:
    monkeypatch.setitem(app.exception_handlers, key, answer_all)

    response = await person.get(path)

    assert (response.status_code, response.text) == (499, "ValueError")
    assert log_lines().count("Traceback") == 1


async def test_a_handler_of_a_status_is_asked_first(
    app: FastAPI, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(app.exception_handlers, 418, answer_all)

    assert (await person.get("/api/fast/teapot")).text == "HTTPException"


async def test_a_handler_that_fails_is_500(
    app: FastAPI, person: Person, monkeypatch: pytest.MonkeyPatch, log_lines: Callable[[], str]
) -> None:
    monkeypatch.setitem(app.exception_handlers, NotFunnyError, answer_badly)

    response = await person.get("/api/fast/not-funny")

    assert (response.status_code, response.json()["code"]) == (500, "internal_error")
    assert "a bug in the handler" in log_lines()


async def test_answers_are_compressed_by_middleware(person: Person, ada_id: str) -> None:
    bearer = {"Authorization": f"Bearer {token(sub=ada_id)}"}
    for number in range(10):
        await person.post("/api/tasks", json={"title": f"task {number}"}, headers=bearer)

    response = await person.get("/api/tasks", headers=bearer)

    assert response.headers["Content-Encoding"] == "gzip"
    assert len(response.json()) == 10


async def test_a_route_may_be_added_while_the_service_runs(app: FastAPI, person: Person) -> None:
    async def get_new() -> Health:
        return {"status": "new"}

    async def get_newer() -> Health:
        return await get_new()

    before = await person.get("/api/new")
    app.add_api_route("/api/new", get_new)
    ordinary = await person.get("/api/new")
    router = APIRouter(route_class=Route)
    router.add_api_route("/api/newer", get_newer)
    app.include_router(router)
    ours = await person.get("/api/newer/")

    assert before.status_code == 404
    assert ordinary.json() == ours.json() == {"status": "new"}
    assert {"/api/new", "/api/newer"} <= app.openapi()["paths"].keys()
    assert "Problem" in app.openapi()["components"]["schemas"]


async def talk(app: FastAPI, path: str, *said: str) -> list[dict[str, Any]]:
    """Open a WebSocket, say something, and return the messages of the service."""
    heard: list[dict[str, Any]] = []
    messages = [{"type": "websocket.connect"}]
    messages += [{"type": "websocket.receive", "text": text} for text in said]
    waiting = iter(messages)

    async def receive() -> dict[str, str]:
        return next(waiting)

    async def send(message: Any) -> None:
        heard.append(message)

    path, _, query = path.partition("?")
    scope = {"type": "websocket", "path": path, "query_string": query.encode(), "headers": []}
    await app({**scope, "subprotocols": []}, receive, send)
    return heard


async def test_a_websocket(app: FastAPI, log_lines: Callable[[], str]) -> None:
    heard = await talk(app, "/echo?name=ada", "hello")
    await talk(app, "/refused")

    assert [message["type"] for message in heard] == [
        *("websocket.accept", "websocket.send", "websocket.close"),
    ]
    assert heard[1]["text"] == "ada: hello"
    lines = [json.loads(line) for line in log_lines().splitlines()]
    assert [(line["method"], line["route"], line["status"]) for line in lines] == [
        ("WEBSOCKET", "/echo", 101),
        ("WEBSOCKET", "/refused", 403),
    ]


KEPT = {"etag", "location", "link", "cache-control", "vary", "ratelimit", "x-content-type-options"}


DIFFERENT = {
    *("id", "created_at", "updated_at", "user_id", "request_id", "deleted"),
    *("access_token", "token"),
}


def without_what_differs(body: Any) -> Any:
    """Replace ids and times by their types."""
    if isinstance(body, list):
        return [without_what_differs(item) for item in body]
    if not isinstance(body, dict):
        return body
    return {
        name: type(value).__name__ if name in DIFFERENT else without_what_differs(value)
        for name, value in body.items()
    }


async def use(person: Person, email: str) -> list[tuple[int, Any, dict[str, str]]]:
    """Use the service as a person does, and return its answers without what differs each time."""
    answers: list[tuple[int, Any, dict[str, str]]] = []

    async def call(method: str, path: str, **options: Any) -> httpx.Response:
        response = await person.request(method, path, **options)
        body = without_what_differs(response.json()) if response.content else None
        headers = {name: value for name, value in response.headers.items() if name in KEPT}
        headers.pop("location", None)
        answers.append((response.status_code, body, headers))
        return response

    task = {"title": "x", "tags": ["home"], "due_date": "2026-12-01T10:00:00.5+01:00"}
    path = (await call("POST", "/api/tasks", json=task)).headers["Location"]
    await call("GET", "/api/tasks?tag=home&status=pending&sort=title")
    found = await call("GET", path)
    await call("GET", path, headers={"If-None-Match": found.headers["ETag"]})
    await call("PATCH", f"{path}/complete")
    await call("PATCH", f"{path}/complete", json={"completed": False})
    await call("PATCH", path + "/", json={"priority": "HIGH".lower(), "tags": []})
    await call("PUT", path, json=found.json())
    await call("GET", "/api/tasks/changes?since=0")
    await call("HEAD", path)
    await call("DELETE", path, headers={"If-Match": '"1"'})
    await call("DELETE", path)
    await call("GET", path)
    await call("POST", "/api/v1/auth/login", json={"email": email, "password": PASSWORD})
    await call("PATCH", "/api/v1/auth/me", json={"name": "Ada"})
    return answers


async def test_overridden_dependencies_change_nothing_else(app: FastAPI, person: Person) -> None:
    email = new_email()
    await person.post("/api/v1/auth/register", json={"email": email, "password": PASSWORD})
    ids = [f"{email} {number}" for number in range(2)]

    person.headers["Authorization"] = f"Bearer {token(sub=ids[0])}"
    as_always = await use(person, email)
    del person.headers["Authorization"]
    app.dependency_overrides[verify_jwt] = lambda: ids[1]
    try:
        overridden = await use(person, email)
        mine = await person.get("/mine")
        stream = await person.get("/api/tasks/events")
    finally:
        app.dependency_overrides.clear()

    assert overridden == as_always
    assert [status for status, _, _ in as_always] == [
        *(201, 200, 200, 304, 200, 200, 200, 200, 200, 200, 412, 204, 404, 200, 200),
    ]
    assert mine.json() == ids[1]
    assert stream.json()["code"] == "not_authenticated", "it asks how long the token is good"
    assert (await person.get("/mine")).status_code == 401


def operations(app: FastAPI) -> dict[str, bool]:
    """Return our operations by name, and whether they are run without FastAPI's handler."""
    return {
        f"{method} {place.pattern.pattern}": operation is not None
        for places in routing._places(app.routes).values()  # noqa: SLF001  (the point of this)
        for place in places
        for method, operation in place.operations.items()
    }


def test_every_route_of_ours_is_run_without_fastapis_handler(configured: Settings) -> None:
    found = operations(main.create_app(configured))

    assert len(found) > 35
    assert all(found.values())


async def of_a_header(name: Annotated[str, Header()] = "x") -> str:
    return name


async def of_a_body(change: Completion) -> Completion:
    return change


async def of_a_query(query: Annotated[TaskFilter, Query()]) -> str:
    return query.sort


async def with_an_end() -> AsyncIterator[int]:
    yield 1


async def nothing() -> None: ...


def blocking() -> Health:
    return {"status": "ok"}


async def header(name: Annotated[str, Header()] = "x") -> Health:
    return {"status": name}


async def cookie(name: Annotated[str, Cookie()] = "x") -> Health:
    return {"status": name}


async def scalar(limit: int | None = None) -> Health:
    return {"status": f"{limit}"}


async def two_queries(one: Annotated[TaskFilter, Query()], two: int = 1) -> Health:
    return {"status": f"{two}"}


async def two_bodies(one: Annotated[int, Body()] = 1, two: Annotated[int, Body()] = 2) -> Health:
    return {"status": f"{one}"}


async def embedded(one: Annotated[int, Body(embed=True)] = 1) -> Health:
    return {"status": f"{one}"}


async def form(one: Annotated[int, Form()] = 1) -> Health:
    return {"status": f"{one}"}


async def background(tasks: BackgroundTasks) -> Health:
    return {"status": "ok"}


async def header_inside(name: Annotated[str, Depends(of_a_header)]) -> Health:
    return {"status": name}


async def body_inside(change: Annotated[Completion, Depends(of_a_body)]) -> Health:
    return {"status": "ok"}


async def query_inside(sort: Annotated[str, Depends(of_a_query)]) -> Health:
    return {"status": sort}


async def generator_inside(number: Annotated[int, Depends(with_an_end)]) -> Health:
    return {"status": f"{number}"}


async def blocking_inside(inner: Annotated[Health, Depends(blocking)]) -> Health:
    return inner


async def twice(
    one: Annotated[None, Depends(nothing)], two: Annotated[None, Depends(nothing)]
) -> Health:
    return {"status": "ok"}


async def model() -> Note:
    return Note(text="ok")


async def unknown() -> Any:
    return 1


async def supported(
    query: Annotated[TaskFilter, Query()], change: Annotated[Completion, Body()]
) -> list[Health]:
    return [{"status": "ok"}]


@pytest.mark.parametrize(
    ("endpoint", "options"),
    [
        *((blocking, {}), (header, {}), (cookie, {}), (scalar, {}), (two_queries, {})),
        *((two_bodies, {}), (embedded, {}), (form, {}), (background, {}), (header_inside, {})),
        *(
            (body_inside, {}),
            (query_inside, {}),
            (generator_inside, {}),
            (blocking_inside, {}),
            (twice, {}),
        ),
        *((model, {}), (unknown, {}), (supported, {"response_model": list[UserRead]})),
        *((supported, {"response_class": JSONResponse}), (supported, {"max_body_size": 9})),
        (supported, {"response_model_exclude_none": True}),
        (supported, {"dependencies": [Depends(blocking)]}),
    ],
)
def test_what_is_not_simple_is_left_to_fastapi(endpoint: Any, options: dict[str, Any]) -> None:
    app = FastAPI(openapi_url=None)
    router = APIRouter(route_class=Route)
    router.add_api_route("/x", endpoint, methods=["POST"], **options)

    app.include_router(router)

    assert operations(app) == {"POST ^/x$": False}


def test_what_is_simple_is_not() -> None:
    app = FastAPI(openapi_url=None)
    router = APIRouter(route_class=Route)
    router.add_api_route("/x", supported, methods=["POST"])

    app.include_router(router, dependencies=[Depends(nothing)])

    assert operations(app) == {"POST ^/x$": True}


async def test_what_is_left_to_fastapi_works(app: FastAPI, person: Person) -> None:
    router = APIRouter(route_class=Route)
    router.add_api_route("/api/left", header)
    app.include_router(router)

    response = await person.get("/api/left/", headers={"Name": "ada"})

    assert response.json() == {"status": "ada"}
