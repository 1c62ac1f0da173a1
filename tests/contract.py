"""Holds every answer that the tests see against the OpenAPI document that is served."""

import re
from typing import Any

import httpx
from jsonschema import Draft202012Validator

import spellings
from errors import CODES

ERROR = 400
UPGRADE_REFUSED = 400
PROBLEM = "application/problem+json"

PASSWORD = "canary horse battery"
SECRETS = re.compile(
    rf"{PASSWORD}|a secret of the tests|\$argon2|\$2b\$"
    r"|eyJ[\w-]+\.eyJ|[0-9a-f]{32}\.\d+\.[0-9a-f]{64}"
)
"""What may be in no log: passwords, their hashes, the secret, tokens."""


class Contract:
    """The document, ready to be compared with."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self._paths = [
            (re.compile(re.sub(r"\{\w+\}", "[^/]+", template)), operations)
            for template, operations in document["paths"].items()
        ]

    async def check(self, response: httpx.Response) -> None:
        """Fail for an answer whose status, media type, body or headers are not documented."""
        await response.aread()
        status = response.status_code
        assert response.headers["X-Request-ID"]
        if response.request.method == "HEAD":
            assert not response.content
            return
        if "access_token" not in response.text:
            assert not SECRETS.search(response.text)
        if status >= ERROR:
            self._check_problem(response)
        operation = self._operation(response.request)
        if operation is None:
            return
        if status == UPGRADE_REFUSED:
            return  # any request may be refused for how it is sent
        assert str(status) in operation["responses"], f"{status} is not documented"
        documented = operation["responses"][str(status)]
        media_type = response.headers.get("Content-Type", "").partition(";")[0]
        if "content" not in documented:
            assert not response.content
            return
        assert media_type in documented["content"], f"{media_type} is not documented"
        body = response.json() if media_type.endswith("json") else response.text
        self._validate(documented["content"][media_type]["schema"], body)
        for name, header in documented.get("headers", {}).items():
            assert name in response.headers or not header["required"]

    def _check_problem(self, response: httpx.Response) -> None:
        assert response.headers["Content-Type"] == PROBLEM
        problem = response.json()
        self._validate({"$ref": "#/components/schemas/Problem"}, problem)
        assert CODES[problem["code"]][0] == problem["status"] == response.status_code
        assert problem["request_id"] == response.headers["X-Request-ID"]
        assert problem["detail"]

    def _operation(self, request: httpx.Request) -> dict[str, Any] | None:
        path, _ = spellings.path(request.url.raw_path.partition(b"?")[0].decode())
        for pattern, operations in self._paths:
            if pattern.fullmatch(path):
                operation: dict[str, Any] | None = operations.get(request.method.lower())
                return operation
        return None

    def _validate(self, schema: dict[str, Any], body: object) -> None:
        root = {**schema, "components": self.document["components"]}
        Draft202012Validator(root).validate(body)
