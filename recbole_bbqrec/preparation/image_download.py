"""Item images fetched by address: politely, each one checked by decoding it, and none of them fatal.

The folder holds `<item token>.jpg` (.png, .webp), with characters that no file name may hold as %XX, and
`failures.tsv` with the items that have no image and why. The next run fetches what is missing; of the failures only
those that may pass, and those whose address has changed. To have all of them tried again, delete the list.
"""

import csv
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

ADDRESS = "image_url"
"""Column of an .item file with the address of an item's image."""

FAILURES = "failures.tsv"
HEADER = ["item_id", "url", "tried_again", "reason"]

WORKERS, PER_HOST, HOST_PAUSE = 16, 4, 0.05
"""Requests at a time in all and to one host, and seconds between two to one host."""

ATTEMPTS, PAUSE, TIMEOUT, GIVE_UP = 3, 1.0, 20.0, 20
"""Tries for an image, seconds before the second (doubled each time), seconds of silence that end one, and images in a
row whose failure may pass, after which a host is left alone for this run."""

MAX_BYTES = 20 << 20
"""Larger answers are broken off: no picture of a product or a film needs them."""

ENDINGS = {b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png", b"RIFF": ".webp"}
"""How images begin, and the ending of such a file whatever its address says."""

MAX_NAME = 240
"""Bytes of a file name without its ending; most file systems allow 255 with it and the temporary file's addition."""


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
        """Number of failures that may come on another try."""
        return sum(failure.transient for failure in self.failures.values())

    def __str__(self) -> str:
        failed, reasons = len(self.failures), Counter(failure.reason for failure in self.failures.values())
        fetched = self.wanted - self.kept - failed
        counts = (
            f"images: {self.wanted:,} wanted, {self.kept:,} there before, {fetched:,} fetched, {failed:,} failed, "
            f"{self.passing:,} of them may come on another try"
        )
        return "\n".join([counts, *(f"failed: {reasons[reason]:,} {reason}" for reason in sorted(reasons))])


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


def fetch_images(dataset: Path, folder: Path | None = None, progress: bool = True, partial: bool = True) -> ImageReport:
    """Fetch the images of a data set's items; what fails is listed beside them in `failures.tsv`.

    Images that are there are kept, whoever put them there. A file appears under its name only once it has been decoded,
    and a folder that is new only once all have been asked for: one that is there is taken for complete.

    Parameters
    ----------
    dataset : folder with `<its name>.item`, whose column `image_url` has the addresses.
    folder : where the images go; `<dataset>/images` where none is given.
    partial : a new folder may appear although images have failed that may come on another try.

    Raises
    ------
    InputError : no item has an address, pillow is missing, the folder cannot be written, or images are missing that may
        come on another try and `partial` is off; what has come is kept for that. Nothing about a single image raises.
    """
    require_pillow()
    item_file, folder = dataset / f"{dataset.name}.item", folder or dataset / "images"
    if not (urls := addresses_of(item_file)):
        raise InputError(
            f"{item_file}: found no item with an address, expected a column {ADDRESS}; prepare the data set from files "
            f"that have one, or put images of your own into {folder}"
        )
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: found a file, expected a folder or nothing; remove what is in its place")
    with disk_errors(folder, "and run again, images that are there are kept"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder_lock(folder.parent):
            place = folder if folder.is_dir() else folder.with_name(f".{folder.name}.part")
            place.mkdir(exist_ok=True)
            for leftover in place.glob(".*.tmp"):  # of a killed run; nobody else writes here now
                leftover.unlink()
            report = _Run(urls, place).go(progress)
            if report.passing and place != folder and not partial:
                raise InputError(
                    f"{folder}: {report.passing} of {report.wanted} images did not come but may on another try; run "
                    f"again to go on, or take what there is with `{images_command(dataset)}`"
                )
            if place != folder:
                place.rename(folder)
    return report


class _Run:
    """One run over all images of a folder."""

    def __init__(self, urls: Mapping[str, str], folder: Path) -> None:
        self.folder = folder
        self.wanted = {file_stem(token): url.strip() for token, url in urls.items()}
        self.failures: dict[str, Failure] = {}
        self.free_at: dict[str, float] = defaultdict(float)  # by host: when it may be asked again
        self.in_a_row: Counter[str] = Counter()  # by host: failures that may pass
        self.stop = threading.Event()
        self.lock = threading.Lock()
        self.decoding = threading.Lock()  # decode switches warnings off, which threads cannot do side by side

    def go(self, progress: bool) -> ImageReport:
        """Fetch what is missing and return the report."""
        have = {file_stem(token) for token in images_by_token(self.folder)} & self.wanted.keys()
        earlier = read_failures(self.folder / FAILURES)
        jobs: dict[str, list[tuple[str, str]]] = defaultdict(list)  # by host
        for stem, url in self.wanted.items():
            known = earlier.get(stem)
            if stem in have:
                continue
            if known and known.url == url and not known.transient:
                self.failures[stem] = known
            elif not 0 < len(stem.encode(errors="replace")) <= MAX_NAME:
                self.failures[stem] = Failure(url, False, f"its file name would not have 1 to {MAX_NAME} bytes")
            else:
                jobs["".join(url.lower().split("/")[2:3])].append((stem, url))
        total = sum(map(len, jobs.values()))
        with tqdm(desc="images", total=total, unit="image", ncols=100, disable=not progress, leave=False) as self.bar:
            try:
                self._work(jobs)
            finally:
                write_failures(self.folder / FAILURES, self.failures)
        return ImageReport(len(self.wanted), len(have), self.failures)

    def _work(self, jobs: Mapping[str, Sequence[tuple[str, str]]]) -> None:
        """Run the lanes. A host has as many as requests it may see at a time, so no thread waits for a busy host."""
        lanes = [(host, images[at::PER_HOST]) for at in range(PER_HOST) for host, images in jobs.items()]
        with ThreadPoolExecutor(WORKERS) as pool:
            try:
                for lane in as_completed([pool.submit(self._lane, *lane) for lane in lanes if lane[1]]):
                    lane.result()
            finally:
                self.stop.set()
                pool.shutdown(cancel_futures=True)

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
        tries = 0
        while True:
            with self.lock:
                turn = max(time.monotonic(), self.free_at[host])
                self.free_at[host] = turn + HOST_PAUSE
            if self.stop.wait(turn - time.monotonic()):
                raise Failed("the run was ended", True)
            try:
                return _content(session, url)
            except Failed as error:
                if not error.transient or error.wait == math.inf:
                    raise
                with self.lock:  # a host that asks for time gets it from all lanes
                    self.free_at[host] = max(self.free_at[host], time.monotonic() + error.wait)
                tries += 1
                if tries == ATTEMPTS:
                    raise
                self.stop.wait(PAUSE * 2 ** (tries - 1))

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
    """Write the list, sorted, so that its content does not tell which thread was first; none is no file."""
    if not failures:
        path.unlink(missing_ok=True)
        return
    rows = [(stem, one.url, "yes" if one.transient else "no", one.reason) for stem, one in sorted(failures.items())]
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", errors="replace", newline="") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows([HEADER, *rows])
