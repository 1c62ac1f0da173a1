"""What the task routes do for their owner."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.conftest import Person

MEMBERS = [
    *("id", "user_id", "title", "description", "completed"),
    *("priority", "due_date", "tags", "created_at", "updated_at", "rev"),
]


async def create(person: Person, **members: Any) -> dict[str, Any]:
    """Create a task and return it."""
    response = await person.post("/api/tasks", json={"title": "Buy milk", **members})
    assert response.status_code == 201, response.text
    task: dict[str, Any] = response.json()
    return task


async def list_ids(person: Person, query: str = "") -> list[int]:
    """List the ids of a person's tasks."""
    response = await person.get(f"/api/tasks{query}")
    assert response.status_code == 200, response.text
    return [task["id"] for task in response.json()]


async def test_create_answers_with_the_whole_task(ada: Person, ada_id: str) -> None:
    before = datetime.now(UTC)

    response = await ada.post("/api/tasks", json={"title": "  Buy milk \n"})

    task = response.json()
    assert response.status_code == 201
    assert response.headers["Location"] == f"/api/tasks/{task['id']}"
    assert list(task) == MEMBERS
    assert task | {"id": 0, "created_at": "", "updated_at": ""} == {
        "id": 0,
        "user_id": ada_id,
        "title": "Buy milk",
        "description": None,
        "completed": False,
        "priority": "medium",
        "due_date": None,
        "tags": [],
        "created_at": "",
        "updated_at": "",
        "rev": 1,
    }
    assert task["created_at"] == task["updated_at"]
    assert task["created_at"].endswith("Z")
    assert abs(datetime.fromisoformat(task["created_at"]) - before) < timedelta(seconds=10)


async def test_a_priority_is_taken_in_any_letter_case(ada: Person) -> None:
    task = await create(ada, priority="HIGH")
    patched = await ada.patch(f"/api/tasks/{task['id']}", json={"priority": "Low"})

    assert (task["priority"], patched.json()["priority"]) == ("high", "low")


async def test_location_leads_to_the_task(ada: Person) -> None:
    response = await ada.post("/api/tasks", json={"title": "Buy milk"})

    assert (await ada.get(response.headers["Location"])).json() == response.json()


async def test_create_takes_every_member(ada: Person) -> None:
    members = {
        "title": "x" * 200,
        "description": "y" * 1000,
        "completed": True,
        "priority": "high",
        "due_date": "2026-12-01T18:00:00+01:00",
    }

    task = await create(ada, **members)

    assert {**task, **members, "due_date": "2026-12-01T17:00:00Z"} == task


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("2026-12-01", "2026-12-01"),
        ("0001-01-02", "0001-01-02"),
        ("9999-12-31", "9999-12-31"),
        ("2028-02-29", "2028-02-29"),
        ("2026-12-01T00:00:00Z", "2026-12-01T00:00:00Z"),
        ("2026-12-01t23:30:00.5-01:00", "2026-12-02T00:30:00.500000Z"),
        ("", None),
        (None, None),
    ],
)
async def test_a_due_date_is_a_day_or_a_moment(
    ada: Person, sent: str | None, kept: str | None
) -> None:
    task = await create(ada, due_date=sent)
    path, other = f"/api/tasks/{task['id']}", {"due_date": "2026-11-30"}

    assert task["due_date"] == kept
    assert (await ada.get(path)).json() == task
    assert (await ada.put(path, json=task)).json() == task
    assert (await ada.patch(path, json=other)).json()["due_date"] == "2026-11-30"
    assert (await ada.patch(path, json={"due_date": sent})).json()["due_date"] == kept
    assert [task["due_date"] for task in (await ada.get("/api/tasks")).json()] == [kept]
    changed = (await ada.get("/api/tasks/changes?since=0")).json()["changed"]
    assert [task["due_date"] for task in changed] == [kept]


async def test_a_day_sorts_and_is_found_as_its_first_moment_in_utc(ada: Person) -> None:
    dates = ["2026-12-01T23:59:59.999999Z", "2026-12-02", "2026-12-02T00:00:00Z", "2026-12-03"]
    for due_date in dates:
        await create(ada, due_date=due_date)

    async def due(query: str) -> list[str]:
        tasks = (await ada.get(f"/api/tasks?{query}")).json()
        return [task["due_date"] for task in tasks]

    assert await due("sort=due_date") == dates
    assert await due("sort=-due_date") == dates[::-1]
    for between in (
        "due_after=2026-12-02&due_before=2026-12-03",
        "due_after=2026-12-01T19:00:00-05:00&due_before=2026-12-02T00:00:00.000001Z",
    ):
        assert await due(f"sort=due_date&{between}") == dates[1:3]
    assert await due("due_after=2026-12-03&due_before=2026-12-02") == []
    first = await ada.get("/api/tasks?sort=due_date&limit=2")
    rest = await ada.get(first.links["next"]["url"])
    assert [task["due_date"] for task in first.json() + rest.json()] == dates


