"""What the tag routes do for their owner, and what tags do on tasks."""

import asyncio
import re
from typing import Any

import asyncpg
import pytest

import db
from tests.conftest import Person
from tests.test_hostile import IDS, assert_helpful
from tests.test_tasks import create

COLORS = [
    *("", "#", "22aa66", "#22aa6", "#22aa666", "#22aa6g", "#2a6", "red", " #22aa66", "#22aa66\n"),
    *("#22aa66\0", "#２２aa66", 0x22AA66, ["#22aa66"], True),
]
NAMES = ["", " \t\u2003", "x" * 51, "a\0b", None, 1, ["home"], {"name": "home"}]


async def create_tag(person: Person, name: str = "home", **members: Any) -> dict[str, Any]:
    """Create a tag and return it."""
    response = await person.post("/api/tags", json={"name": name, **members})
    assert response.status_code == 201, response.text
    tag: dict[str, Any] = response.json()
    return tag


def names(tags: list[dict[str, Any]]) -> list[str]:
    """List the names of tags."""
    return [tag["name"] for tag in tags]


async def test_a_tag_is_created_as_it_is_listed(ada: Person) -> None:
    tag = await create_tag(ada, "  home ", color="#22AA66")

    assert list(tag) == ["id", "name", "color"]
    assert tag == {"id": tag["id"], "name": "home", "color": "#22aa66"}
    assert (await ada.get("/api/tags")).json() == [tag]


async def test_tags_are_listed_by_name(ada: Person) -> None:
    for name in ("work", "Errands", "home"):
        await create_tag(ada, name)

    assert names((await ada.get("/api/tags")).json()) == ["Errands", "home", "work"]


@pytest.mark.parametrize("name", ["HOME", "home", " Home", "ｈｏｍｅ"])
async def test_names_are_unique_whatever_their_case(ada: Person, name: str) -> None:
    tag, other = await create_tag(ada, "home"), await create_tag(ada, "work")

    created = await ada.post("/api/tags", json={"name": name})
    renamed = await ada.patch(f"/api/tags/{other['id']}", json={"name": name})

    assert created.status_code == renamed.status_code == 409
    assert created.json()["code"] == renamed.json()["code"] == "tag_exists"
    assert (await ada.get("/api/tags")).json() == [tag, other]


async def test_a_name_may_change_its_own_case(ada: Person) -> None:
    tag = await create_tag(ada, "straße")

    response = await ada.patch(f"/api/tags/{tag['id']}", json={"name": "STRASSE"})

    assert response.json() == {**tag, "name": "STRASSE"}


@pytest.mark.parametrize(
    "change", [{}, {"name": "garden"}, {"color": None}, {"name": "x" * 50, "color": "#FFFFFF"}]
)
async def test_patch_changes_what_is_sent(ada: Person, change: dict[str, Any]) -> None:
    tag = await create_tag(ada, color="#22aa66")
    task = await create(ada, tags=["home"])

    response = await ada.patch(f"/api/tags/{tag['id']}", json=change)

    expected = tag | change
    expected["color"] = expected["color"] and expected["color"].lower()
    assert response.json() == expected
    rev = 3 if change else task["rev"]
    after = (await ada.get(f"/api/tasks/{task['id']}")).json()
    assert after == {**task, "tags": [expected], "rev": rev}


async def test_what_is_read_of_a_tag_can_be_written(ada: Person) -> None:
    tag = await create_tag(ada)

    assert (await ada.patch(f"/api/tags/{tag['id']}", json=tag)).json() == tag


async def test_tasks_stay_when_their_tag_is_deleted(ada: Person) -> None:
    task = await create(ada, tags=["home", "work"])
    home, work = task["tags"]

    response = await ada.delete(f"/api/tags/{home['id']}")

    assert (response.status_code, response.content) == (204, b"")
    assert (await ada.get("/api/tasks")).json() == [{**task, "tags": [work], "rev": 2}]
    assert (await ada.delete(f"/api/tags/{home['id']}")).json()["code"] == "tag_not_found"


async def test_tags_stay_when_their_task_is_deleted(ada: Person) -> None:
    task = await create(ada, tags=["home"])

    await ada.delete(f"/api/tasks/{task['id']}")

    assert (await ada.get("/api/tags")).json() == task["tags"]


async def test_a_tag_can_be_read_and_put_back(ada: Person) -> None:
    tag = await create_tag(ada, "home", color="#22aa66")
    path = f"/api/tags/{tag['id']}"

    assert (await ada.get(path)).json() == tag
    assert (await ada.put(path, json=tag)).json() == tag
    assert (await ada.put(path, json={"name": "house"})).json() == {**tag, "name": "house"}
    assert (await ada.get("/api/tags/9000000000")).json()["code"] == "tag_not_found"


