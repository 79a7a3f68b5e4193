"""CPU time of this process, and a look at it while something runs."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator


class BudgetSpent(BaseException):
    """The CPU time is used up. No `Exception`: what is running must not take it for a failure of its own."""


def cpu_seconds() -> float:
    """CPU seconds that this process has used so far, those of all its threads together."""
    return time.process_time()


@contextlib.contextmanager
def looking_every(seconds: float, look: Callable[[], None]) -> Iterator[None]:
    """Call `look` after every so many CPU seconds for as long as the block runs; what it raises ends the block.

    It is called between two steps of Python code, so a long step inside a library ends first. That takes the system's
    interval timer and the main thread; where one is missing, `look` is never called.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def at_signal(*_: object) -> None:
        try:
            look()
        except BaseException:
            signal.setitimer(signal.ITIMER_PROF, 0)  # it must not strike a second time, outside the block
            raise

    before = signal.signal(signal.SIGPROF, at_signal)
    try:
        signal.setitimer(signal.ITIMER_PROF, seconds, seconds)
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        # By default the signal ends a process; one that comes late must not.
        signal.signal(signal.SIGPROF, signal.SIG_IGN if before in (None, signal.SIG_DFL) else before)
