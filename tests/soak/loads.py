"""Loads of a kernel under names of their own, and what is left when one is dropped.

A binary registers its ops once a process, and Torch has no way back; so it is the variant in plain PyTorch
that is loaded again and again, each time as another build. Torch keeps the ops of every build, so some
growth is allowed; the module and all that it made must go.
"""

from __future__ import annotations

import gc
import json
import shutil
import sys
import weakref
from pathlib import Path
from types import ModuleType

from kernels import get_local_kernel, importer

from tests.soak import rounds

VARIANT = "torch-universal"
# What Torch 2.13 keeps of a build's 25 ops is 490 KiB and 2,246 objects.
MOST_A_LOAD = {"allocated KiB": 1024.0, "resident KiB": 4096.0, "objects": 3500.0}


def load_use_and_drop(variant: Path, folder: Path, number: int) -> None:
    """Load a copy of a plain variant as a build of its own, call everything, and let go of it.

    Raises:
        AssertionError: something still holds the module.
    """
    kernel = load_copy(variant, folder / str(number), f"_soak{number}")
    rounds.everything(kernel, number)
    held = weakref.ref(kernel)
    _forget(kernel)
    del kernel
    gc.collect()
    if (module := held()) is not None:
        holders = ", ".join(type(holder).__name__ for holder in gc.get_referrers(module))
        raise AssertionError(f"{module.__name__} was dropped and stays, held by {holders}")


def load_copy(variant: Path, folder: Path, suffix: str) -> ModuleType:
    """A copy of a plain variant in a new folder, as a build whose id ends with the suffix."""
    copy = folder / variant.name
    shutil.copytree(variant, copy, ignore=shutil.ignore_patterns("__pycache__"))
    old = json.loads((copy / "metadata.json").read_text())["id"]
    for path in (copy / "_ops.py", copy / "metadata.json"):
        path.write_text(path.read_text().replace(old, old + suffix))
    return get_local_kernel(copy)


def _forget(kernel: ModuleType) -> None:
    """Take it out of what holds a module: Python's table, and that of the kernels library."""
    own = [name for name in sys.modules if name.split(".")[0] == kernel.__name__]
    for name in own:
        del sys.modules[name]
    paths = [path for path, loaded in importer._loaded_kernels.items() if loaded.module is kernel]
    for path in paths:
        del importer._loaded_kernels[path]