@pytest.mark.parametrize(
    "title",
    [
        "é" * 200,
        "👩‍👩‍👧" * 25,
        "<script>alert(1)</script>",
        "'; DROP TABLE tasks; --",
        "%",
        "a\tb\nc\rd",
        "\u200b.\u2800",
    ],
)
async def test_titles_come_back_as_they_were(ada: Person, title: str) -> None:
    assert (await create(ada, title=title))["title"] == title


async def test_list_is_a_bare_array_newest_first(ada: Person) -> None:
    ids = [(await create(ada))["id"] for _ in range(3)]

    assert await list_ids(ada) == ids[::-1]


async def test_list_of_a_new_user_is_empty(ada: Person) -> None:
    assert (await ada.get("/api/tasks")).json() == []


async def test_list_shows_what_get_shows(ada: Person) -> None:
    task = await create(ada)

    assert (await ada.get("/api/tasks")).json() == [task]
    assert (await ada.get(f"/api/tasks/{task['id']}")).json() == task


async def test_list_by_status(ada: Person) -> None:
    pending = await create(ada)
    done = await create(ada, completed=True)

    assert await list_ids(ada, "?status=pending") == [pending["id"]]
    assert await list_ids(ada, "?status=completed") == [done["id"]]
    assert await list_ids(ada, "?status=all") == [done["id"], pending["id"]]


async def test_list_is_limited(ada: Person) -> None:
    ids = [(await create(ada))["id"] for _ in range(3)]

    assert await list_ids(ada, "?limit=2") == ids[:0:-1]


async def test_list_holds_500_tasks_by_default(ada: Person) -> None:
    for _ in range(3):
        await asyncio.gather(*(create(ada) for _ in range(167)))

    assert len(await list_ids(ada)) == 500


async def test_put_changes_what_is_sent_and_keeps_the_rest(ada: Person) -> None:
    task = await create(ada, description="Two litres.", priority="high")

    response = await ada.put(f"/api/tasks/{task['id']}", json={"title": "Buy oat milk"})

    changed = response.json()
    assert response.status_code == 200
    assert changed == {
        **task,
        "title": "Buy oat milk",
        "updated_at": changed["updated_at"],
        "rev": changed["rev"],
    }
    assert changed["updated_at"] > task["updated_at"]


async def test_put_accepts_what_get_returns(ada: Person) -> None:
    task = await create(ada, due_date="2026-12-01T17:00:00Z")

    response = await ada.put(f"/api/tasks/{task['id']}", json=task)

    assert response.status_code == 200
    assert response.json() == task


async def test_put_needs_no_title(ada: Person) -> None:
    task = await create(ada)

    response = await ada.put(f"/api/tasks/{task['id']}", json={"completed": True})

    assert (response.json()["title"], response.json()["completed"]) == (task["title"], True)


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
async def test_null_clears_a_member(ada: Person, method: str) -> None:
    task = await create(ada, description="Two litres.", due_date="2026-12-01T17:00:00Z")
    change = {"title": "Buy milk", "description": None, "due_date": None}

    response = await ada.request(method, f"/api/tasks/{task['id']}", json=change)

    assert response.json()["description"] is None
    assert response.json()["due_date"] is None


@pytest.mark.parametrize("member", ["title", "completed", "priority"])
async def test_null_is_refused_where_there_is_nothing_to_clear(ada: Person, member: str) -> None:
    task = await create(ada)

    response = await ada.patch(f"/api/tasks/{task['id']}", json={member: None})

    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"] == f"#/{member}"


@pytest.mark.parametrize(
    "change",
    [
        {"title": "Buy oat milk"},
        {"description": "Two litres."},
        {"completed": True},
        {"priority": "low"},
        {"due_date": "2026-12-01T17:00:00.123456Z"},
    ],
)
async def test_patch_changes_one_member(ada: Person, change: dict[str, Any]) -> None:
    task = await create(ada)

    response = await ada.patch(f"/api/tasks/{task['id']}", json=change)

    assert response.json() == {
        **task,
        **change,
        "updated_at": response.json()["updated_at"],
        "rev": response.json()["rev"],
    }


async def test_an_empty_patch_changes_nothing(ada: Person) -> None:
    task = await create(ada)

    response = await ada.patch(f"/api/tasks/{task['id']}", json={})

    assert response.status_code == 200
    assert response.json() == task


async def test_members_that_are_read_only_are_ignored(ada: Person, ada_id: str) -> None:
    task = await create(ada, id=2**62, user_id="bob", created_at="x", updated_at=None, rev=7)

    assert task["user_id"] == ada_id
    assert task["id"] != 2**62
    assert task["rev"] == 1


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
@pytest.mark.parametrize(
    ("name", "pointer"), [("titel/~", "#/titel~1~0"), ("#/ü %", "#/%23~1%C3%BC%20%25")]
)
async def test_a_misspelled_member_is_refused(
    ada: Person, method: str, name: str, pointer: str
) -> None:
    path = "/api/tasks" if method == "POST" else f"/api/tasks/{(await create(ada))['id']}"

    response = await ada.request(method, path, json={"title": "Buy milk", name: "x"})

    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"] == pointer
    assert response.json()["detail"].startswith(f"{name}: is not known")


