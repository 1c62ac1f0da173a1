"""Everything the environment decides: one frozen object, validated at startup."""

import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import parse_qsl, urlencode, urlsplit

import limits
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from errors import plainly

PROJECT = Path(__file__).parent
STARTUP_FAILURE = 3  # by this exit code a uvicorn worker tells its parent not to restart it

_LIBPQ_PARAMETER = re.compile(
    "host|port|user|password|dbname|options|application_name|target_session_attrs"
    "|ssl(mode|cert|key|rootcert|crl|negotiation)|ssl_(min|max)_protocol_version"
)
_LONGEST_WINDOW = 10**9  # seconds
_ADVICE = "make one with: openssl rand -base64 32"
_LABEL = r"[a-z0-9_-]+(\*[a-z0-9_-]+)?"
_ORIGIN = re.compile(
    r"(?!.*\*.*\*)[a-z][a-z0-9+.-]*://"
    rf"(\[[0-9a-f:.]+\]|{_LABEL}(\.{_LABEL})*)(:[1-9][0-9]*)?"
)
_WRONG_ORIGINS = {
    r"^\*$": "* is refused because credentials are allowed; list origins: https://app.example.com",
    r"\*": (
        "takes one *, inside a label of the host, with text on both sides: "
        "https://todo-*-team.vercel.app"
    ),
    r"[\s;]|^\[": "needs commas between origins, and nothing around them",
    r"^(?!.*://)": "needs https:// in front of an origin: https://app.example.com",
    r"[^\x00-\x7f]": "needs hosts as browsers send them, in ASCII: https://xn--mnchen-3ya.example",
    r"://[^/]*/": "takes origins without a path: https://app.example.com",
    r"": "must look like https://app.example.com",
}
"""What keeps a text from being an origin, in the order of asking."""
_DEFAULT_PORTS = {"https": ":443", "http": ":80"}
_SSL_MODES = {
    mode: mode for mode in ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
} | {"true": "require", "1": "require"}


def _as_pasted(value: str) -> str:
    """Take off what pasting adds: white space, and one pair of quotes."""
    value = value.strip()
    is_quoted = value[:1] in {"'", '"'} and value[0] == value[-1] and value.count(value[0]) == 2
    return value[1:-1].strip() if is_quoted else value


def _url_for_psql(text: str) -> str:
    """Take the URL out of the command `psql 'postgresql://...'`, which some providers show."""
    url = _as_pasted(re.sub(r"^psql\s+", "", text))
    if re.match(r"postgres\S*\s", url):
        raise ValueError("has white space in it; write the URL alone, and %20 for a space in it")
    return url


def _postgres_url(url: str) -> str:
    """Accept a URL in the form that Neon, Heroku, Supabase, Prisma or SQLAlchemy use.

    asyncpg sends every unknown parameter to the server, which then refuses the connection, so those
    of other drivers (`channel_binding`, `pgbouncer`, `schema`, ...) are dropped.
    """
    if not re.match(r"postgres(ql)?(\+\w+)?://", url):
        raise ValueError("must look like postgresql://user:password@host:5432/database")
    try:
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query))
        user, _, hosts = parts.netloc.rpartition("@")
        each = [urlsplit(f"//{host}") for host in hosts.split(",")]
        has_hosts = all(host.hostname and host.port != 0 for host in each)
        addressed = has_hosts or (not hosts and query.get("host"))
    except ValueError:
        addressed = False
    if not addressed or "@" in user:
        raise ValueError(
            "has no readable host and port; percent-encode special characters in the password"
        )
    if mode := _SSL_MODES.get(query.get("ssl", "")):
        query.setdefault("sslmode", mode)
    kept = {name: value for name, value in query.items() if _LIBPQ_PARAMETER.fullmatch(name)}
    return f"postgresql://{parts.netloc}{parts.path}" + (f"?{urlencode(kept)}" if kept else "")


def _long_enough(secret: str) -> str:
    if secret.splitlines() != [secret]:
        raise ValueError("has a line end in it; write it on one line")
    if len(secret.encode()) < 32:
        raise ValueError("needs at least 32 bytes; " + _ADVICE)
    return secret


def _split(value: object) -> object:
    if not isinstance(value, str):
        return value
    return [part for each in value.split(",") if (part := _as_pasted(each))]


def _limit(value: str) -> str:
    with suppress(ValueError):
        (limit,) = limits.parse_many(value)
        if limit.amount and limit.get_expiry() <= _LONGEST_WINDOW:
            return value
    raise ValueError("must look like 600/minute, or be empty for no limit")


def _storage(url: str) -> str:
    if not re.match(r"async\+(memory://$|(rediss?|redis\+(unix|cluster|sentinel))://)", url):
        raise ValueError("must look like async+redis://host:6379")
    return url


def _http_url(url: str) -> str:
    with suppress(ValueError):
        parts = urlsplit(url)
        located = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
        if located and url.isascii() and url.isprintable() and not re.search(r"[\s#@*]", url):
            return url.rstrip("/")
    raise ValueError("must look like https://app.example.com")


def _origin(url: str) -> str:
    """Return an origin as browsers send it: in lower case, without the scheme's default port."""
    if urlsplit(url).path or "?" in url:
        raise ValueError("must be an origin, like https://app.example.com, without a path")
    origin = url.lower()
    return origin.removesuffix(_DEFAULT_PORTS.get(urlsplit(origin).scheme, ""))


