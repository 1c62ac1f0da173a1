"""Clients generated from the OpenAPI document: typed, complete, and they work."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import db
import main
from tests import node
from tests.test_service import service

GENERATOR = "openapi-python-client==0.29.1"
"""Run in an environment of its own: it needs an older typer than fastapi-cli."""

# The generator's own client.py gives what it was given on as `*args`.
MYPY = "[mypy]\nstrict = true\n[mypy-todo.client]\ndisable_error_code = arg-type\n"

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
def url(shared_clone: Path, database: db.Database) -> Iterator[str]:
    """Run the service."""
    with service(shared_clone, DATABASE_URL=database.url) as running:
        yield running.url


@pytest.fixture(scope="module")
def typescript(
    project: Path, document: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Copy the client in TypeScript, and generate its types beside it."""
    source = node.install(project / "tests" / "typescript")
    folder = tmp_path_factory.mktemp("typescript")
    for name in ("client.ts", "package.json"):
        shutil.copy(source / name, folder)
    (folder / "node_modules").symlink_to(source / "node_modules")
    (folder / "openapi.json").write_text(json.dumps(document))
    # Else every member that has a default must be sent.
    options = ["-o", "schema.d.ts", "--default-non-nullable=false"]
    done = run(folder, folder / "node_modules/.bin/openapi-typescript", "openapi.json", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def python(
    project: Path, document: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Copy the client in Python, and generate the package that it uses beside it."""
    folder = tmp_path_factory.mktemp("python")
    shutil.copy(project / "tests" / "python" / "client.py", folder)
    (folder / "mypy.ini").write_text(MYPY)
    (folder / "openapi.json").write_text(json.dumps(document))
    generator = (os.environ.get("UV", "uv"), "tool", "run", GENERATOR)
    if run(folder, *generator, "--version").returncode and not os.environ.get(node.NEEDED):
        pytest.skip("uv cannot install the generator: the registry is out of reach")
    options = ["--path=openapi.json", "--output-path=todo", "--meta=none", "--fail-on-warning"]
    done = run(folder, *generator, "generate", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def run(folder: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a program in a folder."""
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def compiled(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the TypeScript compiler."""
    options = ["--strict", "--target", "es2022", "--module", "nodenext"]
    return run(folder, folder / "node_modules/.bin/tsc", *options, *arguments)


def test_typescript_uses_every_operation(typescript: Path, document: dict[str, Any]) -> None:
    operations = {
        (method.upper(), path) for path, methods in document["paths"].items() for method in methods
    }

    assert set(CALL.findall((typescript / "client.ts").read_text())) == operations


def test_typescript_fits_the_types_and_the_service(typescript: Path, url: str) -> None:
    done = compiled(typescript, "client.ts")
    assert done.returncode == 0, done.stdout

    ran = run(typescript, "node", "client.js", url)
    assert (ran.stdout, ran.stderr) == ("done\n", "")


def test_mistakes_in_typescript_do_not_compile(typescript: Path) -> None:
    right, names = (typescript / "client.ts").read_text(), set()
    for number, (text, mistake) in enumerate(MISTAKES.items()):
        assert text in right
        names.add(name := f"mistake{number}.ts")
        (typescript / name).write_text(right.replace(text, mistake))

    done = compiled(typescript, "--noEmit", "--skipLibCheck", *names)

    reported = re.findall(r"^(\w+\.ts)\(\d+,\d+\): error", done.stdout, re.MULTILINE)
    assert set(reported) == names, done.stdout


def test_python_fits_the_types_and_the_service(python: Path, url: str) -> None:
    checked = run(python, sys.executable, "-m", "mypy", "client.py", "todo")
    assert checked.returncode == 0, checked.stdout + checked.stderr

    ran = run(python, sys.executable, "client.py", url)
    assert (ran.stdout, ran.stderr) == ("done\n", "")
