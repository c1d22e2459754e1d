"""The models: the same however tokens come in, and trainable."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.models.checkpoints import SMALL
from tests.models.conftest import Tokens


def code_of(model: PreTrainedModel, name: str) -> ModuleType:
    """A file of the repository that the model's code came from."""
    return sys.modules[f"{type(model).__module__.rpartition('.')[0]}.{name}"]


@torch.no_grad()
def test_left_padding_changes_nothing(tokens: Tokens, model: PreTrainedModel) -> None:
    ids, pads = tokens(2, 9), 5
    padded = torch.cat([torch.full_like(ids[:, :pads], 7), ids], 1)
    mask = torch.cat([torch.zeros_like(ids[:, :pads]), torch.ones_like(ids)], 1)
    plain, left = model(ids, use_cache=True), model(padded, attention_mask=mask, use_cache=True)
    torch.testing.assert_close(left.logits[:, pads:], plain.logits, rtol=0, atol=1e-5)
    for one, other in zip(plain.past_key_values.wkv, left.past_key_values.wkv, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@torch.no_grad()
def test_only_padding_leaves_the_states_bit_for_bit(tokens: Tokens, model: PreTrainedModel) -> None:
    cache = model(tokens(2, 6), use_cache=True).past_key_values
    names = ("wkv", "attention_token", "channel_token")
    before = {name: [each.clone() for each in getattr(cache, name)] for name in names}
    for count in (4, 1):
        ids = tokens(2, count)
        model(ids, attention_mask=torch.zeros_like(ids), past_key_values=cache)
    for name in names:
        assert all(map(torch.equal, before[name], getattr(cache, name)))


@torch.no_grad()
def test_padding_between_turns_is_passed_over(tokens: Tokens, model: PreTrainedModel) -> None:
    ids = tokens(1, 8)
    mask = ids.new_tensor([[0, 1, 1, 1, 0, 0, 1, 1]])
    whole = model(ids, attention_mask=mask).logits[mask.bool()]
    torch.testing.assert_close(whole, model(ids[mask.bool()][None]).logits[0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_generation_with_the_cache_is_generation_without(tokens: Tokens, model: PreTrainedModel) -> None:
    ids = tokens(3, 6)
    mask = torch.ones_like(ids)
    mask[0, :2] = mask[1, :5] = 0
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    cached = model.generate(ids, attention_mask=mask, use_cache=True, **options)
    assert torch.equal(cached, model.generate(ids, attention_mask=mask, use_cache=False, **options))
    for row in range(3):
        alone = model.generate(ids[row][mask[row].bool()][None], **options)
        assert torch.equal(alone[0, -12:], cached[row, -12:])


@pytest.mark.parametrize("gradients", [False, True])
def test_the_cache_is_of_constant_size(tokens: Tokens, model: PreTrainedModel, gradients: bool) -> None:
    with torch.set_grad_enabled(gradients):
        cache = model(tokens(2, 50), use_cache=True).past_key_values
        kept = [*cache.wkv, *cache.attention_token, *cache.channel_token]
        assert all(each.untyped_storage().nbytes() == each.numel() * each.element_size() for each in kept)
        model(tokens(2, 1), past_key_values=cache)
        again = [*cache.wkv, *cache.attention_token, *cache.channel_token]
        assert gradients or all(one is other for one, other in zip(kept, again, strict=True))


@torch.no_grad()
def test_without_gradients_the_cache_stays_where_it_is(tokens: Tokens, model: PreTrainedModel) -> None:
    """A CUDA graph reads and writes addresses: prompts, single tokens and a new start must all find them."""
    cache = model.new_cache(2)
    kept = [*cache.wkv, *cache.attention_token, *cache.channel_token]
    addresses = [each.data_ptr() for each in kept]
    logits = []
    for _ in range(2):
        for count in (5, 1, 3):
            output = model(tokens(2, count), past_key_values=cache, use_cache=True)
        logits.append(output.logits)
        again = [*cache.wkv, *cache.attention_token, *cache.channel_token]
        assert [each.data_ptr() for each in again] == addresses
        assert all(each.abs().sum() > 0 for each in again)
        cache.reset()
    assert torch.equal(*logits)


@torch.no_grad()
def test_a_second_turn_goes_on_from_the_cache(tokens: Tokens, model: PreTrainedModel) -> None:
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
    first = model.generate(tokens(2, 5), return_dict_in_generate=True, **options)
    assert first.past_key_values.get_seq_length() == 7  # the last token has not been read yet
    longer = torch.cat([first.sequences, tokens(2, 4, seed=2)], 1)
    second = model.generate(longer, past_key_values=first.past_key_values, **options)
    assert torch.equal(second, model.generate(longer, **options))


@torch.no_grad()
def test_beams_reorder_the_states(tokens: Tokens, model: PreTrainedModel) -> None:
    options = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False, "eos_token_id": None}
    ids = tokens(2, 4)
    assert torch.equal(
        model.generate(ids, use_cache=True, **options), model.generate(ids, use_cache=False, **options)
    )


@torch.no_grad()
def test_decoding_goes_through_the_step(
    tokens: Tokens, model: PreTrainedModel, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = code_of(model, "kernel_rwkv")
    found, calls = module.operators(), []
    assert found.__name__.startswith("_flash_rwkv")

    def step(name: str):
        return lambda *a, **k: calls.append(name) or getattr(found, name)(*a, **k)

    names = ["wkv5_step_", "wkv6_step_", "wkv7_step_"]
    whole = {name: getattr(found, name) for name in ("wkv5", "wkv6", "wkv7")}
    steps = SimpleNamespace(**whole, **{name: step(name) for name in names})
    monkeypatch.setattr(module, "operators", lambda: steps)
    model.generate(tokens(1, 4), max_new_tokens=3, do_sample=False, eos_token_id=None)
    assert calls == [f"wkv{version[0]}_step_"] * (2 * SMALL["num_hidden_layers"])


@pytest.mark.parametrize(
    ("dtype", "cast"),
    [
        (torch.float32, None),
        (torch.bfloat16, None),
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float16),
    ],
    ids=["float32", "bfloat16", "autocast to bfloat16", "autocast to float16"],
)
def test_training_lowers_the_loss(
    tokens: Tokens, repository: Path, environment, kernel, device: torch.device, dtype: torch.dtype, cast
) -> None:
    config = AutoConfig.from_pretrained(repository, trust_remote_code=True)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=True, dtype=dtype).to(device)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=3e-3)
    ids, losses = tokens(2, 17), []
    for _ in range(12):
        with torch.autocast(model.device.type, cast, enabled=cast is not None):
            loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert 5 < losses[0] < 6.5  # log(300) = 5.7: the initial weights guess
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_low_precision_costs_no_more_than_in_plain_pytorch(
    tokens: Tokens,
    model: PreTrainedModel,
    repository: Path,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ids, exact = tokens(2, 40), model(tokens(2, 40)).logits
    low = AutoModelForCausalLM.from_pretrained(repository, trust_remote_code=True, dtype=dtype)
    low.eval().to(model.device)
    error = (low(ids).logits.float() - exact).abs().mean()
    kernel_file, plain_file = code_of(model, "kernel_rwkv"), code_of(model, "plain_rwkv")
    monkeypatch.setattr(kernel_file, "operators", lambda: plain_file.OPERATORS)
    plain = (low(ids).logits.float() - exact).abs().mean()
    assert 0 < error < 2 * plain
    assert error < (0.05 if dtype == torch.bfloat16 else 0.01) * exact.std()


def test_compiled_as_one_graph_it_trains_the_same(tokens: Tokens, model: PreTrainedModel) -> None:
    ids = tokens(2, 9)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    model.train()
    compiled, results = torch.compile(model, fullgraph=True, backend="aot_eager"), []
    for each in (model, compiled):
        model.zero_grad()
        loss = each(ids, attention_mask=mask, labels=ids).loss
        loss.backward()
        results.append([loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())])
    torch.testing.assert_close(*results)


