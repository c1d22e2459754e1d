"""RWKV's WKV operators for RWKV-4, 5, 6 and 7: forward, backward, state gradients and decode."""

from __future__ import annotations

from . import fla, layers, reference
from .compat import rwkv5_cuda_linear_attention, rwkv6_cuda_linear_attention
from .ops import (
    cpu_isa,
    wkv4,
    wkv4_step_,
    wkv5,
    wkv5_step_,
    wkv6,
    wkv6_step_,
    wkv7,
    wkv7_step_,
)
from .transformers_rwkv import (
    backward,
    backward_bf16,
    forward,
    forward_bf16,
    forward_with_state,
    forward_with_state_bf16,
)

__all__ = [
    "backward",
    "backward_bf16",
    "cpu_isa",
    "fla",
    "forward",
    "forward_bf16",
    "forward_with_state",
    "forward_with_state_bf16",
    "layers",
    "reference",
    "rwkv5_cuda_linear_attention",
    "rwkv6_cuda_linear_attention",
    "wkv4",
    "wkv4_step_",
    "wkv5",
    "wkv5_step_",
    "wkv6",
    "wkv6_step_",
    "wkv7",
    "wkv7_step_",
]
