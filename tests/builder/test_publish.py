"""Publishing to a Hub that real clients load from."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import Result
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from builder.cli import main
from builder.config import open_repository
from builder.errors import BuilderError
from builder.release import release_commit
from tests.builder.tiny_kernel import CPU_VARIANT, CUDA_VARIANT, PLAIN_PY, PLAIN_VARIANT, TinyKernel
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


def test_variants_go_to_the_version_and_the_card_to_main(locked_build: TinyKernel, hub: LoopbackHub) -> None:
    output = publish(locked_build, hub, "--repo", REPO, "--version", "1")
    sha = branches(hub)["v1"]
    assert f"commit {sha}" in output
    here = {
        p.relative_to(locked_build.root).as_posix() for p in locked_build.variant().rglob("*") if p.is_file()
    }
    assert {name for name in files(hub, "v1") if name.startswith("build/")} == {
        name for name in here if "__pycache__" not in name
    }
    assert "README.md" in files(hub, "main")
    assert not any(name.startswith("build/") for name in files(hub, "main"))


def test_the_printed_line_loads_the_kernel(
    locked_build: TinyKernel, hub: LoopbackHub, tmp_path: Path
) -> None:
    output = publish(locked_build, hub)
    (line,) = (line for line in output.splitlines() if line.startswith("get_kernel("))
    code = f"import torch; from kernels import get_kernel; print({line}.scale(torch.ones(3)).tolist())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "[2.0, 2.0, 2.0]", done.stderr


def test_publishing_again_replaces_what_was_there(release: TinyKernel, hub: LoopbackHub) -> None:
    publish(release, hub)
    first = branches(hub)["v1"]
    old = release.module().name
    release.replace("kernel_src/scale.h", "kFactor = 2.0f", "kFactor = 3.0f")
    release.commit()
    release.build("--locked")
    publish(release, hub)
    assert branches(hub)["v1"] != first
    assert f"build/{CPU_VARIANT}/{release.module().name}" in files(hub, "v1")
    assert f"build/{CPU_VARIANT}/{old}" not in files(hub, "v1")
    assert f"build/{CPU_VARIANT}/{old}" in files(hub, first), "a pinned commit keeps what it had"


def test_another_version_is_another_branch(release: TinyKernel, hub: LoopbackHub) -> None:
    publish(release, hub)
    first = branches(hub)["v1"]
    release.replace("build.toml", "version = 1", "version = 2")
    release.commit()
    release.build("--locked")
    publish(release, hub, "--version", "2")
    assert branches(hub).keys() == {"main", "v1", "v2"}
    assert branches(hub)["v1"] == first


def test_dry_run_sends_nothing(locked_build: TinyKernel, hub: LoopbackHub) -> None:
    output = publish(locked_build, hub, "--dry-run")
    assert f"build/{CPU_VARIANT}/metadata.json" in output
    assert all(request.method in ("GET", "HEAD") for request in hub.requests)
    with pytest.raises(RepositoryNotFoundError):
        branches(hub)


def refused(kernel: TinyKernel, hub: LoopbackHub, *arguments: str) -> str:
    """Publish, which must fail before anything reaches the Hub."""
    result = kernel.run("publish", "--endpoint", hub.url, *arguments)
    assert result.exit_code == 1
    assert hub.requests == []
    return result.output


def test_dirty_tree_is_refused(release: TinyKernel, hub: LoopbackHub) -> None:
    release.append("kernel_src/scale.cpp", "// not committed\n")
    assert "differ from the last commit" in refused(release, hub)
    output = publish(release, hub, "--trial")
    assert "commit" in output
    assert "tag" not in output


def test_variant_of_a_dirty_tree_is_refused(release: TinyKernel, hub: LoopbackHub) -> None:
    release.append("kernel_src/scale.cpp", "// not committed\n")
    release.build("--locked")
    release.git("checkout", "--quiet", "kernel_src")
    assert "was built from sources that no commit holds" in refused(release, hub)


def test_stale_variant_is_refused(release: TinyKernel, hub: LoopbackHub) -> None:
    release.append("kernel_src/scale.cpp", "// newer\n")
    release.commit()
    assert "kernel_src/scale.cpp has changed since" in refused(release, hub)


def test_commit_outside_the_inputs_does_not_make_a_variant_stale(
    release: TinyKernel, hub: LoopbackHub
) -> None:
    release.write("docs/note.md", "said later\n")
    release.commit()
    publish(release, hub)


def test_other_version_is_refused(release: TinyKernel, hub: LoopbackHub) -> None:
    assert "is of version 1, but --version is 2" in refused(release, hub, "--version", "2")


def test_findings_are_refused(release: TinyKernel, hub: LoopbackHub) -> None:
    (release.variant() / "_ops.py").unlink()
    assert "_ops.py is missing" in refused(release, hub, "--trial")


def test_missing_card_is_refused(release: TinyKernel, hub: LoopbackHub) -> None:
    (release.root / "CARD.md").unlink()
    assert "becomes the README" in refused(release, hub)


def test_variant_without_the_lock_is_refused(release: TinyKernel, hub: LoopbackHub) -> None:
    release.build()
    assert f"build --locked --variant {CPU_VARIANT}" in refused(release, hub)


def test_variant_of_another_lock_is_refused(release: TinyKernel, hub: LoopbackHub) -> None:
    path = release.root / "builder" / "toolchain.lock"
    path.write_text(path.read_text().replace('"python": "', '"python": "9'))
    assert "differ from the last commit" in refused(release, hub)
    release.commit()
    assert "builder/toolchain.lock has changed since" in refused(release, hub)


def test_partial_variant_is_refused(release: TinyKernel, hub: LoopbackHub) -> None:
    """As if it were compiled for one of two: no toolkit is needed to see that."""
    path = release.variant() / "metadata.json"
    folder = path.parent.rename(path.parent.with_name(CUDA_VARIANT))
    metadata = json.loads((folder / "metadata.json").read_text())
    metadata["backend"] = {"type": "cuda", "archs": ["8.0"]}
    (folder / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(BuilderError, match=r"is not compiled for 9\.0\+PTX, which build\.toml lists"):
        release_commit(open_repository(release.root), [folder])


def test_variants_of_several_commits_are_refused(release: TinyKernel, hub: LoopbackHub) -> None:
    release.write("torch-ext/tiny_kernel/plain/__init__.py", PLAIN_PY)
    release.commit()
    release.build("--locked")
    release.git("commit", "--quiet", "--allow-empty", "-m", "Say something else")
    release.build("--locked", "--variant", PLAIN_VARIANT)
    assert "The variants are of several commits" in refused(release, hub)


def test_a_release_is_tagged_there_and_here(release: TinyKernel, hub: LoopbackHub) -> None:
    for _ in range(2):
        output = publish(release, hub)
    commit = release.git("rev-parse", "HEAD")
    tag = f"v1-{commit[:7]}"
    assert f"git push origin {tag}" in output
    assert release.git("rev-parse", tag) == commit
    refs = HfApi(endpoint=hub.url).list_repo_refs(REPO, repo_type="kernel")
    assert [ref.name for ref in refs.tags] == [tag]


def changed_api(release: TinyKernel, hub: LoopbackHub, old: str, new: str) -> Result:
    """Publish, change the kernel's Python, and publish that."""
    publish(release, hub)
    release.replace("torch-ext/tiny_kernel/__init__.py", old, new)
    release.commit()
    release.build("--locked")
    return release.run("publish", "--endpoint", hub.url, "--token", "hf_test")


