"""Rate limits, counted by the `limits` library: in memory, or in Redis for all workers together."""

import logging
import math
import time
from typing import Any, NamedTuple

import limits
from limits.aio.storage import Storage
from limits.aio.strategies import FixedWindowRateLimiter
from limits.errors import StorageError
from limits.storage import storage_from_string
from starlette.requests import Request

from calls import call_of
from errors import CannotStart, Problem
from logs import log_event
from settings import Settings

logger = logging.getLogger("todo.rate_limits")

IN_MEMORY = "async+memory://"
STORAGE_SECONDS = 1.0
RETRY_SECONDS = 2.0
SWEEP_SECONDS = 60.0


class Memory(Storage):
    """Counts in this process. The library's own storage scans every key on every request."""

    STORAGE_SCHEME = ["async+todo"]  # noqa: RUF012  (the library wants a list)
    base_exceptions = ValueError

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[str, tuple[int, float]] = {}
        self._sweep_at = 0.0

    async def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        """Count a hit, in a window that starts with the first; return the count."""
        now = time.time()
        if now > self._sweep_at:
            self._sweep_at = now + SWEEP_SECONDS
            self._counts = {key: entry for key, entry in self._counts.items() if entry[1] > now}
        count, until = self._counts.get(key, (0, 0.0))
        if until <= now:
            count, until = 0, now + expiry
        self._counts[key] = count + amount, until
        return count + amount

    async def get(self, key: str) -> int:
        """Return the count."""
        return self._counts.get(key, (0, 0.0))[0]

    async def get_expiry(self, key: str) -> float:
        """Return when the window ends, in seconds since the epoch."""
        return self._counts.get(key, (0, time.time()))[1]

    async def check(self) -> bool:
        """Return True: memory is always available."""
        return True

    async def reset(self) -> None:
        """Forget everything."""
        self._counts.clear()

    async def clear(self, key: str) -> None:
        """Forget a key."""
        self._counts.pop(key, None)


class Policy(NamedTuple):
    """A limit, and whether to refuse requests while the storage is down."""

    limit: limits.RateLimitItem | None
    fails_closed: bool


def _policy(notation: str | None, *, fails_closed: bool) -> Policy:
    return Policy(limits.parse(notation) if notation else None, fails_closed)


class RateLimits:
    """Counts requests and sets the headers (draft-ietf-httpapi-ratelimit-headers-11)."""

    def __init__(self, settings: Settings) -> None:
        storage: Any = Memory()
        if settings.rate_limit_storage != IN_MEMORY:
            try:
                storage = storage_from_string(
                    settings.rate_limit_storage,
                    implementation="redispy",
                    wrap_exceptions=True,
                    socket_timeout=STORAGE_SECONDS,
                    socket_connect_timeout=STORAGE_SECONDS,
                )
            except Exception as error:  # the libraries raise all kinds
                line = "RATE_LIMIT_STORAGE: must look like async+redis://host:6379"
                raise CannotStart(line) from error
        self._limiter = FixedWindowRateLimiter(storage)
        self._is_down, self._down_until = False, 0.0
        self.api = _policy(settings.rate_limit, fails_closed=False)
        self.auth = _policy(settings.auth_rate_limit, fails_closed=True)
        self.refresh = _policy(settings.refresh_rate_limit, fails_closed=True)

    async def count(self, request: Request, policy: Policy, by: str, key: str) -> None:
        """Count a request by user, address, account or session.

        Raise `Problem` 429 over the limit, 503 if it cannot be counted but has to be.
        """
        limit, fails_closed = policy
        if limit is None:
            return
        try:
            self._refuse_while_down()
            allowed = await self._limiter.hit(limit, by, key)
            reset, remaining = await self._limiter.get_window_stats(limit, by, key)
        except StorageError as error:
            self._log_outage_once(error)
            if fails_closed:
                raise Problem("unavailable") from error
            return
        self._is_down = False
        seconds = max(1, math.ceil(reset - time.time()))
        _tell(
            request,
            f'"{by}";q={limit.amount};w={limit.get_expiry()}',
            f'"{by}";r={remaining};t={seconds}',
        )
        if not allowed:
            log_event(request, "limited", logging.WARNING, by=by)
            detail = f"Too many requests. Try again in {seconds} s."
            raise Problem("rate_limited", detail, headers={"Retry-After": str(seconds)})

    def _refuse_while_down(self) -> None:
        """Try a storage that is down only now and then, or every request would wait for it."""
        if time.monotonic() < self._down_until:
            raise StorageError(TimeoutError())

    def _log_outage_once(self, error: StorageError) -> None:
        """Log an outage once, and put off the next attempt."""
        if not self._is_down:
            logger.error("the storage of rate limits is down: %r", error.storage_error)
        if time.monotonic() >= self._down_until:
            self._is_down, self._down_until = True, time.monotonic() + RETRY_SECONDS


def _tell(request: Request, policy: str, state: str) -> None:
    """Add two headers to the eventual response; with two limits, each lists both."""
    told = call_of(request).limits
    for name, value in (b"ratelimit-policy", policy.encode()), (b"ratelimit", state.encode()):
        told[name] = told[name] + b", " + value if name in told else value


def rate_limits(request: Request) -> RateLimits:
    """Return the worker's counters."""
    limits: RateLimits = request.app.state.rate_limits
    return limits


def address(request: Request) -> str:
    """Return the client's address, from uvicorn, which trusts only configured proxies."""
    return request.client.host if request.client else "unknown"
