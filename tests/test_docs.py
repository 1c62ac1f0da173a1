"""The documentation: its links lead somewhere, and it names what there is."""

import re
from pathlib import Path

import pytest

import main
from errors import CODES
from settings import PROJECT, Settings

PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
CODE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)")


def text(name: str) -> str:
    """Read a page."""
    return (PROJECT / name).read_text()


def section(page: str, heading: str) -> str:
    """Cut a section out of a page."""
    return page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def anchors(page: Path) -> set[str]:
    """Name a page's headings as GitHub does."""
    headings = re.findall(r"^#+ (.+)$", CODE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = LINK.findall(CODE.sub("", page.read_text()))

    for path, anchor in links:
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


def test_every_page_is_linked() -> None:
    linked = {path for path, _ in LINK.findall(text("README.md"))}

    assert linked >= {f"docs/{page.name}" for page in PAGES[1:]}


def test_the_readme_is_short_and_begins_with_two_commands() -> None:
    readme = text("README.md")

    commands = re.findall(r"^```sh\n(.+?)\n```$", readme, re.MULTILINE | re.DOTALL)

    assert readme.count("\n") <= 160
    assert [command for command in commands if command.startswith("uv run")] == [
        *("uv run uvicorn main:app", "uv run pytest"),
    ]
    assert commands[0] == "uv run uvicorn main:app"


def test_the_settings_are_listed() -> None:
    rows = re.findall(r"^\| (`[^|]+) \|", text("docs/settings.md"), re.MULTILINE)

    listed = re.findall(r"`(\w+)`", " ".join(rows))
    assert sorted(listed) == sorted(name.upper() for name in Settings.model_fields)


def test_every_error_is_explained() -> None:
    errors = section(text("docs/api.md"), "Errors")

    for code in CODES:
        assert f"`{code}`" in errors, code


def test_every_path_is_listed() -> None:
    endpoints = section(text("docs/api.md"), "Endpoints")

    for path in main.app.openapi()["paths"]:
        listed = re.sub(r"\{\w+\}", "{id}", path, count=1)
        assert re.search(rf"[` ]{re.escape(listed)}[`?]", endpoints), listed


def test_the_map_shows_the_house() -> None:
    shown = re.findall(r"^(\S+)  ", section(text("docs/design.md"), "The map"), re.MULTILINE)

    for name in shown:
        assert (PROJECT / name).exists(), name
    assert set(shown) >= {path.name for path in PROJECT.glob("*.py")}
