"""State tuning: all weights stay as they are, and only what each layer remembers at the start is trained.

This works because the operators have gradients of the initial state.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel


class StateTuned(nn.Module):
    """A frozen model whose sequences start from trained states.

    Attributes:
        states: `[layers, H, N_value, N_key]`, zeros at first: what the model starts from without tuning.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        heads, size = model.config.num_heads, model.config.head_size
        self.states = nn.Parameter(
            torch.zeros(model.config.num_hidden_layers, heads, size, size, device=model.device)
        )

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **others):
        """As the model; `input_ids` `[B, T]` are the first tokens of their sequences."""
        cache = self.model.new_cache(input_ids.shape[0], self.states)
        return self.model(input_ids, past_key_values=cache, labels=labels, use_cache=False, **others)

    @torch.no_grad()
    def generate(self, input_ids: Tensor, **others) -> Tensor:
        """As the model's."""
        cache = self.model.new_cache(input_ids.shape[0], self.states)
        return self.model.generate(input_ids, past_key_values=cache, **others)

    def save(self, path: Path) -> None:
        """Write the states under the names that BlinkDL's state files have, value-major as they are."""
        tensors = {name(layer): state.detach().cpu().clone() for layer, state in enumerate(self.states)}
        save_file(tensors, path, metadata={"format": "pt"})

    @torch.no_grad()
    def load(self, path: Path) -> None:
        """Read what `save` wrote."""
        tensors = load_file(path)
        self.states.copy_(torch.stack([tensors[name(layer)] for layer in range(len(self.states))]))


def name(layer: int) -> str:
    """What a layer's initial state is called."""
    return f"blocks.{layer}.att.time_state"
