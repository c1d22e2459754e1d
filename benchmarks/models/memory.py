"""The most memory that a piece of work takes."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

import torch


def peak_bytes(device: torch.device, run: Callable[[], object]) -> int | None:
    """How much more is in use at the worst moment of `run` than before it; None where nobody counts."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    return _peak_of_process(run)


def _peak_of_process(run: Callable[[], object]) -> int | None:
    """From Linux's books: the peak of resident memory, which can be set back."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what is free already would hide as much of what comes
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        run()
        return _status("VmHWM") - before
    except (OSError, AttributeError):
        return None


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
