"""The functions of flash-rwkv 0.3.0, without the defects that it had."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.chunks import GRADIENT_TOLERANCES, STATE_TOLERANCES
from tests.helpers.measure import error
from tests.helpers.operators import OPERATORS, call, make_inputs

BATCH, TOKENS, HEADS, SIZE = 4, 37, 3, 64
CHANNELS = HEADS * SIZE
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NAMES = {"r": "receptance", "k": "key", "v": "value", "w": "time_decay", "u": "time_first", "state": "state"}


def model_inputs(operator, dtype, device) -> dict[str, torch.Tensor]:
    """r, k, v (and RWKV-6's w) `[B, T, C]`, w and u of RWKV-5 `[H, N]`; a state for each sequence."""
    inputs = make_inputs(
        operator,
        batch=BATCH,
        tokens=TOKENS,
        heads=HEADS,
        size=SIZE,
        dtype=dtype,
        wide_dtype=torch.float32,
        decay="exp",
        device=device,
    )
    return {n: x.flatten(2) if x.dim() == 4 and n != "state" else x for n, x in inputs.items()}


def expected(kernel, operator, inputs) -> tuple[torch.Tensor, torch.Tensor]:
    def heads(name, x):
        return x if name in ("state", "u") or x.dim() != 3 else x.unflatten(2, (HEADS, SIZE))

    return call(kernel.reference, operator, {name: heads(name, x) for name, x in inputs.items()}, decay="exp")


ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 1e-3}


def on_tensor_cores(device: torch.device, dtype: torch.dtype) -> bool:
    """Where CUDA tensors of 16 bits go, and have other tolerances."""
    return device.type == "cuda" and dtype != torch.float32


@pytest.mark.kernels_ci
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("version", [5, 6])
def test_a_batch_with_states_and_gradients(kernel, device, version, dtype) -> None:
    operator = OPERATORS[f"wkv{version}"]
    inputs = model_inputs(operator, dtype, device)
    leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    exact = {name: x.double().requires_grad_() for name, x in inputs.items()}
    function = getattr(kernel, f"rwkv{version}_cuda_linear_attention")

    out, state = function(**{NAMES[name]: x for name, x in leaves.items()})
    exact_out, exact_state = expected(kernel, operator, exact)
    shape = (BATCH, TOKENS, CHANNELS) if version == 5 else (BATCH, TOKENS, HEADS, SIZE)
    assert out.shape == shape
    assert out.dtype == dtype
    assert state.shape == inputs["state"].shape
    assert state.dtype == torch.float32
    assert state is not leaves["state"]
    assert torch.equal(leaves["state"], inputs["state"])

    rough = on_tensor_cores(device, dtype)
    assert error(out, exact_out.view(shape)) <= ROUNDING[dtype] * exact_out.norm()
    assert error(state, exact_state) <= (STATE_TOLERANCES[dtype] if rough else 1e-5) * exact_state.norm()
    generator = torch.Generator().manual_seed(1)
    gradient = torch.randn(shape, generator=generator).to(device, dtype)
    torch.autograd.backward((out, state), (gradient, torch.ones_like(state)))
    torch.autograd.backward(
        (exact_out, exact_state), (gradient.double().view(exact_out.shape), torch.ones_like(exact_state))
    )
    for name, leaf in leaves.items():
        assert leaf.grad.dtype == leaf.dtype
        tolerance = GRADIENT_TOLERANCES[operator.name][dtype] if rough else ROUNDING[leaf.dtype]
        assert error(leaf.grad, exact[name].grad) <= tolerance * exact[name].grad.norm(), name


@pytest.mark.parametrize("version", [5, 6])
def test_positional_arguments(kernel, device, version) -> None:
    inputs = model_inputs(OPERATORS[f"wkv{version}"], torch.float32, device)
    function = getattr(kernel, f"rwkv{version}_cuda_linear_attention")
    out, state = function(*inputs.values())
    same_out, same_state = function(**{NAMES[name]: x for name, x in inputs.items()})
    assert torch.equal(out, same_out)
    assert torch.equal(state, same_state)


def test_flat_decay_and_bonus(kernel, device) -> None:
    """RWKV-5 takes `[C]` as well as `[H, N]`, and gives gradients of the shape it got."""
    inputs = model_inputs(OPERATORS["wkv5"], torch.float32, device)
    flat = {
        **inputs,
        "w": inputs["w"].flatten().requires_grad_(),
        "u": inputs["u"].flatten().requires_grad_(),
    }
    out, state = kernel.rwkv5_cuda_linear_attention(*flat.values())
    same_out, same_state = kernel.rwkv5_cuda_linear_attention(*inputs.values())
    assert torch.equal(out, same_out)
    assert torch.equal(state, same_state)
    out.sum().backward()
    assert flat["w"].grad.shape == flat["u"].grad.shape == (CHANNELS,)


BAD_SHAPES = [
    ("r", lambda x: x[:, :, :-1], f"receptance must be [B, T, C = {CHANNELS}], got [4, 37, {CHANNELS - 1}]"),
    ("k", lambda x: x[0], f"key must be [B, T, C = {CHANNELS}], got [37, {CHANNELS}]"),
    (
        "v",
        lambda x: x.unflatten(2, (HEADS, SIZE)),
        f"value must be [B, T, C = {CHANNELS}], got [4, 37, 3, 64]",
    ),
    (
        "u",
        lambda x: x.flatten()[:-1],
        f"time_first must be [C] = [{CHANNELS}] or [H, N] = [3, 64], got [191]",
    ),
    ("u", lambda x: x.mT, f"time_first must be [C] = [{CHANNELS}] or [H, N] = [3, 64], got [64, 3]"),
    ("state", lambda x: x[0], "state must be [B, H, N, N], got [3, 64, 64]"),
    ("state", lambda x: x[..., :-1], "state must be [B, H, N, N], got [4, 3, 64, 63]"),
    ("state", lambda x: x[:1], "state must be [S, H, N, N] = [4, 3, 64, 64], got [1, 3, 64, 64]"),
    ("state", lambda x: x.half(), "state must be float32 beside r in float32, got float16"),
]


@pytest.mark.parametrize("version", [5, 6])
@pytest.mark.parametrize(("name", "change", "message"), BAD_SHAPES)
def test_bad_input(kernel, device, version, name, change, message) -> None:
    inputs = model_inputs(OPERATORS[f"wkv{version}"], torch.float32, device)
    function = getattr(kernel, f"rwkv{version}_cuda_linear_attention")
    with pytest.raises((ValueError, RuntimeError)) as caught:
        function(**{NAMES[n]: change(x) if n == name else x for n, x in inputs.items()})
    assert message in str(caught.value)


def test_bad_decay(kernel, device) -> None:
    inputs = model_inputs(OPERATORS["wkv5"], torch.float32, device)
    with pytest.raises(
        ValueError, match=r"time_decay must be \[C\] = \[192\] or \[H, N\] = \[3, 64\], got \[5\]"
    ):
        kernel.rwkv5_cuda_linear_attention(
            **{NAMES[n]: x for n, x in {**inputs, "w": torch.zeros(5)}.items()}
        )
    inputs = model_inputs(OPERATORS["wkv6"], torch.float32, device)
    with pytest.raises(ValueError, match=r"time_decay must be \[B, T, C = 192\], got \[192\]"):
        kernel.rwkv6_cuda_linear_attention(
            **{NAMES[n]: x for n, x in {**inputs, "w": inputs["w"][0, 0]}.items()}
        )
