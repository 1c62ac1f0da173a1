r"""Every SQL statement on tasks and tags, as text; `account_queries.py` has the others.

These two files are what to audit for isolation: each statement on a user's data takes the user's id
as `:owner`, but for a few look-ups by email or session, which tests/test_isolation.py lists with
the reason. `print(queries.GET_TASK.text)` shows one whole; psql takes it after
`\set owner '''ada'''` and so on.

In this order: what statements share, revisions, lists, one task, many tasks, tags, changes.
"""

from functools import cache
from typing import Any, NamedTuple

from asyncpg import Record

from db import Statement
from schemas import MAX_ID, Deleted, Sort, Status, TagRead, TaskRead, Updated
from security import FOREIGN, USER_KEY

# --- What statements share ---


def _as_json(tags: str) -> str:
    """Render tags as the JSON of an answer, by name: [] if there are none."""
    tag = f"(SELECT id, name, color FROM {tags} ORDER BY name_key) AS tag"
    return f"array_to_json(ARRAY(SELECT row_to_json(tag) FROM {tag}))"


_TAGS = _as_json("""
    task_tags JOIN tags ON tags.user_id = :owner AND tags.id = tag_id
    WHERE task_tags.user_id = :owner AND task_id = tasks.id""")


def shown(user_id: str) -> str:
    """Render a user's id as it is in the token; in the tables, a JWKS token's has a prefix."""
    own = f"substr({user_id}, {len(FOREIGN) + 1})"
    return f"CASE WHEN starts_with({user_id}, '{FOREIGN}') THEN {own} ELSE {user_id} END"


def _task(tags: str = _TAGS) -> str:
    """Name the columns of a task in an answer."""
    return f"""
        tasks.id, {shown(":owner::text")} AS user_id, tasks.title, tasks.description,
        tasks.completed, tasks.priority, tasks.due_date, tasks.due_is_day,
        {tags} AS tags, tasks.created_at, tasks.updated_at, tasks.rev"""


_TASK = _task()
_TAG = "id, name, color"

TASK_COLUMNS = {
    "title": "title",
    "title_key": "title",
    "description": "description",
    "description_key": "description",
    "completed": "completed",
    "priority": "priority",
    "due_date": "due_date",
    "due_is_day": "due_date",
}
TAG_COLUMNS = {"name": "name", "name_key": "name", "color": "color"}
"""The columns that clients write, and the member that each belongs to."""


def _listed(columns: dict[str, str], prefix: str = "") -> str:
    return ", ".join(f"{prefix}{column}" for column in columns)


def _given(table: str, columns: dict[str, str]) -> str:
    """Name new values: those of the members named in `members`; the others stay."""
    return ", ".join(
        f"CASE WHEN '{member}' = ANY (:members) THEN :{column} ELSE {table}.{column} END"
        for column, member in columns.items()
    )


def _differs(table: str, columns: dict[str, str]) -> str:
    """Ask whether anything would change: a write that changes nothing is no change."""
    return f"({_listed(columns, f'{table}.')}) IS DISTINCT FROM ({_given(table, columns)})"


class TaskRow(TaskRead, total=False):
    """A task, and what some statements return besides."""

    due_is_day: bool | None  # only in the records
    owner_rev: int
    digest: bytes
    is_stale: bool  # its tags may have changed since the statement began
    upto: int | None  # the revision with which a page of changes ends
    deleted_id: int | None
    deleted_rev: int


class TaskStatement(Statement[TaskRow]):
    """A statement that returns tasks."""

    def read(self, records: list[Record]) -> list[TaskRow]:
        """Return records as rows. A due date that is a day is one there."""
        rows = super().read(records)
        for row in rows:
            if row.pop("due_is_day"):
                row["due_date"] = row["due_date"].date()  # type: ignore[union-attr]
        return rows


def task_of(row: TaskRow) -> TaskRead:
    """Return the task alone."""
    return {name: row[name] for name in TaskRead.__annotations__}  # type: ignore[literal-required, return-value]


# --- Revisions ---
#
# Every write locks its owner's row first, so that a user's writes run one at a time, and a revision
# is visible only if every earlier one is.

CHANNEL = "todo_changes"
"""The notification channel of new revisions; the payload is the owner's id.

Only for watched owners, because transactions that notify can commit only one at a time.
"""

_TOLD = f"""
    CASE WHEN watched_until > now() THEN pg_notify('{CHANNEL}', :owner)::text IS NOT NULL
    ELSE true END"""
