"""The OpenAPI document is complete: generators and people find all that they need."""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from jsonschema import Draft202012Validator

from errors import CODES
from openapi import answers
from tests.contract import PROBLEM

OPERATIONS = [
    *("listTasks", "createTask", "getTask", "updateTask", "patchTask", "deleteTask"),
    *("completeTask", "completeTasks", "deleteTasks", "getLiveness", "getReadiness"),
    *("listChanges", "watchTasks"),
    *(
        "addTag",
        "removeTag",
        "listTags",
        "createTag",
        "getTag",
        "updateTag",
        "patchTag",
        "deleteTag",
    ),
    *("register", "login", "issueToken", "refresh", "logout"),
    *("getMe", "updateMe", "changePassword", "deleteMe"),
]


OTHERWISE: dict[str, list[dict[str, list[str]]]] = {
    **{name: [] for name in ("register", "login", "issueToken", "getLiveness", "getReadiness")},
    "refresh": [{"RefreshCookie": []}],
    "logout": [{"RefreshCookie": []}, {"BearerToken": []}, {}, {"Password": []}],
}
"""What operations need, if it is not a token. `{}` is nothing."""


@pytest.fixture
def document(app: FastAPI) -> dict[str, Any]:
    """Give the document that is served."""
    return app.openapi()


