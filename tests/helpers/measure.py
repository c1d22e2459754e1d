"""Running an operator with its gradients, and judging the results against float64."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tests.helpers.operators import Operator, call

# Largest relative error ‖x − exact‖ / ‖exact‖ of a result, by the result's dtype.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 1e-3}

# RWKV-4's y is a mean of values, and these gradients measure how far values are from that mean: differences
# that at the first tokens are nothing but rounding, of terms as large as |grad v · v|. Over many tokens o, to
# which w is added again and again, rounds more than they do.
CANCELLING = ("grad k", "grad w", "grad u", "grad state")


def run(
    namespace, operator: Operator, inputs: Mapping[str, Tensor], *, seed: int = 1, **keywords
) -> dict[str, Tensor]:
    """y, the final state, and the gradient of every input for random gradients of both, by name."""
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in inputs.items()}
    y, state = call(namespace, operator, leaves, **keywords)
    pairs = zip((y, state), output_gradients(y, state, seed), strict=True)
    # The final state after no token and from no state is a constant.
    differentiable = [(output, gradient) for output, gradient in pairs if output.requires_grad]
    torch.autograd.backward(*zip(*differentiable, strict=True))
    gradients = {
        f"grad {name}": torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        for name, leaf in leaves.items()
    }
    return {"y": y.detach(), "final state": state.detach(), **gradients}


def output_gradients(y: Tensor, state: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Random gradients of y and of the final state.

    They are rounded to bfloat16 and float16 both, so that float64 receives the numbers that any dtype does.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = (0.25 * torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in (y, state))
    gy, gs = (
        x.bfloat16().half().to(like.device, like.dtype) for x, like in zip(drawn, (y, state), strict=True)
    )
    return gy, gs


def exact_and_plain(
    reference, operator: Operator, inputs: Mapping[str, Tensor], *, seed: int = 1, **keywords
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The reference on the inputs in float64, and the same formula in the inputs' own dtype; both on the CPU.

    It goes token by token: on a GPU its thousands of small launches would take most of the tests' time.
    """
    inputs = {name: x.cpu() for name, x in inputs.items()}
    # `algorithm` chooses between ways to compute the same thing; the reference knows one.
    keywords = {
        name: x.cpu() if isinstance(x, Tensor) else x for name, x in keywords.items() if name != "algorithm"
    }
    exact = run(reference, operator, {name: x.double() for name, x in inputs.items()}, seed=seed, **keywords)
    return exact, run(reference, operator, inputs, seed=seed, **keywords)


def error(result: Tensor, exact: Tensor) -> float:
    """‖result − exact‖ in float64; infinite if anything is not finite. They may be on different devices."""
    difference = (result.cpu().double() - exact.cpu().double()).norm().item()
    return difference if difference == difference else float("inf")


def is_plain(kernel) -> bool:
    """Whether the operators are plain PyTorch: in chunks, whose borders another split of the tokens moves."""
    return "_universal_" in kernel.__name__


def assert_same(kernel, result: Tensor, expected: Tensor, what: object = "") -> None:
    """One computation however its tokens came: the same bits, of plain PyTorch the same but for rounding."""
    if not is_plain(kernel):
        assert torch.equal(result, expected), what
        return
    assert (result.shape, result.dtype) == (expected.shape, expected.dtype), what
    allowed = TOLERANCES[expected.dtype] * expected.double().norm().item()
    assert error(result, expected) <= allowed, what


def violations(
    operator: Operator,
    inputs: Mapping[str, Tensor],
    results: Mapping[str, Tensor],
    exact: Mapping[str, Tensor],
    plain: Mapping[str, Tensor],
    ill_conditioned: bool = False,
) -> list[str]:
    """What is wrong with `results`, one line each.

    A result may be off by the tolerance of its dtype; in bfloat16 and float16 also by no more than twice the
    error of plain PyTorch. In a problem that itself magnifies rounding (`ill_conditioned`), and for what
    cancels in RWKV-4, twice the error of plain PyTorch is enough.
    """
    cancelled = (exact["grad v"] * inputs["v"].cpu().double()).norm().item()
    lines = []
    for name, value in results.items():
        size, off = exact[name].double().norm().item(), error(value, exact[name])
        plainly_off = error(plain[name], exact[name])
        allowed = TOLERANCES[value.dtype] * size
        if value.dtype in (torch.bfloat16, torch.float16):
            # float32's rounding decides which way a tie goes, in either computation.
            allowed = min(allowed, 2 * plainly_off + 4 * torch.finfo(torch.float32).eps * size)
        if not operator.has_heads and name in CANCELLING:
            rounding = 4 * torch.finfo(results["final state"].dtype).eps * cancelled
            allowed = max(allowed, rounding, 2 * plainly_off)
        if ill_conditioned:
            allowed = max(allowed, 2 * plainly_off)
        if value.shape != exact[name].shape or not off <= allowed:
            lines.append(
                f"{name} {list(value.shape)} {value.dtype}: off by {off:.3g}, allowed {allowed:.3g}, "
                f"size {size:.3g}, plain PyTorch off by {plainly_off:.3g}"
            )
    return lines


def assert_accurate(
    kernel, operator: Operator, inputs: Mapping[str, Tensor], *, ill_conditioned: bool = False, **keywords
) -> None:
    """The kernel's outputs and gradients are those of the reference in float64, within the tolerances."""
    results = run(kernel, operator, inputs, **keywords)
    for name, value in results.items():
        if name.startswith("grad "):
            assert value.dtype == inputs[name[5:]].dtype, name
    exact, plain = exact_and_plain(kernel.reference, operator, inputs, **keywords)
    for name, value in exact.items():
        assert value.isfinite().all(), f"the reference's {name} is not finite: a problem without an answer"
    assert not (lines := violations(operator, inputs, results, exact, plain, ill_conditioned)), (
        "\n" + "\n".join(lines)
    )
