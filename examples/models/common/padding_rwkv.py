"""Token shift: each token sees the one before it, and padding is passed over wherever it stands."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass
class Padding:
    """Where the tokens are and where only padding.

    Attributes:
        absent: `[B, T, 1, 1]`, True at padding; `[B, 1, 1]` of a single token.
        newest: `[B, T + 1]`, how many positions after the cached token the newest real token is, before each
            position and after the last.
    """

    absent: Tensor
    newest: Tensor

    @classmethod
    def of(cls, mask: Tensor) -> Padding:
        """From an attention mask `[B, T]`, nonzero at tokens."""
        mask = mask.bool()
        positions = torch.arange(1, mask.shape[1] + 1, device=mask.device)
        newest = torch.where(mask, positions, 0).cummax(1).values
        return cls(~mask[..., None, None], functional.pad(newest, (1, 0)))

    def single(self) -> Padding:
        """The same of the first token, to go with `[B, C]`."""
        return Padding(self.absent[:, 0], self.newest)


def shift(x: Tensor, last: Tensor | None, padding: Padding | None) -> tuple[Tensor, Tensor]:
    """The token before each of x `[B, T, C]`, and the last one `[B, C]`.

    `last` `[B, C]` is the token before x, None for zeros; x may be a single token `[B, C]`, if there is one.
    """
    if x.dim() == 2:
        last = last.to(x.dtype)
        return last, x if padding is None else torch.where(padding.absent[..., 0], last, x)
    first = x.new_zeros(x.shape[0], 1, x.shape[2]) if last is None else last[:, None].to(x.dtype)
    tokens = torch.cat([first, x], 1)
    if padding is not None:
        tokens = tokens.gather(1, padding.newest[..., None].expand(-1, -1, x.shape[2]))
    return tokens[:, :-1], tokens[:, -1]
