"""No statement takes longer than its rows do, even if the planner does not expect so many."""

import json
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

import db
import queries
import tables
from dates import FIRST_MOMENT, LAST_MOMENT
from settings import Settings
from tests.test_campaign import MODES, literal, nodes

TASKS = 2000
FILL = f"""
INSERT INTO users (id) SELECT 'user ' || n FROM generate_series(1, 5000) n;
INSERT INTO tags (user_id, name, name_key) SELECT id, 'home', 'home' FROM users;
INSERT INTO tasks (user_id, title, title_key) SELECT id, 'x', 'x' FROM users;
INSERT INTO task_tags SELECT user_id, tasks.id, tags.id FROM tasks JOIN tags USING (user_id);
ANALYZE;
INSERT INTO tasks (user_id, title, title_key)
SELECT 'user 1', 'x', 'x' FROM generate_series(1, {TASKS - 1});
INSERT INTO task_tags SELECT user_id, tasks.id, tags.id FROM tasks JOIN tags USING (user_id)
WHERE user_id = 'user 1' ON CONFLICT DO NOTHING;
"""
TAGGED = {"tagged": True, "searched": False, "due": False, "continued": False}
MANY: dict[str, db.Statement[Any]] = {
    "rename a tag": queries.UPDATE_TAG,
    "delete a tag": queries.DELETE_TAG,
    "complete": queries.COMPLETE_TASKS,
    "delete": queries.DELETE_TASKS,
    "list newest": queries.list_tasks(queries.Shape(status="all", sort="-created", **TAGGED)),
    "list by title": queries.list_tasks(queries.Shape(status="all", sort="title", **TAGGED)),
}
ONE: dict[str, db.Statement[Any]] = {
    "get": queries.GET_TASK,
    "toggle": queries.TOGGLE_TASK,
    "delete one": queries.DELETE_TASK,
    "get a tag": queries.GET_TAG,
}


@pytest.fixture
async def skewed(empty: Settings) -> AsyncIterator["asyncpg.Connection[Any]"]:
    """Give most users one task, and then one of them many, which the planner does not know."""
    url = str(empty.database_url)
    await tables.run_sync(url, tables.upgrade)
    connection = await asyncpg.connect(url)
    for table in ("tasks", "task_tags", "tags"):
        await connection.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = false)")
    await connection.execute(FILL)
    yield connection
    await connection.close()


@pytest.mark.parametrize("mode", MODES)
async def test_nothing_is_compared_with_everything(
    skewed: "asyncpg.Connection[Any]", mode: str
) -> None:
    found = await skewed.fetchrow(
        "SELECT tag_id, max(task_id) AS task_id FROM task_tags WHERE user_id = 'user 1' GROUP BY 1"
    )
    assert found
    values: dict[str, Any] = {
        "owner": "user 1",
        "match": None,
        "status": "pending",
        "completed": True,
        **found,
        "members": ["name"],
        "name": "work",
        "name_key": "work",
        "color": None,
        "tag_keys": ["home"],
        "known": [],
        "priority": None,
        "limit": 51,
        "offset": 0,
        "due_after": FIRST_MOMENT,
        "due_before": LAST_MOMENT,
    }
    await skewed.execute(MODES[mode])
    read = {}
    for name, statement in (MANY | ONE).items():
        await skewed.execute(f"PREPARE it AS {statement.sql}")
        arguments = ", ".join(literal(values[name]) for name in statement.names)
        change = skewed.transaction()
        await change.start()
        explained = await skewed.fetchval(
            f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE it ({arguments})"
        )
        await change.rollback()
        await skewed.execute("DEALLOCATE it")
        rows = ("Actual Rows", "Rows Removed by Filter", "Rows Removed by Join Filter")
        read[name] = sum(
            node["Actual Loops"] * sum(node.get(which, 0) for which in rows)
            for node in nodes(json.loads(explained)[0]["Plan"])
        )

    assert not {name: read[name] for name in MANY if not TASKS < read[name] < 20 * TASKS}
    assert not {name: read[name] for name in ONE if read[name] > 20}
