"""Every SQL statement on accounts, sessions and revocations, as text, like those of `queries.py`.

A look-up by email or session names no owner: its caller proves to know the password or the token.
"""

from datetime import datetime
from typing import TypedDict

from db import Statement
from queries import LOCK_OWNER, shown
from schemas import UserRead
from security import SESSION_KEY, USER_KEY

_USER = f"{shown('users.id')} AS id, users.email, users.name, users.created_at"


class UserRow(UserRead, total=False):
    """A user, and what some statements return besides: the counter is that of a refresh token."""

    password_hash: str | None
    counter: int


FIND_USER = Statement[UserRead](f"SELECT {_USER} FROM users WHERE id = :owner")

FIND_OWN_ACCOUNT = Statement[UserRow](f"SELECT {_USER}, password_hash FROM users WHERE id = :owner")

RENAME_USER = Statement[UserRead](f"""
    UPDATE users SET name = :name WHERE id = :owner RETURNING {_USER}""")

CREATE_ACCOUNT = Statement[UserRead](f"""
    WITH taken AS (INSERT INTO emails (key, user_id) VALUES (:email_key, :owner)),
    created AS (
        INSERT INTO users (id, email, name, password_hash)
        VALUES (:owner, :email, :name, :password_hash) RETURNING users.*
    )
    SELECT {_USER} FROM created AS users""")

FIND_ACCOUNT = Statement[UserRow](f"""
    SELECT {_USER}, password_hash
    FROM emails JOIN users ON users.id = user_id WHERE key = :email_key""")

REHASH_PASSWORD = Statement[dict[str, str]]("""
    UPDATE users SET password_hash = :better
    WHERE id = :owner AND password_hash = :known RETURNING id""")


def _revoke(keys: str) -> str:
    """Revoke tokens with one of these keys, for the `lifetime` that such tokens may have."""
    return f"""
        INSERT INTO revocations (key, revoked_at, expires_at)
        SELECT key, now(), now() + :lifetime::interval FROM ({keys}) AS refused (key)
        ON CONFLICT (key) DO UPDATE SET
            revoked_at = greatest(revocations.revoked_at, excluded.revoked_at),
            expires_at = greatest(revocations.expires_at, excluded.expires_at)"""


# It waits for a password change in progress, after which `known` is wrong.
START_SESSION = Statement[dict[str, str]]("""
    WITH owner AS (SELECT id FROM users WHERE id = :owner AND password_hash = :known FOR SHARE),
    started AS (
        INSERT INTO sessions (user_id, id) SELECT :owner, :session FROM owner RETURNING id
    )
    SELECT id FROM started""")

_ALIVE = """
    rotated_at > now() - :idle::interval AND sessions.created_at > now() - :longest::interval"""

ROTATE_SESSION = Statement[UserRow](f"""
    UPDATE sessions SET
        counter = :counter::bigint + 1,
        rotated_at = CASE WHEN counter = :counter THEN moment ELSE rotated_at END
    FROM users, (SELECT now() AS moment) AS clock -- Citus refuses now() in a CASE
    WHERE sessions.id = :session AND users.id = user_id AND {_ALIVE}
    AND (counter = :counter OR counter = :counter + 1 AND rotated_at > now() - :grace::interval)
    RETURNING {_USER}, counter""")
"""Compare-and-set: any number of calls with one counter rotate once and get the same result."""

FIND_SESSION = Statement[dict[str, str]](f"""
    SELECT user_id FROM sessions WHERE id = :session AND {_ALIVE}""")

# Even if the session is already gone: its last access token may still be valid.
END_SESSION = Statement[dict[str, str]](f"""
    WITH revoked AS ({_revoke(f"SELECT concat('{SESSION_KEY}', :session::text)")}),
    ended AS (DELETE FROM sessions WHERE id = :session RETURNING user_id)
    SELECT user_id FROM ended""")

_REVOKED = f"""revoked AS ({_revoke(f"SELECT concat('{SESSION_KEY}', id) FROM ended")})"""

END_SESSIONS = Statement[dict[str, str]](f"""
    WITH ended AS (DELETE FROM sessions WHERE user_id = :owner RETURNING id), {_REVOKED}
    SELECT id FROM ended""")

# After the lock, or it would miss a session being started with the old password.
CHANGE_PASSWORD = Statement[UserRead](
    f"""
    WITH changed AS (
        UPDATE users SET password_hash = :better
        WHERE id = :owner AND password_hash IS NOT DISTINCT FROM :known RETURNING {_USER}
    ),
    ended AS (DELETE FROM sessions USING changed WHERE user_id = :owner RETURNING sessions.id),
    {_REVOKED},
    started AS (
        INSERT INTO sessions (user_id, id)
        SELECT :owner, :session::text FROM changed WHERE :session::text IS NOT NULL
    )
    SELECT * FROM changed""",
    after=LOCK_OWNER,
)
"""Ends every session and starts another, if one is given."""

# The rest goes with the user; on Citus `emails` has no foreign key.
DELETE_ACCOUNT = Statement[dict[str, str]](f"""
    WITH gone AS (
        DELETE FROM users WHERE id = :owner AND password_hash IS NOT DISTINCT FROM :known
        RETURNING id
    ),
    freed AS (DELETE FROM emails WHERE user_id = :owner AND EXISTS (SELECT id FROM gone)),
    revoked AS ({_revoke(f"SELECT concat('{USER_KEY}', id) FROM gone")})
    SELECT id FROM gone""")


# --- Revocations and cleaning up ---


class Revoked(TypedDict):
    """A revocation; a user's applies only to tokens issued until then."""

    key: str
    revoked_at: datetime


REVOKE = Statement[dict[str, str]](f"{_revoke('SELECT :key::text')} RETURNING key")

LIST_REVOCATIONS = Statement[Revoked](
    """
    SELECT key, revoked_at FROM revocations
    WHERE expires_at > now() AND revoked_at > now() - :window::interval""",
    is_own=True,
)

CLEAN_UP = Statement[dict[str, str]](f"""
    WITH expired AS (DELETE FROM revocations WHERE expires_at < now()),
    dead AS (DELETE FROM sessions WHERE NOT ({_ALIVE}))
    DELETE FROM idempotency_keys WHERE created_at < now() - interval '30 days'""")
