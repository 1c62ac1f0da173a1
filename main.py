"""The service, assembled in one place."""

import contextlib
import gc
import logging
import os
import sys
from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

import db
import errors
import logs
import settings
from live import Live
from middleware import CORS, Envelope, ignore_trailers
from openapi import TAGS, Service, operation_id
from passwords import Passwords
from rate_limits import RateLimits
from revocations import Revocations
from routes import auth, health, pages, tags, tasks
from routing import FastPath
from security import Cursors, Issued, Issuer, Verifier

DESCRIPTION = """
Every call sees only the data of the user named in the token.

**Sign in**: register below, then press *Authorize* and enter your email and password. Or paste a
token: a JWT from Better Auth's `jwt` plugin, or an HS256 JWT signed with `BETTER_AUTH_SECRET`
(`uv run make_token.py ada` makes one for user `ada`).

**Paths**: everything under `/api/tasks` is also served at `/api/{user_id}/tasks`, for frontends
that put the user id in the path; an id other than the token's is refused with 403. A trailing slash
makes no difference.

**Errors** (status 400 and up) are `application/problem+json` (RFC 9457). `detail` is a sentence for
people, `code` is stable and meant for programs, `request_id` finds the request in the log.
"""

EXPOSED_HEADERS = [
    *("ETag", "Location", "Link", "Retry-After", "RateLimit", "RateLimit-Policy"),
    *("Idempotency-Replayed", "WWW-Authenticate", "X-Request-ID"),
]


PLATFORMS = ["RENDER", "DYNO", "K_SERVICE", "FLY_APP_NAME", "RAILWAY_ENVIRONMENT", "SPACE_ID"]
"""Variables by which platforms name themselves on whose disks nothing lasts."""

logger = logging.getLogger("todo")


def warn_of_loss(configured: settings.Settings) -> None:
    """Say it loudly if whatever is stored will be lost."""
    platform = next((name for name in PLATFORMS if os.environ.get(name)), None)
    if platform and not configured.database_url:
        advice = "the value of POSTGRES_URL" if os.environ.get("POSTGRES_URL") else "a PostgreSQL"
        logger.warning(
            "EVERYTHING THAT IS STORED WILL BE GONE with the next deploy or restart: DATABASE_URL "
            "is not set, and on this platform (%s is set) no disk lasts; set DATABASE_URL to %s",
            platform,
            advice,
        )


@contextlib.asynccontextmanager
async def _published_keys(app: FastAPI, url: str | None) -> AsyncIterator[None]:
    app.state.key_set = None
    if not url:
        yield
        return
    from key_set import KeySet  # noqa: PLC0415  (httpx takes 6 MiB, and not all deployments need it)

    async with KeySet(url, app.state.verifier).kept_up() as app.state.key_set:
        yield


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open what the routes share, in `app.state`, until the service stops."""
    configured: settings.Settings = app.state.settings
    logs.configure(configured)  # again: `fastapi run` lets uvicorn do so after the import
    warn_of_loss(configured)
    with db.locate(configured) as database, contextlib.closing(Passwords()) as app.state.passwords:
        app.state.rate_limits = RateLimits(configured)
        app.state.issuer = Issuer(database.secret, configured.access_token_seconds)
        app.state.cursors = Cursors(database.secret)
        app.state.verifier = Verifier(
            database.secret,
            shared=Issued(configured.jwt_issuer, configured.jwt_audience),
            foreign=Issued(
                configured.jwt_issuer or configured.better_auth_url,
                configured.jwt_audience or configured.better_auth_url,
            ),
            user_claims=configured.jwt_user_claims,
        )
        async with db.connect(configured, database.url):
            app.state.revocations = Revocations(configured)
            app.state.live = Live(database.url, app.state.revocations)
            async with (
                app.state.revocations.kept_up(),
                _published_keys(app, configured.key_set_url),
                app.state.live.kept_up(),
            ):
                # What exists now is permanent: a full collection pauses for 1 ms, not for 75.
                gc.freeze()
                gc.set_threshold(10_000)  # a request makes many objects but hardly any cycles
                app.state.is_started = True
                yield


def create_app(configured: settings.Settings) -> FastAPI:
    """Assemble the service. Nothing is opened until it starts."""
    logs.configure(configured)
    ignore_trailers()
    # Else nobody sets up OpenTelemetry, which FastAPI would ask at every request, for 7 us.
    is_watched = "opentelemetry.sdk" in sys.modules or any("OTEL_" in name for name in os.environ)
    app = Service(
        title="Todo API",
        version="0.1.0",
        description=DESCRIPTION,
        openapi_tags=TAGS,
        servers=[{"url": "/"}],
        lifespan=lifespan,
        middleware=[
            Middleware(Envelope, trusted_proxy_hops=configured.trusted_proxy_hops),
            Middleware(
                CORS,
                allow_origin_regex=configured.origin_pattern,
                allow_credentials=True,
                allow_methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"],
                allow_headers=["*"],
                allow_private_network=True,
                expose_headers=EXPOSED_HEADERS,
            ),
            Middleware(errors.Errors),
            Middleware(FastPath),
        ],
        exception_handlers={HTTPException: errors.answer, RequestValidationError: errors.answer},
        openapi_url=None,  # routes/pages.py serves it
        docs_url=None,
        redoc_url=None,
        separate_input_output_schemas=False,
        generate_unique_id_function=operation_id,
        telemetry={
            "tracing": is_watched,
            "metrics": is_watched,
            "logs": False,  # an exception's message may quote what a client sent
        },
    )
    app.state.settings, app.state.is_started = configured, False
    pages_if_wanted = [pages.router] if configured.pages else []
    for router in (tasks.router, tags.router, auth.router, health.router, *pages_if_wanted):
        app.include_router(router)
    return app


app = create_app(settings.load())
