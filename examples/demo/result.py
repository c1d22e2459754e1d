"""What the demo found out about one operator, and whether that is good enough."""

from __future__ import annotations

from dataclasses import dataclass

from examples.demo.accuracy import TOLERANCE
from examples.demo.model import TITLES
from examples.demo.speed import Comparison
from examples.demo.train import History

# A model that learns anything at all takes far more than this off the eight bits it starts with.
SMALLEST_FALL = 0.05


@dataclass(frozen=True)
class Result:
    """One model's run.

    Attributes:
        operator: `"wkv6"` or `"wkv7"`.
        parameters: trained numbers.
        tokens_per_second: in training steps.
        step: a training step beside the same in plain PyTorch.
        call: the operator alone, forward and backward, beside the same in plain PyTorch.
        loss_difference: between the training losses of those two, relative.
        forward_error, gradient_error: of the operator, relative to the reference in float64.
        decode_error: logits of decoding relative to those of the whole text in one call.
        sample: generated text, the prompt first.
    """

    operator: str
    parameters: int
    history: History
    tokens_per_second: float
    step: Comparison
    call: Comparison
    loss_difference: float
    forward_error: float
    gradient_error: float
    decode_error: float
    sample: bytes

    @property
    def title(self) -> str:
        return TITLES[self.operator]

    @property
    def first_loss(self) -> float:
        """Validation loss before training, bits a byte."""
        return self.history.validation[0][1]

    @property
    def last_loss(self) -> float:
        """Validation loss after training, bits a byte."""
        return self.history.validation[-1][1]

    def failures(self) -> list[str]:
        """Why this result is not good enough; a NaN fails too."""
        limit = self.first_loss * (1 - SMALLEST_FALL)
        problems = []
        if not self.last_loss < limit:
            problems.append(
                f"the validation loss did not fall: {self.first_loss:.3f} → {self.last_loss:.3f} bits/byte, "
                f"expected below {limit:.3f}"
            )
        errors = {
            "forward error against float64": self.forward_error,
            "gradient error against float64": self.gradient_error,
            "difference between decoding and one call": self.decode_error,
        }
        for name, error in errors.items():
            if not error <= TOLERANCE:
                problems.append(f"{name}: {error:.1e}, expected at most {TOLERANCE:.0e}")
        return [f"{self.title}: {problem}" for problem in problems]
