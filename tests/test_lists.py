"""Which tasks a list holds, in which order, and how its pages follow each other."""

import asyncio
import itertools
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, get_args
from urllib.parse import parse_qs, urlencode, urlsplit

import asyncpg
import httpx
import pytest

import db
import main
import queries
from folding import search_key
from models import Priority
from schemas import SORTS, Sort
from security import Cursors
from settings import Settings
from tests.conftest import SECRET, Person, token
from tests.test_campaign import VALUES, explain, nodes, rows_read
from tests.test_hostile import assert_helpful
from tests.test_tags import create_tag
from tests.test_tasks import create, list_ids

Task = dict[str, Any]

TASKS: list[Task] = [
    {"title": "Milk", "priority": "low", "tags": ["home", "shop"]},
    {"title": "apples", "priority": "high", "tags": ["shop"], "due_date": "2026-12-01T10:00:00Z"},
    {"title": "Bread", "description": "100% RYE, no_yeast", "due_date": "2026-12-03T10:00:00Z"},
    {"title": "ÉCOLE", "completed": True, "tags": ["home"], "due_date": "2026-12-02T10:00:00Z"},
    {"title": "a\\b", "completed": True, "priority": "high", "description": "milk"},
]


async def fill(person: Person) -> None:
    """Create the tasks above, in this order."""
    for task in TASKS:
        await create(person, **task)


