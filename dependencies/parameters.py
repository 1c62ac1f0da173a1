"""Types of path parameters."""

from typing import Annotated

from fastapi import Path

from schemas import Digits

MAX_ID = 2**63 - 1

TaskId = Annotated[
    Digits, Path(ge=1, le=MAX_ID, description="The task's id, in decimal digits.", examples=[1])
]
TagId = Annotated[
    Digits, Path(ge=1, le=MAX_ID, description="The tag's id, in decimal digits.", examples=[3])
]
