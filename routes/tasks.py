"""The tasks of the user whom the token names."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

import queries
from dependencies import Route, TaskId, UserId
from errors import Problem, answers, header
from schemas import (
    BulkFilter,
    Completion,
    Deleted,
    TaskCreate,
    TaskFilter,
    TaskPatch,
    TaskRead,
    TaskUpdate,
    Updated,
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

NOT_FOUND = answers("task_not_found")
CREATED: dict[int | str, dict[str, Any]] = {
    201: {"headers": header("Location", "The path of the task.", type="string")}
}
BODY = answers("request_timeout", "body_too_large", "unsupported_media_type")


def found(task: TaskRead | None) -> TaskRead:
    """Return the task, or refuse: for a missing id and for one of somebody else's alike."""
    if task is None:
        raise Problem("task_not_found")
    return task


@router.get("")
async def list_tasks(user_id: UserId, query: Annotated[TaskFilter, Query()]) -> list[TaskRead]:
    """List your tasks, newest first."""
    return await queries.list_tasks(query.status).all(owner=user_id, limit=query.limit)


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
    created = await queries.CREATE_TASK.one(owner=user_id, **task.model_dump())
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


async def _change(user_id: str, task_id: int, change: TaskPatch | Completion) -> TaskRead:
    members = change.model_dump()
    if not members:
        return await get_task(task_id, user_id)
    statement = queries.update_task(frozenset(members))
    return found(await statement.first(owner=user_id, task_id=task_id, **members))
