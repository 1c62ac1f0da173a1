"""What clients send and receive. Each field's rules are defined here once, for every route.

What comes from the database is a `TypedDict`, that is, the row itself: the tables have already
checked it, and it is not copied into a model on its way out.
"""

import contextlib
import re
import unicodedata
from collections.abc import Container
from datetime import date, datetime
from typing import Annotated, Any, ClassVar, Literal, NotRequired, Self, TypeVar, get_args

import orjson
from email_validator import EmailNotValidError, validate_email
from pydantic import (
    MISSING,
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    PlainValidator,
    PrivateAttr,
    StrictBool,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from typing_extensions import TypeAliasType, TypedDict

import spellings
from dates import due_date_of, first_moment
from folding import has_control_characters, is_visible
from models import Priority

MAX_ID = 2**63 - 1
MAX_TAGS = 20


_COLOR = r"^#[0-9A-Fa-f]{6}$"
_READ_ONLY = frozenset({"id", "user_id", "created_at", "updated_at", "rev"})


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not contain the NUL character")
    return text


def _readable(text: str) -> str:
    if has_control_characters(text):
        raise ValueError("must not contain control characters")
    if not is_visible(text):
        raise ValueError("needs a character that can be seen")
    return text


def _nfkc(value: object) -> object:
    # The same password, typed on another keyboard, may have other code points. Normalizing takes
    # quadratic time; very long values stay as they are, and are refused for their length.
    if isinstance(value, str) and len(value) <= 1024:
        return unicodedata.normalize("NFKC", value)
    return value


def _lower_case(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _tag_input(tag: object) -> object:
    if not isinstance(tag, (str, dict)):
        raise ValueError("must be the name of a tag, or a tag as it was read")  # noqa: TRY004  (for pydantic)
    return {"name": tag} if isinstance(tag, str) else tag


def _known_id(tag_id: object) -> int | None:
    # Whatever else a client takes for an id is no tag's, so that the name counts.
    return tag_id if type(tag_id) is int and 0 < tag_id <= MAX_ID else None


def _parsed(tags: object) -> object:
    # The database renders them as JSON, which FastAPI's own handler cannot see through.
    return orjson.loads(orjson.dumps(tags))


def _color(value: object) -> object:
    # Pydantic alone would show the pattern.
    if isinstance(value, str) and not re.fullmatch(_COLOR, value):
        raise ValueError("must look like #22aa66")
    return value


def _plain_digits(value: object) -> object:
    # Pydantic alone would also accept "1_0", "1.0", " 1" and the digits of other scripts.
    if isinstance(value, str) and not (value.isascii() and value.isdigit()):
        raise ValueError("must be plain decimal digits")
    return value


def _email(text: str) -> str:
    try:
        found = validate_email(unicodedata.normalize("NFKC", text), check_deliverability=False)
    except EmailNotValidError as error:
        detail = "must be an email address like ada@example.com; domains such as .test are refused"
        raise ValueError(detail) from error
    return found.normalized


def _as_kept(text: str) -> str:
    # An invalid email has no account; that must look like a wrong password.
    with contextlib.suppress(ValueError):
        return _email(text)
    return text


class _NeverNull:
    """Documents that a value which may be left out cannot be sent as null."""

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        value: JsonSchemaValue = handler(schema)["anyOf"][0]  # the other is null
        return value


Value = TypeVar("Value")
Omittable = Annotated[Value | None, _NeverNull()]
"""A parameter or body that may be left out, and is then None."""


def _text(longest: int, shortest: int = 1, *, strip: bool = True) -> tuple[object, ...]:
    rules = StringConstraints(strip_whitespace=strip, min_length=shortest, max_length=longest)
    return rules, AfterValidator(_no_nul)


Title = Annotated[str, *_text(200), AfterValidator(_readable)]
Description = Annotated[str, *_text(1000, 0, strip=False)]
SearchText = Annotated[str, *_text(200, strip=False)]
TagName = Annotated[str, *_text(50), AfterValidator(_readable)]
Name = Annotated[str, *_text(100), AfterValidator(_readable)]
# Not two formats: clients in Kotlin, Swift and Dart could neither read nor send either.
_DAY_OR_MOMENT = WithJsonSchema(
    {"type": "string", "description": "A day, or a timestamp with an offset (RFC 3339)."}
)
DueDate = Annotated[date | datetime, PlainValidator(due_date_of), _DAY_OR_MOMENT]
DueMoment = Annotated[DueDate, AfterValidator(first_moment)]
_EMAIL = _text(254, 0)
Email = Annotated[str, *_EMAIL, AfterValidator(_email)]
GivenEmail = Annotated[str, *_EMAIL, AfterValidator(_as_kept)]
_PASSWORD = (AfterValidator(_no_nul), BeforeValidator(_nfkc))
Password = Annotated[str, StringConstraints(max_length=128), *_PASSWORD]
NewPassword = Annotated[str, StringConstraints(min_length=8, max_length=128), *_PASSWORD]
# Put bounds before it: after it, they would be checked in Python and might be missing in OpenAPI.
_DIGITS = BeforeValidator(_plain_digits)
Int64 = Annotated[int, Field(json_schema_extra={"format": "int64"})]
Id = Annotated[Int64, Field(ge=1, le=MAX_ID), _DIGITS]
Revision = Annotated[Int64, Field(ge=0, le=MAX_ID), _DIGITS]
_ANY_CASE = BeforeValidator(_lower_case)
GivenPriority = Annotated[Priority, _ANY_CASE]
Color = Annotated[str, StringConstraints(pattern=_COLOR, to_lower=True), BeforeValidator(_color)]


class TagRead(TypedDict):
    """A tag, as in every response."""

    id: Annotated[Int64, Field(examples=[3])]
    name: Annotated[str, Field(examples=["home"])]
    color: Annotated[str | None, Field(examples=["#22aa66"])]


class TagObject(TypedDict):
    """A tag of a task that is written: one of the owner's if the id is, else one of this name."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    # Only the name is required: clients in languages without unions send new tags so, too.
    id: NotRequired[
        Annotated[Any, PlainValidator(_known_id, json_schema_input_type=Int64), Field(examples=[3])]
    ]
    name: Annotated[TagName, Field(examples=["home"])]
    color: NotRequired[Annotated[str | None, Field(examples=["#22aa66"])]]


TagInput = TypeAliasType("TagInput", TagName | TagObject)
TagInputs = Annotated[
    list[Annotated[TagObject, BeforeValidator(_tag_input, json_schema_input_type=TagInput)]],
    Field(
        max_length=MAX_TAGS,
        description=(
            "Names, or tags as returned, which mean the tag with their id whatever it is called by"
            " now. Unknown names become new tags."
        ),
        examples=[["home", "garden"]],
    ),
]


class TaskRead(TypedDict):
    """A task, as in every response."""

    id: Annotated[Int64, Field(examples=[1])]
    user_id: Annotated[str, Field(examples=["u1"])]
    title: Annotated[str, Field(examples=["Buy milk"])]
    description: Annotated[str | None, Field(examples=[None])]
    completed: Annotated[bool, Field(examples=[False])]
    priority: Annotated[Priority, Field(examples=["medium"])]
    due_date: Annotated[Annotated[date | datetime, _DAY_OR_MOMENT] | None, Field(examples=[None])]
    tags: Annotated[list[TagRead], BeforeValidator(_parsed)]
    created_at: Annotated[datetime, Field(examples=["2026-11-20T10:00:00Z"])]
    updated_at: Annotated[datetime, Field(examples=["2026-11-20T10:00:00Z"])]
    rev: Annotated[Int64, Field(description="The owner's revision that changed it.", examples=[7])]


class ChangesRead(TypedDict):
    """What has changed, oldest first."""

    rev: Annotated[Int64, Field(description="Where to continue: the next `since`.", examples=[63])]
    changed: list[TaskRead]
    deleted: Annotated[list[Int64], Field(examples=[[5]])]
    more: Annotated[bool, Field(description="There are more changes: ask again.", examples=[False])]


class UserRead(TypedDict):
    """A user. `email` is null if only an external token names the user, `name` until it is set."""

    id: Annotated[str, Field(examples=["u1"])]
    email: Annotated[str | None, Field(examples=[None])]
    name: Annotated[str | None, Field(examples=[None])]
    created_at: Annotated[datetime, Field(examples=["2026-11-20T10:00:00Z"])]


JWT = Annotated[str, Field(examples=["eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ1MSJ9.c2ln"])]


class TokenRead(TypedDict):
    """An access token and its user."""

    access_token: JWT
    token: Annotated[JWT, Field(description="The same.")]
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
    # Frozen, because requests with the same query share the parsed result.
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Body(_Strict):
    """PUT accepts what GET returns: read-only fields are ignored, unknown ones refused."""

    _is_task: ClassVar[bool] = False

    @model_validator(mode="before")
    @classmethod
    def _as_ours(cls, body: Any) -> Any:  # noqa: ANN401  (JSON is anything)
        if not isinstance(body, dict):
            return body
        if cls._is_task and not spellings.MEMBERS.keys().isdisjoint(body):
            body = spellings.task_members(body)
        return {name: value for name, value in body.items() if name not in _READ_ONLY}


class _TaskBody(_Body):
    _is_task = True


class TaskPatch(_TaskBody):
    """Any fields of a task: omitted ones keep their value."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"title": "Buy oat milk"}]})

    title: Title | MISSING = Field(MISSING, examples=["Buy oat milk"])
    description: Description | MISSING | None = Field(MISSING, examples=["Two litres."])
    completed: StrictBool | MISSING = Field(MISSING, examples=[True])
    priority: GivenPriority | MISSING = Field(MISSING, examples=["high"])
    due_date: DueDate | MISSING | None = Field(MISSING, examples=["2026-12-01"])
    tags: TagInputs | MISSING = MISSING


class TaskCreate(_TaskBody):
    """A new task; only the title is required."""

    title: Title = Field(examples=["Buy milk"])
    description: Description | None = Field(None, examples=["Two litres."])
    completed: StrictBool = False
    priority: GivenPriority = "medium"
    due_date: DueDate | None = Field(None, examples=["2026-12-01"])
    tags: TagInputs = Field(default_factory=list)


class Completion(_TaskBody):
    """Whether a task is done."""

    completed: StrictBool = Field(examples=[True])


class TagPatch(_Body):
    """Any fields of a tag: omitted ones keep their value, null clears the color."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"color": "#22aa66"}]})

    name: TagName | MISSING = Field(MISSING, examples=["home"])
    color: Color | MISSING | None = Field(MISSING, examples=["#22aa66"])


class TagCreate(_Body):
    """A new tag; only the name is required."""

    name: TagName = Field(examples=["home"])
    color: Color | None = Field(None, examples=["#22aa66"])


class Registration(_Strict):
    """What users sign up with."""

    email: Email = Field(examples=["ada@example.com"])
    password: NewPassword = Field(examples=["correct horse battery"])
    name: Name | None = Field(None, examples=["Ada"])


class Credentials(_Strict):
    """What users sign in with."""

    # In OAuth 2.0's form, and in that of a page without a script.
    form_names: ClassVar = {"username": "email", "email": "email", "password": "password"}

    email: GivenEmail = Field(examples=["ada@example.com"])
    password: Password = Field(examples=["correct horse battery"])


class PasswordGrant(BaseModel):
    """The form of OAuth 2.0's password grant (RFC 6749, section 4.3.2); the username is the email.

    Anything else that clients send, such as a client id, is ignored.
    """

    grant_type: Literal["password"] = "password"
    username: GivenEmail = Field(examples=["ada@example.com"])
    password: Password = Field(examples=["correct horse battery"])


class UserPatch(_Strict):
    """What users may change about themselves; null clears it."""

    name: Name | None = Field(examples=["Ada L."])


class PasswordChange(_Strict):
    """The current and the new password."""

    current_password: Password = Field(examples=["correct horse battery"])
    new_password: NewPassword = Field(examples=["staple the battery again"])


class AccountDeletion(_Strict):
    """The password, if the account has one."""

    password: Password = Field(examples=["correct horse battery"])


class _Query(_Strict):
    """A query: an empty value counts as absent, and a parameter that is not known is refused."""

    @model_validator(mode="before")
    @classmethod
    def _empty_is_absent(cls, given: Any) -> Any:  # noqa: ANN401  (as in pydantic)
        return cls._without_empty(given, cls.model_fields)

    @staticmethod
    def _without_empty(given: dict[str, Any], known: Container[str]) -> dict[str, Any]:
        told = {
            name: [one for one in value if one] if isinstance(value, list) else value
            for name, value in given.items()
        }
        return {n: value for n, value in told.items() if value not in ("", []) or n not in known}


class LogoutQuery(_Query):
    """Which sessions to end."""

    everywhere: bool = Field(
        default=False,
        description="End every session of the user, and refuse other issuers' earlier tokens.",
    )


Status = TypeAliasType("Status", Literal["completed", "pending", "all"])
"""Which tasks are meant. Swagger UI preselects the first: for a bulk call, the safest."""
GivenStatus = Annotated[Status, _ANY_CASE]

_Ascending = Literal["created", "updated", "title", "due_date", "priority"]
_Descending = Literal["-created", "-updated", "-title", "-due_date", "-priority"]
_Sort = Literal[_Ascending, _Descending]
SORTS: tuple[_Sort, ...] = get_args(_Sort)
"""What tasks are sorted by; a leading `-` means descending."""
_CONSTANTS = {"x-enum-varnames": [re.sub("-(.+)", r"\1_DESC", sort).upper() for sort in SORTS]}
Sort = TypeAliasType("Sort", Annotated[_Sort, Field(json_schema_extra=_CONSTANTS)])


class TaskFilter(_Query):
    """The query of the list."""

    status: GivenStatus = Field("all", description="Only pending, or only completed tasks.")
    priority: Omittable[GivenPriority] = Field(
        None, description="Only tasks of this priority.", examples=["high"]
    )
    tag: list[TagName] = Field(
        default_factory=list,
        max_length=MAX_TAGS,
        description="Only tasks with the tag of this name; if repeated, with all of them.",
        examples=[["home"]],
    )
    search: Omittable[SearchText] = Field(
        None,
        description=(
            "Only tasks with this text in the title or the description. Case, accents and width "
            "make no difference, and there are no wildcards."
        ),
        examples=["milk"],
    )
    due_after: Omittable[DueMoment] = Field(
        None, description="Only tasks due at this day or moment, or later.", examples=["2026-11-20"]
    )
    due_before: Omittable[DueMoment] = Field(
        None, description="Only tasks due before this day or moment.", examples=["2026-12-01"]
    )
    sort: Sort = Field(
        "-created",
        description=(
            "The order; a leading `-` reverses it. Tasks without a due date come last either way, "
            "`priority` goes from low to high, and ties are ordered by id."
        ),
    )
    limit: Annotated[int, Field(ge=1, le=500), _DIGITS] = Field(
        500, description="The maximum number of tasks."
    )
    cursor: Omittable[str] = Field(
        None,
        max_length=4096,
        description="Where to continue, from the `Link` of a response to the same query.",
        examples=["q83vEjRWeJCrze8SNFZ4kFsiMjAyNi0xMS0yMFQxMDowMDowMCswMDowMCIsMV0"],
    )
    _offset: int = PrivateAttr(0)

    @property
    def offset(self) -> int:
        """How many tasks to pass over, for those who count them; it has no name of its own."""
        return self._offset

    @model_validator(mode="wrap")
    @classmethod
    def _in_our_words(cls, given: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:  # noqa: ANN401  (as in pydantic)
        sent = cls._without_empty(given, {*cls.model_fields, *spellings.LIST_NAMES})
        query, page, offset = spellings.list_query(sent)
        found = handler(query)
        found._offset = offset + page * found.limit  # noqa: SLF001  (its own)
        return found


class ChangesFilter(_Query):
    """The query of the changes."""

    since: Revision = Field(description="The `rev` of the last response; 0 at first.")


class EventsFilter(_Query):
    """The query of the live changes."""

    since: Omittable[Revision] = Field(
        None, description="The last known `rev`; without it, from now on."
    )


class BulkFilter(_Query):
    """The query of a bulk change; the status is required."""

    status: GivenStatus = Field(description="Which of your tasks are meant.")


class Health(TypedDict):
    """The state of the service."""

    status: Annotated[str, Field(examples=["ok"])]
