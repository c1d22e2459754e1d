"""The demo's models: causal, and the same whichever way the tokens come in."""

from __future__ import annotations

import pytest
import torch

from examples.demo.model import PARTS, LanguageModel
from examples.demo.recurrence import Recurrence, from_reference
from examples.demo.result import Result
from examples.demo.speed import Comparison
from examples.demo.train import History, Settings, by_time, make_optimizer, schedule, train, train_step
from tests.demo.reference import load_reference


@pytest.fixture(params=PARTS)
def model_and_recurrence(request: pytest.FixtureRequest) -> tuple[LanguageModel, Recurrence]:
    """A model a few steps from its initial weights: there, several branches are still zero."""
    torch.manual_seed(0)
    model = LanguageModel(request.param, dim=64, layers=2)
    recurrence = from_reference(load_reference(), request.param)
    optimizer = make_optimizer(model, Settings(learning_rate=1e-2))
    for _ in range(3):
        train_step(model, recurrence, optimizer, torch.randint(256, (2, 9)))
    return model, recurrence


@torch.no_grad()
def test_no_token_sees_a_later_one(model_and_recurrence: tuple[LanguageModel, Recurrence]) -> None:
    model, recurrence = model_and_recurrence
    tokens = torch.randint(256, (2, 12))
    changed = tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 256
    before, after = model(tokens, recurrence), model(changed, recurrence)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 8:], after[:, 8:])


@torch.no_grad()
def test_pieces_are_the_whole(model_and_recurrence: tuple[LanguageModel, Recurrence]) -> None:
    model, recurrence = model_and_recurrence
    tokens = torch.randint(256, (2, 12))
    state = model.empty_state(2)
    pieces = [model(piece, recurrence, state) for piece in tokens.split([5, 1, 1, 4, 1], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(tokens, recurrence))


def test_every_parameter_learns(model_and_recurrence: tuple[LanguageModel, Recurrence]) -> None:
    model, recurrence = model_and_recurrence
    model(torch.randint(256, (2, 12)), recurrence).square().mean().backward()
    still = [name for name, parameter in model.named_parameters() if not parameter.grad.abs().sum() > 0]
    assert still == []


def test_schedule_rises_then_falls_to_a_tenth() -> None:
    factors = [schedule(percent / 100, 0.1) for percent in range(101)]
    assert factors[:11] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[-1] == pytest.approx(0.1)


def test_training_by_time_ends_on_time() -> None:
    torch.manual_seed(0)
    model = LanguageModel("wkv6", dim=64, layers=1)
    windows = torch.randint(256, (2, 9))
    seen: list[float] = []
    history = train(
        model,
        from_reference(load_reference(), "wkv6"),
        iter(lambda: torch.randint(256, (2, 9)), None),
        windows,
        by_time(1.0),
        Settings(),
        lambda history, done: seen.append(done),
    )
    assert len(seen) == len(history.train) == history.validation[-1][0]
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert history.seconds < 2


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("forward_error", "forward error"),
        ("gradient_error", "gradient error"),
        ("decode_error", "decoding"),
    ],
)
@pytest.mark.parametrize("error", [2e-5, float("nan")])
def test_an_error_above_its_tolerance_fails(field: str, message: str, error: float) -> None:
    time = Comparison(1.0, 1.0)
    good = dict.fromkeys(["forward_error", "gradient_error", "decode_error"], 1e-6)
    common = dict(
        operator="wkv7",
        parameters=1,
        history=History([(1, 4.0)], [(0, 8.0), (1, 4.0)]),
        tokens_per_second=1.0,
        step=time,
        call=time,
        loss_difference=0.0,
        sample=b"",
    )
    assert Result(**common, **good).failures() == []
    (failure,) = Result(**common, **{**good, field: error}).failures()
    assert message in failure
