"""Sign-up, sign-in and sign-out: sessions with rotating refresh tokens in a cookie."""

import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

import account_queries
from calls import below_root, call_of
from errors import Problem
from folding import folded
from logs import log_event
from passwords import Passwords
from rate_limits import RateLimits, address
from revocations import Revocations
from schemas import Registration, TokenRead, UserRead
from security import (
    LEEWAY_SECONDS,
    LOCAL,
    MAX_LIFETIME_SECONDS,
    USER_KEY,
    Claims,
    ExpiredToken,
    InvalidToken,
    Issuer,
    new_session,
    new_user_id,
)
from settings import Settings

COOKIE = "refresh_token"
GRACE = timedelta(seconds=10)
"""How long the previous refresh token stays valid, for two tabs or a lost response."""

LONGEST = timedelta(seconds=MAX_LIFETIME_SECONDS + LEEWAY_SECONDS)
"""The longest revocation: other issuers' tokens may be valid for ten years."""

SKEW_SECONDS = 60
"""How far ahead the clock of another of our machines may be."""


def token_lifetime(settings: Settings) -> timedelta:
    """Return how long a session's access tokens may be good after it has ended."""
    return timedelta(seconds=settings.access_token_seconds + LEEWAY_SECONDS + SKEW_SECONDS)


