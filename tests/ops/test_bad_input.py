"""Bad input is refused before anything is written, by name, with what was expected and what came."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from tests.helpers.operators import HEAD_OPERATORS, OPERATORS, Operator, call, make_inputs, options, step

B, T, H, N, POOL = 2, 5, 3, 16, 6


class Bad(NamedTuple):
    """A change to one argument, and the parts that the message must have; DEVICE is the tests' own."""

    argument: str
    change: Callable[[Tensor], Tensor]
    parts: tuple[str, ...]
    label: str

    def __str__(self) -> str:
        return f"{self.argument}-{self.label}"

    def parts_on(self, device: torch.device) -> tuple[str, ...]:
        return tuple(part.replace("DEVICE", device.type) for part in self.parts)


def arguments(operator: Operator, device) -> dict[str, Tensor]:
    return make_inputs(operator, batch=B, tokens=T, heads=H, size=N, device=device)


def text(shape) -> str:
    return str(list(shape))


def bad_tensors(operator: Operator) -> list[Bad]:
    """Wrong shapes, dtypes and devices of every tensor of an operator."""
    cases = []
    for name, x in arguments(operator, "cpu").items():
        shape = tuple(x.shape)
        for label, change in (
            ("one_dimension_less", lambda x: x[0]),
            ("one_dimension_more", lambda x: x[None]),
            ("last_dimension_longer", lambda x: torch.cat([x, x], dim=-1)),
            ("first_dimension_shorter", lambda x: x[:-1]),
        ):
            if name == operator.first and label in ("last_dimension_longer", "first_dimension_shorter"):
                continue  # a wrong size of the first tensor shows in the second
            wrong = change(torch.empty(shape, device="meta")).shape
            expected = () if name == operator.first else (text(shape),)
            cases.append(Bad(name, change, (f"{name} must be", *expected, f"got {text(wrong)}"), label))
        cases.append(Bad(name, lambda x: x.int(), (f"{name} must be", "float32", "got int32"), "int32"))
        cases.append(Bad(name, lambda x: x.bool(), (f"{name} must be", "float32", "got bool"), "bool"))
        if name != operator.first:
            for dtype in (torch.float64, torch.bfloat16):
                label = str(dtype).removeprefix("torch.")
                parts = (f"{name} must be float32", f"got {label}")
                cases.append(Bad(name, lambda x, dtype=dtype: x.to(dtype), parts, label))
        # The first tensor says where all should be.
        parts = (f"{operator.inputs[1]} must be on", "meta", "got DEVICE")
        if name != operator.first:
            parts = (f"{name} must be on", "DEVICE", "got meta")
        cases.append(Bad(name, lambda x: x.to("meta"), parts, "meta"))
    # All tensors of the batch but one belong to another batch: the second tensor shows it.
    second = operator.inputs[1]
    cases.append(
        Bad(operator.first, lambda x: x[:, :-1], (f"{second} must be", f"[{B}, {T - 1}"), "fewer_tokens")
    )
    return cases


def read(values: list[int], parts: tuple[str, ...]):
    """Values that only the CPU reads before it computes: on CUDA the host would have to wait for them."""
    return pytest.param(values, parts, marks=pytest.mark.cpu_only)


def assert_refused(parts, function, *tensors: Tensor) -> str:
    """`function` raises an error with all `parts` in its message and leaves `tensors` as they were."""
    before = [x.clone() for x in tensors]
    with pytest.raises((ValueError, RuntimeError)) as caught:
        function()
    message = str(caught.value)
    for part in parts:
        assert part in message, message
    for x, was in zip(tensors, before, strict=True):
        assert x.device.type == "meta" or torch.equal(x, was)
    return message


def cases():
    return [
        pytest.param(operator, bad, id=f"{operator}-{bad}")
        for operator in OPERATORS.values()
        for bad in bad_tensors(operator)
    ]


