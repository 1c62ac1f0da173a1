"""What is known of a call while it is served: one object, in the ASGI scope of the request."""

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from security import Claims

KEY = "todo.call"


@dataclass(slots=True)
class Call:
    """One request or WebSocket, from the outermost layer to its line in the log."""

    request_id: str
    headers: dict[bytes, bytes]
    """What the client sent, by lower-case name; the last of repeated ones."""
    path: str
    """Below the root; in our own spelling, once the route is found."""
    path_user_id: str | None = None
    """The user's id that the path named, to be compared with the token's."""
    claims: Claims | None = None
    """Of the verified token: there are none before `verify_jwt` has run."""
    user_id: str = ""
    route: str = ""
    """The path as our own routes declare it."""
    status: int | None = None
    """Of the response, once it has begun."""
    is_cacheable: bool = False
    """Whether the client may keep the response and ask whether it still holds."""
    limits: dict[bytes, bytes] = field(default_factory=dict)
    """The headers that tell of rate limits."""
    waited: float = 0.0
    """For how many seconds it has waited for the database."""
    patience: float = 0.0
    """For how many it may in all, if that is more than the default."""


current: ContextVar[Call | None] = ContextVar("call", default=None)
"""The call that the running code serves, also in the tasks that it starts."""


def call_of(connection: Mapping[str, Any]) -> Call:
    """Return the call of a request, a WebSocket, or an ASGI scope."""
    call: Call = connection[KEY]
    return call


def below_root(scope: Mapping[str, Any], path: str) -> str:
    """Return the part of a path that is the service's own, behind a prefix that a proxy has."""
    root = scope.get("root_path", "")
    return path[len(root) :] if root and f"{path}/".startswith(f"{root}/") else path
