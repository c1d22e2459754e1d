"""The functions that transformers' own RWKV-4 calls: what they write is what `wkv4` and autograd give."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.measure import assert_same

BATCH, CHANNELS = 3, 40


def make(kernel, device, dtype: torch.dtype, tokens: int):
    """w, u, k, v and the suffix of the functions for their dtype."""
    generator = torch.Generator().manual_seed(tokens)
    k, v = torch.randn(2, BATCH, tokens, CHANNELS, generator=generator)
    u, w = torch.randn(2, CHANNELS, generator=generator)
    suffix = "_bf16" if dtype == torch.bfloat16 else ""
    inputs = [-torch.exp(w), u.to(dtype), k.to(dtype), v.to(dtype)]
    return [each.to(device) for each in inputs], suffix


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 70, 1100])  # also beyond 1024, where another kernel ended
def test_outputs_and_gradients(kernel, device, dtype: torch.dtype, tokens: int) -> None:
    (w, u, k, v), suffix = make(kernel, device, dtype, tokens)
    leaves = [each.clone().requires_grad_() for each in (w, u, k, v)]
    expected, _ = kernel.wkv4(leaves[2], leaves[3], leaves[0], leaves[1])
    grad_y = torch.randn(k.shape, generator=torch.Generator().manual_seed(1)).to(k)
    expected.backward(grad_y)

    y = torch.full_like(k, torch.nan)
    getattr(kernel, f"forward{suffix}")(w, u, k, v, y)
    assert torch.equal(y, expected)
    gradients = [torch.full_like(each, torch.nan) for each in (w, u, k, v)]
    getattr(kernel, f"backward{suffix}")(w, u, k, v, y, grad_y, *gradients)
    of_time_decay = leaves[0].grad * w  # w = -exp(time_decay)
    for gradient, expected in zip(gradients, (of_time_decay, *(x.grad for x in leaves[1:])), strict=True):
        assert torch.equal(gradient, expected)


def test_the_state_goes_on_where_it_stood(kernel, device) -> None:
    (w, u, k, v), _ = make(kernel, device, torch.float32, 50)
    whole, parts = torch.empty_like(k), torch.empty_like(k)
    kernel.forward(w, u, k, v, whole)
    state = torch.tensor([0.0, 0.0, -1e38], device=device).repeat(BATCH, CHANNELS, 1)
    for start, end in ((0, 1), (1, 20), (20, 50)):
        part = torch.empty_like(k[:, start:end])
        kernel.forward_with_state(
            w, u, k[:, start:end].contiguous(), v[:, start:end].contiguous(), part, state
        )
        parts[:, start:end] = part
    assert_same(kernel, parts, whole)
    assert_same(kernel, state.transpose(1, 2), kernel.wkv4(k, v, w, u)[1])


def test_gradients_of_another_shape_are_refused_by_name(kernel, device) -> None:
    (w, u, k, v), _ = make(kernel, device, torch.float32, 5)
    gradients = [torch.zeros(BATCH, CHANNELS, device=device), *(torch.empty_like(x) for x in (u, k, v))]
    with pytest.raises(ValueError, match=r"grad_w must be of the shape of its input, \[40\], got \[3, 40\]"):
        kernel.backward(w, u, k, v, k, k, *gradients)
    assert gradients[0].abs().max() == 0
