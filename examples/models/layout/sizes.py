"""What the checkpoints of all versions share."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Sizes(ABC):
    """The sizes that a checkpoint's shapes say; fields are the arguments of the version's configuration.

    Attributes:
        version: as in BlinkDL's file names.
        folder: the model repository's name in `examples/models`.
        unread: names that a checkpoint may have and no model reads.
    """

    version: ClassVar[str]
    folder: ClassVar[str]
    unread: ClassVar[tuple[str, ...]] = ()

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    head_size: int
    intermediate_size: int

    @property
    def num_heads(self) -> int:
        """H."""
        return self.hidden_size // self.head_size

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> Sizes:
        """Read the sizes off a checkpoint of this version.

        Raises:
            ValueError: it lacks a tensor that the sizes are read from.
        """
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        layers = [int(match[1]) for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name))]
        try:
            return cls(
                *shapes["emb.weight"],
                1 + max(layers),
                intermediate_size=shapes["blocks.0.ffn.key.weight"][0],
                **cls.read(shapes),
            )
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(f"not a whole checkpoint of RWKV {cls.version}: {error}") from None

    @classmethod
    @abstractmethod
    def read(cls, shapes: Shapes) -> dict[str, int]:
        """The head size and the sizes that only this version has."""

    @abstractmethod
    def block(self, layer: int) -> Shapes:
        """The tensors of a block of this version, less what all versions have; names without `blocks.N.`."""

    def shapes(self) -> Shapes:
        """Every tensor of a checkpoint, with its shape less the leading ones of `[1, 1, C]`."""
        channels, vocabulary = self.hidden_size, self.vocab_size
        shapes: Shapes = {"emb.weight": (vocabulary, channels), "head.weight": (vocabulary, channels)}
        norms = ["ln_out", "blocks.0.ln0"]
        for layer in range(self.num_hidden_layers):
            block = f"blocks.{layer}."
            norms += [f"{block}ln1", f"{block}ln2", f"{block}att.ln_x"]
            for name in ("receptance", "key", "value", "output"):
                shapes[f"{block}att.{name}.weight"] = (channels, channels)
            shapes[f"{block}ffn.key.weight"] = (self.intermediate_size, channels)
            shapes[f"{block}ffn.value.weight"] = (channels, self.intermediate_size)
            shapes |= {block + name: shape for name, shape in self.block(layer).items()}
        return shapes | {f"{norm}.{part}": (channels,) for norm in norms for part in ("weight", "bias")}

    def check(self, tensors: dict[str, Tensor]) -> None:
        """Compare a checkpoint with what it must hold.

        Raises:
            ValueError: tensors that are missing, unknown or of another shape; up to five are named.
        """
        shapes = self.shapes()
        problems = [f"{name} is missing" for name in shapes if name not in tensors]
        problems += [
            f"{name} is unknown" for name in tensors if name not in shapes and name not in self.unread
        ]
        for name in shapes.keys() & tensors.keys():
            found = tuple(tensors[name].shape)
            if found not in (shapes[name], (1, 1, *shapes[name])):
                problems.append(f"{name} must be {list(shapes[name])}, got {list(found)}")
        if problems:
            more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
            raise ValueError(f"not a checkpoint of RWKV {self.version}: {'; '.join(problems[:5])}{more}")


def name_in_model(name: str) -> str:
    """The name in the models of `examples/models` of a checkpoint's tensor."""
    if name == "head.weight":
        return "lm_head.weight"
    return f"model.{name.replace('blocks.0.ln0', 'ln0')}"
