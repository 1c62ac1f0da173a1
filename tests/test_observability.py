"""The usual tools see the service's routes as they see any FastAPI application's."""

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from fastapi import FastAPI
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import ProxyTracerProvider
from prometheus_client import CollectorRegistry
from prometheus_fastapi_instrumentator import Instrumentator

import db
import main
from settings import Settings
from tests.conftest import SECRET, Person, token
from tests.contract import PASSWORD, SECRETS


class Telemetry(NamedTuple):
    """What was exported."""

    spans: InMemorySpanExporter
    metrics: InMemoryMetricReader
    logs: InMemoryLogRecordExporter

    def span(self) -> ReadableSpan:
        """Return the span of the last request."""
        return self.spans.get_finished_spans()[-1]

    def durations(self) -> list[dict[str, Any]]:
        """Return what the measured durations are told apart by."""
        data = self.metrics.get_metrics_data()
        assert data
        return [
            dict(point.attributes or {})
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == "http.server.request.duration"
            for point in metric.data.data_points
        ]


@pytest.fixture
def telemetry(monkeypatch: pytest.MonkeyPatch) -> Telemetry:
    """Configure OpenTelemetry's SDK as an application does, for one test."""
    logs = InMemoryLogRecordExporter()  # type: ignore[no-untyped-call]
    found = Telemetry(InMemorySpanExporter(), InMemoryMetricReader(), logs)
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(found.spans))
    meters = MeterProvider([found.metrics])
    loggers = LoggerProvider()
    loggers.add_log_record_processor(SimpleLogRecordProcessor(found.logs))
    monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", lambda: tracers)
    monkeypatch.setattr("opentelemetry.metrics.get_meter_provider", lambda: meters)
    monkeypatch.setattr("opentelemetry._logs.get_logger_provider", lambda: loggers)
    return found


async def test_a_request_is_a_span_and_a_duration_named_by_its_route(
    ada: Person, ada_id: str, telemetry: Telemetry
) -> None:
    created = await ada.post("/api/tasks", json={"title": "x"})
    path = created.headers["Location"]
    users_path = path.replace("/tasks", f"/{ada_id}/tasks")

    for asked, status in [(path, 200), (f"{users_path}/", 200), (f"{path}0", 404)]:
        assert (await ada.get(asked)).status_code == status

        span = telemetry.span()
        assert span.name == "GET /api/tasks/{task_id:int}"
        assert span.attributes
        assert span.attributes["http.route"] == "/api/tasks/{task_id:int}"
        assert span.attributes["http.response.status_code"] == status
    routes = {
        (point["http.route"], point["http.response.status_code"]) for point in telemetry.durations()
    }
    assert routes == {
        *(
            ("/api/tasks", 201),
            ("/api/tasks/{task_id:int}", 200),
            ("/api/tasks/{task_id:int}", 404),
        ),
    }


async def test_below_a_prefix_the_route_is_named_with_it(
    app: FastAPI, telemetry: Telemetry
) -> None:
    transport = httpx.ASGITransport(app, root_path="/below")
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await client.get("/below/health/live")).status_code == 200

    attributes = telemetry.span().attributes
    assert attributes
    assert attributes["http.route"] == "/below/health/live"


