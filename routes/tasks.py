"""The tasks of the user named in the token."""

from datetime import datetime
from hashlib import sha256
from typing import Annotated, Any, NoReturn, TypeVar

import orjson
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse

import paging
import queries
from calls import call_of
from dates import FIRST_MOMENT, LAST_MOMENT, first_moment
from db import Statement
from dependencies import (
    IdempotencyKey,
    IfMatch,
    IfNoneMatch,
    LastEventId,
    NoBody,
    Revisions,
    TagId,
    TaskId,
    UserId,
    create_owner,
    refuse_if_match,
)
from errors import Problem, bad_parameter
from folding import search_key, tag_key
from live import EventStream, Live, read_changes
from openapi import BODY, OWNED, answers, header
from routing import Route
from schemas import (
    MAX_TAGS,
    BulkFilter,
    ChangesFilter,
    ChangesRead,
    Completion,
    Deleted,
    EventsFilter,
    Omittable,
    TaskCreate,
    TaskFilter,
    TaskPatch,
    TaskRead,
    Updated,
)

router = APIRouter(
    prefix="/api/tasks",
    tags=["tasks"],
    route_class=Route,
    responses=OWNED | answers("wrong_user"),
)

NOT_FOUND = answers("task_not_found")
CHANGED = answers("task_not_found", "precondition_failed")
RELINKED = answers("task_not_found", "tag_not_found", "precondition_failed")
MANY = answers("precondition_failed", "request_timeout", "body_too_large")
Answers = dict[int | str, dict[str, Any]]
Row = TypeVar("Row")
ETAG = header("ETag", "The task's revision, quoted.", type="string")
WITH_ETAG: Answers = {200: {"headers": ETAG}}
READ = WITH_ETAG | NOT_FOUND | {304: {"description": "The client already has it."}}
CREATED: Answers = {
    201: {
        "headers": header("Location", "The path of the task.", type="string")
        | ETAG
        | header(
            "Idempotency-Replayed",
            "`true` if an earlier call with this key created the task.",
            required=False,
            type="string",
        )
    }
}
REUSED = answers("task_not_found", "idempotency_key_reused", "validation_error")
LISTED: Answers = {
    200: {
        "headers": header("ETag", "The user's revision, as a weak validator.", type="string")
        | header(
            "Link",
            'If there are more: `<path and query of the next page>; rel="next"` (RFC 8288).',
            required=False,
            type="string",
        )
    },
    304: {"description": "Nothing has changed."},
}
EVENTS: Answers = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}


def found(task: TaskRead | None) -> TaskRead:
    """Return the task. Raise the same `Problem` 404 if it is missing or another user's."""
    if task is None:
        raise Problem("task_not_found")
    return task


@router.get("", responses=LISTED)
async def list_tasks(
    user_id: UserId,
    query: Annotated[TaskFilter, Query()],
    known: IfNoneMatch,
    request: Request,
    response: Response,
) -> list[TaskRead]:
    """List your tasks, newest first by default. `Link` leads to the next page, if there is one."""
    start = paging.start(request, user_id, query)
    rev, tasks = await _list(user_id, query, known, start)
    _offer(request, response, f'W/"{rev}"', rev, known)
    if len(tasks) > query.limit:
        tasks.pop()  # it only shows that there are more
        response.headers["Link"] = paging.next_link(request, user_id, query, tasks[-1])
    return tasks


@router.get("/changes")
async def list_changes(user_id: UserId, query: Annotated[ChangesFilter, Query()]) -> ChangesRead:
    """List changes since a revision, including deletions, oldest first."""
    page = await read_changes(user_id, query.since)
    _refuse_ahead("since", query.since, page.rev)
    return {
        "rev": page.rev,
        "changed": page.changed,
        "deleted": [task_id for _, task_id in sorted(page.deleted)],
        "more": page.more,
    }


