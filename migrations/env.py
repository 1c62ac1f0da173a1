"""Run migrations, on the connection that the service passes in, or for Alembic's command line."""

import asyncio
from typing import Literal

from alembic import context
from sqlalchemy import Connection, String, text
from sqlmodel import AutoString, SQLModel

import db
import models  # noqa: F401  (fills the metadata)
import settings
import tables

LOCK = 0x70D0


def _render(kind: str, item: object, _: object) -> str | Literal[False]:
    """Render SQLModel's own string type as SQLAlchemy's, which revisions import."""
    if kind == "type" and isinstance(item, AutoString):
        return f"sa.{String(item.length)!r}"
    return False


def run(connection: Connection) -> None:
    """Run the requested migrations, one process at a time."""
    context.configure(
        connection=connection,
        target_metadata=SQLModel.metadata,
        compare_server_default=True,
        render_item=_render,
    )
    with context.begin_transaction():
        # Workers that start together wait here. The lock ends with the transaction, so it also
        # works through a transaction pooler.
        connection.execute(text(f"SELECT pg_advisory_xact_lock({LOCK})"))
        context.run_migrations()


if connection := context.config.attributes.get("connection"):
    run(connection)
else:
    with db.locate(settings.load()) as database:
        asyncio.run(tables.run_sync(database.url, run))