async def test_complete_toggles_without_a_body(ada: Person) -> None:
    path = f"/api/tasks/{(await create(ada))['id']}/complete"

    assert (await ada.patch(path)).json()["completed"] is True
    assert (await ada.patch(path)).json()["completed"] is False


@pytest.mark.parametrize("completed", [True, False])
async def test_complete_sets_with_a_body_and_can_be_repeated(ada: Person, completed: bool) -> None:
    path = f"/api/tasks/{(await create(ada))['id']}/complete"

    for _ in range(2):
        response = await ada.patch(path, json={"completed": completed})

        assert response.status_code == 200
        assert response.json()["completed"] is completed


async def test_delete_is_final(ada: Person) -> None:
    path = f"/api/tasks/{(await create(ada))['id']}"

    response = await ada.delete(path)

    assert response.status_code == 204
    assert response.content == b""
    assert (await ada.delete(path)).status_code == 404
    assert (await ada.get(path)).status_code == 404


async def test_mark_all_done(ada: Person) -> None:
    for completed in (False, False, True):
        await create(ada, completed=completed)

    response = await ada.patch("/api/tasks?status=pending", json={"completed": True})

    assert response.json() == {"updated": 2}
    assert len(await list_ids(ada, "?status=completed")) == 3


async def test_mark_all_counts_only_what_it_changed(ada: Person) -> None:
    task = await create(ada, completed=True)

    response = await ada.patch("/api/tasks?status=all", json={"completed": True})

    assert response.json() == {"updated": 0}
    assert (await ada.get(f"/api/tasks/{task['id']}")).json() == task


async def test_clear_completed(ada: Person) -> None:
    pending = await create(ada)
    await create(ada, completed=True)

    response = await ada.delete("/api/tasks?status=completed")

    assert response.json() == {"deleted": 1}
    assert await list_ids(ada) == [pending["id"]]


@pytest.mark.parametrize(
    "query", ["", "?status=", "?status=done", "?status=completed&priority=low"]
)
async def test_bulk_changes_need_a_status_and_nothing_else(ada: Person, query: str) -> None:
    task = await create(ada, completed=True)

    deletion = await ada.delete(f"/api/tasks{query}")
    change = await ada.patch(f"/api/tasks{query}", json={"completed": False})

    assert deletion.status_code == change.status_code == 422
    assert deletion.json()["errors"][0]["parameter"] in {"status", "priority"}
    assert (await ada.get("/api/tasks")).json() == [task]


async def test_50_concurrent_creates_of_a_new_user_make_50_tasks(ada: Person) -> None:
    tasks = await asyncio.gather(*(create(ada, title=f"Task {number}") for number in range(50)))

    assert sorted(await list_ids(ada)) == sorted(task["id"] for task in tasks)
    assert len({task["title"] for task in tasks}) == 50


async def test_concurrent_toggles_are_all_counted(ada: Person) -> None:
    path = f"/api/tasks/{(await create(ada))['id']}"

    await asyncio.gather(*(ada.patch(f"{path}/complete") for _ in range(21)))

    assert (await ada.get(path)).json()["completed"] is True


async def test_a_slash_at_the_end_makes_no_difference(ada: Person) -> None:
    response = await ada.post("/api/tasks/", json={"title": "Buy milk"})

    assert response.status_code == 201
    assert (await ada.get(f"/api/tasks/{response.json()['id']}/")).json() == response.json()


async def test_everything_is_also_served_below_the_users_id(ada: Person, ada_id: str) -> None:
    base = f"/api/{ada_id}/tasks"

    task = (await ada.post(base, json={"title": "Buy milk"})).json()

    assert (await ada.get(base)).json() == [task]
    assert (await ada.get(f"{base}/{task['id']}")).json() == task
    assert (await ada.put(f"{base}/{task['id']}", json={"title": "x"})).json()["title"] == "x"
    assert (await ada.patch(f"{base}/{task['id']}/complete")).json()["completed"] is True
    assert (await ada.patch(f"{base}?status=completed", json={"completed": False})).is_success
    assert (await ada.delete(f"{base}/{task['id']}")).status_code == 204


async def test_me_is_the_user_of_the_token(ada: Person, ada_id: str) -> None:
    first, again = await asyncio.gather(ada.get("/api/v1/auth/me"), ada.get("/api/v1/auth/me"))

    assert first.json() == again.json()
    assert first.json() | {"created_at": ""} == {
        "id": ada_id,
        "email": None,
        "name": None,
        "created_at": "",
    }
