"""No user ever sees, changes or learns of another's row."""

import itertools
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest

import db
import queries
from schemas import Sort, Status
from tests.conftest import Person, token
from tests.test_tags import create_tag
from tests.test_tasks import create, list_ids

ON_ONE_TASK = [
    ("GET", "", None),
    ("PUT", "", {"title": "Mine now", "user_id": "bob"}),
    ("PATCH", "", {"title": "Mine now"}),
    ("PATCH", "", {}),
    ("PATCH", "", {"tags": ["new"]}),
    ("PUT", "/tags/{tag}", None),
    ("DELETE", "/tags/{tag}", None),
    ("PATCH", "/complete", None),
    ("PATCH", "/complete", {"completed": True}),
    ("DELETE", "", None),
]


def assert_same(others: httpx.Response, nobodys: httpx.Response) -> None:
    """Fail unless nobody can tell what is somebody else's from what is not there."""
    assert others.status_code == nobodys.status_code == 404
    ids = {others.headers.pop("X-Request-ID"), nobodys.headers.pop("X-Request-ID")}
    assert {re.sub("|".join(ids), "", answer.text) for answer in (others, nobodys)} == {
        re.sub("|".join(ids), "", others.text)
    }
    assert others.headers == nobodys.headers


@pytest.mark.parametrize(("method", "path", "body"), ON_ONE_TASK)
async def test_another_users_task_does_not_exist(
    ada: Person, bob: Person, method: str, path: str, body: object
) -> None:
    task = await create(ada)
    missing, tag = await create(bob), await create_tag(bob)
    await bob.delete(f"/api/tasks/{missing['id']}")
    path = path.format(tag=tag["id"])

    others = await bob.request(method, f"/api/tasks/{task['id']}{path}", json=body)
    nobodys = await bob.request(method, f"/api/tasks/{missing['id']}{path}", json=body)

    assert_same(others, nobodys)
    assert (await ada.get(f"/api/tasks/{task['id']}")).json() == task
    assert (await bob.get("/api/tags")).json() == [tag]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PATCH", "/api/tags/{tag}", {"name": "Mine now", "user_id": "bob"}),
        ("PATCH", "/api/tags/{tag}", {}),
        ("DELETE", "/api/tags/{tag}", None),
        ("PUT", "/api/tasks/{task}/tags/{tag}", None),
        ("DELETE", "/api/tasks/{task}/tags/{tag}", None),
    ],
)
async def test_another_users_tag_does_not_exist(
    ada: Person, bob: Person, method: str, path: str, body: object
) -> None:
    tagged = await create(ada, tags=["home"])
    mine = await create(bob, tags=["home"])
    missing = await create_tag(bob, "gone")
    await bob.delete(f"/api/tags/{missing['id']}")

    others, nobodys = [
        await bob.request(method, path.format(task=mine["id"], tag=tag["id"]), json=body)
        for tag in (tagged["tags"][0], missing)
    ]

    assert_same(others, nobodys)
    assert (await ada.get("/api/tasks")).json() == [tagged]
    assert (await bob.get("/api/tasks")).json() == [mine]


async def test_tags_of_one_name_are_each_users_own(ada: Person, bob: Person) -> None:
    home = await create_tag(ada, color="#22aa66")

    task = await create(bob, tags=[home])

    (tag,) = task["tags"]
    assert tag == {"id": tag["id"], "name": "home", "color": None}
    assert tag["id"] != home["id"]
    assert (await ada.get("/api/tags")).json() == [home]
    assert (await bob.get("/api/tags")).json() == [tag]


async def test_lists_hold_ones_own_tasks_only(ada: Person, bob: Person) -> None:
    mine, theirs = await create(ada), await create(bob)

    assert await list_ids(ada) == [mine["id"]]
    assert await list_ids(bob) == [theirs["id"]]


