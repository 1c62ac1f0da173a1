"""Users and tasks."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "users",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("email", sa.Text),
        sa.Column("name", sa.Text),
        sa.Column("created_at", MOMENT, server_default=sa.func.now(), nullable=False),
        sa.CheckConstraint("char_length(id) BETWEEN 1 AND 255", name="users_id"),
    )
    op.create_table(
        "tasks",
        sa.Column(
            "user_id", sa.Text, sa.ForeignKey("users.id", ondelete="CASCADE"), primary_key=True
        ),
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("description", sa.Text),
        sa.Column("completed", sa.Boolean, server_default=sa.false(), nullable=False),
        sa.Column("priority", sa.Text, server_default="medium", nullable=False),
        sa.Column("due_date", MOMENT),
        sa.Column("created_at", MOMENT, server_default=sa.func.now(), nullable=False),
        sa.Column("updated_at", MOMENT, server_default=sa.func.now(), nullable=False),
        sa.CheckConstraint("char_length(title) BETWEEN 1 AND 200", name="tasks_title"),
        sa.CheckConstraint("char_length(description) <= 1000", name="tasks_description"),
        sa.CheckConstraint("priority IN ('low', 'medium', 'high')", name="tasks_priority"),
    )
    op.create_index("tasks_by_created", "tasks", ["user_id", "created_at", "id"])
    op.create_index("tasks_by_completed", "tasks", ["user_id", "completed", "created_at", "id"])


def downgrade() -> None:
    """Drop them, with everything in them."""
    op.drop_table("tasks")
    op.drop_table("users")
