"""Many streams, and large changes: what is told is read once, in parts, and nobody waits for it."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

import account_queries
import db
import live
import queries
from errors import Problem
from security import Claims
from tests.conftest import Person, token
from tests.test_lists import insert_tasks
from tests.test_revisions import ADA, connected, events
from tests.test_service import service
from tests.test_tasks import create

Read = Callable[[], int]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Read:
    """Count how often changes are read."""
    numbers = itertools.count()
    original = live.read_changes

    async def counted(owner: str, since: int) -> live.Page:
        next(numbers)
        return await original(owner, since)

    monkeypatch.setattr(live, "read_changes", counted)
    return lambda: next(numbers)


async def until_told(place: live.Place, rev: int) -> bytes:
    """Read a stream until a revision has been told."""
    text = b""
    async with asyncio.timeout(60):
        async for chunk in place.events():
            assert len(chunk) <= live.CHUNK_BYTES
            text += chunk
            if text.endswith(b"id: %d\n\n" % rev):
                break
    return text


async def test_a_large_change_is_read_once_and_others_have_their_turn_meanwhile(
    ada: Person, ada_id: str, app: FastAPI, database: db.Database, read: Read
) -> None:
    await insert_tasks(database, ada_id, 5000)
    await ada.patch("/api/tasks?status=pending", json={"completed": True})
    parts, rev = 5000 // 500, 5000 // queries.PART
    turns = itertools.count()

    async def take_turns() -> None:
        while True:
            next(turns)
            await asyncio.sleep(0)

    with contextlib.ExitStack() as stack:
        places = [
            stack.enter_context(app.state.live.place(claims_of(ada_id), 0)) for _ in range(20)
        ]
        others = asyncio.create_task(take_turns())
        texts = await asyncio.gather(*(until_told(place, rev) for place in places))
        others.cancel()

    assert len(set(texts)) == 1
    assert texts[0].count(b"event: task\n") == 5000
    assert read() <= parts + 1
    assert next(turns) > 20 * parts


async def test_a_stream_that_is_behind_keeps_little(
    ada: Person,
    ada_id: str,
    app: FastAPI,
    database: db.Database,
    read: Read,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(live, "KEPT_BYTES", 400_000)  # of about 150,000 each
    await insert_tasks(database, ada_id, 3000)
    await ada.patch("/api/tasks?status=pending", json={"completed": True})
    rev = (await queries.WATCH.one(owner=ada_id))["rev"]

    with (
        app.state.live.place(claims_of(ada_id), 0) as slow,
        app.state.live.place(claims_of(ada_id), 0) as fast,
    ):
        told = await until_told(fast, rev)
        kept = [len(part.events) for part in slow.feed._parts.values()]  # noqa: SLF001
        assert 1 < len(kept) < 5
        assert sum(kept) <= 400_000
        assert await until_told(slow, rev) == told
        await create(ada)
        await asyncio.gather(until_told(slow, rev + 1), until_told(fast, rev + 1))
        assert len(slow.feed._parts) <= 2  # noqa: SLF001

    assert 6 < read() < 16


async def test_that_there_is_nothing_new_is_not_believed_after_a_notification(
    ada: Person, ada_id: str, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create(ada)
    await queries.WATCH.one(owner=ada_id)
    has_read, may_go_on = asyncio.Event(), asyncio.Event()
    original = live.read_changes

    async def delayed(owner: str, since: int) -> live.Page:
        page = await original(owner, since)
        has_read.set()
        await may_go_on.wait()
        return page

    monkeypatch.setattr(live, "read_changes", delayed)
    with (
        app.state.live.place(claims_of(ada_id), 1) as first,
        app.state.live.place(claims_of(ada_id), 1) as second,
    ):
        early = asyncio.create_task(until_told(first, 2))
        await has_read.wait()
        told = first.feed.told
        task = await create(ada)
        async with asyncio.timeout(10):
            while first.feed.told == told:
                await asyncio.sleep(0.01)
        late = asyncio.create_task(until_told(second, 2))
        await asyncio.sleep(0.01)
        may_go_on.set()
        async with asyncio.timeout(live.SILENCE_SECONDS / 2):  # after which it would look again
            texts = await asyncio.gather(early, late)
        for text in texts:
            assert f'"id":{task["id"]}'.encode() in text


async def test_of_many_streams_one_asks_a_database_that_is_down(
    ada_id: str, app: FastAPI, read: Read
) -> None:
    pool, db._pool = db._pool, None  # noqa: SLF001
    try:
        with app.state.live.place(claims_of(ada_id), 0) as place:
            calls = (place.feed.part(0) for _ in range(20))
            answers = await asyncio.gather(*calls, return_exceptions=True)
            assert {getattr(answer, "code", None) for answer in answers} == {"unavailable"}
    finally:
        db._pool = pool  # noqa: SLF001

    assert read() == 1


async def test_a_user_has_20_streams_and_not_one_more(
    ada: Person, ada_id: str, app: FastAPI
) -> None:
    await create(ada)
    claims = claims_of(ada_id)
    with contextlib.ExitStack() as stack:
        places = [stack.enter_context(app.state.live.place(claims, 0)) for _ in range(20)]
        refused = await ada.get("/api/tasks/events")
        late = live.EventStream(app.state.live, claims, 0)
        with pytest.raises(Problem, match="429"):
            await late({"type": "http"}, receive=None, send=None)  # type: ignore[arg-type]
        assert len(places[0].feed.places) == 20
        with app.state.live.place(ADA, 0):
            pass

    assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
    assert int(refused.headers["Retry-After"]) > 0
    with app.state.live.place(claims, 0) as place:
        assert len(place.feed.places) == 1


async def test_no_stream_outlives_the_service(ada_id: str, app: FastAPI) -> None:
    closing = live.Live("postgresql://u@127.0.0.1:1/d", app.state.revocations)
    with closing.place(claims_of(ada_id), 0) as early:
        closing.close()
        with closing.place(claims_of(ada_id), 0) as late:
            for place in (early, late):
                assert [chunk async for chunk in place.events()] == [
                    b'event: ready\ndata: {"rev":0}\nid: 0\n\n'
                ]


async def test_a_place_is_given_back_however_a_stream_ends(
    database: db.Database, project: Path
) -> None:
    with service(project, DATABASE_URL=database.url) as running:
        async with connected(running, "opener") as person, contextlib.AsyncExitStack() as stack:
            task = await create(person)

            async def open_streams(number: int, **options: Any) -> list[httpx.Response]:
                calls = (
                    person.stream("GET", "/api/tasks/events", **options) for _ in range(number)
                )
                return [await stack.enter_async_context(call) for call in calls]

            for _ in range(30):
                ahead = await person.get("/api/tasks/events?since=99")
                head = await person.head("/api/tasks/events")
                assert (ahead.status_code, head.status_code) == (422, 405)
            brief = {"Authorization": f"Bearer {token(sub='opener', exp=-8 + time.time())}"}
            ended = await open_streams(10, headers=brief)
            vanished = await open_streams(10)
            (refused,) = await open_streams(1)
            assert refused.status_code == 429
            for answer in ended:
                await answer.aread()
            for answer in vanished:
                await answer.aclose()

            async with asyncio.timeout(20):
                while (answer := (await open_streams(1))[0]).status_code == 429:
                    await asyncio.sleep(0.1)
            others = await open_streams(19)
            assert {other.status_code for other in others} == {200}
            assert (await open_streams(1))[0].status_code == 429
            await person.delete(f"/api/tasks/{task['id']}")
            for each in (answer, *others):
                names = [name async for name, _, _ in first_two(events(each))]
                assert names == ["ready", "deleted"]


async def first_two(found: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """Read two events."""
    yield await anext(found)
    yield await anext(found)


def claims_of(user_id: str) -> Claims:
    """Make claims of a user's."""
    return ADA._replace(user_id=user_id)


