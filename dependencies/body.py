"""How a body is read: after the token, up to a size, within a time, and as strict JSON."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.responses import Response

from dependencies.identity import verify_jwt
from errors import Problem

MAX_BODY_BYTES = 64 * 1024
BODY_SECONDS = 15.0


class JSONRequest(Request):
    """A request whose body is at most 64 KiB of JSON (RFC 8259)."""

    async def body(self) -> bytes:
        """Return the body. Raises `Problem` 408, 413 or 415."""
        if not hasattr(self, "_whole"):
            self._whole = await self._read()
        return self._whole

    async def json(self) -> Any:  # noqa: ANN401
        """Return the parsed body. Raises `Problem` 422.

        Unlike the standard library's, this parser refuses NaN, lone surrogates and deep nesting.
        """
        try:
            return from_json(await self.body(), allow_inf_nan=False)
        except ValueError as error:
            detail = f"The body is not valid JSON: {error}."
            errors = [{"detail": detail, "pointer": "#"}]
            raise Problem("validation_error", detail, errors=errors) from error

    async def _read(self) -> bytes:
        if int(self.headers.get("content-length", 0)) > MAX_BODY_BYTES:
            raise Problem("body_too_large")
        body = b""
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for chunk in self.stream():
                    body += chunk
                    if len(body) > MAX_BODY_BYTES:
                        raise Problem("body_too_large")
        except TimeoutError as error:
            raise Problem("request_timeout") from error
        if body and not _is_json(self.headers.get("content-type", "")):
            raise Problem("unsupported_media_type")
        return body


def _is_json(content_type: str) -> bool:
    kind, _, subtype = content_type.partition(";")[0].strip().lower().partition("/")
    return kind == "application" and (subtype == "json" or subtype.endswith("+json"))


class JSONRoute(APIRoute):
    """A route that reads its body as `JSONRequest` does."""

    async def before_body(self, request: Request) -> None:
        """Refuse a request before its body is read."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap FastAPI's handler."""
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            request = JSONRequest(request.scope, request.receive)
            await self.before_body(request)
            return await handle(request)

        return handler if self.body_field else handle


class PrivateRoute(JSONRoute):
    """A route for which a stranger's body is not even read: 401 comes before 413, 415 and 422."""

    async def before_body(self, request: Request) -> None:
        """Verify the token early; the dependency will find it verified."""
        await verify_jwt(request)