async def titles(person: Person, **query: str | list[str]) -> list[str]:
    """List the titles that a query finds."""
    response = await person.get("/api/tasks", params=query)
    assert response.status_code == 200, response.text
    return [task["title"] for task in response.json()]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"priority": "low"}, ["Milk"]),
        ({"priority": "medium"}, ["ÉCOLE", "Bread"]),
        ({"priority": "high"}, ["a\\b", "apples"]),
        ({"status": "completed", "priority": "high"}, ["a\\b"]),
        ({"tag": "home"}, ["ÉCOLE", "Milk"]),
        ({"tag": " HOME "}, ["ÉCOLE", "Milk"]),
        ({"tag": ["home", "shop"]}, ["Milk"]),
        ({"tag": ["home", "Home"]}, ["ÉCOLE", "Milk"]),
        ({"tag": ["home", "nowhere"]}, []),
        ({"tag": "nowhere"}, []),
        ({"tag": "home", "status": "pending"}, ["Milk"]),
        ({"priority": "LOW", "status": "Pending"}, ["Milk"]),
        ({"search": "milk"}, ["a\\b", "Milk"]),
        ({"search": "MILK"}, ["a\\b", "Milk"]),
        ({"search": "école"}, ["ÉCOLE"]),
        ({"search": "il"}, ["a\\b", "Milk"]),
        ({"search": "k"}, ["a\\b", "Milk"]),
        ({"search": "%"}, ["Bread"]),
        ({"search": "100%"}, ["Bread"]),
        ({"search": "1%r"}, []),
        ({"search": "_"}, ["Bread"]),
        ({"search": "M_lk"}, []),
        ({"search": "\\"}, ["a\\b"]),
        ({"search": "a\\b"}, ["a\\b"]),
        ({"search": "\\%"}, []),
        ({"search": " "}, ["a\\b", "ÉCOLE", "Bread", "apples", "Milk"]),
        ({"search": "rye,  No_Yeast"}, ["Bread"]),
        ({"search": "ecole"}, ["ÉCOLE"]),
        ({"search": "e\u0301cole"}, ["ÉCOLE"]),
        ({"search": "ｍｉｌｋ"}, ["a\\b", "Milk"]),
        ({"search": "'; DROP TABLE tasks; --"}, []),
        ({"search": "x" * 200}, []),
        ({"due_after": "2026-12-01T10:00:00Z"}, ["ÉCOLE", "Bread", "apples"]),
        ({"due_after": "2026-12-01T11:00:00.000001+01:00"}, ["ÉCOLE", "Bread"]),
        ({"due_after": "2026-12-01"}, ["ÉCOLE", "Bread", "apples"]),
        ({"due_after": "2026-12-02"}, ["ÉCOLE", "Bread"]),
        ({"due_before": "2026-12-02"}, ["apples"]),
        ({"due_after": "2026-12-02", "due_before": "2026-12-03"}, ["ÉCOLE"]),
        ({"due_before": "2026-12-03T10:00:00Z"}, ["ÉCOLE", "apples"]),
        ({"due_before": "9999-12-31T00:00:00Z"}, ["ÉCOLE", "Bread", "apples"]),
        ({"due_after": "0001-01-02T00:00:00Z"}, ["ÉCOLE", "Bread", "apples"]),
        (
            {"due_after": "2026-12-01T10:00:00Z", "due_before": "2026-12-03T10:00:00Z"},
            ["ÉCOLE", "apples"],
        ),
        ({"due_after": "2026-12-03T10:00:00Z", "due_before": "2026-12-01T10:00:00Z"}, []),
        ({"due_before": "2026-12-03T10:00:00Z", "sort": "due_date"}, ["apples", "ÉCOLE"]),
        ({"due_after": "2026-12-01T11:00:00Z", "sort": "due_date"}, ["ÉCOLE", "Bread"]),
        ({"due_after": "2026-12-01T11:00:00Z", "sort": "-due_date"}, ["Bread", "ÉCOLE"]),
        ({"sort": "created"}, ["Milk", "apples", "Bread", "ÉCOLE", "a\\b"]),
        ({"sort": "-created"}, ["a\\b", "ÉCOLE", "Bread", "apples", "Milk"]),
        ({"sort": "title"}, ["a\\b", "apples", "Bread", "ÉCOLE", "Milk"]),
        ({"sort": "-title"}, ["Milk", "ÉCOLE", "Bread", "apples", "a\\b"]),
        ({"sort": "due_date"}, ["apples", "ÉCOLE", "Bread", "Milk", "a\\b"]),
        ({"sort": "-due_date"}, ["Bread", "ÉCOLE", "apples", "a\\b", "Milk"]),
        ({"sort": "priority"}, ["Milk", "Bread", "ÉCOLE", "apples", "a\\b"]),
        ({"sort": "-priority"}, ["a\\b", "apples", "ÉCOLE", "Bread", "Milk"]),
        (
            {"search": "m", "tag": "shop", "priority": "low", "status": "pending", "sort": "title"},
            ["Milk"],
        ),
    ],
)
async def test_a_query_finds(
    ada: Person, bob: Person, query: dict[str, str | list[str]], found: list[str]
) -> None:
    await fill(ada)
    await fill(bob)

    assert await titles(ada, **query) == found


async def test_a_task_that_was_changed_is_the_last_updated(ada: Person) -> None:
    await fill(ada)
    first = (await ada.get("/api/tasks?sort=updated")).json()[0]

    await ada.patch(f"/api/tasks/{first['id']}", json={"completed": True})

    assert (await titles(ada, sort="updated"))[-1] == first["title"]
    assert (await titles(ada, sort="-updated"))[0] == first["title"]


@pytest.mark.parametrize("sort", SORTS)
async def test_equal_tasks_go_by_id(ada: Person, database: db.Database, sort: str) -> None:
    ids = [(await create(ada))["id"] for _ in range(4)]
    other = await asyncpg.connect(database.url)
    await other.execute(
        "UPDATE tasks SET created_at = now(), updated_at = now() WHERE id = ANY($1)", ids
    )
    await other.close()

    listed = await list_ids(ada, f"?sort={sort}")

    assert listed == (ids[::-1] if sort.startswith("-") else ids)


def next_page(response: httpx.Response) -> str | None:
    """Read the path of the next page."""
    link = response.headers.get("Link")
    if link is None:
        return None
    match = re.fullmatch(r'<([^<>" ]+)>; rel="next"', link)
    assert match, link
    return match[1]


