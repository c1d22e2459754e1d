"""Publishing to a Hub that real clients load from."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from builder.cli import main
from tests.builder.tiny_kernel import CPU_VARIANT, TinyKernel
from tests.loopback_hub import LoopbackHub

REPO = "tiny/kernel"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LoopbackHub]:
    with LoopbackHub(tmp_path / "hub") as hub:
        yield hub


def publish(kernel: TinyKernel, hub: LoopbackHub, *arguments: str) -> str:
    """Publish, which must succeed; returns what was printed."""
    result = kernel.run("publish", "--endpoint", hub.url, "--token", "hf_test", *arguments)
    assert result.exit_code == 0, result.output
    return result.output


def branches(hub: LoopbackHub) -> dict[str, str]:
    refs = HfApi(endpoint=hub.url).list_repo_refs(REPO, repo_type="kernel")
    return {branch.name: branch.target_commit for branch in refs.branches}


def files(hub: LoopbackHub, revision: str) -> set[str]:
    return set(HfApi(endpoint=hub.url).list_repo_files(REPO, revision=revision, repo_type="kernel"))


def test_variants_go_to_the_version_and_the_card_to_main(compiled: TinyKernel, hub: LoopbackHub) -> None:
    output = publish(compiled, hub, "--repo", REPO, "--version", "1")
    sha = branches(hub)["v1"]
    assert f"commit {sha}" in output
    here = {p.relative_to(compiled.root).as_posix() for p in compiled.variant().rglob("*") if p.is_file()}
    assert {name for name in files(hub, "v1") if name.startswith("build/")} == {
        name for name in here if "__pycache__" not in name
    }
    assert "README.md" in files(hub, "main")
    assert not any(name.startswith("build/") for name in files(hub, "main"))


def test_the_printed_line_loads_the_kernel(compiled: TinyKernel, hub: LoopbackHub, tmp_path: Path) -> None:
    output = publish(compiled, hub)
    (line,) = (line for line in output.splitlines() if line.startswith("get_kernel("))
    code = f"import torch; from kernels import get_kernel; print({line}.scale(torch.ones(3)).tolist())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "[2.0, 2.0, 2.0]", done.stderr


def test_publishing_again_replaces_what_was_there(built: TinyKernel, hub: LoopbackHub) -> None:
    publish(built, hub)
    first = branches(hub)["v1"]
    old = built.module().name
    built.replace("kernel_src/scale.h", "kFactor = 2.0f", "kFactor = 3.0f")
    built.commit()
    built.build()
    publish(built, hub)
    assert branches(hub)["v1"] != first
    assert f"build/{CPU_VARIANT}/{built.module().name}" in files(hub, "v1")
    assert f"build/{CPU_VARIANT}/{old}" not in files(hub, "v1")
    assert f"build/{CPU_VARIANT}/{old}" in files(hub, first), "a pinned commit keeps what it had"


def test_another_version_is_another_branch(built: TinyKernel, hub: LoopbackHub) -> None:
    publish(built, hub)
    first = branches(hub)["v1"]
    built.replace("build.toml", "version = 1", "version = 2")
    built.commit()
    built.build()
    publish(built, hub, "--version", "2")
    assert branches(hub).keys() == {"main", "v1", "v2"}
    assert branches(hub)["v1"] == first


def test_dry_run_sends_nothing(compiled: TinyKernel, hub: LoopbackHub) -> None:
    output = publish(compiled, hub, "--dry-run")
    assert f"build/{CPU_VARIANT}/metadata.json" in output
    assert hub.requests == []


def refused(kernel: TinyKernel, hub: LoopbackHub, *arguments: str) -> str:
    """Publish, which must fail before anything reaches the Hub."""
    result = kernel.run("publish", "--endpoint", hub.url, *arguments)
    assert result.exit_code == 1
    assert hub.requests == []
    return result.output


def test_dirty_tree_is_refused(built: TinyKernel, hub: LoopbackHub) -> None:
    built.append("kernel_src/scale.cpp", "// not committed\n")
    assert "differ from the last commit" in refused(built, hub)
    assert "commit" in publish(built, hub, "--allow-dirty")


def test_variant_of_a_dirty_tree_is_refused(built: TinyKernel, hub: LoopbackHub) -> None:
    built.append("kernel_src/scale.cpp", "// not committed\n")
    built.build()
    built.git("checkout", "--quiet", "kernel_src")
    assert "was built from sources that no commit holds" in refused(built, hub)


def test_stale_variant_is_refused(built: TinyKernel, hub: LoopbackHub) -> None:
    built.append("kernel_src/scale.cpp", "// newer\n")
    built.commit()
    assert "kernel_src/scale.cpp has changed since" in refused(built, hub)


def test_commit_outside_the_inputs_does_not_make_a_variant_stale(built: TinyKernel, hub: LoopbackHub) -> None:
    built.write("docs/note.md", "said later\n")
    built.commit()
    publish(built, hub)


def test_other_version_is_refused(built: TinyKernel, hub: LoopbackHub) -> None:
    assert "is of version 1, but --version is 2" in refused(built, hub, "--version", "2")


def test_findings_are_refused(built: TinyKernel, hub: LoopbackHub) -> None:
    (built.variant() / "_ops.py").unlink()
    assert "_ops.py is missing" in refused(built, hub, "--allow-dirty")


def test_missing_card_is_refused(built: TinyKernel, hub: LoopbackHub) -> None:
    (built.root / "CARD.md").unlink()
    assert "becomes the README" in refused(built, hub)


def test_bad_repository_id(built: TinyKernel, hub: LoopbackHub) -> None:
    assert "no repository id of the form OWNER/NAME" in refused(built, hub, "--repo", "a/b/c")


def test_hub_that_does_not_answer(built: TinyKernel, tmp_path: Path) -> None:
    with LoopbackHub(tmp_path / "hub") as hub:
        url = hub.url
    result = built.run("publish", "--endpoint", url)
    assert result.exit_code == 1
    assert f"{url} cannot be reached" in result.output


@pytest.mark.parametrize(
    ("status", "message"), [(403, "Log in with `hf auth login`"), (409, "refused the upload")]
)
def test_hub_that_refuses(built: TinyKernel, hub: LoopbackHub, status: int, message: str) -> None:
    hub.faults.status("/api/kernels/tiny/kernel/commit/v1", status)
    result = built.run("publish", "--endpoint", hub.url, "--token", "hf_test")
    assert result.exit_code == 1
    assert message in result.output
    assert str(status) in result.output


def test_the_group_is_what_the_module_runs() -> None:
    assert set(main.commands) == {"list", "build", "lock", "check", "reproduce", "verify", "publish"}
