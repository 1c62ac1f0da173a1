"""Types of path parameters, and a body that must not be there."""

from typing import Annotated

from fastapi import Depends, Path, Request
from fastapi.exceptions import RequestValidationError

from routing import read_body
from schemas import Id

TaskId = Annotated[Id, Path(description="The task's id, in decimal digits.", examples=[1])]
TagId = Annotated[Id, Path(description="The tag's id, in decimal digits.", examples=[3])]


async def refuse_body(request: Request) -> None:
    """Refuse a body that its sender expects to matter. Raise `Problem` 408 or 413, or 422."""
    if await read_body(request):
        raise RequestValidationError([{"type": "unwanted", "loc": ("body",)}])


NoBody = Annotated[None, Depends(refuse_body)]
