"""What comes over a real connection: trailers, and clients that vanish."""

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import db
from tests.conftest import token
from tests.test_service import Service, service

BEARER = f"Authorization: Bearer {token(sub='ada')}\r\n".encode()
CHUNKED = (
    b"POST /api/tasks HTTP/1.1\r\nHost: x\r\n"
    b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
)
BODY = b'5\r\n{"tit\r\n8\r\nle":"x"}\r\n0\r\n'
TRAILERS = BEARER + b"X-Forwarded-For: 192.0.2.1\r\nX-Request-ID: canary\r\n\r\n"


def connected(running: Service) -> socket.socket:
    """Open a connection to a service."""
    parts = urlsplit(running.url)
    connection = socket.create_connection((parts.hostname, parts.port), timeout=30)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


@pytest.fixture(scope="module", params=["httptools", "h11"])
def parsing(
    request: pytest.FixtureRequest, database: db.Database, project: Path
) -> Iterator[Service]:
    """Run the service with each of uvicorn's parsers."""
    with service(project, "--http", request.param, DATABASE_URL=database.url) as running:
        yield running


@pytest.mark.parametrize("pause", [0, 0.1])
@pytest.mark.parametrize(("headers", "status"), [(b"", b"401"), (BEARER, b"201")])
def test_what_follows_a_body_is_no_header(
    parsing: Service, headers: bytes, status: bytes, pause: float
) -> None:
    parts = [CHUNKED + headers + b"\r\n", BODY, TRAILERS]
    before = len(parsing.printed())

    with connected(parsing) as connection:
        for part in parts if pause else [b"".join(parts)]:
            time.sleep(pause)
            connection.sendall(part)
        answer = connection.recv(65536)

    assert answer.split()[1] == status
    assert b"canary" not in answer
    lines = [json.loads(line) for line in parsing.printed()[before:].splitlines()]
    assert {line["client"] for line in lines} == {"127.0.0.1"}
