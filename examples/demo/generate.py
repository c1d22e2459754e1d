"""Generation: the prompt in one call, then byte by byte with the decode step, the state updated in place."""

from __future__ import annotations

import torch
from torch import Tensor

from examples.demo.accuracy import relative_error
from examples.demo.model import LanguageModel
from examples.demo.recurrence import Recurrence

TEMPERATURE = 0.7


@torch.no_grad()
def generate(
    model: LanguageModel, recurrence: Recurrence, prompt: bytes, count: int, seed: int
) -> tuple[bytes, float]:
    """Continue `prompt` by `count` bytes.

    Returns:
        Prompt and continuation, and the relative difference between the logits of decoding and those of the
        same bytes in one call.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.tensor([list(prompt)])
    state = model.empty_state(1)
    logits = [model(tokens, recurrence, state)]
    for _ in range(count):
        following = _sample(logits[-1][:, -1], generator)
        tokens = torch.cat([tokens, following], dim=1)
        logits.append(model(following, recurrence, state))
    at_once = model(tokens, recurrence)
    return bytes(tokens[0].tolist()), relative_error(torch.cat(logits, dim=1), at_once)


def _sample(logits: Tensor, generator: torch.Generator) -> Tensor:
    return torch.multinomial(torch.softmax(logits / TEMPERATURE, -1), 1, generator=generator)