async def test_unknown_names_become_tags(ada: Person) -> None:
    home = await create_tag(ada, "Home", color="#22aa66")

    task = await create(ada, tags=["work", "HOME", " Work "])

    assert names(task["tags"]) == ["Home", "work"]
    assert task["tags"][0] == home
    assert (await ada.get("/api/tags")).json() == task["tags"]
    assert (await ada.get(f"/api/tasks/{task['id']}")).json() == task
    assert (await ada.get("/api/tasks")).json() == [task]


async def test_a_tag_needs_no_more_than_its_name(ada: Person) -> None:
    """What generated clients send as an object, with and without null for what is not known."""
    home = await create_tag(ada, "Home", color="#22aa66")

    for tag in ({"name": "home"}, {"id": None, "name": "home", "color": None}):
        assert (await create(ada, tags=[tag]))["tags"] == [home]


async def test_a_task_has_twenty_tags_at_most(ada: Person) -> None:
    task = await create(ada, tags=[f"{number:02} " + "ﷺ" * 47 for number in range(20)])

    assert len(task["tags"]) == 20


async def test_tags_that_are_there_are_not_written_again(
    ada: Person, ada_id: str, database: db.Database
) -> None:
    connection = await asyncpg.connect(database.url)
    query = "SELECT xmin::text, ctid::text, id FROM tags WHERE user_id = $1"
    await create(ada, tags=["home"])
    before = await connection.fetch(query, ada_id)

    task = await create(ada, tags=["home"])
    await ada.patch(f"/api/tasks/{task['id']}", json={"title": "x", "tags": ["Home"]})

    assert await connection.fetch(query, ada_id) == before
    await connection.close()


async def test_the_twenty_first_tag_is_not_added_either(ada: Person) -> None:
    task = await create(ada, tags=[f"tag {n}" for n in range(19)])
    path = f"/api/tasks/{task['id']}"
    last, more = [(await create_tag(ada, name=name))["id"] for name in ("last", "one more")]

    added = await ada.put(f"{path}/tags/{last}")
    refused = await ada.put(f"{path}/tags/{more}")
    again = await ada.put(f"{path}/tags/{last}")

    assert (added.status_code, refused.status_code, again.status_code) == (200, 422, 200)
    assert refused.json()["errors"][0]["parameter"] == "tag_id"
    assert again.json() == added.json() == (await ada.get(path)).json()
    assert (await ada.put(path, json=again.json())).json() == again.json()


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
async def test_tags_are_replaced_as_a_whole(ada: Person, method: str) -> None:
    task = await create(ada, tags=["home", "work"])
    path = f"/api/tasks/{task['id']}"
    home = task["tags"][0]

    sent = {"title": "Buy oat milk", "tags": [home, "garden"]}
    changed = (await ada.request(method, path, json=sent)).json()
    emptied = (await ada.request(method, path, json={"title": "x", "tags": []})).json()

    assert changed["title"] == "Buy oat milk"
    assert names(changed["tags"]) == ["garden", "home"]
    assert changed["updated_at"] > task["updated_at"]
    assert home in changed["tags"]
    assert emptied["tags"] == []
    assert (await ada.get(path)).json() == emptied
    assert names((await ada.get("/api/tags")).json()) == ["garden", "home", "work"]


@pytest.mark.parametrize(
    ("method", "path", "change"),
    [
        ("PUT", "", {"title": "x"}),
        ("PATCH", "", {"priority": "low"}),
        ("PATCH", "", {"tags": ["Home", "WORK"]}),
        ("PATCH", "/complete", {"completed": True}),
        ("PATCH", "/complete", None),
    ],
)
async def test_other_changes_leave_and_show_the_tags(
    ada: Person, method: str, path: str, change: object
) -> None:
    task = await create(ada, tags=["home", "work"])

    response = await ada.request(method, f"/api/tasks/{task['id']}{path}", json=change)

    assert response.json()["tags"] == task["tags"]
    assert (await ada.get(f"/api/tasks/{task['id']}")).json() == response.json()


async def test_a_task_with_tags_can_be_sent_back(ada: Person) -> None:
    await create_tag(ada, color="#22aa66")
    task = await create(ada, tags=["home", "work"])

    response = await ada.put(f"/api/tasks/{task['id']}", json=task)

    assert response.json() == {
        **task,
        "updated_at": response.json()["updated_at"],
        "rev": response.json()["rev"],
    }


async def test_a_change_of_a_missing_task_makes_no_tag(ada: Person) -> None:
    task = await create(ada)
    await ada.delete(f"/api/tasks/{task['id']}")

    response = await ada.patch(f"/api/tasks/{task['id']}", json={"tags": ["home"]})

    assert response.json()["code"] == "task_not_found"
    assert (await ada.get("/api/tags")).json() == []


async def test_a_tag_is_added_and_removed_and_both_can_be_repeated(ada: Person) -> None:
    task, tag = await create(ada, tags=["work"]), await create_tag(ada)
    path = f"/api/tasks/{task['id']}"

    added = await ada.put(f"{path}/tags/{tag['id']}")
    again = await ada.put(f"{path}/tags/{tag['id']}")

    assert names(added.json()["tags"]) == ["home", "work"]
    assert added.json()["updated_at"] > task["updated_at"]
    assert again.json() == added.json() == (await ada.get(path)).json()

    removed = await ada.delete(f"{path}/tags/{tag['id']}")
    again = await ada.delete(f"{path}/tags/{tag['id']}")

    assert removed.json()["tags"] == task["tags"]
    assert removed.json()["updated_at"] > added.json()["updated_at"]
    assert again.json() == removed.json() == (await ada.get(path)).json()


