"""Random sequences of calls by three users, compared with a dictionary."""

import itertools
import re
from collections.abc import Callable
from typing import Any, get_args
from urllib.parse import urlencode

from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from folding import is_visible, search_key, tag_key
from models import Priority
from schemas import SORTS
from tests.conftest import Person, token
from tests.test_lists import next_page, sort_key

Task = dict[str, Any]
Tag = dict[str, Any]
_examples = itertools.count(1)

# Unicode's White_Space; Python's strip() takes four control characters more.
WHITE_SPACE = "".join(map(chr, (*range(9, 14), 32, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B))))
CONTROLS = "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"
WHITE_SPACE += "\u2028\u2029\u202f\u205f\u3000"

# In the order of the alphabet, too.
MOMENTS = ["2026-12-01T17:00:00Z", "2026-12-02", "2026-12-02T17:00:00Z", "2026-12-03"]
NAIVE = "2026-12-01T17:00:00"
NAMES = ["home", "HOME", " Home ", "work"]
STATUS = st.sampled_from(["all", "pending", "completed"])

TITLES = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=205)
MEMBERS = st.fixed_dictionaries(
    {},
    optional={
        "title": TITLES,
        "description": st.none() | st.text("aé\0", max_size=3) | st.just("x" * 1001),
        "completed": st.booleans(),
        "priority": st.sampled_from(["low", "medium", "high", "urgent"]),
        "due_date": st.none() | st.sampled_from([*MOMENTS, NAIVE, ""]),
        "tags": st.lists(st.sampled_from([*NAMES, ""]), max_size=3),
    },
)
GOOD = st.fixed_dictionaries(
    {"title": st.text("aAéÉ%_\\", min_size=1, max_size=3)},
    optional={
        "description": st.text("aÉ%", max_size=2),
        "completed": st.booleans(),
        "priority": st.sampled_from(get_args(Priority.__value__)),
        "due_date": st.none() | st.sampled_from(MOMENTS),
        "tags": st.lists(st.sampled_from(NAMES), max_size=3),
    },
)
"""Members that follow the rules, so that lists have something to hold."""

QUERIES = st.fixed_dictionaries(
    {},
    optional={
        "status": STATUS,
        "priority": st.sampled_from(get_args(Priority.__value__)),
        "tag": st.lists(st.sampled_from(NAMES), min_size=1, max_size=2),
        "search": st.text("aÉ%_\\", min_size=1, max_size=2),
        "due_after": st.sampled_from(MOMENTS),
        "due_before": st.sampled_from(MOMENTS),
        "sort": st.sampled_from(SORTS),
        "limit": st.integers(1, 3),
    },
)
WHO = st.sampled_from([0, 0, 0, 1, 2])
WHICH = st.integers(0, 5)
CALLS = st.one_of(
    st.tuples(st.just("list"), WHO, QUERIES),
    st.tuples(st.just("create"), WHO, MEMBERS),
    st.tuples(st.just("make_tag"), WHO, st.sampled_from(NAMES)),
    st.tuples(st.just("rename_tag"), WHO, WHICH, st.sampled_from(NAMES)),
    st.tuples(st.just("delete_tag"), WHO, WHICH),
    st.tuples(st.just("add_tag"), WHO, WHICH, WHICH),
    st.tuples(st.just("remove_tag"), WHO, WHICH, WHICH),
    st.tuples(st.just("get"), WHO, WHICH),
    st.tuples(st.just("put"), WHO, WHICH, MEMBERS),
    st.tuples(st.just("patch"), WHO, WHICH, MEMBERS),
    st.tuples(st.just("patch"), WHO, WHICH, GOOD),
    st.tuples(st.just("toggle"), WHO, WHICH),
    st.tuples(st.just("set"), WHO, WHICH, st.booleans()),
    st.tuples(st.just("delete"), WHO, WHICH),
    st.tuples(st.just("complete_all"), WHO, STATUS, st.booleans()),
    st.tuples(st.just("delete_all"), WHO, STATUS),
)


