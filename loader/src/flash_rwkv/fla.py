"""flash-linear-attention's functions for RWKV-6 and RWKV-7 on the pinned kernel.

`from flash_rwkv.fla import chunk_rwkv7` in the place of `from fla.ops.rwkv7 import chunk_rwkv7`, likewise
`fused_recurrent_rwkv7`, `fused_mul_recurrent_rwkv7`, `chunk_rwkv6` and `fused_recurrent_rwkv6`. Asking for a
name loads the kernel.
"""

from __future__ import annotations

from typing import Any

from .load import get_kernel


def __getattr__(name: str) -> Any:
    if name.startswith("__"):  # asked for by import itself
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(get_kernel().fla, name)
