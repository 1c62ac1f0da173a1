"""The service, assembled in one place."""

import contextlib
import gc
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.models import OAuth2, OAuthFlowPassword, OAuthFlows
from fastapi.routing import APIRoute
from starlette.middleware import Middleware
from starlette.types import ASGIApp

import db
import errors
import logs
import settings
from dependencies.rate_limits import RateLimits
from dependencies.route import Routes
from live import Live
from middleware import CORS, Envelope
from passwords import Passwords
from revocations import Revocations
from routes import auth, health, pages, tags, tasks
from schemas import Problem
from security import Cursors, Issued, Issuer, Verifier

DESCRIPTION = """
Tasks for the user whom the token names, and nobody else's.

**Sign in**: sign up below, then press *Authorize* and give email and password; or paste a token (a
JWT of Better Auth's `jwt` plugin, or HS256, signed with `BETTER_AUTH_SECRET`; `uv run make_token.py
ada` makes one for user `ada`).

**Paths**: everything under `/api/tasks` is also served at `/api/{user_id}/tasks`, for frontends
that name the user in the path; an id other than the token's is refused with 403. A slash at the
end makes no difference.

**Errors** are `application/problem+json` (RFC 9457) from status 400 up. `detail` is a sentence for
a person, `code` is stable and for programs, `request_id` finds the request in the log.
"""

EXPOSED_HEADERS = [
    *("ETag", "Location", "Link", "Retry-After", "RateLimit", "RateLimit-Policy"),
    "Idempotency-Replayed",
    *("WWW-Authenticate", "X-Request-ID"),
]


TOKEN_FLOW = OAuthFlowPassword(tokenUrl="/api/v1/auth/token")


class Service(FastAPI):
    """FastAPI, with an OpenAPI document made for the generators of clients."""

    def build_middleware_stack(self) -> ASGIApp:
        """Leave out what the framework puts around our own layers, which do the same.

        The innermost is a way through the routes without FastAPI's telemetry and forms.
        """
        app: ASGIApp = Routes(self.router)
        for layer, arguments, options in reversed(self.user_middleware):
            app = layer(app, *arguments, **options)
        return app

    def openapi(self) -> dict[str, Any]:
        """Return the document, in which `list_tasks` is `listTasks` and every error has a shape."""
        if self.openapi_schema:
            return self.openapi_schema
        for route in self.routes:
            if isinstance(route, APIRoute):
                first, *rest = route.name.split("_")
                route.operation_id = first + "".join(word.title() for word in rest)
                route.summary = route.description.partition(". ")[0].rstrip(".").replace("`", "")
        document = super().openapi()
        schemes = document["components"]["securitySchemes"]
        schemes["Password"] = OAuth2(
            flows=OAuthFlows(password=TOKEN_FLOW),
            description="The username is your email. Leave the client fields empty.",
        ).model_dump(mode="json", by_alias=True, exclude_none=True)
        for path in document["paths"].values():
            for operation in path.values():
                if "security" in operation:
                    operation["security"].append({"Password": []})
        template = "#/components/schemas/{model}"
        problem = Problem.model_json_schema(mode="serialization", ref_template=template)
        document["components"]["schemas"] |= {**problem.pop("$defs"), "Problem": problem}
        return document


@contextlib.asynccontextmanager
async def _published_keys(app: FastAPI, configured: settings.Settings) -> AsyncIterator[None]:
    app.state.key_set = None
    if not configured.key_set_url:
        yield
        return
    from key_set import KeySet  # noqa: PLC0415  (httpx takes 6 MiB, which not everybody needs)

    async with KeySet(configured.key_set_url, app.state.verifier).kept_up() as app.state.key_set:
        yield


def create_app(configured: settings.Settings) -> FastAPI:
    """Assemble the service. Nothing is opened before it starts."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with (
            db.locate(configured) as database,
            contextlib.closing(Passwords()) as app.state.passwords,
        ):
            app.state.settings = configured
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
                app.state.live = Live(configured, database.url)
                async with (
                    app.state.revocations.kept_up(),
                    _published_keys(app, configured),
                    app.state.live.kept_up(),
                ):
                    gc.freeze()  # what is there now stays: no need to look through it again
                    gc.set_threshold(10_000)  # a request makes many objects and hardly a cycle
                    yield

    logs.configure(configured)
    return Service(
        title="Todo API",
        version="0.1.0",
        description=DESCRIPTION,
        lifespan=lifespan,
        # An included router is matched twice in every request; its routes, taken over, are once.
        routes=[
            *tasks.router.routes,
            *tags.router.routes,
            *auth.router.routes,
            *health.router.routes,
            *pages.router.routes,
        ],
        middleware=[
            Middleware(Envelope, log=logs.request_log(configured)),
            Middleware(
                CORS,
                allow_origins=configured.cors_origins,
                allow_credentials=True,
                allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
                allow_headers=[
                    *("Authorization", "Content-Type", "X-Request-ID", "If-Match"),
                    *("If-None-Match", "Idempotency-Key", "Last-Event-ID"),
                ],
                expose_headers=EXPOSED_HEADERS,
            ),
            Middleware(errors.Errors),
        ],
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        separate_input_output_schemas=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )


app = create_app(settings.load())
