"""Who is calling: the user's id comes from the verified token and from nowhere else."""

import logging
from typing import Annotated

from fastapi import Depends, Request
from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase

import queries
import schemas
from errors import Problem
from security import ExpiredToken, InvalidToken, Verifier

logger = logging.getLogger("todo.security")

MAX_TOKEN_BYTES = 8192  # a larger one would be parsed before its signature is looked at


class VerifyJWT(SecurityBase):
    """Take the user's id from `Authorization: Bearer <JWT>` (RFC 6750), or refuse the request."""

    def __init__(self) -> None:
        self.scheme_name = "BearerToken"
        self.model = HTTPBearer(bearerFormat="JWT", description="Paste a token.")

    async def __call__(self, request: Request) -> str:
        """Return the id of the user whom the request's token names.

        Raises `Problem` 401 without a usable token, 403 where the path names another user.
        """
        verifier: Verifier = request.app.state.verifier
        try:
            user_id = verifier.user_id(_bearer_token(request))
        except ExpiredToken as error:
            raise _refused(request, "token_expired", "expired") from error
        except InvalidToken as error:
            raise _refused(request, "invalid_token", str(error)) from error
        request.scope["user_id"] = user_id
        if request.scope.get("path_user_id", user_id) != user_id:
            raise _refused(request, "wrong_user", "the path names another user")
        return user_id


def _bearer_token(request: Request) -> str:
    """Read the header strictly: of two the wrong one might be taken."""
    headers: list[bytes] = [
        value for name, value in request.scope["headers"] if name == b"authorization"
    ]
    if not headers:
        raise _refused(request, "not_authenticated", "no token")
    scheme, _, token = headers[0].partition(b" ")
    if len(headers) > 1 or scheme.lower() != b"bearer" or not 0 < len(token) <= MAX_TOKEN_BYTES:
        raise InvalidToken("not one header with one bearer token")
    return token.decode("latin-1")


def _refused(request: Request, code: str, reason: str) -> Problem:
    """Log a security event, without the token."""
    logger.warning(
        "refused: %(reason)s, request %(request_id)s",
        {
            "event": code,
            "reason": reason,
            "client": request.client.host if request.client else None,
            "request_id": request.scope["request_id"],
            "user_id": request.scope.get("user_id"),
        },
    )
    return Problem(code)


verify_jwt = VerifyJWT()

UserId = Annotated[str, Depends(verify_jwt)]


async def current_user(user_id: UserId) -> schemas.UserRead:
    """Return the user's row; one that only the token knows is created."""
    return await queries.FIND_OR_CREATE_USER.one(owner=user_id)


CurrentUser = Annotated[schemas.UserRead, Depends(current_user)]
