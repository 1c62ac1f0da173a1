"""Who is calling: the user's id comes only from the verified token."""

import logging
import math
from typing import Annotated

from fastapi import Depends, Request
from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase

import account_queries
import queries
import schemas
from calls import call_of
from errors import Problem
from logs import log_event
from rate_limits import RateLimits, address
from security import LOCAL, Claims, ClientMistake, ExpiredToken, InvalidToken, UnknownKey, Verifier

MAX_TOKEN_BYTES = 8192  # limits what is parsed before its signature is checked


class VerifyJWT(SecurityBase):
    """Reads the user's id from `Authorization: Bearer <JWT>` (RFC 6750), or refuses the request."""

    def __init__(self) -> None:
        self.scheme_name = "BearerToken"
        self.model = HTTPBearer(bearerFormat="JWT", description="Paste a token.")

    async def __call__(self, request: Request) -> str:
        """Return the id of the user named in the request's token.

        Raise `Problem` 401 without a usable token, 403 if the path names another user, 429 over the
        limit of the user (or of the address, without a user), 503 if the token cannot be checked.
        """
        limits: RateLimits = request.app.state.rate_limits
        try:
            claims = await read_claims(request)
            await request.app.state.revocations.check(claims)
        except Problem as problem:
            await limits.count(request, limits.api, "address", address(request))
            if problem.code != "unavailable":
                reason = str(problem.__cause__ or problem.code)
                log_event(request, problem.code, logging.WARNING, reason=reason)
            raise
        call = call_of(request)
        call.claims, call.user_id = claims, claims.user_id
        await limits.count(request, limits.api, "user", claims.user_id)
        if call.path_user_id not in {None, claims.subject}:
            log_event(request, "wrong_user", logging.WARNING, reason="the path names another user")
            raise Problem("wrong_user")
        return claims.user_id


async def read_claims(request: Request) -> Claims:
    """Verify the request's token. Raise `Problem` 401, whose cause says why, for the log.

    Raise `Problem` 503 if the keys it may be signed with cannot be fetched.
    """
    verifier: Verifier = request.app.state.verifier
    try:
        token = _bearer_token(request)
        try:
            return verifier.claims(token)
        except UnknownKey:
            if request.app.state.key_set is None:
                raise
            await request.app.state.key_set.learn()
            return verifier.claims(token)
    except ExpiredToken as error:
        raise Problem("token_expired") from error
    except InvalidToken as error:
        told = str(error) if isinstance(error, ClientMistake) else None
        raise Problem("invalid_token", told) from error


def _bearer_token(request: Request) -> str:
    """Read the header strictly: with two, the wrong one might be used."""
    headers: list[bytes] = [
        value for name, value in request.scope["headers"] if name == b"authorization"
    ]
    if not headers:
        raise Problem("not_authenticated")
    scheme, _, token = headers[0].partition(b" ")
    if len(headers) > 1 or scheme.lower() != b"bearer" or not 0 < len(token) <= MAX_TOKEN_BYTES:
        raise ClientMistake("Send one header: Authorization: Bearer <JWT>.")
    return token.decode("latin-1")


verify_jwt = VerifyJWT()

UserId = Annotated[str, Depends(verify_jwt)]


async def create_owner(user_id: str, request: Request) -> None:
    """Create a user known only from the token. Raise `Problem` 401 if it was deleted meanwhile."""
    claims = call_of(request).claims
    issued = claims.issued if claims else math.inf  # a test overrides `verify_jwt`
    if user_id.startswith(LOCAL) or await queries.CREATE_OWNER.first(owner=user_id, issued=issued):
        raise Problem("token_revoked")


async def current_user(user_id: UserId, request: Request) -> schemas.UserRead:
    """Return the user's row; create it for a user known only from the token."""
    call_of(request).user_id = user_id  # also if a test overrides `verify_jwt`
    while not (found := await account_queries.FIND_USER.first(owner=user_id)):
        await create_owner(user_id, request)
    return found


CurrentUser = Annotated[schemas.UserRead, Depends(current_user)]
