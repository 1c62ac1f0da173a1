"""What the routes of accounts ask for."""

import logging
import re
from functools import partial
from typing import Annotated

from fastapi import Depends, Request, Response
from fastapi.security import APIKeyCookie
from fastapi.security.base import SecurityBase

from accounts import COOKIE, Accounts
from calls import call_of
from dependencies.identity import read_claims
from errors import Problem
from logs import log_event
from rate_limits import RateLimits, address


async def check_origin(request: Request) -> None:
    """Refuse foreign pages that make the browser send our cookie, or store a new one (CSRF)."""
    origin = request.headers.get("origin")
    signs_in = call_of(request).path.endswith(("/login", "/token"))
    if origin is None or not (signs_in or "cookie" in request.headers):
        return
    own = (
        request.headers.get("sec-fetch-site") == "same-origin"  # whatever a proxy made of the Host
        or origin.partition("://")[2] == request.headers.get("host")
    )
    if not own and not re.fullmatch(request.app.state.settings.origin_pattern, origin):
        log_event(request, "origin_not_allowed", logging.WARNING, origin=origin)
        raise Problem("origin_not_allowed")


async def limit_sign_in(request: Request) -> None:
    """Count a sign-in attempt against the address; the account is counted once it is known.

    In a flood refuse it at once, which costs least.
    """
    request.app.state.passwords.refuse_if_full()
    limits: RateLimits = request.app.state.rate_limits
    await limits.count(request, limits.auth, "address", address(request))


async def accounts(request: Request, response: Response) -> Accounts:
    """Return the logic of accounts for this request."""
    return Accounts(request, response, partial(read_claims, request))


class ReadRefreshCookies(SecurityBase):
    """Reads all refresh cookies: with two, there is no telling which is meant."""

    def __init__(self) -> None:
        self.scheme_name = "RefreshCookie"
        description = "Set when you sign in; browsers send it by themselves."
        self.model = APIKeyCookie(name=COOKIE, description=description).model

    async def __call__(self, request: Request) -> list[str]:
        """Return their values."""
        sent = ";".join(request.headers.getlist("cookie"))
        pairs = [pair.strip().partition("=") for pair in sent.split(";")]
        return [value for name, _, value in pairs if name == COOKIE]


RefreshCookies = Annotated[list[str], Depends(ReadRefreshCookies())]
SignInLimit = Annotated[None, Depends(limit_sign_in)]
MyAccounts = Annotated[Accounts, Depends(accounts)]
