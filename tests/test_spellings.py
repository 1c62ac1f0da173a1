"""Other names for paths, parameters and members; and what is forgiven because nothing is lost."""

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import httpx
import pytest
from pydantic import ValidationError

import main
import settings
import spellings
from schemas import TaskFilter
from tests.conftest import Person, token
from tests.contract import PASSWORD
from tests.test_docs import section, text
from tests.test_hostile import assert_helpful
from tests.test_tags import create_tag
from tests.test_tasks import create, list_ids

PREFIXES = ["/api/{}", "/api/users/{}", "/api/v1/{}", "/api/v1/users/{}"]


@pytest.mark.parametrize(
    "base",
    ["/api/v1/tasks", "/api/todos", "/api/v1/todos", "/api///tasks/", "/api/tasks//"]
    + [f"{prefix}/tasks" for prefix in PREFIXES]
    + [f"{prefix}/todos/" for prefix in PREFIXES],
)
async def test_tasks_have_other_paths(ada: Person, ada_id: str, base: str) -> None:
    base = base.format(ada_id)
    task = (await ada.post(base, json={"title": "Buy milk"})).json()
    tag = await create_tag(ada, "home")

    assert (await ada.get(base)).json() == [task]
    assert (await ada.get(f"{base}/{task['id']}")).json() == task
    assert (await ada.patch(f"{base}/{task['id']}/toggle")).json()["completed"] is True
    assert (await ada.patch(f"{base}/{task['id']}/complete/")).json()["completed"] is False
    tagged = (await ada.put(f"{base}/{task['id']}/tags/{tag['id']}")).json()
    assert tagged["tags"] == [tag]
    assert (await ada.get(f"{base}/changes?since=0")).json()["changed"] == [tagged]
    assert (await ada.delete(f"{base}/{task['id']}")).status_code == 204


@pytest.mark.parametrize("base", ["/api/v1/tags", *(f"{prefix}/tags" for prefix in PREFIXES)])
async def test_tags_have_other_paths(ada: Person, ada_id: str, base: str) -> None:
    base = base.format(ada_id)
    tag = (await ada.post(base, json={"name": "home"})).json()

    assert (await ada.get(base)).json() == [tag]
    assert (await ada.put(f"{base}/{tag['id']}", json={"name": "work"})).json()["name"] == "work"


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("collection", ["tasks", "todos", "tags"])
async def test_another_users_id_is_refused_under_every_prefix(
    ada: Person, bob_id: str, prefix: str, collection: str
) -> None:
    response = await ada.get(f"{prefix.format(bob_id)}/{collection}")

    assert (response.status_code, response.json()["code"]) == (403, "wrong_user")


@pytest.mark.parametrize("user_id", ["a/b", "a/tasks/b", "é ü", "a%2Fb", "x" * 255])
async def test_ids_of_every_kind_have_a_path(
    connect: Callable[[str | None], Person], user_id: str
) -> None:
    person = connect(token(sub=user_id))
    task = await create(person)

    assert task in (await person.get(f"/api/{quote(user_id, safe='')}/tasks")).json()


@pytest.mark.parametrize(
    "path",
    [
        *("/api/foo/bar/tasks", "/api/v1/v1/tasks", "/api/users/tasks"),
        *("/api/users/users/tasks", "/api/v1/users/tasks", "/api/todo", "/api/Tasks", "/tasks"),
        *("/api/api/tasks", "/api/auth/tasks", "/api/todos/todos/1/2", "/api/a%2Fb/c/tasks"),
        *("/api/auth", "/api/auth/", "/api/auth/me/x", "/api/v1/signup", "/healthz", "/health/x"),
        *("/api/tasks/1/toggle/x", "/api/tasks/1/done", "/api/ada/users", "/api/users/ada"),
    ],
)
async def test_an_unknown_path_is_not_found_with_or_without_a_token(
    ada: Person, client: Person, path: str
) -> None:
    for person in (ada, client):
        response = await person.get(path)
        assert (response.status_code, response.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    "reserved", ["api", "auth", "tags", "tasks", "todos", "users", "v1", "%75sers", "%74asks"]
)
async def test_our_own_words_are_no_user_ids_in_a_path(
    connect: Callable[[str | None], Person], reserved: str
) -> None:
    person = connect(token(sub=unquote(reserved)))
    task = await create(person)

    for prefix in PREFIXES[1:]:
        response = await person.get(f"{prefix.format(reserved)}/todos")
        assert response.status_code in {404, 422}  # some are routes: /api/v1/tags/{tag_id}
    assert task in (await person.get("/api/tasks")).json()


