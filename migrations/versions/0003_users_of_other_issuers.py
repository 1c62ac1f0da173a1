"""Users named by the tokens of a JWKS."""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make room for the prefix of their ids."""
    op.drop_constraint("users_id", "users")
    op.create_check_constraint("users_id", "users", "char_length(id) BETWEEN 1 AND 260")


def downgrade() -> None:
    """Remove the room. This fails while an id has more than 255 characters."""
    op.drop_constraint("users_id", "users")
    op.create_check_constraint("users_id", "users", "char_length(id) BETWEEN 1 AND 255")
