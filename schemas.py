"""What clients send and receive. The rules of a field stand here once, for every route.

What comes from the database is a `TypedDict`, that is, the row itself: the tables have checked it
already, and it is not copied into a model on its way out.
"""

import contextlib
import re
import unicodedata
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from email_validator import EmailNotValidError, validate_email
from pydantic import (
    MISSING,
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StringConstraints,
    model_validator,
)
from typing_extensions import TypedDict

from models import Priority

MAX_ID = 2**63 - 1

_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
FIRST_MOMENT = datetime.min.replace(tzinfo=UTC)
LAST_MOMENT = datetime.max.replace(tzinfo=UTC)
"""What the database's driver takes for minus and plus infinity."""

_READ_ONLY = frozenset({"id", "user_id", "created_at", "updated_at", "rev"})


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not contain the NUL character")
    return text


def folded(text: str) -> str:
    """Give that by which emails, and names of tags, are compared."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def _nfkc(value: object) -> object:
    # The same password, typed on another keyboard, may come in other code points. Normalizing takes
    # quadratic time; what is very long is refused by its length as it is.
    if isinstance(value, str) and len(value) <= 1024:
        return unicodedata.normalize("NFKC", value)
    return value


def _rfc3339(value: object) -> object:
    # Pydantic alone would also take Unix times and strings of digits.
    if not isinstance(value, str) or not _RFC3339.fullmatch(value):
        raise ValueError("must be a timestamp with an offset, like 2026-11-20T10:00:00Z (RFC 3339)")
    return value


def _utc(moment: datetime) -> datetime:
    with contextlib.suppress(OverflowError):
        moment = moment.astimezone(UTC)
        if FIRST_MOMENT < moment < LAST_MOMENT:
            return moment
    raise ValueError("is out of range in UTC")


def _name_of(tag: object) -> object:
    # A tag as it was read counts by its name.
    if isinstance(tag, dict):
        if tag.keys() - TagRead.__annotations__.keys():
            raise ValueError("has a member that a tag has not; /docs lists what it has")
        return tag.get("name")
    return tag


def _plain_digits(value: object) -> object:
    # Pydantic alone would also take "1_0", "1.0", " 1" and the digits of other scripts.
    if isinstance(value, str) and not (value.isascii() and value.isdigit()):
        raise ValueError("must be plain decimal digits")
    return value


def _email(text: str) -> str:
    try:
        found = validate_email(unicodedata.normalize("NFKC", text), check_deliverability=False)
    except EmailNotValidError as error:
        detail = "must be an email address, like ada@example.com, not of a domain such as .test"
        raise ValueError(detail) from error
    return found.normalized


def _as_kept(text: str) -> str:
    # What is no email has no account, which is not told apart from a wrong password.
    with contextlib.suppress(ValueError):
        return _email(text)
    return text


def _text(longest: int, shortest: int = 1, *, strip: bool = True) -> tuple[object, ...]:
    rules = StringConstraints(strip_whitespace=strip, min_length=shortest, max_length=longest)
    return rules, AfterValidator(_no_nul)


Title = Annotated[str, *_text(200)]
Description = Annotated[str, *_text(1000, 0, strip=False)]
SearchText = Annotated[str, *_text(200, strip=False)]
TagName = Annotated[str, *_text(50)]
Name = Annotated[str, *_text(100)]
Timestamp = Annotated[AwareDatetime, BeforeValidator(_rfc3339), AfterValidator(_utc)]
_EMAIL = _text(254, 0)
Email = Annotated[str, *_EMAIL, AfterValidator(_email)]
GivenEmail = Annotated[str, *_EMAIL, AfterValidator(_as_kept)]
_PASSWORD = (AfterValidator(_no_nul), BeforeValidator(_nfkc))
Password = Annotated[str, StringConstraints(max_length=128), *_PASSWORD]
NewPassword = Annotated[str, StringConstraints(min_length=8, max_length=128), *_PASSWORD]
# Bounds stand before it: after it, they would be looked at in Python, and could miss in OpenAPI.
_DIGITS = BeforeValidator(_plain_digits)
Id = Annotated[int, Field(ge=1, le=MAX_ID), _DIGITS]
Revision = Annotated[int, Field(ge=0, le=MAX_ID), _DIGITS]
Color = Annotated[str, StringConstraints(pattern=r"^#[0-9A-Fa-f]{6}$", to_lower=True)]


class TagRead(TypedDict):
    """A tag, in every answer."""

    id: Annotated[int, Field(examples=[3])]
    name: Annotated[str, Field(examples=["home"])]
    color: Annotated[str | None, Field(examples=["#22aa66"])]


TagNames = Annotated[
    list[Annotated[TagName, BeforeValidator(_name_of, json_schema_input_type=TagName | TagRead)]],
    Field(
        max_length=20,
        description="Names, or tags as they were read. Unknown names become tags.",
        examples=[["home", {"id": 3, "name": "garden", "color": "#22aa66"}]],
    ),
]


class TaskRead(TypedDict):
    """A task, in every answer."""

    id: Annotated[int, Field(examples=[1])]
    user_id: Annotated[str, Field(examples=["u1"])]
    title: Annotated[str, Field(examples=["Buy milk"])]
    description: Annotated[str | None, Field(examples=[None])]
    completed: Annotated[bool, Field(examples=[False])]
    priority: Annotated[Priority, Field(examples=["medium"])]
    due_date: Annotated[datetime | None, Field(examples=[None])]
    tags: list[TagRead]
    created_at: Annotated[datetime, Field(examples=["2026-11-20T10:00:00Z"])]
    updated_at: Annotated[datetime, Field(examples=["2026-11-20T10:00:00Z"])]
    rev: Annotated[int, Field(description="The owner's revision that wrote it.", examples=[7])]


class ChangesRead(TypedDict):
    """What has changed, oldest first."""

    rev: Annotated[int, Field(description="Where to go on: the next `since`.", examples=[63])]
    changed: list[TaskRead]
    deleted: Annotated[list[int], Field(examples=[[5]])]
    more: Annotated[bool, Field(description="There is more: ask again.", examples=[False])]


class UserRead(TypedDict):
    """A user. Email and name are null for one that only an external token knows."""

    id: Annotated[str, Field(examples=["u1"])]
    email: Annotated[str | None, Field(examples=[None])]
    name: Annotated[str | None, Field(examples=[None])]
    created_at: Annotated[datetime, Field(examples=["2026-11-20T10:00:00Z"])]


class TokenRead(TypedDict):
    """An access token, and whose it is."""

    access_token: Annotated[str, Field(examples=["eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ1MSJ9.c2ln"])]
    token_type: Annotated[Literal["bearer"], Field(examples=["bearer"])]
    expires_in: Annotated[int, Field(description="Seconds.", examples=[900])]
    user: UserRead


class Updated(TypedDict):
    """How many tasks were changed."""

    updated: Annotated[int, Field(examples=[3])]


class Deleted(TypedDict):
    """How many tasks were deleted."""

    deleted: Annotated[int, Field(examples=[2])]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Body(_Strict):
    """What GET returns, PUT accepts: read-only members are ignored, unknown ones refused."""

    @model_validator(mode="before")
    @classmethod
    def _ignore_read_only(cls, body: Any) -> Any:  # noqa: ANN401  (JSON is anything)
        if isinstance(body, dict):
            return {name: value for name, value in body.items() if name not in _READ_ONLY}
        return body


class TaskPatch(_Body):
    """Any subset of a task's members: one left out keeps its value, null clears it."""

    title: Title | MISSING = Field(MISSING, examples=["Buy oat milk"])
    description: Description | MISSING | None = Field(MISSING, examples=["Two litres."])
    completed: StrictBool | MISSING = Field(MISSING, examples=[True])
    priority: Priority | MISSING = Field(MISSING, examples=["high"])
    due_date: Timestamp | MISSING | None = Field(MISSING, examples=["2026-12-01T17:00:00Z"])
    tags: TagNames | MISSING = MISSING