"""Always true. It tells the owner's streams, if there are any, of the transaction once it commits.

It stands where each write passes: at the owner's lock, or where the new revision is read.
"""

LOCK_OWNER = Statement[dict[str, str]](f"""
    SELECT id, {_TOLD} AS told FROM users WHERE id = :owner FOR NO KEY UPDATE""")
"""A statement of its own, so that the next one sees what was written while this one waited.

Without an owner there is nothing to change yet, and the next one does not run.
"""


def _target(condition: str) -> str:
    """Find and lock this task, as it is after the owner's other writes, if it is to be written."""
    return f"""
    target AS (
        SELECT tasks.id, {_TOLD} AS told FROM users JOIN tasks ON tasks.user_id = users.id
        WHERE users.id = :owner AND tasks.user_id = :owner AND tasks.id = :task_id AND {condition}
        FOR NO KEY UPDATE OF users, tasks
    )"""


def _bump(condition: str = "true", by: str = "1") -> str:
    """Go to the next revision, or so many further. No row: it is not the case, or no owner yet."""
    # A write may have begun before those that it waited for; its moment is later all the same. In
    # UTC, because Citus refuses in an UPDATE what depends on the session's time zone.
    return f"""
    bump AS (
        UPDATE users SET rev = rev + {by}, written_at = greatest(
            (written_at AT TIME ZONE 'UTC' + interval '1 microsecond') AT TIME ZONE 'UTC',
            statement_timestamp()
        )
        WHERE id = :owner AND {condition} RETURNING rev, written_at, watched_until
    )"""


_BUMP_FIRST = _bump()
_IF_TARGET = "EXISTS (SELECT id FROM target)"
_BUMP = _bump(_IF_TARGET)

# A write of many rows gives each part of them a revision of its own, so that clients can read what
# it changed in parts, too. All are seen at once, and the last one is the owner's.
PART = 250


def _parts(ids: str) -> str:
    """Divide a query's ids: `edges` are the first of each part; null if there are none."""
    return f"""
    parts AS (
        SELECT array_agg(id ORDER BY id) AS edges FROM (
            SELECT id, row_number() OVER (ORDER BY id) AS number FROM ({ids}) AS every
        ) AS numbered WHERE number % {PART} = 1
    )"""


# Not joined by the id: with few rows expected, the planner would compare each with each.
_REV_OF_PART = "bump.rev - cardinality(edges) + width_bucket(tasks.id, edges)"
_NUMBER_OF_PARTS = "(SELECT coalesce(cardinality(edges), 1) FROM parts)"

CREATE_OWNER = Statement[dict[str, str]](
    f"""
    DELETE FROM users WHERE id = :owner AND EXISTS (
        SELECT key FROM revocations
        WHERE key = concat('{USER_KEY}', :owner::text) AND revoked_at >= to_timestamp(:issued)
    )
    RETURNING id""",
    after=Statement[dict[str, str]]("""
        INSERT INTO users (id) VALUES (:owner) ON CONFLICT DO NOTHING RETURNING id"""),
)
"""Creates the owner. A row means that it does not: the user was deleted after the token was issued.

The first statement waits for a deletion in progress, and the second sees it; one alone would not.
"""


# --- Lists ---

_SORT_KEYS = {
    "created": ("created_at", "timestamptz", "{}"),
    "updated": ("updated_at", "timestamptz", "{}"),
    "title": ("title_key", "text", "{}"),
    "priority": ("priority", "text", "CASE {} WHEN 'low' THEN 1 WHEN 'medium' THEN 2 ELSE 3 END"),
    # Tasks without a due date come last in either direction.
    "due_date": ("due_date", "timestamptz", "coalesce({}, 'infinity')"),
    "-due_date": ("due_date", "timestamptz", "coalesce({}, '-infinity')"),
}
"""What a list is sorted by: a column, its type, and the key that is made of it."""

# Found first: if the planner underestimates the rows, it would look for them again for each task.
# Sorted, because 50,000 tasks that are looked up in the order of the table take half the time.
_WITH_THE_TAGS = """
    WITH with_the_tags AS MATERIALIZED (
        SELECT task_id FROM task_tags JOIN tags ON tags.user_id = :owner AND tags.id = tag_id
        WHERE task_tags.user_id = :owner AND name_key = ANY (:tag_keys)
        GROUP BY task_id HAVING count(*) = cardinality(:tag_keys) ORDER BY task_id
    )"""
