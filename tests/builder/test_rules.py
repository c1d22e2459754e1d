"""Static rules: each breaks with a finding that says what to do, and nothing else is flagged."""

from __future__ import annotations

from pathlib import Path

import pytest

from builder.rules import python_findings

ALLOWED = """
from __future__ import annotations

import dataclasses
import torch
from torch.library import register_fake

from . import layers
from ._ops import add_op_namespace_prefix, ops


@dataclasses.dataclass(frozen=True)
class Shape:
    size: int | None = None


@register_fake(add_op_namespace_prefix("wkv6_forward"))
def _(r):
    return torch.empty_like(r)


torch.library.register_autograd(add_op_namespace_prefix("wkv6_forward"), None)
layers.register_kernel("mine")


def pairs(a: list[int], b: list[int]) -> list[tuple[int, int]]:
    return list(zip(a, b))
"""


def findings(tmp_path: Path, text: str, generated: bool = False) -> list[str]:
    path = tmp_path / "ops.py"
    path.write_text(text)
    return list(python_findings(path, "flash_rwkv", generated))


def test_a_file_within_the_rules(tmp_path: Path) -> None:
    assert findings(tmp_path, ALLOWED) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("match x:\n    case 1: pass\n", "line 2: not valid Python 3.9"),
        ("def broken(:\n", "line 1: not valid Python 3.9"),
        ("import numpy as np\n", "line 1: imports numpy; a kernel may import torch and the standard library"),
        ("from kernels import get_kernel\n", "line 1: imports kernels;"),
        ("def f():\n    import einops\n", "line 2: imports einops;"),
        ("import tomllib\n", "line 1: imports tomllib;"),
        ("from flash_rwkv import ops\n", "line 1: imports flash_rwkv absolutely"),
        ("import flash_rwkv.ops\n", "line 1: imports flash_rwkv.ops absolutely"),
        ("def f(x: int | None): ...\n", "line 1: X | Y in an annotation needs"),
        ("x: int | None = None\n", "line 1: X | Y in an annotation needs"),
        ("def f() -> int | None: ...\n", "line 1: X | Y in an annotation needs"),
        ("zip([], [], strict=True)\n", "line 1: zip(strict=…) needs Python 3.10"),
        ("@dataclass(slots=True)\nclass A: ...\n", "line 1: dataclass(slots=…) needs Python 3.10"),
        ("torch.library.register_fake('flash_rwkv::f')(g)\n", "line 1: register_fake must be called with"),
        ("register_autograd(name, g)\n", "line 1: register_autograd must be called with"),
        (
            "@torch.library.custom_op('a::b', mutates_args=())\ndef f(x): ...\n",
            "line 1: custom_op must be called",
        ),
        ("def add_op_namespace_prefix(n): ...\n", "line 1: defines add_op_namespace_prefix"),
        ("y = torch.ops.flash_rwkv.wkv6(r)\n", "line 1: torch.ops.flash_rwkv: ops live in"),
        (
            "try:\n    from ._ops import ops\nexcept ImportError:\n    ops = None\n",
            "line 1: imports _ops inside try",
        ),
        ("try:\n    from . import _ops\nexcept ImportError:\n    pass\n", "line 1: imports _ops inside try"),
    ],
)
def test_each_rule(tmp_path: Path, text: str, message: str) -> None:
    found = findings(tmp_path, text)
    assert len(found) == 1, found
    assert message in found[0]


def test_the_generated_file_defines_the_prefix(tmp_path: Path) -> None:
    text = "def add_op_namespace_prefix(op_name: str) -> str:\n    return op_name\n"
    assert findings(tmp_path, text, generated=True) == []
