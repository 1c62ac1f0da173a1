"""The keys that another server publishes for its tokens: fetched, cached and refreshed."""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator
from typing import Self

import httpx
import orjson

from errors import Problem
from security import Verifier, read_keys

CACHE_SECONDS = 300.0  # the longest it takes until a withdrawn key is refused
RETRY_SECONDS = 10.0
MAX_OUTAGE_SECONDS = 3600.0  # how long known keys stay valid while their source is down
COOLDOWN_SECONDS = 5.0  # between fetches for unknown keys, however many tokens name one
FETCH_SECONDS = 10.0
WAIT_SECONDS = 2.5  # how long a request waits for a fetch, which continues after that
MAX_BYTES = 256 * 1024
MAX_REDIRECTS = 3

logger = logging.getLogger("todo.key_set")


class KeySet:
    """A JSON Web Key Set (RFC 7517) at a URL, whose keys a verifier is told to trust."""

    def __init__(self, url: str, verifier: Verifier) -> None:
        self._url, self._verifier = url, verifier
        self._client = httpx.AsyncClient(timeout=FETCH_SECONDS)
        self._fetching: asyncio.Task[None] | None = None
        self._fetched = self._tried = -math.inf

    async def learn(self) -> None:
        """Fetch the keys, unless that was just tried. Raise `Problem` 503 if it failed."""
        if time.monotonic() - self._tried >= COOLDOWN_SECONDS:
            self._fetch()
        if self._fetching:
            await asyncio.wait([self._fetching], timeout=WAIT_SECONDS)
        if self._fetched < self._tried or self._fetching:
            raise Problem("unavailable")

    @contextlib.asynccontextmanager
    async def kept_up(self) -> AsyncIterator[Self]:
        """Keep the keys up to date until the block ends."""
        following = asyncio.create_task(self._follow())
        try:
            yield self
        finally:
            tasks = [task for task in (following, self._fetching) if task]
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await self._client.aclose()

    async def _follow(self) -> None:
        while True:
            await asyncio.wait([self._fetch()])
            failed = self._fetched < self._tried
            await asyncio.sleep(RETRY_SECONDS if failed else CACHE_SECONDS - FETCH_SECONDS)

    def _fetch(self) -> "asyncio.Task[None]":
        """Return the fetch in progress, or start one."""
        if self._fetching is None:
            self._fetching = asyncio.create_task(self._attempt())
        return self._fetching

    async def _attempt(self) -> None:
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                keys = read_keys(await self._get())
            self._tried = self._fetched = time.monotonic()
            self._verifier.trust(keys)
        except Exception as error:  # noqa: BLE001  (whatever it is, requests must be answered)
            self._tried = time.monotonic()
            logger.warning("cannot read the keys at %s: %r", self._url, error)
            if self._tried - self._fetched > MAX_OUTAGE_SECONDS:
                self._verifier.trust({})
        finally:
            self._fetching = None

    async def _get(self) -> object:
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        request = self._client.build_request("GET", self._url, headers=headers)
        for _ in range(1 + MAX_REDIRECTS):
            response = await self._client.send(request, stream=True)
            async with contextlib.aclosing(response):
                if response.next_request is None:
                    return orjson.loads(await _body(response))
            request = _redirected(request, response.next_request)
        raise ValueError("too many redirects")


def _redirected(sent: httpx.Request, request: httpx.Request) -> httpx.Request:
    """Refuse to leave an origin by any other way than HTTPS, as httpx itself would not."""
    before, url = sent.url, request.url
    if url.scheme == "https" or (url.scheme, url.netloc) == (before.scheme, before.netloc):
        return request
    raise ValueError(f"redirected to {url.scheme} on another origin")


async def _body(response: httpx.Response) -> bytes:
    if response.status_code != httpx.codes.OK:
        raise ValueError(f"status {response.status_code}")
    body = b""
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > MAX_BYTES:
            raise ValueError("too large")
    return body
