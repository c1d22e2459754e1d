"""Kernels for machines without a network: what `prefetch --to` and `wheel` make, and its use there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.metadata import Metadata
from packaging.utils import parse_wheel_filename
from wheel.wheelfile import WheelFile

from flash_rwkv import IntegrityError, LoaderError, NoVariantError, bundle, get_kernel
from flash_rwkv.bundle import lock_name
from flash_rwkv.cli import main
from flash_rwkv.lockfile import Lock
from flash_rwkv.wheels import platforms
from tests.loader.home import DEAD, ROOT, Home
from tests.loader.namespaces import unshared
from tests.loader.publishing import FOREIGN, REPOSITORY, VARIANT, TinyKernel, publish
from tests.loopback_hub import LoopbackHub

Output = pytest.CaptureFixture[str]


@pytest.fixture
def stick(tmp_path: Path) -> Path:
    return tmp_path / "a: stick"


def carry(home: Home, stick: Path, *arguments: str) -> None:
    """Fill the stick here; then be another machine, without network, whose package pins nothing."""
    assert main(["prefetch", *arguments, "--to", str(stick)]) == 0
    arrive(home)
    home.set("FLASH_RWKV_LOCAL", stick)


def arrive(home: Home) -> None:
    shutil.rmtree(home.store, ignore_errors=True)
    home.monkeypatch.delenv("FLASH_RWKV_LOCK")
    home.connect(DEAD)


# In a folder


def test_folder_serves_elsewhere(pinned: Lock, hub: LoopbackHub, home: Home, stick: Path) -> None:
    carry(home, stick)
    hub.requests.clear()
    kernel = get_kernel()
    assert kernel.whoami() == "tiny"
    assert Path(kernel.__file__) == home.stored("__init__.py"), "a private copy, as of anything shared"
    assert get_kernel(REPOSITORY, revision=pinned.commit, version=None) is kernel
    assert get_kernel(version=1) is kernel
    assert hub.requests == []


def test_folder_is_verified(pinned: Lock, home: Home, stick: Path) -> None:
    carry(home, stick)
    (path,) = stick.glob("*/*/ops.py")
    path.write_text("evil = True")
    with pytest.raises(IntegrityError, match=r"ops\.py is not the file that was pinned"):
        get_kernel()


def test_folder_does_not_decide_what_the_package_pins(
    pinned: Lock, home: Home, stick: Path, tmp_path: Path
) -> None:
    """Its lock may say what it likes about the pinned commit: it is not the one in force."""
    pinned_by = home.folder / "v1.lock.json"
    carry(home, stick)
    evil = TinyKernel(text="evil").files()
    lock = json.loads(pinned.dumps())
    shutil.rmtree(next(stick.glob("*/")))
    for name, data in evil.items():
        lock["variants"][VARIANT][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    (stick / lock_name(REPOSITORY, pinned.commit)).write_text(json.dumps(lock))
    forged = Lock.read(stick / lock_name(REPOSITORY, pinned.commit))
    TinyKernel(text="evil").write(bundle.Store(stick).folder(VARIANT, forged.variants[VARIANT]))
    home.set("FLASH_RWKV_LOCK", pinned_by)
    with pytest.raises(LoaderError, match=f"is asked for \\(by {pinned_by}\\)"):
        get_kernel()


def test_folder_with_another_release(pinned: Lock, hub: LoopbackHub, home: Home, stick: Path) -> None:
    other = publish(hub, {VARIANT: TinyKernel(text="other", version=2)}, "v2")
    pinned_by = home.folder / "v1.lock.json"
    carry(home, stick, REPOSITORY, "--revision", other)
    assert get_kernel().whoami() == "other"
    home.set("FLASH_RWKV_LOCK", pinned_by)
    with pytest.raises(LoaderError, match=rf"holds {REPOSITORY} at {other}, but .* at {pinned.commit}"):
        get_kernel()
    assert get_kernel(REPOSITORY, revision=other).whoami() == "other"


def test_folder_with_two_releases(pinned: Lock, hub: LoopbackHub, home: Home, stick: Path) -> None:
    other = publish(hub, {VARIANT: TinyKernel(text="other", version=2)}, "v2")
    assert main(["prefetch", "--to", str(stick)]) == 0
    carry(home, stick, REPOSITORY, "--revision", other)
    with pytest.raises(LoaderError, match="several kernels were carried here"):
        get_kernel()
    assert get_kernel("flash-rwkv", revision=pinned.commit).whoami() == "tiny"
    assert get_kernel("flash-rwkv", revision=other).whoami() == "other"


def test_folder_without_a_variant_for_this_machine(hub: LoopbackHub, home: Home, stick: Path) -> None:
    """The Hub is not asked for what the folder lacks."""
    publish(hub, {VARIANT: TinyKernel(), FOREIGN: TinyKernel()})
    home.pin(hub)
    carry(home, stick, "--variant", FOREIGN)
    home.connect(hub.url)
    hub.requests.clear()
    with pytest.raises(NoVariantError, match=f"FLASH_RWKV_LOCAL={stick}") as caught:
        get_kernel()
    assert VARIANT not in str(caught.value)
    assert hub.requests == []


def test_variants_are_chosen_by_name(hub: LoopbackHub, home: Home, stick: Path, capsys: Output) -> None:
    publish(hub, {VARIANT: TinyKernel(), FOREIGN: TinyKernel(), "torch-cpu": TinyKernel()})
    home.pin(hub)
    assert main(["prefetch", "--variant", FOREIGN, "--variant", VARIANT, "--to", str(stick)]) == 0
    assert {path.name for path in stick.glob("*/*/")} == {FOREIGN, VARIANT}
    assert main(["prefetch", "--variant", "torch-none"]) == 1
    assert (
        f"--variant must be one of torch-cpu, {FOREIGN}, {VARIANT}, got 'torch-none'"
        in capsys.readouterr().err
    )
    with pytest.raises(SystemExit):
        main(["prefetch", "--variant", FOREIGN, "--all-variants"])


def test_folder_is_filled_from_what_is_here(pinned: Lock, home: Home, stick: Path) -> None:
    """Without a network too, and once more verified."""
    get_kernel()
    home.connect(DEAD)
    assert main(["prefetch", "--to", str(stick)]) == 0


def test_info_of_a_carried_folder(pinned: Lock, home: Home, stick: Path, capsys: Output) -> None:
    carry(home, stick)
    capsys.readouterr()
    assert main(["info", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["from"] == f"{next(stick.glob('*/*/'))}, to be verified"
    assert report["pinned_by"] == str(stick / lock_name(REPOSITORY, pinned.commit))


# In a wheel


def make(folder: Path, capsys: Output, *arguments: str) -> Path:
    capsys.readouterr()
    assert main(["wheel", *arguments, "-o", str(folder)]) == 0
    return Path(capsys.readouterr().out.strip())


def install(wheel: Path, home: Home, site: Path) -> Path:
    """Unpack a wheel where the package would be, on a machine without network."""
    zipfile.ZipFile(wheel).extractall(site)
    arrive(home)
    home.monkeypatch.setattr(bundle, "installed_folder", lambda: site / bundle.PACKAGE)
    return site / bundle.PACKAGE


def test_wheel_serves_elsewhere(pinned: Lock, home: Home, tmp_path: Path, capsys: Output) -> None:
    install(make(tmp_path / "wheels", capsys), home, tmp_path / "site")
    kernel = get_kernel()
    assert kernel.whoami() == "tiny"
    assert Path(kernel.__file__) == home.stored("__init__.py")


def test_wheel_is_verified(pinned: Lock, home: Home, tmp_path: Path, capsys: Output) -> None:
    folder = install(make(tmp_path / "wheels", capsys), home, tmp_path / "site")
    next(folder.glob("*/*/ops.py")).write_text("evil = True")
    with pytest.raises(IntegrityError, match=r"ops\.py is not the file that was pinned"):
        get_kernel()


def test_wheel_is_well_formed(pinned: Lock, home: Home, tmp_path: Path, capsys: Output) -> None:
    path = make(tmp_path, capsys)
    name, version, _, tags = parse_wheel_filename(path.name)
    assert (name, str(version)) == ("flash-rwkv-kernels", f"1+g{pinned.commit[:12]}")
    assert {str(tag) for tag in tags} == {"py3-none-any"}
    with WheelFile(path) as wheel:  # compares everything that is read with RECORD
        contents = {info.filename: wheel.read(info) for info in wheel.infolist()}
        info = wheel.dist_info_path
    metadata = Metadata.from_email(contents[f"{info}/METADATA"])
    assert (metadata.name, metadata.version) == (name, version)
    assert [str(requirement) for requirement in metadata.requires_dist] == ["flash-rwkv>=0.4.0"]
    assert b"Tag: py3-none-any\n" in contents[f"{info}/WHEEL"]
    assert len(contents[f"{info}/RECORD"].splitlines()) == len(contents)
    packed = {Path(name).name for name in contents if f"/{VARIANT}/" in name}
    assert packed == set(pinned.variants[VARIANT])


def test_same_wheel_every_time(
    pinned: Lock, home: Home, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make(tmp_path / "one", capsys)
    monkeypatch.setattr("time.time", lambda: 0.0)
    second = make(tmp_path / "two", capsys)
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("variants", "tags"),
    [
        (["torch-stable-abi211-cpu-x86_64-linux"], {"manylinux_2_28_x86_64"}),
        (
            ["torch-stable-abi211-cpu-aarch64-linux", "torch-stable-abi211-cu130-x86_64-linux"],
            {"manylinux_2_28_x86_64", "manylinux_2_28_aarch64"},
        ),
        (["torch-stable-abi211-cpu-x86_64-linux", "torch-universal"], {"any"}),
    ],
)
def test_platforms_of_a_wheel(variants: list[str], tags: set[str]) -> None:
    assert platforms(variants) == tags


def test_wheel_for_a_platform_without_a_tag(
    hub: LoopbackHub, home: Home, tmp_path: Path, capsys: Output
) -> None:
    publish(hub, {FOREIGN: TinyKernel()})
    home.pin(hub)
    assert main(["wheel", "--variant", FOREIGN, "-o", str(tmp_path / "wheels")]) == 1
    assert f"{FOREIGN} is for no platform" in capsys.readouterr().err
    assert not (tmp_path / "wheels").exists()


def test_wheel_needs_a_package(
    pinned: Lock, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wheel.wheelfile", None)
    assert main(["wheel", "-o", str(tmp_path / "wheels")]) == 1
    assert "pip install 'flash-rwkv[wheel]'" in capsys.readouterr().err


def test_package_of_that_name_elsewhere_is_not_read(
    pinned: Lock, home: Home, tmp_path: Path, capsys: Output
) -> None:
    """In a model's folder, say, or anywhere else on Python's path."""
    zipfile.ZipFile(make(tmp_path / "wheels", capsys)).extractall(tmp_path / "model")
    arrive(home)
    code = "import flash_rwkv; flash_rwkv.get_kernel()"
    path = f"{tmp_path / 'model'}:{ROOT / 'loader' / 'src'}"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "model",
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert "NotPinnedError" in result.stderr


# For real: the compiled kernel, pip, and a network namespace in which there is nothing

USE = """
import json, socket, sys
import torch
from flash_rwkv import get_kernel, wkv7

