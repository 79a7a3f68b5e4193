"""Item images fetched by address: politely, each one checked by decoding it, and none of them fatal.

The folder holds `<item token>.jpg` (.png, .webp), with characters that no file name may hold as %XX, and
`failures.tsv` with the items that have no image and why. The next run fetches what is missing; of the failures only
those that may pass, and those whose address has changed.
"""

import os
import shlex
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import requests
from tqdm import tqdm

from ..errors import InputError
from .atomic import read_atomic
from .download import alone
from .image_failures import FAILURES, Failure, one_line, read_failures, write_failures
from .images import decode, file_stem, images_by_token, require_pillow
from .transfer import Failed, Patience, request, stream

ADDRESS = "image_url"
"""Column of an .item file with the address of an item's image."""

MAX_BYTES = 20 << 20
"""Larger answers are broken off: no picture of a product or a film needs them."""

MAX_NAME = 240
"""Bytes of a file name without its ending; most file systems allow 255 with it and the temporary file's addition."""

SAVE_EVERY = 200
"""Failures between two writings of their list, so that a killed run need not ask for all of them again."""


@dataclass(frozen=True)
class Politeness:
    """Requests at a time in all and to one host, seconds between two to one host, and the number of images in a row
    whose failure may pass after which a host is left alone for this run."""

    workers: int = 16
    per_host: int = 4
    pause: float = 0.05
    give_up: int = 20


POLITENESS = Politeness()
IMAGE_PATIENCE = Patience(attempts=3, timeout=20.0)


@dataclass(frozen=True)
class ImageReport:
    """Numbers of images: wanted, there before, fetched now, failed (earlier failures included), of these such that may
    come on another try, and failed by reason."""

    wanted: int
    kept: int
    fetched: int
    failed: int
    passing: int
    reasons: dict[str, int]


def addresses_of(item_file: Path) -> dict[str, str]:
    """Return item token -> address of its image; nothing where the .item file is missing or has no such column."""
    try:
        table, _ = read_atomic(item_file, ["item_id", ADDRESS])
    except InputError:
        return {}
    rows = zip(table["item_id"], table[ADDRESS], strict=True)
    return {item: address.strip() for item, address in rows if address.strip()}


def images_command(folder: Path) -> str:
    """Return the command that fetches the images of the data set in `folder`."""
    place = f" --data_path={shlex.quote(str(folder.parent))}" if str(folder.parent) != "dataset" else ""
    return f"bbqrec images {shlex.quote(folder.name)}{place}"


def fetch_images(
    urls: Mapping[str, str],
    folder: Path,
    progress: bool = True,
    politeness: Politeness = POLITENESS,
    patience: Patience = IMAGE_PATIENCE,
) -> ImageReport:
    """Fetch the image of each item into `folder`; what fails is listed there in `failures.tsv`.

    Images that are there are kept, whoever put them there. A file appears under its name only once it has been decoded.
    To have final failures tried again too, delete the list.

    Parameters
    ----------
    urls : item token -> address of its image.

    Raises
    ------
    InputError : pillow is missing, or the folder cannot be written. Nothing about a single image raises.
    """
    require_pillow()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder):
            for leftover in folder.glob(".*.tmp"):  # of a killed run; nobody else writes here now
                leftover.unlink()
            return _Run(urls, folder, politeness, patience).go(progress)
    except OSError as error:
        raise InputError(
            f"{error.filename or folder}: cannot be read or written ({error.strerror or error}); make room or correct "
            "its permissions and run again, images that are there are kept"
        ) from error


@dataclass
class _Host:
    """Images of one host, and when it may be asked again."""

    jobs: deque[tuple[str, str]] = field(default_factory=deque)
    lock: threading.Lock = field(default_factory=threading.Lock)
    free_at: float = 0.0
    in_a_row: int = 0

    def next(self) -> tuple[str, str] | None:
        with self.lock:
            return self.jobs.popleft() if self.jobs else None

    def turn(self, pause: float) -> float:
        """Take the next turn; return the seconds until it comes."""
        with self.lock:
            now = time.monotonic()
            mine = max(now, self.free_at)
            self.free_at = mine + pause
            return mine - now

    def hold(self, seconds: float) -> None:
        """Put off all further turns: the host has asked for it."""
        with self.lock:
            self.free_at = max(self.free_at, time.monotonic() + seconds)

    def judge(self, passing: bool) -> None:
        """Count failures in a row that may pass; anything else shows that the host is there."""
        with self.lock:
            self.in_a_row = self.in_a_row + 1 if passing else 0


