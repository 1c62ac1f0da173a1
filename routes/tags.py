"""The tags of the user named in the token."""

from typing import Any

from fastapi import APIRouter, Depends, Request

import queries
from dependencies import TagId, UserId, create_owner, refuse_if_match
from errors import Problem
from folding import tag_key
from openapi import BODY, OWNED, answers
from routing import Route
from schemas import TagCreate, TagPatch, TagRead

router = APIRouter(
    prefix="/api/tags",
    tags=["tags"],
    route_class=Route,
    dependencies=[Depends(refuse_if_match)],
    responses=OWNED | answers("wrong_user"),
)

NOT_FOUND = answers("tag_not_found")
TAKEN = answers("tag_exists")


@router.get("")
async def list_tags(user_id: UserId) -> list[TagRead]:
    """List your tags, sorted by name."""
    return await queries.LIST_TAGS.all(owner=user_id)


@router.post("", status_code=201, responses=TAKEN | BODY)
async def create_tag(tag: TagCreate, user_id: UserId, request: Request) -> TagRead:
    """Create a tag. Names are unique per user, ignoring case."""
    values = _values(tag.model_dump())
    while not (created := await queries.CREATE_TAG.first(owner=user_id, **values)):
        await create_owner(user_id, request)
    return created


@router.get("/{tag_id:int}", responses=NOT_FOUND)
async def get_tag(tag_id: TagId, user_id: UserId) -> TagRead:
    """Get one of your tags."""
    return await _get(user_id, tag_id)


@router.put("/{tag_id:int}", responses=NOT_FOUND | TAKEN | BODY)
async def update_tag(tag_id: TagId, tag: TagPatch, user_id: UserId) -> TagRead:
    """Update a tag: the same as `PATCH`."""
    return await patch_tag(tag_id, tag, user_id)


@router.patch("/{tag_id:int}", responses=NOT_FOUND | TAKEN | BODY)
async def patch_tag(tag_id: TagId, tag: TagPatch, user_id: UserId) -> TagRead:
    """Change the name or color of a tag. Omitted fields keep their value; null clears `color`."""
    members = tag.model_dump()
    if not members:
        return await _get(user_id, tag_id)
    values = dict.fromkeys(queries.TAG_COLUMNS) | _values(members)
    while not (
        changed := await queries.UPDATE_TAG.first(
            owner=user_id, tag_id=tag_id, members=list(members), **values
        )
    ):
        current = await _get(user_id, tag_id)
        if members.items() <= current.items():
            return current  # already as requested
        # Otherwise it was created or changed after the statement: try again.
    return changed


@router.delete("/{tag_id:int}", status_code=204, responses=NOT_FOUND)
async def delete_tag(tag_id: TagId, user_id: UserId) -> None:
    """Delete a tag. Tasks that had it are kept."""
    if await queries.DELETE_TAG.first(owner=user_id, tag_id=tag_id) is None:
        raise Problem("tag_not_found")


async def _get(user_id: str, tag_id: int) -> TagRead:
    """Return the tag. Raise the same `Problem` 404 if it is missing or another user's."""
    tag = await queries.GET_TAG.first(owner=user_id, tag_id=tag_id)
    if tag is None:
        raise Problem("tag_not_found")
    return tag


def _values(members: dict[str, Any]) -> dict[str, Any]:
    """Add the key by which names are compared."""
    return members | {"name_key": tag_key(members["name"])} if "name" in members else members
