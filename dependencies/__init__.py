"""What a route may ask for."""

from dependencies.body import JSONRoute, PrivateRoute
from dependencies.identity import CurrentUser, UserId, verify_jwt
from dependencies.parameters import TaskId

__all__ = ["CurrentUser", "JSONRoute", "PrivateRoute", "TaskId", "UserId", "verify_jwt"]
