"""Accounts, sessions and revocations."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Let users have passwords and sign in."""
    op.add_column("users", sa.Column("email_key", sa.Text))
    op.add_column("users", sa.Column("password_hash", sa.Text))
    op.create_unique_constraint("users_email_key", "users", ["email_key"])
    op.create_table(
        "sessions",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column(
            "user_id", sa.Text, sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=False
        ),
        sa.Column("counter", sa.BigInteger, server_default="0", nullable=False),
        sa.Column("created_at", MOMENT, server_default=sa.func.now(), nullable=False),
        sa.Column("rotated_at", MOMENT, server_default=sa.func.now(), nullable=False),
    )
    op.create_index("sessions_by_user", "sessions", ["user_id"])
    op.create_table(
        "revocations",
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("revoked_at", MOMENT, server_default=sa.func.clock_timestamp(), nullable=False),
        sa.Column("expires_at", MOMENT, nullable=False),
    )
    op.create_index("revocations_by_time", "revocations", ["revoked_at"])


def downgrade() -> None:
    """Drop them, with everything in them."""
    op.drop_table("revocations")
    op.drop_table("sessions")
    op.drop_column("users", "password_hash")
    op.drop_column("users", "email_key")