@router.get(
    "/events",
    response_class=StreamingResponse,
    responses=EVENTS,
    # openapi-generator leaves it out then: its clients would read it to its end, which never comes.
    openapi_extra={"x-internal": True},
)
async def watch_tasks(
    user_id: UserId, query: Annotated[EventsFilter, Query()], last: LastEventId, request: Request
) -> Response:
    """Watch your tasks as Server-Sent Events, without end. They start now, or after a revision."""
    live: Live = request.app.state.live
    live.check_room(user_id)
    rev = (await queries.WATCH.one(owner=user_id))["rev"]
    name, since = ("since", query.since) if last is None else ("Last-Event-ID", last)
    if since is None:
        since = rev
    _refuse_ahead(name, since, rev)
    claims = call_of(request).claims
    if claims is None:  # a test overrides `verify_jwt`, and a stream asks how long a token is good
        raise Problem("not_authenticated")
    return EventStream(live, claims, since)


@router.get("/{task_id:int}", responses=READ)
async def get_task(
    task_id: TaskId, user_id: UserId, known: IfNoneMatch, request: Request, response: Response
) -> TaskRead:
    """Get one of your tasks."""
    task = await _get(user_id, task_id)
    _offer(request, response, _etag(task), task["rev"], known)
    return task


@router.patch("/{task_id:int}/complete", responses=WITH_ETAG | CHANGED | BODY)
async def complete_task(
    task_id: TaskId,
    user_id: UserId,
    match: IfMatch,
    response: Response,
    change: Omittable[Completion] = None,
) -> TaskRead:
    """Toggle whether a task is done. A body sets it instead, which is safe to repeat."""
    if change is not None:
        return _with_etag(await _change(user_id, task_id, match, change), response)
    task = await queries.TOGGLE_TASK.first(owner=user_id, task_id=task_id, match=match.revisions)
    if task is None:
        await _missed(user_id, task_id, match)
    return _with_etag(await _as_written(user_id, task), response)


@router.post(
    "",
    status_code=201,
    dependencies=[Depends(refuse_if_match)],
    responses=CREATED | REUSED | BODY,
)
async def create_task(
    task: TaskCreate, user_id: UserId, key: IdempotencyKey, request: Request, response: Response
) -> TaskRead:
    """Create a task. `Location` is its path. With an `Idempotency-Key` it is safe to repeat."""
    values = _NO_VALUES | _values(task.model_dump())
    statement = queries.create_task(is_tagged=bool(task.tags), is_keyed=key is not None)
    digest = _digest(task) if key else None
    created: TaskRead | None
    while not (created := await statement.first(owner=user_id, key=key, digest=digest, **values)):
        if key and (repeated := await queries.FIND_REPEATED.first(owner=user_id, key=key)):
            created = _repeated(repeated, digest)
            response.headers["Idempotency-Replayed"] = "true"
            break
        # Otherwise the key expired in the meantime, or there is no owner (yet, or any more).
        await create_owner(user_id, request)
    prefix = request.scope.get("root_path", "")
    response.headers["Location"] = f"{prefix}/api/tasks/{created['id']}"
    return _with_etag(created, response)


@router.put("/{task_id:int}", responses=WITH_ETAG | CHANGED | BODY)
async def update_task(
    task_id: TaskId, task: TaskPatch, user_id: UserId, match: IfMatch, response: Response
) -> TaskRead:
    """Update a task: the same as `PATCH`, so a task that was read can be sent back."""
    return _with_etag(await _change(user_id, task_id, match, task), response)


@router.patch("/{task_id:int}", responses=WITH_ETAG | CHANGED | BODY)
async def patch_task(
    task_id: TaskId, task: TaskPatch, user_id: UserId, match: IfMatch, response: Response
) -> TaskRead:
    """Change any fields of a task. Omitted ones keep their value; null clears those that may be."""
    return _with_etag(await _change(user_id, task_id, match, task), response)


@router.delete("/{task_id:int}", status_code=204, responses=CHANGED)
async def delete_task(task_id: TaskId, user_id: UserId, match: IfMatch) -> None:
    """Delete one of your tasks."""
    if not await queries.DELETE_TASK.first(owner=user_id, task_id=task_id, match=match.revisions):
        await _missed(user_id, task_id, match)


@router.put("/{task_id:int}/tags/{tag_id:int}", responses=WITH_ETAG | RELINKED)
async def add_tag(
    task_id: TaskId, tag_id: TagId, user_id: UserId, match: IfMatch, response: Response
) -> TaskRead:
    """Add one of your tags to a task. Safe to repeat."""
    return _with_etag(await _relink(user_id, task_id, tag_id, match, wanted=True), response)