@pytest.fixture
def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Give its operations by their ids."""
    return {
        operation["operationId"]: {"path": path, **operation}
        for path, methods in document["paths"].items()
        for operation in methods.values()
    }


def parts(node: object, *path: str) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """List the objects of the document, and where they are."""
    if isinstance(node, dict):
        yield path, node
    for name, value in node.items() if isinstance(node, dict) else ():
        yield from parts(value, *path, name)
    for number, value in enumerate(node) if isinstance(node, list) else ():
        yield from parts(value, *path, str(number))


def test_operations_are_named_for_generated_clients(operations: dict[str, Any]) -> None:
    assert sorted(operations) == sorted(OPERATIONS)


def test_every_operation_is_described(operations: dict[str, Any]) -> None:
    for name, operation in operations.items():
        assert operation["summary"], name
        assert operation["description"].endswith("."), name
        for parameter in operation.get("parameters", []):
            assert parameter["description"], (name, parameter)


def test_every_operation_on_data_needs_a_token_and_lists_its_errors(
    operations: dict[str, Any],
) -> None:
    for name, operation in operations.items():
        if operation["path"].startswith("/api/"):
            assert {"500", "503"} <= operation["responses"].keys(), name
            assert "403" in operation["responses"], name
        if operation["security"] == [{"BearerToken": []}, {"Password": []}]:
            assert {"401", "500", "503"} <= operation["responses"].keys(), name
            assert name not in OTHERWISE
        else:
            assert operation["security"] == OTHERWISE[name], name
        if "requestBody" in operation:
            assert {"408", "413", "415", "422"} <= operation["responses"].keys(), name
        if "{" in operation["path"]:
            assert {"404", "422"} <= operation["responses"].keys(), name


def test_every_error_is_a_problem_with_an_example_for_each_code(
    document: dict[str, Any], operations: dict[str, Any]
) -> None:
    schema = {"$ref": "#/components/schemas/Problem", "components": document["components"]}
    for name, operation in operations.items():
        for status, response in operation["responses"].items():
            if status >= "400":
                assert list(response["content"]) == [PROBLEM], (name, status)
                for code, example in response["content"][PROBLEM]["examples"].items():
                    Draft202012Validator(schema).validate(example["value"])
                    assert CODES[code][0] == int(status)


def test_headers_that_clients_use_are_documented(operations: dict[str, Any]) -> None:
    for name, operation in operations.items():
        for status, header in (("401", "WWW-Authenticate"), ("503", "Retry-After")):
            if status in operation["responses"]:
                assert list(operation["responses"][status]["headers"]) == [header], name
    assert list(operations["createTask"]["responses"]["201"]["headers"]) == [
        *("Location", "ETag", "Idempotency-Replayed"),
    ]


def test_headers_that_change_what_a_call_does_are_documented(operations: dict[str, Any]) -> None:
    named = {
        (operation["operationId"], parameter["name"])
        for operation in operations.values()
        for parameter in operation.get("parameters", [])
        if parameter["in"] == "header"
    }

    assert {name for _, name in named} == {
        *("If-Match", "If-None-Match", "Idempotency-Key", "Last-Event-ID"),
    }
    writes = {"updateTask", "patchTask", "completeTask", "deleteTask"} | {
        *("addTag", "removeTag", "completeTasks", "deleteTasks"),
    }
    assert {operation for operation, name in named if name == "If-Match"} == writes


def test_what_several_operations_take_or_give_is_one_schema(document: dict[str, Any]) -> None:
    """Else generators name it anew for each of them, as types that do not fit each other."""
    found = ["/".join(path) for path, part in parts(document) if "enum" in part]

    assert found == [f"components/schemas/{name}" for name in ("Priority", "Sort", "Status")]
    items = document["components"]["schemas"]["TaskPatch"]["properties"]["tags"]["items"]
    assert items == {"$ref": "#/components/schemas/TagInput"}


def test_what_may_be_of_two_types_is_a_tag_or_null(document: dict[str, Any]) -> None:
    """Of two formats of a string, clients in Kotlin, Swift and Dart could send or read neither."""
    for path, part in parts(document):
        if "anyOf" in part and path[-1] != "TagInput":
            assert len(part["anyOf"]) == 2, path
            assert part["anyOf"][1] == {"type": "null"}, path


def test_every_constant_of_the_order_has_a_name_of_its_own(document: dict[str, Any]) -> None:
    sort = document["components"]["schemas"]["Sort"]

    names = dict(zip(sort["enum"], sort["x-enum-varnames"], strict=True))
    assert len(set(names.values())) == len(names)
    assert (names["due_date"], names["-due_date"]) == ("DUE_DATE", "DUE_DATE_DESC")


def test_its_version_is_the_projects(document: dict[str, Any], project: Path) -> None:
    told = tomllib.loads((project / "pyproject.toml").read_text())

    assert document["info"]["version"] == told["project"]["version"]


def test_ids_and_revisions_are_of_64_bits(document: dict[str, Any]) -> None:
    integers = [(path, part) for path, part in parts(document) if part.get("type") == "integer"]

    assert len(integers) > 20
    for path, part in integers:
        is_wide = path[-1] in {"id", "rev", "items"} or part.get("maximum", 0) >= 2**31
        assert (part.get("format") == "int64") is is_wide, path


@pytest.mark.parametrize("name", ["completeTask", "deleteMe"])
def test_a_body_that_may_be_left_out_is_not_null(operations: dict[str, Any], name: str) -> None:
    body = operations[name]["requestBody"]

    assert "required" not in body
    assert list(body["content"]["application/json"]["schema"]) == ["$ref"]


def test_the_example_of_a_change_changes_one_member(document: dict[str, Any]) -> None:
    for name in ("TaskPatch", "TagPatch"):
        schema = document["components"]["schemas"][name]
        (example,) = schema["examples"]
        Draft202012Validator(schema).validate(example)
        assert len(example) == 1


def test_the_stream_is_marked_for_generators(operations: dict[str, Any]) -> None:
    """Their clients would wait for its end."""
    stream = operations["watchTasks"]

    assert stream["x-internal"]
    assert stream["responses"]["200"]["content"] == {
        "text/event-stream": {"schema": {"type": "string"}}
    }


def test_every_tag_is_described(document: dict[str, Any], operations: dict[str, Any]) -> None:
    described = [tag["name"] for tag in document["tags"] if tag["description"]]

    assert set(described) == {tag for each in operations.values() for tag in each["tags"]}


@pytest.mark.parametrize(("prefix", "servers"), [("", ["/"]), ("/todo", ["/todo", "/"])])
async def test_the_document_says_where_the_service_is(
    app: FastAPI, prefix: str, servers: list[str]
) -> None:
    transport = httpx.ASGITransport(app, root_path=prefix)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        served = (await client.get(f"{prefix}/openapi.json")).json()

    (flow,) = served["components"]["securitySchemes"]["Password"]["flows"].values()
    assert [server["url"] for server in served["servers"]] == servers
    assert flow["tokenUrl"] == f"{prefix}/api/v1/auth/token"


def test_the_example_of_a_mistake_lists_it() -> None:
    example = answers("validation_error")[422]["content"][PROBLEM]["examples"]["validation_error"]

    assert example["value"]["errors"]


def test_every_member_has_an_example_that_follows_its_rule(document: dict[str, Any]) -> None:
    for name, schema in document["components"]["schemas"].items():
        for member, rule in schema.get("properties", {}).items():
            refers = "$ref" in rule or "$ref" in rule.get("items", {})
            if "default" in rule or refers or member == "status":
                continue
            assert rule["examples"], (name, member)
            for example in rule["examples"]:
                root = {**rule, "components": document["components"]}
                Draft202012Validator(root).validate(example)


def test_the_document_is_closed(document: dict[str, Any]) -> None:
    """Every reference leads somewhere, and every schema is referred to."""
    references = {
        part["$ref"].removeprefix("#/components/schemas/")
        for _, part in parts(document)
        if "$ref" in part
    }

    assert references == document["components"]["schemas"].keys()


def test_answers_are_grouped_by_status() -> None:
    described = answers("invalid_token", "token_expired", "task_not_found")

    assert list(described) == [401, 404]
    assert list(described[401]["content"][PROBLEM]["examples"]) == [
        "invalid_token",
        "token_expired",
    ]
