"""The kernel beside plain PyTorch: a whole training step, and the operator alone."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from examples.demo.accuracy import Call
from examples.demo.model import LanguageModel
from examples.demo.recurrence import Recurrence
from examples.demo.train import Settings, make_optimizer, train_step


@dataclass(frozen=True)
class Comparison:
    """Medians in seconds of the same work on the kernel and in plain PyTorch."""

    kernel: float
    plain: float

    @property
    def speedup(self) -> float:
        return self.plain / self.kernel


def compare_steps(
    model: LanguageModel,
    kernel: Recurrence,
    plain: Recurrence,
    windows: list[Tensor],
    settings: Settings,
    on_step: Callable[[], None],
) -> tuple[Comparison, float]:
    """Train two copies of `model` on the same batches, in turns, one on each operator.

    Args:
        windows: batches `[B, T + 1]`; the first warms up and is not timed.
        on_step: called after each step, two for every window.

    Returns:
        The times, and the largest relative difference between the losses of the two.
    """
    recurrences = (kernel, plain)
    copies = [copy.deepcopy(model) for _ in recurrences]
    optimizers = [make_optimizer(each, settings) for each in copies]
    times: list[list[float]] = [[], []]
    losses: list[list[float]] = [[], []]
    for window in windows:
        for index, recurrence in enumerate(recurrences):
            start = time.perf_counter()
            losses[index].append(train_step(copies[index], recurrence, optimizers[index], window))
            times[index].append(time.perf_counter() - start)
            on_step()
    difference = max(abs(a - b) / b for a, b in zip(*losses, strict=True))
    return _medians(times), difference


def compare_calls(call: Call, kernel: Recurrence, plain: Recurrence, repeats: int = 5) -> Comparison:
    """The operator alone, forward and backward, in turns; the first round warms up and is not timed."""
    times: list[list[float]] = [[], []]
    for _ in range(repeats + 1):
        for index, recurrence in enumerate((kernel, plain)):
            start = time.perf_counter()
            call.differentiate(recurrence)
            times[index].append(time.perf_counter() - start)
    return _medians(times)


def _medians(times: list[list[float]]) -> Comparison:
    return Comparison(*(statistics.median(each[1:]) for each in times))