async def test_events_are_in_the_order_of_their_revisions(ada: Person, ada_id: str) -> None:
    first, second = await create(ada), await create(ada)
    await ada.delete(f"/api/tasks/{first['id']}")
    await ada.patch(f"/api/tasks/{second['id']}/complete")

    text = b"".join(live._written(await live.read_changes(ada_id, 0)))  # noqa: SLF001

    assert [line for line in text.split(b"\n") if line.startswith(b"id")] == [b"id: 3", b"id: 4"]


async def test_a_silent_feed_is_looked_at_now_and_then_only(
    ada_id: str, app: FastAPI, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "SILENCE_SECONDS", 0.3)
    monkeypatch.setattr(live, "TICK_SECONDS", 0.02)
    with app.state.live.place(claims_of(ada_id), 0) as place:

        async def follow() -> None:
            async for _ in place.events():
                pass

        following = asyncio.create_task(follow())
        await asyncio.sleep(1.0)
        following.cancel()

    assert 0 < read() < 8


async def test_a_stream_that_is_refused_writes_nothing(
    ada: Person, ada_id: str, app: FastAPI
) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(live.MAX_STREAMS):
            stack.enter_context(app.state.live.place(claims_of(ada_id), 0))
        assert (await ada.get("/api/tasks/events")).status_code == 429

    assert await account_queries.FIND_USER.first(owner=ada_id) is None
