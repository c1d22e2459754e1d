"""One chunk of tokens of RWKV-6, and of RWKV-5 with its decay given to every token, in matrix form.

Shapes: ``...`` chunks, sequences and heads; L tokens of a chunk, N head size, S the state before the chunk.
"""

from __future__ import annotations

from torch import Tensor

from .dyadic import Spans, gradients_of_scores, scores, sum_before_token, sum_from_token

# Which of the inputs r, k, v, w, u the decay is made of.
DECAY = 3


class Chunks:
    """y = rest + read S^T, and the state after the chunk is S diag(total) + add.

    Args: r, k, v and the log decay ``[..., L, N]``, u ``[..., 1, N]``.
    """

    turn = None

    def __init__(self, r: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, u: Tensor):
        self.r, self.k, self.v, self.log_decay, self.u = r, k, v, log_decay, u
        spans = self._spans()
        self.scores = scores(r.unsqueeze(-3), k.unsqueeze(-3), spans)[..., 0, 0, :, :]
        self.scores.diagonal(dim1=-2, dim2=-1).copy_((r * u * k).sum(-1))
        self.since, self.until = spans.since[..., 0, :, :].exp(), spans.until[..., 0, :, :].exp()
        self.total = spans.total[..., 0, :, :].exp()  # [..., 1, N]
        self.read, self.written = r * self.since, k * self.until
        self.rest = self.scores @ v
        self.add = v.mT @ self.written

    def gradients(self, before: Tensor, of_after: Tensor, of_y: Tensor) -> tuple[Tensor, ...]:
        """Of the arguments; u's is ``[..., 1, N]``.

        Args:
            before, of_after: S and the gradient of the state after the chunk, ``[..., N, N]``.
            of_y: ``[..., L, N]``.
        """
        r, k, u = self.r, self.k, self.u
        of_read, of_written = of_y @ before, self.v @ of_after
        of_scores = of_y @ self.v.mT
        of_r, of_k, of_decay = gradients_of_scores(
            r.unsqueeze(-3), k.unsqueeze(-3), self._spans(), of_scores[..., None, None, :, :]
        )
        of_decay += sum_from_token((self.read * of_read)[..., None, None, :, :], (False,))[..., 0, :, :]
        of_decay += sum_before_token((self.written * of_written)[..., None, None, :, :])[..., 0, :, :]
        of_decay += ((before * of_after).sum(-2, keepdim=True)) * self.total
        diagonal = of_scores.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
        return (
            of_r[..., 0, :, :] + of_read * self.since + diagonal * u * k,
            of_k[..., 0, :, :] + of_written * self.until + diagonal * u * r,
            self.scores.mT @ of_y + self.written @ of_after.mT,
            of_decay,
            (diagonal * r * k).sum(-2, keepdim=True),
        )

    def _spans(self) -> Spans:
        return Spans(self.log_decay, (False,))