async def next_of(person: Person, path: str) -> str:
    """Read the path of the page after one that is not the last."""
    path_of_next = next_page(await person.get(path))
    assert path_of_next
    return path_of_next


async def test_link_leads_from_page_to_page_until_there_is_no_more(ada: Person) -> None:
    ids = [(await create(ada))["id"] for _ in range(6)]

    pages, path = [], "/api/tasks?sort=created&limit=2&status=pending"
    while path:
        response = await ada.get(path)
        pages.append([task["id"] for task in response.json()])
        path = next_page(response) or ""

    assert pages == [ids[:2], ids[2:4], ids[4:]]


@pytest.mark.parametrize("path", ["/api/tasks", "/api/tasks/", "/api/{user_id}/tasks"])
async def test_link_keeps_the_path_and_the_query_as_they_were_sent(
    ada: Person, ada_id: str, path: str
) -> None:
    for _ in range(3):
        await create(ada, title="50% & more", tags=["a b", "c"])
    query = {"search": "50% &", "tag": ["A B", "c"], "limit": "1", "sort": "title"}
    path = path.format(user_id=ada_id)

    second = await next_of(ada, f"{path}?{urlencode(query, doseq=True)}")
    third = await next_of(ada, second)

    for link in (second, third):
        given = parse_qs(urlsplit(link).query)
        assert urlsplit(link).path == path
        assert len(given.pop("cursor")) == 1
        assert given == {
            "search": ["50% &"],
            "tag": ["A B", "c"],
            "limit": ["1"],
            "sort": ["title"],
        }
    assert next_page(await ada.get(third)) is None


async def test_a_cursor_is_good_for_another_limit(ada: Person) -> None:
    ids = [(await create(ada))["id"] for _ in range(5)]
    path = await next_of(ada, "/api/tasks?sort=created&limit=1")

    assert await list_ids(ada, "?" + urlsplit(path).query.replace("limit=1", "limit=3")) == ids[1:4]
    assert await list_ids(ada, "?" + urlsplit(path).query.replace("limit=1&", "")) == ids[1:]


@pytest.mark.parametrize(
    "query",
    [
        *("", "sort=-created", "sort=title", "sort=created&status=all&priority=low"),
        *("sort=created&status=pending", "sort=created&search=m", "sort=created&tag=home"),
        "sort=created&due_after=2026-12-01T00:00:00Z",
        "sort=created&due_before=2026-12-01T00:00:00Z",
    ],
)
async def test_a_cursor_is_good_for_its_own_query_only(ada: Person, query: str) -> None:
    await fill(ada)
    path = await next_of(ada, "/api/tasks?sort=created&limit=1")
    cursor = parse_qs(urlsplit(path).query)["cursor"][0]

    response = await ada.get(f"/api/tasks?{query}&cursor={cursor}")

    assert_helpful(response, 422)
    assert [error["parameter"] for error in response.json()["errors"]] == ["cursor"]


async def test_a_cursor_is_good_for_its_own_user_only(ada: Person, bob: Person) -> None:
    await fill(ada)
    await fill(bob)
    path = await next_of(ada, "/api/tasks?limit=1")

    response = await bob.get(path)

    assert_helpful(response, 422)
    assert response.json()["errors"][0]["parameter"] == "cursor"
    assert (await ada.get(path)).status_code == 200