class _Run:
    """One run over all images of a folder."""

    def __init__(self, urls: Mapping[str, str], folder: Path, politeness: Politeness, patience: Patience) -> None:
        self.folder, self.politeness, self.patience = folder, politeness, patience
        self.wanted = {file_stem(token): url.strip() for token, url in urls.items()}
        self.stop = threading.Event()
        self.lock = threading.Lock()
        self.decoding = threading.Lock()  # decode switches warnings off, which threads cannot do side by side
        self.failures: dict[str, Failure] = {}
        self.fetched = 0

    def go(self, progress: bool) -> ImageReport:
        """Fetch what is missing and return the report."""
        have = {file_stem(token) for token in images_by_token(self.folder)} & self.wanted.keys()
        earlier = read_failures(self.folder / FAILURES)
        self.failures = {
            stem: failure
            for stem, failure in earlier.items()
            if not failure.transient and stem not in have and failure.url == one_line(self.wanted.get(stem, ""))
        }
        hosts: dict[str, _Host] = {}
        for stem, url in self.wanted.items():
            if stem in have or stem in self.failures:
                continue
            if reason := _hopeless(stem, url):
                self.failures[stem] = Failure(one_line(url), False, reason)
            else:
                hosts.setdefault(_host(url), _Host()).jobs.append((stem, url))
        total = sum(len(host.jobs) for host in hosts.values())
        with tqdm(desc="images", total=total, unit="image", ncols=100, disable=not progress, leave=False) as self.bar:
            try:
                self._work(list(hosts.values()))
            finally:
                write_failures(self.folder / FAILURES, self.failures)
        reasons = dict(sorted(Counter(failure.reason for failure in self.failures.values()).items()))
        passing = sum(failure.transient for failure in self.failures.values())
        return ImageReport(len(self.wanted), len(have), self.fetched, len(self.failures), passing, reasons)

    def _work(self, hosts: list[_Host]) -> None:
        """Run the lanes. A host has as many as requests it may see at a time, so no thread waits for a busy host."""
        turns = range(self.politeness.per_host)
        lanes = [host for turn in turns for host in hosts if turn < len(host.jobs)]
        with ThreadPoolExecutor(self.politeness.workers) as pool:
            running = [pool.submit(self._lane, host) for host in lanes]
            try:
                for lane in as_completed(running):
                    lane.result()
            except BaseException:
                self.stop.set()
                for lane in running:
                    lane.cancel()
                raise

    def _lane(self, host: _Host) -> None:
        """Fetch images of one host, one after the other."""
        with requests.Session() as session:
            session.max_redirects = 5
            while not self.stop.is_set() and (job := host.next()):
                stem, url = job
                try:
                    if host.in_a_row >= self.politeness.give_up:
                        raise Failed("not asked for, its host does not answer", True)
                    self._store(stem, self._fetch(session, host, url))
                except Failed as error:
                    if self.stop.is_set():
                        return
                    self._fail(stem, Failure(one_line(url), error.transient, str(error)))
                self.bar.update()

    def _fetch(self, session: requests.Session, host: _Host, url: str) -> bytes:
        """Return the content at `url`, trying again what may pass."""
        for attempt in range(1, self.patience.attempts + 1):
            self.stop.wait(host.turn(self.politeness.pause))
            if self.stop.is_set():
                break
            try:
                content = _content(session, url, self.patience.timeout)
            except Failed as error:
                host.hold(error.wait)
                last = attempt == self.patience.attempts
                if last or not error.transient:
                    host.judge(error.transient)
                    raise
                self.stop.wait(self.patience.pause * 2 ** (attempt - 1))
            else:
                host.judge(False)
                return content
        raise Failed("the run was ended", True)

    def _store(self, stem: str, content: bytes) -> None:
        """Give the image its name once it has been decoded."""
        ending = _ending(content)
        if not ending:
            raise Failed("neither JPEG, PNG nor WEBP", False)
        target = self.folder / f"{stem}{ending}"
        if target.exists():  # only where the file system takes a1 for A1
            raise Failed("another item's image has this file name", False)
        temporary = self.folder / f".{stem}.tmp"
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                os.fsync(file.fileno())
            with self.decoding:
                image, reason = decode(temporary)
            if image is None:
                raise Failed(reason, False)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        with self.lock:
            self.fetched += 1

    def _fail(self, stem: str, failure: Failure) -> None:
        with self.lock:
            self.failures[stem] = failure
            if len(self.failures) % SAVE_EVERY == 0:
                write_failures(self.folder / FAILURES, self.failures)


def _host(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2].lower()


def _hopeless(stem: str, url: str) -> str:
    """Why this image is not even asked for, or ""."""
    try:
        if not url or urlsplit(url).scheme.lower() not in ("http", "https") or not _host(url):
            return "no http(s) address" if url else "no address"
        length = len(stem.encode())
    except ValueError:
        return "neither token nor address may hold this" if url else "no address"
    if not length or length > MAX_NAME:
        return f"a file name of {length} bytes, expected 1 to {MAX_NAME}"
    return ""


def _content(session: requests.Session, url: str, timeout: float) -> bytes:
    """Return the body of an answer that is neither too large nor slower than three times `timeout`."""
    began, content = time.monotonic(), bytearray()
    too_large = Failed(f"more than {MAX_BYTES >> 20} MiB", False)
    with request(session, url, {}, timeout) as response:
        stated = response.headers.get("Content-Length", "")
        if stated.isdigit() and int(stated) > MAX_BYTES:
            raise too_large
        for chunk in stream(response, timeout):
            content += chunk
            if len(content) > MAX_BYTES:
                raise too_large
            if time.monotonic() - began > 3 * timeout:
                raise Failed(f"not whole within {3 * timeout:g} s", True)
    return bytes(content)


def _ending(content: bytes) -> str:
    """Ending of the image's true type, whatever its address says; "" where it is none that is read."""
    if content.startswith(b"\xff\xd8\xff"):
        return ".jpg"
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return ".png"
    return ".webp" if content[:4] == b"RIFF" and content[8:12] == b"WEBP" else ""
