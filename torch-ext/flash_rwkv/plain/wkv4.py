"""wkv4: sums of weights that are scaled by their largest, in a logarithmic number of steps.

What a token leaves behind is (p, q, o): e^o p is a weight times the token's value, e^o q the weight. Two of
these add up once the earlier has decayed by the tokens of the later. That is associative, so neighbours are
added, then pairs of neighbours, and so on; backward goes the same way, with the same factors, none of them
above 1.

Shapes: B sequences, T tokens, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

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
    states = _scan(_added(k, v, state), w)
    y = _present(k, v, u, states[:, :-1])[0]
    return y, states[:, -1].clone(), states[:, :-1:CHUNK_TOKENS].flatten(0, 1).clone()


def backward(
    k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: Tensor, grad_y: Tensor, grad_state: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of k, v, w, u and the state before the first token."""
    tokens = k.shape[1]
    added = _added(k, v, state)
    states = _scan(added, w)
    past = states[:, :-1]
    y, of_p, share = _present(k, v, u, past)
    of_p *= grad_y
    of_v = share * grad_y
    of_u = of_v * (v - y)

    # Whatever moves an exponent is a factor of both sums, so from here on it is enough to look at p and q.
    of_sums = torch.cat([torch.stack([of_p, -y * of_p], dim=2), grad_state[:, None, :2]], dim=1)
    of_added, of_w = _gradients_of_scan(added, states, w, of_sums)
    of_exponents = (of_added * added[:, :, :2]).sum(2)
    of_k = of_u + of_exponents[:, 1:]
    of_v += of_added[:, 1:, 0]

    # But the final p and q are shown without their exponent: it is that of the last token that was more than
    # the decayed past, or of the first state, decayed by the tokens since.
    of_final = grad_state[:, 2] - (grad_state[:, :2] * states[:, -1, :2]).sum(1)
    number = torch.arange(1, tokens + 1, device=k.device)[:, None]
    newest = torch.where(k > past[:, :, 2] + w, number, 0)
    last = pad(newest, (0, 0, 1, 0)).amax(1)  # 0: the first state
    of_k += ((newest > 0) & (newest == last[:, None])) * of_final[:, None]
    of_w += (tokens - last) * of_final
    of_o = of_exponents[:, 0] + (last == 0) * of_final
    of_state = torch.cat([of_added[:, 0], of_o[:, None]], dim=1)
    return of_k, of_v, of_w.sum(0), of_u.sum((0, 1)), of_state


def _present(k: Tensor, v: Tensor, u: Tensor, past: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """y of tokens with the past before each, ``[B, T, 3, C]``; the factors of p and of v in it."""
    p, q, o = past.unbind(2)
    m = torch.maximum(o, u + k)
    before, own = (o - m).exp(), (u + k - m).exp()
    denominator = before * q + own
    return (before * p + own * v) / denominator, before / denominator, own / denominator


def _added(k: Tensor, v: Tensor, state: Tensor) -> Tensor:
    """The state before the first token, and what each token adds to it: ``[B, T + 1, 3, C]``."""
    return torch.cat([state[:, None], torch.stack([v, torch.ones_like(v), k], dim=2)], dim=1)


def _scan(x: Tensor, decay: Tensor) -> Tensor:
    """The sums of the elements up to each, ``[B, T, 3, C]``; each brings the log decay `decay`, ``[C]``."""
    if x.shape[1] == 1:
        return x
    result = torch.empty_like(x)
    result[:, 0] = x[:, 0]
    result[:, 1::2] = odd = _scan(_sum(x[:, :-1:2], x[:, 1::2], decay), 2 * decay)
    even = x[:, 2::2]
    result[:, 2::2] = _sum(odd[:, : even.shape[1]], even, decay)
    return result


def _gradients_of_scan(x: Tensor, sums: Tensor, decay: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Of p and q of the elements, ``[B, T, 2, C]``, and of the decay ``[B, C]``, from those of the sums."""
    if x.shape[1] == 1:
        return grad, torch.zeros_like(grad[:, 0, 0])
    result = grad.clone()
    odd, even = sums[:, 1::2], x[:, 2::2]
    odd_before = odd[:, : even.shape[1]]
    of_odd_before, result[:, 2::2], of_decay = _gradients_of_sum(odd_before, even, decay, grad[:, 2::2])
    of_odd = grad[:, 1::2].clone()
    of_odd[:, : even.shape[1]] += of_odd_before

    first, second = x[:, :-1:2], x[:, 1::2]
    of_pairs, of_pair_decay = _gradients_of_scan(_sum(first, second, decay), odd, 2 * decay, of_odd)
    of_first, result[:, 1::2], of_decay_inside = _gradients_of_sum(first, second, decay, of_pairs)
    result[:, :-1:2] += of_first
    return result, of_decay + of_decay_inside + 2 * of_pair_decay


def _sum(earlier: Tensor, later: Tensor, decay: Tensor) -> Tensor:
    """Of two sums ``[B, T, 3, C]`` of weights, of which the earlier decays while the later comes."""
    before, after, o = _factors(earlier, later, decay)
    return torch.cat([before * earlier[:, :, :2] + after * later[:, :, :2], o], dim=2)


def _gradients_of_sum(
    earlier: Tensor, later: Tensor, decay: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Of p and q of both, and of the decay ``[B, C]``."""
    before, after, _ = _factors(earlier, later, decay)
    of_earlier = before * grad
    return of_earlier, after * grad, (of_earlier * earlier[:, :, :2]).sum((1, 2))


def _factors(earlier: Tensor, later: Tensor, decay: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of either in their sum, and the exponent of that; ``[B, T, 1, C]``."""
    o_earlier, o_later = earlier[:, :, 2:] + decay, later[:, :, 2:]
    o = torch.maximum(o_earlier, o_later)
    return (o_earlier - o).exp(), (o_later - o).exp(), o
