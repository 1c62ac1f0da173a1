"""No user ever sees, changes or learns of another's row."""

import itertools
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import asyncpg
import httpx
import pytest

import account_queries
import db
import queries
from models import Tag, Task
from schemas import SORTS, Status, TagCreate, TagRead, TaskCreate, TaskPatch, TaskRead, UserRead
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


@pytest.mark.parametrize("status", get_args(Status.__value__))
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
        ("/0", "GET PUT PATCH DELETE"),
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


OWNED = {"users": "id"} | dict.fromkeys(
    ("tasks", "tags", "task_tags", "deletions", "idempotency_keys", "sessions", "emails"), "user_id"
)
"""The tables of users' data, and the column that says whose a row is."""

WITHOUT_OWNER = {
    "FIND_ACCOUNT": "by email: whoever signs in knows the password",
    "CREATE_ACCOUNT": "the email's row begins with the email; the test below looks at the user's",
    "ROTATE_SESSION": "by session: the refresh token is signed",
    "FIND_SESSION": "by session: the refresh token is signed",
    "END_SESSION": "by session: the refresh token is signed",
    "CLEAN_UP": "deletes what has expired, whosoever it is",
}
LISTS = [
    queries.Shape(*shape)
    for shape in itertools.product(
        get_args(Status.__value__), *[(True, False)] * 3, SORTS, (True, False)
    )
]


def statements() -> Iterator[tuple[str, db.Statement[Any]]]:
    """List all statements by name, also those that are made for a filter or a kind of task."""
    for name, value in (vars(queries) | vars(account_queries)).items():
        if isinstance(value, db.Statement):
            yield name, value
    for shape in LISTS:
        yield str(shape), queries.list_tasks(shape)
    for tagged, keyed in itertools.product((True, False), repeat=2):
        made = queries.create_task(is_tagged=tagged, is_keyed=keyed)
        yield f"create_task {tagged} {keyed}", made


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """List the nodes of a plan."""
    yield plan
    for inner in plan.get("Plans", []):
        yield from nodes(inner)


@pytest.fixture
async def backdoor(
    app: object, database: db.Database
) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """Reach the database past the service."""
    assert app
    connection = await asyncpg.connect(database.url)
    yield connection
    await connection.close()


async def test_every_statement_reads_and_writes_rows_of_its_owner_only(
    backdoor: "asyncpg.Connection[asyncpg.Record]",
) -> None:
    """Ask PostgreSQL: in its plan, each scan of an owned table is bound to the owner."""
    await backdoor.execute("SET plan_cache_mode = force_generic_plan")
    names = set()
    for name, statement in statements():
        names.add(name)
        owner = f"${statement.names.index('owner') + 1}" if "owner" in statement.names else None
        await backdoor.execute(f"PREPARE it AS {statement.sql}")
        nulls = f"({', '.join('NULL' for _ in statement.names)})" if statement.names else ""
        explained = await backdoor.fetchval(f"EXPLAIN (VERBOSE, FORMAT JSON) EXECUTE it {nulls}")
        await backdoor.execute("DEALLOCATE it")
        if name in WITHOUT_OWNER:
            continue
        for node in nodes(json.loads(explained)[0]["Plan"]):
            assert_owned(node, owner, statement.sql)

    makers = {name for name, value in vars(queries).items() if hasattr(value, "cache_clear")}
    assert makers == {"list_tasks", "create_task"}
    assert names > WITHOUT_OWNER.keys()
    assert len(names) > 500


def assert_owned(node: dict[str, Any], owner: str | None, sql: str) -> None:
    """Fail if this step of a plan could touch a row of anybody else."""
    column = OWNED.get(node.get("Relation Name", ""))
    if column is None:
        return
    if node.get("Operation") == "Insert":
        (source,) = (inner for inner in node["Plans"] if inner["Parent Relationship"] == "Outer")
        assert source["Output"][0] in {owner, f"({owner})::text"}, sql
    elif "Scan" in node["Node Type"]:
        conditions = " AND ".join(
            node.get(kind, "") for kind in ("Index Cond", "Recheck Cond", "Filter")
        )
        bound = rf"\b{column} = \(?{re.escape(str(owner))}\b"
        assert re.search(bound, conditions), f"{conditions}: {sql}"


async def test_a_statement_that_may_be_repeated_writes_nothing(
    backdoor: "asyncpg.Connection[asyncpg.Record]",
) -> None:
    for name, statement in statements():
        prepared = await backdoor.prepare(statement.sql)
        try:
            async with backdoor.transaction(readonly=True):
                await prepared.fetch(*[None] * len(statement.names))
        except asyncpg.ReadOnlySQLTransactionError:
            assert not statement.is_read, name
        else:
            assert statement.is_read, name


async def test_an_account_belongs_to_the_user_that_it_is_made_for(
    backdoor: "asyncpg.Connection[asyncpg.Record]",
) -> None:
    row = {"email": "canary@example.com", "name": None, "password_hash": "x"}
    await account_queries.CREATE_ACCOUNT.one(
        owner="local_canary", email_key="canary@example.com", **row
    )

    found = await backdoor.fetch("SELECT user_id FROM emails WHERE key = 'canary@example.com'")
    await backdoor.execute("DELETE FROM users WHERE id = 'local_canary'")

    assert [row["user_id"] for row in found] == ["local_canary"]
    assert not await backdoor.fetch("SELECT FROM emails WHERE key = 'canary@example.com'")


def test_no_column_of_a_task_is_forgotten() -> None:
    """What clients write is in every statement that writes; what they read is in every answer."""
    made_here = {"user_id", "id", "created_at", "updated_at", "rev"}
    columns = {*Task.__table__.columns.keys()}  # type: ignore[attr-defined]

    assert columns == made_here | queries.TASK_COLUMNS.keys()
    assert {*queries.TASK_COLUMNS.values(), "tags"} == TaskCreate.model_fields.keys()
    tags = {*Tag.__table__.columns.keys()}  # type: ignore[attr-defined]
    assert tags == {"user_id", "id"} | queries.TAG_COLUMNS.keys()
    assert {*queries.TAG_COLUMNS.values()} == TagCreate.model_fields.keys()
    assert TaskCreate.model_fields.keys() == TaskPatch.model_fields.keys()


async def test_an_answer_has_the_members_of_its_type(
    backdoor: "asyncpg.Connection[asyncpg.Record]",
) -> None:
    for statement, row in (
        (queries.GET_TASK, TaskRead),
        (queries.GET_TAG, TagRead),
        (account_queries.FIND_USER, UserRead),
    ):
        prepared = await backdoor.prepare(statement.sql)
        names = [each.name for each in prepared.get_attributes() if each.name != "due_is_day"]
        assert names == [*row.__annotations__]


def test_only_queries_build_sql(project: Path) -> None:
    may = {
        "db.py",
        "pool.py",
        "servers.py",
        "tables.py",
        "queries.py",
        "account_queries.py",
        "models.py",
        "embedded.py",
    }
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
