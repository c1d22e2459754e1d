"""The plain PyTorch operators, read from their one file: the models' tests need no build."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType

SOURCE = Path(__file__).resolve().parents[2] / "torch-ext" / "flash_rwkv" / "reference.py"


@cache
def load_reference() -> ModuleType:
    """The module `reference`, on its own."""
    spec = importlib.util.spec_from_file_location("flash_rwkv_reference", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
