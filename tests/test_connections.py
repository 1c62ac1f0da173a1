"""What comes over a real connection: trailers, and clients that vanish."""

import asyncio
import contextlib
import json
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from starlette.types import Message, Receive, Scope, Send
from uvicorn.server import ServerState

import db
import errors
from middleware import Envelope
from passwords import THREADS
from tests.conftest import token
from tests.contract import PASSWORD
from tests.test_auth import slow_account
from tests.test_service import UVICORN, service

BEARER = f"Authorization: Bearer {token(sub='ada')}\r\n".encode()
CHUNKED = (
    b"POST /api/tasks HTTP/1.1\r\nHost: x\r\n"
    b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
)
BODY = b'5\r\n{"tit\r\n8\r\nle":"x"}\r\n0\r\n'
TRAILERS = BEARER + b"X-Forwarded-For: 192.0.2.1\r\nX-Request-ID: canary\r\n\r\n"

Open = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


@pytest.fixture(params=["httptools", "h11"])
async def open_connection(request: pytest.FixtureRequest, app: FastAPI) -> AsyncIterator[Open]:
    """Serve the app with each of uvicorn's parsers."""
    config = uvicorn.Config(app, http=request.param, lifespan="off", log_config=None)
    config.load()
    made: dict[str, Any] = {"config": config, "server_state": ServerState(), "app_state": {}}
    server = await asyncio.get_running_loop().create_server(
        lambda: config.http_protocol_class(**made), "127.0.0.1", 0
    )
    async with server:
        yield partial(asyncio.open_connection, *server.sockets[0].getsockname())


@pytest.mark.parametrize("pause", [0, 0.1])
@pytest.mark.parametrize(("headers", "status"), [(b"", b"401"), (BEARER, b"201")])
async def test_what_follows_a_body_is_no_header(
    open_connection: Open,
    log_lines: Callable[[], str],
    headers: bytes,
    status: bytes,
    pause: float,
) -> None:
    parts = [CHUNKED + headers + b"\r\n", BODY, TRAILERS]

    reader, writer = await open_connection()
    for part in parts if pause else [b"".join(parts)]:
        await asyncio.sleep(pause)
        writer.write(part)
    answer = await reader.readuntil(b"\r\n\r\n")
    await asyncio.sleep(0.05)  # until the line is written
    writer.close()

    assert answer.split()[1] == status
    assert b"canary" not in answer
    lines = [json.loads(line) for line in log_lines().splitlines() if '"client"' in line]
    assert {line["client"] for line in lines} == {"127.0.0.1"}


ORDINARY = """
from fastapi import Request
from main import app

@app.post("/length")
async def read_length(request: Request) -> int:
    return len(await request.body())
"""
HEAD = b" HTTP/1.1\r\nHost: x\r\n" + BEARER
HALF = b"Content-Type: application/json\r\nContent-Length: 50\r\n\r\n{"
READS = (b"GET /api/tasks" + HEAD + b"\r\n") * 10
CASES = {
    "during a body": b"POST /api/tasks" + HEAD + HALF,
    "during the body of an ordinary route": b"POST /length" + HEAD + HALF,
    "during a stream": b"GET /api/tasks/events?since=0" + HEAD + b"\r\n",
    "during a stream, with more to answer": b"GET /api/tasks/events?since=0"
    + HEAD
    + b"\r\n"
    + READS,
    "during an answer": (b"GET /static/swagger-ui-bundle.js" + HEAD + b"\r\n") * 2,
    "during answers": READS,
}


def test_who_vanishes_leaves_no_traceback(
    database: db.Database, project: Path, folder: Path
) -> None:
    (folder / "ordinary.py").write_text(ORDINARY)
    command = [part.replace("main:", "ordinary:") for part in UVICORN]
    options = ("--app-dir", str(folder))
    with service(project, *options, command=command, DATABASE_URL=database.url) as running:
        for number in range(20):
            running.create(f"{number} ".ljust(200, "x"))
        address = ("127.0.0.1", urlsplit(running.url).port)
        for sent in CASES.values():
            for pause in (0, 0.003, 0.02) * 3:
                with socket.create_connection(address) as connection:
                    connection.sendall(sent)
                    time.sleep(pause)
                    # Closed like this, it is reset.
                    linger = struct.pack("ii", 1, 0)
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        assert httpx.get(f"{running.url}/health/ready").status_code == 200
        running.create("wakes the streams")
        running.stop()

    assert "raceback" not in running.printed()


def login(email: str) -> bytes:
    """Write a request to sign in."""
    body = json.dumps({"email": email, "password": PASSWORD}).encode()
    head = b"POST /api/v1/auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


async def test_nothing_is_hashed_for_who_vanished(
    open_connection: Open, database: db.Database, log_lines: Callable[[], str]
) -> None:
    slow = login(await slow_account(database))
    stay = [await open_connection() for _ in range(2 * THREADS)]
    for _, writer in stay:
        writer.write(slow)
    await asyncio.sleep(0.05)  # they have their turns
    for number in range(10):
        _, writer = await open_connection()
        writer.write(login(f"gone{number}@example.com"))
        await asyncio.sleep(0.005)
        writer.transport.abort()

    for reader, writer in stay:
        assert (await reader.readuntil(b"\r\n\r\n")).split()[1] == b"401"
        writer.close()
    async with asyncio.timeout(30):
        printed = ""
        while printed.count('"event":"request"') < len(stay) + 10:
            await asyncio.sleep(0.05)
            printed = log_lines()
    assert printed.count('"sign_in_refused"') == len(stay)


@pytest.mark.parametrize("failure", [ConnectionResetError, RuntimeError])
async def test_only_who_vanished_is_passed_over(failure: type[Exception]) -> None:
    """Other servers raise `OSError`; what else fails is a bug."""

    async def answer(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def fail(_: Message) -> None:
        raise failure

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    expected = pytest.raises(RuntimeError) if failure is RuntimeError else contextlib.nullcontext()
    with expected:
        await Envelope(errors.Errors(answer))(scope, pytest.fail, fail)
