"""The script to start from: fine-tuning on a text file, of all weights or of the initial states alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from examples.models.finetune import main
from examples.models.state_tuning import StateTuned

PERIOD = 8
TEXT = "the them ü 中\r\n" * 300  # windows of PERIOD tokens are all the same


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def run(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(each) for each in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("version", ["7"], indirect=True)
def test_fine_tuning_lowers_the_loss_and_saves(repository: Path, kernel, text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tuned"
    options = ("--steps", 20, "--length", PERIOD, "--learning-rate", 3e-3)
    output = run(repository, text, folder, *options)
    first, last = output.split("loss ")[1].split(",")[0].split(" → ")
    assert float(last) < 0.8 * float(first)
    assert Image.open(folder / "loss.png").width > 500
    again = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert type(again).__name__ == "Rwkv7ForCausalLM"


def test_state_tuning_trains_nothing_but_the_states(
    tokens, model, repository: Path, text: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "tuned"
    options = ("--states-only", "--steps", 40, "--length", PERIOD, "--learning-rate", 0.3)
    output = run(repository, text, folder, *options)
    first, last = output.split("loss ")[1].split(",")[0].split(" → ")
    assert float(last) < 0.9 * float(first)
    assert {path.name for path in folder.iterdir()} == {"states.safetensors", "loss.png"}
    states = load_file(folder / "states.safetensors")
    assert sorted(states) == [f"blocks.{layer}.att.time_state" for layer in range(3)]
    assert all(state.abs().max() > 0 for state in states.values())

    tuned = StateTuned(model)
    ids = tokens(2, 5)
    torch.testing.assert_close(tuned(ids).logits, model(ids).logits)  # zeros are what it starts from anyway
    tuned.load(folder / "states.safetensors")
    assert not torch.allclose(tuned(ids).logits, model(ids).logits, atol=0.1)
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
    longer = tuned.generate(ids, **options)
    assert torch.equal(longer[:, 5], tuned(ids).logits[:, -1].argmax(-1))
    assert torch.equal(longer[:, 7], tuned(longer[:, :7]).logits[:, -1].argmax(-1))


def test_checkpointing_and_initial_states_exclude_each_other(tokens, model) -> None:
    tuned = StateTuned(model).train()
    model.activation_checkpointing_enable()
    with pytest.raises(ValueError, match="gradient checkpointing"):
        tuned(tokens(1, 3))


@pytest.mark.parametrize("version", ["6.0"], indirect=True)
def test_new_weights_and_a_text_that_is_too_short(
    repository: Path, kernel, text: Path, tmp_path: Path
) -> None:
    output = run(repository, text, tmp_path / "new", "--new", "--steps", 1, "--length", PERIOD)
    assert AutoConfig.from_pretrained(tmp_path / "new", trust_remote_code=True).num_hidden_layers == 6
    assert "2,400 tokens, 300 windows" in output
    text.write_text("the")
    short = CliRunner().invoke(main, [str(repository), str(text), str(tmp_path / "short"), "--new"])
    assert short.exit_code == 1
    assert "the text has 1 tokens, a window takes 256; see --length" in short.output