@pytest.mark.kernels_ci
@pytest.mark.parametrize(("operator", "bad"), cases())
def test_bad_tensor(kernel, device, operator, bad) -> None:
    inputs = arguments(operator, device)
    inputs[bad.argument] = bad.change(inputs[bad.argument])
    parts = bad.parts_on(device)
    message = assert_refused(parts, lambda: call(kernel, operator, inputs), *inputs.values())
    assert operator.name in message


@pytest.mark.parametrize(("operator", "bad"), cases())
def test_bad_tensor_where_a_gradient_is_wanted(kernel, device, operator, bad) -> None:
    inputs = arguments(operator, device)
    inputs[bad.argument] = bad.change(inputs[bad.argument])
    for x in inputs.values():
        if x.is_floating_point():
            x.requires_grad_()
    assert_refused(bad.parts_on(device), lambda: call(kernel, operator, inputs))


def pool_arguments(operator: Operator, device):
    inputs = arguments(operator, device)
    pool = torch.randn(POOL, *inputs["state"].shape[1:], device=device)
    return inputs, pool, torch.tensor([4, 1], dtype=torch.int32, device=device)


@pytest.mark.parametrize(("operator", "bad"), cases())
def test_bad_tensor_of_a_step(kernel, device, operator, bad) -> None:
    if bad.argument == "state" and bad.label == "bfloat16":
        return  # which a pool may be
    inputs = arguments(operator, device)
    changed = {**inputs, bad.argument: bad.change(inputs[bad.argument])}
    one_token_less = bad.argument == operator.first and bad.label == "one_dimension_less"
    parts = () if one_token_less else tuple(part.removesuffix(" float32") for part in bad.parts_on(device))
    assert_refused(
        parts, lambda: step(kernel, operator, changed, changed["state"]), *inputs.values(), *changed.values()
    )


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
@pytest.mark.parametrize(
    ("slots", "parts"),
    [
        read([4, POOL], ("slots must lie in [0, P)", f"P = {POOL}", f"got {POOL}")),
        read([-1, 4], ("slots must lie in [0, P)", "got -1")),
        read([2**31 - 1, 0], ("slots must lie in [0, P)", f"got {2**31 - 1}")),
        read([3, 3], ("slots must be distinct", "3")),
        ([1, 2, 3], ("slots must be [B] = [2]", "got [3]")),
        ([1], ("slots must be [B] = [2]", "got [1]")),
        ([[1, 2]], ("slots must be [B] = [2]", "got [1, 2]")),
    ],
)
def test_bad_slots(kernel, device, operator, slots, parts) -> None:
    inputs, pool, _ = pool_arguments(operator, device)
    bad = torch.tensor(slots, dtype=torch.int32, device=device)
    message = assert_refused(
        parts, lambda: step(kernel, operator, inputs, pool, bad), pool, *inputs.values(), bad
    )
    assert f"{operator.name}_step_" in message


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_dtype_of_slots(kernel, device, operator, dtype) -> None:
    inputs, pool, slots = pool_arguments(operator, device)
    got = str(dtype).removeprefix("torch.")
    assert_refused(
        ("slots must be int32", f"got {got}"),
        lambda: step(kernel, operator, inputs, pool, slots.to(dtype)),
        pool,
    )


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_slots_on_another_device(kernel, device, operator) -> None:
    inputs, pool, slots = pool_arguments(operator, device)
    parts = ("slots must be on", device.type, "got meta")
    assert_refused(parts, lambda: step(kernel, operator, inputs, pool, slots.to("meta")), pool)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_pool_of_the_wrong_size_without_slots(kernel, device, operator) -> None:
    inputs, pool, _ = pool_arguments(operator, device)
    parts = ("state must be", f"[{B}, ", f"got {text(pool.shape)}")
    assert_refused(parts, lambda: step(kernel, operator, inputs, pool), pool)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_pool_whose_rows_share_memory(kernel, device, operator) -> None:
    inputs, pool, slots = pool_arguments(operator, device)
    for shared in (pool[:1].expand(pool.shape), pool[..., :1].expand(pool.shape)):
        assert_refused(
            ("state must", "overlap"),
            lambda shared=shared: step(kernel, operator, inputs, shared, slots),
            pool,
        )


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_step_with_a_wanted_gradient(kernel, device, operator) -> None:
    """An in-place step has no gradient: saying so is better than leaving one out."""
    for name in (operator.first, "w"):
        inputs, pool, slots = pool_arguments(operator, device)
        inputs[name].requires_grad_()
        function = partial(step, kernel, operator, inputs, pool, slots)
        assert_refused(
            (f"{operator.name}_step_", f"{name} without requires_grad", "gradient"), function, pool
        )
        with torch.no_grad():
            function()
    inputs, pool, slots = pool_arguments(operator, device)
    function = partial(step, kernel, operator, inputs, pool.requires_grad_(), slots)
    assert_refused(
        (f"{operator.name}_step_", "state without requires_grad", "gradient"), function, pool.detach()
    )