@router.delete("/{task_id:int}/tags/{tag_id:int}", responses=WITH_ETAG | RELINKED)
async def remove_tag(
    task_id: TaskId, tag_id: TagId, user_id: UserId, match: IfMatch, response: Response
) -> TaskRead:
    """Remove a tag from a task. Safe to repeat."""
    return _with_etag(await _relink(user_id, task_id, tag_id, match, wanted=False), response)


@router.patch("", responses=MANY | BODY)
async def complete_tasks(
    change: Completion, user_id: UserId, match: IfMatch, query: Annotated[BulkFilter, Query()]
) -> Updated:
    """Mark many tasks done or not done. For "mark all done", send `status=pending` and true."""
    values = {"status": query.status, "completed": change.completed}
    return await _bulk(queries.COMPLETE_TASKS, user_id, match, values) or {"updated": 0}


@router.delete("", responses=MANY)
async def delete_tasks(
    user_id: UserId, match: IfMatch, _: NoBody, query: Annotated[BulkFilter, Query()]
) -> Deleted:
    """Delete many tasks. For "clear completed", send `status=completed`."""
    values = {"status": query.status}
    return await _bulk(queries.DELETE_TASKS, user_id, match, values) or {"deleted": 0}


def _refuse_ahead(name: str, since: int, rev: int) -> None:
    """Raise `Problem` 422 for a future revision: the client has it from data that is gone."""
    if since > rev:
        raise bad_parameter(name, "is ahead of every revision; forget the copy and start from 0")


async def _list(
    user_id: str, query: TaskFilter, known: Revisions, start: dict[str, Any]
) -> tuple[int, list[TaskRead]]:
    """Return the user's revision, and if it is not known, the tasks that a query finds."""
    statement, values = _read(query)
    rows = await statement.all(owner=user_id, known=known.revisions, **values, **start)
    rev = rows[0]["owner_rev"]
    if rows[0]["id"] is None:
        return rev, []
    for row in rows:
        del row["owner_rev"]  # cheaper than copying the task out of each row
    return rev, [*rows]


def _read(query: TaskFilter) -> tuple[Statement[queries.TaskRow], dict[str, Any]]:
    """Return the statement of a list, and the values that come from the query."""
    text = search_key(query.search or "")
    shape = queries.Shape(
        status=query.status,
        tagged=bool(query.tag),
        searched=bool(text),
        due=query.due_after is not None or query.due_before is not None,
        sort=query.sort,
        continued=query.cursor is not None,
    )
    values = {
        "priority": query.priority,
        "tag_keys": list({tag_key(name) for name in query.tag}),
        "text": text,
        "due_after": query.due_after or FIRST_MOMENT,
        "due_before": query.due_before or LAST_MOMENT,
        "offset": query.offset,
        "limit": query.limit + 1,  # one more than asked for, to know whether there are more
    }
    return queries.list_tasks(shape), values


def _etag(task: TaskRead) -> str:
    return f'"{task["rev"]}"'


def _with_etag(task: TaskRead, response: Response) -> TaskRead:
    response.headers["ETag"] = _etag(task)
    return task


def _offer(request: Request, response: Response, etag: str, rev: int, known: Revisions) -> None:
    """Let the client cache the response, or answer 304 if it has it (RFC 9110, section 15.4.5)."""
    call_of(request).is_cacheable = True
    response.headers["ETag"] = etag
    if known.matches(rev):
        response.status_code = 304


async def _get(user_id: str, task_id: int) -> TaskRead:
    return found(await queries.GET_TASK.first(owner=user_id, task_id=task_id))


def _mismatch(etag: str) -> Problem:
    return Problem("precondition_failed", headers={"ETag": etag})


async def _missed(user_id: str, task_id: int, match: Revisions) -> NoReturn:
    """Say why a write found nothing: raise `Problem` 404 or 412."""
    if match.revisions is None:
        raise Problem("task_not_found")  # a query might find one created in the meantime
    raise _mismatch(_etag(await _get(user_id, task_id)))


async def _check(user_id: str, task_id: int, match: Revisions) -> TaskRead:
    """Return the current task. Raise `Problem` 404, or 412 if its revision does not match."""
    task = await _get(user_id, task_id)
    if not match.matches(task["rev"]):
        raise _mismatch(_etag(task))
    return task


