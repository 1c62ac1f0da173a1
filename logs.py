"""Logging: one line per event, JSON for machines or text for a terminal.

Events pass their fields as the logger's only argument, a dictionary: `logger.info("%(a)s", {...})`.
"""

import logging
import sys
import time
from datetime import UTC, datetime
from typing import Any

import orjson
from starlette.requests import Request

from calls import call_of
from settings import Settings

_requests = logging.getLogger("todo.requests")
_security = logging.getLogger("todo.security")
_TEXT = "%(method)s %(route)s %(status)s in %(ms).1f ms, user %(user_id)s, request %(request_id)s"


class JSONFormatter(logging.Formatter):
    """One JSON object per line, whatever the fields contain."""

    def format(self, record: logging.LogRecord) -> str:
        """Render the record's own attributes, its fields and its traceback."""
        fields: dict[str, Any] = dict(record.args) if isinstance(record.args, dict) else {}
        if "event" not in fields:
            fields["message"] = record.getMessage()
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        line = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname.lower(),
            "logger": record.name,
            **fields,
        }
        return orjson.dumps(line, default=str, option=orjson.OPT_UTC_Z).decode()


class TextFormatter(logging.Formatter):
    """Readable lines, in UTC; control characters cannot forge another line."""

    converter = staticmethod(time.gmtime)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (logging's name)
        """Escape unprintable characters, except in tracebacks, which are appended later."""
        record.message = "".join(
            character if character.isprintable() else repr(character)[1:-1]
            for character in record.message
        )
        return super().formatMessage(record)


_FORMATTERS = {
    "json": JSONFormatter(),
    "text": TextFormatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"),
}


def configure(settings: Settings) -> None:
    """Send all loggers' lines, uvicorn's too, to standard output in one format."""
    # These are in no format. (Processes are, in gunicorn's and hypercorn's.)
    logging.logThreads = logging.logMultiprocessing = False
    stdout = logging.StreamHandler(sys.stdout)
    stdout.setFormatter(_FORMATTERS[settings.log_format])
    logging.basicConfig(level=settings.log_level.upper(), handlers=[stdout], force=True)
    # uvicorn has set handlers and levels of its own by now; under gunicorn, both have the same.
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "gunicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.setLevel(logging.NOTSET)
        logger.propagate = name != "uvicorn.access"  # `Envelope` logs requests
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it quotes what clients send
    for name in ("alembic", "watchfiles"):
        logging.getLogger(name).setLevel(logging.WARNING)


_REQUEST = logging.LogRecord(_requests.name, logging.INFO, "", 0, _TEXT, None, None)


def log_request(fields: dict[str, Any]) -> None:
    """Write the one line of a request."""
    if _requests.isEnabledFor(logging.INFO):
        if logging.getLogRecordFactory() is not logging.LogRecord:  # somebody adds to records
            _requests.info(_TEXT, fields)
            return
        # A copy, because making a record takes as long as everything else about the line.
        record = logging.LogRecord.__new__(logging.LogRecord)
        now = time.time()
        vars(record).update(vars(_REQUEST), args=fields, created=now, msecs=now % 1 * 1000)
        _requests.handle(record)


def log_event(request: Request, event: str, level: int = logging.INFO, **fields: object) -> None:
    """Log a security event of a request: a sign-in, or a refusal.

    Never pass passwords, tokens or cookies, and emails only as pseudonyms (`security.Issuer.name`).
    """
    call = call_of(request)
    told = {
        "event": event,
        "client": request.client.host if request.client else None,
        "request_id": call.request_id,
        "user_id": call.user_id or None,
        **fields,
    }
    details = ", ".join(f"{name} %({name})s" for name in told if name != "event")
    _security.log(level, f"%(event)s: {details}", told)
