"""One integer per user: nothing is overwritten unseen, nothing that changed is missed."""

import asyncio
import contextlib
import itertools
import json
import random
import signal
import time
from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import httpx
import pytest
from fastapi import FastAPI

import db
import live
import queries
import signals
from revocations import Revocations
from security import Claims
from settings import Settings
from tests.conftest import Person, in_turn, one_connection, token
from tests.test_lists import insert_tasks
from tests.test_service import Service, service
from tests.test_tasks import create

Task = dict[str, Any]


async def revision(person: Person) -> int:
    """Return the user's revision."""
    response = await person.get("/api/tasks?limit=1")
    return int(response.headers["ETag"].removeprefix('W/"').removesuffix('"'))


async def changes(person: Person, since: int) -> dict[str, Any]:
    """Read one page of changes."""
    response = await person.get(f"/api/tasks/changes?since={since}")
    assert response.status_code == 200, response.text
    page: dict[str, Any] = response.json()
    return page


async def test_every_write_has_a_revision_of_its_own(ada: Person) -> None:
    assert await revision(ada) == 0
    task = await create(ada, tags=["home"])
    path = f"/api/tasks/{task['id']}"
    assert task["rev"] == await revision(ada) == 1

    for rev, (method, where, body) in enumerate(
        [
            ("PUT", path, {"title": "x"}),
            ("PATCH", path, {"tags": ["garden"]}),
            ("PATCH", f"{path}/complete", None),
            ("PATCH", f"{path}/complete", {"completed": False}),
            ("PATCH", "/api/tasks?status=pending", {"completed": True}),
        ],
        start=2,
    ):
        response = await ada.request(method, where, json=body)
        assert response.is_success
        seen = await ada.get(path)
        assert seen.json()["rev"] == await revision(ada) == rev
        assert seen.headers["ETag"] == f'"{rev}"'
        if "id" in response.json():
            assert response.headers["ETag"] == f'"{rev}"'

    await ada.delete(path)
    assert await revision(ada) == 7


async def test_a_write_that_changes_nothing_has_no_revision(ada: Person, bob: Person) -> None:
    task = await create(ada, completed=True)
    path = f"/api/tasks/{task['id']}"
    theirs = await create(bob)
    tag = (await ada.post("/api/tags", json={"name": "home"})).json()
    task = (await ada.put(f"{path}/tags/{tag['id']}")).json()
    before = await revision(ada)

    for method, where, body in [
        ("PATCH", path, {}),
        ("PATCH", path, {"title": ""}),
        ("PATCH", path, {"title": "Buy milk", "due_date": None}),
        ("PATCH", path, {"tags": ["HOME"]}),
        ("PUT", path, task),
        ("PATCH", f"{path}/complete", {"completed": True}),
        ("PATCH", f"/api/tasks/{theirs['id']}", {"title": "Mine"}),
        ("PATCH", f"/api/tasks/{theirs['id']}", {"tags": ["new"]}),
        ("PATCH", f"/api/tasks/{theirs['id']}/complete", None),
        ("DELETE", f"/api/tasks/{theirs['id']}", None),
        ("PATCH", "/api/tasks?status=all", {"completed": True}),
        ("DELETE", "/api/tasks?status=pending", None),
        ("PUT", f"{path}/tags/{tag['id']}", None),
        ("PATCH", f"/api/tags/{tag['id']}", {}),
        ("PATCH", f"/api/tags/{tag['id']}", {"name": "home", "color": None}),
        ("PATCH", "/api/tags/9999999", {"name": "x"}),
        ("DELETE", "/api/tags/9999999", None),
    ]:
        for headers in ({}, {"If-Match": '"0"'}):
            response = await ada.request(method, where, json=body, headers=headers)
            assert response.status_code < 500

    assert await revision(ada) == before
    assert (await ada.get(path)).json() == task
    assert await revision(bob) == 1
    assert {tag["name"] for tag in (await ada.get("/api/tags")).json()} == {"home"}


async def test_an_answer_has_the_tags_of_its_revision(ada: Person) -> None:
    task = await create(ada, tags=["home"])
    path, found, answers = f"/api/tasks/{task['id']}", {}, list[Task]()
    tag = (await ada.post("/api/tags", json={"name": "work"})).json()
    done = asyncio.Event()

    async def write(method: str, path: str, *bodies: Task) -> None:
        for number in range(40):
            body = bodies[number % len(bodies)] | {"title": f"Task {number}"}
            response = await ada.request(method, path, json=body)
            assert response.is_success, response.text
            answers.append(response.json())

    async def change_tags() -> None:
        for number in itertools.count():
            method = "PUT" if number % 2 else "DELETE"
            await ada.request(method, f"{path}/tags/{tag['id']}")
            for tagged in task["tags"]:
                color = f"#{number:06x}"
                await ada.patch(f"/api/tags/{tagged['id']}", json={"color": color})
            for known in (await ada.get("/api/tasks")).json():
                found[known["id"], known["rev"]] = known
            if done.is_set():
                break

    changing = asyncio.create_task(change_tags())
    await asyncio.gather(
        write("PATCH", path, {}),
        write("PATCH", path, {"tags": ["home", "work"]}, {"tags": ["home"]}),
        write("POST", "/api/tasks", {"tags": ["home"]}),
    )
    done.set()
    await changing

    comparable = [answer for answer in answers if (answer["id"], answer["rev"]) in found]
    assert comparable
    assert comparable == [found[answer["id"], answer["rev"]] for answer in comparable]


async def test_a_tag_is_the_one_that_has_the_name_at_that_revision(
    ada: Person, ada_id: str, database: db.Database
) -> None:
    home = (await ada.post("/api/tags", json={"name": "home"})).json()
    paths = ["/api/tasks", f"/api/tasks/{(await create(ada))['id']}"]
    for method, path in zip(["POST", "PATCH"], paths, strict=True):
        renamed, tagged = await in_turn(
            database,
            ada_id,
            ada.patch(f"/api/tags/{home['id']}", json={"name": "work"}),
            ada.request(method, path, json={"title": "x", "tags": ["home"]}),
        )

        assert renamed.json() == {**home, "name": "work"}
        (again,) = tagged.json()["tags"]
        assert again["name"] == "home"
        assert again["id"] != home["id"]
        await ada.delete(f"/api/tags/{home['id']}")
        home = again


async def test_a_tag_that_is_deleted_meanwhile_is_made_again(
    ada: Person, ada_id: str, database: db.Database
) -> None:
    (tag,) = (await create(ada, tags=["home"]))["tags"]

    deleted, created = await in_turn(
        database,
        ada_id,
        ada.delete(f"/api/tags/{tag['id']}"),
        ada.post("/api/tasks", json={"title": "x", "tags": ["home"]}),
    )

    assert (deleted.status_code, created.status_code) == (204, 201)
    assert [each["name"] for each in created.json()["tags"]] == ["home"]


