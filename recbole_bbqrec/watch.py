"""Which of several processes has died: the others find out, report it in one line, and end as well.

`torchrun` ends the processes of its own machine when one of them dies, and says no more than an exit code; those of
other machines would wait in gloo or NCCL. A thread of each process sees to both.
"""

import atexit
import contextlib
import hashlib
import json
import os
import platform
import select
import signal
import socket
import sys
import threading
import time
from datetime import timedelta
from typing import Any

import psutil
import torch.distributed

_DIST: Any = torch.distributed  # whose stores are documented, but not exported to type checkers
PERIOD = 1.0
"""Seconds between two looks at the others."""
LOST, MISSED = 50.0, 10.0
"""Seconds without a sign after which a process of another machine counts as lost: enough for a long call of C code, and
fewer where talking to it has failed already."""
NEAR = 3.0
"""Seconds in which the end of a process of this machine is seen for sure."""


class Watch:
    """Watches the processes of a run, from process `rank` of `size`, until it leaves them."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        # A connection of its own: the thread must not wait for one that a collective call is using.
        self._store, self._thread_store = self._connected(), self._connected()
        self._store.set(f"process/{rank}", json.dumps([platform.node(), os.getppid(), os.getpid()]))
        self._others: dict[int, list[Any]] = {}
        self._seen: dict[int, tuple[str, float]] = {}
        self._left, self._beats, self._before = False, 0, None
        atexit.register(lambda: self.leave(well=getattr(sys, "last_value", None) is None))
        # The system writes to the socket when the signal comes, also while the main thread waits outside Python.
        self._wake, sender = socket.socketpair()
        sender.setblocking(False)
        self._sender = sender
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
            self._before = signal.signal(signal.SIGTERM, lambda *_: None)
        threading.Thread(target=self._watch, daemon=True).start()

    @staticmethod
    def _connected() -> Any:
        place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = _DIST.TCPStore(*place, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=MISSED))
        return _DIST.PrefixStore(f"bbqrec/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)

    def is_first_to_say(self, message: str) -> bool:
        """Whether no other process has said this yet."""
        with contextlib.suppress(Exception):  # the one that holds the store may be gone
            return self._store.add(f"said/{hashlib.sha256(message.encode()).hexdigest()}", 1) == 1
        return True

    def leave(self, well: bool) -> None:
        """End the watch. The others go on where this process has done its work `well`, else they end too."""
        if not self._left:
            self._left = True
            if self._before is not None and threading.current_thread() is threading.main_thread():
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGTERM, self._before)
            with contextlib.suppress(Exception):
                self._store.set(f"left/{self.rank}", "well" if well else "failed")

    def tell_who_is_lost(self) -> bool:
        """Return whether another process has ended before its time; say so in one line, once for all processes."""
        near = all(self._is_near(other, self._store) for other in range(self.size) if other != self.rank)
        end = time.monotonic() + NEAR + (0 if near else MISSED)
        while (lost := self._lost(self._store, MISSED)) is None and time.monotonic() < end:
            time.sleep(PERIOD / 5)
        return lost is not None and self._tell(lost)

    def _tell(self, lost: str) -> bool:
        if lost and self.is_first_to_say("lost"):
            print(f"error: {lost}; the same command goes on from the last epoch", file=sys.stderr, flush=True)
        return True

    def _watch(self) -> None:
        while not self._left:
            ended = select.select([self._wake], [], [], PERIOD)[0]
            if ended and signal.SIGTERM not in self._wake.recv(64):
                ended = []
            if self._left:
                return
            with contextlib.suppress(Exception):
                self._beats += 1
                self._thread_store.set(f"beat/{self.rank}", str(self._beats))
            lost = self._lost(self._thread_store)
            if lost == "":  # it has reported its error and is about to end: `torchrun` is to see that first
                select.select([self._wake], [], [], NEAR)
            if ended or lost is not None:
                self._end(lost)

    def _end(self, lost: str | None) -> None:
        """End this process; what it is in the middle of may never come back."""
        end = time.monotonic() + NEAR
        while lost is None and time.monotonic() < end:
            time.sleep(PERIOD / 10)
            lost = self._lost(self._thread_store)
        self._tell(lost or "")
        sys.stdout.flush()
        os._exit(1)

    def _lost(self, store: Any, after: float = LOST) -> str | None:
        """What to say of a process that has ended early: empty if it has said why itself, none if there is none."""
        try:
            for other in range(self.size):
                if other != self.rank and (found := self._lost_one(store, other, after)) is not None:
                    return found
        except Exception:  # torch has several errors for this
            return "the process that coordinates all others has died"
        return None

    def _lost_one(self, store: Any, other: int, after: float) -> str | None:
        if store.check([f"left/{other}"]):
            return None if store.get(f"left/{other}") == b"well" else ""
        if self._is_near(other, store):
            is_gone = not _runs(self._others[other][2])
        else:
            beat = store.get(f"beat/{other}").decode() if store.check([f"beat/{other}"]) else ""
            if self._seen.get(other, ("?", 0.0))[0] != beat:
                self._seen[other] = beat, time.monotonic()
            is_gone = time.monotonic() > self._seen[other][1] + after
        if not is_gone:
            return None
        host, _, pid = self._others.get(other, ["?", 0, 0])
        return f"process {other} of {self.size} (numbered from 0; pid {pid} on {host}) has died"

    def _is_near(self, other: int, store: Any) -> bool:
        """Whether another process has been started by the same `torchrun`, on this machine."""
        with contextlib.suppress(Exception):
            if other not in self._others and store.check([f"process/{other}"]):
                self._others[other] = json.loads(store.get(f"process/{other}"))
        return self._others.get(other, [])[:2] == [platform.node(), os.getppid()]


def _runs(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
