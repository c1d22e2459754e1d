"""Functions with flash-linear-attention's conventions: the reference's numbers, turned and scaled."""

from __future__ import annotations

import importlib
from importlib.util import find_spec

import pytest
import torch

from tests.helpers.measure import TOLERANCES, assert_same, error
from tests.helpers.operators import OPERATORS, call, make_inputs

# Function: operator, the default of scale, whether the final state comes by default.
FUNCTIONS = {
    "chunk_rwkv6": ("wkv6", None, False),
    "fused_recurrent_rwkv6": ("wkv6", None, False),
    "chunk_rwkv7": ("wkv7", 1.0, False),
    "fused_recurrent_rwkv7": ("wkv7", None, True),
    "fused_mul_recurrent_rwkv7": ("wkv7", 1.0, False),
}
SIZE = 16


def arguments(name: str, device, **sizes) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """By our names, and in the order and with the state of the function."""
    operator = OPERATORS[FUNCTIONS[name][0]]
    ours = make_inputs(operator, size=SIZE, decay="log", device=device, **sizes)
    theirs = {x: ours[x] for x in operator.inputs}
    if name == "fused_mul_recurrent_rwkv7":
        kk = -ours["a"]
        gate = torch.full_like(kk, 0.5)
        theirs |= {"a": kk, "b": gate}
        ours["b"] = kk * gate
    return ours, theirs | {"state": ours["state"].transpose(2, 3)}


def run(kernel, name: str, inputs: dict[str, torch.Tensor], **keywords):
    *tensors, state = inputs.values()
    return getattr(kernel.fla, name)(*tensors, initial_state=state, **keywords)


def assert_close(result: torch.Tensor, exact: torch.Tensor) -> None:
    assert result.shape == exact.shape
    assert error(result, exact) <= TOLERANCES[torch.float32] * exact.norm().item()


@pytest.mark.parametrize("scale", ["default", 1.0, 0.3, None])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_numbers(kernel, device, name, scale) -> None:
    operator, default, _ = FUNCTIONS[name]
    ours, theirs = arguments(name, device)
    keywords = {} if scale == "default" else {"scale": scale}
    y, state = run(kernel, name, theirs, output_final_state=True, **keywords)
    exact = {x: tensor.double() for x, tensor in ours.items()}
    exact_y, exact_state = call(kernel.reference, OPERATORS[operator], exact, decay="log")
    scale = default if scale == "default" else scale
    assert_close(y, exact_y * (SIZE**-0.5 if scale is None else scale))
    assert_close(state, exact_state.transpose(2, 3))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients(kernel, device, name) -> None:
    """Of every input, the key-major state among them."""
    _, theirs = arguments(name, device, tokens=5)
    leaves = {x: tensor.double().cpu().requires_grad_() for x, tensor in theirs.items()}

    def function(*tensors: torch.Tensor):
        return run(kernel, name, dict(zip(leaves, tensors, strict=True)), output_final_state=True)

    small = {x: leaf[..., :1, :] if leaf.dim() == 4 and x != "state" else leaf for x, leaf in leaves.items()}
    small["state"] = leaves["state"][:, :1]
    if "u" in small:
        small["u"] = leaves["u"][:1]
    inputs = [x.detach().requires_grad_() for x in small.values()]
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_final_state_comes_if_asked_for(kernel, device, name) -> None:
    _, theirs = arguments(name, device)
    assert (run(kernel, name, theirs)[1] is not None) == FUNCTIONS[name][2]
    assert run(kernel, name, theirs, output_final_state=False)[1] is None
    assert run(kernel, name, theirs, output_final_state=True)[1].is_contiguous()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_packed_by_int64(kernel, device, name) -> None:
    _, theirs = arguments(name, device, batch=1, tokens=20, sequences=2)
    cu_seqlens = torch.tensor([0, 7, 20], device=device)
    y, state = run(kernel, name, theirs, cu_seqlens=cu_seqlens, output_final_state=True)
    for i, (start, end) in enumerate(((0, 7), (7, 20))):
        one = {x: t[:, start:end] if t.dim() == 4 and x != "state" else t for x, t in theirs.items()}
        one["state"] = theirs["state"][i : i + 1]
        y_one, state_one = run(kernel, name, one, output_final_state=True)
        assert_same(kernel, y[:, start:end], y_one)
        assert_same(kernel, state[i : i + 1], state_one)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_dtypes_of_a_model(kernel, device, name) -> None:
    """bfloat16 with a float16 state and float32 decays, as models mix them."""
    _, theirs = arguments(name, device)
    mixed = {x: t if x == "w" else t.half() if x == "state" else t.bfloat16() for x, t in theirs.items()}
    y, state = run(kernel, name, mixed, output_final_state=True)
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("name", ["chunk_rwkv6", "chunk_rwkv7"])
def test_tuning_is_taken(kernel, device, name) -> None:
    _, theirs = arguments(name, device)
    assert torch.equal(run(kernel, name, theirs, chunk_size=64)[0], run(kernel, name, theirs)[0])


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("chunk_rwkv7", "cp_context"),
        ("fused_recurrent_rwkv6", "reverse"),
        ("fused_mul_recurrent_rwkv7", "reverse"),
    ],
)
def test_refused(kernel, device, name, option) -> None:
    _, theirs = arguments(name, device)
    with pytest.raises(ValueError, match=f"{name}: expected no {option}, which is not offered, got True"):
        run(kernel, name, theirs, **{option: True})


if find_spec("fla"):  # not skipped elsewhere: a whole run of the suite skips nothing

    @pytest.mark.cuda_only
    @pytest.mark.parametrize("name", FUNCTIONS)
    def test_against_fla_itself(kernel, device, name) -> None:
        """The library's own functions, in float32 and with a final state."""
        library = importlib.import_module(f"fla.ops.{name[-5:]}")
        _, theirs = arguments(name, device, tokens=50)
        results = run(kernel, name, theirs, output_final_state=True)
        theirs["state"] = theirs["state"].contiguous()
        *tensors, state = theirs.values()
        known = getattr(library, name)(*tensors, initial_state=state, output_final_state=True)
        for result, exact in zip(results, known, strict=True):
            # Triton's products of float32 matrices round to tf32 unless told otherwise.
            assert error(result, exact) <= 3e-3 * exact.double().norm().item()
