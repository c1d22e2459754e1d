"""Training: one step, and the loop around it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from examples.demo.model import LanguageModel
from examples.demo.recurrence import Recurrence

BITS = 1 / math.log(2)  # nats to bits
EVALUATIONS = 10


def _setting(default: float, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Settings:
    """Size of the model and how it is trained; the defaults fit a minute on two cores."""

    dim: int = _setting(128, "channels, a multiple of the head size, 64")
    layers: int = _setting(2, "blocks of time mixing and channel mixing")
    batch: int = _setting(4, "sequences in a step")
    tokens: int = _setting(128, "bytes in a sequence")
    learning_rate: float = _setting(5e-3, "peak, after a linear rise and before a cosine down to a tenth")
    weight_decay: float = _setting(0.1, "of matrices")
    warmup: float = _setting(0.05, "share of the steps in which the learning rate rises")
    seed: int = _setting(1, "of weights and batches")


@dataclass
class History:
    """How training went.

    Attributes:
        train: (step, loss) of each batch, in bits a byte.
        validation: (step, loss) on the validation windows.
        seconds: spent in training steps, validation left out.
    """

    train: list[tuple[int, float]] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0


def cross_entropy(model: LanguageModel, recurrence: Recurrence, window: Tensor) -> Tensor:
    """Mean loss in nats of predicting each byte of `window` `[B, T + 1]` from those before."""
    logits = model(window[:, :-1], recurrence)
    return functional.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())


def make_optimizer(model: LanguageModel, settings: Settings) -> torch.optim.AdamW:
    """AdamW; only matrices decay."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        groups, lr=settings.learning_rate, betas=(0.9, 0.99), weight_decay=settings.weight_decay, fused=True
    )


def train_step(
    model: LanguageModel, recurrence: Recurrence, optimizer: torch.optim.Optimizer, window: Tensor
) -> float:
    """Forward, backward and update on one batch; its loss in bits a byte."""
    loss = cross_entropy(model, recurrence, window)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item() * BITS


@torch.no_grad()
def validate(model: LanguageModel, recurrence: Recurrence, windows: Tensor) -> float:
    """Loss in bits a byte on `windows` `[count, T + 1]`."""
    return cross_entropy(model, recurrence, windows).item() * BITS


def schedule(progress: float, warmup: float) -> float:
    """Factor of the learning rate: a linear rise, then a cosine down to a tenth.

    Args:
        progress: share of the training that is over, from 0 to 1.
        warmup: share in which it rises.
    """
    if progress < warmup:
        return progress / warmup
    return 0.55 + 0.45 * math.cos(math.pi * (progress - warmup) / (1 - warmup))


def by_steps(steps: int) -> Callable[[History], float]:
    """Progress of a training that ends after so many steps: with the seed they decide the result."""
    return lambda history: len(history.train) / steps


def by_time(seconds: float) -> Callable[[History], float]:
    """Progress of a training that ends after so many seconds, evaluations included."""
    start = time.perf_counter()
    return lambda history: min(1.0, (time.perf_counter() - start) / seconds)


def train(
    model: LanguageModel,
    recurrence: Recurrence,
    batches: Iterator[Tensor],
    windows: Tensor,
    progress: Callable[[History], float],
    settings: Settings,
    on_step: Callable[[History, float], None],
) -> History:
    """Train until `progress` is 1.

    Args:
        batches: int64 `[B, T + 1]` each.
        windows: int64 `[count, T + 1]`, to validate on, at the start, at every tenth and at the end.
        progress: `by_steps` or `by_time`.
        on_step: called after each step, with the progress.
    """
    optimizer = make_optimizer(model, settings)
    history = History(validation=[(0, validate(model, recurrence, windows))])
    done = 0.0
    while done < 1:
        for group in optimizer.param_groups:
            # The first steps would stand still if they came at progress 0.
            group["lr"] = settings.learning_rate * schedule(max(done, 0.1 * settings.warmup), settings.warmup)
        start = time.perf_counter()
        loss = train_step(model, recurrence, optimizer, next(batches))
        history.seconds += time.perf_counter() - start
        history.train.append((len(history.train) + 1, loss))
        done = progress(history)
        if int(done * EVALUATIONS) >= len(history.validation):
            history.validation.append((len(history.train), validate(model, recurrence, windows)))
        on_step(history, done)
    return history
