"""One request over HTTP, its body as it comes, and everything that can go wrong put into words."""

import email.utils
import http.client
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import requests
import urllib3

CHUNK = 1 << 18

MIN_BYTES = 1024
"""A connection that brings fewer bytes than this within the timeout is as good as dead."""

MAX_WAIT = 120.0
"""Seconds of waiting that a server may ask for by Retry-After; what it asks beyond that is cut."""

RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers that may be better next time; every other one but success is final."""

BROKEN = (requests.RequestException, urllib3.exceptions.HTTPError, http.client.HTTPException, ValueError)
"""All that requests and what lies below it raise; a ValueError is an address that cannot be asked for."""


@dataclass(frozen=True)
class Patience:
    """How often an address is tried in a row, and the seconds before the second try (doubled each time) and of silence
    that end a try."""

    attempts: int = 5
    pause: float = 1.0
    timeout: float = 60.0


PATIENCE = Patience()
"""Enough for large files from servers that are busy at times."""


class Failed(Exception):
    """One try that came to nothing: the reason, whether another may do better, the seconds the server asks to wait."""

    def __init__(self, reason: str, transient: bool, wait: float = 0.0, status: int = 0) -> None:
        super().__init__(reason)
        self.transient, self.wait, self.status = transient, wait, status


class NoSuchHost(Failed):
    """The name of the host leads nowhere: there is no connection to the internet, or the name is wrong."""


def request(session: requests.Session, url: str, headers: Mapping[str, str], timeout: float) -> requests.Response:
    """Ask for `url` without decoding on the way; return the open answer (200 or 206) or raise `Failed`."""
    try:
        response = session.get(
            url, headers={"Accept-Encoding": "identity", **headers}, stream=True, timeout=(min(timeout, 20), timeout)
        )
    except BROKEN as error:
        raise _failed(error, timeout) from error
    if response.status_code in (200, 206):
        return response
    response.close()
    status = response.status_code
    raise Failed(f"status {status}", status in RETRIED, _retry_after(response), status)


def length_of(url: str, timeout: float = 10.0) -> int | None:
    """Ask how long the file at `url` is; `None` where the server does not say."""
    try:
        with requests.head(
            url, headers={"Accept-Encoding": "identity"}, allow_redirects=True, timeout=timeout
        ) as answer:
            stated = answer.headers.get("Content-Length", "")
    except BROKEN:
        return None
    return int(stated) if answer.status_code == 200 and stated.isdigit() else None


def stream(response: requests.Response, timeout: float) -> Iterator[bytes]:
    """Yield the body as it comes; raise `Failed` where it breaks off, falls silent or trickles."""
    began, received = time.monotonic(), 0
    while True:
        try:
            # read1 returns what there is: read would sit through a trickle until a whole chunk is there.
            chunk = response.raw.read1(CHUNK, decode_content=False)
        except BROKEN as error:
            raise _failed(error, timeout) from error
        if not chunk:
            return
        yield chunk
        received += len(chunk)
        now = time.monotonic()
        if now - began > timeout:
            if received < MIN_BYTES:
                raise Failed(f"fewer than {MIN_BYTES} bytes within {timeout:g} s", True)
            began, received = now, 0


def _failed(error: Exception, timeout: float) -> Failed:
    """Put an error into words that are the same each time: no object addresses, no ports."""
    if isinstance(error, requests.exceptions.SSLError):
        return Failed("no trusted certificate", False)
    if isinstance(error, requests.TooManyRedirects):
        return Failed("too many redirects", False)
    if isinstance(error, ValueError):
        return Failed("no address that can be asked for", False)
    if "NameResolutionError" in str(error):
        return NoSuchHost("its host is not found, is there a connection to the internet?", True)
    if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError):
        return Failed(f"no answer within {timeout:g} s", True)
    return Failed("no connection, or it broke off", True)


def _retry_after(response: requests.Response) -> float:
    """Seconds that the server asks to wait, at most `MAX_WAIT`."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isdigit():
        return min(float(text), MAX_WAIT)
    try:
        return min(max(email.utils.parsedate_to_datetime(text).timestamp() - time.time(), 0.0), MAX_WAIT)
    except (TypeError, ValueError):
        return 0.0