async def test_a_cursor_that_was_changed_anywhere_is_refused(ada: Person) -> None:
    await fill(ada)
    path = await next_of(ada, "/api/tasks?limit=1")
    path, _, cursor = path.partition("cursor=")
    changed = {
        *(cursor[:place] + "A" + cursor[place + 1 :] for place in range(len(cursor))),
        *(cursor[:place] + "B" + cursor[place + 1 :] for place in range(len(cursor))),
        *(cursor[:place] for place in range(len(cursor))),
        *(cursor + "A", cursor + "=", "A" + cursor, cursor + "%20", cursor + "!", cursor * 2),
        cursor.swapcase(),
    } - {cursor, ""}

    for forged in changed:
        response = await ada.get(f"{path}cursor={forged}")

        assert_helpful(response, 422)
        assert response.json()["errors"][0]["parameter"] == "cursor"


def test_a_cursor_of_another_secret_is_refused_and_of_this_one_read() -> None:
    mine, other = Cursors(SECRET), Cursors(SECRET[::-1])

    assert mine.place(mine.cursor(b"[1,2]", b"ada"), b"ada") == b"[1,2]"
    assert mine.cursor(b"[1,2]", b"ada") != other.cursor(b"[1,2]", b"ada")


async def insert_tasks(database: db.Database, user_id: str, count: int) -> None:
    """Insert tasks of few different titles, moments and priorities, some without a due date."""
    other = await asyncpg.connect(database.url)
    start = datetime(2026, 11, 20, tzinfo=UTC)
    priorities = get_args(Priority.__value__)
    titles = [
        "Task É"[: 1 + number % 6].swapcase() if number % 2 else f"task {number % 40}"
        for number in range(240)
    ]
    await other.execute("INSERT INTO users (id) VALUES ($1) ON CONFLICT DO NOTHING", user_id)
    await other.copy_records_to_table(
        "tasks",
        columns=[
            *("user_id", "title", "title_key", "priority", "due_date", "created_at", "updated_at")
        ],
        records=[
            (
                user_id,
                *(title := titles[number % 240], search_key(title)),
                priorities[number % 3],
                None if number % 5 == 0 else start + timedelta(hours=number * 7 % 90),
                start + timedelta(seconds=number * 11 % 300),
                start + timedelta(microseconds=number * 13 % 200),
            )
            for number in range(count)
        ],
    )
    await other.close()


def sort_key(sort: str) -> Callable[[Task], tuple[Any, ...]]:
    """Give what tasks are sorted by, in ascending order."""

    def key(task: Task) -> tuple[Any, ...]:
        member = {
            "created": datetime.fromisoformat(task["created_at"]),
            "updated": datetime.fromisoformat(task["updated_at"]),
            "title": search_key(task["title"]),
            "priority": get_args(Priority.__value__).index(task["priority"]),
            "due_date": ((task["due_date"] is None) != (sort[0] == "-"), task["due_date"] or ""),
        }[sort.removeprefix("-")]
        return member, task["id"]

    return key


@pytest.mark.parametrize("sort", SORTS)
async def test_no_task_is_skipped_or_repeated_while_others_come_and_go(
    ada: Person, database: db.Database, ada_id: str, sort: str
) -> None:
    await insert_tasks(database, ada_id, 1000)
    before = await list_ids(ada, "?sort=created") + await list_ids(ada, "?sort=-created")
    doomed = set(before[::10])
    seen: list[Task] = []
    numbers = itertools.count()

    async def write() -> None:
        number = next(numbers)
        due = None if number % 2 else "2026-11-21T00:00:00Z"
        task = await create(
            ada,
            title=f"task {number}",
            due_date=due,
            priority=get_args(Priority.__value__)[number % 3],
        )
        if number % 2:
            await ada.delete(f"/api/tasks/{task['id']}")
        for _ in range(2):
            await ada.delete(f"/api/tasks/{doomed.pop()}")

    stay = set(before) - doomed
    path: str | None = f"/api/tasks?sort={sort}&limit=70"
    while path:
        response, *_ = await asyncio.gather(ada.get(path), write(), write())
        seen += response.json()
        path = next_page(response)

    ids = [task["id"] for task in seen]
    assert len(before) == 1000
    assert len(ids) == len(set(ids))
    assert stay <= set(ids)
    assert seen == sorted(seen, key=sort_key(sort), reverse=sort.startswith("-"))


