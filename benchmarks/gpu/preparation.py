"""How other people's code gets ready before it is timed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.gpu.limit import time_limit
from benchmarks.gpu.triton_pool import tuning

UNLIMITED = 3600.0


@dataclass(frozen=True)
class Preparation:
    """What its first call, in which it compiles and tunes itself, runs in.

    Attributes:
        seconds: that it may take.
        rehearse: only so that the caches on disk are full: what it chooses does not matter.
    """

    seconds: float
    rehearse: bool = False

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with time_limit(self.seconds), tuning(self.rehearse):
            yield


REHEARSAL = Preparation(UNLIMITED, rehearse=True)
