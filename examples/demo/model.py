"""A byte-level RWKV language model of either generation."""

from __future__ import annotations

from torch import Tensor, nn

from examples.demo.layers import LayerState
from examples.demo.recurrence import Recurrence
from examples.demo.rwkv6 import ChannelMix6, TimeMix6
from examples.demo.rwkv7 import ChannelMix7, TimeMix7

BYTES = 256

PARTS = {"wkv6": (TimeMix6, ChannelMix6), "wkv7": (TimeMix7, ChannelMix7)}
TITLES = {"wkv6": "RWKV-6", "wkv7": "RWKV-7"}


class Block(nn.Module):
    """Time mixing, then channel mixing, each on a normalised residual stream."""

    def __init__(self, operator: str, dim: int, layer: int, layers: int) -> None:
        super().__init__()
        time_mix, channel_mix = PARTS[operator]
        self.time_norm = nn.LayerNorm(dim)
        self.time_mix = time_mix(dim, layer, layers)
        self.channel_norm = nn.LayerNorm(dim)
        self.channel_mix = channel_mix(dim, layer, layers)

    def forward(
        self, x: Tensor, recurrence: Recurrence, state: LayerState | None, first_value: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        y, first_value = self.time_mix(self.time_norm(x), recurrence, state, first_value)
        x = x + y
        return x + self.channel_mix(self.channel_norm(x), state), first_value


class LanguageModel(nn.Module):
    """Predicts the next byte.

    Args:
        operator: `"wkv6"` or `"wkv7"`.
        dim: channels, a multiple of the head size, 64.
        layers: number of blocks.
    """

    def __init__(self, operator: str, dim: int, layers: int) -> None:
        super().__init__()
        self.operator = operator
        self.dim = dim
        self.embedding = nn.Embedding(BYTES, dim)
        nn.init.uniform_(self.embedding.weight, -1e-2, 1e-2)
        self.embedding_norm = nn.LayerNorm(dim)
        self.blocks = nn.ModuleList(Block(operator, dim, layer, layers) for layer in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, BYTES, bias=False)
        nn.init.orthogonal_(self.head.weight, gain=0.5)

    def empty_state(self, batch: int) -> list[LayerState]:
        """The state before any token, one entry a layer."""
        return [LayerState.empty(batch, self.dim, self.head.weight.device) for _ in self.blocks]

    def forward(
        self, tokens: Tensor, recurrence: Recurrence, state: list[LayerState] | None = None
    ) -> Tensor:
        """Logits of the next byte.

        Args:
            tokens: int64 `[B, T]`.
            recurrence: the operator to run on.
            state: of `empty_state`, updated in place; one token at a time uses the operator's decode step.

        Returns:
            `[B, T, 256]`.
        """
        x = self.embedding_norm(self.embedding(tokens))
        first_value = None
        for index, block in enumerate(self.blocks):
            x, first_value = block(x, recurrence, state and state[index], first_value)
        return self.head(self.norm(x))