async def test_titles_whose_keys_are_long_have_pages(ada: Person) -> None:
    tasks = [await create(ada, title="\ufdfa" * 200) for _ in range(3)]  # 18 letters each

    path: str | None = "/api/tasks?sort=title&limit=1"
    found = []
    while path:
        response = await ada.get(path)
        found += response.json()
        path = next_page(response)

    assert found == tasks


async def test_pages_of_a_filter_follow_each_other(
    ada: Person, database: db.Database, ada_id: str
) -> None:
    await insert_tasks(database, ada_id, 60)
    tag = await create_tag(ada)
    ids = await list_ids(ada, "?sort=created&priority=high&search=task")
    for task_id in ids[::2]:
        await ada.put(f"/api/tasks/{task_id}/tags/{tag['id']}")
    found = []
    query = (
        "sort=due_date&priority=high&tag=home&search=task&due_after=2026-11-20T00:00:00Z&limit=1"
    )

    path: str | None = f"/api/tasks?{query}"
    while path:
        response = await ada.get(path)
        found += response.json()
        path = next_page(response)

    assert found == (await ada.get(f"/api/tasks?{query.removesuffix('&limit=1')}")).json()
    assert found == sorted(found, key=sort_key("due_date"))
    assert all(task["due_date"] and task["tags"] == [tag] for task in found)
    assert len(found) > 5


async def test_a_link_never_leads_to_another_host(ada: Person) -> None:
    await fill(ada)

    first = await ada.get("http://test//api/tasks?limit=1")

    assert (next_page(first) or "").startswith("/api/tasks?limit=1&cursor=")


async def test_days_have_pages_whatever_the_databases_time_zone(configured: Settings) -> None:
    url = str(configured.database_url)
    url += f"{'&' if '?' in url else '?'}options=-c%20timezone%3DAsia/Tokyo"
    app = main.create_app(configured.model_copy(update={"database_url": url}))
    headers = {"Authorization": f"Bearer {token(sub='in-tokyo')}"}
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://test", headers=headers
        ) as person,
    ):
        for day in ("2026-12-02", "2026-12-01T20:00:00Z", "2026-12-03"):
            await create(person, due_date=day)
        path: str | None = "/api/tasks?sort=due_date&limit=1"
        found = []
        while path:
            response = await person.get(path)
            found += [task["due_date"] for task in response.json()]
            path = next_page(response)

    assert found == ["2026-12-01T20:00:00Z", "2026-12-02", "2026-12-03"]


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
async def test_a_list_by_a_common_tag_looks_each_task_up_once_and_in_order(
    ada: Person, ada_id: str, database: db.Database, mode: str
) -> None:
    """Even though the planner does not expect anybody to have so many tasks."""
    await insert_tasks(database, ada_id, 2000)
    tag = await create_tag(ada)
    connection = await asyncpg.connect(database.url)
    await connection.execute(
        "INSERT INTO task_tags SELECT user_id, id, $2 FROM tasks WHERE user_id = $1",
        *(ada_id, tag["id"]),
    )
    sorts: list[Sort] = ["created", "title"]
    for sort in sorts:
        shape = queries.Shape(
            status="all", tagged=True, searched=False, due=False, sort=sort, continued=False
        )
        values = VALUES | {"owner": ada_id, "tag_keys": [tag["name"]], "limit": 1}

        _, plan = await explain(connection, queries.list_tasks(shape), values, mode)

        assert rows_read(plan) == 2000
        loops = [node for node in nodes(plan) if node["Node Type"] == "Nested Loop"]
        *_, found_in = [
            loop["Plans"][0]["Node Type"]
            for loop in loops
            if "tasks_pkey" in {node.get("Index Name") for node in nodes(loop)}
        ]
        assert found_in == "CTE Scan", plan
    await connection.close()
