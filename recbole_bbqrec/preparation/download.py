"""Public files fetched whole or not at all: resumed, retried, taken from mirrors, checked again on every run.

Beside `<name>` lies `<name>.sha256` with its hash, in the form that `sha256sum -c` reads. While a file is on its way
it is `<name>.part`, and `<name>.part.json` says from where and which version of it; only a part of the same version is
ever continued.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from filelock import FileLock, Timeout
from tqdm import tqdm

from ..errors import InputError
from ..storage import replacing, write_json
from .transfer import PATIENCE, Failed, NoSuchHost, Patience, length_of, request, stream

PROGRESS = 1 << 20
"""Bytes that a try must bring for the count of failures to start anew: long files outlive many broken connections."""


@dataclass(frozen=True)
class Source:
    """A public file: its name in the folder, its mirrors in order, and what is known about its content."""

    name: str
    urls: tuple[str, ...]
    size: int | None = None
    sha256: str | None = None


def missing(sources: Sequence[Source], folder: Path) -> list[Source]:
    """Return those of `sources` that `fetch` would have to fetch."""
    return [source for source in sources if not (folder / source.name).is_file()]


def fetch(sources: Sequence[Source], folder: Path, progress: bool = True, patience: Patience = PATIENCE) -> list[Path]:
    """Make sure that every source is at `folder / name`, whole, and return these paths.

    Files that are there are checked against what is known of them (size, sha256) or was recorded when they were
    fetched; a file put there by hand, of which nothing is known, is recorded as it is. Others are fetched. Processes
    that want the same folder wait for each other.

    Raises
    ------
    InputError : a file cannot be fetched from any mirror or kept, or is not the one expected.
    """
    for source in sources:
        _check_source(source)
    fetched: set[str] = set()
    try:
        if missing(sources, folder):
            folder.mkdir(parents=True, exist_ok=True)
            with alone(folder):
                wanted = missing(sources, folder)  # again: another process may have fetched them meanwhile
                _announce(wanted, folder)
                for source in wanted:
                    _fetch_one(source, folder / source.name, progress, patience, wanted)
                    fetched.add(source.name)
        for source in sources:
            if source.name not in fetched:
                _check_kept(source, folder / source.name, progress)
    except OSError as error:
        raise InputError(
            f"{error.filename or folder}: cannot be read or written ({error.strerror or error}); make room or correct "
            "its permissions, or name another folder with --raw_dir="
        ) from error
    return [folder / source.name for source in sources]


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process; wait while another one holds it."""
    lock = FileLock(folder / ".fetch.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logging.getLogger().info(f"{folder}: waiting for another process that fetches into it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _check_source(source: Source) -> None:
    if not source.name or Path(source.name).name != source.name or source.name.startswith("."):
        raise InputError(f"source {source.name!r}: expected the plain name of a file, without folders; correct it")
    if source.sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", source.sha256):
        raise InputError(f"source {source.name}: found sha256 {source.sha256!r}, expected 64 hex digits; correct it")


def _announce(wanted: Sequence[Source], folder: Path) -> None:
    """Say what will be fetched, and refuse early where the disk cannot hold it."""
    # Where a size is not known, the first mirror that answers tells it.
    sizes = {source: source.size or next(filter(None, map(length_of, source.urls)), None) for source in wanted}
    for source, size in sizes.items():
        about = "size not known" if size is None else f"{size / 1e6:,.1f} MB"
        logging.getLogger().info(f"fetching {source.name} ({about}) into {folder}")
    parts = [folder / f"{source.name}.part" for source, size in sizes.items() if size is not None]
    need = sum(size or 0 for size in sizes.values()) - sum(part.stat().st_size for part in parts if part.is_file())
    free = shutil.disk_usage(folder).free
    if need > free:
        raise InputError(
            f"{folder}: found {free / 1e6:,.0f} MB of free disk space, expected {need / 1e6:,.0f} MB for "
            f"{', '.join(source.name for source in wanted)}; make room or name another folder with --raw_dir="
        )


def _check_kept(source: Source, path: Path, progress: bool) -> None:
    """Check a file that was there before: by size, by its known or recorded hash."""
    size, record = path.stat().st_size, path.with_name(f"{path.name}.sha256")
    mend = f"delete it and {record.name} to have it fetched; where you put the right file there, {record.name} alone"
    if not size or source.size not in (None, size):
        raise InputError(f"{path}: found {size} bytes, expected {source.size or 'some'}; {mend}")
    found = _sha256(path, progress)
    expected = (source.sha256 or "").lower()
    if not expected and record.is_file():
        expected = (record.read_text(encoding="utf-8", errors="replace").split() or [""])[0]
    if not expected:
        try:
            _record(path, found)
        except OSError as error:  # files fetched by hand may lie where nothing can be written
            logging.getLogger().info(f"{record}: the hash is not recorded ({error.strerror})")
    elif found != expected:
        raise InputError(f"{path}: found sha256 {found}, expected {expected}; {mend}")


def _record(path: Path, digest: str) -> None:
    """Write `<name>.sha256` beside the file."""
    with replacing(path.with_name(f"{path.name}.sha256")) as temporary:
        Path(temporary).write_text(f"{digest}  {path.name}\n", encoding="utf-8")


def _sha256(path: Path, progress: bool) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file, _bar(f"check {path.name}", path.stat().st_size, 0, progress) as bar:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def _bar(what: str, total: int | None, initial: int, progress: bool) -> tqdm:
    return tqdm(
        desc=what, total=total, initial=initial, unit="B", unit_scale=True, ncols=100, disable=not progress, leave=False
    )


class _Part:
    """The part of a file that has arrived: `<name>.part`, and in `<name>.part.json` the version it is a part of."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.with_name(f"{target.name}.part")
        self._note = target.with_name(f"{target.name}.part.json")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    @property
    def version(self) -> dict[str, Any]:
        """`url`, `validator` and `length` of the file that this is a part of; empty where nothing says so."""
        try:
            found = json.loads(self._note.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) and {"url", "validator", "length"} <= found.keys() else {}

    def begin(self, version: Mapping[str, Any]) -> None:
        self.path.write_bytes(b"")  # before the note, which must never stand beside bytes of another version
        write_json(self._note, dict(version))

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    def finish(self, digest: str) -> None:
        with open(self.path, "r+b") as file:
            os.fsync(file.fileno())
        _record(self.target, digest)
        os.replace(self.path, self.target)
        self._note.unlink(missing_ok=True)


def _fetch_one(source: Source, path: Path, progress: bool, patience: Patience, wanted: Sequence[Source]) -> None:
    """Fetch a file from the first mirror that has it."""
    part, reasons = _Part(path), []
    # The mirror that a part came from goes first: only there it can be continued.
    for url in sorted(source.urls, key=lambda url: url != part.version.get("url")):
        reason = _try_mirror(source, url, part, progress, patience)
        if not reason:
            return
        reasons.append(f"{url}: {reason}")
    by_hand = " and ".join(other.urls[0] if other.urls else other.name for other in wanted)
    raise InputError(
        f"{path}: could not be fetched ({'; '.join(reasons) or 'no address is known'}); run the same command again to "
        f"go on where it stopped, or fetch {by_hand} by hand and name their folder with bbqrec prepare ... --raw_dir="
    )


def _try_mirror(source: Source, url: str, part: _Part, progress: bool, patience: Patience) -> str:
    """Fetch from one address; return "" or the reason why it was given up."""
    failures, most = 0, part.size if part.version.get("url") == url else 0
    with requests.Session() as session:
        session.max_redirects = 10
        while True:
            try:
                resumed = _receive(session, source, url, part, progress, patience.timeout)
                _accept(source, part, progress, resumed)
                return ""
            except Failed as error:
                if part.size >= most + PROGRESS:
                    failures, most = 0, part.size
                failures += 1
                if failures >= patience.attempts or not error.transient or isinstance(error, NoSuchHost):
                    return f"{error}, after {failures} tries" if failures > 1 else str(error)
                wait = max(error.wait, patience.pause * 2 ** (failures - 1))
                logging.getLogger().info(f"{url}: {error}; trying again in {wait:g} s")
                time.sleep(wait)


def _receive(session: requests.Session, source: Source, url: str, part: _Part, progress: bool, timeout: float) -> bool:
    """Bring the part up to the whole file; return whether bytes of an earlier try are in it."""
    version = part.version
    # Without a validator nothing but a known hash tells whether the file is still the same one.
    usable = version.get("url") == url and (version["validator"] or source.sha256)
    at = part.size if usable else 0
    if at and at == version["length"]:
        return True
    asked = {"Range": f"bytes={at}-", "If-Range": version["validator"]} if at else {}
    try:
        response = request(session, url, {key: value for key, value in asked.items() if value}, timeout)
    except Failed as error:
        if at and error.status == 416:
            part.discard()
            raise Failed("the file has changed meanwhile", True) from error
        raise
    with response:
        if at and response.status_code == 206:
            _check_continues(response, part, at)
        elif response.status_code == 200:
            at = 0
            part.begin({"url": url, "validator": _validator(response), "length": _length(response, source)})
        else:
            raise Failed(f"status {response.status_code} for a whole file", False)
        length = part.version["length"]
        with open(part.path, "ab") as file, _bar(source.name, length, at, progress) as bar:
            for chunk in stream(response, timeout):
                file.write(chunk)
                bar.update(len(chunk))
    return at > 0


def _check_continues(response: requests.Response, part: _Part, at: int) -> None:
    """Make sure that an answer continues the part; some servers know ranges and not If-Range."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
    version = part.version
    same = found and int(found[1]) == at and _validator(response) in ("", version["validator"])
    if not same or (version["length"] and found and found[2] not in ("*", str(version["length"]))):
        part.discard()
        raise Failed("the file has changed meanwhile", True)


def _validator(response: requests.Response) -> str:
    """What tells this version of the file from others: a strong ETag, else the time of its last change, else ""."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified", "")


def _length(response: requests.Response, source: Source) -> int | None:
    """Length of the whole file, once the answer can be the file that is wanted."""
    headers = response.headers
    stated = headers.get("Content-Length", "")
    length = int(stated) if stated.isdigit() else None
    if headers.get("Content-Type", "").startswith("text/html") and not source.name.endswith((".html", ".htm")):
        raise Failed("found a web page, expected a file", False)
    # Servers send .gz files as they are and call that an encoding; any other encoding makes another file of it.
    if headers.get("Content-Encoding", "identity") != "identity" and not source.name.endswith((".gz", ".tgz")):
        raise Failed(f"found the file packed as {headers['Content-Encoding']}, expected it as it is", False)
    if length is not None and source.size is not None and length != source.size:
        raise Failed(_wrong_size(length, source.size), False)
    if length is None and source.size is None and source.sha256 is None and "Transfer-Encoding" not in headers:
        raise Failed("the server does not say how long the file is, and nothing else tells when it is whole", False)
    return source.size if length is None else length


def _wrong_size(found: int, expected: int | None) -> str:
    return f"found {found} bytes, expected {expected} (if its publisher replaced it, correct size and sha256)"


def _accept(source: Source, part: _Part, progress: bool, resumed: bool) -> None:
    """Give the file its name once size and hash are right."""
    size, expected = part.size, part.version["length"]
    if expected is not None and size < expected:
        raise Failed("the connection broke off", True)
    digest = _sha256(part.path, progress) if size else ""
    if not size or expected not in (None, size):
        part.discard()
        raise Failed(_wrong_size(size, expected) if size else "found an empty file", False)
    if source.sha256 and digest != source.sha256.lower():
        part.discard()
        # What was put together from several tries may be whole when it comes in one.
        raise Failed(f"found sha256 {digest}, expected {source.sha256.lower()}", resumed)
    part.finish(digest)
