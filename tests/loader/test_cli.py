"""The command `flash-rwkv`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from flash_rwkv import __version__, get_kernel
from flash_rwkv.cli import main
from flash_rwkv.lockfile import Lock
from tests.loader.home import DEAD, Home
from tests.loader.publishing import FOREIGN, REPOSITORY, VARIANT, TinyKernel, publish, publish_files
from tests.loopback_hub import LoopbackHub

Output = pytest.CaptureFixture[str]


def info(capsys: Output, *arguments: str) -> tuple[int, dict]:
    capsys.readouterr()
    status = main(["info", "--json", *arguments])
    return status, json.loads(capsys.readouterr().out)


def test_info_follows_the_files_closer(pinned: Lock, hub: LoopbackHub, home: Home, capsys: Output) -> None:
    status, report = info(capsys)
    assert (status, report["loads"], report["revision"]) == (0, VARIANT, pinned.revision)
    assert report["from"].startswith(f"the Hub, {hub.url}: 5 of 5 files")
    assert hub.requests == []
    get_kernel()
    assert info(capsys)[1]["from"] == f"verified copy in {home.stored('ops.py').parent}"
    shutil.rmtree(home.store)
    home.fill_cache(pinned)
    assert info(capsys)[1]["from"] == f"{home.cached('ops.py').parent}, to be verified"


def test_info_shows_every_reason(hub: LoopbackHub, home: Home, capsys: Output) -> None:
    publish(hub, {VARIANT: TinyKernel(), FOREIGN: TinyKernel(), "torch-metal": TinyKernel()})
    lock = home.pin(hub)
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert f"* {VARIANT}: fits" in text
    assert f"{FOREIGN}: CPU (riscv64) does not match" in text
    assert "torch-metal: backend (metal) does not match" in text
    assert lock.origin is not None
    assert REPOSITORY in text
    assert lock.revision in text


def test_info_and_loading_agree(hub: LoopbackHub, home: Home, capsys: Output) -> None:
    """The kernels library prefers the specific variant, and so do both."""
    publish(hub, {VARIANT: TinyKernel(text="universal"), "torch-cpu": TinyKernel(text="cpu")})
    home.pin(hub)
    _, report = info(capsys, "--backend", "cpu")
    kernel = get_kernel(backend="cpu")
    assert report["loads"] == Path(kernel.__file__).parent.name == "torch-cpu"
    assert kernel.whoami() == "cpu"


def test_info_when_nothing_fits(hub: LoopbackHub, home: Home, capsys: Output) -> None:
    publish(hub, {FOREIGN: TinyKernel()})
    home.pin(hub)
    status, report = info(capsys)
    assert (status, report["loads"]) == (1, None)


def test_info_finds_a_damaged_copy(pinned: Lock, home: Home, capsys: Output) -> None:
    assert main(["prefetch"]) == 0
    home.stored("ops.py").write_text("other")
    status, report = info(capsys)
    assert (status, report["loads"]) == (1, None)
    assert "ops.py is not the file that was pinned" in report["from"]


def test_info_of_a_local_folder(pinned: Lock, home: Home, tmp_path: Path, capsys: Output) -> None:
    local = TinyKernel().write(tmp_path / "build" / VARIANT)
    home.set("FLASH_RWKV_LOCAL", tmp_path)
    status, report = info(capsys)
    assert (status, report["loads"], report["from"]) == (0, VARIANT, f"{local} (unverified)")
    assert main(["prefetch"]) == 1
    assert "unset it" in capsys.readouterr().err


def test_prefetch_then_no_network(pinned: Lock, home: Home, capsys: Output) -> None:
    assert main(["prefetch"]) == 0
    assert capsys.readouterr().out.strip() == str(home.stored("ops.py").parent)
    home.connect(DEAD)
    assert get_kernel().whoami() == "tiny"


@pytest.mark.parametrize("name", ["ops.py", "weights.bin"])
def test_prefetch_repairs(pinned: Lock, home: Home, name: str) -> None:
    """Both copies damaged: what the refusal advises helps."""
    home.fill_cache(pinned)
    assert main(["prefetch"]) == 0
    for path in (home.stored(name), home.cached(name).resolve()):
        path.write_text("damaged")
    assert main(["prefetch"]) == 0
    home.connect(DEAD)
    assert get_kernel().whoami() == "tiny"


def test_prefetch_for_another_machine(hub: LoopbackHub, home: Home, tmp_path: Path, capsys: Output) -> None:
    """A folder filled here serves there as the cache too: no network, the same lock in the package."""
    publish(hub, {VARIANT: TinyKernel(), FOREIGN: TinyKernel()})
    home.pin(hub)
    carried = tmp_path / "a: stick"
    assert main(["prefetch", "--all-variants", "--to", str(carried)]) == 0
    output = capsys.readouterr()
    assert {Path(line).name for line in output.out.splitlines()} == {VARIANT, FOREIGN}
    assert "FLASH_RWKV_LOCAL" in output.err
    home.connect(DEAD)
    home.set("FLASH_RWKV_CACHE", carried)
    kernel = get_kernel()
    assert (kernel.whoami(), Path(kernel.__file__).parents[2]) == ("tiny", carried)


def test_prefetch_of_a_revision_the_package_does_not_pin(
    pinned: Lock, hub: LoopbackHub, home: Home, tmp_path: Path, capsys: Output
) -> None:
    other = publish(hub, {VARIANT: TinyKernel(text="other", version=2)}, "v2")
    assert main(["prefetch", REPOSITORY, "--revision", other, "--to", str(tmp_path / "stick")]) == 0
    assert other in capsys.readouterr().err
    home.connect(DEAD)
    home.set("FLASH_RWKV_CACHE", tmp_path / "stick")
    assert get_kernel(REPOSITORY, revision=other).whoami() == "other"


def test_lock_resolves_a_branch_and_hashes_everything(
    hub: LoopbackHub, home: Home, tmp_path: Path, capsys: Output
) -> None:
    kernels = {VARIANT: TinyKernel(version=3), FOREIGN: TinyKernel(version=3, digests=False)}
    commit = publish(hub, kernels, "v3")
    home.connect(hub.url)
    path = tmp_path / "lock.json"
    assert main(["lock", REPOSITORY, "--revision", "v3", "-o", str(path)]) == 0
    lock = Lock.read(path)
    assert (lock.revision, lock.version, set(lock.variants)) == (commit, 3, set(kernels))
    for variant, kernel in kernels.items():
        files = kernel.files()
        assert {name: entry.size for name, entry in lock.variants[variant].items()} == {
            name: len(data) for name, data in files.items()
        }
    assert commit in capsys.readouterr().out
    assert not home.cache.exists(), "a lock is drawn up from fresh downloads only"


def test_lock_refuses_what_contradicts_itself(
    hub: LoopbackHub, home: Home, tmp_path: Path, capsys: Output
) -> None:
    home.connect(hub.url)
    publish(hub, {VARIANT: TinyKernel(version=1), FOREIGN: TinyKernel(version=2)})
    arguments = ["lock", REPOSITORY, "--revision", "v1", "-o", str(tmp_path / "lock.json")]
    assert main(arguments) == 1
    assert "versions [1, 2]" in capsys.readouterr().err
    publish(hub, {VARIANT: TinyKernel(), FOREIGN: TinyKernel()})
    publish_files(hub, {f"build/{VARIANT}/ops.py": b"other"})
    assert main(arguments) == 1
    assert f"{VARIANT}/ops.py: metadata.json says" in capsys.readouterr().err
    publish_files(hub, {"README.md": b"hello"}, "v2", "flash-rwkv/empty")
    assert main(["lock", "flash-rwkv/empty", "--revision", "v2", *arguments[4:]]) == 1
    assert "no build variants" in capsys.readouterr().err
    assert not (tmp_path / "lock.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "nonsense"], "owner/name"),
        (["info", "--revision", "main"], "full commit sha"),
        (["info", "--backend", "tpu"], "tpu"),
        (["prefetch", "no/body", "--revision", "a" * 40], "refused"),
        (["lock", "no/body", "--revision", "v1"], "refused"),
    ],
)
def test_failures_are_one_line(
    pinned: Lock, home: Home, capsys: Output, arguments: list[str], message: str
) -> None:
    home.connect(DEAD)
    assert main(arguments) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("flash-rwkv: ")
    assert message in error
    assert "\n" not in error


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["lock", REPOSITORY], ["info", "a/b", "c"]])
def test_wrong_usage(arguments: list[str], capsys: Output) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: flash-rwkv" in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], ["info"], ["prefetch"], ["wheel"], ["lock"]])
def test_help(command: list[str], capsys: Output) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    assert caught.value.code == 0
    assert "usage: flash-rwkv" in capsys.readouterr().out


def test_runs_as_a_module(home: Home) -> None:
    assert home.run("-m", "flash_rwkv", "--version").stdout == f"flash-rwkv {__version__}\n"