def _allowed_origin(text: str) -> str:
    """Return an origin as browsers send it, with at most one `*` for a part of a label."""
    with suppress(ValueError):
        origin = _origin(text.rstrip("/"))
        if _ORIGIN.fullmatch(origin) and urlsplit(origin).port != 0:
            return origin
    raise ValueError(next(why for wrong, why in _WRONG_ORIGINS.items() if re.search(wrong, text)))


PostgresURL = Annotated[str, AfterValidator(_url_for_psql), AfterValidator(_postgres_url)]
Secret = Annotated[str, AfterValidator(_long_enough)]
HTTPURL = Annotated[str, AfterValidator(_http_url)]
Origin = Annotated[HTTPURL, AfterValidator(_origin)]
RateLimit = Annotated[str, AfterValidator(_limit)]
Storage = Annotated[str, AfterValidator(_storage)]
CommaSeparated = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Origins = Annotated[
    tuple[Annotated[str, AfterValidator(_allowed_origin)], ...], NoDecode, BeforeValidator(_split)
]
AnyCase = BeforeValidator(str.lower)


class Settings(BaseSettings):
    """The settings, read by their upper-case names from the environment and `.env`."""

    model_config = SettingsConfigDict(
        env_file=PROJECT / ".env", env_file_encoding="utf-8-sig", extra="ignore", frozen=True
    )

    database_url: PostgresURL | None = Field(default=None, repr=False)
    database_pooler: bool | None = None
    database_pool_size: int = Field(default=10, ge=1, le=1000)
    migrate_on_start: bool = True
    better_auth_secret: Secret | None = Field(default=None, repr=False)
    better_auth_url: Origin | None = None
    jwks_url: HTTPURL | None = None
    jwt_issuer: str | None = None
    jwt_audience: str | None = None
    jwt_user_claims: CommaSeparated = Field(default=("user_id", "sub"), min_length=1)
    access_token_seconds: int = Field(default=900, ge=10, le=86_400)
    refresh_idle_days: int = Field(default=7, ge=1, le=365)
    refresh_max_days: int = Field(default=30, ge=1, le=3650)
    cookie_secure: bool = True
    cookie_samesite: Annotated[Literal["lax", "strict", "none"], AnyCase] = "lax"
    cors_origins: Origins = ("http://localhost:3000", "http://localhost:5173")
    trusted_proxy_hops: int = Field(default=0, ge=0, le=20)
    pages: bool = True
    unknown_fields: Annotated[Literal["refuse", "ignore"], AnyCase] = "refuse"
    rate_limit: RateLimit | None = "600/minute"
    auth_rate_limit: RateLimit | None = "10/minute"
    refresh_rate_limit: RateLimit | None = "30/minute"
    rate_limit_storage: Storage = Field(default="async+memory://", repr=False)
    log_level: Annotated[Literal["debug", "info", "warning", "error"], AnyCase] = "info"
    log_format: Annotated[Literal["json", "text"], AnyCase] = Field(
        default_factory=lambda: "text" if sys.stdout and sys.stdout.isatty() else "json"
    )

    @property
    def key_set_url(self) -> str | None:
        """Where the keys of asymmetric tokens are published, if such tokens are accepted."""
        return self.jwks_url or (self.better_auth_url and f"{self.better_auth_url}/api/auth/jwks")

    @property
    def origin_pattern(self) -> str:
        """The regular expression of all origins that may call."""
        patterns = [re.escape(each).replace(r"\*", "[a-z0-9-]+") for each in self.cors_origins]
        return "|".join(patterns) or "(?!)"  # without any, nothing matches

    @model_validator(mode="before")
    @classmethod
    def _empty_is_the_default(cls, values: dict[str, object]) -> dict[str, object]:
        """Ignore empty settings, except an empty rate limit, which means no limit."""
        pasted = {
            name: _as_pasted(value) if isinstance(value, str) else value
            for name, value in values.items()
        }
        return {
            name: None if value == "" else value
            for name, value in pasted.items()
            if value != "" or name.endswith("rate_limit")
        }

    @field_validator("*", mode="before")
    @classmethod
    def _utf_8(cls, value: object) -> object:
        if re.search("[\ud800-\udfff]", str(value)):  # how Python reads other bytes
            raise ValueError("is not UTF-8")
        return value

    @model_validator(mode="after")
    def _what_goes_together(self) -> Self:
        if self.database_url and not self.better_auth_secret:
            raise ValueError("BETTER_AUTH_SECRET: is required with DATABASE_URL; " + _ADVICE)
        expected = self.better_auth_url or (self.jwt_issuer and self.jwt_audience)
        if self.jwks_url and not expected:
            raise ValueError("JWKS_URL: needs JWT_ISSUER and JWT_AUDIENCE, or BETTER_AUTH_URL")
        if self.cookie_samesite == "none" and not self.cookie_secure:
            raise ValueError("COOKIE_SAMESITE: none needs COOKIE_SECURE=true, or browsers drop it")
        return self


def load() -> Settings:
    """Read the settings, or exit with one line that names the wrong one."""
    try:
        return Settings()
    except UnicodeDecodeError:
        wrong = ".env: is not UTF-8; save it as that"
    except ValidationError as error:
        first = error.errors()[0]
        name = "".join(f"{part}".upper() + ": " for part in first["loc"][:1])
        wrong = name + plainly(first)
    print(wrong, file=sys.stderr)
    sys.exit(STARTUP_FAILURE)