@pytest.mark.parametrize("base", ["/api/auth", "/api/v1/auth", "/api//auth"])
@pytest.mark.parametrize(("sign_up", "sign_in"), [("signup", "signin"), ("sign-up", "sign-in")])
async def test_accounts_have_other_paths_and_the_cookie_goes_where_they_are(
    client: Person, base: str, sign_up: str, sign_in: str
) -> None:
    account = {
        "email": f"{base.count('/')}{base[5:8].strip('/')}{sign_up}@example.com",
        "password": PASSWORD,
    }

    user = (await client.post(f"{base}/{sign_up}", json=account)).json()
    signed_in = await client.post(f"{base}/{sign_in}", json=account)

    assert signed_in.json()["user"] == user
    assert f"; Path={base};" in signed_in.headers["Set-Cookie"]
    client.cookies = {"refresh_token": signed_in.cookies["refresh_token"]}
    refreshed = await client.post(f"{base}/refresh")
    assert refreshed.json()["user"] == user
    assert f"; Path={base};" in refreshed.headers["Set-Cookie"]
    foreign = {"Origin": "https://evil.example"}
    refused = await client.post(f"{base}/{sign_in}", json=account, headers=foreign)
    assert refused.json()["code"] == "origin_not_allowed"


async def test_health_is_whether_it_is_ready(client: Person) -> None:
    assert (await client.get("/health")).json() == (await client.get("/health/ready")).json()


async def test_a_route_of_ones_own_comes_before_a_spelling(
    configured: settings.Settings,
) -> None:
    app = main.create_app(configured)

    @app.get("/api/projects/{project}/tasks")
    async def list_tasks_of_a_project(project: str) -> str:
        return project

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as person:
        assert (await person.get("/api/projects/7/tasks")).json() == "7"
        assert (await person.get("/api/projects/7/tasks/")).json() == "7"


async def fill(ada: Person) -> list[int]:
    """Make three tasks, of which the second is done and the third is due first."""
    tasks = [
        await create(ada, title="b", due_date="2026-12-03", tags=["home"]),
        await create(ada, title="c", due_date="2026-12-02", completed=True, tags=["home", "fun"]),
        await create(ada, title="a", due_date="2026-12-01"),
    ]
    return [task["id"] for task in tasks]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("sort_by=title", "abc"),
        ("sortBy=title&order=desc", "cba"),
        ("sort_by=created_at&order=desc", "acb"),
        ("sort_by=createdAt&sort_order=asc", "bca"),
        ("sort=-updated_at", "bac"),
        ("sort=updatedAt", "cab"),
        ("sort_by=dueDate", "acb"),
        ("sort_by=due&sortOrder=DESC", "bca"),
        ("sort=-title&order=asc", "abc"),
        ("order=asc", "bca"),
        ("order=desc", "acb"),
        ("order=&sort_by=&page=&skip=&q=&tags=&completed=", "acb"),
        ("sort=&status=&priority=&tag=&search=&due_after=&due_before=&limit=&cursor=", "acb"),
        ("sort=&sort_by=title", "abc"),
        ("completed=true", "c"),
        ("completed=False", "ab"),
        ("status_filter=done", "c"),
        ("status=COMPLETE", "c"),
        ("status=Pending", "ab"),
        ("status=incomplete", "ab"),
        ("status=active", "ab"),
        ("status=open", "ab"),
        ("status=todo", "ab"),
        ("priority=MEDIUM", "acb"),
        ("q=B", "b"),
        ("query=b", "b"),
        ("tags=home", "cb"),
        ("tags=home&tags=fun", "c"),
        ("tag[]=home&tag[]=fun", "c"),
        ("tags[]=fun", "c"),
        ("tag=&tag=", "acb"),
        ("tag=home&tag=", "cb"),
        ("tags[]=&tags[]=fun", "c"),
        ("skip=1", "cb"),
        ("offset=1&limit=1", "c"),
        ("offset=0", "acb"),
        ("offset=3", ""),
        ("page=1", "acb"),
        ("page=2&page_size=2", "b"),
        ("page=2&limit=1", "c"),
        ("page=3&per_page=2", ""),
        ("pageSize=2", "ac"),
        ("page=9999999999999999&page_size=500", ""),
    ],
)
async def test_the_query_of_the_list_has_other_words(ada: Person, query: str, found: str) -> None:
    first, *_ = await fill(ada)
    await ada.patch(f"/api/tasks/{first}", json={"description": "the last to be updated"})

    response = await ada.get(f"/api/tasks?{query}")

    assert "".join(task["title"] for task in response.json()) == found


@pytest.mark.parametrize("start", ["skip=1", "offset=1", "page=2", "%70age=2", "sk%69p=1"])
async def test_a_counted_page_leads_on_by_cursor(ada: Person, start: str) -> None:
    ids = await fill(ada)

    first = await ada.get(f"/api/todos?{start}&per_page=1&sort_by=title&order=asc")
    after = await ada.get(first.links["next"]["url"])

    assert [task["id"] for task in first.json() + after.json()] == ids[:2]
    assert start not in urlsplit(first.links["next"]["url"]).query


