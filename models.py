"""The tables. They check lengths and choices too, so that no other writer can break the rules."""

from datetime import datetime
from typing import Literal

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ColumnElement,
    ForeignKeyConstraint,
    Identity,
    Index,
    LargeBinary,
    SQLColumnExpression,
    Text,
    UniqueConstraint,
    func,
    literal_column,
    text,
)
from sqlmodel import Field, SQLModel

Priority = Literal["low", "medium", "high"]


# Sort keys are defined once, because an index only serves the very expression it was built on.


def rank(priority: SQLColumnExpression[str]) -> ColumnElement[int]:
    """Return the rank of a priority, from low to high."""
    return func.array_position(literal_column("ARRAY['low', 'medium', 'high']"), priority)


def due_or_last(due: SQLColumnExpression[datetime | None]) -> ColumnElement[datetime]:
    """Return the due date; tasks without one come last."""
    return func.coalesce(due, literal_column("'infinity'::timestamptz"))


def due_or_first(due: SQLColumnExpression[datetime | None]) -> ColumnElement[datetime]:
    """Return the due date; tasks without one come first, which is last in descending order."""
    return func.coalesce(due, literal_column("'-infinity'::timestamptz"))


class User(SQLModel, table=True):
    """An owner of tasks. The id is the one in the token, prefixed if a JWKS verified it.

    Only users who signed up here have a password and an email: as it was given, and as the key by
    which emails are compared. Until `watched_until`, writes notify the user's event streams.
    """

    __tablename__ = "users"
    __table_args__ = (
        CheckConstraint("char_length(id) BETWEEN 1 AND 260", name="users_id"),
        UniqueConstraint("email_key", name="users_email_key"),
    )

    id: str = Field(primary_key=True, sa_type=Text)
    email: str | None = Field(sa_type=Text)
    email_key: str | None = Field(sa_type=Text)
    password_hash: str | None = Field(sa_type=Text)
    name: str | None = Field(sa_type=Text)
    created_at: datetime = Field(sa_column_kwargs={"server_default": func.now()})
    rev: int = Field(sa_type=BigInteger, sa_column_kwargs={"server_default": "0"})
    watched_until: datetime | None = None


class Task(SQLModel, table=True):
    """A task. Its primary key and every index begin with its owner."""

    __tablename__ = "tasks"
    __table_args__ = (
        CheckConstraint("char_length(title) BETWEEN 1 AND 200", name="tasks_title"),
        CheckConstraint("char_length(description) <= 1000", name="tasks_description"),
        CheckConstraint("priority IN ('low', 'medium', 'high')", name="tasks_priority"),
        Index("tasks_by_created", "user_id", "created_at", "id"),
        Index("tasks_by_completed", "user_id", "completed", "created_at", "id"),
        Index("tasks_by_rev", "user_id", "rev"),
        Index("tasks_by_updated", "user_id", "updated_at", "id"),
        Index("tasks_by_title", "user_id", func.lower(literal_column("title")), "id"),
        Index("tasks_by_priority", "user_id", rank(literal_column("priority")), "id"),
        Index("tasks_by_due", "user_id", due_or_last(literal_column("due_date")), "id"),
        Index("tasks_by_due_descending", "user_id", due_or_first(literal_column("due_date")), "id"),
        Index(
            "tasks_by_words",
            *("user_id", "title", "description"),
            postgresql_using="gin",
            postgresql_ops={"title": "gin_trgm_ops", "description": "gin_trgm_ops"},
        ),
    )

    user_id: str = Field(primary_key=True, sa_type=Text, foreign_key="users.id", ondelete="CASCADE")
    id: int = Field(primary_key=True, sa_type=BigInteger, sa_column_args=[Identity()])
    title: str = Field(sa_type=Text)
    description: str | None = Field(sa_type=Text)
    completed: bool = Field(sa_column_kwargs={"server_default": text("false")})
    priority: Priority = Field(sa_type=Text, sa_column_kwargs={"server_default": "medium"})
    due_date: datetime | None = None
    created_at: datetime = Field(sa_column_kwargs={"server_default": func.now()})
    updated_at: datetime = Field(sa_column_kwargs={"server_default": func.now()})
    rev: int = Field(sa_type=BigInteger, sa_column_kwargs={"server_default": "0"})


