"""Scores of queries and keys under the decay between them, without a division.

A query token t and a key token i < t are scaled towards the middle of the smallest aligned block of 2, 4,
8, ... tokens that holds both: the query by the decays from the middle to t, the key by those from i to the
middle. So every factor is a product of decays, exact for any of them from 1 to 0, and the gradient of a
decay sums only over the pairs that it lies between: nothing cancels. Products are sums of logarithms until
they are used, for a decay next to 1 keeps its digits only there.

Shapes: ``...`` anything, L tokens of a chunk (a power of two), N head size, Q queries, K keys a token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad


class Spans:
    """Logarithms of products of decays within blocks of tokens that double, up to the whole chunk.

    since: ``[..., Q, L, N]``, from the start of a token's block through the token, if the query is inclusive:
        it reads the state after the token's decay. If not, up to the token before.
    until: ``[..., 1, L, N]``, from the token after, to the end of the block.
    total: ``[..., 1, blocks, N]``, of all tokens of a block.
    """

    def __init__(self, log_decay: Tensor, inclusive: Sequence[bool]):
        zeros = torch.zeros_like(log_decay)
        self.inclusive = tuple(inclusive)
        self.since = torch.stack([log_decay if each else zeros for each in inclusive], dim=-3)
        self.until = zeros.unsqueeze(-3)
        self.total = log_decay.unsqueeze(-3)

    def halves(self) -> Iterator[int]:
        """Let blocks grow, and yield their size while they are halves of others; at last one is the chunk."""
        size = 1
        while self.total.shape[-2] > 1:
            yield size
            left, right = self.total.unflatten(-2, (-1, 2)).unsqueeze(-2).unbind(-3)  # [..., 1, pairs, 1, N]
            _right(self.since, size).add_(left)
            _left(self.until, size).add_(right)
            self.total = (left + right).squeeze(-2)
            size *= 2


def scores(queries: Tensor, keys: Tensor, spans: Spans) -> Tensor:
    """``[..., Q, K, L, L]``: each query times each key of an earlier token, under the decay between; or 0.

    Args:
        queries: ``[..., Q, L, N]``. keys: ``[..., K, L, N]``.
        spans: new; of the whole chunk afterwards.
    """
    length = queries.shape[-2]
    result = queries.new_zeros(*queries.shape[:-2], keys.shape[-3], length, length)
    for half in spans.halves():
        query = _side_by_side(_right(queries, half) * _right(spans.since, half).exp())
        key = _side_by_side(_left(keys, half) * _left(spans.until, half).exp())
        blocks(result, half, 1, 0).copy_(_apart(query @ key.mT, half))
    return result


def gradients_of_scores(
    queries: Tensor, keys: Tensor, spans: Spans, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and the log decay ``[..., L, N]`` from `grad`, that of :func:`scores`.

    What `grad` holds elsewhere than below the diagonal does not matter. Spans as there.
    """
    of_queries, of_keys = torch.zeros_like(queries), torch.zeros_like(keys)
    of_decay = torch.zeros_like(queries[..., 0, :, :])
    for half in spans.halves():
        query_factor, key_factor = _right(spans.since, half).exp(), _left(spans.until, half).exp()
        query, key = _right(queries, half) * query_factor, _left(keys, half) * key_factor
        block = blocks(grad, half, 1, 0).movedim((-5, -4), (-4, -2)).flatten(-4, -3).flatten(-2)
        of_query = _stacked(block @ _side_by_side(key), half)
        of_key = _stacked(block.mT @ _side_by_side(query), half)
        _right(of_queries, half).add_(of_query * query_factor)
        _left(of_keys, half).add_(of_key * key_factor)
        _right(of_decay, half).add_(sum_from_token(query * of_query, spans.inclusive))
        _left(of_decay, half).add_(sum_before_token(key * of_key))
    return of_queries, of_keys, of_decay


def sum_from_token(x: Tensor, inclusive: Sequence[bool]) -> Tensor:
    """What the log decay of each token gets from queries scaled since a block's start.

    x: queries, scaled, times the gradients of that, ``[..., Q, blocks, tokens, N]``.
    """
    each = x.unbind(-4)
    # A query that is not inclusive is one for the token before.
    parts = [y if through else pad(y[..., 1:, :], (0, 0, 0, 1)) for y, through in zip(each, inclusive)]
    return sum(parts).flip(-2).cumsum(-2).flip(-2)


def sum_before_token(x: Tensor) -> Tensor:
    """The same from keys scaled until a block's end, ``[..., K, blocks, tokens, N]``."""
    return pad(x.sum(-4)[..., :-1, :], (0, 0, 1, 0)).cumsum(-2)


def blocks(matrix: Tensor, half: int, row: int, column: int) -> Tensor:
    """A view of a quarter of every block of ``2 * half`` on the diagonal: ``[..., blocks, half, half]``."""
    count = matrix.shape[-1] // (2 * half)
    parts = matrix.unflatten(-2, (count, 2, half)).unflatten(-1, (count, 2, half))
    return parts[..., row, :, :, column, :].diagonal(dim1=-4, dim2=-2).movedim(-1, -3)


def inverse(lower: Tensor) -> Tensor:
    """(I - A)^-1 of the part of `lower`, ``[..., L, L]``, below the diagonal, by blocks that double.

    Powers of A would be shorter, and wrong where they grow before they vanish.
    """
    result = torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device).repeat(
        *lower.shape[:-2], 1, 1
    )
    half = 1
    while half < lower.shape[-1]:
        corner = blocks(result, half, 1, 1) @ (blocks(lower, half, 1, 0) @ blocks(result, half, 0, 0))
        blocks(result, half, 1, 0).copy_(corner)
        half *= 2
    return result


def _left(x: Tensor, half: int) -> Tensor:
    """The first half of every block: ``[..., blocks, half, N]``, a view."""
    return x.unflatten(-2, (-1, 2, half)).select(-3, 0)


def _right(x: Tensor, half: int) -> Tensor:
    return x.unflatten(-2, (-1, 2, half)).select(-3, 1)


def _side_by_side(x: Tensor) -> Tensor:
    """``[..., Q, blocks, half, N]`` as rows of one matrix a block, ``[..., blocks, Q * half, N]``."""
    return x.movedim(-4, -3).flatten(-3, -2)


def _stacked(x: Tensor, half: int) -> Tensor:
    """The inverse of :func:`_side_by_side`."""
    return x.unflatten(-2, (-1, half)).movedim(-3, -4)


def _apart(x: Tensor, half: int) -> Tensor:
    """``[..., blocks, Q * half, K * half]`` as ``[..., Q, K, blocks, half, half]``."""
    return x.unflatten(-2, (-1, half)).unflatten(-1, (-1, half)).movedim((-4, -2), (-5, -4))
