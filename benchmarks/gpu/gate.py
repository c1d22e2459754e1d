"""Before anything is timed: every operator in every dtype, against the tests' own tolerances.

Token by token: errors of the matrix form stand beside its times, with bars of their own.
"""

from __future__ import annotations

from types import ModuleType

import torch

from tests.helpers.measure import assert_accurate
from tests.helpers.operators import OPERATORS, make_inputs, recurrent

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def wrong(kernel: ModuleType, device: torch.device, operators: list[str]) -> list[str]:
    """What is not accurate, a line each: outputs and all gradients, states among them, of a batch."""
    lines = []
    for name in operators:
        for dtype in DTYPES:
            inputs = make_inputs(OPERATORS[name], tokens=70, size=64, dtype=dtype, device=device)
            try:
                assert_accurate(kernel, OPERATORS[name], inputs, **recurrent(OPERATORS[name]))
            except (AssertionError, RuntimeError) as error:
                lines.append(f"{name} {dtype}: {str(error).strip()}")
    return lines
