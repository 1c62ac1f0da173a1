"""Tokens, and the keys that sign and verify them. It knows nothing about HTTP."""

import hmac
import math
import re
import secrets
import sys
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from hashlib import blake2b, sha256
from typing import Any, NamedTuple

import jwt

LEEWAY_SECONDS = 10
MAX_LIFETIME_SECONDS = 10 * 365.25 * 86_400  # "10y" to those who sign tokens
MAX_USER_ID_LENGTH = 255
MAX_KEYS = 100
MIN_RSA_BITS = 2048
CACHED_TOKENS = 4096
CURSOR_MAC_BYTES = 16
ISSUER = "todo-api"
ACCESS_TOKEN_TYPE = "at+jwt"  # noqa: S105  (RFC 9068)

# Prefixes of the ids of users who signed up here, and of users named by a JWKS token. No other
# issuer's token signed with the shared secret may carry such an id, so that users of different
# issuers never collide.
LOCAL, FOREIGN = "local_", "jwks_"

_ALGORITHMS: dict[str, list[tuple[str, ...]]] = {
    "OKP Ed25519": [("EdDSA", "Ed25519")],
    "EC P-256": [("ES256",)],
    "EC P-521": [("ES512",)],
    "RSA": [("RS256",), ("PS256",)],
}
"""The algorithms of each type of key, by all their names.

The key decides, not the token, so HMAC is never allowed.
"""

with suppress(ValueError):  # once PyJWT, which has the algorithm, knows this name of it (RFC 9864)
    jwt.register_algorithm("Ed25519", jwt.get_algorithm_by_name("EdDSA"))

SESSION_KEY, USER_KEY, TOKEN_KEY = "session:", "user:", "token:"
"""Prefixes of revocation keys: a session, a user, one token of another issuer."""

_COMPACT = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+", re.ASCII)
_MISTAKES = [
    ("undefined|null", "The token is the word undefined or null: sign in, and wait for it."),
    (r"""["'].*["']""", "The token is in quotes: send it without them."),
    (r"[\w-]+(\.[\w-]*){4}", "The token is encrypted (a JWE): send one that is only signed."),
    (
        # Of a session, or of its cookie, in which a signature follows.
        r"[A-Za-z0-9]{32}(\.[A-Za-z0-9+/%]{43,}(=|%3D)?)?",
        "This looks like a session token of Better Auth: send the JWT of authClient.token().",
    ),
]
"""What is sent in place of a JSON Web Token: its form, and what to say."""

_SESSION = re.compile(r"[0-9a-f]{32}")
_REFRESH_TOKEN = re.compile(r"([0-9a-f]{32})\.(0|[1-9][0-9]{0,17})\.[0-9a-f]{64}", re.ASCII)


class InvalidToken(Exception):
    """The token does not verify; the message says why, for the log."""


class ClientMistake(InvalidToken):
    """Something that happens to developers; the message is for them, and gives nothing away."""


class UnknownKey(InvalidToken):
    """The token is signed with an asymmetric key that is unknown, or not known yet."""


class Key(NamedTuple):
    """A key and the algorithms it may be used with, never HMAC along with others."""

    key: Any
    algorithms: list[str]


class Claims(NamedTuple):
    """What is kept of a verified token. `keys` are the keys under which it may be revoked.

    `subject` is the user's id as it is in the token, `user_id` as it is in the database.
    """

    user_id: str
    subject: str
    expires: float
    issued: float
    session: str | None
    keys: tuple[str, ...]

    def have_expired(self) -> bool:
        """Return whether the token has expired, with a leeway for differing clocks."""
        return self.expires <= time.time() - LEEWAY_SECONDS


class ExpiredToken(Exception):
    """The token was valid until it expired; its claims still say whose it was."""

    def __init__(self, claims: Claims) -> None:
        super().__init__("expired")
        self.claims = claims


def read_keys(document: object) -> dict[str, Key]:
    """Read a JSON Web Key Set (RFC 7517). Keys that cannot be used here are skipped.

    Raise `ValueError` if it is not a key set.
    """
    keys = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(keys, list) or len(keys) > MAX_KEYS:
        raise ValueError("not a JSON Web Key Set")
    found = {}
    for item in keys:
        if isinstance(item, dict) and isinstance(item.get("kid"), str) and (key := _key(item)):
            found[item["kid"]] = key
    return found


def _key(item: dict[str, Any]) -> Key | None:
    """Return a key (RFC 7517, RFC 7518 section 6) if it is public, for signatures, long enough."""
    kind, curve, algorithm = (item.get(name) for name in ("kty", "crv", "alg"))
    possible = _ALGORITHMS.get("RSA" if kind == "RSA" else f"{kind} {curve}", [])
    algorithms = [name for names in possible if algorithm in (None, *names) for name in names]
    if not algorithms or "d" in item or item.get("use", "sig") != "sig":
        return None
    try:
        key = jwt.PyJWK(item, algorithms[0]).key
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
    if kind == "RSA" and key.key_size < MIN_RSA_BITS:
        return None
    return Key(key, algorithms)


