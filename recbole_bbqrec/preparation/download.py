"""Public files fetched whole or not at all: resumed, retried, taken from mirrors, checked again on every run.

Beside `<name>` lies `<name>.sha256` with its hash, in the form that `sha256sum -c` reads. While a file is on its way
it is `<name>.part`, and `<name>.part.json` says from where and which version of it; only a part of the same version is
ever continued.
"""

import contextlib
import hashlib
import http.client
import json
import logging
import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import requests
import urllib3
from filelock import FileLock, Timeout
from tqdm import tqdm

from ..errors import InputError
from ..storage import replacing, write_json

ATTEMPTS = 5  # failures in a row until a mirror is given up
PAUSE = 1.0  # seconds before the second try, doubled each time
TIMEOUT = 60.0  # seconds of silence that end a try
PROGRESS = 1 << 20  # bytes of a try that start the count anew: long files outlive many broken connections
MIN_BYTES = 16 << 10  # a connection that brings fewer within the timeout is as good as dead
MAX_WAIT = 120.0  # most seconds of waiting that a server gets by Retry-After
REPLACED = " (if its publisher replaced it, correct size and sha256)"


class Failed(Exception):
    """A failed try: whether another may help, and after how many seconds (infinite: only in another run)."""

    def __init__(self, reason: str, transient: bool, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.transient, self.wait = transient, wait


@dataclass(frozen=True)
class Source:
    """A public file: its name in the folder, its mirrors in order, what is known of its content, and a page of it."""

    name: str
    urls: tuple[str, ...]
    size: int | None = None
    sha256: str | None = None
    page: str = ""


def fetch(sources: Sequence[Source], folder: Path, progress: bool = True) -> list[Path]:
    """Make sure that every source is at `folder / name`, whole, and return these paths.

    Files that are there are checked against what is known of them (size, sha256) or was recorded when they were
    fetched; a file put there by hand, of which nothing is known, is recorded as it is. Processes that want the same
    folder wait for each other.
    """
    files = [_File(source, folder, progress) for source in sources]
    with disk_errors(folder, "or name another folder with --raw_dir="):
        if not all(file.path.is_file() for file in files):
            folder.mkdir(parents=True, exist_ok=True)
            with folder_lock(folder):
                for file in files:
                    if not file.path.is_file():  # asked again: another process may have fetched it meanwhile
                        file.fetch()
        for file in files:
            file.check()
    return [file.path for file in files]


@contextlib.contextmanager
def disk_errors(folder: Path, advice: str) -> Iterator[None]:
    """Turn errors of the file system within the block into an `InputError`."""
    try:
        yield
    except OSError as error:
        fault = f"{error.filename or folder}: cannot be read or written ({error.strerror or error})"
        raise InputError(f"{fault}; make room or correct its permissions, {advice}") from error


def folder_lock(folder: Path) -> contextlib.AbstractContextManager:
    """Hold `folder` for this process; wait while another one holds it."""
    lock = FileLock(folder / ".fetch.lock")
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        logging.getLogger().warning(f"{folder}: waiting for another process that fetches into it")
        return lock.acquire()


@contextlib.contextmanager
def answer(url: str, headers: Mapping[str, str], timeout: float, client: Any = requests) -> Iterator[requests.Response]:
    """Ask for `url` and yield the open answer, its body as sent; whatever fails until the block ends is `Failed`."""
    headers = {"Accept-Encoding": "identity", **headers}
    try:
        with client.get(url, headers=headers, stream=True, timeout=(min(timeout, 20), timeout)) as response:
            status, wait = response.status_code, 0.0
            if status != 200 and not ("Range" in headers and status in (206, 416)):
                with contextlib.suppress(urllib3.exceptions.InvalidHeader):
                    wait = min(urllib3.Retry().get_retry_after(response.raw) or 0.0, MAX_WAIT)
                raise Failed(f"status {status}", status in {408, 425, 429, 500, 502, 503, 504}, wait)
            yield response
    except (requests.exceptions.SSLError, requests.TooManyRedirects, ValueError) as error:  # ValueError: the address
        raise Failed(f"its address cannot be used ({type(error).__name__})", False) from error
    except (requests.Timeout, urllib3.exceptions.TimeoutError) as error:
        raise Failed(f"no answer within {timeout:g} s", True) from error
    except (requests.RequestException, urllib3.exceptions.HTTPError, http.client.HTTPException) as error:
        if "NameResolutionError" in str(error):
            raise Failed("its host is not found, is there a connection to the internet?", True, math.inf) from error
        raise Failed("no connection, or it broke off", True) from error


def stream(response: requests.Response, timeout: float) -> Iterator[bytes]:
    """Yield the body as it comes; raise `Failed` where it trickles."""
    began, received = time.monotonic(), 0
    # read1 returns what there is: read would sit through a trickle until a whole chunk is there.
    while chunk := response.raw.read1(1 << 18, decode_content=False):
        yield chunk
        received += len(chunk)
        if time.monotonic() - began > timeout:
            if received < MIN_BYTES:
                raise Failed(f"fewer than {MIN_BYTES} bytes within {timeout:g} s", True)
            began, received = time.monotonic(), 0


class _File:
    """A source in its folder: there, or on its way as a `part` of the version that `note` names."""

    def __init__(self, source: Source, folder: Path, progress: bool) -> None:
        self.source, self.sha256, self.path = source, (source.sha256 or "").lower(), folder / source.name
        self.part, self.note, self.record = (Path(f"{self.path}{end}") for end in (".part", ".part.json", ".sha256"))
        self.bar = partial(tqdm, unit="B", unit_scale=True, ncols=100, leave=False, disable=not progress)

    def check(self) -> None:
        """Check a file that is there: by size, by its known or recorded hash; record the hash where there is none."""
        recorded = self.record.read_text(encoding="utf-8", errors="replace").split() if self.record.is_file() else []
        expected = self.sha256 or "".join(recorded[:1])
        if wrong := self._fault(self.path, self.source.size, expected):
            name = self.record.name
            remedy = f"delete it and {name} to have it fetched; where you put the right file there, {name} alone"
            raise InputError(f"{self.path}: {wrong}; {remedy}")
        if not recorded:
            line = f"{self._hash(self.path)}  {self.path.name}\n"
            with contextlib.suppress(OSError):  # files fetched by hand may lie where nothing can be written
                for leftover in (self.note, *self.path.parent.glob(f".{self.path.name}.*.tmp")):  # of a killed run too
                    leftover.unlink(missing_ok=True)
                with replacing(self.record) as temporary:
                    Path(temporary).write_text(line, encoding="utf-8")

    def _fault(self, path: Path, size: int | None, sha256: str) -> str:
        """Return what is wrong with the file at `path`, or ""."""
        found = path.stat().st_size
        if not found or size not in (None, found):
            return f"found {found} bytes, expected {size or 'some'}"
        digest = self._hash(path) if sha256 else ""
        return "" if digest == sha256 else f"found sha256 {digest}, expected {sha256}"

    def _hash(self, path: Path) -> str:
        digest = hashlib.sha256()
        with open(path, "rb") as file, self.bar(desc=f"check {path.name}", total=path.stat().st_size) as bar:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
                bar.update(len(chunk))
        return digest.hexdigest()

    def fetch(self) -> None:
        """Fetch the file from the first mirror that has it."""
        reasons = []
        # The mirror that a part came from goes first: only there it can be continued.
        for url in sorted(self.source.urls, key=lambda url: url != self._version()[0]):
            try:
                return self._fetch_from(url)
            except Failed as error:
                reasons.append(f"{url}: {error}")
        why = "; ".join(reasons) or "no address is known"
        place = f" from {self.source.page}" if self.source.page else ""
        remedy = f"fetch it by hand{place} and name its folder with --raw_dir="
        remedy = f"run again to go on where it stopped, or {remedy}" if self.source.urls else remedy
        raise InputError(f"{self.path}: could not be fetched ({why}); {remedy}")

    def _version(self) -> tuple[str, str, int | None]:
        """Address, validator and length of the file that the part is of; empty where nothing says so."""
        try:
            found = json.loads(self.note.read_text(encoding="utf-8"))
            return found["url"], found["validator"], found["length"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return "", "", None

    def _arrived(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0

    def _fetch_from(self, url: str) -> None:
        """Fetch from one mirror, trying again while that may help."""
        failures = most = 0
        while True:
            try:
                return self._accept(resumed=self._receive(url))
            except Failed as error:
                if self._arrived() >= most + PROGRESS:
                    failures, most = 0, self._arrived()
                failures += 1
                if failures >= ATTEMPTS or not error.transient or error.wait == math.inf:
                    raise Failed(f"{error}, after {failures} tries" if failures > 1 else str(error), False) from error
                wait = max(error.wait, PAUSE * 2 ** (failures - 1))
                logging.getLogger().info(f"{url}: {error}; trying again in {wait:g} s")
                time.sleep(wait)

    def _receive(self, url: str) -> bool:
        """Bring the part up to the whole file; return whether bytes of an earlier try are in it."""
        origin, validator, length = self._version()
        # Without a validator nothing but a known hash tells whether the file is still the same one.
        at = self._arrived() if origin == url and (validator or self.sha256) else 0
        if at and at == length:
            return True
        asked = {"Range": f"bytes={at}-", **({"If-Range": validator} if validator else {})} if at else {}
        with answer(url, asked, TIMEOUT) as response:
            tag, place = response.headers.get("ETag", ""), response.headers.get("Content-Range", "")
            found = tag if tag.startswith('"') else response.headers.get("Last-Modified", "")  # weak tags are no use
            if response.status_code == 200:
                at, length = 0, self._whole_length(response)
                self.part.write_bytes(b"")  # before the note, which must never stand beside bytes of another version
                write_json(self.note, {"url": url, "validator": found, "length": length})
            # Some servers know ranges and not If-Range.
            elif found not in ("", validator) or not re.fullmatch(rf"bytes {at}-\d+/({length or '[0-9]+'}|\*)", place):
                self.part.unlink()
                raise Failed("the file has changed meanwhile", True)
            size = "size not known" if length is None else f"{length / 1e6:,.1f} MB"
            logging.getLogger().info(f"fetching {self.path.name} ({size}) into {self.path.parent}")
            with open(self.part, "ab") as file, self.bar(desc=self.path.name, total=length, initial=at) as bar:
                for chunk in stream(response, TIMEOUT):
                    file.write(chunk)
                    bar.update(len(chunk))
        return at > 0

    def _whole_length(self, response: requests.Response) -> int | None:
        """Length of the file, once the answer can be the one that is wanted."""
        headers, size, name = response.headers, self.source.size, self.path.name
        stated = headers.get("Content-Length", "")
        length = int(stated) if stated.isdigit() else size
        if headers.get("Content-Type", "").startswith("text/html") and not name.endswith((".html", ".htm")):
            raise Failed("found a web page, expected a file", False)
        # Servers send .gz files as they are and call that an encoding; any other encoding makes another file of it.
        if headers.get("Content-Encoding", "identity") != "identity" and not name.endswith((".gz", ".tgz")):
            raise Failed(f"found the file packed as {headers['Content-Encoding']}, expected it as it is", False)
        if size not in (None, length):
            raise Failed(f"found {length} bytes, expected {size}{REPLACED}", False)
        if length is None and not self.sha256 and "Transfer-Encoding" not in headers:
            raise Failed("the server does not say how long the file is, and nothing else tells when it is whole", False)
        return length

    def _accept(self, resumed: bool) -> None:
        """Give the file its name once size and hash are right."""
        length = self._version()[2]
        if length is not None and self._arrived() < length:
            raise Failed("the connection broke off", True)
        if wrong := self._fault(self.part, length, self.sha256):
            self.part.unlink()
            raise Failed(f"{wrong}{REPLACED}", resumed)  # what several tries have brought may be whole in one
        with open(self.part, "r+b") as file:
            os.fsync(file.fileno())
        self.record.unlink(missing_ok=True)  # that of an earlier version
        os.replace(self.part, self.path)  # the note goes when the hash is recorded
