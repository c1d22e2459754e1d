"""Conversion: every name and shape is checked, and other versions are refused."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from examples.models.convert import convert, main
from tests.models.checkpoints import SIZES, random_checkpoint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("blocks.1.att.w2"), "blocks.1.att.w2 is missing"),
        (lambda t: t.update({"blocks.1.att.extra": torch.ones(1)}), "blocks.1.att.extra is unknown"),
        (lambda t: t.update({"blocks.2.ffn.x_k": torch.ones(95)}), r"x_k must be \[96\], got \[95\]"),
        (lambda t: t.update({"blocks.0.ffn.s_emb.weight": torch.ones(1)}), "7, with deep embeddings"),
        (lambda t: t.pop("blocks.0.att.r_k"), r"only checkpoints of RWKV 5\.2, 6\.0, 7 .*version 5\.0"),
        (lambda t: t.pop("blocks.0.att.w1"), "not a whole checkpoint of RWKV 7: 'blocks.0.att.w1'"),
    ],
)
def test_what_does_not_fit_is_refused(change, message: str, tmp_path: Path) -> None:
    tensors = random_checkpoint(SIZES["7"])
    change(tensors)
    torch.save(tensors, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "bad.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("version", "decay"), [("5.1", torch.ones(3)), ("5.1", torch.ones(3, 1)), ("4", None)]
)
def test_other_versions_are_named(version: str, decay: torch.Tensor | None, tmp_path: Path) -> None:
    tensors = {"blocks.0.att.time_first": torch.ones(96)}
    if decay is not None:
        tensors = {**random_checkpoint(SIZES["5.2"]), "blocks.0.att.time_decay": decay}
    torch.save(tensors, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=f"this one is of version {version}$"):
        convert(tmp_path / "other.pth", tmp_path / "out")


def test_an_unknown_version_is_refused_with_a_message(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(1)}, tmp_path / "other.pth")
    result = CliRunner().invoke(main, [str(tmp_path / "other.pth"), str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "version unknown" in result.output


def lock(path: Path, **changes: object) -> Path:
    """A lock as `flash-rwkv lock` writes it."""
    files = {"cpu": {"ops.py": {"sha256": "12" * 32, "size": 3}}}
    content = {"repository": "flash-rwkv/flash-rwkv", "revision": "ab" * 20, "variants": files, **changes}
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"revision": "main"}, "must name a full commit sha, got 'main'"),
        ({"revision": None}, "must name a full commit sha, got None"),
        ({"repository": "evil/kernel"}, "is of evil/kernel"),
    ],
)
def test_only_a_commit_of_the_one_repository_can_be_pinned(
    checkpoint: Path, tmp_path: Path, changes: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        convert(checkpoint, tmp_path / "out", kernel_lock=lock(tmp_path / "lock.json", **changes))
    assert not (tmp_path / "out").exists()


def test_the_pin_is_code(checkpoint: Path, tmp_path: Path) -> None:
    convert(checkpoint, tmp_path / "out", kernel_lock=lock(tmp_path / "lock.json"))
    pin = runpy.run_path(str(tmp_path / "out" / "pin_rwkv.py"))
    assert pin["REPOSITORY"] == "flash-rwkv/flash-rwkv"
    assert pin["REVISION"] == "ab" * 20
    assert pin["FILES"] == {"cpu": {"ops.py": "12" * 32}}


def test_shards_hold_the_same_weights(checkpoint: Path, repository: Path, tmp_path: Path) -> None:
    convert(checkpoint, tmp_path, dtype="float32", shard_bytes=300_000)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 2
    assert (tmp_path / "model.safetensors.index.json").exists()
    parts = [load_file(file) for file in files]
    whole = load_file(repository / "model.safetensors")
    assert sum(map(len, parts)) == len(whole)
    for part in parts:
        assert all(torch.equal(tensor, whole[name]) for name, tensor in part.items())


def test_the_unread_tensors_of_the_first_layer_are_left_out(tmp_path: Path) -> None:
    tensors = random_checkpoint(SIZES["7"])
    for part in range(3):
        tensors[f"blocks.0.att.v{part}"] = tensors[f"blocks.1.att.v{part}"].clone()
    torch.save(tensors, tmp_path / "official.pth")
    convert(tmp_path / "official.pth", tmp_path / "out")
    assert not [
        name for name in load_file(tmp_path / "out" / "model.safetensors") if "blocks.0.att.v0" in name
    ]
