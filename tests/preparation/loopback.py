"""A server on loopback that answers as it is told: whole, in ranges, broken, slow, wrong; and remembers requests."""

import contextlib
import re
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple


@dataclass
class File:
    """What lies at a path: content, validators, and what the server knows about ranges and lengths."""

    content: bytes
    etag: str = ""
    modified: str = ""
    ranges: bool = True
    heeds_if_range: bool = True
    headers: Mapping[str, str] = field(default_factory=dict)
    framing: str = "length"  # or "chunked", or "close": neither length nor end


@dataclass
class Fault:
    """One answer that goes wrong: another status, or a body that after some bytes is cut, hangs or trickles."""

    status: int = 0
    after: int = 0
    then: str = "cut"
    headers: Mapping[str, str] = field(default_factory=dict)


class Request(NamedTuple):
    path: str
    range: str
    if_range: str
    at: float


class Loopback:
    """`files` by path, `faults` by path (one is used up by each request, in order), and the `requests` so far."""

    def __init__(self) -> None:
        self.files: dict[str, File] = {}
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.requests: list[Request] = []
        self.lock = threading.Lock()
        self.closing = threading.Event()
        handler = type("Handler", (_Handler,), {"site": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> "Loopback":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}{path}"

    def count(self, path: str) -> int:
        return sum(request.path == path for request in self.requests)


class _Handler(BaseHTTPRequestHandler):
    site: Loopback
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes, and the second would wait 40 ms

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # the client has been killed or has had enough
            super().handle()

    def do_GET(self) -> None:
        site, headers = self.site, self.headers
        with site.lock:
            site.requests.append(
                Request(self.path, headers.get("Range", ""), headers.get("If-Range", ""), time.monotonic())
            )
            fault = site.faults[self.path].pop(0) if site.faults[self.path] else None
        self._answer(fault)

    def _answer(self, fault: Fault | None) -> None:
        file = self.site.files.get(self.path)
        if (fault and fault.status) or file is None:
            self._send(fault.status if fault else 404, fault.headers if fault else {}, b"no such thing")
            return
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = self.headers.get("If-Range", "") in ("", file.etag, file.modified) or not file.heeds_if_range
        if not (asked and file.ranges and same):
            self._send(200, self._validators(file), file.content, fault, file.framing)
        elif int(asked[1]) >= len(file.content):
            self._send(416, {"Content-Range": f"bytes */{len(file.content)}"}, b"")
        else:
            start, size = int(asked[1]), len(file.content)
            place = {"Content-Range": f"bytes {start}-{size - 1}/{size}"}
            self._send(206, {**self._validators(file), **place}, file.content[start:], fault, file.framing)

    def _validators(self, file: File) -> dict[str, str]:
        known = {"ETag": file.etag, "Last-Modified": file.modified}
        return {key: value for key, value in known.items() if value} | dict(file.headers)

    def _send(
        self, status: int, headers: Mapping[str, str], body: bytes, fault: Fault | None = None, framing: str = "length"
    ) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        if framing == "length":
            self.send_header("Content-Length", str(len(body)))
        elif framing == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
        self.close_connection = fault is not None or framing == "close"
        self.end_headers()
        first = body[: fault.after] if fault else body
        self.wfile.write(b"%x\r\n%s\r\n" % (len(first), first) if framing == "chunked" and first else first)
        if fault is None:
            self.wfile.write(b"0\r\n\r\n" if framing == "chunked" else b"")
        elif fault.then == "hang":
            self.site.closing.wait(30)
        elif fault.then == "trickle":
            for at in range(fault.after, len(body)):
                self.wfile.write(body[at : at + 1])
                if self.site.closing.wait(0.03):
                    return

    def log_message(self, format: str, *args: object) -> None:
        """Keep the output of the tests clean."""
