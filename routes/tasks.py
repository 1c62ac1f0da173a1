"""The tasks of the user whom the token names."""

import re
from typing import Annotated, Any, get_args

from fastapi import APIRouter, Query, Response

import queries
from db import Statement
from dependencies import Route, TagId, TaskId, TaskPaging, UserId
from errors import Problem, answers, header
from models import Priority
from schemas import (
    FIRST_MOMENT,
    LAST_MOMENT,
    BulkFilter,
    Completion,
    Deleted,
    TaskCreate,
    TaskFilter,
    TaskPatch,
    TaskRead,
    TaskUpdate,
    Updated,
    folded,
)

router = APIRouter(
    prefix="/api/tasks",
    tags=["tasks"],
    route_class=Route,
    responses=answers(
        *("not_authenticated", "invalid_token", "token_expired", "token_revoked"),
        *("wrong_user", "rate_limited", "validation_error", "internal_error", "unavailable"),
    ),
)

PRIORITIES = get_args(Priority)
NOT_FOUND = answers("task_not_found")
NO_LINK = answers("task_not_found", "tag_not_found")
CREATED: dict[int | str, dict[str, Any]] = {
    201: {"headers": header("Location", "The path of the task.", type="string")}
}
LISTED: dict[int | str, dict[str, Any]] = {
    200: {
        "headers": header(
            "Link",
            'While there are more: `<path and query of the next page>; rel="next"` (RFC 8288).',
            required=False,
            type="string",
        )
    }
}
BODY = answers("request_timeout", "body_too_large", "unsupported_media_type")
ATTEMPTS = 20
"""How often a change of a task's tags is tried while others change the same task."""


def found(task: TaskRead | None) -> TaskRead:
    """Return the task, or refuse: for a missing id and for one of somebody else's alike."""
    if task is None:
        raise Problem("task_not_found")
    return task


@router.get("", responses=LISTED)
async def list_tasks(
    user_id: UserId, query: Annotated[TaskFilter, Query()], paging: TaskPaging
) -> list[TaskRead]:
    """List your tasks, newest first. `Link` leads to the next page, while there is one."""
    start = paging.start(user_id, query)
    statement = queries.list_tasks(_shape(query))
    # One more than asked for, to know whether there are more.
    values = _filter(query) | start | {"limit": query.limit + 1}
    return paging.end(user_id, query, await statement.all(owner=user_id, **values))


@router.get("/{task_id}", responses=NOT_FOUND)
async def get_task(task_id: TaskId, user_id: UserId) -> TaskRead:
    """Get one of your tasks."""
    return found(await queries.GET_TASK.first(owner=user_id, task_id=task_id))


@router.patch("/{task_id}/complete", responses=NOT_FOUND | BODY)
async def complete_task(
    task_id: TaskId, user_id: UserId, change: Completion | None = None
) -> TaskRead:
    """Toggle whether a task is done; with a body, set it, which is safe to repeat."""
    if change is None:
        return found(await queries.TOGGLE_TASK.first(owner=user_id, task_id=task_id))
    return await _change(user_id, task_id, change)


@router.post("", status_code=201, responses=CREATED | BODY)
async def create_task(task: TaskCreate, user_id: UserId, response: Response) -> TaskRead:
    """Create a task. `Location` names it."""
    statement = queries.CREATE_TAGGED_TASK if task.tags else queries.CREATE_TASK
    created = await statement.one(owner=user_id, **_values(task.model_dump()))
    response.headers["Location"] = f"/api/tasks/{created['id']}"
    return created


@router.put("/{task_id}", responses=NOT_FOUND | BODY)
async def update_task(task_id: TaskId, task: TaskUpdate, user_id: UserId) -> TaskRead:
    """Update a task. A member left out keeps its value, null clears it."""
    return await _change(user_id, task_id, task)


