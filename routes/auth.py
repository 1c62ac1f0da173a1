"""Who you are."""

from fastapi import APIRouter

from dependencies import CurrentUser, Route
from errors import answers
from schemas import UserRead

router = APIRouter(prefix="/api/v1/auth", tags=["auth"], route_class=Route)


@router.get(
    "/me",
    responses=answers(
        *("not_authenticated", "invalid_token", "token_expired"),
        *("internal_error", "unavailable"),
    ),
)
async def get_me(user: CurrentUser) -> UserRead:
    """Get the user whom the token names. One that only an external token knows is created."""
    return user
