"""uvicorn's HTTP with an end to its patience, and with connections that the supervisor holds too, see `held`."""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from .held import ANSWERING, ASKED, IDLE, Held, plain_answer

HEAD_SECONDS = 10.0
"""Time for the head of a request, and for the rest of a body whose request has its answer already."""
READ_SECONDS = 30.0
"""Time for a client to take what was written to it."""
LAST_SECONDS = 0.5
"""Time for requests that are on their way when the service ends."""
MAX_CONNECTIONS = 1000
"""Of one worker."""


class PatientProtocol(H11Protocol):
    """One connection; what is no HTTP, too slow or too much is answered in JSON, and the connection ends."""

    def __init__(self, held: Held, **given: Any) -> None:
        super().__init__(**given)
        self._held, self._descriptor = held, -1
        self._timer: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._ended = self._last = False

    def connection_made(self, transport: Any) -> None:
        self._descriptor = transport.get_extra_info("socket").fileno()
        joining: Any = _Transport(transport, partial(self._mark, ANSWERING))
        super().connection_made(joining)
        if len(self.connections) > MAX_CONNECTIONS:
            self._end(503, "too many connections")
        self._watch()

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        if not self._asked:
            self._mark(ASKED)
        super().data_received(data)
        self._see_to_last()
        self._watch()

    def shutdown(self) -> None:
        """Take no request after the one at work, or after one that may be on its way, as the service ends."""
        self._last = True
        self._see_to_last()
        if not self._asked:
            self.loop.call_later(LAST_SECONDS, self._close_unless_asked)

    def _close_unless_asked(self) -> None:
        if not self._asked:
            self.transport.close()

    def _see_to_last(self) -> None:
        if self._last and self._asked and not self.cycle.response_started and self.cycle.keep_alive:
            self.cycle.keep_alive = False
            self.cycle.default_headers = [*self.cycle.default_headers, (b"connection", b"close")]

    def on_response_complete(self) -> None:
        self._mark(IDLE)
        super().on_response_complete()
        if self._asked:  # by a request that came along with the one before
            self._mark(ASKED)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop()
        self.resume_writing()
        with contextlib.suppress(OSError):  # the supervisor holds it too: to close it would end nothing
            self.transport.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        self._held.close(self._descriptor)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()

    def send_400_response(self, msg: str) -> None:
        self._end(400, "this is no HTTP request")

    def _mark(self, state: int) -> None:
        self._held.mark(self._descriptor, state)

    @property
    def _asked(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _watch(self) -> None:
        """Count the time in which the client has to send something; not that in which the application works."""
        if self._ended:
            return
        if self._asked:
            self._stop()
        elif self._timer is None and self.timeout_keep_alive_task is None:
            self._timer = self.loop.call_later(HEAD_SECONDS, self._too_slow)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        if self.cycle is None or self.conn.our_state is self.conn.their_state:
            self._end(408, f"the head of the request did not arrive within {HEAD_SECONDS:g} seconds")
        else:  # the rest of a body that nobody reads
            self.transport.close()

    def _end(self, status: int, line: str) -> None:
        """Answer, and read on for a while: to close on a client that is still sending would cancel the answer."""
        if self.transport.is_closing() or self._ended:
            return
        self._stop()
        self._ended = True
        self.transport.write(plain_answer(status, line))
        self.transport.write_eof()
        self._timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)


class _Transport:
    """A transport that writes the head of an answer together with what follows, and notes when it has.

    Of an answer in one piece a client has all or nothing, at whichever moment the worker is killed.
    """

    def __init__(self, transport: Any, written: Callable[[], None]) -> None:
        self._transport, self._written, self._head = transport, written, b""

    def write(self, data: bytes) -> None:
        if data.startswith(b"HTTP/1.1 100"):  # "go on", which is no answer yet
            self._transport.write(data)
            return
        if not self._head and data.startswith(b"HTTP/1.1 ") and data.endswith(b"\r\n\r\n"):
            self._head = data
            return
        self._transport.write(self._head + data)
        self._head = b""
        self._written()

    def close(self) -> None:
        if self._head:
            self.write(b"")
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