async def test_a_tag_is_added_below_the_users_id_too(ada: Person, ada_id: str) -> None:
    task, tag = await create(ada), await create_tag(ada)

    response = await ada.put(f"/api/{ada_id}/tasks/{task['id']}/tags/{tag['id']}/")

    assert response.json()["tags"] == [tag]


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
async def test_whether_task_or_tag_is_missing_is_told(ada: Person, method: str) -> None:
    task, tag = await create(ada), await create_tag(ada)
    missing = 2**63 - 1

    for task_id, tag_id, code in (
        (missing, tag["id"], "task_not_found"),
        (missing, missing, "task_not_found"),
        (task["id"], missing, "tag_not_found"),
    ):
        response = await ada.request(method, f"/api/tasks/{task_id}/tags/{tag_id}")

        assert (response.status_code, response.json()["code"]) == (404, code)


async def test_the_same_new_tags_at_once_are_made_once(ada: Person) -> None:
    wanted = [f"tag {number}" for number in range(8)]

    tasks = await asyncio.gather(
        *(create(ada, tags=wanted[:: 1 if number % 2 else -1]) for number in range(30))
    )

    tags = (await ada.get("/api/tags")).json()
    assert names(tags) == wanted
    assert all(task["tags"] == tags for task in tasks)


async def test_the_last_of_concurrent_changes_wins(ada: Person) -> None:
    """None adds its tags to those of another that it did not see."""
    path = f"/api/tasks/{(await create(ada, tags=['home']))['id']}"

    answers = await asyncio.gather(
        *(ada.patch(path, json={"tags": [f"tag {number}"]}) for number in range(10))
    )

    assert [names(answer.json()["tags"]) for answer in answers] == [
        [f"tag {number}"] for number in range(10)
    ]
    assert (await ada.get(path)).json() in [answer.json() for answer in answers]


async def test_tags_that_come_and_go_break_no_task(ada: Person) -> None:
    tag = await create_tag(ada)

    async def delete() -> None:
        for tag in (await ada.get("/api/tags")).json():
            await ada.delete(f"/api/tags/{tag['id']}")

    async def add() -> None:
        task = await create(ada, tags=["home"])
        response = await ada.put(f"/api/tasks/{task['id']}/tags/{tag['id']}")
        assert response.status_code in {200, 404}

    await asyncio.gather(*(work() for work in (add, delete) * 15))

    assert len((await ada.get("/api/tasks")).json()) == 15


@pytest.mark.parametrize("method", ["POST", "PATCH"])
@pytest.mark.parametrize(
    ("member", "value"),
    [
        *(("name", name) for name in NAMES),
        *(("color", color) for color in COLORS),
        ("size", 1),
    ],
    ids=repr,
)
async def test_what_breaks_a_rule_is_refused(
    ada: Person, method: str, member: str, value: object
) -> None:
    tag = await create_tag(ada)
    path = "/api/tags" if method == "POST" else f"/api/tags/{tag['id']}"

    response = await ada.request(method, path, json={"name": "work", member: value})

    assert_helpful(response, 422)
    assert response.json()["errors"][0]["pointer"] == f"#/{member}"
    assert (await ada.get("/api/tags")).json() == [tag]


async def test_a_new_tag_needs_a_name(ada: Person) -> None:
    response = await ada.post("/api/tags", json={"color": "#22aa66"})

    assert response.json()["errors"] == [{"detail": "is required", "pointer": "#/name"}]


@pytest.mark.parametrize("tag_id", IDS)
async def test_ids_are_plain_digits(ada: Person, tag_id: str) -> None:
    task = await create(ada)

    for method, path in (
        ("PATCH", "/api/tags/"),
        ("DELETE", "/api/tags/"),
        ("PUT", f"/api/tasks/{task['id']}/tags/"),
        ("DELETE", f"/api/tasks/{task['id']}/tags/"),
    ):
        response = await ada.request(method, path + tag_id, json={})

        assert_helpful(response, 404, 422, *([405] if re.fullmatch(r"\.\..*", tag_id) else []))


async def test_the_database_lets_no_tag_on_another_users_task(
    ada: Person, bob: Person, database: db.Database, ada_id: str, bob_id: str
) -> None:
    task, tag = await create(ada), await create_tag(bob)
    other = await asyncpg.connect(database.url)

    for user_id in (ada_id, bob_id):
        with pytest.raises(asyncpg.ForeignKeyViolationError):
            await other.execute(
                "INSERT INTO task_tags VALUES ($1, $2, $3)", user_id, task["id"], tag["id"]
            )

    await other.close()
