"""The text: Python's own standard library, as bytes."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

# Other people's code, tests, and tables that are no prose: of little use to learn from.
SKIPPED = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
    "encodings",
    "pydoc_data",
    "__pycache__",
}
VALIDATION_EVERY = 20


@dataclass(frozen=True)
class Text:
    """Training and validation bytes, uint8 `[bytes]`, from different files."""

    train: Tensor
    validation: Tensor
    files: int


def load_text() -> Text:
    """Read the standard library in a fixed order; every twentieth file is for validation."""
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(
        path
        for path in root.rglob("*.py")
        if SKIPPED.isdisjoint(path.relative_to(root).parts) and path.is_file()
    )
    if len(files) < VALIDATION_EVERY:
        raise FileNotFoundError(
            f"{root} has {len(files)} usable .py files: a full Python installation is needed"
        )
    validation = files[VALIDATION_EVERY - 1 :: VALIDATION_EVERY]
    train = [path for path in files if path not in set(validation)]
    return Text(_bytes(train), _bytes(validation), len(files))


def batches(data: Tensor, batch: int, tokens: int, seed: int) -> Iterator[Tensor]:
    """Endless random windows, int64 `[batch, tokens + 1]`; the seed alone decides which."""
    generator = torch.Generator().manual_seed(seed)
    window = torch.arange(tokens + 1)
    while True:
        starts = torch.randint(len(data) - tokens, (batch, 1), generator=generator)
        yield data[starts + window].long()


def even_windows(data: Tensor, count: int, tokens: int) -> Tensor:
    """`count` windows spread evenly over the data, int64 `[count, tokens + 1]`."""
    starts = torch.linspace(0, len(data) - tokens - 1, count).long()[:, None]
    return data[starts + torch.arange(tokens + 1)].long()


def _bytes(files: list[Path]) -> Tensor:
    return torch.frombuffer(bytearray(b"\n".join(path.read_bytes() for path in files)), dtype=torch.uint8)
