"""Calls the API through what openapi-python-client makes of it: `python client.py <URL>`."""

import sys
from typing import TypeVar

from todo import AuthenticatedClient, Client
from todo.api.auth import login, register
from todo.api.tasks import complete_task, create_task, list_tasks, patch_task
from todo.models import (
    Completion,
    Credentials,
    Priority,
    Problem,
    Registration,
    Sort,
    Status,
    TaskCreate,
    TaskPatch,
)

Answer = TypeVar("Answer")


def ok(answer: Answer | Problem | None) -> Answer:
    """Return what a call answered, or raise the sentence that the API has for people."""
    if isinstance(answer, Problem):
        raise SystemExit(answer.detail)
    assert answer is not None
    return answer


def sign_in(url: str) -> AuthenticatedClient:
    """Make an account."""
    email, password = "python@example.com", "canary horse battery"
    ok(register.sync(client=Client(url), body=Registration(email, password)))
    token = ok(login.sync(client=Client(url), body=Credentials(email, password)))
    return AuthenticatedClient(url, token.access_token)


def call(client: AuthenticatedClient) -> None:
    """Call what a client needs most."""
    milk = ok(create_task.sync(client=client, body=TaskCreate("Buy milk", tags=["home", "shop"])))
    oats = ok(create_task.sync(client=client, body=TaskCreate("Buy oats", tags=["shop"])))

    assert ok(complete_task.sync(milk.id, client=client)).completed
    assert not ok(complete_task.sync(milk.id, client=client)).completed
    assert ok(complete_task.sync(oats.id, client=client, body=Completion(completed=True))).completed

    for due in ("2026-12-01", "2026-12-01T17:00:00Z"):
        change = TaskPatch(due_date=due, priority=Priority.HIGH)
        milk = ok(patch_task.sync(milk.id, client=client, body=change))
        assert (milk.due_date, milk.priority) == (due, Priority.HIGH)
    change = TaskPatch(due_date=None, priority=oats.priority, tags=["home", "shop", "garden"])
    milk = ok(patch_task.sync(milk.id, client=client, body=change))
    assert (milk.due_date, milk.priority) == (None, Priority.MEDIUM)

    tasks = ok(list_tasks.sync(client=client, tag=["shop", "garden"]))
    assert [task.id for task in tasks] == [milk.id]
    pending = list_tasks.sync(client=client, status=Status.PENDING, priority=Priority.MEDIUM)
    assert [task.id for task in ok(pending)] == [milk.id]
    by_title = ok(list_tasks.sync(client=client, sort=Sort.TITLE_DESC))
    assert [task.id for task in by_title] == [oats.id, milk.id]


call(sign_in(sys.argv[1]))
print("done")