@pytest.mark.parametrize(
    ("query", "parameter", "detail"),
    [
        ("page=0", "page", "must be a number from 1 to 9999999999999999"),
        ("skip=1&offset=2", "offset", "means the same as skip; send one of them"),
        ("skip=x", "offset", "must be a number from 0 to 9999999999999999"),
        ("page=1&cursor=x", "page", "cannot be sent with cursor"),
        ("order=up", "order", "must be asc or desc"),
        ("completed=all", "completed", "must be true or false"),
        ("completed=pending", "completed", "must be true or false"),
        ("status=all&completed=true", "completed", "means the same as status; send one of them"),
        ("sort_by=a&sort_by=b", "sort_by", "is given more than once"),
        ("tags=a&tag=a", "tag", "means the same as tags; send one of them"),
    ],
)
async def test_what_is_wrong_with_a_spelling_is_said_by_its_name(
    ada: Person, query: str, parameter: str, detail: str
) -> None:
    problem = (await ada.get(f"/api/tasks?{query}")).json()

    assert problem["errors"] == [{"detail": detail, "parameter": parameter}]
    assert problem["detail"] == f"{parameter}: {detail}"


def test_a_list_where_one_value_is_meant_is_refused() -> None:
    """As FastAPI's own handler passes on what is repeated."""
    with pytest.raises(ValidationError, match="is given more than once"):
        TaskFilter.model_validate({"sort_by": ["title", "created"]})


async def test_what_is_said_twice_in_a_body_is_said_by_its_name(ada: Person) -> None:
    body = {"title": "x", "completed": True, "status": "done"}

    problem = (await ada.post("/api/tasks", json=body)).json()

    detail = "means the same as completed; send one of them"
    assert problem["errors"] == [{"detail": detail, "pointer": "#/status"}]
    assert problem["detail"] == f"status: {detail}"


@pytest.mark.parametrize("name", sorted({*spellings.PARAMETERS, "order", "offset", "page"}))
async def test_the_bulk_calls_take_no_other_words(ada: Person, name: str) -> None:
    await create(ada)

    for query in (f"{name}=pending", f"status=all&{name}="):
        assert_helpful(await ada.delete(f"/api/tasks?{query}"), 422)
    assert len(await list_ids(ada)) == 1


@pytest.mark.parametrize(
    ("sent", "member", "kept"),
    [
        ({"dueDate": "2026-12-01"}, "due_date", "2026-12-01"),
        ({"dueDate": ""}, "due_date", None),
        ({"is_completed": True}, "completed", True),
        ({"isCompleted": True}, "completed", True),
        ({"status": "completed"}, "completed", True),
        ({"status": "Done"}, "completed", True),
        ({"status": "complete"}, "completed", True),
        ({"status": "pending"}, "completed", False),
        ({"status": "todo"}, "completed", False),
        ({"priority": "HIGH"}, "priority", "high"),
    ],
)
async def test_members_have_other_names(
    ada: Person, sent: dict[str, Any], member: str, kept: object
) -> None:
    created = await create(ada, **sent)
    path = f"/api/tasks/{(await create(ada, completed=kept is False))['id']}"

    assert created[member] == kept
    for method in ("PUT", "PATCH"):
        assert (await ada.request(method, path, json=sent)).json()[member] == kept
    if member == "completed":
        completed = await ada.patch(f"{path}/complete", json=sent)
        assert completed.json()["completed"] is kept


@pytest.mark.parametrize("body", [b"", b"null", b"{}", b" {} ", b"\xef\xbb\xbf{}"])
async def test_nothing_in_the_body_toggles(ada: Person, body: bytes) -> None:
    path = f"/api/tasks/{(await create(ada))['id']}/complete"
    headers = {"Content-Type": "application/json"}

    first = await ada.patch(path, content=body, headers=headers)
    second = await ada.patch(path, content=body, headers=headers)

    assert (first.json()["completed"], second.json()["completed"]) == (True, False)


@pytest.mark.parametrize("body", ["[]", "0", "false", '""', '{"done": true}', '{"id": 1}'])
async def test_anything_else_in_the_body_does_not(ada: Person, body: str) -> None:
    task = await create(ada)
    headers = {"Content-Type": "application/json"}

    response = await ada.patch(f"/api/tasks/{task['id']}/complete", content=body, headers=headers)

    assert_helpful(response, 422)
    assert (await ada.get("/api/tasks")).json() == [task]


async def test_a_byte_order_mark_is_skipped(ada: Person) -> None:
    body, headers = b'\xef\xbb\xbf{"title": "x"}', {"Content-Type": "application/json"}

    assert (await ada.post("/api/tasks", content=body, headers=headers)).status_code == 201