async def test_an_answer_never_has_the_tags_of_an_older_revision(
    ada: Person, ada_id: str, database: db.Database
) -> None:
    tag = (await ada.post("/api/tags", json={"name": "home"})).json()
    for _ in range(10):
        path = f"/api/tasks/{(await create(ada))['id']}"
        _, changed, _ = await in_turn(
            database,
            ada_id,
            ada.put(f"{path}/tags/{tag['id']}"),
            ada.patch(path, json={"title": "y"}),
            ada.delete(path),
        )
        assert changed.status_code == 404 or changed.json()["tags"] == [tag]


async def test_a_change_of_many_tasks_is_one_of_all_that_there_are_at_its_revision(
    ada: Person, ada_id: str, database: db.Database
) -> None:
    done = await create(ada, completed=True)
    path = f"/api/tasks/{done['id']}"

    made, all_done = await in_turn(
        database,
        ada_id,
        ada.post("/api/tasks", json={"title": "new"}),
        ada.patch("/api/tasks?status=pending", json={"completed": True}),
    )
    _, again = await in_turn(
        database,
        ada_id,
        ada.patch(path, json={"completed": False}),
        ada.patch("/api/tasks?status=pending", json={"completed": True}),
    )
    _, cleared = await in_turn(
        database,
        ada_id,
        ada.post("/api/tasks", json={"title": "newer", "completed": True}),
        ada.delete("/api/tasks?status=completed"),
    )

    assert made.json()["rev"] == 2
    assert all_done.json() == again.json() == {"updated": 1}
    assert cleared.json() == {"deleted": 3}
    assert (await ada.get("/api/tasks")).json() == []


async def test_moments_are_in_the_order_of_the_revisions(
    ada: Person, ada_id: str, database: db.Database
) -> None:
    path = f"/api/tasks/{(await create(ada))['id']}"

    answers = await in_turn(
        database,
        ada_id,
        ada.patch(path, json={"title": "Task"}),
        *(ada.post("/api/tasks", json={"title": f"New {n}"}) for n in range(2)),
    )

    moments = {task["rev"]: task["updated_at"] for task in (each.json() for each in answers)}
    in_order = [moments[rev] for rev in sorted(moments)]
    assert len(in_order) > 2
    assert in_order == sorted(set(in_order))
    new = [answer.json() for answer in answers[1:]]
    assert [task["created_at"] for task in new] == [task["updated_at"] for task in new]


async def test_a_moment_is_later_than_the_last_one_even_if_the_clock_goes_back(
    ada: Person, ada_id: str, database: db.Database
) -> None:
    await create(ada)
    other = await asyncpg.connect(database.url)
    ahead = await other.fetchval(
        "UPDATE users SET written_at = now() + interval '1 hour' WHERE id = $1"
        " RETURNING written_at",
        ada_id,
    )
    await other.close()

    tasks = [await create(ada), await create(ada, tags=["home"])]
    tasks.append((await ada.patch(f"/api/tasks/{tasks[0]['id']}/complete")).json())

    moments = [datetime.fromisoformat(task["updated_at"]) for task in tasks]
    assert [moment - ahead for moment in moments] == [timedelta(microseconds=n) for n in (1, 2, 3)]


async def test_changes_of_a_tag_are_changes_of_the_tasks_that_carry_it(ada: Person) -> None:
    tagged, other = await create(ada, tags=["home"]), await create(ada)
    (tag,) = tagged["tags"]
    since = await revision(ada)

    await ada.patch(f"/api/tags/{tag['id']}", json={"color": "#ffffff"})
    page = await changes(ada, since)
    await ada.delete(f"/api/tags/{tag['id']}")
    after = await changes(ada, page["rev"])

    assert [task["tags"][0]["color"] for task in page["changed"]] == ["#ffffff"]
    assert [(task["id"], task["tags"]) for task in after["changed"]] == [(tagged["id"], [])]
    assert after["rev"] == since + 2
    assert (await ada.get(f"/api/tasks/{other['id']}")).json() == other


async def test_an_unchanged_list_is_304(ada: Person, bob: Person) -> None:
    await create(ada)
    await create(ada)
    await create(bob)
    first = await ada.get("/api/tasks")
    etag = first.headers["ETag"]

    again = await ada.get("/api/tasks", headers={"If-None-Match": f'"x", {etag}'})
    assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", etag)
    assert first.headers["Cache-Control"] == again.headers["Cache-Control"] == "private, no-cache"
    varies = {name for each in first.headers.get_list("Vary") for name in each.split(", ")}
    assert varies == {"Authorization", "Origin"}
    any_of_them = await ada.get("/api/tasks?limit=1", headers={"If-None-Match": "*"})
    assert (any_of_them.status_code, any_of_them.headers.get("Link")) == (304, None)
    for stale in ('W/"0"', "rubbish", '"99999999999999999999"', "W/1"):
        assert (await ada.get("/api/tasks", headers={"If-None-Match": stale})).json()
    await create(ada)
    assert len((await ada.get("/api/tasks", headers={"If-None-Match": etag})).json()) == 3


async def test_an_empty_list_has_a_revision_too(ada: Person) -> None:
    first = await ada.get("/api/tasks")

    assert (first.json(), first.headers["ETag"]) == ([], 'W/"0"')
    again = await ada.get("/api/tasks", headers={"If-None-Match": 'W/"0"'})
    assert again.status_code == 304


async def test_an_unchanged_task_is_304(ada: Person) -> None:
    task = await create(ada)
    path = f"/api/tasks/{task['id']}"

    assert (await ada.get(path, headers={"If-None-Match": '"1"'})).status_code == 304
    assert (await ada.get(path, headers={"If-None-Match": 'W/"1"'})).status_code == 304
    assert (await ada.get(path, headers={"If-None-Match": "*"})).status_code == 304
    assert (await ada.get(path, headers={"If-None-Match": '"2"'})).json() == task


SUFFIXES = ["-gzip", "-br", "-zstd", "-deflate", ";gzip", "--gzip"]
FORGED = [
    *("-", "gzip", "-gzip-gzip", "-gzipped", "-GZIP", " -gzip", "-lzma", ";br", "--br", ".0", "-1"),
    *("-gzip;q=1", ",gzip", "+gzip", "_gzip", "-gzip\xff", "---gzip", ";gzip;gzip", "e0"),
]


@pytest.mark.parametrize("suffix", SUFFIXES)
async def test_what_compressing_proxies_append_makes_no_difference(
    ada: Person, suffix: str
) -> None:
    path = f"/api/tasks/{(await create(ada))['id']}"
    for sent in (f'"1{suffix}"', f'W/"1{suffix}"', f'"0{suffix}", "1{suffix}"'):
        for where in (path, "/api/tasks"):
            known = await ada.get(where, headers={"If-None-Match": sent})
            assert (known.status_code, known.content) == (304, b"")

    stale = await ada.delete(path, headers={"If-Match": f'"0{suffix}"'})
    gone = await ada.delete(path, headers={"If-Match": f'W/"1{suffix}"'})

    assert (stale.status_code, stale.headers["ETag"]) == (412, '"1"')
    assert gone.status_code == 204