@router.patch("/{task_id}", responses=NOT_FOUND | BODY)
async def patch_task(task_id: TaskId, task: TaskPatch, user_id: UserId) -> TaskRead:
    """Change some members of a task. A member left out keeps its value, null clears it."""
    return await _change(user_id, task_id, task)


@router.delete("/{task_id}", status_code=204, responses=NOT_FOUND)
async def delete_task(task_id: TaskId, user_id: UserId) -> None:
    """Delete one of your tasks."""
    if await queries.DELETE_TASK.first(owner=user_id, task_id=task_id) is None:
        raise Problem("task_not_found")


@router.put("/{task_id}/tags/{tag_id}", responses=NO_LINK)
async def add_tag(task_id: TaskId, tag_id: TagId, user_id: UserId) -> TaskRead:
    """Let a task have one of your tags. It is safe to repeat."""
    return await _relink(queries.ADD_TAG, user_id, task_id, tag_id)


@router.delete("/{task_id}/tags/{tag_id}", responses=NO_LINK)
async def remove_tag(task_id: TaskId, tag_id: TagId, user_id: UserId) -> TaskRead:
    """Take a tag off a task. It is safe to repeat."""
    return await _relink(queries.REMOVE_TAG, user_id, task_id, tag_id)


@router.patch("", responses=BODY)
async def complete_tasks(
    change: Completion, user_id: UserId, query: Annotated[BulkFilter, Query()]
) -> Updated:
    """Set many tasks done, or not done, at once: "mark all done" with `status=pending`."""
    statement = queries.complete_tasks(query.status)
    return await statement.one(owner=user_id, completed=change.completed)


@router.delete("")
async def delete_tasks(user_id: UserId, query: Annotated[BulkFilter, Query()]) -> Deleted:
    """Delete many tasks at once: "clear completed" with `status=completed`."""
    return await queries.delete_tasks(query.status).one(owner=user_id)


def _shape(query: TaskFilter) -> queries.Shape:
    return queries.Shape(
        status=query.status,
        tagged=bool(query.tag),
        search=_search(query.search),
        due=query.due_after is not None or query.due_before is not None,
        sort=query.sort,
        continued=query.cursor is not None,
    )


def _search(text: str | None) -> queries.Search:
    if text is None:
        return "none"
    return "words" if re.search(r"[^\W_]{3}", text) else "letters"


def _filter(query: TaskFilter) -> dict[str, Any]:
    return {
        "priorities": [query.priority] if query.priority else PRIORITIES,
        "tag_keys": list({folded(name) for name in query.tag}),
        "pattern": "%" + re.sub(r"([%_\\])", r"\\\1", query.search or "") + "%",
        "due_after": query.due_after or FIRST_MOMENT,
        "due_before": query.due_before or LAST_MOMENT,
    }


async def _change(user_id: str, task_id: int, change: TaskPatch | Completion) -> TaskRead:
    members = change.model_dump()
    if not members:
        return await get_task(task_id, user_id)
    statement = queries.update_task(frozenset(members))
    values = _values(members)
    for _ in range(ATTEMPTS):
        if changed := await statement.first(owner=user_id, task_id=task_id, **values):
            return changed
        await get_task(task_id, user_id)
    raise Problem("unavailable")


def _values(members: dict[str, Any]) -> dict[str, Any]:
    """Give a statement the tags by what they are compared by; of two spellings the first counts."""
    names = {folded(name): name for name in reversed(members.pop("tags", []))}
    return members | {"tag_keys": list(names), "tag_names": list(names.values())}


async def _relink(
    statement: Statement[TaskRead], user_id: str, task_id: int, tag_id: int
) -> TaskRead:
    if changed := await statement.first(owner=user_id, task_id=task_id, tag_id=tag_id):
        return changed
    task = await get_task(task_id, user_id)
    if await queries.GET_TAG.first(owner=user_id, tag_id=tag_id) is None:
        raise Problem("tag_not_found")
    return task
