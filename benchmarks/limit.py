"""The practical limit in Python: four of the service's operations, and nothing else.

A bare ASGI function, asyncpg and orjson; no framework, no validation, no log. `run.py` measures
the service against it, so it uses the service's tables, statements and JSON members, and gives its
writes a revision, but has no tags.
"""
# ruff: noqa: S608 - the statements are built from the constants below

import os
from functools import lru_cache
from typing import Any

import asyncpg
import jwt
import orjson
from starlette.types import Receive, Scope, Send

from schemas import TaskRead

TASK = ", ".join(name for name in TaskRead.__annotations__ if name != "tags")
LIST = f"SELECT {TASK} FROM tasks WHERE user_id = $1 ORDER BY created_at DESC, id DESC LIMIT $2"
GET = f"SELECT {TASK} FROM tasks WHERE user_id = $1 AND id = $2"
TOGGLE = f"""
    WITH bump AS (UPDATE users SET rev = rev + 1 WHERE id = $1 RETURNING rev AS next)
    UPDATE tasks SET completed = NOT completed, updated_at = now(), rev = bump.next
    FROM bump WHERE user_id = $1 AND id = $2 RETURNING {TASK}"""
CREATE = f"""
    WITH bump AS (
        INSERT INTO users (id, rev) VALUES ($1, 1)
        ON CONFLICT (id) DO UPDATE SET rev = users.rev + 1 RETURNING rev
    )
    INSERT INTO tasks (user_id, title, title_key, rev) SELECT $1, $2, $3, rev FROM bump
    RETURNING {TASK}"""


@lru_cache(maxsize=1024)
def user_of(authorization: bytes) -> str:
    token = authorization.removeprefix(b"Bearer ")
    claims = jwt.decode(token, os.environ["BETTER_AUTH_SECRET"], algorithms=["HS256"])
    return str(claims["sub"])


async def no_reset(_: object) -> None:
    """Skip the round trip in which asyncpg resets a connection: nothing here changes its state."""


async def lifespan(state: dict[str, Any], receive: Receive, send: Send) -> None:
    await receive()
    url = os.environ["DATABASE_URL"]
    async with asyncpg.create_pool(url, max_queries=10**9, reset=no_reset) as pool:
        state["pool"] = pool
        await send({"type": "lifespan.startup.complete"})
        await receive()
    await send({"type": "lifespan.shutdown.complete"})


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        return await lifespan(scope["state"], receive, send)
    pool: asyncpg.Pool = scope["state"]["pool"]
    user_id = user_of(dict(scope["headers"])[b"authorization"])
    status = 200
    answer: list[asyncpg.Record] | asyncpg.Record | None = None
    match scope["method"], scope["path"].split("/")[3:]:
        case "GET", []:
            limit = int(scope["query_string"].removeprefix(b"limit="))
            answer = await pool.fetch(LIST, user_id, limit)
        case "GET", [task_id]:
            answer = await pool.fetchrow(GET, user_id, int(task_id))
        case "PATCH", [task_id, "complete"]:
            answer = await pool.fetchrow(TOGGLE, user_id, int(task_id))
        case "POST", []:
            title = orjson.loads((await receive())["body"])["title"]  # it comes in one piece
            status, answer = 201, await pool.fetchrow(CREATE, user_id, title, title.casefold())
    if answer is None:
        status = 404
    body = orjson.dumps(answer, default=dict, option=orjson.OPT_UTC_Z)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    return await send({"type": "http.response.body", "body": body})
