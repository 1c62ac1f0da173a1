"""Users whom a token of a JWKS names."""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make room for what their ids begin with."""
    op.drop_constraint("users_id", "users")
    op.create_check_constraint("users_id", "users", "char_length(id) BETWEEN 1 AND 260")


def downgrade() -> None:
    """Refuse them again; who has an id of more than 255 characters is in the way."""
    op.drop_constraint("users_id", "users")
    op.create_check_constraint("users_id", "users", "char_length(id) BETWEEN 1 AND 255")
