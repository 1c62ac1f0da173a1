"""A small HTTP client with little overhead: keep-alive connections, one request at a time each."""

import asyncio
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle
from time import perf_counter

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
GRACE_SECONDS = 10


class WrongAnswer(Exception):
    """The server closed the connection or answered with an unexpected status."""


@dataclass(eq=False)
class Connection(asyncio.Protocol):
    """Sends the next request once the last is answered, until time is up."""

    requests: Iterator[bytes]
    status: int
    until: float
    latencies: list[float]
    done: asyncio.Future[None] = field(default_factory=asyncio.Future)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self.send_next()

    def send_next(self) -> None:
        self.answer = b""
        self.sent = perf_counter()
        self.transport.write(next(self.requests))

    def data_received(self, data: bytes) -> None:
        self.answer += data
        head, end, body = self.answer.partition(b"\r\n\r\n")
        length = LENGTH.search(head)  # a 304 has none
        if not end or len(body) < int(length[1] if length else 0):
            return
        now = perf_counter()
        self.latencies.append(now - self.sent)
        if int(head[9:12]) != self.status:
            self.fail()
        elif now < self.until:
            self.send_next()
        else:
            self.done.set_result(None)
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.fail(exc)

    def fail(self, cause: Exception | None = None) -> None:
        self.done.set_exception(WrongAnswer(f"{cause or 'answer'}: {self.answer.decode()}"))
        self.transport.close()


async def load(
    port: int, status: int, requests: list[bytes], connections: int, seconds: float
) -> list[float]:
    """Repeat the requests for some seconds; return the latency of each response, in seconds."""
    latencies: list[float] = []
    shared = cycle(requests)
    until = perf_counter() + seconds
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(seconds + GRACE_SECONDS):
        opened = [
            await loop.create_connection(
                lambda: Connection(shared, status, until, latencies), "127.0.0.1", port
            )
            for _ in range(connections)
        ]
        await asyncio.gather(*(connection.done for _, connection in opened))
    return latencies
