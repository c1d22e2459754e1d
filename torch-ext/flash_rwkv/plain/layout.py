"""Tokens in chunks: a batch, or sequences packed into one row, as ``[chunks, rows, H, L, N]``, and back.

The chunks of a sequence follow each other; each takes its state from the row of `states` that belongs to the
sequence and leaves it there. Tokens that fill up a last chunk are zeros, log decay included: they change
nothing. Nothing here waits for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

# One saved state each: as many as `fakes` has for checkpoints on the CPU.
CHUNK_TOKENS = 64


class Batch:
    """Sequences side by side: rows are the sequences."""

    def __init__(self, batch: int, tokens: int):
        self.rows = self.sequences = batch
        self.tokens, self.length = tokens, 1
        while self.length < min(tokens, CHUNK_TOKENS):
            self.length *= 2
        self.chunks = -(-tokens // self.length)

    def split(self, x: Tensor, first: int, last: int) -> Tensor:
        """Chunks `first` ... `last` - 1 of x ``[B, T, H, N]``."""
        x = x[:, first * self.length : last * self.length]
        x = pad(x, (0, 0, 0, 0, 0, (last - first) * self.length - x.shape[1]))
        return x.unflatten(1, (last - first, self.length)).permute(1, 0, 3, 2, 4).contiguous()

    def join(self, x: Tensor) -> Tensor:
        """``[B, T, H, N]`` of all chunks."""
        return x.permute(1, 0, 3, 2, 4).flatten(1, 2)[:, : self.tokens].contiguous()

    def get(self, states: Tensor, chunk: int) -> Tensor:
        """The states ``[rows, H, N, N]`` that a chunk is about, of those of all sequences."""
        return states

    def put(self, states: Tensor, chunk: int, value: Tensor) -> Tensor:
        """The states of all sequences with those of a chunk replaced."""
        return value


class Packed:
    """Sequences end to end in one row; s has the chunks from ``cu_seqlens[s] // L + s`` on, at least one.

    So its place follows from its own bounds, and the number of chunks from T and S.
    """

    def __init__(self, cu_seqlens: Tensor, tokens: int):
        bounds = cu_seqlens.long().clamp(0, tokens)
        self.rows, self.sequences = 1, bounds.shape[0] - 1
        self.tokens, self.length = tokens, CHUNK_TOKENS
        self.chunks = tokens // self.length + self.sequences
        count = torch.arange(max(tokens, self.length) + self.sequences + 1, device=bounds.device)
        places = bounds // self.length + count[: self.sequences + 1]  # the first chunk of each sequence

        chunk, token = count[: self.chunks], count[:tokens]
        self.sequence = self._clamped(torch.searchsorted(places, chunk, right=True) - 1)
        start, end = bounds[self.sequence, None], bounds[self.sequence + 1, None]
        index = start + ((chunk - places[self.sequence]) * self.length)[:, None] + count[: self.length]
        self.index = torch.where(index < end, index, tokens).clamp(0, tokens)  # row `tokens` is one of zeros

        owner = self._clamped(torch.searchsorted(bounds[1:].contiguous(), token, right=True))
        place = places[owner] * self.length + token - bounds[owner]
        self.place = place.clamp(0, self.chunks * self.length - 1)

    def split(self, x: Tensor, first: int, last: int) -> Tensor:
        """Chunks `first` ... `last` - 1 of x ``[1, T, H, N]``."""
        index = self.index[first:last]
        x = pad(x[0], (0, 0, 0, 0, 0, 1)).index_select(0, index.flatten())
        return x.unflatten(0, index.shape).transpose(1, 2).unsqueeze(1).contiguous()

    def join(self, x: Tensor) -> Tensor:
        """``[1, T, H, N]`` of all chunks."""
        return x.squeeze(1).transpose(1, 2).flatten(0, 1).index_select(0, self.place).unsqueeze(0)

    def get(self, states: Tensor, chunk: int) -> Tensor:
        """As of :class:`Batch`; one row."""
        return states.index_select(0, self.sequence[chunk : chunk + 1])

    def put(self, states: Tensor, chunk: int, value: Tensor) -> Tensor:
        """As of :class:`Batch`."""
        return states.index_copy(0, self.sequence[chunk : chunk + 1], value)

    def _clamped(self, sequence: Tensor) -> Tensor:
        """Bounds that are no bounds must not lead out of the tensors."""
        return sequence.clamp(0, self.sequences - 1)