@pytest.mark.parametrize("suffix", FORGED)
async def test_no_other_suffix_makes_a_revision(ada: Person, suffix: str) -> None:
    task = await create(ada)
    path, sent = f"/api/tasks/{task['id']}", f'"1{suffix}"'.encode("latin-1")

    for where in (path, "/api/tasks"):
        assert (await ada.get(where, headers={b"If-None-Match": sent})).status_code == 200
    refused = await ada.delete(path, headers={b"If-Match": sent})

    assert refused.status_code == (422 if " " in suffix else 412)
    assert (await ada.get(path)).json() == task


WRITES: list[tuple[str, str, Any]] = [
    ("PUT", "", {"title": "Mine"}),
    ("PATCH", "", {"title": "Mine"}),
    ("PATCH", "", {"tags": ["mine"]}),
    ("PATCH", "", {}),
    ("PATCH", "/complete", None),
    ("PATCH", "/complete", {"completed": True}),
    ("DELETE", "", None),
]


@pytest.mark.parametrize(("method", "path", "body"), WRITES)
async def test_a_write_that_expects_another_state_is_refused(
    ada: Person, bob: Person, method: str, path: str, body: object
) -> None:
    task = await create(ada)
    where = f"/api/tasks/{task['id']}{path}"

    stale = await ada.request(method, where, json=body, headers={"If-Match": '"0", "99"'})
    wrong = await ada.request(method, where, json=body, headers={"If-Match": "1"})
    theirs = await bob.request(method, where, json=body, headers={"If-Match": '"1"'})

    assert (stale.status_code, stale.json()["code"]) == (412, "precondition_failed")
    assert stale.headers["ETag"] == '"1"'
    assert wrong.json()["errors"][0]["parameter"] == "If-Match"
    assert theirs.status_code == 404
    assert (await ada.get(f"/api/tasks/{task['id']}")).json() == task
    for matching in ('"1"', 'W/"1", "5"', "*"):
        fresh = await create(ada)
        sent = matching.replace("1", str(fresh["rev"]))
        where = f"/api/tasks/{fresh['id']}{path}"
        response = await ada.request(method, where, json=body, headers={"If-Match": sent})
        assert response.is_success


@pytest.mark.parametrize(("method", "path", "body"), WRITES)
async def test_a_write_finds_a_task_created_meanwhile_or_is_404(
    ada: Person,
    configured: Settings,
    database: db.Database,
    method: str,
    path: str,
    body: dict[str, Any] | None,
) -> None:
    where = f"/api/tasks/{(await create(ada))['id'] + 1}"

    async with one_connection(configured, database):
        answer, task = await asyncio.gather(
            ada.request(method, where + path, json=body), create(ada, title="Made")
        )

    now = (await ada.get(where)).json()
    if answer.status_code == 404:
        assert now == task
    else:
        assert (answer.status_code, answer.json()) == (200, now)
        assert {name: now[name] for name in body or {} if name != "tags"} == {
            name: value for name, value in (body or {}).items() if name != "tags"
        }
        assert [tag["name"] for tag in now["tags"]] == (body or {}).get("tags", [])


UNREADABLE = ["7", '"7', "W/7", '"7" "8"', ",", "", '"7",', '"a b"', "*, *", 'w/"7"']


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
async def test_a_link_that_expects_another_state_is_refused(
    ada: Person, bob: Person, method: str
) -> None:
    old = (await create(ada, tags=["old"]))["tags"][0]
    task = await create(ada, tags=["old"] if method == "DELETE" else [])
    where = f"/api/tasks/{task['id']}/tags/{old['id']}"

    for stale in ('"1"', 'W/"0", "99"', '"2-gzipped"'):
        response = await ada.request(method, where, headers={"If-Match": stale})
        assert (response.status_code, response.headers["ETag"]) == (412, '"2"')
    for sent in UNREADABLE:
        response = await ada.request(method, where, headers={"If-Match": sent})
        assert response.status_code == 422
        assert response.json()["errors"][0]["parameter"] == "If-Match"
    theirs = await bob.request(method, where, headers={"If-Match": '"2"'})
    assert theirs.status_code == 404
    assert (await ada.get(f"/api/tasks/{task['id']}")).json() == task
    done = await ada.request(method, where, headers={"If-Match": '"1", W/"2-gzip"'})
    assert (done.status_code, done.headers["ETag"]) == (200, '"3"')
    again = await ada.request(method, where, headers={"If-Match": '"2"'})
    assert (again.status_code, again.headers["ETag"]) == (412, '"3"')
    same = await ada.request(method, where, headers={"If-Match": "*"})
    assert same.json() == done.json()


BULK: list[tuple[str, Any]] = [("PATCH", {"completed": True}), ("DELETE", None)]


@pytest.mark.parametrize(("method", "body"), BULK)
async def test_a_change_of_many_tasks_that_expects_another_list_is_refused(
    ada: Person, method: str, body: Any
) -> None:
    async def change(sent: str) -> httpx.Response:
        headers = {"If-Match": sent}
        return await ada.request(method, "/api/tasks?status=pending", json=body, headers=headers)

    unknown = await change('W/"1"')
    assert (unknown.status_code, unknown.headers["ETag"]) == (412, 'W/"0"')
    for known in ((await ada.get("/api/tasks")).headers["ETag"], "*"):
        assert [*(await change(known)).json().values()] == [0]
    tasks = [await create(ada), await create(ada)][::-1]

    for stale in ('W/"1"', '"0", W/"99"', 'W/"2-gzipped"'):
        refused = await change(stale)
        assert (refused.status_code, refused.headers["ETag"]) == (412, 'W/"2"')
        assert refused.json()["code"] == "precondition_failed"
    for sent in UNREADABLE:
        response = await change(sent)
        assert response.status_code == 422
        assert response.json()["errors"][0]["parameter"] == "If-Match"
    assert (await ada.get("/api/tasks")).json() == tasks
    assert await revision(ada) == 2
    for matching in ('"1", W/"2-gzip"', '"3"', "*"):
        assert [*(await change(matching)).json().values()] == [2 if "2" in matching else 0]
    assert await revision(ada) == 3


@pytest.mark.parametrize(("method", "body"), BULK)
async def test_a_change_of_many_tasks_finds_those_of_a_new_user(
    ada: Person, ada_id: str, configured: Settings, database: db.Database, method: str, body: Any
) -> None:
    first_write = db.Statement[Any]("""
        WITH owner AS (INSERT INTO users (id, rev) VALUES (:owner, 1))
        INSERT INTO tasks (user_id, title, title_key) VALUES (:owner, 'x', 'x')""")

    async with one_connection(configured, database):
        changed, _ = await asyncio.gather(
            ada.request(method, "/api/tasks?status=all", json=body), first_write.all(owner=ada_id)
        )

    assert [*changed.json().values()] == [1]


async def test_no_condition_is_overtaken(ada: Person, ada_id: str, database: db.Database) -> None:
    (tag,) = (await create(ada, tags=["home"]))["tags"]
    path = f"/api/tasks/{(await create(ada))['id']}"
    for method, where, known, body in [
        ("PUT", f"{path}/tags/{tag['id']}", '"{}"', None),
        ("DELETE", f"{path}/tags/{tag['id']}", '"{}"', None),
        ("PATCH", "/api/tasks?status=pending", 'W/"{}"', {"completed": True}),
        ("DELETE", "/api/tasks?status=pending", 'W/"{}"', None),
    ]:
        rev = await revision(ada)
        first, late = await in_turn(
            database,
            ada_id,
            ada.patch(path, json={"title": f"Task {rev}"}),
            ada.request(method, where, json=body, headers={"If-Match": known.format(rev)}),
        )

        assert (first.status_code, late.status_code) == (200, 412)
        assert late.headers["ETag"] == known.format(rev + 1)
        assert (await ada.get(path)).json() == first.json()