@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["sent", "dry run"])
def test_a_broken_api_needs_another_version(
    release: TinyKernel, hub: LoopbackHub, dry: tuple[str, ...]
) -> None:
    result = changed_api(release, hub, "def scale(x)", "def scale(tensor)")
    before = branches(hub)
    result = release.run("publish", "--endpoint", hub.url, "--token", "hf_test", *dry)
    assert result.exit_code == 1
    assert "scale: x is gone" in result.output
    assert "Set another version" in result.output
    assert branches(hub) == before
    release.replace("build.toml", "version = 1", "version = 2")
    release.commit()
    release.build("--locked")
    publish(release, hub)


def test_an_api_that_grew_needs_none(release: TinyKernel, hub: LoopbackHub) -> None:
    result = changed_api(release, hub, "def scale(x)", "def scale(x, *, by=2)")
    assert result.exit_code == 0, result.output


def test_a_variant_that_would_be_gone(release: TinyKernel, hub: LoopbackHub) -> None:
    release.write("torch-ext/tiny_kernel/plain/__init__.py", PLAIN_PY)
    release.commit()
    release.build("--locked")
    publish(release, hub)
    shutil.rmtree(release.variant(PLAIN_VARIANT))
    result = release.run("publish", "--endpoint", hub.url, "--token", "hf_test")
    assert result.exit_code == 1
    assert f"{REPO} v1 has {PLAIN_VARIANT}, and build/ does not" in result.output
    assert f"build/{PLAIN_VARIANT}/_ops.py" in files(hub, "v1")


def test_bad_repository_id(release: TinyKernel, hub: LoopbackHub) -> None:
    assert "no repository id of the form OWNER/NAME" in refused(release, hub, "--repo", "a/b/c")


def test_hub_that_does_not_answer(release: TinyKernel, tmp_path: Path) -> None:
    with LoopbackHub(tmp_path / "hub") as hub:
        url = hub.url
    result = release.run("publish", "--endpoint", url)
    assert result.exit_code == 1
    assert f"{url} cannot be reached" in result.output


@pytest.mark.parametrize(
    ("status", "message"), [(403, "Log in with `hf auth login`"), (409, "refused the upload")]
)
def test_hub_that_refuses(release: TinyKernel, hub: LoopbackHub, status: int, message: str) -> None:
    hub.faults.status("/api/kernels/tiny/kernel/commit/v1", status)
    result = release.run("publish", "--endpoint", hub.url, "--token", "hf_test")
    assert result.exit_code == 1
    assert message in result.output
    assert str(status) in result.output


def test_the_group_is_what_the_module_runs() -> None:
    assert set(main.commands) == {"list", "build", "lock", "check", "reproduce", "verify", "sign", "publish"}
