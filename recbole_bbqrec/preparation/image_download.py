"""Item images fetched by address: politely, each one checked by decoding it, and none of them fatal.

The folder holds `<item token>.jpg` (.png, .webp), with characters that no file name may hold as %XX, and
`failures.tsv` with the items that have no image and why. The next run fetches what is missing; of the failures only
those that may pass, and those whose address has changed. To have all of them tried again, delete the list.
"""

import csv
import itertools
import math
import os
import shlex
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import requests
from tqdm import tqdm

from ..errors import InputError
from ..storage import replacing
from .atomic import read_atomic
from .download import Failed, answer, disk_errors, folder_lock, stream
from .images import decode, file_stem, images_by_token, require_pillow

ADDRESS = "image_url"  # column of an .item file with the address of an item's image
FAILURES = "failures.tsv"
HEADER = ["item_id", "url", "tried_again", "reason"]
WORKERS, PER_HOST = 16, 4  # requests at a time in all, and to one host
HOST_PAUSE = 0.05  # seconds between two requests to one host
ATTEMPTS = 3  # tries for an image
PAUSE = 1.0  # seconds before the second try, doubled each time
TIMEOUT = 20.0  # seconds of silence that end a try
GIVE_UP = 20  # images in a row whose failure may pass, after which a host is left alone for this run
MAX_BYTES = 20 << 20  # larger answers are broken off: no picture of a product or a film needs them
MAX_NAME = 240  # bytes of a file name; most file systems allow 255 with its ending and the temporary file's addition
ENDINGS = {b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png", b"RIFF": ".webp"}  # by how a file begins


class Failure(NamedTuple):
    """Why an item has no image, and whether another run may do better."""

    url: str
    transient: bool
    reason: str


class ImageReport(NamedTuple):
    """Numbers of images wanted and there before, and by file name those that failed, now or earlier for good."""

    wanted: int
    kept: int
    failures: Mapping[str, Failure]

    @property
    def passing(self) -> int:
        """Number of failed images that may still come on another try."""
        return sum(failure.transient for failure in self.failures.values())

    def __str__(self) -> str:
        failed, reasons = len(self.failures), Counter(failure.reason for failure in self.failures.values())
        fetched = self.wanted - self.kept - failed
        counts = f"images: {self.wanted:,} wanted, {self.kept:,} there before, {fetched:,} fetched, {failed:,} failed"
        counts += f", {self.passing:,} of them may come on another try"
        return "\n".join([counts, *(f"failed: {count:,} {reason}" for reason, count in sorted(reasons.items()))])


def addresses_of(item_file: Path) -> dict[str, str]:
    """Return item token -> address of its image; nothing where the .item file is missing or has no such column."""
    try:
        table, _ = read_atomic(item_file, ["item_id", ADDRESS])
    except InputError:
        return {}
    addresses = table.set_index("item_id")[ADDRESS].str.strip()
    return addresses[addresses != ""].to_dict()


def images_command(folder: Path) -> str:
    """Return the command that fetches the images of the data set in `folder`."""
    place = f" --data_path={shlex.quote(str(folder.parent))}" if str(folder.parent) != "dataset" else ""
    return f"bbqrec images {shlex.quote(folder.name)}{place}"


def fetch_images(dataset: Path, folder: Path | None = None, progress: bool = True, partial: bool = True) -> ImageReport:
    """Fetch the images of a data set's items into `folder`, `<dataset>/images` where none is given.

    Addresses stand in the column `image_url` of `<dataset>/<its name>.item`. Images that are there are kept, whoever
    put them there. A file appears under its name only once it has been decoded, and a folder that is new only once all
    have been asked for: one that is there is taken for complete. Nothing about a single image raises. Unless `partial`,
    images that may come on another try are an `InputError`, and a new folder does not appear; what came is kept.
    """
    require_pillow()
    item_file, folder = dataset / f"{dataset.name}.item", folder or dataset / "images"
    if not (urls := addresses_of(item_file)):
        remedy = f"prepare the data set from files that have one, or put images of your own into {folder}"
        raise InputError(f"{item_file}: found no item with an address, expected a column {ADDRESS}; {remedy}")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: found a file, expected a folder or nothing; remove what is in its place")
    with disk_errors(folder, "and run again; images already there are kept"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder_lock(folder.parent):
            place = folder if folder.is_dir() else folder.with_name(f".{folder.name}.part")
            place.mkdir(exist_ok=True)
            for leftover in place.glob(".*.tmp"):  # of a killed run; nobody else writes here now
                leftover.unlink()
            report = _Run(place).go(urls, progress)
            if report.passing and place != folder and not partial:
                fault = f"{report.passing} of {report.wanted} images did not come but may on another try"
                remedy = f"run again to go on, or take what there is with `{images_command(dataset)}`"
                raise InputError(f"{folder}: {fault}; {remedy}")
            if place != folder:
                place.rename(folder)
    return report


class _Run:
    """One run over all images of a folder, in lanes that ask one host for one image after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.failures: dict[str, Failure] = {}
        self.free_at: dict[str, float] = defaultdict(float)  # by host: when it may be asked again
        self.in_a_row: Counter[str] = Counter()  # by host: failures that may pass
        self.stop = threading.Event()
        self.lock = threading.Lock()
        self.decoding = threading.Lock()  # decode switches warnings off, which threads cannot do side by side

    def go(self, urls: Mapping[str, str], progress: bool) -> ImageReport:
        """Fetch what is missing of the images at `urls`, by item token, and return the report."""
        wanted = {file_stem(token): url for token, url in urls.items()}
        have = {file_stem(token) for token in images_by_token(self.folder)} & wanted.keys()
        earlier = read_failures(self.folder / FAILURES)
        jobs: dict[str, list[tuple[str, str]]] = defaultdict(list)  # by host
        for stem, url in wanted.items():
            known = earlier.get(stem)
            if stem in have:
                continue
            if known and known.url == url and not known.transient:
                self.failures[stem] = known
            elif not 0 < len(stem.encode(errors="replace")) <= MAX_NAME:
                self.failures[stem] = Failure(url, False, f"its file name would not have 1 to {MAX_NAME} bytes")
            else:
                jobs["".join(url.lower().split("/")[2:3])].append((stem, url))
        # A host has as many lanes as requests it may see at a time, so no thread waits for a busy host.
        lanes = [(host, images[at::PER_HOST]) for at in range(PER_HOST) for host, images in jobs.items()]
        total = sum(map(len, jobs.values()))
        self.bar = tqdm(desc="images", total=total, unit="image", ncols=100, disable=not progress, leave=False)
        with self.bar, ThreadPoolExecutor(WORKERS) as pool:
            try:
                for lane in as_completed([pool.submit(self._lane, *lane) for lane in lanes]):
                    lane.result()
            finally:
                self.stop.set()
                pool.shutdown(cancel_futures=True)
                write_failures(self.folder / FAILURES, self.failures)
        return ImageReport(len(wanted), len(have), self.failures)

    def _lane(self, host: str, images: Sequence[tuple[str, str]]) -> None:
        """Fetch images of one host, one after the other."""
        with requests.Session() as session:
            for stem, url in images:
                try:
                    if self.in_a_row[host] >= GIVE_UP:
                        raise Failed("not asked for, its host does not answer", True)
                    self._store(stem, self._fetch(session, host, url))
                    self.in_a_row[host] = 0
                except Failed as error:
                    if self.stop.is_set():
                        return
                    self.in_a_row[host] = self.in_a_row[host] + 1 if error.transient else 0
                    self.failures[stem] = Failure(url, error.transient, str(error))
                self.bar.update()

    def _fetch(self, session: requests.Session, host: str, url: str) -> bytes:
        """Return the content at `url`, trying again what may pass."""
        for tries in itertools.count(1):
            with self.lock:
                turn = max(time.monotonic(), self.free_at[host])
                self.free_at[host] = turn + HOST_PAUSE
            if self.stop.wait(turn - time.monotonic()):
                break
            try:
                return _content(session, url)
            except Failed as error:
                if not error.transient or error.wait == math.inf:
                    raise
                with self.lock:  # a host that asks for time gets it from all lanes
                    self.free_at[host] = max(self.free_at[host], time.monotonic() + error.wait)
                if tries == ATTEMPTS:
                    raise
                self.stop.wait(PAUSE * 2 ** (tries - 1))
        raise Failed("the run was ended", True)

    def _store(self, stem: str, content: bytes) -> None:
        """Give the image its name, with the ending of its true type, once it has been decoded."""
        endings = [ending for start, ending in ENDINGS.items() if content.startswith(start)]
        if not endings:
            raise Failed("neither JPEG, PNG nor WEBP", False)
        target, temporary = self.folder / f"{stem}{endings[0]}", self.folder / f".{stem}.tmp"
        if target.exists():  # only where the file system takes a1 for A1
            raise Failed("another item's image has this file name", False)
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


def _content(session: requests.Session, url: str) -> bytes:
    content = bytearray()
    with answer(url, {}, TIMEOUT, session) as response:
        for chunk in stream(response, TIMEOUT):
            content += chunk
            if len(content) > MAX_BYTES:
                raise Failed(f"more than {MAX_BYTES >> 20} MiB", False)
    return bytes(content)


def read_failures(path: Path) -> dict[str, Failure]:
    """Read the list of an earlier run; without one, or where it is unreadable, everything is tried."""
    try:
        with open(path, encoding="utf-8", errors="replace", newline="") as file:
            rows = [row for row in csv.reader(file, delimiter="\t") if len(row) == len(HEADER)]
    except (FileNotFoundError, csv.Error):
        return {}
    return {stem: Failure(url, again == "yes", why) for stem, url, again, why in rows[1:] if rows[0] == HEADER}


def write_failures(path: Path, failures: Mapping[str, Failure]) -> None:
    """Write the list, sorted, so that its content does not tell which thread was first; no file if it is empty."""
    if not failures:
        return path.unlink(missing_ok=True)
    rows = [(stem, one.url, "yes" if one.transient else "no", one.reason) for stem, one in sorted(failures.items())]
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", errors="replace", newline="") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows([HEADER, *rows])