async def test_where_there_is_no_revision_no_condition_is_taken(
    ada: Person, client: Person, app: FastAPI
) -> None:
    tag = (await create(ada, tags=["home"]))["tags"][0]
    before = (await ada.get("/api/tasks")).json(), (await ada.get("/api/tags")).json()
    paths = app.openapi()["paths"]
    calls = [(each, path) for path in paths if path.startswith("/api/tags") for each in paths[path]]
    assert len(calls) > 3

    for method, path in [*calls, ("post", "/api/tasks")]:
        where, body = path.format(tag_id=tag["id"]), {"name": "new"}
        if path == "/api/tasks":
            body = {"title": "new"}
        for sent in ("*", '"1"', "", "rubbish"):
            headers, sent_body = {"If-Match": sent}, body if method != "get" else None
            response, stranger = [
                await person.request(method.upper(), where, headers=headers, json=sent_body)
                for person in (ada, client)
            ]
            assert (response.status_code, stranger.status_code) == (422, 401)
            assert response.json()["errors"][0]["parameter"] == "If-Match"

    after = (await ada.get("/api/tasks")).json(), (await ada.get("/api/tags")).json()
    assert after == before


async def test_accounts_take_no_notice_of_a_condition(ada: Person) -> None:
    for sent in ('"0"', "rubbish"):
        headers = {"If-Match": sent}
        assert (await ada.get("/api/v1/auth/me", headers=headers)).is_success
        changed = await ada.patch("/api/v1/auth/me", json={"name": sent}, headers=headers)
        assert changed.json()["name"] == sent


@pytest.mark.parametrize("kind", ["tag", "link"])
async def test_a_write_finds_a_tag_created_meanwhile(
    ada: Person, configured: Settings, database: db.Database, kind: str
) -> None:
    (old,) = (task := await create(ada, tags=["old"]))["tags"]
    tag = f"/tags/{old['id'] + 1}"

    async with one_connection(configured, database):
        answer, _ = await asyncio.gather(
            ada.put(f"/api/tasks/{task['id']}{tag}")
            if kind == "link"
            else ada.patch(f"/api{tag}", json={"color": "#ffffff"}),
            create(ada, tags=["new"]),
        )

    tags = {each["name"]: each for each in (await ada.get("/api/tags")).json()}
    assert answer.status_code == 200
    if kind == "link":
        assert answer.json()["tags"] == [tags["new"], tags["old"]]
    else:
        assert answer.json() == tags["new"]
        assert tags["new"]["color"] == "#ffffff"


async def test_a_link_that_another_writer_takes_away_each_time_is_given_up(
    ada: Person, configured: Settings, database: db.Database
) -> None:
    task = await create(ada, tags=["home"])
    path = f"/api/tasks/{task['id']}/tags/{task['tags'][0]['id']}"

    async def take_away_give_and_take_away() -> None:
        for method, where in [("DELETE", path), ("GET", "/api/tags"), ("PUT", path)]:
            assert (await ada.request(method, where)).status_code == 200
        assert (await ada.delete(path)).status_code == 200

    async with one_connection(configured, database):
        answer, _ = await asyncio.gather(ada.put(path), take_away_give_and_take_away())

    assert (answer.status_code, answer.json()["tags"]) == (200, [])


async def test_a_value_that_is_changed_meanwhile_is_written_again(
    ada: Person, configured: Settings, database: db.Database
) -> None:
    path = f"/api/tasks/{(await create(ada, completed=True))['id']}/complete"

    async with one_connection(configured, database):
        done, undone = await asyncio.gather(
            ada.patch(path, json={"completed": True}), ada.patch(path)
        )

    assert (undone.json()["completed"], undone.json()["rev"]) == (False, 2)
    assert (done.json()["completed"], done.json()["rev"]) == (True, 3)


@pytest.mark.parametrize("sent", UNREADABLE)
async def test_a_precondition_that_cannot_be_read_changes_nothing(ada: Person, sent: str) -> None:
    task = await create(ada)
    path = f"/api/tasks/{task['id']}"

    response = await ada.delete(path, headers={"If-Match": sent})

    assert response.status_code == 422
    assert (await ada.get(path)).json() == task


async def test_of_20_concurrent_conditional_updates_one_wins(ada: Person) -> None:
    task = await create(ada)
    path, headers = f"/api/tasks/{task['id']}", {"If-Match": '"1"'}

    answers = await asyncio.gather(
        *(ada.patch(path, json={"title": f"Task {n}"}, headers=headers) for n in range(20))
    )

    assert sorted(answer.status_code for answer in answers) == [200] + [412] * 19
    (won,) = (answer.json() for answer in answers if answer.is_success)
    assert (await ada.get(path)).json() == won
    assert await revision(ada) == 2


async def test_two_writers_who_try_again_lose_nothing(ada: Person) -> None:
    path = f"/api/tasks/{(await create(ada, title='0'))['id']}"

    async def count() -> None:
        for _ in range(15):
            while True:
                task = await ada.get(path)
                title = str(int(task.json()["title"]) + 1)
                headers = {"If-Match": task.headers["ETag"]}
                if (await ada.put(path, json={"title": title}, headers=headers)).is_success:
                    break

    await asyncio.gather(count(), count())

    assert (await ada.get(path)).json()["title"] == "30"


