"""What every measurement of a run shares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch

from benchmarks.gpu.preparation import Preparation
from benchmarks.gpu.timing import Stopwatch


@dataclass(frozen=True)
class Setting:
    """One run of the benchmark.

    Attributes:
        kernel: ours, loaded.
        watch: the clock of the device.
        copy_rate: bytes read and written a second by a copy, for the floors.
        preparation: of each peer; None: no peers.
        say: told what goes on.
    """

    kernel: ModuleType
    watch: Stopwatch
    copy_rate: float
    preparation: Preparation | None
    say: Callable[[str], None]

    @property
    def device(self) -> torch.device:
        return self.watch.device
