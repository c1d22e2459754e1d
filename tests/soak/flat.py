"""Whether memory stays flat: samples over rounds, and how fast they rise."""

from __future__ import annotations

import ctypes
import gc
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy
from rich.progress import ProgressSample

PAGE_KIB = 4
# The greatest growth a round that is called flat. What malloc has given out is exact: a y that is kept is 36
# KiB (rounds.py). Resident memory moves by a MiB as the heap is cut up, and sees what goes around malloc.
FLAT = {"allocated KiB": 4.0, "resident KiB": 128.0, "objects": 0.5}


class MallocInfo(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


LIBC = ctypes.CDLL(None)
LIBC.mallinfo2.restype = MallocInfo


class Memory:
    """What this process holds, sample by sample.

    Types of objects are kept of the first sample and the last alone, for they would be a leak themselves.
    """

    def __init__(self) -> None:
        self.series: dict[str, list[float]] = {name: [] for name in FLAT}
        self.first: Counter[str] = Counter()
        self.last: Counter[str] = Counter()

    def sample(self) -> None:
        """Add one, once the process has given back what it can: else freed memory shows as a leak."""
        gc.collect()
        LIBC.malloc_trim(0)
        info, pages = LIBC.mallinfo2(), int(Path("/proc/self/statm").read_text().split()[1])
        types = Counter(map(type, gc.get_objects()))
        del types[ProgressSample]  # what a progress bar remembers of its pace
        named = Counter({f"{each.__module__}.{each.__qualname__}": count for each, count in types.items()})
        self.add((info.uordblks + info.hblkhd) / 1024, pages * PAGE_KIB, named)

    def add(self, allocated_kib: float, resident_kib: float, types: Counter[str]) -> None:
        values = {"allocated KiB": allocated_kib, "resident KiB": resident_kib, "objects": types.total()}
        for name, value in values.items():
            self.series[name].append(value)
        self.first = self.first or types
        self.last = types

    def findings(self, rounds: int, limits: Mapping[str, float] = FLAT) -> list[str]:
        """What grew too fast, one line each, with the types that grew.

        Args:
            rounds: between two samples.
            limits: the greatest growth a round, as in `FLAT`.
        """
        found = []
        for name, limit in limits.items():
            growth = slope(self.series[name]) / rounds
            if growth > limit:
                types = ", ".join(
                    f"{count} {kind}" for kind, count in (self.last - self.first).most_common(5)
                )
                found.append(f"{growth:.1f} {name} more each round, expected at most {limit:g}; new: {types}")
        return found

    def __str__(self) -> str:
        return ", ".join(
            f"{name} {values[0]:,.0f} to {values[-1]:,.0f}" for name, values in self.series.items()
        )


def slope(values: list[float]) -> float:
    """Growth from one value to the next: the median of all pairs, which one step does not move."""
    first, second = numpy.triu_indices(len(values), 1)
    return float(numpy.median((numpy.take(values, second) - numpy.take(values, first)) / (second - first)))