@pytest.mark.parametrize("status", get_args(Status))
async def test_bulk_changes_touch_ones_own_tasks_only(
    ada: Person, bob: Person, status: Status
) -> None:
    tasks = [await create(ada), await create(ada, completed=True)]

    for completed in (True, False):
        await bob.patch(f"/api/tasks?status={status}", json={"completed": completed})
    await bob.delete(f"/api/tasks?status={status}")

    assert (await ada.get("/api/tasks")).json() == tasks[::-1]


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("", "GET POST PATCH DELETE"),
        ("/", "GET POST PATCH DELETE"),
        ("/1", "GET PUT PATCH DELETE"),
        ("/nonsense", "GET PUT PATCH DELETE"),
        ("/1/complete", "PATCH"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
async def test_another_users_path_is_refused(
    ada: Person, bob_id: str, method: str, path: str, methods: str
) -> None:
    response = await ada.request(method, f"/api/{bob_id}/tasks{path}", json={"title": "x"})

    served = method in methods.split()
    expected = (403, "wrong_user") if served else (405, "method_not_allowed")
    assert (response.status_code, response.json()["code"]) == expected


async def test_a_user_id_in_a_body_is_ignored(ada: Person, bob: Person, bob_id: str) -> None:
    task = await create(ada, user_id=bob_id)

    await ada.put(f"/api/tasks/{task['id']}", json={"title": "Still mine", "user_id": bob_id})

    assert await list_ids(bob) == []
    assert await list_ids(ada) == [task["id"]]


@pytest.mark.parametrize(
    "path", ["/api/tasks?user_id={}", "/api/tasks?owner={}", "/api/tasks/?user_id={}"]
)
async def test_a_user_id_in_a_query_is_refused(ada: Person, bob_id: str, path: str) -> None:
    assert (await ada.get(path.format(bob_id))).status_code == 422


@pytest.mark.parametrize("user_id", ["tasks", "a/b", "a/tasks/b", "é ü", "..", "a%2Fb", "x" * 255])
async def test_ids_of_every_kind_have_tasks_of_their_own(
    connect: Callable[[str | None], Person], user_id: str
) -> None:
    person = connect(token(sub=user_id))
    task = await create(person)

    assert task["user_id"] == user_id
    assert task in (await person.get("/api/tasks")).json()


PROVEN = {
    *("FIND_ACCOUNT", "START_SESSION", "ROTATE_SESSION", "FIND_SESSION", "END_SESSION"),
    *("REVOKE", "LIST_REVOCATIONS", "CLEAN_UP"),
}
"""What is found by email or by session, for whoever proves to know the secret that goes with it."""


SHAPES: dict[str, Iterable[Any]] = {
    "create_task": [
        {"is_tagged": tagged, "is_keyed": keyed} for tagged in (0, 1) for keyed in (0, 1)
    ],
    "list_tasks": itertools.starmap(
        queries.Shape,
        itertools.product(
            *(get_args(Status), (True, False), get_args(queries.Search)),
            *((True, False), get_args(Sort), (True, False)),
        ),
    ),
    "update_task": [frozenset({"title"}), frozenset({"tags"}), frozenset({"title", "tags"})],
    "update_tag": [frozenset({"color"}), frozenset({"name", "name_key"})],
    "complete_tasks": get_args(Status),
    "delete_tasks": get_args(Status),
}
"""What statements are made for: filters, and the members that change."""


def test_every_statement_names_its_owner() -> None:
    """Also those that are made for a filter or for the members that change."""
    statements = [
        value
        for name, value in vars(queries).items()
        if isinstance(value, db.Statement) and name not in PROVEN
    ]
    makers = {
        name: value
        for name, value in vars(queries).items()
        if isinstance(value, type(queries.list_tasks))
    }
    assert makers.keys() == SHAPES.keys()
    statements += [
        maker(**shape) if isinstance(shape, dict) else maker(shape)
        for name, maker in makers.items()
        for shape in SHAPES[name]
    ]

    assert len(statements) >= 500
    for statement in statements:
        bound = _owner_parameters(statement.sql)
        assert {statement.names[number - 1] for number in bound} == {"owner"}, statement.sql


def _owner_parameters(sql: str) -> set[int]:
    """Find the parameters that say whose rows are meant, one for each mention of a table."""
    sql = re.sub(r"FOR NO KEY UPDATE OF [\w, ]+", "", sql)
    mentions = re.findall(
        r"(?:FROM|JOIN|UPDATE|INTO|,)"
        r" (?:tasks|users|tags|task_tags|deletions|idempotency_keys)\b(?!\.)"
        r"|FROM sessions WHERE sessions\.user_id = ",
        sql,
    )
    owners = re.findall(
        r"(?:(?:tasks|sessions|tags|task_tags|deletions|idempotency_keys)\.user_id = |users\.id = "
        r"|INTO \w+ \((?:user_)?id\b[^$]*VALUES \("
        r"|INTO (?:users \(|\w+ \(user_)id\b[^$]*SELECT )\$(\d+)",
        sql,
    )
    assert len(mentions) == len(owners) > 0, sql
    return set(map(int, owners))


def test_only_queries_build_sql(project: Path) -> None:
    may = {"db.py", "queries.py", "models.py", "embedded.py"}
    paths = [
        path
        for folder in (".", "routes", "dependencies")
        for path in project.glob(f"{folder}/*.py")
    ]
    assert len(paths) > 15
    builds = re.compile(
        r"^\s*(from|import) (sqlalchemy|sqlmodel|asyncpg)|SELECT |INSERT INTO|DELETE FROM|db\._",
        re.MULTILINE,
    )
    for path in paths:
        if path.name not in may:
            code = path.read_text().replace("from asyncpg import PostgresError\n", "")
            assert not builds.search(code), path
