"""Give an account a new password: `uv run reset_password.py EMAIL`."""

import argparse
import asyncio
import contextlib
import secrets
import sys

from pydantic import TypeAdapter, ValidationError

import account_queries
import accounts
import db
import errors
import folding
import passwords
import schemas
import settings


def email_of(text: str) -> str:
    """Return an email as accounts keep it. Raise `ArgumentTypeError`."""
    try:
        return TypeAdapter(schemas.GivenEmail).validate_python(text)
    except ValidationError as error:
        raise argparse.ArgumentTypeError("invalid email") from error


async def reset(configured: settings.Settings, address: str) -> str | None:
    """Return the account's new password, or None if no account has this email.

    Its sessions end, and their tokens are revoked. Raise `errors.CannotStart` or `Problem` if the
    database cannot be used.
    """
    password, key = secrets.token_urlsafe(12), folding.folded(address)
    with contextlib.closing(passwords.Passwords()) as hashing:
        better = await hashing.hash(password)
    with db.locate(configured) as database:
        async with db.connect(configured, database.url):
            while account := await account_queries.FIND_ACCOUNT.first(email_key=key):
                if await account_queries.CHANGE_PASSWORD.first(
                    owner=account["id"],
                    known=account["password_hash"],  # or it was changed meanwhile: look again
                    better=better,
                    session=None,
                    lifetime=accounts.token_lifetime(configured),
                ):
                    return password
    return None


def main() -> None:
    """Print a new password; the account is signed out everywhere."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "email", type=email_of, help="the email of the account, such as ada@example.com"
    )
    given = parser.parse_args().email
    try:
        password = asyncio.run(reset(settings.load(), given))
    except (errors.CannotStart, errors.Problem) as error:
        sys.exit(str(error))
    if password is None:
        sys.exit("no account has this email")
    print(password)


if __name__ == "__main__":
    main()