class Deletion(SQLModel, table=True):
    """A deleted task, and the owner's revision that deleted it. Ids are never reused."""

    __tablename__ = "deletions"
    __table_args__ = (Index("deletions_by_rev", "user_id", "rev"),)

    user_id: str = Field(primary_key=True, sa_type=Text, foreign_key="users.id", ondelete="CASCADE")
    task_id: int = Field(primary_key=True, sa_type=BigInteger)
    rev: int = Field(sa_type=BigInteger)


class IdempotencyKey(SQLModel, table=True):
    """A client's key for a create request, a digest of its body, and the task it created."""

    __tablename__ = "idempotency_keys"

    user_id: str = Field(primary_key=True, sa_type=Text, foreign_key="users.id", ondelete="CASCADE")
    key: str = Field(primary_key=True, sa_type=Text)
    digest: bytes = Field(sa_type=LargeBinary)
    task_id: int = Field(sa_type=BigInteger)
    created_at: datetime = Field(sa_column_kwargs={"server_default": func.now()})


class Tag(SQLModel, table=True):
    """A user's label for tasks, and the key by which names are compared."""

    __tablename__ = "tags"
    __table_args__ = (
        CheckConstraint("char_length(name) BETWEEN 1 AND 50", name="tags_name_length"),
        CheckConstraint("color ~ '^#[0-9a-f]{6}$'", name="tags_color"),
        UniqueConstraint("user_id", "name_key", name="tags_name"),
    )

    user_id: str = Field(primary_key=True, sa_type=Text, foreign_key="users.id", ondelete="CASCADE")
    id: int = Field(primary_key=True, sa_type=BigInteger, sa_column_args=[Identity(always=True)])
    name: str = Field(sa_type=Text)
    name_key: str = Field(sa_type=Text)
    color: str | None = Field(sa_type=Text)


class Link(SQLModel, table=True):
    """A tag on a task. Both foreign keys share the owner, so both belong to the same user."""

    __tablename__ = "task_tags"
    __table_args__ = (
        ForeignKeyConstraint(
            ["user_id", "task_id"], ["tasks.user_id", "tasks.id"], ondelete="CASCADE"
        ),
        ForeignKeyConstraint(
            ["user_id", "tag_id"], ["tags.user_id", "tags.id"], ondelete="CASCADE"
        ),
        Index("task_tags_by_tag", "user_id", "tag_id", "task_id"),
    )

    user_id: str = Field(primary_key=True, sa_type=Text)
    task_id: int = Field(primary_key=True, sa_type=BigInteger)
    tag_id: int = Field(primary_key=True, sa_type=BigInteger)


class Session(SQLModel, table=True):
    """A sign-in. Its current refresh token is the one with this counter; none is stored."""

    __tablename__ = "sessions"
    __table_args__ = (Index("sessions_by_user", "user_id"),)

    id: str = Field(primary_key=True, sa_type=Text)
    user_id: str = Field(sa_type=Text, foreign_key="users.id", ondelete="CASCADE")
    counter: int = Field(sa_type=BigInteger, sa_column_kwargs={"server_default": "0"})
    created_at: datetime = Field(sa_column_kwargs={"server_default": func.now()})
    rotated_at: datetime = Field(sa_column_kwargs={"server_default": func.now()})


class Revocation(SQLModel, table=True):
    """Tokens that are refused although they verify: by session, by token, or by user and age."""

    __tablename__ = "revocations"
    __table_args__ = (Index("revocations_by_time", "revoked_at"),)

    key: str = Field(primary_key=True, sa_type=Text)
    revoked_at: datetime = Field(sa_column_kwargs={"server_default": func.clock_timestamp()})
    expires_at: datetime
