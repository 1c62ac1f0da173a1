"""Reaching a PostgreSQL server: of several hosts the one that takes writes, with or without TLS."""

import asyncio
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import asyncpg

FAILURES = (
    *(OSError, asyncpg.PostgresError, asyncpg.InterfaceError),
    asyncpg.InternalClientError,  # a connection that is lost while in use
)
_OWN_ROOT = Path("~/.postgresql/root.crt")


def hosts(url: str) -> list[str]:
    """Name the hosts of a URL, with their ports; none if it leads to a socket."""
    return [host for host in urlsplit(url).netloc.rpartition("@")[2].split(",") if host]


async def connect(url: str, seconds: float) -> asyncpg.Connection:
    """Open a connection within so many seconds.

    Of several hosts the first that answers and takes writes is chosen. They are tried side by side,
    so that one that has lost its power and says nothing does not keep anybody waiting.
    """
    url, options = _with_tls(url)
    attempts: set[asyncio.Task[asyncpg.Connection]] = {
        asyncio.create_task(asyncpg.connect(each, timeout=seconds, **options))
        for each in _one_by_one(url)
    }
    failures: list[BaseException] = []
    try:
        while attempts:
            done, _ = await asyncio.wait(attempts, return_when=asyncio.FIRST_COMPLETED)
            for attempt in done:
                attempts.discard(attempt)
                failure = attempt.exception()
                if failure is None:
                    return attempt.result()
                failures.append(failure)
        # What a server says tells more than that another one is silent, or a standby.
        raise next((each for each in failures if hasattr(each, "sqlstate")), failures[-1])
    finally:
        for attempt in attempts:
            attempt.add_done_callback(_close)
            attempt.cancel()


def _close(attempt: "asyncio.Task[asyncpg.Connection]") -> None:
    """Close a connection that came too late."""
    if not attempt.cancelled() and not attempt.exception():
        attempt.result().terminate()


def _one_by_one(url: str) -> list[str]:
    """Make a URL for each host."""
    parts, found = urlsplit(url), hosts(url)
    if len(found) < 2:
        return [url]
    user, at, _ = parts.netloc.rpartition("@")
    query = urlencode({"target_session_attrs": "read-write"} | dict(_query(url)))
    return [parts._replace(netloc=f"{user}{at}{host}", query=query).geturl() for host in found]


def _with_tls(url: str) -> tuple[str, dict[str, Any]]:
    """Return a URL and options for asyncpg.

    As in libpq, `sslrootcert=system` means the certificates of the system. So does a mode that
    verifies without a file: asyncpg would refuse it.
    """
    # asyncpg's own cache of statements is off: their names are not safe, see pool.Connection.
    options: dict[str, Any] = {"statement_cache_size": 0}
    query = _query(url)
    mode, root = query.get("sslmode", ""), query.get("sslrootcert")
    verifies = mode.startswith("verify-") and not root and not _OWN_ROOT.expanduser().exists()
    if root == "system" or verifies:
        options["ssl"] = context = ssl.create_default_context()
        context.check_hostname = mode != "verify-ca"
        if "sslcert" in query:
            context.load_cert_chain(query["sslcert"], query.get("sslkey"))
        kept = {name: query[name] for name in query.keys() - {"sslmode", "sslrootcert"}}
        url = urlsplit(url)._replace(query=urlencode(kept)).geturl()
    return url, options


def _query(url: str) -> dict[str, str]:
    return {name: values[-1] for name, values in parse_qs(urlsplit(url).query).items()}