# OFFSET keeps the planner from any other way, which may be to compare each task with each of these.
_TAGGED = """
    with_the_tags CROSS JOIN LATERAL (
        SELECT * FROM tasks WHERE user_id = :owner AND id = task_id OFFSET 0
    ) AS tasks"""


class Shape(NamedTuple):
    """The parts of a list's query that change its SQL; the rest are values."""

    status: Status
    tagged: bool
    searched: bool
    due: bool
    sort: Sort
    continued: bool


@cache
def list_tasks(shape: Shape) -> TaskStatement:
    """List tasks: takes `owner`, `limit`, `offset`, `known`, `priority` and what the shape needs.

    That is `tag_keys`; `text`; `due_after` and `due_before`; `after` and `after_id`: the sort key,
    as text, and the id of the last task before the page.

    Each row has the owner's revision. If no task matches, or the revision is known, there is one
    row without a task.
    """
    column, kind, made = _SORT_KEYS.get(shape.sort) or _SORT_KEYS[shape.sort.removeprefix("-")]
    key, after = made.format(column), made.format(f":after::text::{kind}")
    direction, beyond = ("DESC", "<") if shape.sort.startswith("-") else ("ASC", ">")
    filters = [
        (shape.status == "completed", "AND completed"),
        (shape.status == "pending", "AND NOT completed"),
        (
            shape.searched,
            "AND (strpos(title_key, :text) > 0 OR strpos(description_key, :text) > 0)",
        ),
        (shape.due, "AND due_date >= :due_after AND due_date < :due_before"),
        (shape.continued, f"AND ({key}, id) {beyond} ({after}, :after_id)"),
    ]
    return TaskStatement(f"""
        {_WITH_THE_TAGS if shape.tagged else ""}
        SELECT coalesce(users.rev, 0) AS owner_rev, found.*
        FROM (SELECT 1) AS one -- always one row: who has written nothing yet has none in `users`
        LEFT JOIN users ON users.id = :owner
        LEFT JOIN LATERAL (
            SELECT {_TASK} FROM {_TAGGED if shape.tagged else "tasks"}
            WHERE user_id = :owner
            AND coalesce(users.rev, 0) <> ALL (:known)
            AND (:priority::text IS NULL OR priority = :priority)
            {" ".join(text for is_wanted, text in filters if is_wanted)}
            ORDER BY {key} {direction}, id {direction}
            LIMIT :limit OFFSET :offset
        ) AS found ON true""")


# --- One task ---

_THIS_ONE = "tasks.user_id = :owner AND tasks.id = :task_id"
_MATCHES = "(:match::bigint[] IS NULL OR tasks.rev = ANY (:match))"
_REV_BEFORE = "coalesce((SELECT rev FROM users WHERE id = :owner), 0)"
_AS_WRITTEN = f"""
    SELECT {_TASK}, tasks.rev <> {_REV_BEFORE} + 1 AS is_stale FROM written AS tasks"""
_NO_TAGS = "'[]'::json"

GET_TASK = TaskStatement(f"SELECT {_TASK} FROM tasks WHERE {_THIS_ONE}")
_LOCK_TASK = Statement[dict[str, int]](f"WITH {_target(_MATCHES)} SELECT id FROM target")


# The tags that are asked for: one of the owner's by its id, whatever it is called, or else by name.
_WANTED = """
    wanted AS (
        SELECT DISTINCT ON (coalesce(tags.name_key, sent.name_key))
            tags.id, sent.name, coalesce(tags.name_key, sent.name_key) AS name_key
        FROM unnest(:tag_ids::bigint[], :tag_names::text[], :tag_keys::text[])
            AS sent (id, name, name_key)
        LEFT JOIN tags ON tags.user_id = :owner AND tags.id = sent.id
    )"""


def _written(write: str) -> str:
    """Return the task as written: a statement does not see its own writes in the tables."""
    return f"written AS ({write} RETURNING tasks.*)"