async def test_unknown_members_are_dropped_where_that_is_set(
    configured: settings.Settings,
) -> None:
    app = main.create_app(configured.model_copy(update={"unknown_fields": "ignore"}))
    headers = {"Authorization": f"Bearer {token(sub='sends-more')}"}
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://test", headers=headers
        ) as person,
    ):
        tags = [{"id": 1, "name": "home", "size": 1}]
        body = {"title": "x", "category": "work", "status": "in_progress", "tags": tags}
        task = (await person.post("/api/tasks", json=body)).json()
        path = f"/api/tasks/{task['id']}"
        both = await person.patch(path, json={"status": "done", "completed": False})
        nothing_left = await person.patch(f"{path}/complete", json={"category": "work"})
        query = await person.get("/api/tasks?category=work")

        assert (task["title"], [tag["name"] for tag in task["tags"]]) == ("x", ["home"])
        assert [each.status_code for each in (both, nothing_left, query)] == [422, 422, 422]
        assert (await person.get(path)).json() == task


async def test_a_tag_that_is_sent_back_is_the_one_with_its_id(ada: Person) -> None:
    task = await create(ada, tags=["home"])
    (stale,) = task["tags"]
    path = f"/api/tasks/{task['id']}"
    await ada.patch(f"/api/tags/{stale['id']}", json={"name": "house"})

    put_back = (await ada.put(path, json=task)).json()
    fresh = (await ada.post("/api/tasks", json={"title": "x", "tags": [stale, "HOUSE"]})).json()

    assert put_back["tags"] == fresh["tags"] == [{**stale, "name": "house"}]
    assert put_back["rev"] == task["rev"] + 1  # of the new name alone
    assert len((await ada.get("/api/tags")).json()) == 1


async def test_the_name_counts_where_the_id_is_nobodys_or_somebody_elses(
    ada: Person, bob: Person
) -> None:
    foreign = await create_tag(bob, "secret", color="#22aa66")
    gone = await create_tag(ada, "gone")
    await ada.delete(f"/api/tags/{gone['id']}")
    ids = [foreign["id"], gone["id"], None, 0, -1, 2**63, 10**30, True, 1.0, "1", "tmp", {}, [1]]
    tags = [{"id": tag_id, "name": "mine"} for tag_id in ids]

    task = await create(ada, tags=tags)
    changed = await ada.patch(f"/api/tasks/{task['id']}", json={"tags": [foreign]})

    assert [tag["name"] for tag in task["tags"]] == ["mine"]
    assert [(tag["name"], tag["color"]) for tag in changed.json()["tags"]] == [("secret", None)]
    assert changed.json()["tags"][0]["id"] != foreign["id"]
    assert (await bob.get("/api/tags")).json() == [foreign]


async def test_tags_that_turn_out_to_be_the_same_are_one(ada: Person) -> None:
    home = await create_tag(ada, "home")
    work = await create_tag(ada, "work")
    swapped = [
        {**home, "name": "work"},
        {**work, "name": "home"},
        "home",
        {"id": 10**9, "name": "new"},
        "NEW",
    ]

    task = await create(ada, tags=swapped)
    same = await ada.put(f"/api/tasks/{task['id']}", json={"tags": swapped})

    assert task["tags"][0] == home
    assert task["tags"][2] == work
    assert [tag["name"].lower() for tag in task["tags"]] == ["home", "new", "work"]
    assert same.json() == task


@pytest.mark.parametrize(
    ("heading", "table"),
    [
        (
            "Words in paths",
            {name: meant for name, meant in spellings.COLLECTIONS.items() if name != meant}
            | spellings.ACTIONS
            | spellings.ACCOUNT_CALLS
            | spellings.WHOLE_PATHS,
        ),
        ("Parameters of the list", spellings.PARAMETERS),
        ("Values of `status`", spellings.STATUSES),
        ("Values of `sort`", spellings.SORTS),
        ("Members of a task", spellings.MEMBERS),
    ],
)
def test_the_appendix_lists_the_table(heading: str, table: dict[str, str]) -> None:
    appendix = section(text("docs/api.md"), "Other spellings")
    for words in (spellings.LIST_NAMES - {"cursor"}, spellings.RESERVED):
        assert all(f"`{word}`" in appendix for word in words)
    part = appendix.partition(f"\n### {heading}\n")[2].partition("\n### ")[0]
    listed: dict[str, str] = {}
    for names, meant in re.findall(r"^\| (`.+) \| `([^`]+)`.* \|$", part, re.MULTILINE):
        listed |= dict.fromkeys(re.findall("`([^`]+)`", names), meant)

    assert listed == table
