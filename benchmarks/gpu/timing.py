"""Times on a GPU: between events, everything to be compared in turns, the median of many rounds."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from benchmarks.timing import PAUSE

Run = Callable[[], object]

# How long the device is kept busy before a call that is timed. Meanwhile the host queues what the call
# launches, so that the time between events is the device's: in a model the host is ahead as well.
AHEAD = 2e-3


@dataclass(frozen=True)
class Time:
    """Seconds of one call: the median, and the quarters of the calls that were faster and slower."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, seconds: list[float]) -> Time:
        if len(seconds) < 2:
            return cls(seconds[0], seconds[0], seconds[0])
        low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
        return cls(median, low, high)

    def json(self) -> dict[str, float]:
        return asdict(self)


class Stopwatch:
    """Times work on a device; the second-level cache holds nothing of use before each call.

    On the CPU it is an ordinary clock.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._flush: Tensor | None = None
        self._flushes = 1
        if device.type == "cuda":
            cache = torch.cuda.get_device_properties(device).L2_cache_size
            self._flush = torch.empty(4 * cache, dtype=torch.uint8, device=device)
            once = self.turns({"flush": self._flush.zero_}, rounds=10)["flush"].median
            self._flushes = math.ceil(AHEAD / once)

    def turns(self, runs: dict[str, Run], rounds: int, warm: int = 3, cold: bool = True) -> dict[str, Time]:
        """Times of each function; in every round each has its turn.

        Args:
            runs: what to time, by name.
            rounds: turns of each.
            warm: rounds before the first one that counts.
            cold: empty the cache before each call.
        """
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for index in range(warm + rounds):
            taken = self._round(runs, cold)
            if index >= warm:
                for name, value in taken.items():
                    seconds[name].append(value)
        return {name: Time.of(values) for name, values in seconds.items()}

    def _round(self, runs: dict[str, Run], cold: bool) -> dict[str, float]:
        if self.device.type != "cuda":
            return {name: self._on_the_clock(run) for name, run in runs.items()}
        events = {}
        for name, run in runs.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            for _ in range(self._flushes if cold else 0):
                self._flush.zero_()
            start.record()
            run()
            end.record()
            events[name] = start, end
        torch.cuda.synchronize(self.device)
        return {name: start.elapsed_time(end) / 1e3 for name, (start, end) in events.items()}

    def _on_the_clock(self, run: Run) -> float:
        time.sleep(PAUSE)
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    def from_the_host(self, run: Run, calls: int, batches: int = 15) -> Time:
        """Seconds that a call takes in Python: many in a row, then a wait for the device."""
        seconds = []
        for index in range(batches + 1):
            self.wait()
            start = time.perf_counter()
            for _ in range(calls):
                run()
            self.wait()
            if index:
                seconds.append((time.perf_counter() - start) / calls)
        return Time.of(seconds)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def copy_rate(self, bytes_read: int = 2**32, rounds: int = 20) -> float:
        """Bytes read and written a second by a copy within the device's memory."""
        if self.device.type != "cuda":
            bytes_read = 2**24
        source = torch.ones(bytes_read // 4, dtype=torch.int32, device=self.device)
        target = torch.empty_like(source)
        return 2 * bytes_read / self.turns({"copy": lambda: target.copy_(source)}, rounds)["copy"].median
