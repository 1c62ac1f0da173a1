"""Every SQL statement, each naming its owner: the one file to audit for isolation.

In this order: what statements share, revisions, lists, one task, many tasks, tags, changes,
accounts and sessions, revocations and cleaning up.
"""

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Literal, NamedTuple, NotRequired

from sqlalchemy import (
    ARRAY,
    CTE,
    BigInteger,
    BindParameter,
    Boolean,
    ColumnElement,
    CompoundSelect,
    DateTime,
    Delete,
    FromClause,
    Interval,
    Label,
    LargeBinary,
    Select,
    SQLColumnExpression,
    Text,
    Update,
    any_,
    bindparam,
    case,
    cast,
    delete,
    exists,
    false,
    func,
    literal_column,
    not_,
    or_,
    select,
    true,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import Insert, insert
from sqlmodel import col
from typing_extensions import TypedDict

from db import Statement
from models import (
    Deletion,
    IdempotencyKey,
    Link,
    Revocation,
    Session,
    Tag,
    Task,
    User,
    due_or_first,
    due_or_last,
    rank,
)
from schemas import (
    MAX_ID,
    MAX_TAGS,
    Deleted,
    Sort,
    Status,
    TagCreate,
    TagRead,
    TaskCreate,
    TaskRead,
    Updated,
    UserRead,
)
from security import FOREIGN, LOCAL, SESSION_KEY, USER_KEY

# --- What statements share ---

OWNER = bindparam("owner", type_=Text, required=True)
TASK_ID = bindparam("task_id", type_=BigInteger, required=True)

TAG_ID = bindparam("tag_id", type_=BigInteger, required=True)
_TAG_NAMES = bindparam("tag_names", type_=ARRAY(Text), required=True)
_TAG_KEYS = bindparam("tag_keys", type_=ARRAY(Text), required=True)

_MINE = col(Task.user_id) == OWNER
_THIS_ONE = _MINE & (col(Task.id) == TASK_ID)
_LINK_OF_THIS_ONE = (col(Link.user_id) == OWNER) & (col(Link.task_id) == TASK_ID)
_THIS_TAG = (col(Tag.user_id) == OWNER) & (col(Tag.id) == TAG_ID)
_TAG = [getattr(Tag, name) for name in TagRead.__annotations__]
_TAG_AND_KEY = [*_TAG, col(Tag.name_key)]
_NO_TAGS: ColumnElement[Any] = literal_column("'[]'::json")


def _as_json(tags: FromClause) -> Label[Any]:
    """Let the database render tags as the JSON of a response, sorted by name."""
    columns = [tags.c[name] for name in TagRead.__annotations__]
    tag = select(*columns).order_by(tags.c.name_key).subquery("tag")
    objects = select(func.row_to_json(literal_column(tag.name))).select_from(tag)
    # This is [] if there are none, and faster than an aggregate.
    return func.array_to_json(func.array(objects.scalar_subquery())).label("tags")


def _tags(ids: Select[int] | CompoundSelect[int]) -> Label[Any]:
    mine = select(*_TAG_AND_KEY).where(col(Tag.user_id) == OWNER, col(Tag.id).in_(ids))
    return _as_json(mine.subquery("mine"))


def _shown(user_id: BindParameter[str] | str) -> ColumnElement[str]:
    """Return a user's id as it is in the token."""
    return func.regexp_replace(user_id, literal_column(f"'^{FOREIGN}'"), literal_column("''"))


_SHOWN_OWNER = select(_shown(OWNER)).scalar_subquery().label("user_id")  # run once for all rows


def _task(tags: ColumnElement[Any]) -> list[Any]:
    others = {"tags": tags, "user_id": _SHOWN_OWNER}
    return [others.get(name, getattr(Task, name, None)) for name in TaskRead.__annotations__]


_LINKED = (
    select(col(Link.tag_id))
    .where(col(Link.user_id) == OWNER, col(Link.task_id) == col(Task.id))
    .correlate(Task)
)
_TASK = _task(_tags(_LINKED))
_USER = [
    _shown(User.id).label("id") if name == "id" else getattr(User, name)
    for name in UserRead.__annotations__
]
_MEMBERS = tuple(TaskRead.__annotations__)
_ONE: ColumnElement[int] = literal_column("1")


def task_of(row: TaskRead) -> TaskRead:
    """Return the task in a row that holds more."""
    return {name: row[name] for name in _MEMBERS}  # type: ignore[literal-required, return-value]


_OWNERS_ROW = select(_ONE.label("one")).subquery("one").outerjoin(User, col(User.id) == OWNER)
"""Always one row: a user who has written nothing yet has no row."""

_REV = func.coalesce(col(User.rev), literal_column("0"))


def _with_status(status: Status) -> list[ColumnElement[bool]]:
    return [] if status == "all" else [col(Task.completed) == (status == "completed")]


def _given(table: type[Task | Tag | User], members: Iterable[str]) -> dict[str, BindParameter[Any]]:
    """Return parameters for columns of one table, by name; tags are written separately."""
    columns = table.__table__.c  # type: ignore[union-attr]
    return {
        name: bindparam(name, type_=columns[name].type, required=True)
        for name in members
        if name != "tags"
    }


def _differs(table: type[Task | Tag], members: Iterable[str]) -> ColumnElement[bool]:
    """Return whether any value differs: a write that changes nothing is no change."""
    given = _given(table, members).items()
    return or_(false(), *(table.__table__.c[name].is_distinct_from(new) for name, new in given))  # type: ignore[union-attr]


# --- Revisions ---
#
# Every write locks its owner's row first, so that a user's writes run one at a time, and a revision
# is visible only if every earlier one is.

CHANNEL = "todo_changes"
"""The notification channel of new revisions; the payload is the owner's id.

Only for watched owners, because transactions that notify can commit only one at a time.
"""

_MOMENT = func.clock_timestamp().label("moment")
"""When a write got its revision. `now()`, when it began, may precede that of a lower revision."""

_TELL = case(
    (
        col(User.watched_until) > func.now(),
        func.pg_notify(literal_column(f"'{CHANNEL}'"), col(User.id)),
    )
).label("told")

_LOCK_OWNER = Statement(
    select(col(User.id)).where(col(User.id) == OWNER).with_for_update(key_share=True),
    dict[str, str],
)
"""A separate statement, because one that waits for the lock itself keeps its older snapshot."""


def _target(table: type[Task | Tag], *which: ColumnElement[bool]) -> CTE:
    """Find and lock the rows to write, as they are after the owner's other writes."""
    return (
        select(col(table.id).label("id"))
        .select_from(User)
        .join(table, col(table.user_id) == col(User.id))
        .where(col(User.id) == OWNER, col(table.user_id) == OWNER, *which)
        .order_by(col(table.id))
        .with_for_update(key_share=True, of=(User, table))  # locked in this order
        .cte("target")
    )


def _bump(target: CTE) -> CTE:
    """Give the owner a new revision and notify event streams, if there is anything to write.

    The count reads the whole target first: once the owner's row has changed, it finds nothing.
    """
    count = select(func.count()).select_from(target).scalar_subquery()
    return (
        update(User)
        .where(col(User.id) == OWNER, count > literal_column("0"))
        .values(rev=col(User.rev) + _ONE)
        .returning(col(User.rev), _MOMENT, _TELL)
        .cte("bump")
    )


def _new_revision(owner: Insert) -> CTE:
    """Give the owner of something new a revision; create the owner at the first write.

    Foreign keys are checked at the end of the statement, when both rows exist.
    """
    return (
        owner.on_conflict_do_update(index_elements=["id"], set_={"rev": col(User.rev) + _ONE})
        .returning(col(User.rev), _MOMENT, _TELL)
        .cte("bump")
    )


_BUMP_OR_CREATE_OWNER = _new_revision(insert(User).values(id=OWNER, rev=_ONE))


# --- Lists ---

Search = Literal["none", "letters", "words"]
"""How to search for text: the index serves text with three letters or digits in a row."""


class Shape(NamedTuple):
    """The parts of a list's query that change its SQL; the rest are values."""

    status: Status
    tagged: bool
    search: Search
    due: bool
    sort: Sort
    continued: bool


_KNOWN_REVS = bindparam("known", type_=ARRAY(BigInteger), required=True)
_PATTERN = bindparam("pattern", type_=Text, required=True)
_AFTER = bindparam("after", type_=Text, required=True)
_AFTER_ID = bindparam("after_id", type_=BigInteger, required=True)
_PRIORITY = bindparam("priority", type_=Text, required=True)
_DUE_AFTER = bindparam("due_after", type_=DateTime(timezone=True), required=True)
_DUE_BEFORE = bindparam("due_before", type_=DateTime(timezone=True), required=True)

_WITH_THE_TEXT = col(Task.title).ilike(_PATTERN) | col(Task.description).ilike(_PATTERN)
_WITH_THE_LETTERS = func.lower(Task.title).like(func.lower(_PATTERN)) | func.lower(
    Task.description
).like(func.lower(_PATTERN))
"""Written so that the index cannot serve it: short text would make it read the whole index."""


_TASKS_WITH_THE_TAGS = (
    select(col(Link.task_id))
    .join(Tag, (col(Tag.user_id) == OWNER) & (col(Tag.id) == col(Link.tag_id)))
    .where(col(Link.user_id) == OWNER, col(Tag.name_key) == any_(_TAG_KEYS))
    .group_by(col(Link.task_id))
    .having(func.count() == func.cardinality(_TAG_KEYS))
    .cte("with_the_tags")
    # Otherwise, if the planner underestimates the rows, it is run again for each task.
    .prefix_with("MATERIALIZED")
)
_WITH_THE_TAGS = col(Task.id).in_(select(_TASKS_WITH_THE_TAGS.c.task_id))


_SortKey = Callable[[SQLColumnExpression[Any]], SQLColumnExpression[Any]]


def _itself(value: SQLColumnExpression[Any]) -> SQLColumnExpression[Any]:
    return value


def _order(sort: Sort) -> tuple[Any, _SortKey]:
    """Return a column, and the function that makes it the sort key."""
    columns: dict[str, tuple[Any, _SortKey]] = {
        "created": (Task.created_at, _itself),
        "updated": (Task.updated_at, _itself),
        "title": (Task.title, func.lower),
        "priority": (Task.priority, rank),
        "due_date": (Task.due_date, due_or_first if sort.startswith("-") else due_or_last),
    }
    column, key = columns[sort.removeprefix("-")]
    return col(column), key


class Listed(TaskRead):
    """A task of a list, and its owner's revision, which is not part of the task."""

    owner_rev: NotRequired[int]


@cache
def list_tasks(shape: Shape) -> Statement[Listed]:
    """List tasks: takes `owner`, `limit`, `known`, `priority` and what the shape needs.

    Each row has the owner's revision. There is one row without a task if no task matches, or if
    the revision is known.

    A tagged shape needs `tag_keys`, one with a search `pattern`, a due one `due_after` and
    `due_before`, a continued one `after` and `after_id`: the sort member, as text, and the id of
    the last task before the page.
    """
    column, key = _order(shape.sort)
    place = tuple_(key(column), col(Task.id))
    after = tuple_(key(cast(_AFTER, column.type)), _AFTER_ID)
    descending = shape.sort.startswith("-")
    # One of the two indexed expressions, the sort key if sorted by due date. A task without a due
    # date is outside every range, because the bounds exclude infinity.
    due = (due_or_first if descending else due_or_last)(col(Task.due_date))
    filters = [
        (shape.tagged, _WITH_THE_TAGS),
        (shape.search == "words", _WITH_THE_TEXT),
        (shape.search == "letters", _WITH_THE_LETTERS),
        (shape.due, (due > _DUE_AFTER) & (due < _DUE_BEFORE)),
        (shape.continued, place < after if descending else place > after),
    ]
    meant = [condition for wanted, condition in filters if wanted]
    known = any_(_KNOWN_REVS) == _REV
    tasks = (
        select(*_TASK)
        .where(_MINE, *_with_status(shape.status), *meant)
        .where(_PRIORITY.is_(None) | (col(Task.priority) == _PRIORITY), not_(known))
        .order_by(*(part.desc() if descending else part for part in (key(column), col(Task.id))))
        .limit(bindparam("limit", type_=BigInteger, required=True))
        .correlate(User)
        .lateral("found")
    )
    return Statement(
        select(_REV.label("owner_rev"), tasks).select_from(_OWNERS_ROW.outerjoin(tasks, true())),
        Listed,
    )


# --- One task ---

GET_TASK = Statement(select(*_TASK).where(_THIS_ONE), TaskRead)


def _tagged(write: Insert | Update) -> Select[Any]:
    """Give the written task exactly the tags of these names, creating those that are missing.

    A statement does not see its own writes in the tables, so the result comes from RETURNING.
    """
    task = write.returning(*_task(_NO_TAGS.label("tags"))).cte("task")
    wanted = func.unnest(_TAG_NAMES, _TAG_KEYS).table_valued("name", "name_key", name="wanted")
    wanted = wanted.render_derived()
    is_written = exists(select(task.c.id))  # evaluated first: it waits for the owner's lock
    found = (
        select(*_TAG_AND_KEY)
        .where(col(Tag.user_id) == OWNER, col(Tag.name_key) == any_(_TAG_KEYS), is_written)
        # A locked row is read as it is now, not as it was when the statement began.
        .with_for_update(key_share=True)
        .cte("found")
    )
    made = (
        insert(Tag)
        .from_select(
            ["user_id", "name", "name_key"],
            select(OWNER, wanted.c.name, wanted.c.name_key).where(
                wanted.c.name_key.not_in(select(found.c.name_key)), is_written
            ),
        )
        # Some may be newer than the snapshot. DO UPDATE, because DO NOTHING would return no row.
        .on_conflict_do_update(constraint="tags_name", set_={"name": col(Tag.name)})
        .returning(*_TAG_AND_KEY)
        .cte("made")
    )
    tags = union_all(select(found), select(made)).cte("tagged")
    linked = (
        insert(Link)
        .from_select(["user_id", "task_id", "tag_id"], select(OWNER, task.c.id, tags.c.id))
        .on_conflict_do_nothing()
        .cte("linked")
    )
    unlinked = (
        delete(Link)
        .where(
            col(Link.user_id) == OWNER,
            col(Link.task_id) == task.c.id,
            col(Link.tag_id).not_in(select(tags.c.id)),
        )
        .cte("unlinked")
    )
    columns = [
        _as_json(tags) if name == "tags" else task.c[name] for name in TaskRead.__annotations__
    ]
    return select(*columns).add_cte(linked, unlinked)


_IDEMPOTENCY_KEY = bindparam("key", type_=Text, required=True)
_SEQUENCE = func.pg_get_serial_sequence(literal_column("'tasks'"), literal_column("'id'"))
_FRESH_KEY = (
    insert(IdempotencyKey)
    .values(
        user_id=OWNER,
        key=_IDEMPOTENCY_KEY,
        digest=bindparam("digest", type_=LargeBinary, required=True),
        task_id=func.nextval(_SEQUENCE),
    )
    .on_conflict_do_nothing()
    .returning(col(IdempotencyKey.task_id).label("id"))
    .cte("fresh")
)
_BUMP_OR_CREATE_OWNER_ONCE = _new_revision(
    insert(User).from_select(["id", "rev"], select(OWNER, _ONE).select_from(_FRESH_KEY))
)


@cache
def create_task(*, is_tagged: bool = False, is_keyed: bool = False) -> Statement[TaskRead]:
    """Create a task, and its owner at the first write: takes `owner` and every member.

    With tags, also `tag_names` and `tag_keys`. With a key, also `key` and `digest`, and it returns
    no row if the key was used before.
    """
    bump = _BUMP_OR_CREATE_OWNER_ONCE if is_keyed else _BUMP_OR_CREATE_OWNER
    values = {
        "user_id": OWNER,
        "rev": bump.c.rev,
        "created_at": bump.c.moment,
        "updated_at": bump.c.moment,
        **_given(Task, TaskCreate.model_fields),
    }
    if is_keyed:
        values["id"] = _FRESH_KEY.c.id
    new = insert(Task).from_select(list(values), select(*values.values()))
    if is_tagged:
        return Statement(_tagged(new), TaskRead)
    return Statement(new.returning(*_task(_NO_TAGS.label("tags"))), TaskRead)


class Repeated(TaskRead):
    """The task created under a key; its id is null if it was deleted since."""

    digest: bytes


FIND_REPEATED = Statement(
    select(col(IdempotencyKey.digest), *_TASK)
    .select_from(IdempotencyKey)
    .outerjoin(
        Task,
        (col(Task.user_id) == OWNER) & (col(Task.id) == col(IdempotencyKey.task_id)),
    )
    .where(col(IdempotencyKey.user_id) == OWNER, col(IdempotencyKey.key) == _IDEMPOTENCY_KEY),
    Repeated,
)


_FOUND_REVS = bindparam("match", type_=ARRAY(BigInteger), required=True)
_MATCHES = _FOUND_REVS.is_(None) | (col(Task.rev) == any_(_FOUND_REVS))
_BUMP_FOR_THIS_ONE = _bump(_target(Task, col(Task.id) == TASK_ID, _MATCHES))


class Written(TaskRead):
    """A task as written, and whether its tags may have changed since the statement began."""

    is_stale: NotRequired[bool]


_REV_BEFORE = select(_REV).select_from(_OWNERS_ROW).scalar_subquery()
_IS_STALE = (col(Task.rev) != _REV_BEFORE + _ONE).label("is_stale")
"""A statement that waited updates the latest row, but reads other tables in its old snapshot."""


def _change(bump: CTE, **values: Any) -> Update:  # noqa: ANN401  (of any column)
    """Update this task if it was given a revision."""
    return update(Task).where(_THIS_ONE).values(rev=bump.c.rev, updated_at=bump.c.moment, **values)


_TAG_COUNT = func.cardinality(_TAG_KEYS)
_OTHER_TAGS = or_(
    *(
        select(func.count()).where(*these).scalar_subquery() != _TAG_COUNT
        for these in (
            [_LINK_OF_THIS_ONE],
            [
                col(Tag.user_id) == OWNER,
                col(Tag.name_key) == any_(_TAG_KEYS),
                col(Tag.id).in_(select(col(Link.tag_id)).where(_LINK_OF_THIS_ONE)),
            ],
        )
    )
)


@cache
def update_task(members: frozenset[str], *, is_patient: bool = False) -> Statement[Written]:
    """Change the named members only: takes `owner`, `task_id`, `match` and these members.

    It returns no row if nothing would change. With `tags` it takes `tag_names` and `tag_keys`, and
    also returns no row if a concurrent write came first, whose tags its snapshot lacks; if
    `is_patient`, it locks the owner first to let others finish.
    """
    which = [col(Task.id) == TASK_ID, _MATCHES]
    differs = _differs(Task, members)
    if "tags" not in members:
        change = _change(_bump(_target(Task, *which, differs)), **_given(Task, members))
        return Statement(change.returning(*_TASK, _IS_STALE), Written)
    before = select(col(Task.rev)).where(_THIS_ONE).scalar_subquery()
    which += [col(Task.rev) == before, differs | _OTHER_TAGS]
    change = _change(_bump(_target(Task, *which)), **_given(Task, members))
    return Statement(_tagged(change), Written, after=_LOCK_OWNER if is_patient else None)


TOGGLE_TASK = Statement(
    _change(_BUMP_FOR_THIS_ONE, completed=not_(col(Task.completed))).returning(*_TASK, _IS_STALE),
    Written,
)


def _bury(gone: CTE, bump: CTE) -> CTE:
    """Record deletions, for clients that ask what has changed."""
    return (
        insert(Deletion)
        .from_select(["user_id", "task_id", "rev"], select(OWNER, gone.c.id, bump.c.rev))
        .cte("buried")
    )


_DELETED_TASK = (
    delete(Task)
    .where(_THIS_ONE, exists(select(_BUMP_FOR_THIS_ONE.c.rev)))
    .returning(col(Task.id))
    .cte("gone")
)
DELETE_TASK = Statement(
    select(_DELETED_TASK.c.id).add_cte(_bury(_DELETED_TASK, _BUMP_FOR_THIS_ONE)), dict[str, int]
)


# --- Many tasks ---

BULK_SECONDS = 60.0
"""How long a bulk change may take: 100,000 tasks take half of it on a slow machine."""


@cache
def complete_tasks(status: Status) -> Statement[Updated]:
    """Set `completed` on the tasks of `owner` that differ, and count them."""
    completed = bindparam("completed", type_=Boolean, required=True)
    bump = _bump(target := _target(Task, *_with_status(status), col(Task.completed) != completed))
    changed = (
        update(Task)
        .where(_MINE, col(Task.id).in_(select(target.c.id)))
        .values(completed=completed, rev=bump.c.rev, updated_at=bump.c.moment)
        .returning(col(Task.id))
        .cte("changed")
    )
    counted = select(func.count().label("updated")).select_from(changed)
    return Statement(counted, Updated, after=_LOCK_OWNER, deadline=BULK_SECONDS)


@cache
def delete_tasks(status: Status) -> Statement[Deleted]:
    """Delete the tasks of `owner` and count them."""
    target = _target(Task, *_with_status(status))
    gone = (
        delete(Task)
        .where(_MINE, col(Task.id).in_(select(target.c.id)))
        .returning(col(Task.id))
        .cte("gone")
    )
    counted = select(func.count().label("deleted")).select_from(gone)
    buried = _bury(gone, _bump(target))
    return Statement(counted.add_cte(buried), Deleted, after=_LOCK_OWNER, deadline=BULK_SECONDS)


# --- Tags ---

_MAX_TAGS: ColumnElement[int] = literal_column(str(MAX_TAGS))


def _relink(link: Insert | Delete, tags: Select[Any] | CompoundSelect[Any]) -> Statement[TaskRead]:
    """Give the task a new revision too, if its tags have changed."""
    changed = link.returning(col(Link.task_id).label("id")).cte("changed")
    return Statement(
        _change(_bump(changed)).returning(*_task(_tags(tags))), TaskRead, after=_LOCK_OWNER
    )


ADD_TAG = _relink(
    insert(Link)
    .from_select(
        ["user_id", "task_id", "tag_id"],
        select(OWNER, col(Task.id), col(Tag.id)).where(
            _THIS_ONE,
            _THIS_TAG,
            select(func.count()).where(_LINK_OF_THIS_ONE).scalar_subquery() < _MAX_TAGS,
        ),
    )
    .on_conflict_do_nothing(),
    union_all(_LINKED, select(TAG_ID)),
)
REMOVE_TAG = _relink(
    delete(Link).where(_LINK_OF_THIS_ONE, col(Link.tag_id) == TAG_ID),
    _LINKED.where(col(Link.tag_id) != TAG_ID),
)
"""Both return no row if nothing would change: the task has the tag (or 20 others), or lacks it."""


LIST_TAGS = Statement(
    select(*_TAG).where(col(Tag.user_id) == OWNER).order_by(col(Tag.name_key)), TagRead
)

GET_TAG = Statement(select(*_TAG).where(_THIS_TAG), TagRead)

_NEW_TAG = _given(Tag, [*TagCreate.model_fields, "name_key"])
CREATE_TAG = Statement(
    insert(Tag)
    .from_select(
        ["user_id", *_NEW_TAG],
        # The owner first, as in every write, because different orders could deadlock.
        select(OWNER, *_NEW_TAG.values()).select_from(_BUMP_OR_CREATE_OWNER),
    )
    .returning(*_TAG),
    TagRead,
)


def _touched(bump: CTE) -> CTE:
    """Give the tasks with the tag the revision too, because a task includes its tags."""
    tagged = select(col(Link.task_id)).where(col(Link.user_id) == OWNER, col(Link.tag_id) == TAG_ID)
    write = update(Task).where(_MINE, col(Task.id).in_(tagged)).values(rev=bump.c.rev)
    return write.cte("touched")


@cache
def update_tag(members: frozenset[str]) -> Statement[TagRead]:
    """Change the named members only: takes `owner`, `tag_id` and these members.

    It returns no row if nothing would change.
    """
    bump = _bump(_target(Tag, col(Tag.id) == TAG_ID, _differs(Tag, members)))
    change = update(Tag).where(_THIS_TAG, exists(select(bump.c.rev))).values(_given(Tag, members))
    tag = change.returning(*_TAG).add_cte(_touched(bump))
    return Statement(tag, TagRead, after=_LOCK_OWNER, deadline=BULK_SECONDS)


_BUMP_FOR_TAG = _bump(_target(Tag, col(Tag.id) == TAG_ID))
DELETE_TAG = Statement(
    delete(Tag)
    .where(_THIS_TAG, exists(select(_BUMP_FOR_TAG.c.rev)))
    .returning(col(Tag.id))
    .add_cte(_touched(_BUMP_FOR_TAG)),
    dict[str, int],
    after=_LOCK_OWNER,
    deadline=BULK_SECONDS,
)


# --- Changes, for offline copies and event streams ---

WATCHED_SECONDS = 300

_WATCHED_UNTIL = func.now() + literal_column(f"interval '{WATCHED_SECONDS} seconds'")
WATCH = Statement(
    insert(User)
    .values(id=OWNER, watched_until=_WATCHED_UNTIL)
    .on_conflict_do_update(index_elements=["id"], set_={"watched_until": _WATCHED_UNTIL})
    .returning(col(User.rev)),
    dict[str, int],
)
"""Takes `owner`: starts notifications of its writes, for `WATCHED_SECONDS`; returns its revision.

It waits for writes in progress, as they do for each other, so that none is missed.
"""


class Change(TaskRead):
    """A changed task, or the id of a deleted one, and the revision up to which this page goes."""

    owner_rev: int
    upto: int | None
    deleted_id: int | None
    deleted_rev: int


_SINCE = bindparam("since", type_=BigInteger, required=True)
_PAGE: ColumnElement[int] = literal_column("500")
_REVS = (
    union_all(
        *(
            select(col(table.rev).label("rev"))
            .where(col(table.user_id) == OWNER, col(table.rev) > _SINCE)
            .order_by(col(table.rev))
            .limit(_PAGE)
            .subquery()
            .select()
            for table in (Task, Deletion)
        )
    )
    .order_by(literal_column("rev"))
    .limit(_PAGE)
    .cte("revs")
)
_UPTO = (
    select(case((func.count() == _PAGE, func.max(_REVS.c.rev))).label("upto"))
    .select_from(_REVS)
    .cte("page")
)


def _on_page(table: type[Task | Deletion]) -> ColumnElement[bool]:
    upto = select(func.coalesce(_UPTO.c.upto, literal_column(str(MAX_ID))))
    return (
        (col(table.user_id) == OWNER)
        & (col(table.rev) > _SINCE)
        & (col(table.rev) <= upto.scalar_subquery())
    )


_CHANGED_TASKS = select(*_TASK).where(_on_page(Task)).cte("changed")
_DELETIONS = (
    select(col(Deletion.task_id).label("deleted_id"), col(Deletion.rev).label("deleted_rev"))
    .where(_on_page(Deletion))
    .cte("deleted")
)
LIST_CHANGES = Statement(
    select(_REV.label("owner_rev"), _UPTO.c.upto, _CHANGED_TASKS, _DELETIONS)
    .select_from(
        _OWNERS_ROW.join(_UPTO, true()).outerjoin(
            # No task is in both, so a full join appends one list to the other.
            _CHANGED_TASKS.join(
                _DELETIONS, _CHANGED_TASKS.c.id == _DELETIONS.c.deleted_id, full=True
            ),
            true(),
        )
    )
    .order_by(func.coalesce(_CHANGED_TASKS.c.rev, _DELETIONS.c.deleted_rev)),
    Change,
)
"""Takes `owner` and `since`: about 500 changes at once, but always all of the same write."""


# --- Accounts and sessions ---
#
# Instead of naming an owner, a lookup by email or session is for callers that prove they know the
# password or the refresh token.


class Account(UserRead):
    """A user with its password hash, for verification."""

    password_hash: str | None


class Rotated(UserRead):
    """A session's user, and the counter of its current refresh token."""

    counter: int


SESSION_ID = bindparam("session", type_=Text, required=True)
_KNOWN = bindparam("known", type_=Text, required=True)
_BETTER = bindparam("better", type_=Text, required=True)
_COUNTER = bindparam("counter", type_=BigInteger, required=True)
_LIFETIME = bindparam("lifetime", type_=Interval, required=True)
_IDLE = bindparam("idle", type_=Interval, required=True)
_LONGEST = bindparam("longest", type_=Interval, required=True)

_SESSIONS_USER = col(User.id) == col(Session.user_id)
_ALIVE = (col(Session.rotated_at) > func.now() - _IDLE) & (
    col(Session.created_at) > func.now() - _LONGEST
)
_ACCOUNT = [*_USER, col(User.password_hash)]

FIND_USER = Statement(select(*_USER).where(col(User.id) == OWNER), UserRead)

CREATE_USER = Statement(
    insert(User)
    .values(id=OWNER)
    # An update that changes nothing, because DO NOTHING would return no row.
    .on_conflict_do_update(index_elements=["id"], set_={"id": OWNER})
    .returning(*_USER),
    UserRead,
)

FIND_OWN_ACCOUNT = Statement(select(*_ACCOUNT).where(col(User.id) == OWNER), Account)

RENAME_USER = Statement(
    update(User).where(col(User.id) == OWNER).values(_given(User, ["name"])).returning(*_USER),
    UserRead,
)

CREATE_ACCOUNT = Statement(
    insert(User)
    .values(id=OWNER, **_given(User, ["email", "email_key", "name", "password_hash"]))
    .returning(*_USER),
    UserRead,
)

FIND_ACCOUNT = Statement(
    select(*_ACCOUNT).where(
        col(User.email_key) == bindparam("email_key", type_=Text, required=True)
    ),
    Account,
)

REHASH_PASSWORD = Statement(
    update(User)
    .where(col(User.id) == OWNER, col(User.password_hash) == _KNOWN)
    .values(password_hash=_BETTER)
    .returning(col(User.id)),
    dict[str, str],
)


def _start_session(owner: CTE) -> Insert:
    return insert(Session).from_select(["id", "user_id"], select(SESSION_ID, owner.c.id))


def _revocation_key(kind: str, name: SQLColumnExpression[str]) -> Label[str]:
    return func.concat(literal_column(f"'{kind}'"), name).label("key")


def _revoke(keys: Select[tuple[str]] | CompoundSelect[tuple[str]]) -> Insert:
    """Revoke tokens with one of these keys, for the `lifetime` that such tokens may have."""
    key = keys.subquery().c.key
    refused = insert(Revocation).from_select(
        ["key", "expires_at"], select(key, func.now() + _LIFETIME)
    )
    return refused.on_conflict_do_update(
        index_elements=["key"],
        set_={
            "revoked_at": func.clock_timestamp(),
            "expires_at": func.greatest(col(Revocation.expires_at), refused.excluded.expires_at),
        },
    )


def _end(*which: ColumnElement[bool]) -> tuple[CTE, CTE]:
    """End sessions and revoke their tokens."""
    ended = delete(Session).where(*which).returning(col(Session.id), col(Session.user_id))
    rows = ended.cte("ended")
    return rows, _revoke(select(_revocation_key(SESSION_KEY, rows.c.id))).cte("revoked")


START_SESSION = Statement(
    _start_session(
        select(col(User.id))
        .where(col(User.id) == OWNER, col(User.password_hash) == _KNOWN)
        # Wait for a concurrent password change, after which the known hash does not match.
        .with_for_update(read=True)
        .cte("owner")
    ).returning(col(Session.id)),
    dict[str, str],
)

_IS_CURRENT = col(Session.counter) == _COUNTER
_WAS_CURRENT = (col(Session.counter) == _COUNTER + _ONE) & (
    col(Session.rotated_at) > func.now() - bindparam("grace", type_=Interval, required=True)
)
ROTATE_SESSION = Statement(
    update(Session)
    .where(col(Session.id) == SESSION_ID, _IS_CURRENT | _WAS_CURRENT, _ALIVE, _SESSIONS_USER)
    .values(
        counter=_COUNTER + _ONE,
        rotated_at=case((_IS_CURRENT, func.now()), else_=col(Session.rotated_at)),
    )
    .returning(*_USER, col(Session.counter)),
    Rotated,
)
"""Compare-and-set: any number of calls with one counter rotate once and get the same result."""

FIND_SESSION = Statement(
    select(col(Session.user_id)).where(col(Session.id) == SESSION_ID, _ALIVE), dict[str, str]
)

END_SESSION = Statement(
    delete(Session)
    .where(col(Session.id) == SESSION_ID)
    .returning(col(Session.user_id))
    # Even if the session is already gone: its last access token may still be valid.
    .add_cte(_revoke(select(_revocation_key(SESSION_KEY, SESSION_ID))).cte("revoked")),
    dict[str, str],
)

_ENDED, _REVOKED_WITH_THEM = _end(col(Session.user_id) == OWNER)
END_SESSIONS = Statement(select(_ENDED.c.id).add_cte(_REVOKED_WITH_THEM), dict[str, str])

_CHANGED_USER = (
    update(User)
    .where(col(User.id) == OWNER, col(User.password_hash) == _KNOWN)
    .values(password_hash=_BETTER)
    .returning(*_USER)
    .cte("changed")
)
_, _REVOKED_WITH_PASSWORD = _end(col(Session.user_id).in_(select(_CHANGED_USER.c.id)))
CHANGE_PASSWORD = Statement(
    select(_CHANGED_USER).add_cte(
        _REVOKED_WITH_PASSWORD, _start_session(_CHANGED_USER).cte("started")
    ),
    UserRead,
    after=_LOCK_OWNER,  # or it would miss a session being started with the old one
)
"""Ends every session and starts another."""

_DELETED_USER = (
    delete(User)
    .where(col(User.id) == OWNER, col(User.password_hash).is_not_distinct_from(_KNOWN))
    .returning(col(User.id))
    .cte("gone")
)
DELETE_ACCOUNT = Statement(
    select(_DELETED_USER.c.id).add_cte(
        _revoke(
            union_all(
                select(_revocation_key(SESSION_KEY, col(Session.id))).where(
                    col(Session.user_id) == _DELETED_USER.c.id
                ),
                select(_revocation_key(USER_KEY, _DELETED_USER.c.id)),
            )
        ).cte("revoked")
    ),
    dict[str, str],
)


# --- Revocations and cleaning up ---


class Revoked(TypedDict):
    """A revocation; a user's applies only to tokens issued until then."""

    key: str
    revoked_at: datetime


REVOKE = Statement(
    _revoke(select(bindparam("key", type_=Text, required=True).label("key"))).returning(
        col(Revocation.key)
    ),
    dict[str, str],
)

LIST_REVOCATIONS = Statement(
    select(col(Revocation.key), col(Revocation.revoked_at)).where(
        col(Revocation.expires_at) > func.now(),
        col(Revocation.revoked_at)
        > func.now() - bindparam("window", type_=Interval, required=True),
    ),
    Revoked,
)


_KEY_LIFETIME: ColumnElement[timedelta] = literal_column("interval '1 day'")
CLEAN_UP = Statement(
    delete(User)
    # A write in progress while its account was deleted may have recreated the user.
    .where(func.starts_with(col(User.id), literal_column(f"'{LOCAL}'")), col(User.email).is_(None))
    .add_cte(
        delete(Revocation).where(col(Revocation.expires_at) < func.now()).cte("expired"),
        delete(Session).where(not_(_ALIVE)).cte("dead"),
        delete(IdempotencyKey)
        .where(col(IdempotencyKey.created_at) < func.now() - _KEY_LIFETIME)
        .cte("forgotten"),
    ),
    dict[str, str],
)
