"""Importing the package is cheap, and its functions look like the kernel's."""

from __future__ import annotations

import ast
import inspect
import json
from pathlib import Path

import pytest

import flash_rwkv
from flash_rwkv import operators
from tests.loader.home import ROOT, Home

FUNCTIONS = sorted(
    name for name, value in vars(operators).items() if name.startswith(("wkv", "rwkv")) and value
)


def test_import_brings_in_nothing_heavy(home: Home) -> None:
    code = (
        "import sys, json, flash_rwkv; from flash_rwkv import wkv7, rwkv6_cuda_linear_attention, get_kernel;"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    result = home.run("-c", code)
    assert result.returncode == 0, result.stderr
    assert not {"torch", "kernels", "huggingface_hub", "numpy", "httpx2"} & set(json.loads(result.stdout))


def test_star_import_and_dir_agree() -> None:
    assert dir(flash_rwkv) == sorted(flash_rwkv.__all__)
    with pytest.raises(AttributeError, match="wkv8"):
        _ = flash_rwkv.wkv8


def kernel_signatures() -> dict[str, tuple]:
    """Parameters with kinds and defaults of the kernel's functions, read from its source."""
    found = {}
    for name in ("ops.py", "compat.py"):
        for node in ast.parse((ROOT / "torch-ext" / "flash_rwkv" / name).read_text()).body:
            if isinstance(node, ast.FunctionDef):
                arguments = node.args
                positional = [(argument.arg, "positional") for argument in arguments.args]
                keyword = [(argument.arg, "keyword") for argument in arguments.kwonlyargs]
                defaults = [
                    ast.literal_eval(value) for value in (*arguments.defaults, *arguments.kw_defaults)
                ]
                found[node.name] = (positional + keyword, defaults)
    return found


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signature_is_the_kernels(name: str) -> None:
    parameters = inspect.signature(getattr(flash_rwkv, name)).parameters.values()
    kinds = [(p.name, "keyword" if p.kind is p.KEYWORD_ONLY else "positional") for p in parameters]
    defaults = [p.default for p in parameters if p.default is not p.empty]
    assert (kinds, defaults) == kernel_signatures()[name]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstring_gives_shapes(name: str) -> None:
    assert "[" in inspect.getdoc(getattr(flash_rwkv, name))


def test_all_functions_of_the_surface_are_there() -> None:
    assert len(FUNCTIONS) == 10
    assert set(FUNCTIONS) <= set(flash_rwkv.__all__)


def test_no_compiled_code_in_the_package() -> None:
    package = Path(flash_rwkv.__file__).parent
    kinds = {path.suffix for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert kinds <= {".py", ".json", ".typed"}
