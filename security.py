"""Tokens: the only module that knows a secret. It knows nothing of HTTP."""

import math
import re
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jwt

LEEWAY_SECONDS = 10
MAX_USER_ID_LENGTH = 255
CACHED_TOKENS = 4096
_COMPACT = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+", re.ASCII)


class InvalidToken(Exception):
    """The token does not verify; the message says why, for the log."""


class ExpiredToken(Exception):
    """The token was good until it expired."""


class Claims(NamedTuple):
    """What is kept of a verified token."""

    user_id: str
    expires: float


class Verifier:
    """Verifies JSON Web Tokens (RFC 7519) signed with the shared secret by HS256."""

    def __init__(
        self,
        secret: str,
        *,
        issuer: str | None = None,
        audience: str | None = None,
        user_claims: Sequence[str] = ("user_id", "sub"),
    ) -> None:
        self._key = secret.encode()
        self._issuer = issuer
        self._audience = audience
        self._user_claims = user_claims
        # Verifying costs more than all else in a request, and a client sends one token many times.
        # What was raised is not kept, so that bad tokens cannot push out good ones.
        self._claims = lru_cache(CACHED_TOKENS)(self._verify)

    def user_id(self, token: str) -> str:
        """Return the id of the user whom the token names.

        Raises `ExpiredToken`, or `InvalidToken` for everything else that is wrong with it.
        """
        claims = self._claims(token)
        if claims.expires <= time.time() - LEEWAY_SECONDS:
            raise ExpiredToken
        return claims.user_id

    def _verify(self, token: str) -> Claims:
        if not _COMPACT.fullmatch(token):  # PyJWT would also take padding
            raise InvalidToken("not three parts of base64url")
        try:
            payload = jwt.decode(
                token,
                self._key,
                algorithms=["HS256"],
                issuer=self._issuer,
                audience=self._audience,
                leeway=LEEWAY_SECONDS,
                # Expiry is looked at in each call, because what is verified here is kept.
                options={"verify_exp": False, "verify_aud": self._audience is not None},
            )
        except jwt.InvalidTokenError as error:
            raise InvalidToken(type(error).__name__) from error
        return Claims(self._user(payload), _expiry(payload))

    def _user(self, payload: dict[str, Any]) -> str:
        """Read the first claim that is there; a bad one is not passed over for the next."""
        for claim in self._user_claims:
            if claim in payload:
                return _sane_user_id(payload[claim])
        raise InvalidToken("no user id")


def _sane_user_id(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_USER_ID_LENGTH:
        raise InvalidToken("user id is not a string of 1 to 255 characters")
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise InvalidToken("user id cannot be stored")
    return value


def _expiry(payload: dict[str, Any]) -> float:
    expires = payload.get("exp")
    if isinstance(expires, bool) or not isinstance(expires, int | float):
        raise InvalidToken("exp is missing or not a number")
    if not -math.inf < expires < math.inf:
        raise InvalidToken("exp is not finite")
    return expires


def sign(
    secret: str,
    user_id: str,
    lifetime_seconds: float,
    *,
    user_claim: str = "sub",
    **others: str | None,
) -> str:
    """Make a token for a user, as a frontend's own server would; a claim of None is left out."""
    now = time.time()
    claims = {"iat": int(now), "exp": int(now + lifetime_seconds), **others, user_claim: user_id}
    present = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(present, secret, "HS256")