def test_with_compiled_mixing_it_trains_and_decodes_the_same(tokens: Tokens, model: PreTrainedModel) -> None:
    """The layers share graphs: one for the first, which RWKV-7 builds otherwise, and one for the others."""
    ids, results, graphs = tokens(2, 9), [], []

    def backend(graph: torch.fx.GraphModule, inputs: list) -> object:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    for compiled in (False, True):
        if compiled:
            model.compile_mixing(backend=backend)
        model.train().zero_grad()
        model(ids, labels=ids).loss.backward()
        gradients = [parameter.grad.clone() for parameter in model.parameters()]
        with torch.no_grad():
            cache = model.eval()(ids, use_cache=True).past_key_values
            logits = [model(tokens(2, 1, seed=seed), past_key_values=cache).logits for seed in range(3)]
        results.append([*gradients, *logits, *cache.wkv])
    torch.testing.assert_close(*results)
    assert len(graphs) <= 3 * 2 * 2  # ways to call it, of two kinds of mixing, in two kinds of layer


@pytest.mark.parametrize("count", [None, 13])
def test_the_loss_in_pieces_is_transformers(
    tokens: Tokens, model: PreTrainedModel, count: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code_of(model, "loss_rwkv"), "PIECE", 7)
    labels = tokens(3, 11)
    labels[0, :4] = labels[2, -1] = -100
    model.train()
    options = {} if count is None else {"num_items_in_batch": count}
    output = model(tokens(3, 11), labels=labels, **options)
    assert output.logits is None
    logits = model(tokens(3, 11)).logits
    expected = model.loss_function(logits, labels, vocab_size=logits.shape[-1], **options)
    torch.testing.assert_close(output.loss, expected)
    parameters = list(model.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(output.loss, parameters), torch.autograd.grad(expected, parameters)
    )
    assert model.eval()(tokens(3, 11), labels=labels).logits.shape == logits.shape


@torch.no_grad()
def test_compiled_as_one_graph_it_decodes_the_same(tokens: Tokens, model: PreTrainedModel) -> None:
    compiled, results = torch.compile(model, fullgraph=True, backend="aot_eager"), []
    for each in (model, compiled):
        cache, logits = model(tokens(2, 5), use_cache=True).past_key_values, []
        for step in range(3):
            output = each(tokens(2, 1, seed=step), past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            logits.append(output.logits)
        results.append(logits)
    torch.testing.assert_close(*results)


def test_gradient_checkpointing_gives_the_same_gradients(tokens: Tokens, model: PreTrainedModel) -> None:
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
def test_saved_and_loaded_the_logits_are_the_same(
    tokens: Tokens, model: PreTrainedModel, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "kernel_rwkv.py").exists()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    assert torch.equal(again.eval().to(model.device)(tokens(2, 5)).logits, model(tokens(2, 5)).logits)
