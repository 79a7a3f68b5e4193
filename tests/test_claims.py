import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from recbole_bbqrec import claims

ROOT = Path(__file__).resolve().parents[1]
HOLDER = """
import pathlib, sys, time
from recbole_bbqrec import claims
claims.take(pathlib.Path(sys.argv[1]))
print("has it", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the claim to the work `x`."""
    own = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "x")], stdout=subprocess.PIPE, env=own)
    assert process.stdout and process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_one_process_at_a_time(tmp_path):
    first = claims.take(tmp_path / "x")
    assert first and claims.take(tmp_path / "x") is None
    assert claims.take(tmp_path / "y"), "another work is free"
    first.release()
    again = claims.take(tmp_path / "x")
    assert again
    again.release()
    assert [path.name for path in tmp_path.iterdir()] == [".y.claim-1"]


def test_a_killed_process_of_this_machine_holds_nothing(tmp_path, holder):
    assert claims.take(tmp_path / "x") is None
    holder.kill()
    holder.wait()
    found = claims.take(tmp_path / "x")
    assert found and sorted(path.name for path in tmp_path.iterdir()) == [".x.claim-1", ".x.claim-2"]
    assert claims.take(tmp_path / "x") is None
    found.release()
    assert not list(tmp_path.iterdir())


def test_a_claim_of_another_machine_counts_until_it_is_stale(tmp_path, monkeypatch):
    file = tmp_path / ".x.claim-1"
    for content in ('{"host": "far", "pid": 1, "place": "elsewhere"}', ""):  # the second: about to be written
        file.write_text(content)
        assert claims.take(tmp_path / "x") is None
    os.utime(file, (time.time() - claims.STALE - 1,) * 2)
    assert claims.take(tmp_path / "x")


def test_a_live_claim_is_touched(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "BEAT", 0.05)
    claim = claims.take(tmp_path / "x")
    os.utime(tmp_path / ".x.claim-1", (0, 0))
    time.sleep(0.5)
    assert claim and (tmp_path / ".x.claim-1").stat().st_mtime > 0
    claim.release()
    time.sleep(0.2)
    assert not list(tmp_path.iterdir())


def test_jobs_of_others_come_last(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "PAUSE", 0.01)
    other, done, told = claims.take(tmp_path / "a"), [], []

    def waits(n_left):
        told.append(n_left)
        other.release()

    for job in claims.in_turn("abc", lambda name: tmp_path / name, waits):
        assert claims.take(tmp_path / job) is None
        done.append(job)
    assert done == ["b", "c", "a"] and told == [1] and not list(tmp_path.iterdir())


def test_an_error_gives_the_claim_back(tmp_path):
    with pytest.raises(ValueError):
        for _ in claims.in_turn("a", lambda name: tmp_path / name):
            raise ValueError
    with pytest.raises(ValueError), claims.alone(tmp_path / "a"):
        raise ValueError
    assert not list(tmp_path.iterdir())


def test_a_process_of_this_machine_that_was_stopped_keeps_its_claim(tmp_path, holder):
    os.kill(holder.pid, signal.SIGSTOP)
    file = tmp_path / ".x.claim-1"
    os.utime(file, (time.time() - claims.STALE - 1,) * 2)
    assert claims.take(tmp_path / "x") is None, "it goes on where it was, as after a sleep of the machine"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "started": content["started"] - 1000}))
    assert claims.take(tmp_path / "x") is None, "touched just now"
    os.utime(file, (time.time() - claims.STALE - 1,) * 2)
    assert claims.take(tmp_path / "x"), "the number is that of another process by now"


def test_a_killed_process_that_nobody_has_waited_for_holds_nothing(tmp_path, holder):
    holder.kill()
    while psutil.Process(holder.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert claims.take(tmp_path / "x")
