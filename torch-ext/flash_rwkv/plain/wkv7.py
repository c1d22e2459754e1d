"""One chunk of tokens of RWKV-7 in matrix form.

With what a reads from the state, U (a row a token), the state gains U^T b + V^T k under their decays. U
depends on earlier rows of itself: U = A_ab U + A_ak V + a S^T, each A the decayed scores of its letters
(see `dyadic`), so ``(I - A_ab)^-1`` is wanted. The recurrence is that of arXiv 2503.14456, section 4.

Shapes: ``...`` chunks, sequences and heads; L tokens of a chunk, N head size, S the state before the chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .dyadic import Spans, gradients_of_scores, inverse, scores, sum_before_token, sum_from_token

# Which of the inputs r, w, k, v, a, b the decay is made of.
DECAY = 1
# r reads the state after its token, a before.
INCLUSIVE = (True, False)


class Chunks:
    """y = rest + read S^T, and the state after the chunk is S diag(total) + S turn + add.

    Args: r, the log decay, k, v, a, b, ``[..., L, N]``.
    """

    def __init__(self, r: Tensor, log_decay: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor):
        self.v, self.log_decay = v, log_decay
        self.queries, self.keys = torch.stack([r, a], dim=-3), torch.stack([k, b], dim=-3)
        spans = self._spans()
        matrices = scores(self.queries, self.keys, spans)
        own = (r.unsqueeze(-3) * self.keys).sum(-1)  # of a token for itself
        matrices[..., 0, :, :, :].diagonal(dim1=-2, dim2=-1).copy_(own)
        (self.rk, self.rb), (self.ak, ab) = (x.unbind(-3) for x in matrices.unbind(-4))
        self.since, self.until = spans.since.exp(), spans.until.exp()
        self.total = spans.total[..., 0, :, :].exp()  # [..., 1, N]
        self.scaled_queries, self.scaled_keys = self.queries * self.since, self.keys * self.until
        r_start, a_start = self.scaled_queries.unbind(-3)
        k_end, b_end = self.scaled_keys.unbind(-3)

        self.inverse = inverse(ab)
        self.u_of_state = self.inverse @ a_start  # U = u_of_state S^T + u_of_values
        self.u_of_values = self.inverse @ (self.ak @ v)
        self.read = r_start + self.rb @ self.u_of_state
        self.rest = self.rk @ v + self.rb @ self.u_of_values
        self.turn = self.u_of_state.mT @ b_end
        self.add = self.u_of_values.mT @ b_end + v.mT @ k_end

    def gradients(self, before: Tensor, of_after: Tensor, of_y: Tensor) -> tuple[Tensor, ...]:
        """Of the arguments.

        Args:
            before, of_after: S and the gradient of the state after the chunk, ``[..., N, N]``.
            of_y: ``[..., L, N]``.
        """
        v, (k_end, b_end) = self.v, self.scaled_keys.unbind(-3)
        u = self.u_of_state @ before.mT + self.u_of_values
        of_u = self.rb.mT @ of_y + b_end @ of_after.mT
        of_right_side = self.inverse.mT @ of_u
        of_v = self.rk.mT @ of_y + self.ak.mT @ of_right_side + k_end @ of_after.mT

        of_results = torch.stack([of_y, of_right_side], dim=-3)
        values = torch.stack([v, u], dim=-3)
        of_scores = of_results.unsqueeze(-3) @ values.unsqueeze(-4).mT  # [..., 2, 2, L, L]
        of_scaled_queries = of_results @ before.unsqueeze(-3)
        of_scaled_keys = values @ of_after.unsqueeze(-3)
        of_queries, of_keys, of_decay = gradients_of_scores(self.queries, self.keys, self._spans(), of_scores)
        of_queries += of_scaled_queries * self.since
        of_keys += of_scaled_keys * self.until
        from_queries = (self.scaled_queries * of_scaled_queries).unsqueeze(-3)
        from_keys = (self.scaled_keys * of_scaled_keys).unsqueeze(-3)
        of_decay += sum_from_token(from_queries, INCLUSIVE).squeeze(-3)
        of_decay += sum_before_token(from_keys).squeeze(-3)
        of_decay += (before * of_after).sum(-2, keepdim=True) * self.total

        own = of_scores[..., 0, :, :, :].diagonal(dim1=-2, dim2=-1).unsqueeze(-1)  # [..., 2, L, 1]
        of_r = of_queries[..., 0, :, :] + (own * self.keys).sum(-3)
        of_k, of_b = (of_keys + own * self.queries[..., :1, :, :]).unbind(-3)
        return of_r, of_decay, of_k, of_v, of_queries[..., 1, :, :], of_b

    def _spans(self) -> Spans:
        return Spans(self.log_decay, INCLUSIVE)
