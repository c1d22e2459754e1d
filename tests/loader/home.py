"""One user's machine: caches and settings that nothing else sees."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from huggingface_hub import constants, snapshot_download

from flash_rwkv import locking
from flash_rwkv.lockfile import Lock
from tests.loader.publishing import REPOSITORY
from tests.loopback_hub import LoopbackHub

ROOT = Path(__file__).resolve().parents[2]
DEAD = "http://127.0.0.1:9"  # the port of the discard service: nobody listens


@dataclass
class Home:
    """Settings that hold for this process and for those it starts."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch

    @property
    def cache(self) -> Path:
        """The Hugging Face cache."""
        return self.folder / "hf" / "hub"

    @property
    def store(self) -> Path:
        """The loader's verified copies."""
        return self.folder / "store"

    def set(self, name: str, value: object) -> None:
        self.monkeypatch.setenv(name, str(value))

    def connect(self, url: str) -> None:
        """Make `url` the Hub, also for the client here, which read its settings when it was imported."""
        self.set("HF_ENDPOINT", url)
        self.monkeypatch.setattr(constants, "ENDPOINT", url)
        files = url + "/{repo_id}/resolve/{revision}/{filename}"
        self.monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)

    def pin(self, hub: LoopbackHub, revision: str = "v1") -> Lock:
        """Lock a revision and use that lock from now on."""
        self.connect(hub.url)
        lock = locking.pin(REPOSITORY, revision)
        path = self.folder / f"{revision}.lock.json"
        path.write_text(lock.dumps())
        self.set("FLASH_RWKV_LOCK", path)
        hub.requests.clear()
        return lock

    def fill_cache(self, lock: Lock) -> None:
        """Put a commit into the Hugging Face cache, as the kernels library does."""
        snapshot_download(lock.repository, repo_type="kernel", revision=lock.commit, cache_dir=self.cache)

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start Python as this user."""
        return subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, **environment},
            cwd=self.folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run Python as this user to its end."""
        process = self.start(*arguments, **environment)
        out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def cached(self, name: str) -> Path:
        """The place of a variant's file in the Hugging Face cache."""
        (path,) = self.cache.glob(f"*/snapshots/*/build/*/{name}")
        return path

    def stored(self, name: str) -> Path:
        """The place of a variant's file among the verified copies."""
        (path,) = self.store.glob(f"*/*/{name}")
        return path