def _tagged(write: str) -> str:
    """Give the written task exactly the `wanted` tags, creating those that are missing.

    Tags are looked for once the task is written, that is, once its owner is locked. A locked tag is
    read as it is now; one that is newer than the statement is met as a conflict.
    """
    return f"""
    {_written(write)},
    found AS (
        SELECT {_TAG}, name_key FROM tags
        WHERE user_id = :owner AND EXISTS (SELECT id FROM written) AND (
            id = ANY (ARRAY(SELECT id FROM wanted))
            OR name_key = ANY (ARRAY(SELECT name_key FROM wanted WHERE id IS NULL))
        )
        FOR NO KEY UPDATE
    ),
    made AS (
        INSERT INTO tags (user_id, name, name_key) SELECT :owner, name, name_key FROM wanted
        WHERE id IS NULL AND name_key NOT IN (SELECT name_key FROM found)
        AND EXISTS (SELECT id FROM written)
        ON CONFLICT ON CONSTRAINT tags_name DO UPDATE SET name = tags.name -- to return its row
        RETURNING {_TAG}, name_key
    ),
    tagged AS (SELECT * FROM found UNION ALL SELECT * FROM made),
    linked AS (
        INSERT INTO task_tags (user_id, task_id, tag_id)
        SELECT :owner, written.id, tagged.id FROM written, tagged ON CONFLICT DO NOTHING
    ),
    unlinked AS (
        DELETE FROM task_tags USING written
        WHERE task_tags.user_id = :owner AND task_id = written.id
        AND tag_id NOT IN (SELECT id FROM tagged)
    )
    SELECT {_task(_as_json("tagged"))} FROM written AS tasks"""


# The first use of a key reserves the task's id.
_FRESH_KEY = """
    target AS (
        INSERT INTO idempotency_keys (user_id, key, digest, task_id)
        SELECT :owner, :key, :digest, nextval(pg_get_serial_sequence('tasks', 'id'))
        FROM users WHERE id = :owner
        ON CONFLICT DO NOTHING RETURNING task_id AS id
    )"""


@cache
def create_task(*, is_tagged: bool = False, is_keyed: bool = False) -> TaskStatement:
    """Create a task: takes `owner` and every column. No row: there is no such owner.

    With tags, also `tag_ids`, `tag_names` and `tag_keys`. With a key, also `key` and `digest`, and
    it returns no row if the key was used before.
    """
    bump, own_id, sources = _BUMP_FIRST, "", "bump"
    if is_keyed:
        bump, own_id, sources = f"{_FRESH_KEY}, {_BUMP}", ", id", "bump, target"
    new = f"""
        INSERT INTO tasks (user_id, rev, created_at, updated_at, {_listed(TASK_COLUMNS)}{own_id})
        SELECT :owner, rev, written_at, written_at, {_listed(TASK_COLUMNS, ":")}{own_id}
        FROM {sources} WHERE {_TOLD}"""
    if is_tagged:
        return TaskStatement(f"WITH {bump}, {_WANTED}, {_tagged(new)}")
    return TaskStatement(f"""
        WITH {bump}, {_written(new)} SELECT {_task(_NO_TAGS)} FROM written AS tasks""")


FIND_REPEATED = TaskStatement(f"""
    SELECT digest, {_TASK} FROM idempotency_keys
    LEFT JOIN tasks ON tasks.user_id = :owner AND tasks.id = task_id
    WHERE idempotency_keys.user_id = :owner AND key = :key""")
"""The task created under a key; its id is null if it was deleted since."""

_UPDATE = f"""
    UPDATE tasks SET ({_listed(TASK_COLUMNS)}, rev, updated_at)
        = ROW ({_given("tasks", TASK_COLUMNS)}, bump.rev, bump.written_at)
    FROM bump WHERE {_THIS_ONE}"""

UPDATE_TASK = TaskStatement(f"""
    WITH {_target(f"{_MATCHES} AND {_differs('tasks', TASK_COLUMNS)}")}, {_BUMP},
    {_written(_UPDATE)} {_AS_WRITTEN}""")
"""Change the members named in `members`: takes all columns. No row: nothing would change."""

_HAS_OTHER_TAGS = """
    ARRAY(
        SELECT name_key FROM task_tags JOIN tags ON tags.user_id = :owner AND tags.id = tag_id
        WHERE task_tags.user_id = :owner AND task_id = :task_id ORDER BY name_key
    ) <> ARRAY(SELECT name_key FROM wanted ORDER BY name_key)"""
_WOULD_CHANGE = f"({_differs('tasks', TASK_COLUMNS)} OR {_HAS_OTHER_TAGS})"

UPDATE_TAGGED_TASK = TaskStatement(
    f"""
    WITH {_WANTED}, {_target(f"{_MATCHES} AND {_WOULD_CHANGE}")}, {_BUMP}, {_tagged(_UPDATE)}""",
    after=LOCK_OWNER,
)
"""The same with `tag_ids`, `tag_names` and `tag_keys`."""

