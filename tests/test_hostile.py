"""Bad input gets a 4xx with a sentence that helps, never a 500; nothing is half written."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.conftest import Person
from tests.test_tasks import create

BODIES: dict[str, bytes] = {
    "no JSON": b"hello",
    "cut short": b'{"title": "x"',
    "trailing comma": b'{"title": "x",}',
    "single quotes": b"{'title': 'x'}",
    "two documents": b'{"title": "x"}{"title": "y"}',
    "comment": b'{"title": "x"} // y',
    "not UTF-8": b'{"title": "\xff"}',
    "UTF-16": '{"title": "x"}'.encode("utf-16"),
    "two byte order marks": b'\xef\xbb\xbf\xef\xbb\xbf{"title": "x"}',
    "byte order mark alone": b"\xef\xbb\xbf",
    "byte order mark of UTF-16": b"\xff\xfe" + '{"title": "x"}'.encode("utf-16-le"),
    "array": b'[{"title": "x"}]',
    "string": b'"x"',
    "number": b"1",
    "null": b"null",
    "true": b"true",
    "white space": b"   ",
    "nothing": b"",
    "deep array": b"[" * 60_000,
    "deep object": b'{"title":' * 6_000,
    "NaN": b'{"title": NaN}',
    "Infinity": b'{"completed": Infinity, "title": "x"}',
    "1e400": b'{"title": 1e400}',
    "lone surrogate": rb'{"title": "\ud800"}',
    "lone surrogate as a name": rb'{"\ud800": 1, "title": "x"}',
    "NUL in the title": rb'{"title": "a\u0000b"}',
    "NUL in the description": rb'{"title": "x", "description": "\u0000"}',
    "NUL as a name": rb'{"title": "x", "\u0000": 1}',
    "raw NUL": b'{"title": "\0"}',
    "raw newline": b'{"title": "a\nb"}',
    "huge number": b'{"title": "x", "completed": ' + b"9" * 5000 + b"}",
    "long number as a title": b'{"title": ' + b"9" * 5000 + b"}",
}

MEMBERS: dict[str, dict[str, Any]] = {
    "title null": {"title": None},
    "title empty": {"title": ""},
    "title blank": {"title": " \t\n\u00a0\u2003"},
    "title long": {"title": "x" * 201},
    "title a number": {"title": 1},
    "title a list": {"title": ["x"]},
    "title an object": {"title": {"x": 1}},
    "title true": {"title": True},
    "description long": {"title": "x", "description": "y" * 1001},
    "description a number": {"title": "x", "description": 1},
    "description an object": {"title": "x", "description": {}},
    "completed yes": {"title": "x", "completed": "yes"},
    "completed true as text": {"title": "x", "completed": "true"},
    "completed 1": {"title": "x", "completed": 1},
    "completed 0": {"title": "x", "completed": 0},
    "completed null": {"title": "x", "completed": None},
    "completed 1.0": {"title": "x", "completed": 1.0},
    "priority unknown": {"title": "x", "priority": "urgent"},
    "priority of wide letters": {"title": "x", "priority": "ＨＩＧＨ"},
    "priority a number": {"title": "x", "priority": 1},
    "priority null": {"title": "x", "priority": None},
    "priority a list": {"title": "x", "priority": ["low"]},
    "due naive": {"title": "x", "due_date": "2026-12-01T17:00:00"},
    "due February 30, a day": {"title": "x", "due_date": "2026-02-30"},
    "due month 13, a day": {"title": "x", "due_date": "2026-13-01"},
    "due year 0, a day": {"title": "x", "due_date": "0000-12-31"},
    "due the first day": {"title": "x", "due_date": "0001-01-01"},
    "due year 10000, a day": {"title": "x", "due_date": "10000-01-01"},
    "due a week": {"title": "x", "due_date": "2026-W49-1"},
    "due without dashes": {"title": "x", "due_date": "20261201"},
    "due a day of other digits": {"title": "x", "due_date": "٢٠٢٦-12-01"},
    "due minute 60": {"title": "x", "due_date": "2026-12-01T17:60:00Z"},
    "due second 60": {"title": "x", "due_date": "2026-12-01T17:00:60Z"},
    "due hour 24": {"title": "x", "due_date": "2026-12-01T24:00:00Z"},
    "due offset minute 60": {"title": "x", "due_date": "2026-12-01T17:00:00+05:60"},
    "due a day and a space": {"title": "x", "due_date": "2026-12-01 "},
    "due two spellings": {"title": "x", "due_date": None, "dueDate": "2026-12-01"},
    "due a number": {"title": "x", "due_date": 1_800_000_000},
    "due digits": {"title": "x", "due_date": "1800000000"},
    "due blank": {"title": "x", "due_date": " "},
    "completed twice": {"title": "x", "completed": True, "isCompleted": True},
    "completed and status": {"title": "x", "completed": True, "status": "done"},
    "status unknown": {"title": "x", "status": "in_progress"},
    "status a number": {"title": "x", "status": 1},
    "status null": {"title": "x", "status": None},
    "isCompleted a word": {"title": "x", "isCompleted": "yes"},
    "title invisible": {"title": "\u200b\u2800\u3164"},
    "title a control character": {"title": "a\x1bb"},
    "title for private use": {"title": "\ue000"},
    "title no character": {"title": "\uffff"},
    "title unassigned": {"title": "\u0378"},
    "title C1": {"title": "a\x85b"},
    "title DEL": {"title": "a\x7fb"},
    "tag invisible": {"title": "x", "tags": ["\u2800"]},
    "tag a control character": {"title": "x", "tags": ["a\x07b"]},
    "due tomorrow": {"title": "x", "due_date": "tomorrow"},
    "due month 13": {"title": "x", "due_date": "2026-13-01T00:00:00Z"},
    "due February 30": {"title": "x", "due_date": "2026-02-30T00:00:00Z"},
    "due year 0": {"title": "x", "due_date": "0000-01-01T00:00:00Z"},
    "due before year 1": {"title": "x", "due_date": "0001-01-01T00:00:00+14:00"},
    "due after year 9999": {"title": "x", "due_date": "9999-12-31T23:59:59-14:00"},
    "due minus infinity": {"title": "x", "due_date": "0001-01-01T00:00:00Z"},
    "due plus infinity": {"title": "x", "due_date": "9999-12-31T23:59:59.999999Z"},
    "due year 10000": {"title": "x", "due_date": "10000-01-01T00:00:00Z"},
    "due offset 99": {"title": "x", "due_date": "2026-12-01T17:00:00+99:00"},
    "due other digits": {"title": "x", "due_date": "٢٠٢٦-12-01T17:00:00Z"},
    "due NUL": {"title": "x", "due_date": "2026-12-01T17:00:00Z\0"},
    "due an object": {"title": "x", "due_date": {}},
    "unknown member": {"title": "x", "titel": "y"},
    "unknown member, long": {"title": "x", "y" * 3000: "y"},
    "prototype": {"title": "x", "__proto__": {"admin": True}},
    "tags null": {"title": "x", "tags": None},
    "tags a string": {"title": "x", "tags": "home"},
    "tags an object": {"title": "x", "tags": {"name": "home"}},
    "tags of numbers": {"title": "x", "tags": [1]},
    "tags of nulls": {"title": "x", "tags": [None]},
    "tags of lists": {"title": "x", "tags": [["home"]]},
    "tags too many": {"title": "x", "tags": [f"tag {number}" for number in range(21)]},
    "tag empty": {"title": "x", "tags": [""]},
    "tag blank": {"title": "x", "tags": ["home", " \u2003"]},
    "tag long": {"title": "x", "tags": ["x" * 51]},
    "tag NUL": {"title": "x", "tags": ["a\0b"]},
    "tag without a name": {"title": "x", "tags": [{"id": 1}]},
    "tag with a number": {"title": "x", "tags": [{"name": 1}]},
    "tag with a color that is none": {"title": "x", "tags": [{"name": "a", "color": 2**64}]},
    "tag with colors": {"title": "x", "tags": [{"name": "a", "color": ["#22aa66"]}]},
    "tag with more": {"title": "x", "tags": [{"name": "home", "size": 1}]},
}

IDS = [
    *(
        "0",
        "-1",
        "+1",
        "1.0",
        "1e3",
        "1_0",
        "0x1",
        " 1",
        "1 ",
        "٣",
        "１",
        "²",
        "abc",
        "null",
        "%00",
    ),
    *(
        "9223372036854775808",
        "9" * 40,
        "9" * 5000,
        "1;DROP",
        "1'",
        "..%2f1",
        "%F0%28%8C%28",
        "%0a1",
        "1%0a",
    ),
    *("1%20OR%201=1", "*", "true", "NaN", "{}", "[]", "%25", "🙂", "a" * 8000),
]

QUERIES = [
    *(
        "priority=urgent",
        "priority=%EF%BC%AC%EF%BC%AF%EF%BC%B7",
        "priority=low&priority=high",
        "priority=%00",
    ),
    *("sort=-", "sort=name", "sort=CREATED", "sort=--created", "sort=%2Bcreated"),
    *("sort=created,title", "sort=created&sort=title", "sort=id", "sort=__proto__", "sort=%00"),
    *(
        "tag=%20",
        "tag=a%00b",
        "tag=" + "x" * 51,
        "tags=home&tag=home",
        "tag[]=x&tags[]=x",
    ),
    "&".join(f"tag=t{number}" for number in range(21)),
    *("search=%00", "search=" + "x" * 201, "search=a&search=b"),
    *("due_before=2026-02-30", "due_before=0001-01-01", "due_before=2026-12-01T17:00:00"),
    *("due_after=1800000000", "due_after=2026-13-01T00:00:00Z", "due_after=tomorrow"),
    *("due_after=2026-12-01T17:00:00+01:00", "due_after=0001-01-01T00:00:00Z", "due_after=%00"),
    *("due_before=9999-12-31T23:59:59.999999Z", "due_before=infinity", "due_date=x"),
    *("cursor=x", "cursor=%00", "cursor=" + "A" * 60, "cursor=" + "A" * 5000),
    *("cursor=é", "cursor=%ff", "cursor=WyIiLDFd", "cursor=null", "cursor=" + "=" * 20),
    *("status=in_progress", "status=PEND%C4%B0NG", "status=1", "status=%00", "status[]=all"),
    *(
        "limit=0",
        "limit=-1",
        "limit=501",
        "limit=1.0",
        "limit=1_0",
        "limit=%2B5",
        "limit=x",
    ),
    *("limit=" + "9" * 5000, "limit=٣", "limit=%20" + "5", "limit=1e2", "limit=NaN", "limit=%00"),
    *(
        "status=pending&status=all",
        "limit=1&limit=2",
        "offset=-1",
        "offset=1_0",
        "offset=99999999999999999",
        "skip=x",
        "skip=1&offset=1",
        "page=0",
        "page=1.5",
        "page=-1",
        "page=1&skip=1",
        "page=1&limit=0",
        "page_size=0",
        "page_size=5&limit=5",
        "per_page=501",
        "page=1&cursor=x",
        "sort_by=__proto__",
        "sort_by=title&sort=title",
        "sort_by=a&sortBy=a",
        "sort_by=title&sort_by=title",
        "order=up",
        "order=asc&sort_order=asc",
        "order=asc&order=asc",
        "completed=maybe",
        "completed=true&status=pending",
        "q=a&search=b",
        "todo=1",
        "sort_BY=title",
        "x=",
        "unknown=1",
        "Status=all",
        "status=all&x",
        "=",
        "&=&",
        "%00=1",
        "%ff=%ff",
        "user_id=x",
    ),
]


def assert_helpful(response: Any, *statuses: int) -> None:
    """Fail unless the answer is a 4xx that says what is wrong."""
    assert response.status_code in statuses, response.text
    problem = response.json()
    assert len(problem["detail"]) > 10
    if response.status_code == 422:
        assert problem["errors"]
        for error in problem["errors"]:
            assert error.keys() in ({"detail", "pointer"}, {"detail", "parameter"})


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
async def test_broken_bodies_are_refused(ada: Person, method: str, body: bytes) -> None:
    task = await create(ada)
    path = "/api/tasks" if method == "POST" else f"/api/tasks/{task['id']}"

    response = await ada.request(
        method, path, content=body, headers={"Content-Type": "application/json"}
    )

    assert_helpful(response, 422)
    assert (await ada.get("/api/tasks")).json() == [task]


@pytest.mark.parametrize("members", MEMBERS.values(), ids=MEMBERS)
async def test_members_against_the_rules_are_refused(ada: Person, members: dict[str, Any]) -> None:
    task = await create(ada)

    created = await ada.post("/api/tasks", json=members)
    updated = await ada.put(f"/api/tasks/{task['id']}", json=members)

    for response in (created, updated):
        assert_helpful(response, 422)
        assert response.json()["errors"][0]["pointer"].startswith("#/")
    assert (await ada.get("/api/tasks")).json() == [task]


async def test_a_task_needs_a_title(ada: Person) -> None:
    response = await ada.post("/api/tasks", json={})

    assert_helpful(response, 422)
    assert response.json()["errors"] == [{"detail": "is required", "pointer": "#/title"}]


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({"title": "x", "priority": "urgent"}, "priority: must be 'low', 'medium' or 'high'"),
        ([], "body: must be an object"),
        (
            {"title": "x", "due_date": "2026-13-01T00:00:00Z"},
            "due_date: is not a real date or time",
        ),
        (
            {"title": "x", "due_date": "2026-02-30T00:00:00Z"},
            "due_date: is not a real date or time",
        ),
    ],
)
async def test_errors_are_sentences_for_people(ada: Person, body: Any, detail: str) -> None:
    assert (await ada.post("/api/tasks", json=body)).json()["detail"] == detail


@pytest.mark.parametrize("task_id", IDS)
@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
async def test_malformed_ids_are_refused(ada: Person, method: str, task_id: str) -> None:
    response = await ada.request(method, f"/api/tasks/{task_id}", json={"title": "x"})

    assert_helpful(response, 404, 422)


async def in_chunks(*chunks: bytes) -> AsyncIterator[bytes]:
    """Send a body without saying how long it is."""
    for chunk in chunks:
        yield chunk


@pytest.mark.parametrize("media_type", ["application/json", "text/plain", ""])
@pytest.mark.parametrize(
    "body", [b'{"ids": [1]}', b"{}", b"[]", b"null", b" ", b"\0", b"\xff" * 99]
)
async def test_a_bulk_delete_with_a_body_deletes_nothing(
    ada: Person, body: bytes, media_type: str
) -> None:
    task = await create(ada, completed=True)
    headers = {"Content-Type": media_type} if media_type else {}

    for content in (body, in_chunks(body), in_chunks(b"", body[:1], body[1:])):
        response = await ada.request(
            "DELETE", "/api/tasks?status=completed", content=content, headers=headers
        )
        assert_helpful(response, 422)
        assert response.json()["errors"] == [
            {"detail": response.json()["detail"].removeprefix("body: "), "pointer": "#"}
        ]

    assert (await ada.get("/api/tasks")).json() == [task]


async def test_a_bulk_delete_with_a_huge_body_deletes_nothing(ada: Person) -> None:
    task = await create(ada, completed=True)

    for content in (b"x" * 65_537, in_chunks(*[b"x" * 1024] * 65)):
        response = await ada.request("DELETE", "/api/tasks?status=all", content=content)
        assert_helpful(response, 413)

    assert (await ada.get("/api/tasks")).json() == [task]


async def test_a_bulk_delete_takes_an_empty_body(ada: Person) -> None:
    for options in ({}, {"content": b""}, {"content": in_chunks()}, {"content": in_chunks(b"")}):
        await create(ada, completed=True)

        response = await ada.request("DELETE", "/api/tasks?status=completed", **options)

        assert response.json() == {"deleted": 1}


async def test_a_strangers_body_is_not_read(client: Person) -> None:
    async def unread() -> AsyncIterator[bytes]:
        yield pytest.fail("it was read")

    response = await client.request("DELETE", "/api/tasks?status=all", content=unread())

    assert_helpful(response, 401)


async def test_an_id_at_the_edge_is_just_missing(ada: Person) -> None:
    assert (await ada.get(f"/api/tasks/{2**63 - 1}")).json()["code"] == "task_not_found"


@pytest.mark.parametrize("query", QUERIES)
async def test_queries_against_the_rules_are_refused(ada: Person, query: str) -> None:
    response = await ada.get(f"/api/tasks?{query}")

    assert_helpful(response, 422)
    assert "parameter" in response.json()["errors"][0]
    assert not response.json()["detail"].startswith(":")


@pytest.mark.parametrize(
    "content_type",
    [
        *("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""),
        *(
            "application/jsonp",
            "json",
            "application/",
            "/json",
            "application/xml",
            "text/json",
            "é",
        ),
    ],
)
async def test_bodies_of_other_media_types_are_refused(ada: Person, content_type: str) -> None:
    response = await ada.post(
        "/api/tasks", content=b'{"title": "x"}', headers={b"Content-Type": content_type.encode()}
    )

    assert_helpful(response, 415)


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "APPLICATION/JSON; charset=utf-8", "application/merge-patch+json"],
)
async def test_bodies_of_every_json_media_type_are_read(ada: Person, content_type: str) -> None:
    response = await ada.post(
        "/api/tasks", content=b'{"title": "x"}', headers={"Content-Type": content_type}
    )

    assert response.status_code == 201


@pytest.mark.parametrize(
    "body",
    [
        {"title": {"canary": "canary"}},
        {"title": "x", "priority": "canary"},
        {"title": "x", "due_date": "canary"},
        {"title": "x", "completed": "canary"},
    ],
)
async def test_the_rejected_value_is_never_echoed(ada: Person, body: Any) -> None:
    response = await ada.post("/api/tasks", json=body)

    assert_helpful(response, 422)
    assert "canary" not in response.text
