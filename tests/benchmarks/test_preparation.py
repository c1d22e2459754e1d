"""How peers get ready for the GPU's benchmarks, with a Triton that has nothing but what is replaced."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu.limit import check_time, time_limit
from benchmarks.gpu.triton_pool import Compilations, tuning
from benchmarks.together import together

pytestmark = pytest.mark.cpu_only


@dataclass(frozen=True)
class Config:
    size: int

    def all_kwargs(self) -> dict[str, int]:
        return {"size": self.size}


class Kernel:
    """Compiles into Triton's cache: a file with the process's number."""

    def __init__(self, folder: Path, mode: ContextVar) -> None:
        self.folder, self.mode, self.runs = folder, mode, []

    def run(self, size: int, *, warmup: bool) -> None:
        path = self.folder / hashlib.sha256(str(size).encode()).hexdigest() / "__grp__kernel"
        if (mode := self.mode.get()) is not None:
            mode.submit(str(size), lambda: write(path), None)
        if not warmup:
            self.runs.append((size, path.exists()))


def write(path: Path) -> None:
    path.parent.mkdir()  # fails where it was there already
    path.write_text(str(os.getpid()))


class Autotuner:
    """Times every configuration for a key that it has not seen, unless a choice lies on the disk."""

    def __init__(self, kernel: Kernel, sizes: list[int]) -> None:
        self.fn, self.configs, self.cache, self.nargs = kernel, list(map(Config, sizes)), {}, {}

    def run(self, key: int, warmup: bool = False) -> Config:
        kwargs = {"warmup": warmup}
        if key not in self.cache:
            configs = self.prune_configs(kwargs)

            def bench() -> None:
                def call(config: Config) -> Callable[[], None]:
                    return lambda: self.fn.run(**config.all_kwargs(), warmup=False)

                timings = {each: self.do_bench(call(each), quantiles=(0.5, 0.2, 0.8)) for each in configs}
                self.cache[key] = min(timings, key=timings.get)

            self.check_disk_cache((key,), configs, bench)
        return self.cache[key]

    def prune_configs(self, kwargs: dict) -> list[Config]:
        return self.configs[1:]

    def check_disk_cache(self, key: tuple, configs: list[Config], bench: Callable[[], None]) -> bool:
        raise AssertionError("a choice of another run")

    def do_bench(self, call: Callable[[], None], quantiles: tuple[float, ...]) -> list[float]:
        raise AssertionError("not timed for so long")


@pytest.fixture
def tuner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Autotuner:
    """A kernel with four configurations, of which the first is pruned and the last is the fastest."""
    mode: ContextVar = ContextVar("mode", default=None)
    kernel = Kernel(tmp_path, mode)

    def benchmark(call: Callable[[], None], *, warmup: int, rep: int, quantiles: tuple) -> list[float]:
        call()
        call()
        return [1.0 / kernel.runs[-1][0]] * len(quantiles)

    target = SimpleNamespace(get_current_target=lambda: "sm_90", get_benchmarker=lambda: benchmark)
    parts = {
        "_async_compile": {"active_mode": mode},
        "autotuner": {"Autotuner": Autotuner},
        "cache": {"get_cache_manager": lambda key: SimpleNamespace(cache_dir=tmp_path / key)},
        "driver": {"driver": SimpleNamespace(active=target)},
    }
    for name in ("triton", "triton.runtime"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for name, contents in parts.items():
        module = ModuleType(f"triton.runtime.{name}")
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return Autotuner(kernel, [1, 2, 3, 4])


def test_all_is_compiled_elsewhere_before_anything_is_timed(tuner: Autotuner) -> None:
    before = dict(vars(Autotuner))
    with tuning():
        assert tuner.run(0) == tuner.run(0) == Config(4)
    assert tuner.fn.runs == [(size, True) for size in (2, 2, 3, 3, 4, 4)]
    assert str(os.getpid()) not in {path.read_text() for path in tuner.fn.folder.glob("*/*")}
    assert dict(vars(Autotuner)) == before


def test_a_rehearsal_runs_once_and_remembers_nothing(tuner: Autotuner) -> None:
    with tuning(rehearse=True):
        tuner.run(0)
        tuner.run(0)
    assert tuner.fn.runs == [(size, True) for size in (2, 3, 4, 2, 3, 4)]


def test_tuning_ends_with_the_limit(tuner: Autotuner) -> None:
    """In a thread that no signal reaches, as those of backward."""
    errors = []

    def backward() -> None:
        with tuning():
            try:
                tuner.run(0)
            except TimeoutError as error:
                errors.append(str(error))

    def wait_for_it() -> None:
        try:
            time.sleep(1)
        finally:
            thread = threading.Thread(target=backward)
            thread.start()
            thread.join()

    with pytest.raises(TimeoutError), time_limit(0.05):
        wait_for_it()
    assert errors == ["not ready after 0.05 s"]
    check_time()


def test_compiling_ends_with_the_limit() -> None:
    """Processes that still compile are ended; what cannot be compiled troubles nobody."""
    compilations = Compilations(lambda key: key == "there", lambda: None)
    compilations.submit("there", lambda: time.sleep(60), None)
    compilations.submit("wrong", lambda: 1 // 0, None)
    compilations.run()
    compilations.submit("slow", lambda: time.sleep(60), None)
    start = time.monotonic()
    with pytest.raises(TimeoutError), time_limit(0.2):
        compilations.run()
    assert time.monotonic() - start < 20


def test_without_triton_nothing_is_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    with tuning():
        pass


def test_commands_together() -> None:
    lines: list[str] = []
    failed = together(
        "timeit", {"good": ["-n1", "-r1", "print('here')"], "bad": ["-n1", "1 / 0"]}, lines.append
    )
    assert failed == ["bad"]
    assert "good: here" in lines
    assert "bad: ZeroDivisionError: division by zero" in lines


def test_preparing_writes_nothing(
    kernel_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A process for each operator; peers that are not installed are named."""
    arguments = ["--prepare", "--quick", "--device", "cpu", "--kernel", str(kernel_path)]
    arguments += ["--peers", str(tmp_path), "--only", "wkv4", "wkv7"]
    assert command.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "wkv4: fla fused_recurrent: ModuleNotFoundError" in printed
    assert "wkv7: FlashRWKV2: ModuleNotFoundError" in printed
    assert printed.count("prepared in") == 2
    assert list(tmp_path.iterdir()) == []
