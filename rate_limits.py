"""Rate limits, counted by the `limits` library: in memory, or in Redis for all workers together."""

import logging
import math
import time
from collections import Counter
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Any

import limits
from limits import WindowStats
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import FixedWindowRateLimiter
from limits.errors import StorageError
from limits.storage import storage_from_string
from starlette.requests import Request

from calls import call_of
from errors import CannotStart, Problem
from logs import log_event
from settings import Settings

logger = logging.getLogger("todo.rate_limits")

STORAGE_SECONDS = 1.0
RETRY_SECONDS = 2.0
SWEEP_SECONDS = 60.0


class Memory(MemoryStorage):
    """Counts in this process. The library's own storage scans every key on every request."""

    STORAGE_SCHEME = ["async+memory"]  # noqa: RUF012  (in place of the library's own)
    _sweep_at = 0.0

    async def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        """Count a hit, in a window that starts with the first; return the count."""
        now = time.time()
        if now > self._sweep_at:
            self._sweep_at = now + SWEEP_SECONDS
            self.expirations = {key: end for key, end in self.expirations.items() if end > now}
            self.storage = Counter({key: self.storage[key] for key in self.expirations})
        if self.expirations.get(key, 0.0) <= now:
            self.expirations[key], self.storage[key] = now + expiry, 0
        self.storage[key] += amount
        return self.storage[key]


class RateLimits:
    """Counts requests and sets the headers (draft-ietf-httpapi-ratelimit-headers-11)."""

    def __init__(self, settings: Settings) -> None:
        try:
            storage: Any = storage_from_string(
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
        self._down_until = 0.0  # 0 while it is up
        self.api = _limit("api", settings.rate_limit)
        self.auth = _limit("auth", settings.auth_rate_limit)
        self.refresh = _limit("refresh", settings.refresh_rate_limit)

    async def count(
        self, request: Request, limit: limits.RateLimitItem | None, by: str, key: str
    ) -> None:
        """Count a request by user, address, account or session.

        Raise `Problem` 429 over the limit, 503 if it cannot be counted but has to be.
        """
        if limit is None:
            return
        found = await self._hit(limit, by, key)
        if found is None:
            if limit is not self.api:
                raise Problem("unavailable")  # or passwords could be guessed
            return
        allowed, (reset, remaining) = found
        seconds = max(1, math.ceil(reset - time.time()))
        told = call_of(request).limits
        for name, value in (
            (b"ratelimit-policy", f'"{by}";q={limit.amount};w={limit.get_expiry()}'.encode()),
            (b"ratelimit", f'"{by}";r={remaining};t={seconds}'.encode()),
        ):
            # With two limits, each header lists both.
            told[name] = told[name] + b", " + value if name in told else value
        if not allowed:
            log_event(request, "limited", logging.WARNING, by=by)
            detail = f"Too many requests. Try again in {seconds} s."
            raise Problem("rate_limited", detail, headers={"Retry-After": str(seconds)})

    async def _hit(
        self, limit: limits.RateLimitItem, by: str, key: str
    ) -> tuple[bool, WindowStats] | None:
        """Count a hit: whether it is allowed, the end of the window, and the hits that are left.

        A storage that is down is tried only now and then, or every request would wait for it.
        """
        if time.monotonic() < self._down_until:
            return None
        try:
            allowed = await self._limiter.hit(limit, by, key)
            window = await self._limiter.get_window_stats(limit, by, key)
        except StorageError as error:
            if not self._down_until:
                reason = error.storage_error
                logger.error("the storage of rate limits is down: %r", reason)  # noqa: TRY400
            self._down_until = time.monotonic() + RETRY_SECONDS
            return None
        self._down_until = 0.0
        return allowed, window


def _limit(policy: str, notation: str | None) -> limits.RateLimitItem | None:
    if not notation:
        return None
    limit = limits.parse(notation)
    limit.namespace = policy  # in the key of a counter, or two with the same numbers would share it
    return limit


def address(request: Request) -> str:
    """Return what counts as one client: an IPv4 address, or the /64 that an IPv6 address is in."""
    host = request.client.host if request.client else "unknown"
    try:
        address = ip_address(host)
    except ValueError:  # whatever a server says of a socket
        return host
    if isinstance(address, IPv6Address):
        return str(address.ipv4_mapped or IPv6Network((address.packed[:8] + bytes(8), 64)))
    return host