class TaskUpdate(TaskPatch):
    """A whole task, or its title and what is to change."""

    title: Title = Field(examples=["Buy oat milk"])


class TaskCreate(_Body):
    """A new task; only the title is required."""

    title: Title = Field(examples=["Buy milk"])
    description: Description | None = Field(None, examples=["Two litres."])
    completed: StrictBool = False
    priority: Priority = "medium"
    due_date: Timestamp | None = Field(None, examples=["2026-12-01T17:00:00Z"])
    tags: TagNames = Field(default_factory=list)


class Completion(_Body):
    """Whether it is done."""

    completed: StrictBool = Field(examples=[True])


class TagPatch(_Body):
    """Any subset of a tag's members: one left out keeps its value, null clears it."""

    name: TagName | MISSING = Field(MISSING, examples=["home"])
    color: Color | MISSING | None = Field(MISSING, examples=["#22aa66"])


class TagCreate(_Body):
    """A new tag; only the name is required."""

    name: TagName = Field(examples=["home"])
    color: Color | None = Field(None, examples=["#22aa66"])


class _Query(_Strict):
    """What follows the `?`. Requests with the same query share what was read of it.

    It equals only itself, so that caches find it fast, whatever its values are.
    """

    model_config = ConfigDict(frozen=True)
    __eq__ = object.__eq__

    def __hash__(self) -> int:
        return id(self)


