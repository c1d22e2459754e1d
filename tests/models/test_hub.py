"""The whole way over a Hub: kernel and model published, loaded by processes that have nothing yet, used."""

from __future__ import annotations

import json
import py_compile
import sys
from collections.abc import Callable
from pathlib import Path
from py_compile import PycInvalidationMode

import pytest
import torch
from transformers import AutoModelForCausalLM

from examples.models.convert import convert
from tests.loader.home import Home
from tests.loader.publishing import REPOSITORY as KERNEL
from tests.loader.publishing import TinyKernel, client, publish_files
from tests.loopback_hub import LoopbackHub
from tests.models.checkpoints import write_vocabulary

MODEL = "someone/rwkv"
USE = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer

name, saved = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=True).eval()
batch = tokenizer(["the ü", "them"], return_tensors="pt", padding=True)
logits = model(**batch).logits
text = model.generate(**batch, max_new_tokens=4, do_sample=False, eos_token_id=None)

model.train()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
losses = []
for _ in range(3):
    loss = model(**batch, labels=batch["input_ids"]).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())

model.eval().save_pretrained(saved)
tokenizer.save_pretrained(saved)
again = AutoModelForCausalLM.from_pretrained(saved, trust_remote_code=True).eval()
kernel = sys.modules[type(again).__module__.rpartition(".")[0] + ".kernel_rwkv"]
torch.save((batch["input_ids"], batch["attention_mask"], logits.detach()), saved + "/first.pt")
print(json.dumps({
    "losses": losses,
    "text": list(text.shape),
    "same": torch.equal(model(**batch).logits, again(**batch).logits),
    "kernel": kernel.operators().__name__,
}))
"""
# The model's code without its weights, which is enough to ask for a kernel.
LOAD = """
import sys
from importlib import import_module
from pathlib import Path
folder = Path(sys.argv[1])
sys.path.insert(0, str(folder.parent))
print(import_module(f"{folder.name}.kernel_rwkv").operators().__name__)
"""


@pytest.fixture
def kernel_files(kernel_path: Path, kernel) -> dict[str, bytes]:
    """The built kernel, as files of a repository."""
    build = Path(kernel.__file__).parent
    return {
        f"build/{build.name}/{path.relative_to(build).as_posix()}": path.read_bytes()
        for path in build.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture
def make(
    hub: LoopbackHub,
    home: Home,
    kernel_files: dict[str, bytes],
    checkpoint: Path,
    tmp_path: Path,
) -> Callable[[], Path]:
    """Publishes the kernel, and makes a model that pins it."""

    def made() -> Path:
        publish_files(hub, kernel_files)
        home.pin(hub)
        home.set("FLASH_RWKV_STRICT", "1")
        vocabulary = write_vocabulary(tmp_path / "vocabulary.txt")
        lock = home.folder / "v1.lock.json"
        convert(checkpoint, tmp_path / "made", vocabulary=vocabulary, dtype="float32", kernel_lock=lock)
        return tmp_path / "made"

    return made


def move_on(hub: LoopbackHub, kernel_files: dict[str, bytes]) -> None:
    """Put into the branch of the kernel what must not run."""
    variant = next(iter(kernel_files)).split("/")[1]
    other = TinyKernel(extra={"__init__.py": b"raise SystemExit('the branch was loaded')"})
    publish_files(hub, {f"build/{variant}/{name}": data for name, data in other.files().items()})


def test_publish_load_train_save_reload(
    make: Callable[[], Path],
    hub: LoopbackHub,
    home: Home,
    kernel,
    kernel_files: dict[str, bytes],
    modules: Path,
    tmp_path: Path,
) -> None:
    made = make()
    api = client(hub)
    api.create_repo(MODEL)
    api.upload_folder(repo_id=MODEL, folder_path=made)
    pinned = hub.repository(KERNEL).resolve("v1")
    move_on(hub, kernel_files)
    assert hub.repository(KERNEL).resolve("v1") != pinned
    hub.requests.clear()

    result = home.run("-c", USE, MODEL, str(tmp_path / "saved"))
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout.splitlines()[-1])
    assert report["kernel"] == kernel.__name__
    assert report["text"][1] == torch.load(tmp_path / "saved" / "first.pt")[0].shape[1] + 4
    assert report["losses"][2] < report["losses"][0]
    assert report["same"]
    files = [each.path for each in hub.requests if each.path.startswith(f"/kernels/{KERNEL}/resolve/")]
    assert files
    assert all(f"/resolve/{pinned}/" in path for path in files)

    home.set("LOCAL_KERNELS", f"{KERNEL}={Path(kernel.__file__).parents[2]}")
    ids, mask, logits = torch.load(tmp_path / "saved" / "first.pt")
    model = AutoModelForCausalLM.from_pretrained(made, trust_remote_code=True).eval()
    torch.testing.assert_close(model(ids, attention_mask=mask).logits, logits)


@pytest.mark.parametrize("version", ["7"], indirect=True)
def test_a_tampered_kernel_is_refused(
    make: Callable[[], Path],
    hub: LoopbackHub,
    home: Home,
    kernel,
) -> None:
    made = make()
    hub.faults.corrupt("/ops.py")
    on_the_way = home.run("-c", LOAD, str(made))
    assert on_the_way.returncode != 0
    assert "ops.py: expected sha256" in on_the_way.stderr

    cached = home.cached("ops.py")
    true = next(path.read_bytes() for path in Path(kernel.__file__).parent.glob("ops.py"))
    cached.write_bytes(true)
    assert home.run("-c", LOAD, str(made)).stdout.strip() == kernel.__name__

    cached.write_bytes(true + b"\nraise SystemExit('tampered code ran')\n")
    in_the_cache = home.run("-c", LOAD, str(made))
    assert "RuntimeError: FLASH_RWKV_STRICT=1" in in_the_cache.stderr
    assert "was not run" in in_the_cache.stderr
    without = home.run("-c", LOAD, str(made), FLASH_RWKV_STRICT="0")
    assert without.stdout.strip() == "PyTorch"
    assert "was not run" in without.stderr

    compiled = cached.parent / "__pycache__" / f"ops.{sys.implementation.cache_tag}.pyc"
    py_compile.compile(str(cached), compiled, invalidation_mode=PycInvalidationMode.UNCHECKED_HASH)
    cached.write_bytes(true)
    assert home.run("-c", LOAD, str(made)).stdout.strip() == kernel.__name__

    (cached.parent / "added.py").write_bytes(b"")
    assert "added.py: expected sha256 None" in home.run("-c", LOAD, str(made)).stderr
