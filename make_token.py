"""Make a token for trying things out: `uv run make_token.py USER_ID`."""

import argparse
import sys
import time

import jwt

import db
import errors
import security
import settings


def main() -> None:
    """Print a token that the service accepts for a day, as a frontend's own server would."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("user_id", help="any text of 1 to 255 characters, such as ada")
    user_id = parser.parse_args().user_id
    if not 0 < len(user_id) <= security.MAX_USER_ID_LENGTH:
        parser.error("a user id has 1 to 255 characters")
    if user_id.startswith((security.LOCAL, security.FOREIGN)):
        parser.error(f"an id must not begin with {security.LOCAL} or {security.FOREIGN}")
    configured = settings.load()
    now = int(time.time())
    issued = {"iss": configured.jwt_issuer, "aud": configured.jwt_audience}
    claims = {
        **{name: value for name, value in issued.items() if value},
        "iat": now,
        "exp": now + 86_400,
        configured.jwt_user_claims[-1]: user_id,
    }
    try:
        with db.locate(configured) as database:
            print(jwt.encode(claims, database.secret, "HS256"))
    except errors.CannotStart as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
