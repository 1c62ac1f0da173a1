"""What the environment decides, and how a wrong setting is reported."""

import re
import subprocess
import sys
from pathlib import Path

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


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        ({"DATABASE_URL": "mysql://h/d"}, "DATABASE_URL: must look like postgresql://"),
        ({"DATABASE_URL": "hello"}, "DATABASE_URL: must look like postgresql://"),
        ({"DATABASE_URL": "postgresql://u:a/b@h/d"}, "DATABASE_URL: has no readable host and port"),
        ({"DATABASE_URL": "postgresql:///d"}, "DATABASE_URL: has no readable host and port"),
        ({"DATABASE_URL": URL}, "BETTER_AUTH_SECRET: is required with DATABASE_URL"),
        ({"BETTER_AUTH_SECRET": "canary"}, "BETTER_AUTH_SECRET: needs at least 32 bytes"),
        ({"DATABASE_POOL_SIZE": "0"}, "DATABASE_POOL_SIZE: "),
        ({"DATABASE_POOL_SIZE": "ten"}, "DATABASE_POOL_SIZE: "),
        ({"DATABASE_POOLER": "maybe"}, "DATABASE_POOLER: "),
        ({"MIGRATE_ON_START": "2"}, "MIGRATE_ON_START: "),
        ({"DATABASE_URL": "postgresql://u:a@b@h/d"}, "DATABASE_URL: has no readable host and port"),
        ({"DATABASE_URL": "postgresql://u:a[b@h/d"}, "DATABASE_URL: has no readable host and port"),
        ({"JWT_USER_CLAIMS": ","}, "JWT_USER_CLAIMS: "),
        ({"CORS_ORIGINS": "*"}, "CORS_ORIGINS: lists exact origins"),
        ({"CORS_ORIGINS": "https://*.example"}, "CORS_ORIGINS: lists exact origins"),
        ({"CORS_ORIGINS": "https://a.example/b"}, "CORS_ORIGINS: lists exact origins"),
        ({"CORS_ORIGINS": "a.example"}, "CORS_ORIGINS: lists exact origins"),
        ({"CORS_ORIGINS": "https://a.example?b"}, "CORS_ORIGINS: lists exact origins"),
        ({"CORS_ORIGINS": "https://a.example#b"}, "CORS_ORIGINS: lists exact origins"),
        ({"CORS_ORIGINS": "https://a@b.example"}, "CORS_ORIGINS: lists exact origins"),
        ({"BETTER_AUTH_URL": "app.example"}, "BETTER_AUTH_URL: must look like https://"),
        ({"BETTER_AUTH_URL": "ftp://app.example"}, "BETTER_AUTH_URL: must look like https://"),
        ({"BETTER_AUTH_URL": "https://u:canary@a.example"}, "BETTER_AUTH_URL: must look like"),
        ({"JWKS_URL": "http://[x"}, "JWKS_URL: must look like https://"),
        ({"JWKS_URL": "https://a.example:99999"}, "JWKS_URL: must look like https://"),
        ({"BETTER_AUTH_URL": "https://a.example/api/auth"}, "BETTER_AUTH_URL: must be an origin"),
        ({"BETTER_AUTH_URL": "https://a.example?x"}, "BETTER_AUTH_URL: must be an origin"),
        ({"JWKS_URL": "https://a.example"}, "JWKS_URL: needs JWT_ISSUER and JWT_AUDIENCE"),
        ({"TRUSTED_PROXY_HOPS": "-1"}, "TRUSTED_PROXY_HOPS: must be 0 or more"),
        ({"TRUSTED_PROXY_HOPS": "21"}, "TRUSTED_PROXY_HOPS: must be 20 or less"),
        ({"TRUSTED_PROXY_HOPS": "1.5"}, "TRUSTED_PROXY_HOPS: must be a number"),
        ({"TRUSTED_PROXY_HOPS": "10.0.0.5"}, "TRUSTED_PROXY_HOPS: must be a number"),
        ({"TRUSTED_PROXY_HOPS": "*"}, "TRUSTED_PROXY_HOPS: must be a number"),
        ({"LOG_LEVEL": "loud"}, "LOG_LEVEL: "),
        ({"LOG_FORMAT": "xml"}, "LOG_FORMAT: "),
        ({"ACCESS_TOKEN_SECONDS": "0"}, "ACCESS_TOKEN_SECONDS: "),
        ({"REFRESH_IDLE_DAYS": "0"}, "REFRESH_IDLE_DAYS: "),
        ({"COOKIE_SAMESITE": "some"}, "COOKIE_SAMESITE: "),
        ({"COOKIE_SAMESITE": "none", "COOKIE_SECURE": "false"}, "COOKIE_SAMESITE: none needs"),
        ({"RATE_LIMIT": "many"}, "RATE_LIMIT: must look like 600/minute"),
        ({"CORS_ORIGINS": "https://a.example:99999"}, "CORS_ORIGINS: lists exact origins"),
        ({"CORS_ORIGINS": "https://m\u00fcnchen.example"}, "CORS_ORIGINS: lists exact origins"),
        ({"RATE_LIMIT": f"10/{'9' * 400} years"}, "RATE_LIMIT: must look like 600/minute"),
        ({"RATE_LIMIT": "0/minute"}, "RATE_LIMIT: must look like 600/minute"),
        ({"AUTH_RATE_LIMIT": "1/minute;5/hour"}, "AUTH_RATE_LIMIT: must look like 600/minute"),
        ({"RATE_LIMIT_STORAGE": "redis://canary"}, "RATE_LIMIT_STORAGE: must look like"),
        ({"RATE_LIMIT_STORAGE": "async+memory://canary"}, "RATE_LIMIT_STORAGE: must look like"),
    ],
)
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
    assert printed.startswith(line)
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
    assert capsys.readouterr().err == ".env: is not UTF-8\n"


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("https://App.Example:443/", "https://app.example"),
        ("HTTP://app.example:80", "http://app.example"),
        ("https://app.example:80", "https://app.example:80"),
        ("http://[::1]:443", "http://[::1]:443"),
    ],
)
def test_origins_are_compared_as_browsers_send_them(written: str, sent: str) -> None:
    assert Settings(cors_origins=(written,)).cors_origins == (sent,)


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
