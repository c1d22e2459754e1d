"""`python -m tests.soak`: a process that calls, loads and drops kernels for minutes, in flat memory."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
from pathlib import Path

import torch
from kernels import get_local_kernel
from rich.console import Console
from rich.progress import Progress

from tests.soak import loads, rounds
from tests.soak.flat import Memory

BUILD = Path(__file__).resolve().parents[2] / "build"
# Caches fill, and the allocator finds its size.
WARM_UP_ROUNDS = 12
ROUNDS_A_SAMPLE = 4
LEAST_SAMPLES = 8


def main(arguments: list[str] | None = None) -> int:
    """Print what was found; the exit status is 1 if that is anything."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)  # the threads of a pool have buffers of their own, which come and go
    console = Console(highlight=False, soft_wrap=True)
    found = calls(console, 60 * options.minutes)
    if options.loads:
        found += repeated_loads(console, options.loads)
    for line in found:
        console.print(line, style="red")
    return int(bool(found))


def calls(console: Console, seconds: float) -> list[str]:
    """All functions of the compiled kernel and of the one in plain PyTorch, found again in every round."""
    os.environ["FLASH_RWKV_LOCAL"] = str(BUILD)
    logging.getLogger("flash_rwkv").setLevel(logging.ERROR)  # it warns of every load that is not verified
    import flash_rwkv

    kernel, plain = flash_rwkv.get_kernel(), get_local_kernel(BUILD / loads.VARIANT)

    def one_round(number: int) -> None:
        for again in (flash_rwkv.get_kernel(), get_local_kernel(BUILD.parent)):
            assert again is kernel, f"{kernel.__name__} was loaded twice"
        for each in (kernel, plain):
            rounds.everything(each, number)

    with Progress(console=console) as progress:
        task = progress.add_task("calls", total=seconds)
        for number in range(WARM_UP_ROUNDS):
            one_round(number)
        Memory().sample()  # which leaves something behind the first time, too
        start, memory = time.monotonic(), Memory()
        while (spent := time.monotonic() - start) < seconds or len(memory.series["objects"]) < LEAST_SAMPLES:
            progress.update(task, completed=spent)
            for number in range(ROUNDS_A_SAMPLE):
                one_round(number)
            memory.sample()
        progress.update(task, completed=seconds)
    console.print(f"{ROUNDS_A_SAMPLE * len(memory.series['objects'])} rounds of calls: {memory}")
    return memory.findings(ROUNDS_A_SAMPLE)


def repeated_loads(console: Console, count: int) -> list[str]:
    """The kernel in plain PyTorch, loaded, used and dropped under a new name each time."""
    memory = Memory()
    with tempfile.TemporaryDirectory() as folder, Progress(console=console) as progress:
        for number in progress.track(range(count), description="loads"):
            loads.load_use_and_drop(BUILD / loads.VARIANT, Path(folder), number)
            memory.sample()
    console.print(f"{count} loads: {memory}")
    return memory.findings(1, loads.MOST_A_LOAD)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak",
        description="Call every function of the kernels in build/ for a while, then load and drop one under "
        "new names. Exit status 1 if memory or Python objects grow. Needs loader/src on PYTHONPATH.",
    )
    parser.add_argument("--minutes", type=float, default=5.0, help="of calls (default: %(default)g)")
    parser.add_argument("--loads", type=int, default=20, help="3 or more, or 0 (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
