"""Security events: who signed in, who was refused. Never a password, a token or a cookie."""

import logging

from fastapi import Request

logger = logging.getLogger("todo.security")


def log_event(request: Request, event: str, level: int = logging.INFO, **fields: object) -> None:
    """Write one line about a request; an email is named by `security.Issuer.name` only."""
    told = {
        "event": event,
        "client": request.client.host if request.client else None,
        "request_id": request.scope["request_id"],
        "user_id": request.scope.get("user_id"),
        **fields,
    }
    details = ", ".join(f"{name} %({name})s" for name in told if name != "event")
    logger.log(level, f"%(event)s: {details}", told)  # noqa: G004  (the names are ours)
