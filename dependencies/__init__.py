"""The dependencies that routes can declare."""

from dependencies.accounts import MyAccounts, SignInLimit, check_origin
from dependencies.identity import CurrentUser, UserId, verify_jwt
from dependencies.parameters import TagId, TaskId
from dependencies.preconditions import IdempotencyKey, IfMatch, IfNoneMatch, LastEventId, Revisions

__all__ = [
    "CurrentUser",
    "IdempotencyKey",
    "IfMatch",
    "IfNoneMatch",
    "LastEventId",
    "MyAccounts",
    "Revisions",
    "SignInLimit",
    "TagId",
    "TaskId",
    "UserId",
    "check_origin",
    "verify_jwt",
]
