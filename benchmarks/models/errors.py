"""How far a model's results are from those of the loop in Python in float32, with the same weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.accuracy import relative_error
from benchmarks.models.contestant import Contestant


@dataclass(frozen=True)
class Exact:
    """What is compared with: of `ids` `[1, T]` the logits `[1, T, vocabulary]` and the gradients by name."""

    ids: Tensor
    logits: Tensor
    gradients: dict[str, Tensor]

    @classmethod
    def of(cls, loop: Contestant, ids: Tensor) -> Exact:
        return cls(ids, loop.logits(ids), loop.gradients(ids))

    def of_logits(self, contestant: Contestant) -> float:
        """‖found - exact‖ / ‖exact‖."""
        return relative_error(contestant.logits(self.ids), self.logits)

    def of_gradients(self, contestant: Contestant) -> float:
        """The same, of the gradients of all weights taken as one vector."""
        found = contestant.gradients(self.ids)
        off = sum(_square(found[name].double() - exact.double()) for name, exact in self.gradients.items())
        return math.sqrt(off / sum(_square(exact.double()) for exact in self.gradients.values()))


def _square(x: Tensor) -> float:
    return torch.linalg.vector_norm(x).item() ** 2
