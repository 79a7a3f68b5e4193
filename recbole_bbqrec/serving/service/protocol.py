"""uvicorn's HTTP, with an end to its patience: it waits for the head of a request without end, and here it does not."""

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0
"""Time for the head of a request, and for the rest of a body whose request has its answer already."""
MAX_CONNECTIONS = 1000
"""Of one worker."""


class PatientProtocol(H11Protocol):
    """One connection; what is no HTTP, too slow or too much is answered in JSON, and the connection ends."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            self._end(503, "too many connections")
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop()

    def send_400_response(self, msg: str) -> None:
        self._end(400, "this is no HTTP request")

    def _watch(self) -> None:
        """Count the time in which the client has to send something; not that in which the application works."""
        if self.cycle is not None and not self.cycle.response_complete:
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
        if self.transport.is_closing():
            return
        body = json.dumps({"error": line}).encode()
        retry = "retry-after: 1\r\n" if status == 503 else ""
        head = f"HTTP/1.1 {status} \r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n{retry}"
        self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self.transport.close()
