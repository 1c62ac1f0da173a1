"""Random sequences of calls by three users, compared with a dictionary."""

import itertools
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import Person, token

Task = dict[str, Any]
_examples = itertools.count(1)

# Unicode's White_Space; Python's strip() takes four control characters more.
WHITE_SPACE = "".join(map(chr, (*range(9, 14), 32, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B))))
WHITE_SPACE += "\u2028\u2029\u202f\u205f\u3000"

TITLES = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=205)
MEMBERS = st.fixed_dictionaries(
    {},
    optional={
        "title": TITLES,
        "description": st.none() | st.text("aé\0", max_size=3) | st.just("x" * 1001),
        "completed": st.booleans(),
        "priority": st.sampled_from(["low", "medium", "high", "urgent"]),
        "due_date": st.none() | st.sampled_from(["2026-12-01T17:00:00Z", "2026-12-01T17:00:00"]),
    },
)
WHO = st.integers(0, 2)
WHICH = st.integers(0, 5)
STATUS = st.sampled_from(["all", "pending", "completed"])
CALLS = st.one_of(
    st.tuples(st.just("create"), WHO, MEMBERS),
    st.tuples(st.just("list"), WHO, STATUS),
    st.tuples(st.just("get"), WHO, WHICH),
    st.tuples(st.just("put"), WHO, WHICH, MEMBERS),
    st.tuples(st.just("patch"), WHO, WHICH, MEMBERS),
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
        self.ids: list[int] = []

    def id(self, which: int) -> int:
        """Pick one of the ids that exist or existed, whoever's they are."""
        return self.ids[which % len(self.ids)] if self.ids else 1

    def matching(self, who: int, status: str) -> list[Task]:
        """List a user's tasks of a status, oldest first."""
        wanted = {"all": (True, False), "pending": (False,), "completed": (True,)}[status]
        return [task for task in self.tasks[who].values() if task["completed"] in wanted]


def valid(members: Task) -> bool:
    """Say whether members follow the rules."""
    return (
        0 < len(members.get("title", "x").strip(WHITE_SPACE)) <= 200
        and len(members.get("description") or "") <= 1000
        and "\0" not in (members.get("description") or "")
        and members.get("priority") != "urgent"
        and (members.get("due_date") or "Z").endswith("Z")
    )


def stored(members: Task) -> Task:
    """Write members as the service keeps them."""
    return members | {
        name: text.strip(WHITE_SPACE) for name, text in members.items() if name == "title"
    }


async def call(model: Model, people: list[Person], name: str, who: int, *arguments: Any) -> None:
    """Make one call, compare its answer with the model's, and change the model."""
    person, mine = people[who], model.tasks[who]
    match name, arguments:
        case "create", (members,):
            response = await person.post("/api/tasks", json=members)
            if "title" not in members or not valid(members):
                assert response.status_code == 422
                return
            task = response.json()
            defaults = {
                "description": None,
                "completed": False,
                "priority": "medium",
                "due_date": None,
            }
            assert {**task, **defaults, **stored(members)} == task
            mine[task["id"]] = task
            model.ids.append(task["id"])
        case "list", (status,):
            response = await person.get(f"/api/tasks?status={status}")
            assert response.json() == model.matching(who, status)[::-1]
        case "complete_all", (status, completed):
            response = await person.patch(
                f"/api/tasks?status={status}", json={"completed": completed}
            )
            changed = [
                task for task in model.matching(who, status) if task["completed"] != completed
            ]
            assert response.json() == {"updated": len(changed)}
            for task in changed:
                mine[task["id"]] = (await person.get(f"/api/tasks/{task['id']}")).json()
                assert mine[task["id"]]["completed"] is completed
        case "delete_all", (status,):
            response = await person.delete(f"/api/tasks?status={status}")
            gone = model.matching(who, status)
            assert response.json() == {"deleted": len(gone)}
            for task in gone:
                del mine[task["id"]]
        case _, (which, *rest):
            await call_one(person, mine, name, model.id(which), *rest)


async def call_one(
    person: Person, mine: dict[int, Task], name: str, task_id: int, *rest: Any
) -> None:
    """Make a call about one task."""
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
    if not valid(change) or (name == "put" and "title" not in change):
        assert response.status_code == 422
    elif task_id not in mine:
        assert response.json()["code"] == "task_not_found"
    elif name == "delete":
        assert response.status_code == 204
        del mine[task_id]
    else:
        task = response.json()
        assert task == {
            **mine[task_id],
            **stored(change),
            "updated_at": task["updated_at"],
            "rev": task["rev"],
        }
        mine[task_id] = task


@settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(calls=st.lists(CALLS, min_size=5, max_size=30))
async def test_the_service_is_a_dictionary(
    connect: Callable[[str | None], Person], calls: list[tuple[Any, ...]]
) -> None:
    example = next(_examples)
    people = [connect(token(sub=f"model-{example}-{number}")) for number in range(3)]
    model = Model()

    for name, who, *arguments in calls:
        await call(model, people, name, who, *arguments)

    for who, person in enumerate(people):
        expected = list(model.tasks[who].values())[::-1]
        assert (await person.get("/api/tasks")).json() == expected
