"""Tags, and an index for each order and for the search."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

ORDERS = {
    "tasks_by_updated": "updated_at",
    "tasks_by_title": "lower(title)",
    "tasks_by_priority": "array_position(ARRAY['low', 'medium', 'high'], priority)",
    "tasks_by_due": "coalesce(due_date, 'infinity'::timestamptz)",
    "tasks_by_due_descending": "coalesce(due_date, '-infinity'::timestamptz)",
}


def upgrade() -> None:
    """Let tasks have tags, be sorted and be searched."""
    op.create_table(
        "tags",
        sa.Column(
            "user_id", sa.Text, sa.ForeignKey("users.id", ondelete="CASCADE"), primary_key=True
        ),
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
    for name, order in ORDERS.items():
        op.create_index(name, "tasks", ["user_id", sa.text(order), "id"])
    # Both are trusted extensions: any role with CREATE on the database can create them.
    op.execute("CREATE EXTENSION IF NOT EXISTS pg_trgm")
    op.execute("CREATE EXTENSION IF NOT EXISTS btree_gin")
    op.create_index(
        "tasks_by_words",
        "tasks",
        ["user_id", "title", "description"],
        postgresql_using="gin",
        postgresql_ops={"title": "gin_trgm_ops", "description": "gin_trgm_ops"},
    )


def downgrade() -> None:
    """Drop them, with everything in them, but not the extensions: others may use them by now."""
    op.drop_index("tasks_by_words", "tasks")
    for name in reversed(ORDERS):
        op.drop_index(name, "tasks")
    op.drop_table("task_tags")
    op.drop_table("tags")
