"""The loss, without the logits of all tokens at once: with a large vocabulary these outweigh all else.

Letters in shapes: B batch, T tokens, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

# Tokens whose logits are there at a time; their products are still large enough to keep a GPU busy.
PIECE = 1024


def next_token_loss(
    head: nn.Module,
    hidden: Tensor,
    labels: Tensor,
    num_items_in_batch: int | Tensor | None = None,
    ignore_index: int = -100,
    shift_labels: Tensor | None = None,
    **_,
) -> Tensor:
    """Mean cross-entropy of each next token; arguments as of transformers' own losses.

    Args:
        head: `[.., C]` to logits `[.., vocabulary]`. It runs again in backward, a piece at a time.
        hidden: `[B, T, C]`.
        labels: int64 `[B, T]`, as the tokens: they are shifted here.
        num_items_in_batch: what to divide by; None for the number of labels.
        ignore_index: label where no loss is wanted.
        shift_labels: labels that are shifted already, in place of `labels`.
    """
    if shift_labels is None:
        shift_labels = functional.pad(labels[:, 1:], (0, 1), value=ignore_index)
    hidden, targets = hidden.flatten(0, 1), shift_labels.flatten().to(hidden.device)
    total = hidden.new_zeros((), dtype=torch.float32)
    for piece, target in zip(hidden.split(PIECE), targets.split(PIECE), strict=True):
        total = total + checkpoint(
            _sum, head, piece, target, ignore_index, use_reentrant=False, preserve_rng_state=False
        )
    return total / ((targets != ignore_index).sum() if num_items_in_batch is None else num_items_in_batch)


def _sum(head: nn.Module, hidden: Tensor, targets: Tensor, ignore_index: int) -> Tensor:
    logits = head(hidden).float()
    return functional.cross_entropy(logits, targets, ignore_index=ignore_index, reduction="sum")
