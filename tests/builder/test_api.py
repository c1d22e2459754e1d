"""The public API is read without running it, and what breaks is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from builder.api import broken, read_api

ROOT = Path(__file__).resolve().parents[2]
INIT = """\
from . import layers
from .ops import scale, CONSTANT
__all__ = ["layers", "scale", "half", "CONSTANT"]
"""
OPS = '''\
CONSTANT = 3
def scale(x, y=None, *, by=2, **rest):
    """x is float32 or bfloat16."""
def unseen(x): ...
'''
LAYERS = """\
__all__ = ["Scale"]
class Scale(Module):
    def forward(self, x): ...
    def _own(self): ...
"""


def package(folder: Path, ops: str = OPS, layers: str = LAYERS, init: str = INIT) -> Path:
    folder.mkdir()
    for name, text in {"ops": ops, "layers": layers, "__init__": init + "half = scale\n"}.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def test_names_are_found_where_they_are_defined(tmp_path: Path) -> None:
    api = read_api(package(tmp_path / "kernel"))
    assert api.keys() == {"layers", "layers.Scale", "layers.Scale.forward", "scale", "half", "CONSTANT"}
    assert api["half"] == api["scale"]
    assert [(p.name, p.kind, p.default) for p in api["scale"].parameters] == [
        ("x", "positional", None),
        ("y", "positional", "None"),
        ("by", "keyword", "2"),
        ("rest", "**", None),
    ]
    assert api["scale"].dtypes == {"float32", "bfloat16"}
    assert api["CONSTANT"].parameters is None


@pytest.mark.parametrize(
    ("old", "new", "findings"),
    [
        ("scale(x, y=None", "scale(y=None, x=1", ["the order is y, x, was x, y"]),
        ("scale(x, y=None", "scale(x", ["y is gone"]),
        ("y=None", "y", ["y is without default, was None"]),
        ("by=2", "by=3", ["by is 3, was 2"]),
        ("y=None, *, by=2", "*, y=None, by=2", ["y is keyword, was positional"]),
        ("by=2", "by=2, mode", ["mode is new and has no default"]),
        (", **rest", "", ["rest is gone"]),
        ("or bfloat16", "only", ["names no longer bfloat16"]),
        ("y=None", "y=None, z=0", []),
        ("by=2", "by=2, mode='fast'", []),
        ("(x, y", "(x=1, y", []),
        ("float32 or", "float32, float16 or", []),
        ("unseen(x)", "unseen()", []),
    ],
)
def test_what_breaks(tmp_path: Path, old: str, new: str, findings: list[str]) -> None:
    assert old in OPS
    before = read_api(package(tmp_path / "before"))
    after = read_api(package(tmp_path / "after", OPS.replace(old, new)))
    found = [what for what in broken(before, after) if what.startswith("scale")]
    assert [what.partition("scale")[2].lstrip(": ") for what in found] == findings


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ({"layers": LAYERS.replace("forward", "step")}, "layers.Scale.forward is gone"),
        ({"init": INIT.replace('"CONSTANT"', "")}, "CONSTANT is gone"),
        (
            {"ops": OPS.replace("def scale(x, y=None, *, by=2, **rest)", "class scale")},
            "scale: is no function any more",
        ),
    ],
)
def test_names_that_break(tmp_path: Path, change: dict[str, str], finding: str) -> None:
    before, after = package(tmp_path / "before"), package(tmp_path / "after", **change)
    assert finding in list(broken(read_api(before), read_api(after)))


def test_of_this_kernel(kernel: object) -> None:
    """Every public name is found, and every operator's dtypes: a version that loses one is noticed."""
    api = read_api(ROOT / "torch-ext" / "flash_rwkv")
    assert set(kernel.__all__) == {name for name in api if "." not in name}
    for name in ("wkv4", "wkv6", "wkv4_step_", "wkv6_step_"):
        assert {"float32", "bfloat16", "float16", "float64"} <= api[name].dtypes, name
    functions = [name for name in kernel.__all__ if callable(getattr(kernel, name))]
    assert all(api[name].parameters is not None for name in functions)
    assert list(broken(api, api)) == []
