"""Small kernels without compiled code, and their way onto a Hub through the real client."""

from __future__ import annotations

import base64
import hashlib
import json
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi

from tests.loopback_hub import LoopbackHub

REPOSITORY = "flash-rwkv/flash-rwkv"
VARIANT = "torch-universal"  # fits every machine
FOREIGN = "torch-stable-abi211-cu999-riscv64-plan9"  # fits none


@dataclass
class TinyKernel:
    """A kernel whose only operator says who it is: `whoami() -> text`.

    `extra` adds files or replaces those made here; `extra_metadata` does so for fields of metadata.json.
    """

    text: str = "tiny"
    version: int = 1
    build_id: str = field(default_factory=lambda: f"_flash_rwkv_cpu_{uuid.uuid4().hex[:10]}")
    digests: bool = True
    extra: dict[str, bytes] = field(default_factory=dict)
    extra_metadata: dict = field(default_factory=dict)

    def files(self) -> dict[str, bytes]:
        files = {
            "__init__.py": b"from . import layers\nfrom .ops import wkv7, whoami\n",
            "ops.py": f"def whoami():\n    return {self.text!r}\n\n\nwkv7 = max\n".encode(),
            "layers.py": b"",
            "weights.bin": bytes(range(256)) * 1024,
            **self.extra,
        }
        digests = {
            name: base64.b64encode(hashlib.sha256(data).digest()).decode() for name, data in files.items()
        }
        metadata = {
            "name": "flash-rwkv",
            "id": self.build_id,
            "version": self.version,
            "license": "Apache-2.0",
            "python-depends": [],
            "backend": {"type": "cpu"},
            **({"digest": {"algorithm": "sha256", "files": digests}} if self.digests else {}),
            **self.extra_metadata,
        }
        return {**files, "metadata.json": json.dumps(metadata).encode()}

    def write(self, folder: Path) -> Path:
        for name, data in self.files().items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return folder


def client(hub: LoopbackHub) -> HfApi:
    return HfApi(endpoint=hub.url, token="any")


def publish(
    hub: LoopbackHub, variants: dict[str, TinyKernel], branch: str = "v1", repository: str = REPOSITORY
) -> str:
    """Commit variants to a branch, made when missing, and return the commit's id."""
    files = {
        f"build/{variant}/{name}": data
        for variant, kernel in variants.items()
        for name, data in kernel.files().items()
    }
    return publish_files(hub, files, branch, repository)


def publish_files(
    hub: LoopbackHub, files: dict[str, bytes], branch: str = "v1", repository: str = REPOSITORY
) -> str:
    api = client(hub)
    api.create_repo(repository, repo_type="kernel", exist_ok=True)
    api.create_branch(repository, branch=branch, repo_type="kernel", exist_ok=True)
    additions = [CommitOperationAdd(path, data) for path, data in files.items()]
    commit = api.create_commit(
        repository, additions, commit_message="Add a build", repo_type="kernel", revision=branch
    )
    return commit.oid
