"""The tables. They check the lengths and choices of what clients send, whoever writes it.

Every key of a user's data begins with the user, so that one user's rows lie together and the tables
can be distributed by user. Two tables' cannot: that of `emails`, which say whose an email is, and
that of `revocations`, which every worker reads as a whole.
"""

from datetime import datetime
from typing import Literal

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKeyConstraint,
    Identity,
    Index,
    LargeBinary,
    Text,
    UniqueConstraint,
    false,
    func,
)
from sqlmodel import Field, SQLModel
from typing_extensions import TypeAliasType

Priority = TypeAliasType("Priority", Literal["low", "medium", "high"])


class User(SQLModel, table=True):
    """An owner of tasks. The id is the one in the token, prefixed if a JWKS verified it.

    Only users who signed up here have a password and an email. Until `watched_until`, writes notify
    the user's event streams. `written_at` is the moment of the newest revision.
    """

    __tablename__ = "users"
    __table_args__ = (
        CheckConstraint("char_length(id) BETWEEN 1 AND 260", name="users_id"),
        CheckConstraint("char_length(email) BETWEEN 3 AND 254", name="users_email"),
        CheckConstraint("char_length(name) BETWEEN 1 AND 100", name="users_name"),
    )

    id: str = Field(primary_key=True, sa_type=Text)
    email: str | None = Field(sa_type=Text)
    password_hash: str | None = Field(sa_type=Text)
    name: str | None = Field(sa_type=Text)
    created_at: datetime = Field(sa_column_kwargs={"server_default": func.now()})
    rev: int = Field(sa_type=BigInteger, sa_column_kwargs={"server_default": "0"})
    watched_until: datetime | None = None
    written_at: datetime | None = None


class Email(SQLModel, table=True):
    """Whose an email is. The key is the form by which emails are compared, see `folding.py`."""

    __tablename__ = "emails"
    __table_args__ = (Index("emails_by_user", "user_id"),)

    key: str = Field(primary_key=True, sa_type=Text)
    user_id: str = Field(sa_type=Text, foreign_key="users.id", ondelete="CASCADE")


class Task(SQLModel, table=True):
    """A task. The keys are its texts as they are searched and sorted, see `folding.py`.

    Each index costs every write more than it saves most reads: one user's tasks are few enough to
    be searched, and sorted otherwise than by creation, without one.
    """

    __tablename__ = "tasks"
    __table_args__ = (
        CheckConstraint("char_length(title) BETWEEN 1 AND 200", name="tasks_title"),
        CheckConstraint("char_length(description) <= 1000", name="tasks_description"),
        CheckConstraint("priority IN ('low', 'medium', 'high')", name="tasks_priority"),
        CheckConstraint("NOT due_is_day OR due_date IS NOT NULL", name="tasks_due_is_day"),
        Index("tasks_by_created", "user_id", "created_at", "id"),
        Index("tasks_by_completed", "user_id", "completed", "created_at", "id"),
        Index("tasks_by_rev", "user_id", "rev"),
    )

    user_id: str = Field(primary_key=True, sa_type=Text, foreign_key="users.id", ondelete="CASCADE")
    id: int = Field(primary_key=True, sa_type=BigInteger, sa_column_args=[Identity()])
    title: str = Field(sa_type=Text)
    # "C": the same order on every database, whatever its locale.
    title_key: str = Field(sa_type=Text(collation="C"))
    description: str | None = Field(sa_type=Text)
    description_key: str | None = Field(sa_type=Text(collation="C"))
    completed: bool = Field(sa_column_kwargs={"server_default": false()})
    priority: Priority = Field(sa_type=Text, sa_column_kwargs={"server_default": "medium"})
    due_date: datetime | None = None
    due_is_day: bool = Field(sa_column_kwargs={"server_default": false()})
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
    __table_args__ = (
        CheckConstraint("char_length(key) BETWEEN 1 AND 255", name="idempotency_keys_key"),
    )

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


class UserSession(SQLModel, table=True):
    """A sign-in. Its current refresh token is the one with this counter; none is stored.

    A refresh token names only the session, so there is an index for that as well.
    """

    __tablename__ = "sessions"
    __table_args__ = (Index("sessions_by_id", "id"),)

    user_id: str = Field(primary_key=True, sa_type=Text, foreign_key="users.id", ondelete="CASCADE")
    id: str = Field(primary_key=True, sa_type=Text)
    counter: int = Field(sa_type=BigInteger, sa_column_kwargs={"server_default": "0"})
    created_at: datetime = Field(sa_column_kwargs={"server_default": func.now()})
    rotated_at: datetime = Field(sa_column_kwargs={"server_default": func.now()})


class Revocation(SQLModel, table=True):
    """Tokens that are refused although they verify: by session, by token, or by user and age."""

    __tablename__ = "revocations"
    __table_args__ = (Index("revocations_by_time", "revoked_at"),)

    key: str = Field(primary_key=True, sa_type=Text)
    revoked_at: datetime = Field(sa_column_kwargs={"server_default": func.now()})
    expires_at: datetime
