"""What a route does not run, it refuses where it is declared."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, BackgroundTasks, Body, Cookie, Depends, Header, Query

from routing import Route
from schemas import Completion, TaskFilter


async def of_a_header(name: Annotated[str, Header()]) -> str:
    return name


async def of_a_body(change: Completion) -> Completion:
    return change


async def with_an_end() -> AsyncIterator[int]:
    yield 1


def blocking() -> None: ...
async def header(name: Annotated[str, Header()]) -> None: ...
async def cookie(name: Annotated[str, Cookie()]) -> None: ...
async def plain_query(limit: int) -> None: ...
async def optional_query(limit: int | None = None) -> None: ...
async def two_queries(one: Annotated[TaskFilter, Query()], two: int) -> None: ...
async def two_bodies(one: Completion, two: Completion) -> None: ...
async def tasks(later: BackgroundTasks) -> None: ...
async def header_inside(name: Annotated[str, Depends(of_a_header)]) -> None: ...
async def body_inside(change: Annotated[Completion, Depends(of_a_body)]) -> None: ...
async def generator_inside(number: Annotated[int, Depends(with_an_end)]) -> None: ...
async def blocking_inside(nothing: Annotated[None, Depends(blocking)]) -> None: ...
async def supported(
    query: Annotated[TaskFilter, Query()], change: Annotated[Completion, Body()]
) -> None: ...


@pytest.mark.parametrize(
    ("endpoint", "reason"),
    [
        (blocking, "must be an async function"),
        (header, "must read headers and cookies"),
        (cookie, "must read headers and cookies"),
        (plain_query, "as one model"),
        (optional_query, "as one model"),
        (two_queries, "as one model"),
        (two_bodies, "one body"),
        (tasks, "but Request and Response"),
        (header_inside, "of_a_header must read"),
        (body_inside, "without a body of its own"),
        (generator_inside, "with_an_end must be an async function"),
        (blocking_inside, "blocking must be an async function"),
    ],
)
def test_what_is_not_supported_is_refused(endpoint: Any, reason: str) -> None:
    router = APIRouter(route_class=Route)

    with pytest.raises(TypeError, match=f"^/x: .*{reason}.*\\.$"):
        router.post("/x")(endpoint)


def test_what_is_supported_is_taken() -> None:
    router = APIRouter(route_class=Route)

    router.post("/x")(supported)

    assert len(router.routes) == 1
