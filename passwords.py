"""Passwords: which are acceptable, and hashing them without holding up other requests."""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from pwdlib import PasswordHash
from pwdlib.exceptions import PwdlibError
from pwdlib.hashers.argon2 import Argon2Hasher
from pwdlib.hashers.bcrypt import BcryptHasher

from errors import Problem
from folding import folded
from settings import PROJECT

THREADS = max(1, min(4, (os.cpu_count() or 1) - 1))  # leave one processor for everything else
QUEUE = 32  # how many may wait for a thread; a hash takes about 20 ms

_HASHES = PasswordHash(
    # Second choice of OWASP's password storage cheat sheet: 19 MiB, 2 passes, 1 lane.
    [Argon2Hasher(time_cost=2, memory_cost=19 * 1024, parallelism=1), BcryptHasher()]
)
Result = TypeVar("Result")


class Passwords:
    """Hashes and verifies passwords, in a few threads of lower priority than the event loop."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, "passwords", _stand_back)
        self._places = asyncio.Semaphore(THREADS + QUEUE)
        self._common = frozenset((PROJECT / "common_passwords.txt").read_text("utf-8").split())
        # A dummy to verify for unknown emails, so that the response takes just as long.
        self._nobodys = _HASHES.hash("of nobody")

    def weakness(self, password: str, email: str) -> str | None:
        """Return what is wrong with a new password, or None."""
        if password.casefold() in self._common:
            return "is one of the most common passwords; choose another"
        if folded(password) == folded(email):
            return "must not be your email"
        return None

    async def hash(self, password: str) -> str:
        """Hash a password. Raise `Problem` 503 if too many are waiting."""
        return await self._run(lambda: _HASHES.hash(password))

    async def verify(self, password: str, known: str | None) -> tuple[bool, str | None]:
        """Verify a password against a known hash, or against a dummy.

        Return whether it is right, and a better hash if the known one is outdated. Raise `Problem`
        503 if too many are waiting.
        """
        right, better = await self._run(lambda: _verify(password, known or self._nobodys))
        return right and known is not None, better

    async def _run(self, function: Callable[[], Result]) -> Result:
        if self._places.locked():
            raise Problem("unavailable")
        async with self._places:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, function)

    def close(self) -> None:
        """Stop the threads."""
        self._threads.shutdown(cancel_futures=True)


def _verify(password: str, known: str) -> tuple[bool, str | None]:
    try:
        if not BcryptHasher.identify(known):
            return _HASHES.verify_and_update(password, known)
        cut = password.encode()[:72]  # bcrypt always ignored the rest; now it refuses it
        right = _HASHES.verify(cut, known)
        return right, _HASHES.hash(password) if right else None
    except (PwdlibError, ValueError):
        return False, None  # a corrupt hash, which no password matches


def _stand_back() -> None:
    with contextlib.suppress(AttributeError, OSError):  # other systems have no thread priorities
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
