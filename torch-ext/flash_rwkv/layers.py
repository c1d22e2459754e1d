"""The operators as layers, for `kernels.kernelize` to put in the place of a model's own.

A layer holds nothing, takes the arguments of the function of its name in `reference` and returns what that
returns, `(y, final_state)`. A model's layer is replaced if its `forward`
has as many parameters, of the same kinds.
"""

from __future__ import annotations

from torch import Tensor, nn

from .ops import wkv4, wkv5, wkv6, wkv7

__all__ = ["Wkv4", "Wkv5", "Wkv6", "Wkv7"]


class Wkv4(nn.Module):
    """RWKV-4's `wkv4` on k, v `[B, T, C]`, w, u `[C]` and state `[B, 3, C]`."""

    has_backward = True
    can_torch_compile = True

    def forward(
        self, k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return wkv4(k, v, w, u, state)


class Wkv5(nn.Module):
    """RWKV-5's `wkv5` on r, k, v `[B, T, H, N]`, w, u `[H, N]` and value-major state `[B, H, N, N]`."""

    has_backward = True
    can_torch_compile = True

    def forward(
        self,
        r: Tensor,
        k: Tensor,
        v: Tensor,
        w: Tensor,
        u: Tensor,
        state: Tensor | None = None,
        *,
        decay: str = "exp",
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        return wkv5(r, k, v, w, u, state, decay=decay, cu_seqlens=cu_seqlens)


class Wkv6(nn.Module):
    """RWKV-6's `wkv6` on r, k, v, w `[B, T, H, N]`, u `[H, N]` and value-major state `[B, H, N, N]`."""

    has_backward = True
    can_torch_compile = True

    def forward(
        self,
        r: Tensor,
        k: Tensor,
        v: Tensor,
        w: Tensor,
        u: Tensor,
        state: Tensor | None = None,
        *,
        decay: str = "exp",
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        return wkv6(r, k, v, w, u, state, decay=decay, cu_seqlens=cu_seqlens)


class Wkv7(nn.Module):
    """RWKV-7's `wkv7` on r, w, k, v, a, b `[B, T, H, N]` and value-major state `[B, H, N, N]`."""

    has_backward = True
    can_torch_compile = True

    def forward(
        self,
        r: Tensor,
        w: Tensor,
        k: Tensor,
        v: Tensor,
        a: Tensor,
        b: Tensor,
        state: Tensor | None = None,
        *,
        decay: str = "log",
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        return wkv7(r, w, k, v, a, b, state, decay=decay, cu_seqlens=cu_seqlens)
