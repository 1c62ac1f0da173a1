"""Log security events: sign-ins and refusals, but never passwords, tokens or cookies."""

import logging

from fastapi import Request

logger = logging.getLogger("todo.security")


def log_event(request: Request, event: str, level: int = logging.INFO, **fields: object) -> None:
    """Log an event of a request; pass emails only as pseudonyms from `security.Issuer.name`."""
    told = {
        "event": event,
        "client": request.client.host if request.client else None,
        "request_id": request.scope["request_id"],
        "user_id": request.scope.get("user_id"),
        **fields,
    }
    details = ", ".join(f"{name} %({name})s" for name in told if name != "event")
    logger.log(level, f"%(event)s: {details}", told)  # noqa: G004  (the names are ours)
