"""The dependencies that routes can declare, and what they share."""

from dependencies.accounts import MyAccounts, RefreshCookies, SignInLimit, check_origin
from dependencies.identity import CurrentUser, UserId, create_owner, verify_jwt
from dependencies.parameters import NoBody, TagId, TaskId
from dependencies.preconditions import (
    IdempotencyKey,
    IfMatch,
    IfNoneMatch,
    LastEventId,
    Revisions,
    refuse_if_match,
)

__all__ = [
    "CurrentUser",
    "IdempotencyKey",
    "IfMatch",
    "IfNoneMatch",
    "LastEventId",
    "MyAccounts",
    "NoBody",
    "RefreshCookies",
    "Revisions",
    "SignInLimit",
    "TagId",
    "TaskId",
    "UserId",
    "check_origin",
    "create_owner",
    "refuse_if_match",
    "verify_jwt",
]
