"""Timing that survives a noisy machine: everything to be compared runs in turns, and the median counts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

# Torch's worker threads spin for a moment after their work; nobody's time should pay for that.
PAUSE = 0.003


def medians(
    runs: dict[str, Callable[[], object]],
    repeats: int,
    calls: int = 1,
    on_round: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Median seconds of one call of each function.

    Args:
        runs: what to time, by name.
        repeats: rounds, in each of which every function has its turn; one more comes first to warm up.
        calls: calls in one turn, for functions too short for the clock.
        on_round: called after each round.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            time.sleep(PAUSE)
            start = time.perf_counter()
            for _ in range(calls):
                run()
            times[name].append((time.perf_counter() - start) / calls)
        on_round()
    return {name: statistics.median(each[1:]) for name, each in times.items()}
