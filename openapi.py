"""What the OpenAPI document says of errors and headers, and how it is completed."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.models import OAuth2, OAuthFlowPassword, OAuthFlows
from fastapi.routing import APIRoute
from pydantic import MISSING, BaseModel, ConfigDict, Field

from errors import CODES, body, title


class InvalidMember(BaseModel):
    """An error in a request, and where: in the body, or in a parameter."""

    detail: str = Field(examples=["needs 1 or more characters"])
    pointer: str | MISSING = Field(MISSING, examples=["#/title"])
    parameter: str | MISSING = Field(MISSING, examples=["limit"])


class ProblemRead(BaseModel):
    """An error, in every response from status 400 up (RFC 9457)."""

    model_config = ConfigDict(title="Problem")

    type: str = Field(examples=["about:blank"])
    title: str = Field(examples=["Not Found"])
    status: int = Field(examples=[404])
    detail: str = Field(description="A sentence for people.", examples=["No such task."])
    code: str = Field(description="Stable, for programs.", examples=["task_not_found"])
    request_id: str = Field(examples=["5f0c3a8e9d7b4c61a2e4f6b8c0d2e4f6"])
    errors: list[InvalidMember] | MISSING = Field(
        MISSING, description="With `validation_error`: what is wrong, up to 20 errors."
    )


class Service(FastAPI):
    """FastAPI with an OpenAPI document suited to client generators."""

    def openapi(self) -> dict[str, Any]:
        """Return the document; FastAPI makes it anew when routes were added."""
        document = super().openapi()
        if "Problem" not in document["components"]["schemas"]:
            _add_password(document)
            _add_problem(document)
        return document

    def openapi_below(self, root: str) -> dict[str, Any]:
        """Return the document as it reads below a proxy's prefix."""
        document = self.openapi()
        if not root:
            return document
        schemes = {**document["components"]["securitySchemes"], "Password": _password(root)}
        components = {**document["components"], "securitySchemes": schemes}
        servers = [{"url": root}, *document["servers"]]
        return {**document, "servers": servers, "components": components}


def operation_id(route: APIRoute) -> str:
    """Name an operation as clients' languages do: `list_tasks` is `listTasks`."""
    first, *rest = route.name.split("_")
    return first + "".join(word.title() for word in rest)


TAGS = [
    {"name": "tasks", "description": "Your tasks, and how they change."},
    {"name": "tags", "description": "Your labels for tasks."},
    {"name": "auth", "description": "Accounts: sign up, sign in, stay signed in, sign out."},
    {"name": "health", "description": "For load balancers and orchestrators."},
]


def _password(root: str = "") -> dict[str, Any]:
    return OAuth2(
        flows=OAuthFlows(password=OAuthFlowPassword(tokenUrl=f"{root}/api/v1/auth/token")),
        description="The username is your email. Leave the client fields empty.",
    ).model_dump(mode="json", by_alias=True, exclude_none=True)


def _add_password(document: dict[str, Any]) -> None:
    """Let Swagger UI sign in with a password, wherever a token is used."""
    document["components"]["securitySchemes"]["Password"] = _password()
    for path in document["paths"].values():
        for operation in path.values():
            # What needs nothing says so, or a generator may assume anything.
            if {"BearerToken": []} in operation.setdefault("security", []):
                operation["security"].append({"Password": []})


def _add_problem(document: dict[str, Any]) -> None:
    """Add the schemas of errors, to which `answers` refers."""
    template = "#/components/schemas/{model}"
    problem = ProblemRead.model_json_schema(mode="serialization", ref_template=template)
    document["components"]["schemas"] |= {**problem.pop("$defs"), "Problem": problem}


def header(name: str, description: str, *, required: bool = True, **schema: str) -> dict[str, Any]:
    """Describe a response header, for the OpenAPI document."""
    return {name: {"description": description, "required": required, "schema": schema}}


_RETRY_AFTER = header("Retry-After", "Seconds to wait before trying again.", type="integer")
_HEADERS = {
    401: header("WWW-Authenticate", "The challenge (RFC 6750).", type="string"),
    429: _RETRY_AFTER
    | header(
        "RateLimit", 'Requests and seconds left: `"user";r=0;t=42`.', required=False, type="string"
    ),
    503: _RETRY_AFTER,
}
_EXAMPLES = {
    "validation_error": {
        "detail": "title: needs 1 or more characters",
        "errors": [{"detail": "needs 1 or more characters", "pointer": "#/title"}],
    }
}


def answers(*codes: str) -> dict[int | str, dict[str, Any]]:
    """Describe the problems that a route may return, for the OpenAPI document."""
    responses: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        status, sentence = CODES[code]
        example = body(status, code, sentence, "5f0c3a8e9d7b4c61a2e4f6b8c0d2e4f6")
        if status not in responses:
            schema = {"$ref": "#/components/schemas/Problem"}
            content = {"application/problem+json": {"schema": schema, "examples": {}}}
            responses[status] = {"description": title(status), "content": content}
            if status in _HEADERS:
                responses[status]["headers"] = _HEADERS[status]
        responses[status]["content"]["application/problem+json"]["examples"][code] = {
            "summary": sentence,
            "value": example | _EXAMPLES.get(code, {}),
        }
    return responses


BODY = answers("request_timeout", "body_too_large", "unsupported_media_type")
"""Problems of routes that take a body."""

TOKEN = answers("not_authenticated", "invalid_token", "token_expired", "token_revoked")
"""Problems of routes that take a token."""

OWNED = TOKEN | answers("rate_limited", "validation_error", "internal_error", "unavailable")
"""Problems of routes about a user's own data."""
