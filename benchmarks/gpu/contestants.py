"""Our operators and other people's, called alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from benchmarks.accuracy import Results
from benchmarks.cases import Case


@dataclass(frozen=True)
class Contestant:
    """One implementation of an operator.

    Attributes:
        name: what the tables call it.
        case: the inputs as it takes them; its errors are against the reference on these.
        run: inputs by position -> y, and the final state, value-major, or None.
        trains: whether it has a backward pass.
    """

    name: str
    case: Case
    run: Callable[..., tuple[Tensor, Tensor | None]]
    trains: bool = True

    def forward(self) -> tuple[Tensor, Tensor | None]:
        with torch.no_grad():
            return self.run(*self.case.inputs.values())

    def training_step(self, grad_y: Tensor) -> Callable[[], Results]:
        """A function that runs forward and backward, for a gradient of y alone."""
        leaves = {name: x.detach().requires_grad_() for name, x in self.case.inputs.items()}

        def step() -> Results:
            y, state = self.run(*leaves.values())
            gradients = torch.autograd.grad(y, list(leaves.values()), grad_y)
            return Results(y, state, dict(zip(leaves, gradients, strict=True)))

        return step

    def results(self, grad_y: Tensor) -> Results:
        """Of one run in which no memory holds anything of use beforehand."""
        with poisoned_memory():
            results = self.training_step(grad_y)() if self.trains else Results(*self.forward())
        state = None if results.state is None else results.state.detach()
        return Results(results.y.detach(), state, results.gradients)


def ours(kernel: ModuleType, case: Case, algorithm: str | None = None) -> Contestant:
    operator = getattr(kernel, case.operator)
    options = {**case.options, **({"algorithm": algorithm} if algorithm else {})}
    return Contestant("flash-rwkv", case, lambda *inputs: operator(*inputs, **options))


class poisoned_memory:  # a context manager, named as one
    """Fills every new tensor with NaN: an element that nobody writes shows."""

    def __enter__(self) -> None:
        self.before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True, warn_only=True)

    def __exit__(self, *_: object) -> None:
        torch.use_deterministic_algorithms(self.before)