class Accounts:
    """The logic of the auth routes, for one request and its response.

    The request is counted, logged and asked for its cookies and its token; the response gets the
    cookie.
    """

    def __init__(
        self, request: Request, response: Response, read_claims: Callable[[], Awaitable[Claims]]
    ) -> None:
        self._request, self._response, self._read_claims = request, response, read_claims
        self._has_gone = request.is_disconnected
        state = request.app.state
        self._settings: Settings = state.settings
        self._issuer: Issuer = state.issuer
        self._passwords: Passwords = state.passwords
        self._revocations: Revocations = state.revocations
        self._limits: RateLimits = state.rate_limits
        self._alive = {
            "idle": timedelta(days=self._settings.refresh_idle_days),
            "longest": timedelta(days=self._settings.refresh_max_days),
        }
        self._lifetime = token_lifetime(self._settings)

    async def sign_up(self, who: Registration) -> UserRead:
        """Create an account. Raise `Problem` 409 if the email already has one, 422, 429, 503."""
        key = folded(who.email)
        name = self._issuer.name(key)
        await self._limits.count(self._request, self._limits.auth, "account", name)
        if why := self._passwords.weakness(who.password, who.email):
            raise _invalid("password", why)
        user = await account_queries.CREATE_ACCOUNT.one(
            owner=new_user_id(),
            email=who.email,
            email_key=key,
            name=who.name,
            password_hash=await self._passwords.hash(who.password, self._has_gone),
        )
        log_event(self._request, "signed_up", user_id=user["id"], email=name)
        return user

    async def sign_in(self, email: str, password: str) -> TokenRead:
        """Start a session. Raise `Problem` 401, 429, 503."""
        key = folded(email)
        name = self._issuer.name(key)
        await self._limits.count(self._request, self._limits.auth, "account", name)
        while True:  # retry if the hash is upgraded before the session starts
            account = await account_queries.FIND_ACCOUNT.first(email_key=key)
            known = account and account["password_hash"]
            right, better = await self._passwords.verify(password, known, self._has_gone)
            if not right or not account or not known:
                log_event(self._request, "sign_in_refused", logging.WARNING, email=name)
                raise Problem("invalid_credentials")
            owner, session = account["id"], new_session()
            if better and await account_queries.REHASH_PASSWORD.first(
                owner=owner, known=known, better=better
            ):
                known = better
            if await account_queries.START_SESSION.first(session=session, owner=owner, known=known):
                call_of(self._request).user_id = owner
                log_event(self._request, "signed_in", email=name)
                return self._token(account, session, 0)

    async def refresh(self, cookies: list[str]) -> TokenRead:
        """Rotate the refresh token. Raise `Problem` 401, 429, 503."""
        if not cookies:
            raise Problem("refresh_token_missing")
        try:
            session, counter = self._issuer.read_refresh_token(*cookies)
        except (InvalidToken, TypeError) as error:  # or two cookies
            limit = self._limits.refresh
            await self._limits.count(self._request, limit, "address", address(self._request))
            raise Problem("refresh_token_invalid") from error
        await self._limits.count(self._request, self._limits.refresh, "session", session)
        rotated = await account_queries.ROTATE_SESSION.first(
            session=session, counter=counter, grace=GRACE, **self._alive
        )
        if not rotated:
            # If the session is alive, an old token of it was used: it may be stolen.
            if alive := await account_queries.FIND_SESSION.first(session=session, **self._alive):
                owner = alive["user_id"]
                log_event(self._request, "refresh_reused", logging.WARNING, user_id=owner)
                await account_queries.END_SESSION.all(session=session, lifetime=self._lifetime)
                await self._revocations.load()
            raise Problem("refresh_token_invalid")
        call_of(self._request).user_id = rotated["id"]
        log_event(self._request, "refreshed")
        return self._token(rotated, session, rotated["counter"])

    async def sign_out(self, cookies: list[str], *, everywhere: bool) -> None:
        """End the sessions of the cookies and the token, if any, or all sessions of their users.

        A token without a session is revoked. Raise `Problem` 503 if nothing could be ended.
        """
        claims = await self._claims()
        owners = {claims.user_id} if claims else set[str]()
        sessions = {claims.session} if claims and claims.session else set[str]()
        for cookie in cookies:
            with contextlib.suppress(InvalidToken):
                sessions.add(self._issuer.read_refresh_token(cookie)[0])
        if everywhere:
            await self._end_everywhere(sessions, owners)
        # End the sent sessions last: if a statement fails, a retry can still identify the user.
        for session in sessions:
            ended = await account_queries.END_SESSION.all(session=session, lifetime=self._lifetime)
            owners.update(row["user_id"] for row in ended)
        if claims and not claims.session:
            left = timedelta(seconds=claims.expires - time.time())
            await account_queries.REVOKE.one(key=claims.keys[-1], lifetime=left + self._lifetime)
        self._response.delete_cookie(COOKIE, **self._cookie())
        if sessions or claims:
            await self._revocations.load()
            for owner in owners:
                log_event(self._request, "logged_out", user_id=owner, everywhere=everywhere)

    async def _end_everywhere(self, sessions: set[str], owners: set[str]) -> None:
        """End all sessions of the owners, and of the sessions' owners, which are added to them."""
        for session in sessions:
            alive = await account_queries.FIND_SESSION.all(session=session, **self._alive)
            owners.update(row["user_id"] for row in alive)
        for owner in owners:
            await account_queries.END_SESSIONS.all(owner=owner, lifetime=self._lifetime)
            if not owner.startswith(LOCAL):
                await account_queries.REVOKE.one(key=USER_KEY + owner, lifetime=LONGEST)

    async def _claims(self) -> Claims | None:
        """Return the token's claims; of an expired or revoked one, only if they name a session."""
        try:
            claims = await self._read_claims()
            await self._revocations.check(claims)
        except Problem as problem:
            if problem.code == "unavailable":
                raise  # a false 204 would be worse
            cause = problem.__cause__
            if isinstance(cause, ExpiredToken):
                claims = cause.claims
            elif problem.code != "token_revoked":
                return None
            # One that is older than any session ends nothing: it may have leaked long ago.
            is_recent = claims.expires > time.time() - self._alive["longest"].total_seconds()
            return claims if claims.session and is_recent else None
        return claims

    async def change_password(self, user_id: str, current: str, new: str) -> TokenRead:
        """Change it and end every other session. Raise `Problem` 403, 422, 429, 503."""
        account = await account_queries.FIND_OWN_ACCOUNT.first(owner=user_id)
        account = await self._prove(user_id, account, current)
        if why := self._passwords.weakness(new, account["email"] or ""):
            raise _invalid("new_password", why)
        session = new_session()
        changed = await account_queries.CHANGE_PASSWORD.first(
            owner=user_id,
            known=account["password_hash"],
            better=await self._passwords.hash(new, self._has_gone),
            session=session,
            lifetime=self._lifetime,
        )
        if not changed:
            raise Problem("wrong_password")  # changed in the meantime
        await self._revocations.load()
        log_event(self._request, "password_changed")
        return self._token(changed, session, 0)

    async def delete(self, user_id: str, password: str | None) -> None:
        """Delete a user and all their data. Raise `Problem` 401, 403, 422, 429, 503."""
        account = await account_queries.FIND_OWN_ACCOUNT.first(owner=user_id)
        known = account and account["password_hash"]
        if known is not None:
            if password is None:
                raise _invalid("password", "is required")
            await self._prove(user_id, account, password)
        if not await account_queries.DELETE_ACCOUNT.first(
            owner=user_id, known=known, lifetime=LONGEST
        ):
            # Changed or deleted in the meantime.
            left = await account_queries.FIND_OWN_ACCOUNT.first(owner=user_id)
            was_changed = left and left["password_hash"]
            raise Problem("wrong_password" if was_changed else "token_revoked")
        await self._revocations.load()
        self._response.delete_cookie(COOKIE, **self._cookie())
        log_event(self._request, "account_deleted")

    async def _prove(
        self, user_id: str, account: account_queries.UserRow | None, password: str
    ) -> account_queries.UserRow:
        """Verify the current password. Raise `Problem` 403, 429, 503."""
        await self._limits.count(self._request, self._limits.auth, "account", user_id)
        known = account and account["password_hash"]
        right, _ = await self._passwords.verify(password, known, self._has_gone)
        if not account or not right:
            log_event(self._request, "wrong_password", logging.WARNING)
            raise Problem("wrong_password")
        return account

    def _token(self, user: UserRead, session: str, counter: int) -> TokenRead:
        """Set the refresh cookie, and return a body with the access token."""
        self._response.set_cookie(
            COOKIE,
            self._issuer.refresh_token(session, counter),
            max_age=self._settings.refresh_idle_days * 24 * 3600,
            **self._cookie(),
        )
        token = self._issuer.access_token(user["id"], session)
        return {
            "access_token": token,
            "token": token,
            "token_type": "bearer",
            "expires_in": self._settings.access_token_seconds,
            # The row may hold more than clients may see.
            "user": {name: user[name] for name in UserRead.__annotations__},  # type: ignore[literal-required, typeddict-item]
        }

    def _cookie(self) -> dict[str, Any]:
        scope = self._request.scope
        # Below what the client has called, in its own spelling: that is where it goes on calling.
        sent = below_root(scope, scope["raw_path"].decode("latin-1"))
        prefix = sent.rstrip("/").rpartition("/")[0].rstrip("/")
        return {
            "path": scope.get("root_path", "") + prefix,
            "secure": self._settings.cookie_secure,
            "httponly": True,
            "samesite": self._settings.cookie_samesite,
        }


def _invalid(member: str, why: str) -> Problem:
    errors = [{"detail": why, "pointer": f"#/{member}"}]
    return Problem("validation_error", f"{member}: {why}", errors=errors)
