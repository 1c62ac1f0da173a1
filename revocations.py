"""Tokens that are refused although they verify: in memory, and in sync with the other workers."""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Coroutine
from contextvars import Context
from datetime import timedelta
from typing import Any

import account_queries
import db
from errors import Problem
from security import USER_KEY, Claims
from settings import Settings

INTERVAL_SECONDS = 0.75  # a revocation is known everywhere within a second
PAUSE_SECONDS = 5.0
"""After this long without a call nothing is asked, so that a database which can sleep does."""

MAX_AGE_SECONDS = 5.0
OVERLAP = timedelta(seconds=60)
"""How far back each load reads again: a statement that began then may have just committed."""

LONG_AGO = OVERLAP.total_seconds() / 2  # then what is recent is not all that is new

EVERYTHING = timedelta(days=36500)
RELOAD_SECONDS = 600.0  # how often to drop what has expired

logger = logging.getLogger("todo.revocations")


class Revocations:
    """The revocations that have not expired. Checking them takes no round trip while calls come."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._until: dict[str, float] = {}
        self._asked = self._reloaded = self._cleaned = self._called = -math.inf
        self._following: asyncio.Task[None] | None = None
        self._waking: asyncio.Task[None] | None = None
        self._cleaning: asyncio.Task[None] | None = None

    def check_age(self) -> None:
        """Raise `Problem` 503 if the list is too old, though it is kept up."""
        if self._following and time.monotonic() - self._asked > MAX_AGE_SECONDS:
            raise Problem("unavailable")

    async def check(self, claims: Claims) -> None:
        """Refuse a token that was revoked. Raise `Problem` 401, 503."""
        self._called = time.monotonic()
        if self._following is None:
            await self._wake()
        self.check_age()
        for key in claims.keys:
            until = self._until.get(key)
            if until is not None and claims.issued <= until:
                raise Problem("token_revoked")

    async def load(self) -> None:
        """Load recent revocations, or now and then all of them. Raise `Problem` 503."""
        asked, before = time.monotonic(), self._until
        all_of_it = asked - self._reloaded > RELOAD_SECONDS or asked - self._asked > LONG_AGO
        rows = await account_queries.LIST_REVOCATIONS.all(
            window=EVERYTHING if all_of_it else OVERLAP
        )
        until: dict[str, float] = {}
        for row in rows:
            # Sessions and single tokens are refused regardless of when they were issued.
            is_user = row["key"].startswith(USER_KEY)
            moment = row["revoked_at"].timestamp() if is_user else math.inf
            # A concurrent call may have loaded a later one in the meantime.
            until[row["key"]] = max(moment, self._until.get(row["key"], moment))
        if all_of_it:
            # Keep what a concurrent call loaded in the meantime.
            learned = self._until.keys() - before.keys()
            self._until = {key: self._until[key] for key in learned} | until
            self._reloaded = asked
        else:
            self._until = self._until | until
        self._asked = max(self._asked, asked)

    @contextlib.asynccontextmanager
    async def kept_up(self) -> AsyncIterator[None]:
        """Keep in sync with the other workers while calls come, until the block ends."""
        try:
            yield
        finally:
            tasks = (self._waking, self._following, self._cleaning)
            running = [task for task in tasks if task]
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _wake(self) -> None:
        """Read what was revoked during a pause, once for all who wait. Raise `Problem` 503."""
        if self._waking is None or self._waking.done():
            self._waking = asyncio.create_task(self._start(), context=Context())
        with db.Waiting() as limits:
            try:
                async with asyncio.timeout_at(limits.end):
                    await asyncio.shield(self._waking)
            except TimeoutError as error:
                raise Problem("unavailable") from error

    async def _start(self) -> None:
        await self.load()
        self._following = asyncio.create_task(self.follow())

    async def follow(self) -> None:
        """Load repeatedly until no calls come; clean up now and then."""
        started = time.monotonic()
        while started - self._called < PAUSE_SECONDS:
            await asyncio.sleep(started + INTERVAL_SECONDS - time.monotonic())
            started = time.monotonic()
            await _attempt(self.load(), "cannot read the revocations")
            if started - self._cleaned > RELOAD_SECONDS:
                self._cleaned = started
                # Meanwhile, because it may take longer than a revocation may.
                self._cleaning = asyncio.create_task(_attempt(self.clean_up(), "cannot clean up"))
        self._following = None

    async def clean_up(self) -> None:
        """Delete sessions, revocations and idempotency keys that have expired."""
        await account_queries.CLEAN_UP.all(
            idle=timedelta(days=self._settings.refresh_idle_days),
            longest=timedelta(days=self._settings.refresh_max_days),
        )


async def _attempt(work: Coroutine[Any, Any, None], failure: str) -> None:
    """Do what is done again later, if it fails now."""
    try:
        await work
    except Problem:
        pass  # the database is unavailable (logged there) or overloaded
    except Exception:
        logger.exception(failure)