try:
    socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=5)
except OSError:
    pass
else:
    raise SystemExit("there is a network here")

torch.manual_seed(0)
inputs = [torch.randn(2, 5, 2, 16, dtype=torch.float64, requires_grad=True) for _ in range(6)]
y, state = wkv7(*inputs, decay="sigmoid")
gradients = torch.autograd.grad(y.sum() + state.sum(), inputs)
kernel = get_kernel()
y_, state_ = kernel.reference.wkv7(*inputs, decay="sigmoid")
expected = torch.autograd.grad(y_.sum() + state_.sum(), inputs)
pairs = zip((y, state, *gradients), (y_, state_, *expected))
error = max(((got - want).abs().max() / want.abs().max()).item() for got, want in pairs)
print(json.dumps({"error": error, "file": kernel.__file__, "isa": kernel.cpu_isa()}))
"""


@pytest.fixture
def machine(published: Lock, hub: LoopbackHub, home: Home, stick: Path, tmp_path: Path) -> Home:
    """A machine without network that got a stick: a folder, a wheel, and the package itself."""
    if "stable-abi" not in "".join(published.variants):
        pytest.skip("build/ has nothing compiled")
    shutil.copytree(ROOT / "loader", stick / "loader")
    assert main(["prefetch", "--to", str(stick / "folder")]) == 0
    assert main(["wheel", "-o", str(stick / "wheels")]) == 0
    arrive(home)
    return home


def without_network(home: Home, hub: LoopbackHub, *arguments: str, **environment: str) -> str:
    port = hub.url.rsplit(":", 1)[1]
    result = subprocess.run(
        [*unshared("net"), sys.executable, *arguments, port],
        env={**os.environ, "HF_ENDPOINT": hub.url, **environment},
        cwd=home.folder,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_compiled_kernel_from_a_folder_without_network(machine: Home, hub: LoopbackHub, stick: Path) -> None:
    report = json.loads(without_network(machine, hub, "-c", USE, FLASH_RWKV_LOCAL=str(stick / "folder")))
    assert report["error"] < 1e-12
    assert report["isa"] != "torch"
    assert report["file"].startswith(str(machine.store))


def test_compiled_kernel_from_a_wheel_without_network(
    machine: Home, hub: LoopbackHub, stick: Path, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    (wheel,) = (stick / "wheels").iterdir()
    pip = ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run(
        [*unshared("net"), sys.executable, *pip, "--target", site, wheel, stick / "loader"], check=True
    )
    report = json.loads(without_network(machine, hub, "-c", USE, PYTHONPATH=str(site)))
    assert report["error"] < 1e-12
    assert report["isa"] != "torch"
    assert report["file"].startswith(str(machine.store))
