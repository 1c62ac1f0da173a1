"""Passwords: which are acceptable, and hashing them without holding up other requests."""

import asyncio
import contextlib
import os
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from pwdlib import PasswordHash
from pwdlib.exceptions import PwdlibError
from pwdlib.hashers.argon2 import Argon2Hasher
from pwdlib.hashers.bcrypt import BcryptHasher
from starlette.requests import ClientDisconnect

from errors import Problem
from folding import folded
from settings import PROJECT

QUOTA = Path("/sys/fs/cgroup/cpu.max")


def processors() -> int:
    """Return how many processors this process may use, which in a container are not all."""
    number = os.cpu_count() or 1
    with contextlib.suppress(AttributeError):  # only Linux has it
        number = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):  # there is no quota, or it is "max"
        quota, period = map(int, QUOTA.read_text("ascii").split())
        number = min(number, quota // period)
    return number


THREADS = max(1, min(4, processors() - 1))  # leave one processor for everything else
QUEUE = 32  # how many may wait; a hash takes about 20 ms
WAIT_SECONDS = 3.0  # where all processors are busy, it takes ten times as long

HasGone = Callable[[], Awaitable[bool]]
"""Tells whether a client is still there: for one that has gone nothing is hashed."""

_HASHES = PasswordHash(
    # Second choice of OWASP's password storage cheat sheet: 19 MiB, 2 passes, 1 lane.
    [Argon2Hasher(time_cost=2, memory_cost=19 * 1024, parallelism=1), BcryptHasher()]
)
Result = TypeVar("Result")


class Passwords:
    """Hashes and verifies passwords, in a few threads of lower priority than the event loop."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, "passwords", _stand_back)
        # Each thread has its next call at hand, and need not wait for the event loop.
        self._turns = asyncio.Semaphore(2 * THREADS)
        self._waiting = 0
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

    def refuse_if_full(self) -> None:
        """Raise `Problem` 503 if too many are waiting."""
        if self._waiting >= QUEUE:
            raise Problem("unavailable")

    async def hash(self, password: str, has_gone: HasGone | None = None) -> str:
        """Hash a password.

        Raise `Problem` 503 if too many are waiting, or for too long, and `ClientDisconnect` if the
        client has gone meanwhile.
        """
        return await self._run(lambda: _HASHES.hash(password), has_gone)

    async def verify(
        self, password: str, known: str | None, has_gone: HasGone | None = None
    ) -> tuple[bool, str | None]:
        """Verify a password against a known hash, or against a dummy.

        Return whether it is right, and a better hash if the known one is outdated. Raise as `hash`.
        """
        right, better = await self._run(lambda: _verify(password, known or self._nobodys), has_gone)
        return right and known is not None, better

    async def _run(self, function: Callable[[], Result], has_gone: HasGone | None) -> Result:
        self.refuse_if_full()
        self._waiting += 1
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await self._turns.acquire()
        except TimeoutError as error:
            raise Problem("unavailable") from error
        finally:
            self._waiting -= 1
        try:
            if has_gone and await has_gone():
                raise ClientDisconnect
            return await asyncio.get_running_loop().run_in_executor(self._threads, function)
        finally:
            self._turns.release()

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
