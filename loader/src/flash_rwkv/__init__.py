"""RWKV's WKV operators, compiled ahead of time: pinned, verified, loaded at first use.

`from flash_rwkv import wkv7` imports nothing heavy. The first call finds the build variant that fits this
machine, checks every file against this package's lock file and imports it. `get_kernel` does so by hand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._version import __version__
from .errors import IntegrityError, LoaderError, NotPinnedError, NoVariantError, UnavailableError
from .load import get_kernel
from .operators import (
    rwkv5_cuda_linear_attention,
    rwkv6_cuda_linear_attention,
    wkv4,
    wkv4_step_,
    wkv5,
    wkv5_step_,
    wkv6,
    wkv6_step_,
    wkv7,
    wkv7_step_,
)

if TYPE_CHECKING:
    from types import ModuleType

__all__ = [
    "IntegrityError",
    "LoaderError",
    "NoVariantError",
    "NotPinnedError",
    "UnavailableError",
    "__version__",
    "get_kernel",
    "layers",
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


def __getattr__(name: str) -> ModuleType:
    """Give `layers`, the kernel's modules of `torch.nn`, loading the kernel."""
    if name == "layers":
        return get_kernel().layers
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