@pytest.mark.parametrize("operator", HEAD_OPERATORS, ids=str)
@pytest.mark.parametrize("function", [call, step], ids=["call", "step"])
@pytest.mark.parametrize("decay", ["Log", "", None, 1, "softplus", ["exp"]], ids=repr)
def test_decay_name(kernel, device, operator, function, decay) -> None:
    inputs = arguments(operator, device)
    rest = (inputs["state"],) if function is step else ()
    parts = (operator.name, "decay must be one of", "'log'", "'exp'", "'sigmoid'", f"got {decay!r}")
    assert_refused(parts, lambda: function(kernel, operator, inputs, *rest, decay=decay), *inputs.values())


@pytest.mark.parametrize("operator", HEAD_OPERATORS, ids=str)
@pytest.mark.parametrize("algorithm", ["Chunk", "", None, 0, "fast"], ids=repr)
def test_algorithm_name(kernel, device, operator, algorithm) -> None:
    inputs = arguments(operator, device)
    parts = (
        operator.name,
        "algorithm must be one of",
        "'auto'",
        "'recurrent'",
        "'chunk'",
        f"got {algorithm!r}",
    )
    assert_refused(parts, lambda: call(kernel, operator, inputs, algorithm=algorithm))


@pytest.mark.cpu_only
@pytest.mark.parametrize("operator", HEAD_OPERATORS, ids=str)
def test_algorithm_of_another_device(kernel, operator) -> None:
    inputs = arguments(operator, "cpu")
    parts = (operator.name, "algorithm", "'recurrent'", "'chunk'", "cpu")
    assert_refused(parts, lambda: call(kernel, operator, inputs, algorithm="chunk"))


@pytest.mark.parametrize("operator", HEAD_OPERATORS, ids=str)
@pytest.mark.parametrize("with_state", [True, False], ids=["state", "no_state"])
@pytest.mark.parametrize(
    ("cu_seqlens", "parts"),
    [
        read([1, 3, 5], ("must start at 0", "got 1")),
        read([-1, 3, 5], ("must start at 0", "got -1")),
        read([0, 4, 3, 5], ("must not decrease", "4", "3")),
        read([0, 7, 5], ("must not decrease", "7", "5")),
        read([0, -2, 5], ("must not decrease", "-2")),
        read([0, 3, 4], ("must end at T = 5", "got 4")),
        read([0, 3, 6], ("must end at T = 5", "got 6")),
        ([0], ("[S + 1]", "got [1]")),
        ([], ("[S + 1]", "got [0]")),
        ([[0, 5]], ("[S + 1]", "got [1, 2]")),
    ],
)
def test_bad_cu_seqlens(kernel, device, operator, with_state, cu_seqlens, parts) -> None:
    offsets = torch.tensor(cu_seqlens, dtype=torch.int32, device=device)
    inputs = make_inputs(
        operator,
        batch=1,
        tokens=5,
        heads=H,
        size=N,
        state=with_state,
        sequences=max(offsets.numel() - 1, 1),
        device=device,
    )
    parts = (operator.name, "cu_seqlens", *parts)
    assert_refused(
        parts, lambda: call(kernel, operator, inputs, cu_seqlens=offsets), *inputs.values(), offsets
    )
    for x in inputs.values():
        x.requires_grad_()
    assert_refused(parts, lambda: call(kernel, operator, inputs, cu_seqlens=offsets))


