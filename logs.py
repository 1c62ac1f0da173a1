"""Logging: one line an event, JSON for machines or text for a terminal.

Events pass their fields as the logger's one argument, a dictionary: `logger.info("%(a)s", {...})`.
"""

import logging.config
import time
from datetime import UTC, datetime
from typing import Any

import orjson

from settings import Settings


class JSONFormatter(logging.Formatter):
    """One JSON object a line, whatever the fields contain."""

    def format(self, record: logging.LogRecord) -> str:
        """Render the record's own members, its fields and its traceback."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        if isinstance(record.args, dict):
            line.update(record.args)
        if "event" not in line:
            line["message"] = record.getMessage()
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str, option=orjson.OPT_UTC_Z).decode()


class TextFormatter(logging.Formatter):
    """Readable lines, in UTC; control characters cannot forge another line."""

    converter = staticmethod(time.gmtime)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (the name is logging's)
        """Escape what is not printable, but in tracebacks, which are appended later."""
        record.message = "".join(
            character if character.isprintable() else repr(character)[1:-1]
            for character in record.message
        )
        return super().formatMessage(record)


def configure(settings: Settings) -> None:
    """Send every logger's lines, uvicorn's too, to standard output in one format."""
    # Nobody reads these, and each costs time for every line.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # noqa: SLF001  (as its HOWTO advises)
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "json": {"()": JSONFormatter},
                "text": {
                    "()": TextFormatter,
                    "format": "%(asctime)s %(levelname)-7s %(message)s",
                    "datefmt": "%H:%M:%S",
                },
            },
            "handlers": {
                "stdout": {
                    "class": "logging.StreamHandler",
                    "formatter": settings.log_format,
                    "stream": "ext://sys.stdout",
                }
            },
            "root": {"level": settings.log_level.upper(), "handlers": ["stdout"]},
            "loggers": {
                "uvicorn": {"handlers": [], "propagate": True},
                # The envelope writes the one line of a request.
                "uvicorn.access": {"handlers": [], "propagate": False},
                "alembic": {"level": "WARNING"},
            },
        }
    )