class Registration(_Strict):
    """Who signs up."""

    email: Email = Field(examples=["ada@example.com"])
    password: NewPassword = Field(examples=["correct horse battery"])
    name: Name | None = Field(None, examples=["Ada"])


class Credentials(_Strict):
    """Who signs in."""

    email: GivenEmail = Field(examples=["ada@example.com"])
    password: Password = Field(examples=["correct horse battery"])


class PasswordGrant(BaseModel):
    """The form of OAuth 2.0's password grant (RFC 6749, section 4.3.2); the username is the email.

    What else clients send, such as their own id, is ignored.
    """

    grant_type: Literal["password"] = "password"
    username: GivenEmail = Field(examples=["ada@example.com"])
    password: Password = Field(examples=["correct horse battery"])


class UserPatch(_Strict):
    """What a user may change of itself; null clears it."""

    name: Name | None = Field(examples=["Ada L."])


class PasswordChange(_Strict):
    """The password as it is and as it shall be."""

    current_password: Password = Field(examples=["correct horse battery"])
    new_password: NewPassword = Field(examples=["staple the battery again"])


class Farewell(_Strict):
    """The password, of an account that has one."""

    password: Password = Field(examples=["correct horse battery"])


class LogoutQuery(_Query):
    """What is ended."""

    everywhere: bool = Field(default=False, description="End every session of the user.")


Status = Literal["completed", "pending", "all"]
"""Which tasks are meant; the first, which forms preselect, does the least harm."""

Sort = Literal[
    "created",
    "-created",
    "updated",
    "-updated",
    "title",
    "-title",
    "due_date",
    "-due_date",
    "priority",
    "-priority",
]
"""What tasks are sorted by; in descending order with `-` in front."""


class TaskFilter(_Query):
    """The query of the list; a parameter that is not here is refused."""

    status: Status = Field("all", description="Only tasks that are pending, or completed.")
    priority: Priority | None = Field(
        None, description="Only tasks of this priority.", examples=["high"]
    )
    tag: list[TagName] = Field(
        default_factory=list,
        max_length=20,
        description="Only tasks with the tag of this name; repeated: with all of them.",
        examples=[["home"]],
    )
    search: SearchText | None = Field(
        None,
        description=(
            "Only tasks with this text in the title or the description, whatever its case. "
            "It is taken literally."
        ),
        examples=["milk"],
    )
    due_before: Timestamp | None = Field(
        None, description="Only tasks that are due before.", examples=["2026-12-01T00:00:00Z"]
    )
    due_after: Timestamp | None = Field(
        None, description="Only tasks that are due after.", examples=["2026-11-20T00:00:00Z"]
    )
    sort: Sort = Field(
        "-created",
        description=(
            "The order; `-` in front reverses it. Tasks without a due date come last either way, "
            "`priority` goes from low to high, and what is equal goes by id."
        ),
    )
    limit: Annotated[int, Field(ge=1, le=500), _DIGITS] = Field(
        500, description="How many at most."
    )
    cursor: str | None = Field(
        None,
        max_length=4096,
        description="Where to go on, from the `Link` of an answer to the same query.",
        examples=["q83vEjRWeJCrze8SNFZ4kFsiMjAyNi0xMS0yMFQxMDowMDowMCswMDowMCIsMV0"],
    )


class ChangesFilter(_Query):
    """The query of the changes."""

    since: Revision = Field(description="The `rev` of the last answer; 0 at first.")


class EventsFilter(_Query):
    """The query of the live changes."""

    since: Revision | None = Field(
        None, description="The last `rev` that is known; from now on without."
    )


class BulkFilter(_Query):
    """The query of a change to many tasks at once; the status must be named."""

    status: Status = Field(description="Which of your tasks are meant.")


class Health(TypedDict):
    """The state of the service."""

    status: Annotated[str, Field(examples=["ok"])]


class InvalidMember(BaseModel):
    """One thing wrong with a request, and where: in the body, or in a parameter."""

    detail: str = Field(examples=["needs 1 or more characters"])
    pointer: str | MISSING = Field(MISSING, examples=["#/title"])
    parameter: str | MISSING = Field(MISSING, examples=["limit"])


class Problem(BaseModel):
    """An error, in every answer from status 400 up (RFC 9457)."""

    type: str = Field(examples=["about:blank"])
    title: str = Field(examples=["Not Found"])
    status: int = Field(examples=[404])
    detail: str = Field(description="One sentence for a person.", examples=["No such task."])
    code: str = Field(description="Stable, for programs.", examples=["task_not_found"])
    request_id: str = Field(examples=["5f0c3a8e9d7b4c61a2e4f6b8c0d2e4f6"])
    errors: list[InvalidMember] | MISSING = Field(
        MISSING, description="With `validation_error`: everything that is wrong."
    )
