"""The logits of a converted model are those of the PyPI package `rwkv` for the same weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from examples.models import layout
from examples.models.convert import convert
from tests.models.checkpoints import SIZES, random_checkpoint

# In a process of its own: the package reads its settings when it is imported, and changes Torch's.
OFFICIAL = """
import sys, torch
from rwkv.model import RWKV
model = RWKV(model=sys.argv[1].removesuffix(".pth"), strategy="cpu fp32")
tokens = torch.load(sys.argv[2]).tolist()
whole, state = model.forward(tokens, None, full_output=True)
singles, state = [], None
for token in tokens:
    logits, state = model.forward([token], state)
    singles.append(logits.clone())
torch.save((whole, torch.stack(singles)), sys.argv[3])
"""
OTHER = dict(vocab_size=70, hidden_size=128, num_hidden_layers=2, head_size=64, intermediate_size=512)
ODD = dict(vocab_size=51, hidden_size=40, num_hidden_layers=4, head_size=8, intermediate_size=72)
CASES = [
    *SIZES.values(),
    layout.Rwkv5Sizes(**OTHER),
    layout.Rwkv6Sizes(**OTHER, mix_rank=24, decay_rank=8),
    layout.Rwkv7Sizes(**OTHER, decay_rank=24, rate_rank=8, value_rank=8, gate_rank=16),
    layout.Rwkv5Sizes(**ODD),
    layout.Rwkv6Sizes(**ODD, mix_rank=3, decay_rank=5),
    layout.Rwkv7Sizes(**ODD, decay_rank=5, rate_rank=3, value_rank=7, gate_rank=9),
]


@pytest.mark.parametrize("size", CASES, ids=lambda size: f"{size.version}, heads of {size.head_size}")
@torch.no_grad()
def test_logits_agree_with_the_package_rwkv(
    size: layout.Sizes, environment, kernel, device: torch.device, tmp_path: Path
) -> None:
    tensors = random_checkpoint(size, seed=size.hidden_size)
    torch.save(tensors, tmp_path / "official.pth")
    tokens = torch.randint(size.vocab_size, (37,))
    torch.save(tokens, tmp_path / "tokens.pt")
    command = [
        sys.executable,
        "-c",
        OFFICIAL,
        *(str(tmp_path / name) for name in ("official.pth", "tokens.pt", "y")),
    ]
    version7 = "1" if size.version == "7" else "0"
    settings = {"RWKV_V7_ON": version7, "RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    whole, singles = torch.load(tmp_path / "y")
    assert whole.std() > 0.5

    folder = tmp_path / f"model{size.version[0]}"
    convert(tmp_path / "official.pth", folder, dtype="float32")
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).to(device)
    tokens = tokens.to(device)
    prefill = model(tokens[None]).logits[0]
    cache, steps = None, []
    for token in tokens:
        output = model(token[None, None], past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        steps.append(output.logits[0, 0])
    for ours in (prefill, torch.stack(steps)):
        for theirs in (whole, singles):
            torch.testing.assert_close(ours.cpu(), theirs, rtol=0, atol=1e-4)
