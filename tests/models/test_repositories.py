"""The folders in examples/models are whole repositories, and share code without copies of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from examples.models.convert import MODELS, copy_code
from tests.loader.publishing import client
from tests.loopback_hub import LoopbackHub

SIZES = dict(vocab_size=20, hidden_size=32, head_size=16, num_hidden_layers=2)


def from_folder(version: str, **sizes: int):
    config = AutoConfig.from_pretrained(MODELS / f"rwkv{version[0]}", trust_remote_code=True, **sizes)
    return AutoModelForCausalLM.from_config(config, trust_remote_code=True)


def test_the_folder_itself_loads(version: str, environment, kernel) -> None:
    model = from_folder(version, **SIZES)
    assert model(torch.arange(20)[None]).logits.shape == (1, 20, 20)
    assert model.model.blocks[1].ffn.key.out_features == (128 if version == "7" else 96)


def test_what_is_shared_stands_in_one_place(version: str) -> None:
    shared = {path.name for path in (MODELS / "common").iterdir() if path.is_file()}
    links = [path for path in (MODELS / f"rwkv{version[0]}").iterdir() if path.is_symlink()]
    assert {path.name for path in (MODELS / f"rwkv{version[0]}").iterdir()} & shared <= {
        path.name for path in links
    }
    assert all(path.readlink() == Path("../common") / path.name and path.exists() for path in links)


def test_a_copy_has_files_for_links(version: str, tmp_path: Path) -> None:
    copy_code(f"rwkv{version[0]}", tmp_path)
    assert (tmp_path / "pin_rwkv.py").read_text() == (MODELS / "common" / "pin_rwkv.py").read_text()
    assert not [path for path in tmp_path.iterdir() if path.is_symlink()]


def test_an_upload_follows_the_links(version: str, hub: LoopbackHub) -> None:
    api, folder = client(hub), MODELS / f"rwkv{version[0]}"
    api.create_repo("someone/rwkv")
    commit = api.upload_folder(repo_id="someone/rwkv", folder_path=folder, ignore_patterns="__pycache__/*")
    _, content = hub.repository("someone/rwkv", "models").read(commit.oid, "cache_rwkv.py")
    assert content == (MODELS / "common" / "cache_rwkv.py").read_bytes()


def test_sizes_that_do_not_fit_are_named(version: str, environment, kernel) -> None:
    with pytest.raises(ValueError, match="hidden_size must be a multiple of head_size 24, got 32"):
        from_folder(version, **{**SIZES, "head_size": 24})
