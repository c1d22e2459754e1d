"""The training step on the kernel beside the same step in plain PyTorch."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from examples.demo.model import LanguageModel
from examples.demo.recurrence import Recurrence
from examples.demo.train import Settings, make_optimizer, train_step


@dataclass(frozen=True)
class StepComparison:
    """Medians of one training step, in seconds, and the largest relative difference of their losses."""

    kernel: float
    plain: float
    loss_difference: float

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
) -> StepComparison:
    """Train two copies of `model` on the same batches, in turns, one on each operator.

    Args:
        windows: batches `[B, T + 1]`; the first warms up and is not timed.
        on_step: called after each step, two for every window.
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
    medians = [statistics.median(each[1:]) for each in times]
    return StepComparison(medians[0], medians[1], difference)
