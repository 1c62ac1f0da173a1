"""Make a token for trying things out: `uv run make_token.py USER_ID`."""

import argparse
import sys

import db
import errors
import security
import settings

HOUR = 3600


def main() -> None:
    """Print a token that the service accepts for a day."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("user_id", help="any text of 1 to 255 characters, such as ada")
    user_id = parser.parse_args().user_id
    if not 0 < len(user_id) <= security.MAX_USER_ID_LENGTH:
        parser.error("a user id has 1 to 255 characters")
    if user_id.startswith((security.LOCAL, security.FOREIGN)):
        parser.error(f"an id must not begin with {security.LOCAL} or {security.FOREIGN}")
    configured = settings.load()
    try:
        with db.locate(configured) as database:
            made = security.sign(
                database.secret,
                user_id,
                24 * HOUR,
                iss=configured.jwt_issuer,
                aud=configured.jwt_audience,
                user_claim=configured.jwt_user_claims[-1],
            )
        print(made)
    except errors.CannotStart as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
