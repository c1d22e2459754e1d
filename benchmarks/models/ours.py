"""Our models with random weights: on the kernel, with compiled mixing, and on the loop in Python."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from types import ModuleType

import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.models.contestant import Contestant
from benchmarks.models.shapes import Work
from examples.models.layout import Sizes, name_in_model
from tests.models.checkpoints import random_checkpoint

MOST_GRAPHS = 32
NAME, COMPILED, LOOP = "flash-rwkv", "flash-rwkv, compiled", "Python loop"
OURS = (NAME, COMPILED)


def random_weights(size: Sizes, device: torch.device) -> dict[str, Tensor]:
    """A checkpoint with BlinkDL's names, float32, under which no part of the model is idle."""
    with device:
        return random_checkpoint(size)


def build(size: Sizes, weights: dict[str, Tensor], dtype: torch.dtype, kernel: ModuleType) -> PreTrainedModel:
    """The model of `examples/models` with these weights, which it shares where the dtype is theirs."""
    code = _file(size, f"modeling_{size.folder}")
    _file(size, "kernel_rwkv")._operators = kernel  # what it would load from the Hub
    name = size.folder.capitalize()
    config = getattr(code, f"{name}Config")(**asdict(size))
    with torch.device("meta"):  # spares the initial values
        model = getattr(code, f"{name}ForCausalLM")(config)
    shapes = size.shapes()
    state = {name_in_model(name): weights[name].view(shape).to(dtype) for name, shape in shapes.items()}
    model.load_state_dict(state, assign=True)
    return model.requires_grad_()


def contestants(
    size: Sizes, weights: dict[str, Tensor], work: Work, kernel: ModuleType, compiled: bool
) -> list[Contestant]:
    """Ours, with the same weights in memory: the first is the plain one, the last the loop."""
    weights = {name: weight.to(work.dtype) for name, weight in weights.items()}
    found = [Contestant(NAME, build(size, weights, work.dtype, kernel), work.tokens)]
    if compiled:
        model = build(size, weights, work.dtype, kernel)
        model.compile_mixing(dynamic=True, fullgraph=True)
        # All kinds of work, of the first layer and of the others: more graphs than Torch allows.
        torch._dynamo.config.recompile_limit = MOST_GRAPHS
        found.append(Contestant(COMPILED, model, work.tokens))
    return [*found, looping(size, weights, work.dtype, work.loop_tokens, kernel)]


def looping(
    size: Sizes, weights: dict[str, Tensor], dtype: torch.dtype, tokens: int, kernel: ModuleType
) -> Contestant:
    """The model as it runs where no kernel can be had."""
    model = build(size, weights, dtype, kernel)
    return Contestant(LOOP, model, tokens, around=lambda: _plain_operators(size))


@contextmanager
def _plain_operators(size: Sizes) -> Iterator[None]:
    code = _file(size, "kernel_rwkv")
    before, code._operators = code._operators, _file(size, "plain_rwkv").OPERATORS
    try:
        yield
    finally:
        code._operators = before


def _file(size: Sizes, name: str) -> ModuleType:
    return importlib.import_module(f"examples.models.{size.folder}.{name}")
