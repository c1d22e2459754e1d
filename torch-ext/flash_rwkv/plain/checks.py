"""What the C++ of the compiled variants checks, with its messages: argument, what was expected, what came."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .layout import CHUNK_TOKENS

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
# May be float32 beside a lower precision.
_WIDE = ("w", "u")


class Call:
    """The checked tensors of one op.

    Args:
        op: `wkv4` to `wkv7`, with `_step_` for a step.
        names: of `inputs`.
        inputs: in the order of the op.
        decay: number of the decay's form.

    Raises:
        RuntimeError: something is wrong with them; the message names it.
    """

    def __init__(self, op: str, names: Sequence[str], inputs: Sequence[Tensor], decay: int = 0):
        self.op, self.first_name, self.first = op, names[0], inputs[0]
        self.has_heads, self.step = not op.startswith("wkv4"), op.endswith("_step_")
        self._first()
        per_call = {"wkv4": "wu", "wkv5": "wu", "wkv6": "u", "wkv7": ""}[op[:4]]
        for name, tensor in zip(names[1:], inputs[1:]):
            if name in per_call:
                self._shape(name, tensor, self.channels)
            else:
                self._shape(name, tensor, self.tokens)
            self._dtype(name, tensor, (self.dtype, torch.float32) if name in _WIDE else (self.dtype,))
        if decay not in (0, 1, 2):
            self.fail(f"decay must be 0 (log), 1 (exp) or 2 (sigmoid), got {decay}")

    def fail(self, message: str) -> None:
        raise RuntimeError(f"{self.op}: {message}")

    def state(self, name: str, tensor: Tensor | None, sequences: int) -> None:
        """That of the sequences, or its gradient."""
        if tensor is not None:
            self._shape(name, tensor, self._state_dims("S" if self.has_heads else "B", sequences))
            self._dtype(name, tensor, (self.compute,))

    def gradients(
        self, checkpoints: Tensor, grad_y: Tensor | None, grad_state: Tensor | None, cu_seqlens: Tensor | None
    ) -> None:
        """What backward is given: the states that forward saved, and the gradients of its results."""
        sequences = self.cu_seqlens(cu_seqlens)
        tokens = self.first.shape[1]
        blocks = self.batch * -(-tokens // CHUNK_TOKENS)
        if cu_seqlens is not None:
            blocks = tokens // CHUNK_TOKENS + sequences
        self._shape("checkpoints", checkpoints, self._state_dims("blocks", blocks))
        self._dtype("checkpoints", checkpoints, (self.compute,))
        if grad_y is not None:
            self._shape("grad_y", grad_y, self.tokens)
            self._dtype("grad_y", grad_y, (self.dtype,))
        self.state("grad_state", grad_state, sequences)

    def pool(self, state: Tensor, slots: Tensor | None) -> None:
        """A pool of states, and the rows of it that the sequences have."""
        rows = self.batch if slots is None or state.dim() == 0 else state.shape[0]
        self._shape("state", state, self._state_dims("B" if slots is None else "P", rows))
        self._dtype("state", state, (torch.float64,) if self.compute == torch.float64 else _FLOATS)
        if _overlaps(state):
            self.fail(
                "state must not overlap itself in memory, as it is updated in place, got shape "
                f"{list(state.shape)} with strides {list(state.stride())}"
            )
        if slots is not None:
            self._slots(slots, rows)

    def cu_seqlens(self, bounds: Tensor | None) -> int:
        """The number of sequences. Values are read on the CPU only."""
        if bounds is None:
            return self.batch
        self._device("cu_seqlens", bounds)
        if bounds.dtype != torch.int32:
            self.fail(f"cu_seqlens must be int32, got {_name(bounds.dtype)}")
        if bounds.dim() != 1 or bounds.shape[0] < 2:
            self.fail(f"cu_seqlens must be [S + 1] with at least 2 entries, got {list(bounds.shape)}")
        if self.batch != 1:
            self.fail(f"cu_seqlens needs packed sequences in a batch of B = 1, got B = {self.batch}")
        if bounds.is_cpu:
            self._bounds(bounds.tolist())
        return bounds.shape[0] - 1

    def _first(self) -> None:
        name, first = self.first_name, self.first
        self.dtype, self.compute = first.dtype, torch.float32
        if self.dtype == torch.float64:
            self.compute = torch.float64
        elif self.dtype not in _FLOATS:
            self.fail(
                f"{name} must be float32, bfloat16 or float16 (or float64 on the CPU), got "
                f"{_name(self.dtype)} on {first.device}"
            )
        letters = ["B", "T", "H", "N"] if self.has_heads else ["B", "T", "C"]
        if self.step and first.dim() == len(letters) - 1:
            letters.remove("T")
        elif first.dim() != len(letters):
            shorter = f" or [{', '.join(x for x in letters if x != 'T')}]" if self.step else ""
            self.fail(f"{name} must be [{', '.join(letters)}]{shorter}, got {list(first.shape)}")
        self.tokens = list(zip(letters, first.shape))
        self.channels = self.tokens[letters.index("H" if self.has_heads else "C") :]
        self.batch = first.shape[0]
        size = first.shape[-1]
        if self.has_heads and not (8 <= size <= 256 and size % 8 == 0):
            self.fail(f"{name} must have a head size N that is a multiple of 8 from 8 to 256, got N = {size}")

    def _state_dims(self, letter: str, rows: int) -> list[tuple[str, int]]:
        if self.has_heads:
            return [(letter, rows), *self.channels, self.channels[-1]]
        return [(letter, rows), ("3", 3), *self.channels]

    def _device(self, name: str, tensor: Tensor) -> None:
        if tensor.device != self.first.device:
            expected = f"on the device of {self.first_name} ({self.first.device})"
            self.fail(f"{name} must be {expected}, got {tensor.device}")

    def _shape(self, name: str, tensor: Tensor, dims: Sequence[tuple[str, int]]) -> None:
        self._device(name, tensor)
        letters, sizes = zip(*dims)
        if tensor.shape != sizes:
            self.fail(f"{name} must be [{', '.join(letters)}] = {list(sizes)}, got {list(tensor.shape)}")

    def _dtype(self, name: str, tensor: Tensor, allowed: Sequence[torch.dtype]) -> None:
        if self.compute == torch.float64:
            allowed = (torch.float64,)
        if tensor.dtype not in allowed:
            *others, last = dict.fromkeys(map(_name, allowed))
            expected = f"{', '.join(others)} or {last}" if others else last
            self.fail(
                f"{name} must be {expected} beside {self.first_name} in {_name(self.dtype)}, "
                f"got {_name(tensor.dtype)}"
            )

    def _slots(self, slots: Tensor, rows: int) -> None:
        self._shape("slots", slots, [("B", self.batch)])
        if slots.dtype != torch.int32:
            self.fail(f"slots must be int32, got {_name(slots.dtype)}")
        if not slots.is_cpu:
            return
        values = slots.tolist()
        for i, value in enumerate(values):
            if not 0 <= value < rows:
                self.fail(f"slots must lie in [0, P) with P = {rows} rows of state, got {value} at entry {i}")
        for value in sorted(values):
            if values.count(value) > 1:
                self.fail(f"slots must be distinct, got {value} more than once")

    def _bounds(self, values: Sequence[int]) -> None:
        tokens = self.first.shape[1]
        if values[0] != 0:
            self.fail(f"cu_seqlens must start at 0, got {values[0]}")
        for i, (before, after) in enumerate(zip(values, values[1:])):
            if after < before:
                self.fail(f"cu_seqlens must not decrease, got {before} before {after} at entry {i + 1}")
        if values[-1] != tokens:
            self.fail(f"cu_seqlens must end at T = {tokens}, got {values[-1]}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).rpartition(".")[2]


def _overlaps(tensor: Tensor) -> bool:
    """Whether two elements may lie in one place: each stride must step over all that smaller ones reach."""
    if tensor.is_contiguous() or tensor.numel() == 0:
        return False
    reach = 1
    for stride, size in sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape) if n > 1):
        if stride < reach:
            return True
        reach += (size - 1) * stride
    return False
