"""Until when somebody watches a user's tasks."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the moment; so far nobody watches."""
    op.add_column("users", sa.Column("watched_until", sa.DateTime(timezone=True)))


def downgrade() -> None:
    """Drop it."""
    op.drop_column("users", "watched_until")
