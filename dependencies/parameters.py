"""Types of path parameters."""

from typing import Annotated

from fastapi import Path

from schemas import Id

TaskId = Annotated[Id, Path(description="The task's id, in decimal digits.", examples=[1])]
TagId = Annotated[Id, Path(description="The tag's id, in decimal digits.", examples=[3])]
