"""Calls that wait together are handled together, in one thread."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Call = TypeVar("Call")
Result = TypeVar("Result")


class OverloadedError(Exception):
    """The service cannot take the call now; the same call may be sent again a little later."""


class Batcher(Generic[Call, Result]):
    """Hands calls of an event loop to a thread of its own, as many at once as wait when the thread is free.

    No call waits for company: one that comes while the thread is idle is handled alone, at once.

    Parameters
    ----------
    handle : called in the thread with up to `size` calls; returns a result, or the exception to raise, for each.
    size : most calls at once.
    room : most calls that may wait; a further one is an `OverloadedError` at once, which is better than an answer that
        comes when nobody waits for it any more.
    """

    def __init__(
        self, handle: Callable[[list[Call]], Sequence[Result | Exception]], size: int, room: int, name: str
    ) -> None:
        self._handle, self._size, self._room = handle, size, room
        self._waiting: deque[tuple[Call, asyncio.Future[Result]]] = deque()
        self._changed, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    async def __call__(self, call: Call) -> Result:
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        with self._changed:
            if self._closed:
                raise OverloadedError("the service is shutting down")
            if len(self._waiting) >= self._room:
                raise OverloadedError(f"{self._room} requests wait already")
            self._waiting.append((call, future))
            self._changed.notify()
        return await future

    def close(self) -> None:
        """Handle what waits, take nothing more, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while taken := self._take():
            calls = [call for call, _ in taken]
            try:
                results = self._handle(calls)
            except Exception as error:
                results = [error] * len(calls)
            futures = [future for _, future in taken]
            loop = futures[0].get_loop()
            if not loop.is_closed():
                loop.call_soon_threadsafe(_settle, futures, results)

    def _take(self) -> list[tuple[Call, asyncio.Future[Result]]]:
        """The calls that come next; none once the batcher is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            return [self._waiting.popleft() for _ in range(min(self._size, len(self._waiting)))]


def _settle(futures: Sequence[asyncio.Future[Result]], results: Sequence[Result | Exception]) -> None:
    for future, result in zip(futures, results, strict=True):
        if future.done():  # cancelled, where the service ends before the answer
            continue
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
