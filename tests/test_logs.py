"""One line a request, and nothing secret in it."""

import io
import json
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

import pytest

import logs
import settings
from tests.conftest import Person
from tests.test_tasks import create


def requests(log: str) -> list[dict[str, Any]]:
    """Parse the lines that tell of requests."""
    lines = [json.loads(line) for line in log.splitlines()]
    return [line for line in lines if line.get("event") == "request"]


async def test_a_request_is_one_line(
    ada: Person, ada_id: str, log_lines: Callable[[], str]
) -> None:
    task = await create(ada)
    response = await ada.get(f"/api/{ada_id}/tasks/{task['id']}/")

    line = requests(log_lines())[-1]
    assert line["ms"] > 0
    assert line | {"time": "", "ms": 0} == {
        "time": "",
        "level": "info",
        "logger": "todo.requests",
        "event": "request",
        "method": "GET",
        "route": "/api/tasks/{task_id:int}",
        "status": 200,
        "ms": 0,
        "user_id": ada_id,
        "request_id": response.headers["X-Request-ID"],
        "client": "192.0.2.1",
    }


async def test_a_line_about_a_stranger_or_an_unknown_path_has_what_is_known(
    client: Person, log_lines: Callable[[], str]
) -> None:
    await client.get("/api/tasks")
    await client.get("/canary-path?canary-query")

    stranger, lost = requests(log_lines())
    assert (stranger["user_id"], stranger["status"]) == (None, 401)
    assert (lost["route"], lost["status"]) == (None, 404)
    assert "canary" not in log_lines()


async def test_nothing_secret_is_logged(
    ada: Person, valid_token: str, log_lines: Callable[[], str]
) -> None:
    await create(ada, title="canary-title", description="canary-description")
    await ada.post("/api/tasks", json={"title": "x", "priority": "canary-value"})
    await ada.get("/api/tasks", headers={"Cookie": "canary-cookie"})

    assert "canary" not in log_lines()
    assert valid_token not in log_lines()


REQUEST = {"event": "request", "method": "GET", "route": "/", "status": 200, "ms": 0.5} | {
    "user_id": "ada",
    "request_id": "1",
}


@pytest.mark.parametrize(
    ("level", "told"),
    [(logging.INFO, ["GET / 200 in 0.5 ms, user ada, request 1"]), (logging.WARNING, [])],
)
def test_requests_are_logged_for_every_handler(
    level: int, told: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(level)

    logs.log_request(REQUEST)

    assert caplog.messages == told
    assert [record.args for record in caplog.records] == [REQUEST] * len(told)


def test_records_are_made_by_who_adds_to_them(caplog: pytest.LogCaptureFixture) -> None:
    """As OpenTelemetry's integration does, which adds the ids of the trace."""
    caplog.set_level(logging.INFO)
    make = logging.getLogRecordFactory()

    def adding(*args: Any, **options: Any) -> logging.LogRecord:
        record = make(*args, **options)
        record.trace = "canary"
        return record

    logging.setLogRecordFactory(adding)
    try:
        logs.log_request(REQUEST)
    finally:
        logging.setLogRecordFactory(make)
    logs.log_request(REQUEST)

    assert [getattr(record, "trace", None) for record in caplog.records] == ["canary", None]
    assert caplog.messages[0] == caplog.messages[1]


def test_a_log_that_nobody_reads_fails_no_request(
    configured: settings.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    before = logging.getLogger().handlers[:]
    with io.TextIOWrapper(io.FileIO(writer, "w"), write_through=True) as nobody:
        monkeypatch.setattr(sys, "stdout", nobody)
        try:
            logs.configure(configured)
            logs.log_request(REQUEST)
        finally:
            logging.getLogger().handlers[:] = before


@pytest.fixture
def record() -> Callable[..., logging.LogRecord]:
    """Make records as the service does."""

    def make(message: str, fields: object = None) -> logging.LogRecord:
        return logging.LogRecord("todo", logging.INFO, "", 0, message, fields and (fields,), None)  # type: ignore[arg-type]

    return make


def test_text_is_for_people(record: Callable[..., logging.LogRecord]) -> None:
    formatter = logs.TextFormatter("%(levelname)s %(message)s")

    assert formatter.format(record("%(a)s is %(b)d", {"a": "x", "b": 1})) == "INFO x is 1"


def test_text_cannot_be_forged(record: Callable[..., logging.LogRecord]) -> None:
    line = logs.TextFormatter("%(message)s").format(record("%(a)s", {"a": "x\nINFO \x1b[31my é"}))

    assert line == "x\\nINFO \\x1b[31my é"


def test_json_holds_message_fields_and_traceback(record: Callable[..., logging.LogRecord]) -> None:
    plain = record("a plain message")
    try:
        raise ValueError("why")  # noqa: TRY301  (to have a traceback)
    except ValueError as error:
        plain.exc_info = (type(error), error, error.__traceback__)

    line = json.loads(logs.JSONFormatter().format(plain))

    assert line["message"] == "a plain message"
    assert "ValueError: why" in line["traceback"]


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_uvicorn_writes_in_the_same_format(
    log_format: str, capsys: pytest.CaptureFixture[str], configured: settings.Settings
) -> None:
    before = logging.getLogger().handlers[:]
    try:
        logs.configure(configured.model_copy(update={"log_format": log_format}))
        logging.getLogger("uvicorn.error").info("started")
        logs.configure(configured.model_copy(update={"log_level": "error"}))
        logging.getLogger("uvicorn").warning("too little")
        logging.getLogger("uvicorn.error").warning("too little")
    finally:
        logs.configure(configured)
        logging.getLogger().handlers[:] = before

    printed = capsys.readouterr().out
    assert "started" in printed
    assert "too little" not in printed
    assert printed.startswith("{") == (log_format == "json")
    assert not logging.getLogger("uvicorn.access").hasHandlers()
