"""wkv5, wkv6 and wkv7 chunk by chunk: what goes through one state after the other, and what does not.

Everything within chunks is done for many of them at once; only the states are carried from chunk to chunk.
Backward recomputes what is in the chunks from the states before them, so that is all that forward saves.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from .decay import gradient_of_w, log_decay
from .layout import Batch, Packed

# Elements of one input in the chunks that are worked on at a time: what a core's cache holds the dozens of
# intermediates of, or enough to keep another device busy.
_CPU_ELEMENTS_AT_A_TIME = 1 << 17
_ELEMENTS_AT_A_TIME = 1 << 22


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """What is computed in, and what states are of."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


class Heads:
    """One call with its inputs in chunks.

    Args:
        form: the module `wkv6` (for wkv5 too) or `wkv7`: the matrix form of a chunk.
        inputs: the op's, in its order.
        cu_seqlens: as in `ops`.
        decay: number of the form of the decay.
    """

    def __init__(self, form: ModuleType, inputs: Sequence[Tensor], cu_seqlens: Tensor | None, decay: int):
        self.form, self.inputs, self.decay = form, inputs, decay
        self.like = inputs[0]
        batch, tokens, self.heads, self.size = self.like.shape
        self.compute = compute_dtype(self.like)
        self.layout = Batch(batch, tokens) if cu_seqlens is None else Packed(cu_seqlens, tokens)
        w = log_decay(inputs[form.DECAY].to(self.compute), decay).expand(self.like.shape)
        self.tensors = [w if i == form.DECAY else x for i, x in enumerate(inputs)]

    def forward(self, state: Tensor | None, save: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """y, the final state, and if `save` the states before all chunks, ``[chunks, H, N, N]``."""
        states, ys, saved = self._states(state), [], []
        for part in self._parts():
            chunks = self._chunks(part)
            before, states = self._carry(states, part, chunks.total, chunks.turn, chunks.add)
            ys.append((chunks.rest + chunks.read @ before.mT).to(self.like.dtype))
            if save:
                saved.append(before)
        none_saved = states.new_zeros(0, self.layout.rows, self.heads, self.size, self.size)
        checkpoints = torch.cat([none_saved, *saved]).transpose(0, 1).flatten(0, 1)
        return self._joined(ys), states, checkpoints

    def backward(
        self, checkpoints: Tensor, grad_y: Tensor | None, grad_state: Tensor | None
    ) -> tuple[Tensor, ...]:
        """The gradients of the inputs and of the initial state, from the states that forward saved."""
        before = checkpoints.unflatten(0, (self.layout.rows, self.layout.chunks)).transpose(0, 1)
        grad_y = torch.zeros_like(self.like) if grad_y is None else grad_y
        of_states, gradients = self._states(grad_state), []
        for part in reversed(self._parts()):
            chunks, of_y = self._chunks(part), self._split(grad_y, part)
            # The gradient of the state goes back the way that the state came.
            turn = None if chunks.turn is None else chunks.turn.mT
            add = of_y.mT @ chunks.read
            of_after, of_states = self._carry(of_states, part[::-1], chunks.total, turn, add)
            gradients.append(chunks.gradients(before[part.start : part.stop], of_after, of_y))
        of_inputs = zip(*reversed(gradients)) if gradients else [()] * len(self.inputs)
        return (*map(self._gradient, range(len(self.inputs)), of_inputs), of_states)

    def _parts(self) -> list[range]:
        """The chunks, as many at a time as memory is to hold."""
        layout = self.layout
        each = layout.rows * self.heads * layout.length * self.size
        room = _CPU_ELEMENTS_AT_A_TIME if self.like.is_cpu else _ELEMENTS_AT_A_TIME
        count = max(1, room // max(1, each))
        chunks = range(layout.chunks)
        return [chunks[start : start + count] for start in chunks[::count]]

    def _chunks(self, part: range):
        """`part` in matrix form. Of what is not for every token, u ``[H, N]``, there is one row."""
        split = (x.to(self.compute)[:, None] if x.dim() == 2 else self._split(x, part) for x in self.tensors)
        return self.form.Chunks(*split)

    def _split(self, x: Tensor, part: range) -> Tensor:
        return self.layout.split(x, part.start, part.stop).to(self.compute)

    def _joined(self, chunks: Sequence[Tensor]) -> Tensor:
        """Parts of the chunks of one tensor, in their order, as ``[B, T, H, N]``."""
        none = self.like.new_zeros(0, self.layout.rows, self.heads, self.layout.length, self.size)
        return self.layout.join(torch.cat([none.to(chunks[0].dtype) if chunks else none, *chunks]))

    def _states(self, given: Tensor | None) -> Tensor:
        """A copy of what is given, or zeros: ``[S, H, N, N]``."""
        if given is not None:
            return given.to(self.compute, copy=True, memory_format=torch.contiguous_format)
        shape = (self.layout.sequences, self.heads, self.size, self.size)
        return self.like.new_zeros(shape, dtype=self.compute)

    def _carry(
        self, states: Tensor, order: range, total: Tensor, turn: Tensor | None, add: Tensor
    ) -> tuple[Tensor, Tensor]:
        """S <- S diag(total) + S turn + add, through the chunks in `order`: S before each, and the last S.

        The S are stacked from the lowest chunk to the highest, as `total`, `turn` and `add` are.
        """
        met, lowest = [states] * len(order), min(order)
        for chunk in order:
            i = chunk - lowest
            met[i] = state = self.layout.get(states, chunk)
            after = torch.addcmul(add[i], state, total[i])
            states = self.layout.put(states, chunk, after if turn is None else after + state @ turn[i])
        return torch.stack(met), states

    def _gradient(self, index: int, parts: Sequence[Tensor]) -> Tensor:
        """Of one input, from its parts; of what is for all tokens the sum over them."""
        tensor = self.inputs[index]
        if index == self.form.DECAY:
            of_log = self._joined(parts)
            of_log = of_log.sum((0, 1)) if tensor.dim() == 2 else of_log
            gradient = gradient_of_w(tensor.to(self.compute), self.decay, of_log)
        elif tensor.dim() == 2:
            none = torch.zeros_like(tensor, dtype=self.compute)
            gradient = sum((part.sum((0, 1)).squeeze(-2) for part in parts), none)
        else:
            gradient = self._joined(parts)
        return gradient.to(tensor.dtype)