class Issued(NamedTuple):
    """The issuer and audience that a token must have; None is not checked."""

    issuer: str | None = None
    audience: str | None = None


class Verifier:
    """Verifies JSON Web Tokens (RFC 7519) signed with the shared secret or with trusted keys."""

    def __init__(
        self,
        secret: str,
        *,
        shared: Issued = Issued(),  # noqa: B008  (immutable)
        foreign: Issued = Issued(),  # noqa: B008
        user_claims: Sequence[str] = ("user_id", "sub"),
    ) -> None:
        """Take the secret, and what tokens of the secret and of published keys must contain."""
        self._secret = Key(secret.encode(), ["HS256"])
        self._shared, self._foreign = shared, foreign
        self._user_claims = user_claims
        self._keys: Mapping[str, Key] = {}
        # Verifying costs more than all else in a request, and clients send a token many times.
        # Exceptions are not cached, so that bad tokens cannot evict good ones.
        self._claims = lru_cache(CACHED_TOKENS)(self._verify)

    def trust(self, keys: Mapping[str, Key]) -> None:
        """Accept tokens of these keys, by `kid`, and of no others from now on."""
        if keys != self._keys:
            self._keys = keys
            self._claims.cache_clear()

    def claims(self, token: str) -> Claims:
        """Return the token's claims.

        Raise `ExpiredToken`, `UnknownKey`, or `InvalidToken` for anything else wrong with it.
        """
        claims = self._claims(token)
        if claims.have_expired():
            raise ExpiredToken(claims)
        return claims

    def _verify(self, token: str) -> Claims:
        if not _COMPACT.fullmatch(token):  # PyJWT would also accept padding
            for form, detail in _MISTAKES:
                if re.fullmatch(form, token):
                    raise ClientMistake(detail)
            raise InvalidToken("not three parts of base64url")
        try:
            header = jwt.get_unverified_header(token)
            if header.get("alg") != "HS256":
                return self._their_claims(token, header.get("kid"))
            if header.get("typ") == ACCESS_TOKEN_TYPE:
                return _our_claims(_decode(token, self._secret, Issued(ISSUER)))
            payload = _decode(token, self._secret, self._shared)
        except jwt.InvalidTokenError as error:
            raise InvalidToken(type(error).__name__) from error
        user_id = self._user(payload)
        if user_id.startswith((LOCAL, FOREIGN)):
            raise InvalidToken("user id has a prefix that is reserved here")
        return _others_claims(user_id, user_id, payload, token)

    def _their_claims(self, token: str, kid: str | None) -> Claims:
        key = self._keys.get(kid or "")
        if key is None:
            raise UnknownKey("signed with an unknown key")
        payload = _decode(token, key, self._foreign, "azp", "client_id")
        subject = self._user(payload)
        return _others_claims(FOREIGN + subject, subject, payload, token)

    def _user(self, payload: dict[str, Any]) -> str:
        """Return the first user claim that is present; a bad one is not skipped for the next."""
        for claim in self._user_claims:
            if claim in payload:
                return _sane_user_id(payload[claim])
        raise InvalidToken("no user id")


def _decode(token: str, key: Key, issued: Issued, *stand_ins: str) -> dict[str, Any]:
    """Return the claims. Without `aud`, the first stand-in that is there says for whom they are."""
    payload = jwt.decode(
        token,
        key.key,
        algorithms=key.algorithms,
        issuer=issued.issuer,
        leeway=LEEWAY_SECONDS,
        # Expiry is checked on every call, because the result of this is cached.
        options={"verify_exp": False, "verify_aud": False},
    )
    if issued.audience is not None:
        given = [payload[claim] for claim in stand_ins if claim in payload]
        named = payload.get("aud", given[:1])
        if issued.audience not in (named if isinstance(named, list) else [named]):
            raise InvalidToken("for another audience")
    return payload


def _our_claims(payload: dict[str, Any]) -> Claims:
    user_id, session = _sane_user_id(payload.get("sub")), payload.get("sid")
    if not (isinstance(session, str) and _SESSION.fullmatch(session) and user_id.startswith(LOCAL)):
        raise InvalidToken("no session of a user that signed up here")
    # Deleting an account revokes all of the user's tokens, and its id is never reused.
    keys = (SESSION_KEY + session, USER_KEY + user_id)
    return Claims(user_id, user_id, _expiry(payload), -math.inf, session, keys)


