"""A model that takes part: ours, the same on the loop in Python, or somebody else's."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

PREFILL, DECODE, TRAINING = "prefill", "decode", "training"
EVERYTHING = frozenset({PREFILL, DECODE, TRAINING})


@dataclass(frozen=True)
class Contestant:
    """A language model called as transformers' are.

    Attributes:
        name: what the tables call it.
        model: takes token ids, `past_key_values`, `use_cache`, `labels` and `logits_to_keep`.
        tokens: of a prompt and of a training step, at most.
        does: what it is timed at.
        in_place: whether decoding updates the cache where it is, so that replays of a graph go on.
        around: what its calls run in.
    """

    name: str
    model: nn.Module
    tokens: int
    does: frozenset[str] = EVERYTHING
    in_place: bool = True
    around: Callable[[], AbstractContextManager] = nullcontext

    @torch.no_grad()
    def logits(self, ids: Tensor) -> Tensor:
        """Of all tokens, `[B, T, vocabulary]`; with a cache, since that is how a prompt is read."""
        with self.around():
            return self._ready()(ids, use_cache=True).logits

    @torch.no_grad()
    def prefill(self, ids: Tensor) -> tuple[Tensor, object]:
        """Logits of the last token, `[B, 1, vocabulary]`, and the cache."""
        with self.around():
            output = self._ready()(ids[:, : self.tokens], use_cache=True, logits_to_keep=1)
        return output.logits, output.past_key_values

    @torch.no_grad()
    def decode(self, token: Tensor, cache: object) -> Tensor:
        """Logits after one token `[B, 1]` more."""
        with self.around():
            return self._ready()(token, past_key_values=cache, use_cache=True).logits

    def train(self, ids: Tensor) -> Tensor:
        """Loss and gradients of all weights, as a training step has them before its optimizer's part."""
        ids = ids[:, : self.tokens]
        self.model.train().zero_grad(set_to_none=True)
        with self.around():
            loss = self.model(ids, labels=ids, use_cache=False).loss
            loss.backward()
        return loss.detach()

    def gradients(self, ids: Tensor) -> dict[str, Tensor]:
        """What `train` leaves behind, by name; they leave the model."""
        self.train(ids)
        found = {name: weight.grad for name, weight in self.model.named_parameters()}
        self.model.zero_grad(set_to_none=True)
        return found

    def _ready(self) -> nn.Module:
        """The model, not training; told once, as by users: `eval` takes 0.3 ms, a hundredth of a step."""
        return self.model.eval() if self.model.training else self.model

    def weights_bytes(self) -> int:
        return sum(weight.numel() * weight.element_size() for weight in self.model.parameters())
