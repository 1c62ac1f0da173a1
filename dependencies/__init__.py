"""What a route may ask for."""

from dependencies.identity import CurrentUser, UserId, verify_jwt
from dependencies.parameters import TaskId
from dependencies.route import Route

__all__ = ["CurrentUser", "Route", "TaskId", "UserId", "verify_jwt"]