@pytest.mark.parametrize("tags", [[], ["home", "new"]])
async def test_a_create_with_a_key_is_safe_to_repeat(ada: Person, tags: list[str]) -> None:
    body, headers = {"title": "x", "tags": tags}, {"Idempotency-Key": '"k 1"'}
    first = await ada.post("/api/tasks", json=body, headers=headers)

    again = await ada.post("/api/tasks", json=body, headers={"Idempotency-Key": "k 1"})
    other = await ada.post("/api/tasks", json={"title": "y"}, headers=headers)

    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json() == again.json()
    assert first.headers["Location"] == again.headers["Location"]
    assert again.headers["Idempotency-Replayed"] == "true"
    assert "Idempotency-Replayed" not in first.headers
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert len((await ada.get("/api/tasks")).json()) == await revision(ada) == 1
    await ada.delete(first.headers["Location"])
    other = await ada.post("/api/tasks", json={"title": "y"}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


async def test_a_key_outlives_a_deploy_that_adds_a_column(
    ada: Person, ada_id: str, database: db.Database
) -> None:
    """What is kept of a body has nothing in it but what was sent."""
    defaults = {"completed": False, "priority": "medium", "description": None, "tags": []}
    headers = {"Idempotency-Key": "k"}
    first = await ada.post("/api/tasks", json={"title": " x "}, headers=headers)
    connection = await asyncpg.connect(database.url)
    query = "SELECT digest FROM idempotency_keys WHERE user_id = $1"
    digest = await connection.fetchval(query, ada_id)
    await connection.close()

    again = await ada.post("/api/tasks", json={"title": "x"} | defaults, headers=headers)

    assert digest == sha256(b'{"title":"x"}').digest()
    assert again.json() == first.json()


async def test_keys_are_the_users_own(ada: Person, bob: Person) -> None:
    headers = {"Idempotency-Key": "same"}
    mine = await ada.post("/api/tasks", json={"title": "x"}, headers=headers)

    theirs = await bob.post("/api/tasks", json={"title": "y"}, headers=headers)

    assert theirs.status_code == 201
    assert theirs.json()["id"] != mine.json()["id"]


async def make_keys_older(database: db.Database, user_id: str, hours: int) -> None:
    """Let a user's keys have been used so many hours ago."""
    connection = await asyncpg.connect(database.url)
    await connection.execute(
        "UPDATE idempotency_keys SET created_at = now() - $2::interval WHERE user_id = $1",
        *(user_id, timedelta(hours=hours)),
    )
    await connection.close()


@pytest.mark.parametrize(("hours", "replayed"), [(719, "true"), (721, None)])
async def test_keys_are_kept_for_30_days(
    ada: Person, ada_id: str, app: Any, database: db.Database, hours: int, replayed: str | None
) -> None:
    body, headers = {"title": "x"}, {"Idempotency-Key": "k"}
    await ada.post("/api/tasks", json=body, headers=headers)
    await make_keys_older(database, ada_id, hours)

    await app.state.revocations.clean_up()
    again = await ada.post("/api/tasks", json=body, headers=headers)

    assert again.headers.get("Idempotency-Replayed") == replayed


async def test_a_key_that_expires_meanwhile_can_be_used_again(
    ada: Person, ada_id: str, app: Any, configured: Settings, database: db.Database
) -> None:
    body, headers = {"title": "x"}, {"Idempotency-Key": "k"}
    first = await ada.post("/api/tasks", json=body, headers=headers)
    await make_keys_older(database, ada_id, 721)

    async with one_connection(configured, database):
        again, _ = await asyncio.gather(
            ada.post("/api/tasks", json=body, headers=headers), app.state.revocations.clean_up()
        )

    assert again.status_code == 201
    assert "Idempotency-Replayed" not in again.headers
    assert again.json()["id"] != first.json()["id"]


async def test_what_was_deleted_is_not_created_again(ada: Person) -> None:
    headers = {"Idempotency-Key": "k"}
    first = await ada.post("/api/tasks", json={"title": "x"}, headers=headers)
    await ada.delete(first.headers["Location"])

    again = await ada.post("/api/tasks", json={"title": "x"}, headers=headers)

    assert again.json()["code"] == "task_not_found"
    assert (await ada.get("/api/tasks")).json() == []


@pytest.mark.parametrize("key", ["", '""', "x" * 256, "a\tb"])
async def test_a_malformed_key_is_refused(ada: Person, key: str) -> None:
    response = await ada.post("/api/tasks", json={"title": "x"}, headers={"Idempotency-Key": key})

    assert response.json()["errors"][0]["parameter"] == "Idempotency-Key"
    assert (await ada.get("/api/tasks")).json() == []


async def test_20_concurrent_creates_with_one_key_make_one_task(ada: Person) -> None:
    answers = await asyncio.gather(
        *(
            ada.post("/api/tasks", json={"title": "x"}, headers={"Idempotency-Key": "k"})
            for _ in range(20)
        )
    )

    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum("Idempotency-Replayed" not in answer.headers for answer in answers) == 1
    assert len((await ada.get("/api/tasks")).json()) == await revision(ada) == 1


async def test_changes_tell_what_was_written_since(ada: Person) -> None:
    kept, changed, gone = [await create(ada) for _ in range(3)]
    since = await revision(ada)
    assert await changes(ada, since) == {
        "rev": since,
        "changed": [],
        "deleted": [],
        "more": False,
    }

    await ada.delete(f"/api/tasks/{gone['id']}")
    after = (await ada.patch(f"/api/tasks/{changed['id']}", json={"title": "x"})).json()

    assert await changes(ada, since) == {
        "rev": since + 2,
        "changed": [after],
        "deleted": [gone["id"]],
        "more": False,
    }
    everything = await changes(ada, 0)
    assert [task["id"] for task in everything["changed"]] == [kept["id"], changed["id"]]
    assert (await changes(ada, since + 2))["rev"] == since + 2


async def test_a_revision_that_is_still_to_come_is_refused(ada: Person) -> None:
    await create(ada)
    for path, headers, parameter in [
        ("changes?since=2", {}, "since"),
        ("events?since=2", {}, "since"),
        ("events?since=0", {"Last-Event-ID": "2"}, "Last-Event-ID"),
    ]:
        response = await ada.get(f"/api/tasks/{path}", headers=headers)
        assert response.status_code == 422
        assert response.json()["errors"][0]["parameter"] == parameter


async def pages(person: Person, since: int) -> AsyncIterator[dict[str, Any]]:
    """Read the changes to their end."""
    more = True
    while more:
        page = await changes(person, since)
        yield page
        since, more = page["rev"], page["more"]


async def tag_all(database: db.Database, person: Person, user_id: str) -> str:
    """Put a tag on all of a user's tasks; return its path."""
    tag = (await person.post("/api/tags", json={"name": "home"})).json()
    other = await asyncpg.connect(database.url)
    links = "INSERT INTO task_tags SELECT user_id, id, $2 FROM tasks WHERE user_id = $1"
    await other.execute(links, user_id, tag["id"])
    await other.close()
    return f"/api/tags/{tag['id']}"


LARGE: list[tuple[str, str, Any]] = [
    ("PATCH", "/api/tasks?status=pending", {"completed": True}),
    ("DELETE", "/api/tasks?status=pending", None),
    ("PATCH", "{tag}", {"name": "work"}),
    ("DELETE", "{tag}", None),
]


@pytest.mark.parametrize(("method", "where", "body"), LARGE)
async def test_what_one_large_write_changed_is_told_in_parts(
    ada: Person, ada_id: str, database: db.Database, method: str, where: str, body: Any
) -> None:
    await insert_tasks(database, ada_id, 1600)
    tag = await tag_all(database, ada, ada_id)
    before = await revision(ada)
    every = {task["id"] async for page in pages(ada, 0) for task in page["changed"]}
    assert not every  # the rows are older than every revision

    assert (await ada.request(method, where.format(tag=tag), json=body)).is_success
    late = await create(ada)

    told: list[int] = []
    async for page in pages(ada, before):
        told += [task["id"] for task in page["changed"]] + page["deleted"]
        assert len(page["changed"]) + len(page["deleted"]) < 500 + queries.PART
        assert all(before < task["rev"] <= page["rev"] for task in page["changed"])
    assert len(told) == len(set(told)) == 1601
    assert late["id"] in told
    assert late["rev"] == await revision(ada) == before + 8  # 7 parts and the new task


@pytest.mark.parametrize(("method", "where", "body"), LARGE)
async def test_a_write_of_few_tasks_has_one_revision(
    ada: Person, ada_id: str, database: db.Database, method: str, where: str, body: Any
) -> None:
    await insert_tasks(database, ada_id, queries.PART)
    tag = await tag_all(database, ada, ada_id)
    before = await revision(ada)
    known = {"If-Match": f'W/"{before}"'} if "tasks" in where else {}

    assert (await ada.request(method, where.format(tag=tag), json=body, headers=known)).is_success

    (page,) = [page async for page in pages(ada, before)]
    assert page["rev"] == await revision(ada) == before + 1
    assert len(page["changed"]) + len(page["deleted"]) == queries.PART


@pytest.mark.parametrize("query", ["", "?since=", "?since=-1", "?since=x", "?since=1&since=2"])
async def test_changes_need_to_know_since_when(ada: Person, query: str) -> None:
    assert (await ada.get(f"/api/tasks/changes{query}")).status_code == 422


# Live, on two workers of a real service.

ADA = Claims("ada", "ada", float("inf"), 0.0, None, ())


async def never() -> Any:
    """Receive nothing more of a client that stays."""
    await asyncio.sleep(3600)


@pytest.fixture(scope="module")
def running(database: db.Database, project: Any) -> Iterator[Service]:
    """Run two workers."""
    options = ("--workers", "2", "--timeout-graceful-shutdown", "5")
    with service(project, *options, DATABASE_URL=database.url) as running:
        yield running


@contextlib.asynccontextmanager
async def connected(running: Service, user_id: str) -> AsyncIterator[Person]:
    """Make a client whose every request is a connection of its own, so that both workers serve."""
    limits = httpx.Limits(max_keepalive_connections=0)
    headers = {"Authorization": f"Bearer {token(sub=user_id)}"}
    async with httpx.AsyncClient(
        base_url=running.url, headers=headers, limits=limits, timeout=20
    ) as person:
        yield person


async def events(response: httpx.Response) -> AsyncIterator[tuple[str, dict[str, Any], str | None]]:
    """Parse Server-Sent Events: name, data, id."""
    fields: dict[str, str] = {}
    async for line in response.aiter_lines():
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            yield fields["event"], json.loads(fields["data"]), fields.get("id")
            fields = {}


Seen = dict[tuple[int, int], Task]


async def write_at_random(person: Person, until: float, seen: Seen) -> None:
    """Create, change, tag, move and delete tasks; a task is the same wherever its revision is."""
    while time.monotonic() < until:
        tasks = (await person.get("/api/tasks?limit=20")).json()
        path = f"/api/tasks/{random.choice(tasks)['id']}" if tasks else "/api/tasks/1"
        tag = random.choice(["home", "work", "fun"])
        calls: list[tuple[str, str, Any]] = [
            ("POST", "/api/tasks", {"title": "x"}),
            ("POST", "/api/tasks", {"title": "x", "tags": [tag]}),
            ("PATCH", path, {"title": str(random.random())}),
            ("PATCH", path, {"tags": [tag]}),
            ("PATCH", f"{path}/complete", None),
            ("DELETE", path, None),
        ]
        if random.random() < 0.05:
            calls = [("DELETE", "/api/tasks?status=completed", None)]
        tags = (await person.get("/api/tags")).json() if random.random() < 0.1 else []
        if tags:
            tag_path = f"/api/tags/{random.choice(tags)['id']}"
            calls = [
                ("PATCH", tag_path, {"color": f"#{random.randrange(16**6):06x}"}),
                ("PUT", f"{path}{tag_path.removeprefix('/api')}", None),
                ("DELETE", tag_path, None),
            ]
        method, where, body = random.choice(calls)
        response = await person.request(method, where, json=body)
        assert response.status_code in {200, 201, 204, 404}, response.text
        if response.headers.get("ETag"):
            tasks.append(response.json())
        for task in tasks:
            assert seen.setdefault((task["id"], task["rev"]), task) == task


def take(mine: dict[int, Task], changed: list[Task], deleted: list[int]) -> None:
    """Bring a copy of the list up to date."""
    mine.update({task["id"]: task for task in changed})
    for task_id in deleted:
        mine.pop(task_id, None)


@pytest.mark.campaign
@pytest.mark.parametrize("number", range(2))
async def test_who_follows_the_changes_of_16_writers_has_their_list(
    running: Service, number: int
) -> None:
    async with connected(running, f"follower-{number}") as person:
        mine: dict[int, Task] = {}
        rev, seen = 0, Seen()
        writing = asyncio.gather(
            *(write_at_random(person, time.monotonic() + 3, seen) for _ in range(16))
        )
        while True:
            is_last = writing.done()
            page = await changes(person, rev)
            assert page["rev"] >= rev
            take(mine, page["changed"], page["deleted"])
            for task in page["changed"]:
                assert seen.setdefault((task["id"], task["rev"]), task) == task
            rev = page["rev"]
            if is_last and not page["more"]:
                break
        await writing
        everything = (await person.get("/api/tasks?limit=500")).json()

    assert {task["id"]: task for task in everything} == mine


@pytest.mark.campaign
async def test_who_follows_the_events_has_their_list_though_the_connection_is_cut(
    running: Service,
) -> None:
    mine: dict[int, Task] = {}
    async with connected(running, "event-follower") as person, asyncio.timeout(60):
        writing = asyncio.gather(
            *(write_at_random(person, time.monotonic() + 4, {}) for _ in range(8))
        )
        last, final = 0, None
        pending: list[tuple[str, dict[str, Any]]] = []
        while final is None or last < final:
            if final is None and writing.done():
                await writing
                # The last revision may be one without an event, of a tag that no task carries.
                final = (await create(person))["rev"]
            pending = []
            with contextlib.suppress(TimeoutError):
                async with (
                    asyncio.timeout(random.uniform(0.05, 0.5)),
                    person.stream(
                        "GET", "/api/tasks/events", headers={"Last-Event-ID": str(last)}
                    ) as response,
                ):
                    async for name, data, event_id in events(response):
                        pending.append((name, data))
                        if event_id is not None:
                            changed = [each for kind, each in pending if kind == "task"]
                            gone = [each["id"] for kind, each in pending if kind == "deleted"]
                            take(mine, changed, gone)
                            pending, last = [], int(event_id)
        everything = (await person.get("/api/tasks?limit=500")).json()

    assert {task["id"]: task for task in everything} == mine


def connections(running: Service) -> list[int]:
    """Count the clients' connections of each process of a service that has any."""
    port, pid = f":{urlsplit(running.url).port:04X}", running.process.pid
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    established = {f"socket:[{row[9]}]" for row in rows if row[1].endswith(port) and row[3] == "01"}
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    counts = []
    for child in children:
        count = 0
        for descriptor in Path(f"/proc/{child}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                count += str(descriptor.readlink()) in established
        counts.append(count)
    return [count for count in counts if count]


async def test_an_event_reaches_readers_on_both_workers_at_once(running: Service) -> None:
    async with connected(running, "reader") as person, contextlib.AsyncExitStack() as stack:
        streams: list[AsyncIterator[tuple[str, dict[str, Any], str | None]]] = []

        async def open_stream() -> None:
            response = await stack.enter_async_context(person.stream("GET", "/api/tasks/events"))
            if response.status_code == 429:  # this worker has enough of them
                await response.aclose()
                return
            found = events(response)
            assert (await anext(found))[0] == "ready"
            streams.append(found)

        async with asyncio.timeout(30):
            while len(connections(running)) < 2:  # it is chance which worker a connection comes to
                await asyncio.gather(*(open_stream() for _ in range(6)))
            while sum(connections(running)) != len(streams):  # those refused are just closing
                await asyncio.sleep(0.01)
        delays = []
        for _ in range(10):
            started = time.monotonic()
            task = await create(person)
            for each in streams:
                name, data, event_id = await anext(each)
                assert (name, data, event_id) == ("task", task, str(task["rev"]))
            delays.append(time.monotonic() - started)

    assert sorted(delays)[5] < 0.4  # what nobody notified would take half a second on average


async def test_a_stream_begins_where_it_is_told(running: Service) -> None:
    async with connected(running, "resumer") as person:
        tasks = [await create(person) for _ in range(3)]
        await person.delete(f"/api/tasks/{tasks[1]['id']}")
        for where, headers in (
            ("?since=1", {}),
            ("", {"Last-Event-ID": "1"}),
            ("?since=0", {"Last-Event-ID": "1"}),
        ):
            async with person.stream(
                "GET", f"/api/tasks/events{where}", headers=headers
            ) as response:
                assert response.headers["Content-Type"].startswith("text/event-stream")
                found = events(response)
                assert await anext(found) == ("ready", {"rev": 1}, "1")
                assert await anext(found) == ("task", tasks[2], "3")
                assert await anext(found) == ("deleted", {"id": tasks[1]["id"]}, "4")
        wrong = await person.get("/api/tasks/events", headers={"Last-Event-ID": "x"})
        assert wrong.json()["errors"][0]["parameter"] == "Last-Event-ID"


async def test_of_several_events_of_one_write_the_last_carries_the_revision(
    running: Service,
) -> None:
    async with connected(running, "bulk") as person:
        for _ in range(3):
            await create(person)
        await person.delete("/api/tasks?status=pending")
        async with person.stream("GET", "/api/tasks/events?since=3") as response:
            found = events(response)
            ids = [(await anext(found))[2] for _ in range(4)]

    assert ids == ["3", None, None, "4"]


@pytest.mark.campaign
async def test_many_idle_streams_leave_the_pool_free_and_end_with_their_token(
    running: Service,
) -> None:
    async with connected(running, "many") as person, contextlib.AsyncExitStack() as stack:
        streams = [
            await stack.enter_async_context(person.stream("GET", "/api/tasks/events"))
            for _ in range(live.MAX_STREAMS)
        ]
        started = time.monotonic()
        answers = await asyncio.gather(*(person.get("/api/tasks") for _ in range(20)))
        assert {answer.status_code for answer in answers} == {200}
        await person.post("/api/v1/auth/logout")
        ended = await asyncio.gather(*(stream.aread() for stream in streams))
        assert time.monotonic() - started < 20

    assert all(text.startswith(b"event: ready") for text in ended)


async def test_a_stream_ends_when_its_token_is_revoked(running: Service) -> None:
    async with (
        connected(running, "leaver") as person,
        person.stream("GET", "/api/tasks/events") as response,
    ):
        assert (await person.post("/api/v1/auth/logout")).status_code == 204
        started = time.monotonic()
        await response.aread()

    assert time.monotonic() - started < 3


def test_streams_do_not_hold_up_the_shutdown(database: db.Database, project: Any) -> None:
    with service(project, DATABASE_URL=database.url) as running:
        headers = {"Authorization": f"Bearer {token(sub='stopper')}"}
        with httpx.stream("GET", f"{running.url}/api/tasks/events", headers=headers) as response:
            lines = response.iter_lines()
            assert next(lines) == "event: ready"
            started = time.monotonic()
            running.process.terminate()
            list(lines)
        running.process.wait(10)

    assert time.monotonic() - started < 3
    assert "Traceback" not in running.printed()


@pytest.mark.parametrize("pooler", [True, False])
async def test_streams_poll_while_nobody_can_listen(
    configured: Settings, database: db.Database, monkeypatch: pytest.MonkeyPatch, pooler: bool
) -> None:
    monkeypatch.setattr(live, "TICK_SECONDS", 0.05)
    settings = configured.model_copy(update={"database_pooler": pooler})
    polled = live.Live("postgresql://u@127.0.0.1:1/d", Revocations(configured))
    async with db.connect(settings, database.url), polled.kept_up():
        with polled.place(ADA, 0) as place, polled.place(ADA, 0):
            for _ in range(3):
                await asyncio.wait_for(place.woken.wait(), 1)
                place.woken.clear()


async def test_a_slow_reader_is_cut_off(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "SLOW_SECONDS", 0.05)

    async def send(message: Any) -> None:
        if message.get("body"):
            await asyncio.sleep(3600)

    response = live.EventStream(app.state.live, ADA, 0)
    await asyncio.wait_for(response({"type": "http"}, never, send), 1)


async def test_an_idle_stream_is_kept_alive_and_outlives_a_database_that_fails(
    ada: Person,
    app: Any,
    ada_id: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert live.SILENCE_SECONDS == 15
    monkeypatch.setattr(live, "SILENCE_SECONDS", 0.1)
    monkeypatch.setattr(live, "TICK_SECONDS", 0.02)
    claims = app.state.verifier.claims(token(sub=ada_id))
    with app.state.live.place(claims, 0) as place:
        found = place.events()
        assert b"ready" in await anext(found)
        assert (await asyncio.wait_for(anext(found), 1)).startswith(b":")
        pool, db._pool = db._pool, None  # noqa: SLF001
        for _ in range(3):
            assert (await asyncio.wait_for(anext(found), 1)).startswith(b":")
        db._pool = pool  # noqa: SLF001
        task = await create(ada)
        parts = [await asyncio.wait_for(anext(found), 1) for _ in range(3)]
        assert any(f'"id":{task["id"]}'.encode() in part for part in parts)


async def test_a_stream_in_one_piece(ada: Person, ada_id: str) -> None:
    tasks = [await create(ada) for _ in range(501)]
    await ada.delete(f"/api/tasks/{tasks[500]['id']}")

    async def watch(**headers: str) -> httpx.Response:
        brief = token(sub=ada_id, exp=timedelta(seconds=-8))
        headers["Authorization"] = f"Bearer {brief}"
        return await ada.get("/api/tasks/events", headers=headers)

    whole, from_now = await asyncio.gather(watch(**{"Last-Event-ID": "0"}), watch())
    wrong = await watch(**{"Last-Event-ID": "-1"})

    assert whole.text.count("event: task\n") == 500
    gone = f'{{"id":{tasks[500]["id"]}}}'
    assert whole.text.endswith(f"event: deleted\ndata: {gone}\nid: 502\n\n")
    assert from_now.text == 'event: ready\ndata: {"rev":502}\nid: 502\n\n'
    assert wrong.status_code == 422


async def test_a_stream_ends_once_its_token_is_revoked_or_cannot_be_checked(
    ada_id: str, app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "TICK_SECONDS", 0.02)
    claims = app.state.verifier.claims(token(sub=ada_id))
    for until in (float("inf"), "not a number"):
        app.state.revocations._until[claims.keys[-1]] = until  # noqa: SLF001
        with app.state.live.place(claims, 0) as place:
            async with asyncio.timeout(5):
                found = [part async for part in place.events()]
        assert len(found) == 1
    del app.state.revocations._until[claims.keys[-1]]  # noqa: SLF001


async def test_the_database_tells_only_of_users_whom_somebody_watches(
    ada: Person, bob: Person, ada_id: str, database: db.Database
) -> None:
    told: list[object] = []
    listener = await asyncpg.connect(database.url)
    await listener.add_listener("todo_changes", lambda *heard: told.append(heard[-1]))
    await create(ada)
    await queries.WATCH.one(owner=ada_id)
    for person in (bob, ada):
        task = await create(person)
        await person.patch(f"/api/tasks/{task['id']}/complete")
    await listener.execute("UPDATE users SET watched_until = now() WHERE id = $1", ada_id)
    await create(ada)
    await listener.execute("SELECT pg_notify('todo_changes', 'the end')")

    while "the end" not in told:
        await asyncio.sleep(0.01)
    await listener.close()

    assert told == [ada_id, ada_id, "the end"]


async def test_a_stream_goes_on_watching(
    ada: Person, ada_id: str, app: Any, database: db.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "SILENCE_SECONDS", 0.05)
    monkeypatch.setattr(live, "TICK_SECONDS", 0.02)
    monkeypatch.setattr(live, "WATCH_SECONDS", 0.1)
    claims = app.state.verifier.claims(token(sub=ada_id))
    await create(ada)
    other = await asyncpg.connect(database.url)
    with app.state.live.place(claims, 1) as place:
        found = place.events()
        await anext(found)
        await anext(found)
        await other.execute("UPDATE users SET watched_until = NULL WHERE id = $1", ada_id)

        for _ in range(6):
            assert (await anext(found)).startswith(b":")
    until = await other.fetchval("SELECT watched_until FROM users WHERE id = $1", ada_id)
    await other.close()

    assert until is not None


async def test_a_connection_that_listens_is_tried_and_replaced(
    app: object,
    configured: Settings,
    database: db.Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert app
    monkeypatch.setattr(live, "TICK_SECONDS", 0.05)
    monkeypatch.setattr(db, "LISTEN_SECONDS", 0.05)
    listening = live.Live(database.url, Revocations(configured))
    async with listening.kept_up():
        with listening.place(ADA, 0) as place:
            waiter = place.woken
            await asyncio.wait_for(waiter.wait(), 2)
            other = await asyncpg.connect(database.url)
            waiter.clear()
            await other.execute("SELECT pg_notify('todo_changes', 'nobody')")
            await other.execute("SELECT pg_notify('todo_changes', 'ada')")
            await asyncio.wait_for(waiter.wait(), 2)
            await asyncio.sleep(0.2)
            waiter.clear()
            await other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE query ~ 'LISTEN|SELECT 1' AND pid <> pg_backend_pid()"
            )
            await asyncio.wait_for(waiter.wait(), 2)
            await other.close()


@pytest.mark.parametrize("turns", range(5))
async def test_a_service_ends_though_the_connection_that_listens_ends_with_it(
    turns: int,
    app: object,
    configured: Settings,
    database: db.Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert app
    connections: list[asyncpg.Connection] = []
    connect = asyncpg.connect

    async def remembered(*args: Any, **options: Any) -> asyncpg.Connection:
        connections.append(await connect(*args, **options))
        return connections[-1]

    monkeypatch.setattr(asyncpg, "connect", remembered)
    listening = live.Live(database.url, Revocations(configured))

    async with asyncio.timeout(5), listening.kept_up():
        with listening.place(ADA, 0) as place:
            await place.woken.wait()
        connections[-1].terminate()
        for _ in range(turns):
            await asyncio.sleep(0)


async def test_the_signal_that_ends_the_server_ends_the_streams_too() -> None:
    told: list[str] = []
    before = signal.signal(signal.SIGTERM, lambda *_: told.append("server"))
    try:
        with signals.told_to_stop(lambda: told.append("streams")):
            signal.raise_signal(signal.SIGTERM)
            await asyncio.sleep(0.05)
    finally:
        signal.signal(signal.SIGTERM, before)

    assert sorted(told) == ["server", "streams"]


async def test_a_signal_that_came_before_is_heeded_too() -> None:
    class Server:
        """What uvicorn has been when it imports the service."""

        should_exit = True

        def handle(self, *_: object) -> None:
            """Be a handler."""

    told: list[str] = []
    before = signal.signal(signal.SIGTERM, Server().handle)
    try:
        with signals.told_to_stop(lambda: told.append("streams")):
            assert told == ["streams"]
    finally:
        signal.signal(signal.SIGTERM, before)


async def test_a_service_in_a_thread_that_cannot_handle_signals_ends_without_an_error() -> None:
    async def serve() -> None:
        with signals.told_to_stop(lambda: None):
            await asyncio.sleep(0)

    await asyncio.to_thread(asyncio.run, serve())


async def test_nobody_listens_but_while_a_stream_is_open(
    app: FastAPI, database: db.Database
) -> None:
    other = await asyncpg.connect(database.url)
    listening = (
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND state = 'idle'"
    )

    async def until(number: int) -> None:
        async with asyncio.timeout(5):
            while await other.fetchval(listening) != number:
                await asyncio.sleep(0.01)

    await until(0)
    bob = ADA._replace(user_id="bob")
    with app.state.live.place(ADA, 0), app.state.live.place(bob, 0):
        await until(1)
    await until(0)
    await other.close()


async def test_a_page_that_is_just_full_is_the_last(
    ada: Person, ada_id: str, database: db.Database
) -> None:
    await insert_tasks(database, ada_id, 500)
    await ada.patch("/api/tasks?status=pending", json={"completed": True})

    page = await changes(ada, 0)

    assert (len(page["changed"]), page["more"]) == (500, False)


@pytest.mark.parametrize("sent", [b"\xb2", b"9" * 5000])
async def test_digits_that_are_no_number_are_no_event(ada: Person, sent: bytes) -> None:
    answer = await ada.get("/api/tasks/events", headers={b"Last-Event-ID": sent})

    assert answer.status_code == 422


@pytest.mark.parametrize("sent", [['"1"', '"9"'], ['"9"', '"1"']])
async def test_a_header_that_is_repeated_is_one_list(ada: Person, sent: list[str]) -> None:
    path = f"/api/tasks/{(await create(ada))['id']}"

    answer = await ada.delete(path, headers=[("If-Match", each) for each in sent])

    assert answer.status_code == 204


async def test_a_revision_that_no_database_could_hold_is_no_match(ada: Person) -> None:
    path = f"/api/tasks/{(await create(ada))['id']}"

    answer = await ada.delete(path, headers={"If-Match": f'"{"9" * 19}"'})

    assert answer.status_code == 412