_TOGGLE = f"""
    UPDATE tasks SET completed = NOT completed, rev = bump.rev, updated_at = bump.written_at
    FROM bump WHERE {_THIS_ONE}"""

TOGGLE_TASK = TaskStatement(f"""
    WITH {_target(_MATCHES)}, {_BUMP}, {_written(_TOGGLE)} {_AS_WRITTEN}""")

# For clients that ask what has changed.
_BURY = "INSERT INTO deletions (user_id, task_id, rev)"

DELETE_TASK = Statement[dict[str, int]](f"""
    WITH {_target(_MATCHES)}, {_BUMP},
    gone AS (DELETE FROM tasks WHERE {_THIS_ONE} AND EXISTS (SELECT rev FROM bump) RETURNING id),
    buried AS ({_BURY} SELECT :owner, gone.id, bump.rev FROM gone, bump)
    SELECT id FROM gone""")


# --- Many tasks ---

BULK_SECONDS = 60.0
"""How long a bulk change may take: 100,000 tasks take half of it on a slow machine."""


def _bulk(sql: str) -> Statement[Any]:
    return Statement(sql, after=LOCK_OWNER, deadline=BULK_SECONDS)


GET_REVISION = Statement[dict[str, int]](f"SELECT {_REV_BEFORE} AS rev")
_LIST = """
    list AS (
        SELECT rev FROM users WHERE id = :owner AND (:match::bigint[] IS NULL OR rev = ANY (:match))
    )"""
_MEANT = """
    user_id = :owner AND EXISTS (SELECT rev FROM list)
    AND (:status = 'all' OR completed = (:status = 'completed'))"""

_BUMP_PARTS = _bump("(SELECT edges FROM parts) IS NOT NULL", _NUMBER_OF_PARTS)
_OTHERS = f"{_MEANT} AND completed <> :completed"

COMPLETE_TASKS: Statement[Updated] = _bulk(f"""
    WITH {_LIST}, {_parts(f"SELECT id FROM tasks WHERE {_OTHERS}")}, {_BUMP_PARTS},
    changed AS (
        UPDATE tasks SET completed = :completed, rev = {_REV_OF_PART}, updated_at = bump.written_at
        FROM bump, parts WHERE {_OTHERS} RETURNING tasks.id
    )
    SELECT (SELECT count(*) FROM changed) AS updated FROM list""")

DELETE_TASKS: Statement[Deleted] = _bulk(f"""
    WITH {_LIST}, {_parts(f"SELECT id FROM tasks WHERE {_MEANT}")}, {_BUMP_PARTS},
    gone AS (DELETE FROM tasks WHERE {_MEANT} AND EXISTS (SELECT rev FROM bump) RETURNING id),
    buried AS ({_BURY} SELECT :owner, tasks.id, {_REV_OF_PART} FROM gone AS tasks, bump, parts)
    SELECT (SELECT count(*) FROM gone) AS deleted FROM list""")
"""Both return no row if the list has another revision, or there is no owner yet."""


# --- Tags ---

_THIS_TAG = "user_id = :owner AND id = :tag_id"

LIST_TAGS = Statement[TagRead](f"SELECT {_TAG} FROM tags WHERE user_id = :owner ORDER BY name_key")
GET_TAG = Statement[TagRead](f"SELECT {_TAG} FROM tags WHERE {_THIS_TAG}")

# The owner first, as in every write, because different orders could deadlock.
CREATE_TAG = Statement[TagRead](f"""
    WITH {_BUMP_FIRST},
    made AS (
        INSERT INTO tags (user_id, {_listed(TAG_COLUMNS)})
        SELECT :owner, {_listed(TAG_COLUMNS, ":")} FROM bump WHERE {_TOLD} RETURNING {_TAG}
    )
    SELECT {_TAG} FROM made""")

# A task includes its tags, so it changes with them.
_CARRIERS = "SELECT task_id AS id FROM task_tags WHERE user_id = :owner AND tag_id = :tag_id"
_TOUCHED = f"""
    {_parts(_CARRIERS)}, {_bump(_IF_TARGET, _NUMBER_OF_PARTS)},
    touched AS (
        UPDATE tasks SET rev = {_REV_OF_PART} FROM bump, parts
        WHERE user_id = :owner AND (id IN ({_CARRIERS})) IS TRUE -- else it would be joined
    )"""

