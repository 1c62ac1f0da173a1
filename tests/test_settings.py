"""What the environment decides, and how a wrong setting is reported."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from settings import STARTUP_FAILURE, Settings, load

SECRET = "x" * 32
URL = "postgresql://u:p@db.example/todo"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Start from an empty environment and no .env."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setitem(Settings.model_config, "env_file", tmp_path / ".env")


def test_without_any_setting_the_defaults_hold() -> None:
    assert load().model_dump() == {
        "database_url": None,
        "database_pooler": None,
        "database_pool_size": 10,
        "migrate_on_start": True,
        "better_auth_secret": None,
        "better_auth_url": None,
        "jwks_url": None,
        "jwt_issuer": None,
        "jwt_audience": None,
        "jwt_user_claims": ("user_id", "sub"),
        "access_token_seconds": 900,
        "refresh_idle_days": 7,
        "refresh_max_days": 30,
        "cookie_secure": True,
        "cookie_samesite": "lax",
        "cors_origins": ("http://localhost:3000", "http://localhost:5173"),
        "trusted_proxy_hops": 0,
        "pages": True,
        "unknown_fields": "refuse",
        "rate_limit": "600/minute",
        "auth_rate_limit": "10/minute",
        "refresh_rate_limit": "30/minute",
        "rate_limit_storage": "async+memory://",
        "log_level": "info",
        "log_format": "json",
    }


def test_settings_come_from_the_environment_and_from_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text(
        f"DATABASE_URL={URL}\nBETTER_AUTH_SECRET={SECRET}\nLOG_LEVEL=debug\n"
    )
    monkeypatch.setenv("LOG_LEVEL", "ERROR")
    monkeypatch.setenv("CORS_ORIGINS", "https://a.example, https://b.example/,")

    settings = load()

    assert settings.database_url == URL
    assert settings.log_level == "error"
    assert settings.cors_origins == ("https://a.example", "https://b.example")


@pytest.mark.parametrize(
    ("handed_out", "used"),
    [
        # Neon
        (
            "postgresql://u:p@ep-x.eu.aws.neon.tech/db?sslmode=require&channel_binding=require",
            "postgresql://u:p@ep-x.eu.aws.neon.tech/db?sslmode=require",
        ),
        # Heroku
        ("postgres://u:p@ec2-1.compute.amazonaws.com:5432/d", None),
        # Supabase
        ("postgresql://postgres.ref:p%40ss@aws-0-eu.pooler.supabase.com:6543/postgres", None),
        # Prisma
        (
            "postgresql://u:p@h:5432/d?schema=public&pgbouncer=true&connection_limit=1",
            "postgresql://u:p@h:5432/d",
        ),
        # SQLAlchemy
        ("postgresql+asyncpg://u:p@h/d?ssl=require", "postgresql://u:p@h/d?sslmode=require"),
        ("postgresql://u:p@h/d?ssl=verify-full", "postgresql://u:p@h/d?sslmode=verify-full"),
        ("postgresql://u:p@h/d?ssl=true", "postgresql://u:p@h/d?sslmode=require"),
        (
            "postgresql://u:p@h/d?ssl=1&sslmode=verify-ca",
            "postgresql://u:p@h/d?sslmode=verify-ca",
        ),
        ("postgresql://u:p@h/d?ssl=maybe", "postgresql://u:p@h/d"),
        # certificates
        ("postgresql://u:p@h/d?sslcrl=a&ssl_min_protocol_version=TLSv1.3", None),
        # a socket
        ("postgresql:///d?host=/run/postgresql", "postgresql:///d?host=%2Frun%2Fpostgresql"),
    ],
)
def test_urls_are_taken_as_they_are_handed_out(handed_out: str, used: str | None) -> None:
    settings = Settings(database_url=handed_out, better_auth_secret=SECRET)

    assert settings.database_url == (used or handed_out.replace("postgres://", "postgresql://"))


CREDENTIALS = "* is refused because credentials are allowed; list origins: https://app.example.com"
INSIDE = (
    "takes one *, inside a label of the host, with text on both sides: https://todo-*-team.verc"
)
ORIGIN = "must look like https://app.example.com\n"
UNREADABLE = "has no readable host and port; percent-encode special characters in the password\n"
TRUE_OR_FALSE = "must be true or false\n"
REFUSED = [
    ({"DATABASE_URL": "mysql://h/d"}, "must look like postgresql://user:password@host:5432/data"),
    ({"DATABASE_URL": "hello"}, "must look like postgresql://"),
    ({"DATABASE_URL": "psql -h h -d d"}, "must look like postgresql://"),
    ({"DATABASE_URL": "psql 'postgresql://u:p@h/d' -c 'SELECT 1'"}, "must look like postgresql"),
    ({"DATABASE_URL": "postgresql://u:can ary@h/d"}, "has white space in it; write the URL alone"),
    ({"DATABASE_URL": "postgresql://u:p@h/d\npostgresql://u:p@h/d"}, "has white space in it;"),
    ({"DATABASE_URL": "postgresql://u:a/b@h/d"}, UNREADABLE),
    ({"DATABASE_URL": "postgresql:///d"}, UNREADABLE),
    ({"DATABASE_URL": "postgresql://u:a@b@h/d"}, UNREADABLE),
    ({"DATABASE_URL": "postgresql://u:a[b@h/d"}, UNREADABLE),
    ({"BETTER_AUTH_SECRET": "", "DATABASE_URL": URL}, "is required with DATABASE_URL; make one"),
    ({"BETTER_AUTH_SECRET": " \n", "DATABASE_URL": URL}, "is required with DATABASE_URL; make one"),
    ({"BETTER_AUTH_SECRET": "canary"}, "needs at least 32 bytes; make one with: openssl rand"),
    ({"BETTER_AUTH_SECRET": f"'{'x' * 31}'\n"}, "needs at least 32 bytes"),
    ({"BETTER_AUTH_SECRET": f"canary\n{SECRET}"}, "has a line end in it; write it on one line\n"),
    ({"BETTER_AUTH_SECRET": "canary\udcff" * 6}, "is not UTF-8\n"),
    ({"DATABASE_POOL_SIZE": "0"}, "must be 1 or more\n"),
    ({"DATABASE_POOL_SIZE": "1001"}, "must be 1000 or less\n"),
    ({"DATABASE_POOL_SIZE": "ten"}, "must be a whole number\n"),
    ({"DATABASE_POOL_SIZE": "1.5"}, "must be a whole number\n"),
    ({"DATABASE_POOL_SIZE": "9" * 5000}, "has too many digits\n"),
    ({"DATABASE_POOLER": "maybe"}, TRUE_OR_FALSE),
    ({"MIGRATE_ON_START": "2"}, TRUE_OR_FALSE),
    ({"JWT_ISSUER": "canary\udcff"}, "is not UTF-8\n"),
    ({"JWT_AUDIENCE": "canary\udcff"}, "is not UTF-8\n"),
    ({"JWT_USER_CLAIMS": ","}, "needs 1 or more values\n"),
    ({"TRUSTED_PROXY_HOPS": "-1"}, "must be 0 or more\n"),
    ({"TRUSTED_PROXY_HOPS": "21"}, "must be 20 or less\n"),
    ({"TRUSTED_PROXY_HOPS": "1.5"}, "must be a whole number\n"),
    ({"TRUSTED_PROXY_HOPS": "10.0.0.5"}, "must be a whole number\n"),
    ({"TRUSTED_PROXY_HOPS": "*"}, "must be a whole number\n"),
    ({"CORS_ORIGINS": "*"}, CREDENTIALS),
    ({"CORS_ORIGINS": "https://app.example.com, '*'"}, CREDENTIALS),
    ({"CORS_ORIGINS": "https://*"}, INSIDE),
    ({"CORS_ORIGINS": "https://*.example"}, INSIDE),
    ({"CORS_ORIGINS": "https://*-team.example"}, INSIDE),
    ({"CORS_ORIGINS": "https://todo-*.example"}, INSIDE),
    ({"CORS_ORIGINS": "https://todo-*-*-team.example"}, INSIDE),
    ({"CORS_ORIGINS": "https://a-*-b.c-*-d.example"}, INSIDE),
    ({"CORS_ORIGINS": "https://a-**-b.example"}, INSIDE),
    ({"CORS_ORIGINS": "https://a.example:8*0"}, INSIDE),
    ({"CORS_ORIGINS": "h*s://a.example"}, INSIDE),
    ({"CORS_ORIGINS": "https://[::1*1]"}, INSIDE),
    ({"CORS_ORIGINS": "https://a-*-b.example/c"}, INSIDE),
    ({"CORS_ORIGINS": "https://a.example https://b.example"}, "needs commas between origins"),
    ({"CORS_ORIGINS": "https://a.example;https://b.example"}, "needs commas between origins"),
    (
        {"CORS_ORIGINS": '["https://a.example", "https://b.example"]'},
        "needs commas between origins",
    ),
    (
        {"CORS_ORIGINS": "a.example"},
        "needs https:// in front of an origin: https://app.example.com",
    ),
    ({"CORS_ORIGINS": "localhost:3000"}, "needs https:// in front of an origin"),
    ({"CORS_ORIGINS": "null"}, "needs https:// in front of an origin"),
    (
        {"CORS_ORIGINS": "https://a.example/b"},
        "takes origins without a path: https://app.example.c",
    ),
    ({"CORS_ORIGINS": "capacitor://localhost/b"}, "takes origins without a path"),
    (
        {"CORS_ORIGINS": "https://m\u00fcnchen.example"},
        "needs hosts as browsers send them, in ASCII",
    ),
    ({"CORS_ORIGINS": "https://..."}, ORIGIN),
    ({"CORS_ORIGINS": "https://"}, ORIGIN),
    ({"CORS_ORIGINS": "https://a.example?b"}, ORIGIN),
    ({"CORS_ORIGINS": "https://a.example#b"}, ORIGIN),
    ({"CORS_ORIGINS": "https://canary@b.example"}, ORIGIN),
    ({"CORS_ORIGINS": "https://a.example:99999"}, ORIGIN),
    ({"CORS_ORIGINS": "https://a.example:0443"}, ORIGIN),
    ({"CORS_ORIGINS": "https://[::zz]"}, ORIGIN),
    ({"CORS_ORIGINS": "1x://localhost"}, ORIGIN),
    ({"BETTER_AUTH_URL": "app.example"}, ORIGIN),
    ({"BETTER_AUTH_URL": "ftp://app.example"}, ORIGIN),
    ({"BETTER_AUTH_URL": "https://u:canary@a.example"}, ORIGIN),
    ({"BETTER_AUTH_URL": "https://todo-*-team.example"}, ORIGIN),
    ({"BETTER_AUTH_URL": "https://a.example/api/auth"}, "must be an origin, like https://app.exa"),
    ({"BETTER_AUTH_URL": "https://a.example?x"}, "must be an origin, like https://app.example.com"),
    ({"JWKS_URL": "http://[x"}, ORIGIN),
    ({"JWKS_URL": "https://a.example:99999"}, ORIGIN),
    ({"JWKS_URL": "https://a.example"}, "needs JWT_ISSUER and JWT_AUDIENCE, or BETTER_AUTH_URL\n"),
    ({"LOG_LEVEL": "loud"}, "must be 'debug', 'info', 'warning' or 'error'\n"),
    ({"LOG_FORMAT": "xml"}, "must be 'json' or 'text'\n"),
    ({"ACCESS_TOKEN_SECONDS": "0"}, "must be 10 or more\n"),
    ({"REFRESH_IDLE_DAYS": "0"}, "must be 1 or more\n"),
    ({"REFRESH_MAX_DAYS": "3651"}, "must be 3650 or less\n"),
    ({"COOKIE_SECURE": "on https"}, TRUE_OR_FALSE),
    ({"COOKIE_SAMESITE": "some"}, "must be 'lax', 'strict' or 'none'\n"),
    ({"COOKIE_SAMESITE": "none", "COOKIE_SECURE": "false"}, "none needs COOKIE_SECURE=true"),
    ({"PAGES": "none"}, TRUE_OR_FALSE),
    ({"UNKNOWN_FIELDS": "drop"}, "must be 'refuse' or 'ignore'\n"),
    ({"RATE_LIMIT": "many"}, "must look like 600/minute, or be empty for no limit\n"),
    ({"RATE_LIMIT": f"10/{'9' * 400} years"}, "must look like 600/minute"),
    ({"RATE_LIMIT": "0/minute"}, "must look like 600/minute"),
    ({"AUTH_RATE_LIMIT": "1/minute;5/hour"}, "must look like 600/minute"),
    ({"REFRESH_RATE_LIMIT": "30"}, "must look like 600/minute"),
    ({"RATE_LIMIT_STORAGE": "redis://canary"}, "must look like async+redis://host:6379\n"),
    ({"RATE_LIMIT_STORAGE": "async+memory://canary"}, "must look like async+redis://host:6379\n"),
]
"""Settings of which the first is refused, and what is said of it."""


def test_every_setting_has_wrong_values() -> None:
    refused = {next(iter(environment)) for environment, _ in REFUSED}

    assert refused == {name.upper() for name in Settings.model_fields}


@pytest.mark.parametrize(("environment", "line"), REFUSED)
def test_a_wrong_setting_ends_the_start_with_one_line_that_names_it(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    environment: dict[str, str],
    line: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(SystemExit) as ended:
        load()

    printed = capsys.readouterr().err
    assert ended.value.code == STARTUP_FAILURE
    assert printed.startswith(f"{next(iter(environment))}: {line}")
    assert printed.count("\n") == 1
    assert "canary" not in printed


def test_an_empty_rate_limit_is_off_and_all_else_that_is_empty_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in Settings.model_fields:
        monkeypatch.setenv(name.upper(), "")

    settings = load()

    assert settings.rate_limit is settings.auth_rate_limit is settings.refresh_rate_limit is None
    assert settings == Settings(rate_limit="", auth_rate_limit="", refresh_rate_limit="")


@pytest.mark.parametrize(("said", "pooler"), [("", None), ("true", True), ("false", False)])
def test_a_pooler_is_found_out_unless_it_is_said(
    monkeypatch: pytest.MonkeyPatch, said: str, pooler: bool | None
) -> None:
    monkeypatch.setenv("DATABASE_POOLER", said)

    assert load().database_pooler is pooler


def test_a_file_that_is_not_utf_8_ends_the_start_with_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / ".env").write_bytes("LOG_LEVEL=info\n".encode("utf-16"))

    with pytest.raises(SystemExit) as ended:
        load()

    assert ended.value.code == STARTUP_FAILURE
    assert capsys.readouterr().err == ".env: is not UTF-8; save it as that\n"


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("https://App.Example:443/", "https://app.example"),
        ("HTTP://app.example:80", "http://app.example"),
        ("https://app.example:80", "https://app.example:80"),
        ("http://[::1]:443", "http://[::1]:443"),
        ("https://Todo-*-Team.Vercel.App:443/", "https://todo-*-team.vercel.app"),
        ("http://todo-*-x.localhost:3000", "http://todo-*-x.localhost:3000"),
        ("Capacitor://localhost/", "capacitor://localhost"),
        ("tauri://localhost:80", "tauri://localhost:80"),
        ("chrome-extension://abcdefghijklmnopabcdefghijklmnop", None),
        ("http://my_host:8080", None),
    ],
)
def test_origins_are_compared_as_browsers_send_them(written: str, sent: str | None) -> None:
    assert Settings(cors_origins=(written,)).cors_origins == (sent or written,)


@pytest.mark.parametrize(
    "around", ["{}", " {}\t", "{}\r\n", "'{}'", '"{}"', ' "{}" \n', "'{}\n'", "\u00a0{}\u00a0"]
)
def test_what_pasting_adds_is_taken_off(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, around: str
) -> None:
    values: dict[str, Any] = {
        "BETTER_AUTH_SECRET": SECRET,
        "DATABASE_URL": URL,
        "DATABASE_POOL_SIZE": "7",
        "MIGRATE_ON_START": "no",
        "CORS_ORIGINS": "https://a.example,https://b.example",
        "LOG_LEVEL": "Error",
        "JWT_ISSUER": "me",
        "RATE_LIMIT": "",
    }
    plain = Settings(**{name.lower(): value for name, value in values.items()})
    for name, value in values.items():
        monkeypatch.setenv(name, around.format(value))

    assert load() == plain
    if "\n" not in around:
        for name in values:
            monkeypatch.delenv(name)
        lines = [f"{name}={around.format(value)}\n" for name, value in values.items()]
        (tmp_path / ".env").write_text("".join(lines), "utf-8")
        assert load() == plain


@pytest.mark.parametrize("secret", [f"{SECRET}'", f"'{SECRET}", f"'{SECRET}\"", f"'a'{SECRET}'b'"])
def test_quotes_that_are_no_pair_belong_to_the_secret(secret: str) -> None:
    assert Settings(better_auth_secret=secret).better_auth_secret == secret


@pytest.mark.parametrize(
    "pasted", ["psql '{}'", 'psql "{}"', "psql  {}", "\"psql '{}'\"", " psql '{}'\n", "'psql {}'"]
)
def test_a_url_may_be_pasted_as_the_command_that_uses_it(pasted: str) -> None:
    settings = Settings(database_url=pasted.format(URL), better_auth_secret=SECRET)

    assert settings.database_url == URL


def test_origins_may_be_quoted_one_by_one() -> None:
    quoted: Any = "'https://a.example', \"https://b.example\""

    assert Settings(cors_origins=quoted).cors_origins == ("https://a.example", "https://b.example")


def test_the_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"BETTER_AUTH_SECRET={SECRET}\n", "utf-8-sig")

    assert load().better_auth_secret == SECRET


def test_the_issuer_is_named_as_urls_are_written() -> None:
    assert Settings(better_auth_url="https://App.Example:443/").better_auth_url == (
        "https://app.example"
    )


def test_keys_are_published_by_better_auth_or_where_it_is_said() -> None:
    ours, elsewhere = "https://app.example/", "https://idp.example/keys"

    assert Settings().key_set_url is None
    assert Settings(better_auth_url=ours).key_set_url == "https://app.example/api/auth/jwks"
    assert Settings(better_auth_url=ours, jwks_url=elsewhere).key_set_url == elsewhere


def test_the_example_lists_exactly_the_settings(project: Path) -> None:
    named = re.findall(
        r"^#?\s?([A-Z][A-Z_]+)=", (project / ".env.example").read_text(), re.MULTILINE
    )

    assert sorted(named) == sorted(name.upper() for name in Settings.model_fields)


def test_secrets_are_not_in_the_representation() -> None:
    settings = Settings(database_url=URL, better_auth_secret=SECRET)

    assert SECRET not in repr(settings)
    assert ":p@" not in repr(settings)


def test_the_service_says_the_line_and_nothing_else(project: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "uvicorn", "main:app"],
        cwd=project,
        env={"PATH": "", "CORS_ORIGINS": "*", "DATABASE_URL": ""},
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == STARTUP_FAILURE
    assert ended.stderr.startswith("CORS_ORIGINS: ")
    assert ended.stderr.count("\n") == 1
    assert ended.stdout == ""
