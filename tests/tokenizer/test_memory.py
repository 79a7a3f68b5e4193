import mmap
from pathlib import Path

import numpy as np
import pytest

from recbole_bbqrec.tokenizer import memory
from recbole_bbqrec.tokenizer.memory import PeakMemory

settable = pytest.mark.skipif(not PeakMemory().is_own, reason="the system cannot set its high-water mark back")


def hold(mib):
    """Hold memory of its own for a moment: the heap may have what was freed before."""
    with mmap.mmap(-1, mib * 2**20) as block:
        np.frombuffer(block, np.uint8)[::512] = 1


@settable
def test_what_was_held_before_does_not_count():
    large = PeakMemory()
    hold(200)
    small = PeakMemory()
    hold(20)
    assert large.is_own and small.is_own
    assert 195 < large.growth_mib < 215 and 15 < small.growth_mib < 35
    assert large.mib > small.mib + 150


@settable
def test_a_part_has_its_own_and_takes_nothing_from_the_whole():
    whole = PeakMemory()
    hold(100)
    part = PeakMemory()
    hold(40)
    assert 35 < part.growth_mib < 55 and 95 < whole.growth_mib < 115
    hold(150)
    assert 145 < whole.growth_mib < 165 and whole.mib == part.mib


@settable
def test_what_a_cache_has_spared_counts():
    peak = PeakMemory()
    memory.count_growth(500.0)
    assert 495 < peak.growth_mib < 515
    memory.count(peak.mib + 100)
    assert 595 < peak.growth_mib < 615
    later = PeakMemory()
    assert later.growth_mib < 20, "it was an earlier run's"
    memory.count_growth(None)
    assert later.mib is later.growth_mib is None, "nobody knows"


@pytest.mark.parametrize("where", ["/proc/nowhere/clear_refs", "/dev/null"])
def test_a_system_that_cannot_set_its_mark_back_gives_an_upper_bound(monkeypatch, where):
    monkeypatch.setattr(memory, "_CLEAR", Path(where))
    before = memory.resident_mib()
    hold(100)
    peak = PeakMemory()
    assert not peak.is_own and peak.growth_mib is None and peak.mib > before + 90
