"""The operators' tests on plain PyTorch, as many as `make test` has time for; `--kernel` runs all of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers.operators import HEAD_OPERATORS, OPERATORS, call, make_inputs

ROOT = Path(__file__).resolve().parents[2]
# Finite differences take long: with a state alone, of one form of the decay, and packed.
SHORT = "not finite or packed or (exp or None) and not no_state and not many"
RUNS = {
    "every kind": ["-m", "kernels_ci", "tests/ops"],
    "gradients": ["-m", "not kernels_ci", "-k", SHORT, "tests/ops/test_gradients.py"],
    "extremes and decode": ["-m", "not kernels_ci", "tests/ops/test_extremes.py", "tests/ops/test_decode.py"],
}


@pytest.mark.parametrize("run", RUNS)
def test_the_operators_tests(plain, plain_path: Path, run: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--kernel={plain_path}"]
    # One thread: other tests run beside this, and threads of Torch that share a core wait for each other.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *RUNS[run]], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


class Counted(TorchDispatchMode):
    """Counts the operations of PyTorch that run."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.count += 1
        return function(*arguments, **(keywords or {}))


def operations(plain, operator, tokens: int) -> int:
    """Operations of a call and its gradients, below the op that they are the implementation of."""
    heads = sys.modules[f"{plain.__name__}.plain.heads"]
    form = sys.modules[f"{plain.__name__}.plain.{'wkv7' if operator.name == 'wkv7' else 'wkv6'}"]
    inputs = make_inputs(operator, tokens=tokens, size=8, heads=1, batch=1)
    with Counted() as counted:
        prepared = heads.Heads(form, [inputs[name] for name in operator.inputs], None, 1)
        y, state, checkpoints = prepared.forward(inputs["state"], save=True)
        prepared.backward(checkpoints, y, state)
    return counted.count


@pytest.mark.parametrize("operator", HEAD_OPERATORS, ids=str)
def test_a_chunk_costs_a_few_operations(plain, operator) -> None:
    """Not one a token: 64 more chunks of 64 tokens."""
    more = operations(plain, operator, 65 * 64) - operations(plain, operator, 64)
    assert more < 64 * 30


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_steps_of_slots_outside_the_pool(plain, operator) -> None:
    """Where nobody has looked at the slots: NaN, and nothing is changed."""
    pool = sys.modules[f"{plain.__name__}.plain.pool"]
    states = make_inputs(operator, batch=4)["state"]
    for slots, written in (([2, 9, 0], {2: 0, 0: 2}), ([-1, 9, 7], {}), ([-1, 3, 0], {3: 1, 0: 2})):
        rows = torch.tensor(slots, dtype=torch.int32)
        taken = pool.take(states, rows)
        for i, slot in enumerate(slots):
            assert taken[i].isnan().all() if not 0 <= slot < 4 else torch.equal(taken[i], states[slot])
        changed, values = states.clone(), torch.randn_like(taken)
        pool.put(changed, rows, values)
        for row in range(4):
            expected = values[written[row]] if row in written else states[row]
            assert torch.equal(changed[row], expected)


def test_packed_bounds_that_are_none(plain) -> None:
    """Where nobody has looked at the bounds, results are wrong, but nothing outside the tensors is read."""
    layout = sys.modules[f"{plain.__name__}.plain.layout"]
    x = torch.randn(1, 100, 2, 8)
    for bounds in ([0, 500, 100], [50, 20, -7], [-9, 1000, 1000], [90, 100, 3]):
        packed = layout.Packed(torch.tensor(bounds, dtype=torch.int32), 100)
        chunks = packed.split(x, 0, packed.chunks)
        assert chunks.shape == (packed.chunks, 1, 2, packed.length, 8)
        assert packed.join(chunks).shape == x.shape


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_compiled_and_plain_agree(kernel, plain, operator) -> None:
    """Both in one process, each with its own ops."""
    inputs = make_inputs(operator, tokens=150)
    results = zip(call(kernel, operator, inputs), call(plain, operator, inputs), strict=True)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in results)