class Model:
    """What the service should hold: each user's tasks by id, oldest first."""

    def __init__(self) -> None:
        self.tasks: list[dict[int, Task]] = [{}, {}, {}]
        self.tags: list[dict[int, Tag]] = [{}, {}, {}]
        self.ids: list[int] = []
        self.tag_ids: list[int] = []

    def id(self, which: int) -> int:
        """Pick one of the ids that exist or existed, whoever's they are."""
        return self.ids[which % len(self.ids)] if self.ids else 1

    def tag_id(self, which: int) -> int:
        """Pick one of the tags' ids in the same way."""
        return self.tag_ids[which % len(self.tag_ids)] if self.tag_ids else 1

    def learn(self, who: int, tags: list[Tag]) -> None:
        """Take note of tags that a user has now."""
        self.tags[who] |= {tag["id"]: tag for tag in tags}
        self.tag_ids += [tag["id"] for tag in tags if tag["id"] not in self.tag_ids]

    def show_tags(self, who: int) -> None:
        """Let a user's tasks have their tags as they are now."""
        for task in self.tasks[who].values():
            task["tags"] = [
                self.tags[who][tag["id"]] for tag in task["tags"] if tag["id"] in self.tags[who]
            ]
            task["tags"].sort(key=by_name)

    def found(self, who: int, query: dict[str, Any]) -> list[Task]:
        """List the tasks that a query finds, in its order."""
        sort = query.get("sort", "-created")
        tasks = [
            task
            for task in self.matching(who, query.get("status", "all"))
            if query.get("priority", task["priority"]) == task["priority"]
            and {tag_key(name.strip()) for name in query.get("tag", [])} <= set(keys(task["tags"]))
            and any(
                search_key(query.get("search", "")) in search_key(text)
                for text in (task["title"], task["description"] or "")
            )
            and ("due_after" not in query or (task["due_date"] or "") >= query["due_after"])
            and ("due_before" not in query or (task["due_date"] or "Z") < query["due_before"])
        ]
        return sorted(tasks, key=sort_key(sort), reverse=sort.startswith("-"))

    def matching(self, who: int, status: str) -> list[Task]:
        """List a user's tasks of a status, oldest first."""
        wanted = {"all": (True, False), "pending": (False,), "completed": (True,)}[status]
        return [task for task in self.tasks[who].values() if task["completed"] in wanted]


def plain(task: Task) -> Task:
    """Leave out the revision, which other tests look at."""
    return {name: value for name, value in task.items() if name != "rev"}


def valid(members: Task) -> bool:
    """Say whether members follow the rules."""
    return (
        len(members.get("title", "x").strip(WHITE_SPACE)) <= 200
        and is_visible(members.get("title", "x"))
        and not re.search(CONTROLS, members.get("title", "").strip(WHITE_SPACE))
        and len(members.get("description") or "") <= 1000
        and "\0" not in (members.get("description") or "")
        and members.get("priority") != "urgent"
        and members.get("due_date") != NAIVE
        and "" not in members.get("tags", [])
    )


def stored(members: Task) -> Task:
    """Write members as the service keeps them, the tags apart."""
    return {
        name: value.strip(WHITE_SPACE)
        if name == "title"
        else value or None
        if name == "due_date"
        else value
        for name, value in members.items()
        if name != "tags"
    }


def by_name(tag: Tag) -> str:
    """Give what tags are sorted by."""
    return tag_key(tag["name"])


def keys(tags: list[Tag]) -> list[str]:
    """Give what tags are compared by."""
    return [by_name(tag) for tag in tags]


def check_tags(model: Model, who: int, task: Task, change: Task, before: list[Tag]) -> None:
    """Compare a task's tags with what was sent, and those that were known with what they were."""
    if "tags" not in change:
        assert task["tags"] == before
        return
    assert keys(task["tags"]) == sorted({tag_key(name.strip()) for name in change["tags"]})
    known = {by_name(tag): tag for tag in model.tags[who].values()}
    for tag in task["tags"]:
        assert known.get(by_name(tag), tag) == tag
    model.learn(who, task["tags"])


async def call(model: Model, people: list[Person], name: str, who: int, *arguments: Any) -> None:
    """Make one call, compare its answer with the model's, and change the model."""
    person, mine = people[who], model.tasks[who]
    match name, arguments:
        case "create", (members,):
            response = await person.post("/api/tasks", json=members)
            if "title" not in members or not valid(members):
                assert response.status_code == 422
                return
            task = plain(response.json())
            defaults = {
                "description": None,
                "completed": False,
                "priority": "medium",
                "due_date": None,
            }
            assert {**task, **defaults, **stored(members)} == task
            check_tags(model, who, task, {"tags": [], **members}, [])
            mine[task["id"]] = task
            model.ids.append(task["id"])
        case "list", (query,):
            assert await pages(person, query) == model.found(who, query)
        case "complete_all" | "delete_all", (status, *rest):
            await call_bulk(model, person, who, status, *rest)
        case "make_tag" | "rename_tag" | "delete_tag", _:
            await call_tag(model, person, name, who, *arguments)
        case "add_tag" | "remove_tag", (which, which_tag):
            method = "PUT" if name == "add_tag" else "DELETE"
            await call_link(model, person, method, who, model.id(which), model.tag_id(which_tag))
        case _, (which, *rest):
            await call_one(model, person, name, who, model.id(which), *rest)


async def call_bulk(
    model: Model, person: Person, who: int, status: str, completed: bool | None = None
) -> None:
    """Set many tasks done or not done, or delete them."""
    mine, path = model.tasks[who], f"/api/tasks?status={status}"
    meant = model.matching(who, status)
    if completed is None:
        response = await person.delete(path)
        assert response.json() == {"deleted": len(meant)}
        for task in meant:
            del mine[task["id"]]
        return
    response = await person.patch(path, json={"completed": completed})
    changed = [task for task in meant if task["completed"] != completed]
    assert response.json() == {"updated": len(changed)}
    for task in changed:
        mine[task["id"]] = plain((await person.get(f"/api/tasks/{task['id']}")).json())
        assert mine[task["id"]]["completed"] is completed


