"""Every SQL statement, each naming its owner: the one file to audit for isolation."""

from functools import cache

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    Text,
    bindparam,
    delete,
    func,
    not_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import col

from db import Statement
from models import Task, User
from schemas import BulkStatus, Deleted, Status, TaskCreate, TaskRead, Updated, UserRead

OWNER = bindparam("owner", type_=Text, required=True)
TASK_ID = bindparam("task_id", type_=BigInteger, required=True)

_MINE = col(Task.user_id) == OWNER
_THIS_ONE = _MINE & (col(Task.id) == TASK_ID)
_TASK = [getattr(Task, name) for name in TaskRead.__annotations__]
_USER = [getattr(User, name) for name in UserRead.__annotations__]
_NOW = {"updated_at": func.now()}


def _with_status(status: Status | BulkStatus) -> list[ColumnElement[bool]]:
    return [] if status == "all" else [col(Task.completed) == (status == "completed")]


@cache
def list_tasks(status: Status) -> Statement[TaskRead]:
    """`owner`, `limit`: the owner's tasks, newest first."""
    return Statement(
        select(*_TASK)
        .where(_MINE, *_with_status(status))
        .order_by(col(Task.created_at).desc(), col(Task.id).desc())
        .limit(bindparam("limit", type_=BigInteger, required=True)),
        TaskRead,
    )


GET_TASK = Statement(select(*_TASK).where(_THIS_ONE), TaskRead)

CREATE_TASK = Statement(
    insert(Task)
    .add_cte(insert(User).values(id=OWNER).on_conflict_do_nothing().cte("owner"))
    .values(user_id=OWNER)
    .returning(*_TASK),
    TaskRead,
    writes=TaskCreate.model_fields,
)
"""Creates the owner too, at the first write. The foreign key is looked at when both are there."""


@cache
def update_task(members: frozenset[str]) -> Statement[TaskRead]:
    """`owner`, `task_id` and the named members: change these and no other."""
    return Statement(
        update(Task).where(_THIS_ONE).values(_NOW).returning(*_TASK), TaskRead, writes=members
    )


TOGGLE_TASK = Statement(
    update(Task)
    .where(_THIS_ONE)
    .values(completed=not_(col(Task.completed)), **_NOW)
    .returning(*_TASK),
    TaskRead,
)

DELETE_TASK = Statement(delete(Task).where(_THIS_ONE).returning(col(Task.id)), dict[str, int])


def _locked(*which: ColumnElement[bool]) -> ColumnElement[bool]:
    """Lock many tasks in one order, so that two such statements wait and do not deadlock."""
    ids = select(col(Task.id)).where(_MINE, *which).order_by(col(Task.id)).with_for_update()
    return col(Task.id).in_(ids)


@cache
def complete_tasks(status: BulkStatus) -> Statement[Updated]:
    """`owner`, `completed`: set it on the owner's tasks that differ, and count these."""
    completed = bindparam("completed", type_=Boolean, required=True)
    changed = (
        update(Task)
        .where(_MINE, _locked(*_with_status(status), col(Task.completed) != completed))
        .values(completed=completed, **_NOW)
        .returning(col(Task.id))
        .cte("changed")
    )
    return Statement(select(func.count().label("updated")).select_from(changed), Updated)


@cache
def delete_tasks(status: BulkStatus) -> Statement[Deleted]:
    """`owner`: delete the owner's tasks and count them."""
    gone = (
        delete(Task)
        .where(_MINE, _locked(*_with_status(status)))
        .returning(col(Task.id))
        .cte("gone")
    )
    return Statement(select(func.count().label("deleted")).select_from(gone), Deleted)


FIND_OR_CREATE_USER = Statement(
    insert(User)
    .values(id=OWNER)
    # An update, though it changes nothing, because DO NOTHING would return no row.
    .on_conflict_do_update(index_elements=["id"], set_={"id": OWNER})
    .returning(*_USER),
    UserRead,
)
