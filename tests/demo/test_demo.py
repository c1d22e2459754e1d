"""The demo, whole but small: what it leaves behind, and that it fails when the loss does not fall."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--dim", "64", "--layers", "1", "--batch", "2", "--tokens", "32", "--steps", "25"]


def run_demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "examples.demo", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A successful run: the folder it wrote and what it printed."""
    out = tmp_path_factory.mktemp("demo")
    result = run_demo(*TINY, "--out", str(out))
    assert result.returncode == 0, result.stdout + result.stderr
    return out, result.stdout


def test_publishes_and_loads_one_commit(demo: tuple[Path, str]) -> None:
    _, printed = demo
    published = re.search(r"as commit ([0-9a-f]{40})", printed)
    loaded = re.search(r"commit on the Hub +│ ([0-9a-f]{40})", printed)
    assert published
    assert loaded
    assert loaded[1] == published[1]


def test_both_losses_fall(demo: tuple[Path, str]) -> None:
    _, printed = demo
    losses = re.findall(r"(\d\.\d\d) → (\d\.\d\d)", printed)
    assert len(losses) == 2
    for first, last in losses:
        assert float(first) == pytest.approx(8, abs=0.3)  # 256 bytes, as good as equally likely
        assert float(last) < 6


def test_leaves_a_picture_and_samples(demo: tuple[Path, str]) -> None:
    out, _ = demo
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    for operator in ("wkv6", "wkv7"):
        sample = (out / f"sample-{operator}.txt").read_bytes()
        assert sample.startswith(b"    def ")
        assert len(sample) == len(b"    def ") + 400


def test_same_seed_same_samples(demo: tuple[Path, str], tmp_path: Path) -> None:
    out, _ = demo
    assert run_demo(*TINY, "--out", str(tmp_path)).returncode == 0
    for name in ("sample-wkv6.txt", "sample-wkv7.txt"):
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes()


def test_fails_when_the_loss_does_not_fall(tmp_path: Path) -> None:
    result = run_demo(*TINY, "--learning-rate", "0", "--out", str(tmp_path))
    assert result.returncode == 1
    for title in ("RWKV-6", "RWKV-7"):
        assert f"FAILED: {title}: the validation loss did not fall" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dim", "96"], "--dim must be a multiple of the head size, 64, got 96"),
        (["--steps", "0"], "--steps must be at least 1, got 0"),
    ],
)
def test_refuses_settings_that_cannot_work(arguments: list[str], message: str) -> None:
    result = run_demo(*arguments)
    assert result.returncode == 2
    assert message in result.stderr