@pytest.mark.parametrize("operator", HEAD_OPERATORS, ids=str)
def test_cu_seqlens_of_the_wrong_kind(kernel, device, operator) -> None:
    inputs = make_inputs(operator, batch=1, tokens=T, heads=H, size=N, state=False, device=device)
    good = torch.tensor([0, 2, T], dtype=torch.int32, device=device)
    for bad, got in ((good.long(), "int64"), (good.float(), "float32")):
        parts = (operator.name, "cu_seqlens must be int32", f"got {got}")
        assert_refused(parts, lambda bad=bad: call(kernel, operator, inputs, cu_seqlens=bad))
    parts = ("cu_seqlens must be on", device.type, "got meta")
    assert_refused(parts, lambda: call(kernel, operator, inputs, cu_seqlens=good.to("meta")))


@pytest.mark.parametrize("operator", HEAD_OPERATORS, ids=str)
def test_cu_seqlens_beside_other_shapes(kernel, device, operator) -> None:
    good = torch.tensor([0, 2, T], dtype=torch.int32, device=device)
    inputs = make_inputs(operator, batch=3, tokens=T, heads=H, size=N, state=False, device=device)
    assert_refused(("cu_seqlens", "B = 1", "B = 3"), lambda: call(kernel, operator, inputs, cu_seqlens=good))
    inputs = make_inputs(operator, batch=1, tokens=T, heads=H, size=N, sequences=3, device=device)
    parts = ("state must be", text((2, H, N, N)), f"got {text((3, H, N, N))}")
    assert_refused(parts, lambda: call(kernel, operator, inputs, cu_seqlens=good))


@pytest.mark.parametrize("operator", HEAD_OPERATORS, ids=str)
@pytest.mark.parametrize("size", [0, 4, 12, 63, 260, 264, 512])
def test_head_size(kernel, device, operator, size) -> None:
    inputs = make_inputs(operator, tokens=2, heads=1, size=size, device=device)
    parts = (operator.name, "multiple of 8", "8 to 256", f"got N = {size}")
    assert_refused(parts, lambda: call(kernel, operator, inputs))
    assert_refused(parts, lambda: step(kernel, operator, inputs, inputs["state"]), inputs["state"])


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn], ids=str)
def test_dtype_without_kernels(kernel, device, operator, dtype) -> None:
    inputs = {name: x.to(dtype) for name, x in arguments(operator, device).items()}
    parts = (operator.name, f"{operator.first} must be float32", f"got {str(dtype).removeprefix('torch.')}")
    assert_refused(parts, lambda: call(kernel, operator, inputs))


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
@pytest.mark.parametrize("value", [None, 1.0, [1.0]], ids=repr)
def test_no_tensor_at_all(kernel, device, operator, value) -> None:
    for name in operator.inputs:
        inputs = {**arguments(operator, device), name: value}
        with pytest.raises((TypeError, ValueError, RuntimeError)) as caught:
            call(kernel, operator, inputs)
        assert f"'{name}'" in str(caught.value) or f"{name} must" in str(caught.value), str(caught.value)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_all_tensors_without_data(kernel, operator) -> None:
    """On the meta device shapes and dtypes come out, as from any operator of PyTorch."""
    inputs = arguments(operator, "cpu")
    expected = call(kernel, operator, inputs)
    for x, known in zip(
        call(kernel, operator, {name: x.to("meta") for name, x in inputs.items()}), expected, strict=True
    ):
        assert x.device.type == "meta"
        assert x.shape == known.shape
        assert x.dtype == known.dtype


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=str)
def test_works_again_after_an_error(kernel, device, operator) -> None:
    inputs = arguments(operator, device)
    expected = call(kernel, operator, inputs)
    assert_refused(
        (), lambda: call(kernel, operator, {**inputs, "w": inputs["w"][..., :-1]}, **options(operator))
    )
    assert all(torch.equal(*pair) for pair in zip(call(kernel, operator, inputs), expected, strict=True))
