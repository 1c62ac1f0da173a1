"""Due dates: days, which stay days whatever the time zone, and moments."""

import re
from datetime import UTC, date, datetime, time

_DAY = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_MINUTE = r"([01]\d|2[0-3]):[0-5]\d"
_RFC3339 = re.compile(
    rf"\d{{4}}-\d\d-\d\d[Tt ]{_MINUTE}:[0-5]\d(\.\d+)?([Zz]|[+-]{_MINUTE})", re.ASCII
)
FIRST_MOMENT = datetime.min.replace(tzinfo=UTC)
LAST_MOMENT = datetime.max.replace(tzinfo=UTC)
"""The database driver reads these as minus and plus infinity."""
_OUT_OF_RANGE = "must be from 0001-01-02 to 9999-12-31 in UTC"


def first_moment(due: date) -> datetime:
    """Return the moment in UTC for which a due date is sorted and filtered."""
    return due if isinstance(due, datetime) else datetime.combine(due, time(), UTC)


def due_date_of(value: object) -> date | None:
    """Parse a day or a moment. Pydantic alone would also accept Unix times, and guess which."""
    if value == "":
        return None
    text = value if isinstance(value, str) else ""
    is_day = _DAY.fullmatch(text)
    if not is_day and not _RFC3339.fullmatch(text):
        raise ValueError(
            "must be a day like 2026-11-20, or a timestamp with an offset"
            " like 2026-11-20T10:00:00Z (RFC 3339)"
        )
    try:
        if is_day:
            due: date = date.fromisoformat(text)
        else:
            due = datetime.fromisoformat(text.upper()).astimezone(UTC)
    except OverflowError:
        raise ValueError(_OUT_OF_RANGE) from None
    except ValueError:
        raise ValueError("is not a real date or time") from None
    if not FIRST_MOMENT < first_moment(due) < LAST_MOMENT:
        raise ValueError(_OUT_OF_RANGE)
    return due