def _others_claims(user_id: str, subject: str, payload: dict[str, Any], token: str) -> Claims:
    issued = _moment(payload, "iat") if "iat" in payload else -math.inf
    # Without a `jti` a token is known by what was signed, never by the whole of it, because a
    # signature can be encoded in several ways.
    known_by = repr(payload.get("jti") or token.rpartition(".")[0])
    token_key = TOKEN_KEY + sha256(f"{user_id} {known_by}".encode()).hexdigest()
    keys = (USER_KEY + user_id, token_key)
    return Claims(user_id, subject, _expiry(payload), issued, None, keys)


def _sane_user_id(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_USER_ID_LENGTH:
        raise InvalidToken("user id is not a string of 1 to 255 characters")
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise InvalidToken("user id cannot be stored")
    return value


def _expiry(payload: dict[str, Any]) -> float:
    expires = _moment(payload, "exp")
    if expires > time.time() + MAX_LIFETIME_SECONDS + LEEWAY_SECONDS:
        raise ClientMistake(
            "exp is more than ten years ahead: it counts seconds, not milliseconds."
        )
    return expires


def _moment(payload: dict[str, Any], claim: str) -> float:
    moment = payload.get(claim)
    if isinstance(moment, bool) or not isinstance(moment, int | float):
        raise InvalidToken(f"{claim} is missing or not a number")
    # An integer may be larger than any float.
    if not -sys.float_info.max <= moment <= sys.float_info.max:
        raise InvalidToken(f"{claim} is not finite")
    return float(moment)


class Issuer:
    """Issues the tokens of users that sign in here."""

    def __init__(self, secret: str, access_token_seconds: int) -> None:
        self._key = secret.encode()
        self._refresh_key = _derived(secret, "refresh token")
        self._name_key = _derived(secret, "name in the log")
        self._lifetime = access_token_seconds

    def access_token(self, user_id: str, session: str) -> str:
        """Return a signed access token (RFC 9068) of a session."""
        now = time.time()
        claims = {
            "iss": ISSUER,
            "sub": user_id,
            "sid": session,
            "iat": int(now),
            "exp": int(now) + self._lifetime,
            "jti": secrets.token_hex(16),
        }
        return jwt.encode(claims, self._key, "HS256", headers={"typ": ACCESS_TOKEN_TYPE})

    def refresh_token(self, session: str, counter: int) -> str:
        """Return a session's refresh token; the same counter gives the same token."""
        signed = f"{session}.{counter}"
        return f"{signed}.{hmac.digest(self._refresh_key, signed.encode(), 'sha256').hex()}"

    def read_refresh_token(self, token: str) -> tuple[str, int]:
        """Return session and counter of a token issued here. Raise `InvalidToken` otherwise."""
        match = _REFRESH_TOKEN.fullmatch(token)
        if not match:
            raise InvalidToken("malformed refresh token")
        session, counter = match[1], int(match[2])
        if not hmac.compare_digest(token, self.refresh_token(session, counter)):
            raise InvalidToken("forged refresh token")
        return session, counter

    def name(self, email_key: str) -> str:
        """Return a pseudonym for an email in the log: its lines can be found, it cannot be read."""
        return hmac.digest(self._name_key, email_key.encode(), "sha256").hex()[:12]


class Cursors:
    """Signs places in lists, so that each is valid for one user and one query only."""

    def __init__(self, secret: str) -> None:
        self._key = _derived(secret, "cursor")

    def cursor(self, place: bytes, context: bytes) -> str:
        """Return the cursor of a place."""
        # Keyed BLAKE2 (RFC 7693), which costs a third of HMAC.
        signed = blake2b(context).digest() + place
        mac = blake2b(signed, key=self._key, digest_size=CURSOR_MAC_BYTES)
        return urlsafe_b64encode(mac.digest() + place).rstrip(b"=").decode()

    def place(self, cursor: str, context: bytes) -> bytes:
        """Return a cursor's place. Raise `ValueError` if it is another's, or of another context."""
        place = urlsafe_b64decode(cursor.encode() + b"=" * (-len(cursor) % 4))[CURSOR_MAC_BYTES:]
        # Compare the whole cursor, because decoding may skip what is not base64url.
        if not hmac.compare_digest(cursor.encode(), self.cursor(place, context).encode()):
            raise ValueError("was not issued here")
        return place


def _derived(secret: str, purpose: str) -> bytes:
    """Derive a key for one purpose, so that a signature for one is never valid for another."""
    return hmac.digest(secret.encode(), f"todo-api {purpose}".encode(), "sha256")


def new_session() -> str:
    """Return a new session id, which nobody can guess."""
    return secrets.token_hex(16)


def new_user_id() -> str:
    """Return an id for a user that signs up here, which no other issuer's user can have."""
    return LOCAL + secrets.token_hex(16)
