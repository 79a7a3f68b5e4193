"""Which process does which work in a folder that several share, on one machine or on many.

A claim is a file that only one process can create (`O_EXCL`, which also holds on a shared disk without locks). Its
owner touches it every few seconds; one that has not been touched for `STALE` seconds belongs to a dead process, unless
that process is seen to be alive: the machine may have slept, or the process may have been stopped. A claim that is
taken over is not overwritten, as two processes could do so at once: its successor is written beside it with the next
number, which again only one process can create. The highest number counts.
"""

import contextlib
import json
import os
import platform
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import psutil

BEAT, STALE = 10.0, 60.0
"""Seconds between two touches of a claim, and seconds without a touch after which it is taken over."""
PAUSE = 1.0
"""Seconds between two looks at claims of others."""

Job = TypeVar("Job")


class Claim:
    """This process's claim to the work called `path`, see `take`; hold it no longer than the work takes."""

    def __init__(self, path: Path, number: int) -> None:
        self._path, self._number, self._released = path, number, threading.Event()
        threading.Thread(target=self._touch, daemon=True).start()

    def _touch(self) -> None:
        while not self._released.wait(BEAT):
            with contextlib.suppress(OSError):  # a shared disk may be away for a moment
                os.utime(_file(self._path, self._number))

    def release(self) -> None:
        """Let others have the work; earlier claims go first, as one left alone would look like a dead process's."""
        self._released.set()
        for number in sorted(number for number in _numbers(self._path) if number <= self._number):
            _file(self._path, number).unlink(missing_ok=True)


def take(path: Path) -> Claim | None:
    """Claim the work called `path`, making its folder; none where another living process has claimed it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    last = max(_numbers(path), default=0)
    if last and not _is_dead(path, last):
        return None
    try:
        handle = os.open(_file(path, last + 1), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return None
    with os.fdopen(handle, "w") as file:
        own = {"host": platform.node(), "pid": os.getpid(), "place": _place(), "started": _start_of(os.getpid())}
        json.dump(own, file)
    return Claim(path, last + 1)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Wait until no other process is at the work called `path`, and keep others from it within the block."""
    while (claim := take(path)) is None:
        time.sleep(PAUSE / 10)
    try:
        yield
    finally:
        claim.release()


def in_turn(
    jobs: Iterable[Job], work_of: Callable[[Job], Path], waits: Callable[[int], object] = lambda n: None
) -> Iterator[Job]:
    """Yield each job while this process holds the claim to its work; those that others are working on come later.

    The caller has to find out whether another process has done one meanwhile. `waits` is called once, with the number
    of jobs left, when others are at work on all of them.
    """
    left, told = list(jobs), False
    while left:
        for job in left:
            if claim := take(work_of(job)):
                break
        else:
            if not told:
                waits(len(left))
            told = True
            time.sleep(PAUSE)
            continue
        left.remove(job)
        try:
            yield job
        finally:
            claim.release()


def _file(path: Path, number: int) -> Path:
    return path.with_name(f".{path.name}.claim-{number}")


def _numbers(path: Path) -> list[int]:
    found = (re.search(r"\.claim-(\d+)$", file.name) for file in path.parent.glob(f".{path.name}.claim-*"))
    return [int(match.group(1)) for match in found if match]


def _is_dead(path: Path, number: int) -> bool:
    """Whether the owner of a claim is dead: looked up for processes of this machine, judged by time for others."""
    file = _file(path, number)
    try:
        touched = file.stat().st_mtime
        owner = json.loads(file.read_text())
    except FileNotFoundError:
        return False  # released just now; the next look finds none
    except ValueError:
        owner = {}  # its owner is about to write it
    if owner.get("place") is not None and owner["place"] == _place():
        started = _start_of(owner["pid"])
        if started is None or abs(started - owner.get("started", 0.0)) < BEAT:
            return started is None
    return _now(path.parent) - touched > STALE  # the number may be that of a later process


def _start_of(pid: int) -> float | None:
    """When a process of this machine began; none where no process has this number, or only a zombie has."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None


def _now(folder: Path) -> float:
    """The time by the clock that stamps the files of a folder."""
    probe = folder / f".{uuid.uuid4().hex}.tmp"
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink()


def _place() -> str | None:
    """Where process numbers are valid: one boot of a system and one PID namespace in it; none where unknown."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return None