async def _change(
    user_id: str, task_id: int, match: Revisions, change: TaskPatch | Completion
) -> TaskRead:
    members = change.model_dump()
    if not members:
        return await _check(user_id, task_id, match)
    statement = queries.UPDATE_TAGGED_TASK if "tags" in members else queries.UPDATE_TASK
    values = _NO_VALUES | _values(members) | {"members": list(members)}
    # At PostgreSQL's usual level, READ COMMITTED, a statement that has waited for a lock reads the
    # locked rows as they are now, and all others as they were when it began. So one that waited for
    # another write of this user may miss a task that it made: the look that follows is newer, and
    # so is the second try. One that sets tags has to know them, so it does its waiting in a
    # statement of its own before (`after=` in queries.py).
    for _ in range(2):
        if task := await statement.first(
            owner=user_id, task_id=task_id, match=match.revisions, **values
        ):
            return await _as_written(user_id, task)
        current = await _check(user_id, task_id, match)
        if members.items() <= current.items():
            break
    return current  # already as requested


async def _as_written(user_id: str, task: queries.TaskRow) -> TaskRead:
    """Return the task with the tags of its revision. Raise `Problem` 404 if it is gone.

    A statement that waited has read the tags as they were before, see `_change`.
    """
    if task.pop("is_stale", False):
        return await _get(user_id, task["id"])
    return task


def _digest(task: TaskCreate) -> bytes:
    """Return the digest of what was sent: the same after a deploy that adds a column."""
    sent = task.model_dump(exclude_defaults=True)
    return sha256(orjson.dumps(sent, option=orjson.OPT_SORT_KEYS)).digest()


def _repeated(row: queries.TaskRow, digest: bytes | None) -> TaskRead:
    """Return the task that was created earlier under the same key."""
    if row["digest"] != digest:
        raise Problem("idempotency_key_reused")
    return found(queries.task_of(row) if row["id"] is not None else None)


_NO_VALUES = dict.fromkeys(queries.TASK_COLUMNS) | {"due_is_day": False}


def _values(members: dict[str, Any]) -> dict[str, Any]:
    """Return the values to write, with the forms in which they are searched and compared.

    Of two spellings of a tag the first counts.
    """
    values = members | {
        f"{name}_key": members[name] and search_key(members[name])
        for name in ("title", "description")
        if name in members
    }
    if due := members.get("due_date"):
        values |= {"due_date": first_moment(due), "due_is_day": not isinstance(due, datetime)}
    tags = {
        (tag.get("id"), tag_key(tag["name"])): tag["name"]
        for tag in reversed(members.get("tags", []))
    }
    return values | {
        "tag_ids": [tag_id for tag_id, _ in tags],
        "tag_names": [*tags.values()],
        "tag_keys": [key for _, key in tags],
    }


async def _bulk(
    statement: Statement[Row], user_id: str, match: Revisions, values: dict[str, Any]
) -> Row | None:
    """Change many tasks, if there are any. Raise `Problem` 412 if the list has another revision."""
    while not (done := await statement.first(owner=user_id, match=match.revisions, **values)):
        rev = (await queries.GET_REVISION.one(owner=user_id))["rev"]
        if not match.matches(rev):
            raise _mismatch(f'W/"{rev}"')
        if not rev:
            break  # who has written nothing yet has no tasks
    return done


async def _relink(
    user_id: str, task_id: int, tag_id: int, match: Revisions, *, wanted: bool
) -> TaskRead:
    statement = queries.ADD_TAG if wanted else queries.REMOVE_TAG
    values = {"task_id": task_id, "tag_id": tag_id, "max_tags": MAX_TAGS}
    for _ in range(2):
        if changed := await statement.first(owner=user_id, match=match.revisions, **values):
            return changed
        task = await _check(user_id, task_id, match)
        if await queries.GET_TAG.first(owner=user_id, tag_id=tag_id) is None:
            raise Problem("tag_not_found")
        ids = {tag["id"] for tag in orjson.loads(orjson.dumps(task["tags"]))}  # JSON as it came
        if (tag_id in ids) == wanted:
            break  # already as requested
        if wanted and len(ids) >= MAX_TAGS:
            raise bad_parameter("tag_id", f"is not added: a task has at most {MAX_TAGS} tags")
        # Otherwise it may have been created or changed since the statement: try once more.
    return task
