"""The tags of the user whom the token names."""

from typing import Any

from fastapi import APIRouter

import queries
from dependencies import Route, TagId, UserId
from errors import BODY, OWNED, Problem, answers
from schemas import TagCreate, TagPatch, TagRead, folded

router = APIRouter(
    prefix="/api/tags",
    tags=["tags"],
    route_class=Route,
    responses=OWNED,
)

NOT_FOUND = answers("tag_not_found")
TAKEN = answers("tag_exists")


def found(tag: TagRead | None) -> TagRead:
    """Return the tag, or refuse: for a missing id and for one of somebody else's alike."""
    if tag is None:
        raise Problem("tag_not_found")
    return tag


@router.get("")
async def list_tags(user_id: UserId) -> list[TagRead]:
    """List your tags by name."""
    return await queries.LIST_TAGS.all(owner=user_id)


@router.post("", status_code=201, responses=TAKEN | BODY)
async def create_tag(tag: TagCreate, user_id: UserId) -> TagRead:
    """Create a tag. Its name is no other's of yours, whatever their case."""
    return await queries.CREATE_TAG.one(owner=user_id, **_values(tag))


@router.patch("/{tag_id}", responses=NOT_FOUND | TAKEN | BODY)
async def patch_tag(tag_id: TagId, tag: TagPatch, user_id: UserId) -> TagRead:
    """Change the name or the color of a tag. A member left out keeps its value, null clears it."""
    values = _values(tag)
    for _ in range(2):  # because what the first has not found may have been made meanwhile
        if values:
            statement = queries.update_tag(frozenset(values))
            if changed := await statement.first(owner=user_id, tag_id=tag_id, **values):
                return changed
        current = found(await queries.GET_TAG.first(owner=user_id, tag_id=tag_id))
    return current  # which is what it shall be


@router.delete("/{tag_id}", status_code=204, responses=NOT_FOUND)
async def delete_tag(tag_id: TagId, user_id: UserId) -> None:
    """Delete a tag. The tasks that had it stay."""
    if await queries.DELETE_TAG.first(owner=user_id, tag_id=tag_id) is None:
        raise Problem("tag_not_found")


def _values(tag: TagCreate | TagPatch) -> dict[str, Any]:
    values = tag.model_dump()
    return values | {"name_key": folded(values["name"])} if "name" in values else values
