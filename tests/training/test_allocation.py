import platform
import subprocess
import sys

import pytest

from recbole_bbqrec.training import allocation
from recbole_bbqrec.training.allocation import keep_freed_memory

COUNT_FAULTS = """
import resource, statistics
import torch
from recbole_bbqrec.training.allocation import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(2**24).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def usual():
    return int(statistics.median(faults() for _ in range(31)))  # the first tensors find their places

before = usual()
assert keep_freed_memory()
print(before, usual())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc: nothing to keep")
def test_freed_memory_is_used_again_without_new_pages():
    done = subprocess.run([sys.executable, "-c", COUNT_FAULTS], capture_output=True, text=True, check=True)
    before, kept = map(int, done.stdout.split())
    assert kept < 8 < before  # 64 MiB are 32 of the largest pages there are, 16,384 of the usual ones


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(allocation.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.delattr(allocation.ctypes, "CDLL")
    assert keep_freed_memory() is False
