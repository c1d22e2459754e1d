"""What an RWKV model remembers of the tokens so far: of constant size, however many there were."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .configuration_rwkv import RwkvBaseConfig


class RwkvCache:
    """The states of all layers; the model updates it.

    Attributes:
        wkv: a layer, `[B, H, N_value, N_key]`, float32: the state of the operator (value-major).
        attention_token: a layer, `[B, C]`: the last input of time mixing.
        channel_token: a layer, `[B, C]`: the last input of channel mixing.
    """

    is_compileable = False

    def __init__(
        self,
        config: RwkvBaseConfig,
        batch: int,
        device: torch.device,
        dtype: torch.dtype,
        initial: Sequence[Tensor] | None = None,
    ) -> None:
        """The past of `batch` sequences: empty, or `initial`, a state `[H, N_value, N_key]` a layer."""
        size, layers = config.head_size, config.num_hidden_layers
        if initial is None:
            initial = torch.zeros(layers, config.num_heads, size, size, device=device)
        row = torch.zeros(batch, config.hidden_size, device=device, dtype=dtype)
        self.wkv = [state.float().expand(batch, -1, -1, -1).clone() for state in initial]
        self.attention_token = [row.clone() for _ in range(layers)]
        self.channel_token = [row.clone() for _ in range(layers)]
        self._tokens = 0

    def __len__(self) -> int:
        return len(self.wkv)

    def update(self, layer: int, wkv: Tensor, attention_token: Tensor, channel_token: Tensor) -> None:
        """Set what a layer remembers; without gradients everything stays where it is, as CUDA graphs need it.

        The tokens come as views of all tokens, and must not keep those in memory.
        """
        if torch.is_grad_enabled():
            self.wkv[layer] = wkv
            self.attention_token[layer] = attention_token.clone()
            self.channel_token[layer] = channel_token.clone()
            return
        if wkv is not self.wkv[layer]:  # which the step has updated where it stands
            self.wkv[layer].copy_(wkv)
        self.attention_token[layer].copy_(attention_token)
        self.channel_token[layer].copy_(channel_token)

    def note_tokens(self, count: int) -> None:
        """Count tokens that the states have seen."""
        self._tokens += count

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen, padding among them."""
        return self._tokens

    def get_max_length(self) -> int:
        """-1: there is no limit."""
        return -1

    def reset(self) -> None:
        """Forget everything; without gradients everything stays where it is."""
        self._map(torch.zeros_like if torch.is_grad_enabled() else Tensor.zero_)
        self._tokens = 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row b becomes what row `beam_idx[b]` was."""
        self._map(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    batch_select_indices = reorder_cache

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row `repeats` times."""
        self._map(lambda tensor: tensor.repeat_interleave(repeats, 0))

    def _map(self, function) -> None:
        for tensors in (self.wkv, self.attention_token, self.channel_token):
            tensors[:] = [function(tensor) for tensor in tensors]
