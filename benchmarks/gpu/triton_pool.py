"""Other people's autotuned Triton kernels: all cores compile the configurations before one of them is timed.

Triton compiles each when it comes to time it, one after the other: minutes for hundreds of them.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from pathlib import Path
from unittest import mock

from benchmarks.gpu.limit import check_time

# Milliseconds for each configuration, where Triton takes 25 and 100: still the median of 200 runs of 50 us,
# each with as long again for emptying the cache.
WARM, REPEAT = 5, 25
POLL = 1.0


class Compilations:
    """Takes the place of Triton's mode of asynchronous compilation: what it is given waits for `run`.

    Args:
        is_there: whether what a key stands for need not be compiled.
        begin: what each process does first.
    """

    def __init__(self, is_there: Callable[[str], bool], begin: Callable[[], None]) -> None:
        self._is_there, self._begin = is_there, begin
        self._jobs: dict[str, Callable[[], object]] = {}

    def submit(self, key: str, compile_fn: Callable[[], object], _finalize: Callable) -> None:
        if not self._is_there(key):
            self._jobs.setdefault(key, compile_fn)

    def run(self) -> None:
        """In forked processes, for the sake of Triton's cache on disk; what fails there fails here again.

        Not in threads: a third of the work is Python. They may not touch the GPU, and need not.
        """
        jobs = list(self._jobs.values())
        workers = min(len(os.sched_getaffinity(0)), len(jobs))
        fork = multiprocessing.get_context("fork")
        shares = [jobs[index::workers] for index in range(workers)]
        processes = [fork.Process(target=_run, args=(self._begin, share)) for share in shares]
        try:
            for process in processes:
                process.start()
            left = {process.sentinel for process in processes}
            while left:
                check_time()
                left -= set(wait(left, POLL))
        finally:
            for process in processes:
                if process.pid is not None:
                    process.kill()
                    process.join()


@contextmanager
def tuning(rehearse: bool = False) -> Iterator[None]:
    """Autotuners compile together, time for a shorter while, and neither read nor leave choices on disk.

    Choices of earlier runs may come from a busy GPU or other shapes. Without Triton, nothing happens.

    Args:
        rehearse: fill the cache of compiled kernels alone: each configuration runs once, and every call is
            tuned, so that whichever is chosen another time is there for its shape.
    """
    try:
        from triton.runtime._async_compile import active_mode
        from triton.runtime.autotuner import Autotuner
        from triton.runtime.cache import get_cache_manager
        from triton.runtime.driver import driver
    except ImportError:
        yield
        return
    pruned, run = Autotuner.prune_configs, Autotuner.run

    def is_on_disk(key: str) -> bool:
        folder = get_cache_manager(hashlib.sha256(key.encode()).hexdigest()).cache_dir
        return any(Path(folder).glob("__grp__*"))  # what Triton writes last and looks for first

    def prune_configs(self: Autotuner, kwargs: dict) -> Sequence:
        configs = pruned(self, kwargs)
        target = driver.active.get_current_target()

        def know_target() -> None:
            """It is asked for while compiling, and Torch refuses to answer in a forked process."""
            driver.active.get_current_target = lambda: target

        compilations = Compilations(is_on_disk, know_target)
        before = active_mode.set(compilations)
        try:
            for config in configs:
                with suppress(Exception):  # it comes again when the configuration is timed
                    options = {**kwargs, **config.all_kwargs(), "warmup": True}
                    self.fn.run(*self.nargs.values(), **options)
        finally:
            active_mode.reset(before)
        compilations.run()
        return configs

    def forgetful_run(self: Autotuner, *args: object, **kwargs: object) -> object:
        self.cache.clear()
        return run(self, *args, **kwargs)

    def check_disk_cache(_: Autotuner, _key: tuple, _configs: Sequence, bench: Callable[[], None]) -> bool:
        bench()
        return False

    def do_bench(call: Callable[[], None], quantiles: Sequence[float]) -> Sequence[float]:
        check_time()
        if rehearse:
            call()
            return [1.0] * len(quantiles)
        return driver.active.get_benchmarker()(call, warmup=WARM, rep=REPEAT, quantiles=quantiles)

    replaced = {
        "prune_configs": prune_configs,
        "check_disk_cache": check_disk_cache,
        "do_bench": staticmethod(do_bench),
        **({"run": forgetful_run} if rehearse else {}),
    }
    with mock.patch.multiple(Autotuner, **replaced):
        yield


def _run(begin: Callable[[], None], jobs: Sequence[Callable[[], object]]) -> None:
    begin()
    for job in jobs:
        with suppress(Exception):
            job()
