"""Connections that the supervisor holds too, so that a worker that is killed does not take its clients' answers along.

The kernel ends a connection when nobody holds it any more. Each worker hands a second descriptor of every connection to
the supervisor, and notes in memory that both share how far the request on it has come. Where the worker dies, the
supervisor tells those who wait to try again.
"""

import contextlib
import json
import mmap
import socket
from http import HTTPStatus

FREE, IDLE, ASKED, ANSWERING = range(4)
"""State of a place: no connection; or one that waits for a request, waits for its answer, or has a part of it."""
PLACES = 1024
DIED = "the worker that had this request has died; send it again"
_BYTES = 2  # of the number of a place, as it is sent


class Held:
    """The connections of one worker; made before it is forked, and used on both sides."""

    def __init__(self) -> None:
        self.incoming, self._outgoing = socket.socketpair()  # of the supervisor, of the worker
        self._outgoing.setblocking(False)
        self.incoming.setblocking(False)
        self._states = mmap.mmap(-1, PLACES)
        self._free = list(range(PLACES))
        self._places: dict[int, int] = {}  # by descriptor
        self._kept: dict[int, socket.socket] = {}  # by place

    # The worker's side.

    def open(self, connection: socket.socket) -> None:
        """Hand a connection over; where there is no more room, the worker alone holds it."""
        if not self._free:
            return
        place = self._places[connection.fileno()] = self._free.pop()
        self._states[place] = IDLE
        with contextlib.suppress(OSError):  # the supervisor is busy, or gone
            socket.send_fds(self._outgoing, [place.to_bytes(_BYTES, "big")], [connection.fileno()])

    def mark(self, descriptor: int, state: int) -> None:
        if (place := self._places.get(descriptor)) is not None:
            self._states[place] = state

    def close(self, descriptor: int) -> None:
        if (place := self._places.pop(descriptor, None)) is not None:
            self._states[place] = FREE
            self._free.append(place)

    # The supervisor's side.

    def receive(self) -> None:
        """Take the connections that the worker has handed over, and let go of those that it has closed."""
        with contextlib.suppress(BlockingIOError):
            while True:
                name, descriptors, _, _ = socket.recv_fds(self.incoming, _BYTES, 1)
                if not name:
                    break
                self._forget(place := int.from_bytes(name, "big"))
                for descriptor in descriptors:
                    self._kept[place] = socket.socket(fileno=descriptor)
        for place in [place for place in self._kept if self._states[place] == FREE]:
            self._forget(place)

    def give_up(self) -> tuple[list[socket.socket], list[socket.socket]]:
        """The worker is dead: returns the connections of those who wait, and those without a request.

        A request may be on its way on the latter.
        """
        self.receive()
        asked, idle = ([place for place in self._kept if self._states[place] == state] for state in (ASKED, IDLE))
        waiting, without = ([self._kept.pop(place) for place in places] for places in (asked, idle))
        self.drop()
        return waiting, without

    def drop(self) -> None:
        """Let go of everything, in a process that has no business with it."""
        for place in list(self._kept):
            self._forget(place)
        self.incoming.close()
        self._outgoing.close()

    def _forget(self, place: int) -> None:
        if place in self._kept:
            self._kept.pop(place).close()


def refuse(connection: socket.socket, line: str) -> None:
    """Answer 503 on a connection, whatever was asked on it, as far as that goes without waiting.

    It must stay open until its client has `left`: what comes after a close, such as the body of a request whose head
    has come, would cancel the answer.
    """
    with contextlib.suppress(OSError):
        connection.send(plain_answer(503, line), socket.MSG_DONTWAIT)
        connection.shutdown(socket.SHUT_WR)


def left(connection: socket.socket) -> bool:
    """Discard what has come on a connection; return whether its client has closed it."""
    try:
        while connection.recv(1 << 16, socket.MSG_DONTWAIT):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def plain_answer(status: int, line: str) -> bytes:
    """The last answer on a connection, as it is sent."""
    body = json.dumps({"error": line})
    retry = "retry-after: 1\r\n" if status == 503 else ""
    head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n{retry}"
    return f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n{body}".encode()
