"""What a repository, a kernel, a model or the environment says does not change what is loaded."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from flash_rwkv import LoaderError, NoVariantError, get_kernel
from flash_rwkv.lockfile import Lock
from tests.loader.evil import EVIL
from tests.loader.home import Home
from tests.loader.publishing import FOREIGN, REPOSITORY, VARIANT, TinyKernel, publish, publish_files
from tests.loopback_hub import LoopbackHub


def test_repository_cannot_redirect(hub: LoopbackHub, home: Home) -> None:
    evil = publish(hub, {VARIANT: TinyKernel(extra={"ops.py": EVIL})}, repository="evil/kernel")
    publish(hub, {VARIANT: TinyKernel()})
    status = f'kind = "redirect"\ndestination = "evil/kernel"\nrevision = "{evil}"\n'
    publish_files(hub, {"kernel-status.toml": status.encode()})
    home.pin(hub)
    assert get_kernel().whoami() == "tiny"
    assert not [request for request in hub.requests if "evil" in request.path]


def test_kernel_cannot_bring_another_kernel(hub: LoopbackHub, home: Home) -> None:
    publish(hub, {VARIANT: TinyKernel(extra={"ops.py": EVIL})}, repository="evil/kernel")
    depends = {"kernel-depends": [{"repo-id": "evil/kernel", "version": 1}]}
    publish(hub, {VARIANT: TinyKernel(extra_metadata=depends)})
    home.pin(hub)
    with pytest.raises(LoaderError, match="evil/kernel"):
        get_kernel()
    assert not [request for request in hub.requests if "evil" in request.path]


def test_configuration_beside_the_model_is_not_read(pinned: Lock, home: Home, tmp_path: Path) -> None:
    """A model's folder may hold anything under any name: only the environment and the package decide."""
    evil = TinyKernel(extra={"ops.py": EVIL}).write(tmp_path / "model" / "build" / VARIANT)
    shutil.copytree(evil.parent, tmp_path / "model" / "flash-rwkv" / "flash-rwkv" / "build")
    text = pinned.dumps().replace(REPOSITORY, "evil/kernel")
    for name in ("flash_rwkv.lock.json", "kernels.lock", "config.json", "kernel-status.toml"):
        (tmp_path / "model" / name).write_text(text)
    home.monkeypatch.chdir(tmp_path / "model")
    assert get_kernel().whoami() == "tiny"


@pytest.mark.parametrize("value", [f"{REPOSITORY}=%s", "broken:/a/path"])
def test_overrides_of_the_kernels_library_are_ignored(
    pinned: Lock, home: Home, tmp_path: Path, value: str
) -> None:
    evil = TinyKernel(extra={"ops.py": EVIL}).write(tmp_path / "evil" / "build" / VARIANT)
    home.set("LOCAL_KERNELS", value.replace("%s", str(evil.parent.parent)))
    assert get_kernel().whoami() == "tiny"


def test_no_variant_for_this_machine(hub: LoopbackHub, home: Home) -> None:
    names = [
        FOREIGN,
        "torch-stable-abi299-cpu-x86_64-linux",
        "torch27-cxx11-cu126-x86_64-linux",
        "torch-metal",
        "odd",
    ]
    publish(hub, {name: TinyKernel() for name in names})
    home.pin(hub)
    with pytest.raises(NoVariantError) as caught:
        get_kernel()
    lines = str(caught.value).splitlines()
    assert len(lines) == 1 + len(names)
    for name, reason in zip(names, ("riscv64", "too new", "27", "metal", "Unknown framework"), strict=True):
        (line,) = [line for line in lines if line.strip().startswith(f"{name}:")]
        assert reason in line or "does not match" in line
    assert hub.requests == []
