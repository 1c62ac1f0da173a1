"""The tables."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "v1"
down_revision = None


def _owner() -> sa.Column[str]:
    key = sa.ForeignKey("users.id", ondelete="CASCADE")
    return sa.Column("user_id", sa.Text, key, primary_key=True)


def _moment(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False)


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "users",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("email", sa.Text),
        sa.Column("password_hash", sa.Text),
        sa.Column("name", sa.Text),
        _moment("created_at"),
        sa.Column("rev", sa.BigInteger, server_default="0", nullable=False),
        sa.Column("watched_until", sa.DateTime(timezone=True)),
        sa.CheckConstraint("char_length(id) BETWEEN 1 AND 260", name="users_id"),
        sa.CheckConstraint("char_length(email) BETWEEN 3 AND 254", name="users_email"),
        sa.CheckConstraint("char_length(name) BETWEEN 1 AND 100", name="users_name"),
    )
    op.create_table(
        "emails",
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column(
            "user_id", sa.Text, sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=False
        ),
    )
    op.create_index("emails_by_user", "emails", ["user_id"])
    op.create_table(
        "tasks",
        _owner(),
        # The first use of an idempotency key reserves the task's id before the task exists.
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("title_key", sa.Text(collation="C"), nullable=False),
        sa.Column("description", sa.Text),
        sa.Column("description_key", sa.Text(collation="C")),
        sa.Column("completed", sa.Boolean, server_default=sa.false(), nullable=False),
        sa.Column("priority", sa.Text, server_default="medium", nullable=False),
        sa.Column("due_date", sa.DateTime(timezone=True)),
        sa.Column("due_is_day", sa.Boolean, server_default=sa.false(), nullable=False),
        _moment("created_at"),
        _moment("updated_at"),
        sa.Column("rev", sa.BigInteger, server_default="0", nullable=False),
        sa.CheckConstraint("char_length(title) BETWEEN 1 AND 200", name="tasks_title"),
        sa.CheckConstraint("char_length(description) <= 1000", name="tasks_description"),
        sa.CheckConstraint("priority IN ('low', 'medium', 'high')", name="tasks_priority"),
        sa.CheckConstraint("NOT due_is_day OR due_date IS NOT NULL", name="tasks_due_is_day"),
    )
    op.create_index("tasks_by_created", "tasks", ["user_id", "created_at", "id"])
    op.create_index("tasks_by_completed", "tasks", ["user_id", "completed", "created_at", "id"])
    op.create_index("tasks_by_rev", "tasks", ["user_id", "rev"])
    op.create_table(
        "deletions",
        _owner(),
        sa.Column("task_id", sa.BigInteger, primary_key=True),
        sa.Column("rev", sa.BigInteger, nullable=False),
    )
    op.create_index("deletions_by_rev", "deletions", ["user_id", "rev"])
    op.create_table(
        "idempotency_keys",
        _owner(),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("task_id", sa.BigInteger, nullable=False),
        _moment("created_at"),
        sa.CheckConstraint("char_length(key) BETWEEN 1 AND 255", name="idempotency_keys_key"),
    )
    op.create_table(
        "tags",
        _owner(),
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("name_key", sa.Text, nullable=False),
        sa.Column("color", sa.Text),
        sa.CheckConstraint("char_length(name) BETWEEN 1 AND 50", name="tags_name_length"),
        sa.CheckConstraint("color ~ '^#[0-9a-f]{6}$'", name="tags_color"),
        sa.UniqueConstraint("user_id", "name_key", name="tags_name"),
    )
    op.create_table(
        "task_tags",
        sa.Column("user_id", sa.Text, primary_key=True),
        sa.Column("task_id", sa.BigInteger, primary_key=True),
        sa.Column("tag_id", sa.BigInteger, primary_key=True),
        sa.ForeignKeyConstraint(
            ["user_id", "task_id"], ["tasks.user_id", "tasks.id"], ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["user_id", "tag_id"], ["tags.user_id", "tags.id"], ondelete="CASCADE"
        ),
    )
    op.create_index("task_tags_by_tag", "task_tags", ["user_id", "tag_id", "task_id"])
    op.create_table(
        "sessions",
        _owner(),
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("counter", sa.BigInteger, server_default="0", nullable=False),
        _moment("created_at"),
        _moment("rotated_at"),
    )
    op.create_index("sessions_by_id", "sessions", ["id"])
    op.create_table(
        "revocations",
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column(
            "revoked_at",
            sa.DateTime(timezone=True),
            server_default=sa.func.clock_timestamp(),
            nullable=False,
        ),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("revocations_by_time", "revocations", ["revoked_at"])


def downgrade() -> None:
    """Drop them, with everything in them."""
    for table in (
        *("revocations", "sessions", "task_tags", "tags", "idempotency_keys"),
        *("deletions", "tasks", "emails", "users"),
    ):
        op.drop_table(table)