async def test_durations_are_measured_without_spans(
    client: Person, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", ProxyTracerProvider)

    await client.get("/health/live")

    assert [point["http.route"] for point in telemetry.durations()] == ["/health/live"]
    assert not telemetry.spans.get_finished_spans()


@pytest.fixture
async def failing(app: FastAPI) -> AsyncIterator[Person]:
    """Give a client of a service with a bug."""
    verifier, app.state.verifier = app.state.verifier, None
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client
    app.state.verifier = verifier


async def test_an_unexpected_error_is_an_error_of_the_span(
    failing: Person, telemetry: Telemetry, valid_token: str
) -> None:
    bearer = {"Authorization": f"Bearer {valid_token}"}
    assert (await failing.get("/api/tasks/1", headers=bearer)).status_code == 500

    span = telemetry.span()
    assert not span.status.is_ok
    assert span.attributes
    assert span.attributes["error.type"] == "500"


async def test_nothing_that_clients_send_in_bodies_or_headers_is_exported(
    client: Person, ada: Person, telemetry: Telemetry
) -> None:
    for who in ({"email": "a@example.com", "password": PASSWORD}, {"password": PASSWORD}):
        await client.post("/api/v1/auth/login", json=who)
    await ada.post("/api/tasks", json={"title": "x", "priority": PASSWORD})

    exported = "".join(span.to_json() for span in telemetry.spans.get_finished_spans())
    assert "/api/v1/auth/login" in exported
    assert not SECRETS.search(exported)
    assert not telemetry.logs.get_finished_logs()


SET_UP_LATER = """
import asyncio, sys
import httpx, main
assert "opentelemetry.sdk" not in sys.modules
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

spans = InMemorySpanExporter()
trace.set_tracer_provider(provider := TracerProvider())
provider.add_span_processor(SimpleSpanProcessor(spans))

async def use():
    transport = httpx.ASGITransport(main.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        await client.get("/health/live")

asyncio.run(use())
print(*[span.name for span in spans.get_finished_spans()], file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("environment", "spans"), [({"OTEL_SERVICE_NAME": "x"}, "GET /health/live"), ({}, "")]
)
def test_who_is_not_set_up_for_it_asks_for_no_provider(
    project: Path, environment: dict[str, str], spans: str
) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", SET_UP_LATER],
        cwd=project,
        env={"PATH": os.environ["PATH"], "LOG_LEVEL": "error", **environment},
        stderr=subprocess.PIPE,
        check=True,
    )

    assert ran.stderr.decode().strip() == spans


async def test_the_instrumentator_counts_by_route(configured: Settings, ada_id: str) -> None:
    app = main.create_app(configured)
    Instrumentator(registry=CollectorRegistry()).instrument(app).expose(app)
    headers = {"Authorization": f"Bearer {token(sub=ada_id)}"}
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://test", headers=headers
        ) as ada,
    ):
        statuses = [(await ada.get(f"/api/tasks{path}")).status_code for path in ("", "/1", "/0")]
        counted = (await ada.get("/metrics")).text

    assert statuses == [200, 404, 422]
    assert 'http_requests_total{handler="/api/tasks",method="GET",status="2xx"} 1.0' in counted
    assert (
        'http_requests_total{handler="/api/tasks/{task_id:int}",method="GET",status="4xx"} 2.0'
        in counted
    )


SENTRY = """
import asyncio, json, os
import httpx, sentry_sdk
from sentry_sdk.transport import Transport

events = []

class Kept(Transport):
    def capture_envelope(self, envelope):
        events.extend(item.payload.json for item in envelope.items if item.type == "event")

sentry_sdk.init("http://key@localhost/1", transport=Kept, include_local_variables=False)
import main

async def use():
    transport = httpx.ASGITransport(main.app)
    bearer = {"Authorization": "Bearer " + os.environ["TOKEN"]}
    async with (
        main.app.router.lifespan_context(main.app),
        httpx.AsyncClient(transport=transport, base_url="http://test", headers=bearer) as ada,
    ):
        for path in ("/api/tasks", "/api/tasks/1", "/api/tasks/0", "/nothing"):
            await ada.get(path)
        before = len(events)
        main.app.state.verifier = None
        assert (await ada.get("/api/tasks/1")).status_code == 500
        print(json.dumps([before, events]))

asyncio.run(use())
"""


def test_sentry_is_told_of_unexpected_errors_only(
    project: Path, database: db.Database, valid_token: str
) -> None:
    """In a process of its own: Sentry patches FastAPI for good."""
    environment = {"DATABASE_URL": database.url, "BETTER_AUTH_SECRET": SECRET}
    environment |= {"TOKEN": valid_token, "LOG_LEVEL": "error", "PATH": os.environ["PATH"]}

    ran = subprocess.run(
        [sys.executable, "-c", SENTRY],
        cwd=project,
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
    )

    before, events = json.loads(ran.stdout.splitlines()[-1])
    assert before == 0
    (event,) = events
    assert event["transaction"] == "/api/tasks/{task_id:int}"
    assert event["exception"]["values"][-1]["type"] == "AttributeError"
    assert valid_token not in json.dumps(event)
