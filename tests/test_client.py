"""`/client.js`: what it promises, in a browser and in Node, on the real service; and its types."""

import asyncio
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import httpx
import pytest
from fastapi import FastAPI

import db
import main
from settings import PROJECT, Settings
from tests import client_types, node
from tests.conftest import CAMPAIGN, Person, token
from tests.test_frontend import served
from tests.test_service import UVICORN, Service, service

CLIENT = PROJECT / "static" / "client.js"
UNLIMITED = {"AUTH_RATE_LIMIT": "", "REFRESH_RATE_LIMIT": ""}
FILES = ("client.js", "client.d.ts")


@pytest.fixture(scope="module")
def folder(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the page and its drivers, with the client as a project of its own has it."""
    libraries = node.install(project / "tests" / "frontend") / "node_modules"
    folder = tmp_path_factory.mktemp("client")
    for path in (*(project / "tests" / "client").iterdir(), CLIENT):
        if path.is_file():
            shutil.copy(path, folder)
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "node_modules").symlink_to(libraries)
    return folder


@pytest.fixture(scope="module")
def origin(folder: Path) -> Iterator[str]:
    """Serve the page."""
    with served(folder) as origin:
        yield origin


def first_page() -> str:
    """Return the page that the README shows."""
    return (PROJECT / "README.md").read_text().partition("```html\n")[2].partition("```")[0]


Drive = Callable[..., str]


@pytest.fixture
def drive(
    chromium: str, folder: Path, origin: str, shared_clone: Path, database: db.Database
) -> Drive:
    """Run a driver against the service, restarting that when it asks; return what it printed."""
    environment = {"DATABASE_URL": database.url, "CORS_ORIGINS": origin, **UNLIMITED}

    def run(script: str, *arguments: str, **settings: str) -> str:
        running = Service(shared_clone, **environment, **settings)
        url = running.url
        same_port = [*UVICORN[:-1], str(urlsplit(url).port)]
        (folder / "ten.html").write_text(first_page().replace("http://localhost:8000", url))
        command = ["node", script, chromium, origin, url, *arguments]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        try:
            running.wait_until_ready()
            with subprocess.Popen(command, cwd=folder, text=True, **pipes) as driver:  # type: ignore[call-overload]
                printed = ""
                for line in driver.stdout:
                    if line != "restart\n":
                        printed += line
                        continue
                    running.stop()
                    running = Service(shared_clone, command=same_port, **environment, **settings)
                    running.url = url
                    running.wait_until_ready()
                    driver.stdin.write("restarted\n")
                    driver.stdin.flush()
            return printed
        finally:
            running.stop()

    return run


def test_a_browser_keeps_its_list(drive: Drive) -> None:
    assert drive("browser.mjs") == "done\n"


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(1, round(CAMPAIGN) + 1))
def test_nothing_is_lost_and_nothing_happens_twice(drive: Drive, seed: int) -> None:
    """Write at random in several tabs, while connections are cut, tokens expire and it restarts."""
    printed = drive("campaign.mjs", "60", str(seed), ACCESS_TOKEN_SECONDS="10")

    assert printed.endswith("done\n"), printed


def test_node_calls_everything(folder: Path, shared_clone: Path, database: db.Database) -> None:
    tokens = [token(sub="pages"), token(sub="other"), token(sub="pages", jti="fresh")]
    with service(shared_clone, DATABASE_URL=database.url, **UNLIMITED) as running:
        headers = {"Authorization": f"Bearer {tokens[0]}"}
        httpx.post(f"{running.url}/api/tasks", headers=headers, json={"title": "Milk"})
        asyncio.run(copy_the_task(database.url))
        command = ["node", "node.mjs", str(folder / "client.js"), running.url, *tokens]
        ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert (ran.stdout, ran.stderr) == ("done\n", ""), running.printed()


async def copy_the_task(url: str) -> None:
    """Give the user `pages`, who has one task, 1200 of them, each of a revision of its own."""
    connection = await asyncpg.connect(url)
    table = "SELECT column_name FROM information_schema.columns WHERE table_name = 'tasks'"
    names = [row["column_name"] for row in await connection.fetch(table)]
    own = {"id": "id + n", "rev": "rev + n", "created_at": "created_at + n * interval '1 s'"}
    values = ", ".join(own.get(name, name) for name in names)
    await connection.execute(
        f"INSERT INTO tasks ({', '.join(names)}) SELECT {values}"
        " FROM tasks, generate_series(1, 1199) AS n WHERE user_id = 'pages'"
    )
    await connection.execute("UPDATE users SET rev = rev + 1199 WHERE id = 'pages'")
    await connection.close()


def test_its_types_are_those_of_the_document() -> None:
    text = client_types.FILE.read_text()

    assert text == client_types.whole(text), "run: uv run python -m tests.client_types"


SETTING = """
import { TodoClient } from "./client.js";
const todo = new TodoClient("http://localhost:8000");
declare const authClient: { token(): Promise<{ data?: { token: string } }> };
"""
EXAMPLE = PROJECT / "examples" / "nextjs" / "app" / "page.tsx"
REST_OF_THE_EXAMPLE = """
declare module "better-auth/client/plugins";
declare module "better-auth/react";
declare const process: { env: Record<string, string | undefined> };
"""
MISTAKES = {
    'todo.tasks.create({ titel: "Milk" });': "titel",
    'todo.tasks.update(1, { priority: "urgent" });': "urgent",
    'todo.tasks.list({ sort: "colour" });': "colour",
    "todo.live(({ tasks }) => tasks[0].name);": "'name'",
    "todo.live(() => {}, { onError: (error) => error.detail });": "'detail'",
    "todo.user.id;": "possibly 'null'",
}


@pytest.fixture(scope="module")
def compiled(project: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Compile what the documentation shows, and mistakes; tell what the compiler says of each."""
    libraries = node.install(project / "tests" / "typescript") / "node_modules"
    folder = tmp_path_factory.mktemp("types")
    (folder / "node_modules").symlink_to(libraries)
    for name in FILES:
        shutil.copy(PROJECT / "static" / name, folder)
    blocks = re.findall(r"```js\n(.*?)```", (PROJECT / "docs" / "client.md").read_text(), re.DOTALL)
    shown = [f"async function block{n}() {{\n{block}}}\n" for n, block in enumerate(blocks)]
    (folder / "shown.mts").write_text(SETTING + "".join(shown))
    (folder / "mistakes.mts").write_text(SETTING + "\n".join(MISTAKES))
    (folder / "app").mkdir()
    shutil.copy(EXAMPLE, folder / "app")
    (folder / "rest.d.ts").write_text(REST_OF_THE_EXAMPLE)
    options = ["--strict", "--noEmit", "--target", "es2022", "--module", "esnext"]
    options += [
        "--moduleResolution",
        "bundler",
        "--jsx",
        "react-jsx",
        "--skipLibCheck",
        "--types",
        "react",
    ]
    files = ["shown.mts", "mistakes.mts", "rest.d.ts", "app/page.tsx"]
    command = [str(libraries / ".bin" / "tsc"), *options, *files]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    said = done.stdout.splitlines(keepends=True)
    return {
        name: "".join(line for line in said if line.startswith(name))
        for name in ("shown", "mistakes", "client", "app")
    }


def test_what_the_documentation_shows_fits_its_types(compiled: dict[str, str]) -> None:
    assert (compiled["shown"], compiled["client"]) == ("", "")


def test_the_example_fits_its_types(compiled: dict[str, str]) -> None:
    assert compiled["app"] == ""


def test_mistakes_do_not_fit_its_types(compiled: dict[str, str]) -> None:
    for name in MISTAKES.values():
        assert name in compiled["mistakes"]


def test_it_is_short() -> None:
    lines = CLIENT.read_text().splitlines()

    assert len(lines) <= 335
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("origin", ["https://anywhere.example", "http://localhost:3000", "null"])
async def test_any_page_may_read_it(client: Person, name: str, origin: str) -> None:
    response = await client.get(f"/{name}", headers={"Origin": origin})

    assert response.text == (PROJECT / "static" / name).read_text()
    assert response.headers.get_list("Access-Control-Allow-Origin") == ["*"]
    kinds = {"client.js": "text/javascript", "client.d.ts": "text/plain"}
    assert response.headers["Content-Type"] == f"{kinds[name]}; charset=utf-8"
    known = {"If-None-Match": response.headers["ETag"], "Origin": origin}
    assert (await client.get(f"/{name}", headers=known)).status_code == 304


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/static/demo.js", "/api/tasks"])
async def test_any_page_may_read_nothing_else(client: Person, path: str) -> None:
    response = await client.get(path, headers={"Origin": "https://anywhere.example"})

    assert "Access-Control-Allow-Origin" not in response.headers


async def test_it_is_served_with_the_pages(app: FastAPI, configured: Settings) -> None:
    async def statuses(app: FastAPI, prefix: str = "") -> list[int]:
        transport = httpx.ASGITransport(app, root_path=prefix)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as anybody:
            return [(await anybody.get(f"{prefix}/{name}")).status_code for name in FILES]

    bare = main.create_app(configured.model_copy(update={"pages": False}))
    async with bare.router.lifespan_context(bare):
        assert await statuses(bare) == [404, 404]
    assert await statuses(app) == await statuses(app, "/todo") == [200, 200]
