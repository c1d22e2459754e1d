"""Which kernel a model runs: the one that its code names, whatever its configuration says."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from pathlib import Path

import kernels
import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.dynamic_module_utils import get_imports

from examples.models.rwkv7 import pin_rwkv, plain_rwkv

EVIL = "evil/kernel"


@pytest.fixture(scope="module", params=["7"])
def version(request: pytest.FixtureRequest) -> str:
    """All versions take their kernel from the same file."""
    return request.param


@pytest.fixture
def fresh(repository: Path, tmp_path: Path) -> Path:
    """A copy whose code has not loaded a kernel yet."""
    return Path(shutil.copytree(repository, tmp_path / f"fresh_{tmp_path.name}"))


def load(folder: Path):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()


def unavailable(*_, **__):
    raise ConnectionError("no route to the Hub")


def test_a_configuration_cannot_name_the_kernel(fresh: Path, kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    sha = "1" * 40
    pin = (fresh / "pin_rwkv.py").read_text()
    (fresh / "pin_rwkv.py").write_text(pin.replace("0" * 40, sha))
    config = json.loads((fresh / "config.json").read_text())
    for name in ("REPOSITORY", "repository", "kernel", "kernel_repository", "kernel_config", "repo_id"):
        config[name] = EVIL
    config |= {"REVISION": "main", "revision": "main", "trust_remote_code": True, "_operators": EVIL}
    (fresh / "config.json").write_text(json.dumps(config))
    asked = []
    monkeypatch.setattr(kernels, "get_kernel", lambda *a, **k: asked.append((a, k)) or kernel)
    load(fresh)
    name = pin_rwkv.REPOSITORY
    assert name == "flash-rwkv/flash-rwkv"
    assert asked == [((name,), {"revision": sha, "trust_remote_code": [name]})]


def test_without_a_kernel_it_warns_once_and_gives_the_same(
    tokens, model, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FLASH_RWKV_STRICT")
    monkeypatch.setattr(kernels, "get_kernel", unavailable)
    ids = tokens(2, 9)
    with pytest.warns(RuntimeWarning, match="plain PyTorch.*no route to the Hub") as caught:
        plain = load(fresh).to(model.device)
    assert len([each for each in caught if each.category is RuntimeWarning]) == 1
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error", RuntimeWarning)
        load(fresh)
        torch.testing.assert_close(plain(ids).logits, model(ids).logits, rtol=0, atol=1e-4)
        options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
        assert torch.equal(plain.generate(ids, **options), model.generate(ids, **options))


def test_the_kernels_library_is_not_a_requirement(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "kernels" not in get_imports(fresh / "kernel_rwkv.py")  # what transformers insists on
    monkeypatch.setitem(sys.modules, "kernels", None)
    monkeypatch.delenv("FLASH_RWKV_STRICT")
    with pytest.warns(RuntimeWarning, match="plain PyTorch.*ModuleNotFoundError"):
        load(fresh)


def test_strict_means_an_error(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "get_kernel", unavailable)
    monkeypatch.setenv("FLASH_RWKV_STRICT", "1")
    with pytest.raises(RuntimeError, match=r"FLASH_RWKV_STRICT=1.*no route to the Hub"):
        load(fresh)


@pytest.mark.parametrize(("name", "decay"), [("wkv5", "exp"), ("wkv6", "exp"), ("wkv7", "sigmoid")])
def test_gradients_of_plain_pytorch_are_the_kernels(name: str, decay: str, kernel) -> None:
    torch.manual_seed(0)
    tokens, per_head = torch.randn(6, 2, 7, 2, 16), torch.randn(2, 2, 16)
    if name == "wkv7":
        inputs = [*tokens[:4], torch.nn.functional.normalize(tokens[4], dim=-1), tokens[5]]
    else:
        inputs = [*tokens[:3], per_head[0] if name == "wkv5" else tokens[3], per_head[1]]
    results = []
    for source in (plain_rwkv.OPERATORS, kernel):
        leaves = [each.clone().requires_grad_() for each in (*inputs, torch.ones(2, 2, 16, 16))]
        y, final = getattr(source, name)(*leaves, decay=decay)
        (y.square().sum() + final.square().sum()).backward()
        results.append([y, final, *(each.grad for each in leaves)])
    for plain, ours in zip(*results, strict=True):
        torch.testing.assert_close(plain, ours, rtol=1e-4, atol=1e-3)
