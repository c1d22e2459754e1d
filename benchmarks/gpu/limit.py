"""A limit on the time that somebody else's code may take to compile and tune itself."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

_deadline = math.inf
_reason = ""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block after so long. Only in the main thread.

    A signal does it, which Python minds in the main thread alone and not before C++ returns to it. Autograd's
    threads, in which backward compiles and tunes itself, have `check_time`.
    """
    global _deadline, _reason

    def stop(*_: object) -> None:
        raise TimeoutError(_reason)

    _deadline, _reason = time.monotonic() + seconds, f"not ready after {seconds:g} s"
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        _deadline = math.inf


def check_time() -> None:
    """Raise TimeoutError if the limit of the block that runs in the main thread is over."""
    if time.monotonic() > _deadline:
        raise TimeoutError(_reason)


def message(error: BaseException) -> str:
    """An error in one line of a table."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:200]