UPDATE_TAG: Statement[TagRead] = _bulk(f"""
    WITH target AS (SELECT id FROM tags WHERE {_THIS_TAG} AND {_differs("tags", TAG_COLUMNS)}),
    {_TOUCHED}
    UPDATE tags SET ({_listed(TAG_COLUMNS)}) = ROW ({_given("tags", TAG_COLUMNS)})
    WHERE {_THIS_TAG} AND EXISTS (SELECT rev FROM bump) RETURNING {_TAG}""")
"""Change the members named in `members`. No row: nothing would change."""

DELETE_TAG: Statement[dict[str, int]] = _bulk(f"""
    WITH target AS (SELECT id FROM tags WHERE {_THIS_TAG}), {_TOUCHED}
    DELETE FROM tags WHERE {_THIS_TAG} AND EXISTS (SELECT rev FROM bump) RETURNING id""")


_TOUCH = f"""
    UPDATE tasks SET rev = bump.rev, updated_at = bump.written_at FROM bump WHERE {_THIS_ONE}"""


def _relink(change: str, tag_ids: str) -> TaskStatement:
    """Change a task's tags, and give it a revision if that changes anything."""
    sql = f"""
        WITH target AS ({change} RETURNING task_id AS id), {_BUMP}, {_written(_TOUCH)}
        SELECT {_task(_as_json(f"tags WHERE user_id = :owner AND id IN ({tag_ids})"))}
        FROM written AS tasks"""
    return TaskStatement(sql, after=_LOCK_TASK)


_LINKED = "SELECT tag_id FROM task_tags WHERE user_id = :owner AND task_id = tasks.id"

ADD_TAG = _relink(
    f"""
    INSERT INTO task_tags (user_id, task_id, tag_id)
    SELECT :owner, tasks.id, tags.id FROM tasks, tags
    WHERE {_THIS_ONE} AND tags.user_id = :owner AND tags.id = :tag_id
    AND (SELECT count(*) FROM task_tags WHERE user_id = :owner AND task_id = :task_id) < :max_tags
    ON CONFLICT DO NOTHING""",
    f"{_LINKED} UNION ALL SELECT :tag_id",
)
REMOVE_TAG = _relink(
    "DELETE FROM task_tags WHERE user_id = :owner AND task_id = :task_id AND tag_id = :tag_id",
    f"{_LINKED} AND tag_id <> :tag_id",
)
"""Both return no row if nothing would change: the task has the tag (or 20 others), or lacks it."""


# --- Changes, for offline copies and event streams ---

WATCHED_SECONDS = 300

WATCH = Statement[dict[str, int]](f"""
    INSERT INTO users (id, watched_until) VALUES (:owner, CASE
        -- A transaction over several of Citus's servers can notify nobody.
        WHEN to_regclass('pg_dist_node') IS NULL THEN now() + interval '{WATCHED_SECONDS} seconds'
    END)
    ON CONFLICT (id) DO UPDATE SET watched_until = excluded.watched_until RETURNING rev""")
"""Let the owner's writes notify, for `WATCHED_SECONDS`. It waits for those in progress."""


_ON_PAGE = f"""
    user_id = :owner AND rev > :since AND rev <= (SELECT coalesce(upto, {MAX_ID}) FROM page)"""

# A full join appends one list to the other, because no task is in both.
LIST_CHANGES = TaskStatement(f"""
    WITH revs AS (
        (SELECT rev FROM tasks WHERE user_id = :owner AND rev > :since ORDER BY rev LIMIT 500)
        UNION ALL
        (SELECT rev FROM deletions WHERE user_id = :owner AND rev > :since ORDER BY rev LIMIT 500)
        ORDER BY rev LIMIT 500
    ),
    page AS (SELECT CASE WHEN count(*) = 500 THEN max(rev) END AS upto FROM revs),
    changed AS (SELECT {_TASK} FROM tasks WHERE {_ON_PAGE}),
    deleted AS (SELECT task_id AS deleted_id, rev AS deleted_rev FROM deletions WHERE {_ON_PAGE})
    SELECT {_REV_BEFORE} AS owner_rev, upto, changed.*, deleted.*
    FROM page
    LEFT JOIN (changed FULL JOIN deleted ON changed.id = deleted_id) ON true
    ORDER BY coalesce(changed.rev, deleted_rev)""")
"""Takes `owner` and `since`: about 500 changes at once, but always all of the same revision."""
