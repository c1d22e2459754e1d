"""The real kernel's way: built here, published, pinned, loaded in a fresh process, used."""

from __future__ import annotations

import json

from flash_rwkv.lockfile import Lock
from tests.loader.home import Home
from tests.loader.publishing import REPOSITORY
from tests.loopback_hub import LoopbackHub

IN_A_FRESH_PROCESS = """
import json, sys
from flash_rwkv import rwkv6_cuda_linear_attention, wkv7  # loads nothing
import torch

torch.manual_seed(0)
r, w, k, v, a, b = (torch.randn(2, 5, 2, 16, dtype=torch.float64, requires_grad=True) for _ in range(6))

@torch.compile(fullgraph=True, backend="aot_eager")
def compiled(*tensors):
    return wkv7(*tensors, decay="sigmoid")

assert not [name for name in sys.modules if name.startswith("_flash_rwkv")]
y, state = compiled(r, w, k, v, a, b)  # the first use of all, while it is traced
(y.sum() + state.sum()).backward()

import flash_rwkv
kernel = flash_rwkv.get_kernel()
expected, _ = kernel.reference.wkv7(r, w, k, v, a, b, decay="sigmoid")
error = (y - expected).abs().max() / expected.abs().max()

from flash_rwkv.fla import chunk_rwkv7
x = torch.randn(1, 4, 32)
out, final = rwkv6_cuda_linear_attention(x, x, x, x, torch.zeros(2, 16), torch.zeros(1, 2, 16, 16))
print(json.dumps({
    "error": error.item(),
    "gradients": [t.grad.isfinite().all().item() for t in (r, w, k, v, a, b)],
    "out": list(out.shape),
    "id": kernel.__name__,
    "layers": flash_rwkv.layers.__name__,
    "fla": chunk_rwkv7.__module__,
}))
"""


def test_publish_pin_load_use(published: Lock, hub: LoopbackHub, home: Home) -> None:
    result = home.run("-c", IN_A_FRESH_PROCESS)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["error"] < 1e-12
    assert report["gradients"] == [True] * 6
    assert report["out"] == [1, 4, 2, 16]
    assert report["layers"] == f"{report['id']}.layers"
    assert report["fla"] == f"{report['id']}.fla"
    hub.requests.clear()
    assert home.run("-c", "import flash_rwkv; flash_rwkv.get_kernel()").returncode == 0
    assert hub.requests == []


def test_kernels_library_loads_what_was_published(published: Lock, home: Home) -> None:
    code = (
        f"from kernels import get_kernel; k = get_kernel({REPOSITORY!r}, revision={published.revision!r},"
        f" trust_remote_code=[{REPOSITORY!r}]); print(k.__name__)"
    )
    result = home.run("-c", code)
    assert result.stdout.startswith("_flash_rwkv_"), result.stderr
