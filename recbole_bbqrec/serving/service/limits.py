"""What stands before the application: who may ask, how often, how much, how slowly; and that every answer is plain.

One ASGI layer. It reads a request's body before the application sees the request, so that none waits for a client
while it holds something.
"""

import asyncio
import hmac
import json
import logging
import math
import time
from collections import OrderedDict

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .metrics import Metrics

MAX_BODY = 2 << 20
BODY_SECONDS = 10.0
OPEN = ("/health", "/docs", "/openapi.json", "/map")
"""What needs no key besides `/` and `/static/`: nothing of a user, and no change."""
POLICY = "default-src 'self'; img-src 'self' blob:; frame-ancestors 'none'; form-action 'self'; base-uri 'none'"
"""What a page may load: from this service alone. Images that need a key are blobs, which the page has fetched."""
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]
MAX_CLIENTS = 10_000

logger = logging.getLogger(__name__)


class RefusedError(Exception):
    """An answer instead of what was asked for: status, one line, and seconds after which to try again."""

    def __init__(self, status: int, line: str, retry_after: int | None = None) -> None:
        super().__init__(line)
        self.status, self.line, self.retry_after = status, line, retry_after


class Rate:
    """Token buckets: `rate` requests a second for each client, and as many at once as two seconds bring; 0 = any."""

    def __init__(self, rate: float) -> None:
        self._rate, self._left = rate, OrderedDict[str, tuple[float, float]]()

    def take(self, client: str, now: float) -> None:
        """Count one request of a client at a time in seconds; a `RefusedError` where it is one too many."""
        if not self._rate:
            return
        most = max(2 * self._rate, 1.0)
        left, at = self._left.pop(client, (most, now))
        left = min(left + (now - at) * self._rate, most)
        self._left[client] = (left - (left >= 1), now)
        if len(self._left) > MAX_CLIENTS:  # who asked longest ago has a full bucket, or nearly
            self._left.popitem(last=False)
        if left < 1:
            wait = math.ceil((1 - left) / self._rate)
            raise RefusedError(429, f"too many requests; expected at most {self._rate:g} a second", wait)


class Guard:
    """The layer around the application."""

    def __init__(self, app: ASGIApp, metrics: Metrics, api_key: str | None, rate: float) -> None:
        self._app, self._metrics = app, metrics
        self._key, self._rate = api_key.encode() if api_key else None, Rate(rate)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *HEADERS]}
            await send(message)

        try:
            self._admit(scope)
            await self._app(scope, _once(await _body(scope, receive), receive), answer)
        except RefusedError as refused:
            await refuse(answer, refused)
        except asyncio.CancelledError:  # the service ends, and this took too long
            if not status:
                await refuse(answer, RefusedError(503, "the service is shutting down", 1))
        except _GoneError:
            status = 499  # nobody is there to read an answer
        except Exception:
            logger.exception("%s %s", scope["method"], scope["path"])
            if not status:
                await refuse(answer, RefusedError(500, "the service failed on this request; its log says why"))
        route = scope.get("route")
        path, methods = getattr(route, "path", "other"), getattr(route, "methods", None) or ()
        # A client may call a method anything: only those that the service has are counted by name, the rest together.
        self._metrics.requests.labels(path, scope["method"] if scope["method"] in methods else "any", status).inc()
        self._metrics.seconds.labels(path).observe(time.perf_counter() - began)

    def _admit(self, scope: Scope) -> None:
        if (version := scope.get("http_version", "1.1")) not in ("1.0", "1.1"):
            raise RefusedError(400, f"found HTTP/{version}, expected HTTP/1.1")
        client = scope.get("client") or ("", 0)
        self._rate.take(client[0], time.monotonic())
        path = scope["path"]
        if self._key is None or path in ("/", *OPEN) or path.startswith("/static/"):
            return
        given = [value for name, value in scope["headers"] if name == b"x-api-key"]
        if len(given) != 1 or not hmac.compare_digest(given[0], self._key):
            raise RefusedError(401, "X-API-Key is missing or wrong, expected that of the service")


class _GoneError(Exception):
    """The client has left before its request was whole."""


async def _body(scope: Scope, receive: Receive) -> bytes:
    """The whole body; refused as soon as it is clear that it is too large or too slow."""
    sizes = [value for name, value in scope["headers"] if name == b"content-length"]
    in_chunks = any(name == b"transfer-encoding" for name, _ in scope["headers"])
    if not sizes and not in_chunks:
        return b""
    if sizes and in_chunks:  # what a proxy in between may understand in another way
        raise RefusedError(400, "found two lengths of the body, Content-Length and Transfer-Encoding; send one")
    if any(not size.isdigit() or len(size) > 18 or int(size) > MAX_BODY for size in sizes):
        raise _too_large()
    parts, size = list[bytes](), 0

    async def read() -> None:
        nonlocal size
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _GoneError
            parts.append(message.get("body", b""))
            size, more = size + len(parts[-1]), message.get("more_body", False)
            if size > MAX_BODY:
                raise _too_large()

    try:
        await asyncio.wait_for(read(), BODY_SECONDS)
    except asyncio.TimeoutError as error:
        raise RefusedError(408, f"the body did not arrive within {BODY_SECONDS:g} seconds") from error
    return b"".join(parts)


def _too_large() -> RefusedError:
    return RefusedError(413, f"the body is too large; expected at most {MAX_BODY} bytes")


def _once(body: bytes, receive: Receive) -> Receive:
    """Return what the application receives: the body, then what comes after it, namely that the client leaves."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_on() -> Message:
        return messages.pop() if messages else await receive()

    return receive_on


async def refuse(send: Send, refused: RefusedError) -> None:
    """Answer with one line."""
    body = json.dumps({"error": refused.line}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refused.retry_after is not None:
        headers.append((b"retry-after", str(refused.retry_after).encode()))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
