"""Publishes build/ to a Hub on this machine and loads it back as any user would, by commit.

`huggingface_hub` and `kernels` read the environment when they are imported, so this module imports them late.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from tests.loopback_hub import LoopbackHub

ROOT = Path(__file__).resolve().parents[2]
REPOSITORY = "flash-rwkv/flash-rwkv"

# Settings of the user's that would point the clients elsewhere, or hand a token to a test server.
FOREIGN_SETTINGS = (
    "HF_HUB_CACHE",
    "HF_HUB_DISABLE_TELEMETRY",
    "HF_HUB_OFFLINE",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HUGGINGFACE_HUB_CACHE",
    "KERNELS_CACHE",
    "LOCAL_KERNELS",
)


@dataclass(frozen=True)
class LoadedKernel:
    """A kernel and where it came from."""

    module: ModuleType
    variant: str
    build_id: str
    commit: str

    @property
    def reference(self) -> ModuleType:
        """The plain PyTorch operators that the kernel carries."""
        return importlib.import_module(f"{self.module.__name__}.reference")


@contextmanager
def private_hub(folder: Path) -> Iterator[LoopbackHub]:
    """A running Hub that this process and its children talk to, and their cache, both in `folder`."""
    for name in FOREIGN_SETTINGS:
        os.environ.pop(name, None)
    with LoopbackHub(folder / "hub") as hub:
        os.environ["HF_ENDPOINT"] = hub.url
        os.environ["HF_HOME"] = str(folder / "cache")
        os.environ["HF_HUB_DISABLE_XET"] = "1"
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
        yield hub


def publish(hub: LoopbackHub) -> str:
    """Publish build/ with the project's own builder; the commit's sha.

    Raises:
        RuntimeError: the builder refused; the message is what it printed.
    """
    command = [sys.executable, "-m", "builder", "publish", "--repo", REPOSITORY, "--endpoint", hub.url]
    result = subprocess.run([*command, "--trial"], cwd=ROOT, capture_output=True, text=True)
    sha = re.search(r"^commit ([0-9a-f]{40})$", result.stdout, re.MULTILINE)
    if result.returncode or not sha:
        raise RuntimeError(f"publishing failed:\n{result.stdout}{result.stderr}")
    return sha[1]


def load(commit: str) -> LoadedKernel:
    """Fetch the variant for this machine from the Hub at `commit` and import it."""
    from kernels import get_kernel

    module = get_kernel(REPOSITORY, revision=commit, trust_remote_code=[REPOSITORY])
    folder = Path(module.__file__).parent
    metadata = json.loads((folder / "metadata.json").read_text())
    return LoadedKernel(module, folder.name, metadata["id"], commit)
