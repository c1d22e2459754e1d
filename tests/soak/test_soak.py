"""The soak, for as long as CI has time, and whether it sees a leak."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.soak.flat import Memory, slope

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "loader" / "src")}
# Keeps a list with a tensor for each kernel and round, as a cache without a limit would.
LEAK = """
import sys, torch
from tests.soak import __main__ as soak, rounds
kept, everything = [], rounds.everything
def leaking(kernel, seed):
    everything(kernel, seed)
    kept.append([torch.ones(2, 24, 3, 64)])
rounds.everything = leaking
sys.exit(soak.main(sys.argv[1:]))
"""


def soak(*command: str) -> subprocess.CompletedProcess[str]:
    """Run in a process of its own: this one holds what other tests made."""
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True
    )


def test_memory_is_flat(kernel) -> None:
    result = soak("-m", "tests.soak", "--minutes", "0.15", "--loads", "4")
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_leak_is_found(kernel) -> None:
    result = soak("-c", LEAK, "--minutes", "0.05", "--loads", "0")
    assert result.returncode == 1, result.stdout + result.stderr
    assert re.search(r"\d+\.\d allocated KiB more each round", result.stdout)
    assert re.search(r"4\.0 objects more each round.* torch\.Tensor", result.stdout)


def test_slope_of_noisy_memory() -> None:
    assert slope([5, 5, 5, 900, 5, 5]) == 0
    assert slope([0, 9, 20, 31, 40]) == pytest.approx(10, abs=0.5)


def test_what_grew_is_named() -> None:
    memory = Memory()
    for i in range(4):
        memory.add(1000 + 80 * i, 5000 - i, Counter({"torch.Tensor": 5 + 8 * i, "list": 3}))
    allocated, objects = memory.findings(rounds=4)
    assert "20.0 allocated KiB" in allocated
    assert "2.0 objects" in objects
    assert "24 torch.Tensor" in objects
    assert memory.findings(4, {"allocated KiB": 20.5, "resident KiB": 1, "objects": 2.5}) == []
