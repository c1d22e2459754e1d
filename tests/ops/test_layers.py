"""The layers, mapped into a model by `kernels.kernelize`."""

from __future__ import annotations

import inspect

import pytest
import torch
from kernels import LocalLayerRepository, Mode, kernelize, use_kernel_forward_from_hub, use_kernel_mapping
from torch import Tensor, nn

from tests.helpers.operators import OPERATORS, call, make_inputs

LAYERS = {"wkv4": "Wkv4", "wkv5": "Wkv5", "wkv6": "Wkv6", "wkv7": "Wkv7"}
MODES = [
    Mode.INFERENCE,
    Mode.TRAINING,
    Mode.INFERENCE | Mode.TORCH_COMPILE,
    Mode.TRAINING | Mode.TORCH_COMPILE,
]


def model_layer(layer: type[nn.Module]) -> nn.Module:
    """A layer of a model with the signature of ours, which does something else."""

    class Original(nn.Module):
        def forward(self, *arguments: Tensor) -> str:
            return "the model's own forward"

    Original.forward.__signature__ = inspect.signature(layer.forward)
    return use_kernel_forward_from_hub(layer.__name__)(Original)()


@pytest.mark.kernels_ci
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_kernelize_replaces_the_forward(kernel, kernel_path, device, operator, mode) -> None:
    name = LAYERS[operator.name]
    model = nn.ModuleDict({"attention": model_layer(getattr(kernel.layers, name))})
    assert model["attention"]() == "the model's own forward"
    repository = LocalLayerRepository(kernel_path, layer_name=name)
    with use_kernel_mapping({name: {device.type: {mode: repository}}}):
        model = kernelize(model.train(Mode.TRAINING in mode), mode=mode, device=device)

    inputs = make_inputs(operator, device=device)
    arguments = [inputs[n] for n in operator.inputs]
    results = model["attention"](*arguments, inputs["state"])
    assert all(torch.equal(*pair) for pair in zip(results, call(kernel, operator, inputs), strict=True))


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_layers_take_what_the_functions_take(kernel, operator) -> None:
    layer = getattr(kernel.layers, LAYERS[operator.name])
    _, *layer_parameters = inspect.signature(layer.forward).parameters.values()
    function_parameters = inspect.signature(getattr(kernel.reference, operator.name)).parameters.values()
    assert [(p.name, p.kind, p.default) for p in layer_parameters] == [
        (p.name, p.kind, p.default) for p in function_parameters
    ]


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_options_reach_the_operator(kernel, device, operator) -> None:
    layer = getattr(kernel.layers, LAYERS[operator.name])()
    keywords = {}
    inputs = make_inputs(operator, batch=1, tokens=9, sequences=2 if operator.has_heads else 1, device=device)
    if operator.has_heads:
        cu_seqlens = torch.tensor([0, 4, 9], dtype=torch.int32, device=device)
        keywords = {"decay": "sigmoid", "cu_seqlens": cu_seqlens}
    results = layer(*(inputs[n] for n in operator.inputs), inputs["state"], **keywords)
    assert all(
        torch.equal(*pair) for pair in zip(results, call(kernel, operator, inputs, **keywords), strict=True)
    )


@pytest.mark.parametrize("name", LAYERS.values())
def test_layers_hold_nothing(kernel, name) -> None:
    layer = getattr(kernel.layers, name)
    assert layer.has_backward is True
    assert layer.can_torch_compile is True
    assert not list(layer().parameters())
    assert not list(layer().buffers())
