"""Accounts and sessions: sign up, sign in, stay signed in, sign out."""

from typing import Annotated

from fastapi import APIRouter, Depends, Form, Query, Request

import account_queries
from calls import call_of
from dependencies import (
    CurrentUser,
    MyAccounts,
    RefreshCookies,
    SignInLimit,
    UserId,
    check_origin,
)
from errors import Problem
from openapi import BODY, TOKEN, answers
from routing import Route
from schemas import (
    AccountDeletion,
    Credentials,
    LogoutQuery,
    Omittable,
    PasswordChange,
    PasswordGrant,
    Registration,
    TokenRead,
    UserPatch,
    UserRead,
)

router = APIRouter(
    prefix="/api/v1/auth",
    tags=["auth"],
    route_class=Route,
    dependencies=[Depends(check_origin)],
    responses=answers("origin_not_allowed", "internal_error", "unavailable"),
)

LIMITED = answers("rate_limited")
FORM = BODY | answers("validation_error")
SIGN_IN = FORM | LIMITED
SIGNED_IN = LIMITED | TOKEN
PROVEN = answers("wrong_password", "origin_not_allowed")


@router.post("/register", status_code=201, responses=SIGN_IN | answers("email_taken"))
async def register(who: Registration, accounts: MyAccounts, _: SignInLimit) -> UserRead:
    """Sign up with email and password. Then sign in."""
    return await accounts.sign_up(who)


@router.post("/login", responses=SIGN_IN | answers("invalid_credentials"))
async def login(who: Credentials, accounts: MyAccounts, _: SignInLimit) -> TokenRead:
    """Sign in. The answer holds an access token; a cookie holds the refresh token."""
    return await accounts.sign_in(who.email, who.password)


@router.post("/token", responses=SIGN_IN | answers("invalid_credentials"))
async def issue_token(
    who: Annotated[PasswordGrant, Form()], accounts: MyAccounts, _: SignInLimit
) -> TokenRead:
    """Sign in with the form of OAuth 2.0's password grant. Swagger UI's *Authorize* uses it."""
    return await accounts.sign_in(who.username, who.password)


@router.post(
    "/refresh", responses=LIMITED | answers("refresh_token_missing", "refresh_token_invalid")
)
async def refresh(cookies: RefreshCookies, accounts: MyAccounts) -> TokenRead:
    """Exchange the refresh cookie for a new access token. The cookie is rotated."""
    return await accounts.refresh(cookies)


@router.post(
    "/logout",
    status_code=204,
    responses=answers("validation_error"),
    openapi_extra={"security": [{"BearerToken": []}, {}]},
)
async def logout(
    cookies: RefreshCookies, accounts: MyAccounts, query: Annotated[LogoutQuery, Query()]
) -> None:
    """End the session of the cookie or the token. Works without credentials and can be repeated."""
    await accounts.sign_out(cookies, everywhere=query.everywhere)


@router.get("/me", responses=SIGNED_IN)
async def get_me(user: CurrentUser) -> UserRead:
    """Get the user named in the token. A user known only from an external token is created."""
    return user


@router.patch("/me", responses=SIGNED_IN | FORM)
async def update_me(change: UserPatch, _: CurrentUser, request: Request) -> UserRead:
    """Change your name."""
    # Not by the id that is shown to the user, which another issuer's user may have too.
    user = await account_queries.RENAME_USER.first(owner=call_of(request).user_id, name=change.name)
    if user is None:
        raise Problem("token_revoked")  # deleted in the meantime
    return user


@router.post("/password", responses=SIGNED_IN | FORM | PROVEN)
async def change_password(
    change: PasswordChange, user_id: UserId, accounts: MyAccounts, _: SignInLimit
) -> TokenRead:
    """Change your password. All other sessions end."""
    return await accounts.change_password(user_id, change.current_password, change.new_password)


@router.delete("/me", status_code=204, responses=SIGNED_IN | FORM | PROVEN)
async def delete_me(
    _user: CurrentUser,
    accounts: MyAccounts,
    _: SignInLimit,
    request: Request,
    proof: Omittable[AccountDeletion] = None,
) -> None:
    """Delete your account and all your data. Its tokens stop working at once."""
    await accounts.delete(call_of(request).user_id, proof.password if proof else None)
