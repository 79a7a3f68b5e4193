"""The largest memory of a run and of its parts, in MiB of this process's resident memory."""

import ctypes
import gc
import sys
from pathlib import Path

import psutil

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_SLACK = 8.0
"""MiB by which the system's own counts of one and the same memory differ: it adds them up now and then."""

_peaks: list[float | None] = []
"""The system's high-water mark whenever it was set back, and what `count` was told; none stands for unknown."""


class PeakMemory:
    """The largest memory since this was made. Parts of a run may have one of their own within that of the run.

    Making one gives freed memory back to the system and sets the system's high-water mark back to what is held.

    Attributes
    ----------
    is_own : False where the system cannot set its mark back (any but Linux): `mib` is then that of the whole process so
        far, an upper bound.
    """

    def __init__(self) -> None:
        give_back()
        _peaks.append(_high_water_mark())
        self._first = len(_peaks)
        self.is_own = _set_back()
        self._start = resident_mib()

    @property
    def mib(self) -> float | None:
        """The largest so far; none where a cache has spared a part of it that nobody has measured."""
        found = [*_peaks[self._first :], _high_water_mark()]
        return None if None in found else max(found)  # type: ignore[type-var]

    @property
    def growth_mib(self) -> float | None:
        """By how much `mib` is larger than what was held at the start; none where that is not known."""
        return max(self.mib - self._start, 0.0) if self.is_own and self.mib is not None else None


def give_back() -> None:
    """Give freed memory back to the system: what one part of a run has left in pieces does not serve the next."""
    gc.collect()
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):  # glibc has it
        trim(0)


def count(mib: float | None) -> None:
    """Count what another process has held for work that this one finds done, or none where nobody knows."""
    _peaks.append(mib)


def count_growth(mib: float | None) -> None:
    """As `count`, of what would have come on top of what is held now."""
    count(None if mib is None else resident_mib() + mib)


def resident_mib() -> float:
    """Memory that this process holds now."""
    return psutil.Process().memory_info().rss / 2**20


def _set_back() -> bool:
    """Set the system's high-water mark back to what is held; returns whether it now stands there."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return _high_water_mark() < resident_mib() + _SLACK  # some systems take the order and do nothing


def _high_water_mark() -> float:
    """Largest resident memory of this process since it began or since the mark was set back."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 2**20
    if _STATUS.is_file():
        marks = [line.split()[1] for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:")]
        if marks:
            return int(marks[0]) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