async def pages(person: Person, query: dict[str, Any]) -> list[Task]:
    """Read a list to its end, page by page."""
    path, tasks = f"/api/tasks?{urlencode(query, doseq=True)}", list[Task]()
    while path:
        response = await person.get(path)
        tasks += map(plain, response.json())
        assert len(response.json()) <= query.get("limit", 500)
        path = next_page(response) or ""
    return tasks


async def call_tag(model: Model, person: Person, name: str, who: int, *arguments: Any) -> None:
    """Make a call about one tag."""
    mine, tag_id = model.tags[who], 0
    match name, arguments:
        case "make_tag", (tag_name,):
            response = await person.post("/api/tags", json={"name": tag_name})
        case "rename_tag", (which, tag_name):
            tag_id = model.tag_id(which)
            response = await person.patch(f"/api/tags/{tag_id}", json={"name": tag_name})
        case _, (which,):
            tag_id, tag_name = model.tag_id(which), None
            response = await person.delete(f"/api/tags/{tag_id}")
    if tag_id and tag_id not in mine:
        assert response.json()["code"] == "tag_not_found"
    elif tag_name is None:
        del mine[tag_id]
    elif tag_key(tag_name.strip()) in keys([tag for tag in mine.values() if tag["id"] != tag_id]):
        assert response.json()["code"] == "tag_exists"
    else:
        tag = response.json()
        assert tag == {"id": tag_id or tag["id"], "name": tag_name.strip(), "color": None}
        model.learn(who, [tag])
    model.show_tags(who)


async def call_link(
    model: Model, person: Person, method: str, who: int, task_id: int, tag_id: int
) -> None:
    """Make a call about one tag on one task."""
    response = await person.request(method, f"/api/tasks/{task_id}/tags/{tag_id}")
    if task_id not in model.tasks[who]:
        assert response.json()["code"] == "task_not_found"
    elif tag_id not in model.tags[who]:
        assert response.json()["code"] == "tag_not_found"
    else:
        task, before = plain(response.json()), model.tasks[who][task_id]
        others = [tag for tag in before["tags"] if tag["id"] != tag_id]
        added = [model.tags[who][tag_id]] if method == "PUT" else []
        tags = sorted(others + added, key=by_name)
        assert task == {**before, "tags": tags, "updated_at": task["updated_at"]}
        assert (task["updated_at"] != before["updated_at"]) is (tags != before["tags"])
        model.tasks[who][task_id] = task


async def call_one(
    model: Model, person: Person, name: str, who: int, task_id: int, *rest: Any
) -> None:
    """Make a call about one task."""
    mine = model.tasks[who]
    path = f"/api/tasks/{task_id}"
    change: Task = {}
    match name, rest:
        case "get", _:
            response = await person.get(path)
        case "put" | "patch", (change,):
            response = await person.request(name.upper(), path, json=change)
        case "toggle", _:
            change = {"completed": not mine.get(task_id, {}).get("completed")}
            response = await person.patch(f"{path}/complete")
        case "set", (completed,):
            change = {"completed": completed}
            response = await person.patch(f"{path}/complete", json=change)
        case _:
            response = await person.delete(path)
    if not valid(change):
        assert response.status_code == 422
    elif task_id not in mine:
        assert response.json()["code"] == "task_not_found"
    elif name == "delete":
        assert response.status_code == 204
        del mine[task_id]
    else:
        task = plain(response.json())
        before = mine[task_id]
        same = {name: task[name] for name in ("tags", "updated_at")}
        assert task == {**before, **stored(change), **same}
        check_tags(model, who, task, change, before["tags"])
        mine[task_id] = task


@settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    tasks=st.lists(GOOD, min_size=4, max_size=8),
    calls=st.lists(CALLS, min_size=5, max_size=30),
    queries=st.lists(QUERIES, min_size=6, max_size=10),
)
async def test_the_service_is_a_dictionary(
    app: FastAPI,
    connect: Callable[[str | None], Person],
    tasks: list[Task],
    calls: list[tuple[Any, ...]],
    queries: list[dict[str, Any]],
) -> None:
    # The service stood still while Hypothesis was making this up, which may take seconds at first.
    await app.state.revocations.load()
    example = next(_examples)
    people = [connect(token(sub=f"model-{example}-{number}")) for number in range(3)]
    model = Model()

    creates = [("create", 0, task) for task in tasks]
    lists = [("list", 0, query) for query in queries]
    for name, who, *arguments in [*creates, *calls, *lists]:
        await call(model, people, name, who, *arguments)

    for who, person in enumerate(people):
        expected = list(model.tasks[who].values())[::-1]
        tags = sorted(model.tags[who].values(), key=by_name)
        assert list(map(plain, (await person.get("/api/tasks")).json())) == expected
        assert (await person.get("/api/tags")).json() == tags
