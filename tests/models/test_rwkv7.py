"""The RWKV-7 model: the same however tokens come in, and trainable."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.models.checkpoints import SIZES


def tokens(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(1, SIZES.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_left_padding_changes_nothing(model: PreTrainedModel) -> None:
    ids, pads = tokens(2, 9), 5
    padded = torch.cat([torch.full((2, pads), 7), ids], 1)
    mask = torch.cat([torch.zeros(2, pads), torch.ones(2, 9)], 1).long()
    plain, left = model(ids, use_cache=True), model(padded, attention_mask=mask, use_cache=True)
    torch.testing.assert_close(left.logits[:, pads:], plain.logits, rtol=0, atol=1e-5)
    for one, other in zip(plain.past_key_values.wkv, left.past_key_values.wkv, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@torch.no_grad()
def test_only_padding_leaves_the_states_bit_for_bit(model: PreTrainedModel) -> None:
    cache = model(tokens(2, 6), use_cache=True).past_key_values
    names = ("wkv", "attention_token", "channel_token")
    before = {name: [each.clone() for each in getattr(cache, name)] for name in names}
    for count in (4, 1):
        model(tokens(2, count), attention_mask=torch.zeros(2, count), past_key_values=cache)
    for name in names:
        assert all(map(torch.equal, before[name], getattr(cache, name)))


@torch.no_grad()
def test_padding_between_turns_is_passed_over(model: PreTrainedModel) -> None:
    ids = tokens(1, 8)
    mask = torch.tensor([[0, 1, 1, 1, 0, 0, 1, 1]])
    whole = model(ids, attention_mask=mask).logits[mask.bool()]
    torch.testing.assert_close(whole, model(ids[mask.bool()][None]).logits[0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_generation_with_the_cache_is_generation_without(model: PreTrainedModel) -> None:
    ids = tokens(3, 6)
    mask = torch.ones_like(ids)
    mask[0, :2] = mask[1, :5] = 0
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    cached = model.generate(ids, attention_mask=mask, use_cache=True, **options)
    assert torch.equal(cached, model.generate(ids, attention_mask=mask, use_cache=False, **options))
    for row in range(3):
        alone = model.generate(ids[row][mask[row].bool()][None], **options)
        assert torch.equal(alone[0, -12:], cached[row, -12:])


@torch.no_grad()
def test_beams_reorder_the_states(model: PreTrainedModel) -> None:
    options = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False, "eos_token_id": None}
    ids = tokens(2, 4)
    assert torch.equal(
        model.generate(ids, use_cache=True, **options), model.generate(ids, use_cache=False, **options)
    )


@torch.no_grad()
def test_decoding_goes_through_the_step(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    module = __import__(type(model).__module__, fromlist=["operators"])
    found, calls = module.operators(), []
    assert found.source != "PyTorch"
    counted = found._replace(wkv7_step_=lambda *a, **k: calls.append(a) or found.wkv7_step_(*a, **k))
    monkeypatch.setattr(module, "operators", lambda: counted)
    model.generate(tokens(1, 4), max_new_tokens=3, do_sample=False, eos_token_id=None)
    assert len(calls) == 2 * SIZES.num_hidden_layers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_lowers_the_loss(repository: Path, environment, kernel, dtype: torch.dtype) -> None:
    config = AutoConfig.from_pretrained(repository, trust_remote_code=True)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=True, dtype=dtype).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    ids, losses = tokens(2, 17), []
    for _ in range(12):
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert 5 < losses[0] < 6.5  # log(300) = 5.7: the initial weights guess
    assert losses[-1] < 0.7 * losses[0]


def test_gradient_checkpointing_gives_the_same_gradients(model: PreTrainedModel) -> None:
    ids = tokens(2, 11)
    gradients = []
    for checkpointing in (False, True):
        model.train().zero_grad()
        if checkpointing:
            model.activation_checkpointing_enable()
            assert model.model.blocks[0].gradient_checkpointing
        model(ids, labels=ids).loss.backward()
        gradients.append({name: each.grad.clone() for name, each in model.named_parameters()})
    assert all(each.abs().sum() > 0 for each in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(
            gradients[1][name], gradient, msg=lambda text, name=name: f"{name}: {text}"
        )


@torch.no_grad()
def test_saved_and_loaded_the_logits_are_the_same(model: PreTrainedModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "kernel_rwkv7.py").exists()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", trust_remote_code=True).eval()
    assert torch.equal(again(tokens(2, 5)).logits, model(tokens(2, 5)).logits)
