"""Request headers that make requests conditional, repeatable or resumable."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request

from calls import call_of
from dependencies.identity import verify_jwt
from errors import bad_parameter
from schemas import MAX_ID

_ENTITY_TAG = r'\s*(W/)?"[\x21\x23-\x7e\x80-\xff]*"\s*'
_ENTITY_TAGS = re.compile(f"{_ENTITY_TAG}(,{_ENTITY_TAG})*")
# With what Apache, Caddy and Jetty add to the tag of an answer that they compress.
_REVISION = re.compile(r'"(0|[1-9][0-9]{0,18})(?:--?gzip|;gzip|-br|-zstd|-deflate)?"')
MAX_KEY_LENGTH = 255

Function = TypeVar("Function", bound=Callable[..., Any])


def reads_header(name: str, description: str, example: str) -> Callable[[Function], Function]:
    """Document a header in `Route`: FastAPI's own header parameters would parse it differently."""

    def mark(function: Function) -> Function:
        function.__dict__["openapi_parameter"] = {
            "name": name,
            "in": "header",
            "description": description,
            # Not the parameter's own `example`, which Swagger UI would send.
            "schema": {"type": "string", "examples": [example]},
        }
        return function

    return mark


@dataclass(frozen=True, slots=True)
class Revisions:
    """The revisions that a conditional header names."""

    revisions: tuple[int, ...] | None
    """As statements take them: None is any."""

    def matches(self, rev: int) -> bool:
        """Return whether a revision is among them."""
        return self.revisions is None or rev in self.revisions


ANY, NONE = Revisions(None), Revisions(())


@reads_header("If-Match", "Write only if this is still the `ETag`; 412 otherwise.", '"7"')
async def if_match(request: Request) -> Revisions:
    """Return the revisions that a write accepts (RFC 9110, section 13.1.1).

    Raise `Problem` 422 if it is malformed: the write must not happen unconditionally.
    """
    sent = _header(request, b"if-match")
    if sent is None or sent == "*":
        return ANY
    if not _ENTITY_TAGS.fullmatch(sent):
        raise bad_parameter("If-Match", 'must be an ETag as it was given, like "7"')
    return _revisions(sent)


async def refuse_if_match(request: Request) -> None:
    """Refuse a condition that could not be kept. Raise `Problem` 422, without a token 401."""
    if b"if-match" in call_of(request).headers:
        await verify_jwt(request)  # first (RFC 9110, section 13.2.1)
        raise bad_parameter("If-Match", "must be left out: there is no revision to compare")


@reads_header("If-None-Match", "The `ETag` of your copy; 304 if it is current.", 'W/"7"')
async def if_none_match(request: Request) -> Revisions:
    """Return the revisions that the client has (RFC 9110, section 13.1.2)."""
    sent = _header(request, b"if-none-match")
    if sent is None:
        return NONE
    return ANY if sent == "*" else _revisions(sent)


@reads_header("Idempotency-Key", "Makes it safe to repeat the request.", "8e03978e-40d5-43dd")
async def idempotency_key(request: Request) -> str | None:
    """Return the key that makes a request safe to repeat. Raise `Problem` 422."""
    sent = _header(request, b"idempotency-key")
    if sent is None:
        return None
    key = sent[1:-1] if len(sent) > 1 and sent[0] == sent[-1] == '"' else sent
    if not 0 < len(key) <= MAX_KEY_LENGTH or not key.isprintable():
        raise bad_parameter("Idempotency-Key", "must have 1 to 255 printable characters")
    return key


@reads_header("Last-Event-ID", "The id of the last event received: continue from there.", "57")
async def last_event_id(request: Request) -> int | None:
    """Return the revision after which a stream continues. Raise `Problem` 422."""
    sent = _header(request, b"last-event-id")
    if not sent:
        return None
    if not (sent.isdecimal() and len(sent) < 20 and int(sent) <= MAX_ID):
        raise bad_parameter("Last-Event-ID", "must be the id of an event as it was given")
    return int(sent)


def _header(request: Request, name: bytes) -> str | None:
    """Return a header's value; repeated headers form one list (RFC 9110, section 5.3)."""
    if name not in call_of(request).headers:
        return None
    found: list[bytes] = [value for key, value in request.scope["headers"] if key == name]
    return b", ".join(found).decode("latin-1").strip()


def _revisions(tags: str) -> Revisions:
    """Return the tags that are revisions; no others were ever issued."""
    numbers = map(int, _REVISION.findall(tags))
    return Revisions(tuple(number for number in numbers if number <= MAX_ID))


IfMatch = Annotated[Revisions, Depends(if_match)]
IfNoneMatch = Annotated[Revisions, Depends(if_none_match)]
IdempotencyKey = Annotated[str | None, Depends(idempotency_key)]
LastEventId = Annotated[int | None, Depends(last_event_id)]
