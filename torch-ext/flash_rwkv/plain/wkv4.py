"""wkv4: sums of weights that are scaled by their largest, over all tokens in a logarithmic number of steps.

What a token leaves behind is (p, q, o): e^o p, a sum of weight times value, and e^o q, a sum of weights. Two of them
add up once the earlier is decayed by the tokens of the later, and this is associative, so neighbours are added in
pairs, then pairs of pairs. The gradient of the past is such a sum too, over the tokens to come, of
(grad y / d, -grad y y / d) with d the denominator of y; its scale is e^-m where that of d is e^m.

Shapes: B sequences, T tokens, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .layout import CHUNK_TOKENS

# The exponent of an empty sum: e^o is 0 beside any token.
_EMPTY = -1e38


def empty(k: Tensor) -> Tensor:
    """The states of sequences that begin here, for k ``[B, T, C]``."""
    state = k.new_zeros(k.shape[0], 3, k.shape[2])
    state[:, 2] = _EMPTY
    return state


def forward(k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """y, the final state, and the states before every 64th token ``[B * blocks, 3, C]``; all of one dtype."""
    states = _states(v, torch.ones_like(v), k, w, state)
    y = _present(k, v, u, states[:, :-1])[0]
    checkpoints = states[:, :-1:CHUNK_TOKENS].flatten(0, 1)
    return y, states[:, -1].contiguous(), checkpoints


def backward(
    k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: Tensor, grad_y: Tensor, grad_state: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of k, v, w, u and the state before the first token."""
    tokens = k.shape[1]
    states = _states(v, torch.ones_like(v), k, w, state)
    past = states[:, :-1]
    y, share, denominator, m = _present(k, v, u, past)

    # Gradients of e^o p and e^o q after each token (and, first, before any), again with an exponent.
    p, q, o = states[:, -1].unbind(1)
    of_p, of_q, of_o = grad_state.unbind(1)
    over = grad_y / denominator
    later = (x.flip(1) for x in (over, -over * y, -m))
    ahead = _states(*later, w, torch.stack([of_p, of_q, -o], dim=1)).flip(1)

    weight = (k + ahead[:, 1:, 2]).exp()
    of_present = grad_y * share
    of_u = of_present * (v - y)
    of_v = of_present + weight * ahead[:, 1:, 0]
    of_k = of_u + weight * (ahead[:, 1:, 0] * v + ahead[:, 1:, 1])
    # Every token's decay is of the state before it.
    decayed = (past[:, :, :2] * ahead[:, 1:, :2]).sum(2) * (past[:, :, 2] + w + ahead[:, 1:, 2]).exp()

    # The final exponent is that of the last token that was more than the decayed past, or of the first state; its
    # scale goes through p and q too.
    of_scale = of_o - of_p * p - of_q * q
    newest = torch.arange(1, tokens + 1, device=k.device)[:, None] * (k > past[:, :, 2] + w)
    last = newest.amax(1) if tokens else newest.sum(1)  # [B, C]; 0: the first state
    of_k += ((newest > 0) & (newest == last[:, None])) * of_scale[:, None]
    of_w = decayed.sum(1) + (tokens - last) * of_scale

    scale = (state[:, 2] + ahead[:, 0, 2]).exp()
    of_p, of_q = scale * ahead[:, 0, 0], scale * ahead[:, 0, 1]
    of_o = state[:, 0] * of_p + state[:, 1] * of_q + (last == 0) * of_scale
    return of_k, of_v, of_w.sum(0), of_u.sum((0, 1)), torch.stack([of_p, of_q, of_o], dim=1)


def _present(k: Tensor, v: Tensor, u: Tensor, past: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y of tokens with the past before each, ``[B, T, 3, C]``; the share of a token's own value, d and m."""
    p, q, o = past.unbind(2)
    m = torch.maximum(o, u + k)
    before, own = (o - m).exp(), (u + k - m).exp()
    denominator = before * q + own
    return (before * p + own * v) / denominator, own / denominator, denominator, m


def _states(p: Tensor, q: Tensor, o: Tensor, w: Tensor, state: Tensor) -> Tensor:
    """The sums before each of the tokens and after the last, ``[B, T + 1, 3, C]``, from what each token adds."""
    return _scan(torch.cat([state[:, None], torch.stack([p, q, o], dim=2)], dim=1), w)


def _scan(x: Tensor, decay: Tensor) -> Tensor:
    """The sums of the elements up to each, ``[B, T, 3, C]``; `decay` is the log decay that an element brings."""
    if x.shape[1] == 1:
        return x
    result = torch.empty_like(x)
    result[:, 0] = x[:, 0]
    result[:, 1::2] = odd = _scan(_sum(x[:, :-1:2], x[:, 1::2], decay), 2 * decay)
    even = x[:, 2::2]
    result[:, 2::2] = _sum(odd[:, : even.shape[1]], even, decay)
    return result


def _sum(earlier: Tensor, later: Tensor, decay: Tensor) -> Tensor:
    """Of two sums ``[B, T, 3, C]`` of weights, of which the earlier decays while the later comes."""
    o = earlier[:, :, 2] + decay
    m = torch.maximum(o, later[:, :, 2])
    before, after = (o - m).exp().unsqueeze(2), (later[:, :, 2] - m).exp().unsqueeze(2)
    return torch.cat([before * earlier[:, :, :2] + after * later[:, :, :2], m.unsqueeze(2)], dim=2)
