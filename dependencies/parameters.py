"""Types of path parameters."""

from typing import Annotated

from fastapi import Path

from schemas import MAX_ID, Digits

TaskId = Annotated[
    Digits, Path(ge=1, le=MAX_ID, description="The task's id, in decimal digits.", examples=[1])
]
TagId = Annotated[
    Digits, Path(ge=1, le=MAX_ID, description="The tag's id, in decimal digits.", examples=[3])
]
