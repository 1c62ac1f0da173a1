"""Until when event streams watch a user's tasks."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the column; nobody is watching yet."""
    op.add_column("users", sa.Column("watched_until", sa.DateTime(timezone=True)))


def downgrade() -> None:
    """Drop it."""
    op.drop_column("users", "watched_until")
