"""A TypeScript client generated from the OpenAPI document: typed, complete, and it works."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import db
import main
from tests import node
from tests.test_service import service

CALL = re.compile(r'\bapi\.([A-Z]+)\(\s*"([^"]+)"')
MISTAKES = {
    'priority: "high"': 'priority: "urgent"',
    'title: "Buy milk", ': "",
    '"/api/v1/auth/me"': '"/api/v1/auth/you"',
    "task_id: task.id": "task_id: task.title",
    'status: "pending"': 'status: "done"',
    "error.detail": "error.message",
}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """Give the document that is served."""
    return main.app.openapi()


@pytest.fixture(scope="module")
def client(
    project: Path, document: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Copy the client, and generate its types beside it."""
    source = node.install(project / "tests" / "typescript")
    folder = tmp_path_factory.mktemp("typescript")
    for name in ("client.ts", "package.json"):
        shutil.copy(source / name, folder)
    (folder / "node_modules").symlink_to(source / "node_modules")
    (folder / "openapi.json").write_text(json.dumps(document))
    # Else every member that has a default must be sent.
    options = ["-o", "schema.d.ts", "--default-non-nullable=false"]
    done = run(folder, "openapi-typescript", "openapi.json", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "client.ts"


def run(folder: Path, tool: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run one of the tools that are installed."""
    return subprocess.run(
        [folder / "node_modules" / ".bin" / tool, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def compiled(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the compiler."""
    return run(folder, "tsc", "--strict", "--target", "es2022", "--module", "nodenext", *arguments)


def test_it_uses_every_operation(client: Path, document: dict[str, Any]) -> None:
    operations = {
        (method.upper(), path) for path, methods in document["paths"].items() for method in methods
    }

    assert set(CALL.findall(client.read_text())) == operations


def test_its_calls_fit_the_types_and_the_service(
    client: Path, shared_clone: Path, database: db.Database
) -> None:
    done = compiled(client.parent, "client.ts")
    assert done.returncode == 0, done.stdout

    with service(shared_clone, DATABASE_URL=database.url) as running:
        ran = subprocess.run(
            ["node", "client.js", running.url],  # noqa: S607  (wherever it is)
            cwd=client.parent,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (ran.stdout, ran.stderr) == ("done\n", ""), running.printed()


def test_mistakes_do_not_compile(client: Path) -> None:
    right, names = client.read_text(), set()
    for number, (text, mistake) in enumerate(MISTAKES.items()):
        assert text in right
        names.add(name := f"mistake{number}.ts")
        (client.parent / name).write_text(right.replace(text, mistake))

    done = compiled(client.parent, "--noEmit", "--skipLibCheck", *names)

    reported = re.findall(r"^(\w+\.ts)\(\d+,\d+\): error", done.stdout, re.MULTILINE)
    assert set(reported) == names, done.stdout
