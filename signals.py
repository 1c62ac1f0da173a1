"""The signals that stop the service, for what must not wait until the server heeds them."""

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def told_to_stop(function: Callable[[], object]) -> Iterator[None]:
    """Call a function on SIGTERM and SIGINT, before the server's own handlers.

    The server has no event for it: it ends the lifespan only after the last request, where a stream
    does not end by itself, and not before it has started.
    """
    loop = asyncio.get_running_loop()
    is_main = threading.current_thread() is threading.main_thread()  # others handle no signals
    found = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    servers: dict[int, Any] = {n: h for n, h in found.items() if is_main and callable(h)}

    def handle(number: int, frame: Any) -> None:  # noqa: ANN401  (as in signal)
        loop.call_soon_threadsafe(function)
        servers[number](number, frame)

    for number in servers:
        signal.signal(number, handle)
    # uvicorn may have been told before this, while it imported the service.
    if any(
        getattr(getattr(each, "__self__", None), "should_exit", False) for each in servers.values()
    ):
        function()
    try:
        yield
    finally:
        for number, handler in servers.items():
            signal.signal(number, handler)
