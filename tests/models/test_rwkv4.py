"""transformers' own RWKV-4, unmodified, on this kernel: the same as in its own Python.

It takes a kernel on CUDA alone; on the CPU it is tried as it stands, but for the name of the device.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import kernels
import pytest
import torch
from transformers import RwkvConfig
from transformers.integrations import hub_kernels
from transformers.models.rwkv import modeling_rwkv

SIZES = dict(vocab_size=60, hidden_size=64, num_hidden_layers=3, context_length=2048, rescale_every=2)


@pytest.fixture(scope="module")
def on_kernel(
    kernel_path: Path, kernel, device: torch.device, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ModuleType]:
    """transformers' file, with the device's name where it says "cuda"."""
    source = Path(modeling_rwkv.__file__).read_text(encoding="utf-8")
    path = tmp_path_factory.mktemp("rwkv4") / "modeling_rwkv_here.py"
    path.write_text(source.replace('"cuda"', f'"{device.type}"'), encoding="utf-8")
    name = "transformers.models.rwkv.modeling_rwkv_here"  # a sibling, for its relative imports
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, name, module)
        patch.setenv("LOCAL_KERNELS", f"kernels-community/rwkv={kernel_path}")
        spec.loader.exec_module(module)
        for check in ("is_ninja_available", "is_torch_cuda_available", "is_kernels_available"):
            patch.setattr(module, check, lambda: True)
        # transformers 5.23 wants a later version of kernels than there is: let it take this one.
        patch.setattr(hub_kernels, "is_kernels_available", lambda: True)
        patch.setattr(hub_kernels, "get_kernel_hub", kernels.get_kernel, raising=False)
        patch.setattr(modeling_rwkv, "is_torch_cuda_available", lambda: False)  # the other stays in Python
        yield module


@pytest.fixture
def models(on_kernel: ModuleType, kernel, device: torch.device, monkeypatch: pytest.MonkeyPatch):
    """The model on the kernel, counting its calls, and with the same weights in Python."""
    torch.manual_seed(0)
    ours = on_kernel.RwkvForCausalLM(RwkvConfig(**SIZES))
    assert on_kernel.rwkv_cuda_kernel.__name__ == kernel.__name__
    for name, parameter in ours.named_parameters():  # some of the initial weights are zeros
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=1.0 if "embeddings" in name else parameter.shape[1] ** -0.5)
    theirs = modeling_rwkv.RwkvForCausalLM(RwkvConfig(**SIZES))
    theirs.load_state_dict(ours.state_dict())
    calls = []
    for name in ("forward", "forward_with_state", "backward"):
        function = getattr(kernel, name)
        monkeypatch.setattr(kernel, name, lambda *a, f=function, n=name: calls.append(n) or f(*a))
    return ours.to(device), theirs.to(device), calls


@pytest.mark.parametrize("tokens", [23, 1100])
def test_training_gradients(models, tokens: int) -> None:
    ours, theirs, calls = models
    ids = torch.randint(60, (2, tokens), generator=torch.Generator().manual_seed(2)).to(ours.device)
    results = []
    for model in (ours, theirs):
        output = model.train()(ids, labels=ids)
        output.loss.backward()
        results.append((output, {name: each.grad for name, each in model.named_parameters()}))
    assert calls == ["forward"] * 3 + ["backward"] * 3
    (output, gradients), (expected, exact) = results
    torch.testing.assert_close(output.logits, expected.logits, rtol=0, atol=1e-4)
    for name, gradient in gradients.items():
        scale = exact[name].abs().max()
        assert scale > 0
        assert (gradient - exact[name]).abs().max() < 1e-4 * scale, name


@torch.no_grad()
def test_generation(models) -> None:
    ours, theirs, calls = models
    ids = torch.randint(60, (2, 9), generator=torch.Generator().manual_seed(3)).to(ours.device)
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    generated = [model.eval().generate(ids, **options) for model in (ours, theirs)]
    assert torch.equal(*generated)
    assert set(calls) == {"forward_with_state"}
    first, expected = (model(ids, use_cache=True) for model in (ours, theirs))
    for one, other in zip(first.state, expected.state, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
