"""`kernels benchmark flash-rwkv/flash-rwkv` (or a checkout): each operator against its plain PyTorch loop.

Run by `kernels` on its own, from wherever it was downloaded to: it imports nothing of this repository.
"""

from __future__ import annotations

import torch
from kernels.benchmark import Benchmark
from torch import Tensor
from torch.nn import functional

BATCH, TOKENS, HEADS, SIZE = 1, 256, 8, 64


class WkvBenchmark(Benchmark):
    """Forward, forward and backward, and one decode step, in float32.

    `out` is what the last run gave; the `verify_` method of each workload gives what it should have been.
    """

    seed = 0

    def setup(self) -> None:
        """The inputs of all four operators; which one a workload uses, its name says."""
        r, k, v, w = self._normal(4, BATCH, TOKENS, HEADS, SIZE)
        u = self._normal(HEADS, SIZE)
        direction = functional.normalize(self._normal(BATCH, TOKENS, HEADS, SIZE), dim=-1)
        gate = torch.sigmoid(w)
        flat_k, flat_v = k.flatten(2), v.flatten(2)
        self.inputs = {
            "wkv4": [flat_k, flat_v, -w[0, 0].flatten().exp(), u.flatten()],
            "wkv5": [r, k, v, w[0, 0] - 2, u],
            "wkv6": [r, k, v, w - 2, u],
            "wkv7": [r, -torch.exp(w - 2), k, v, -direction, direction * gate],
        }
        self.state = torch.zeros(BATCH, HEADS, SIZE, SIZE, device=self.device)
        self.grad = self._normal(BATCH, TOKENS, HEADS, SIZE)

    def benchmark_wkv4_forward(self) -> None:
        self.out = self._forward(self.kernel, "wkv4")

    def verify_wkv4_forward(self) -> Tensor:
        return self._forward(self.kernel.reference, "wkv4")

    def benchmark_wkv5_forward(self) -> None:
        self.out = self._forward(self.kernel, "wkv5")

    def verify_wkv5_forward(self) -> Tensor:
        return self._forward(self.kernel.reference, "wkv5")

    def benchmark_wkv6_forward(self) -> None:
        self.out = self._forward(self.kernel, "wkv6")

    def verify_wkv6_forward(self) -> Tensor:
        return self._forward(self.kernel.reference, "wkv6")

    def benchmark_wkv7_forward(self) -> None:
        self.out = self._forward(self.kernel, "wkv7")

    def verify_wkv7_forward(self) -> Tensor:
        return self._forward(self.kernel.reference, "wkv7")

    def benchmark_wkv6_forward_backward(self) -> None:
        self.out = self._gradients(self.kernel, "wkv6")

    def verify_wkv6_forward_backward(self) -> Tensor:
        return self._gradients(self.kernel.reference, "wkv6")

    def benchmark_wkv7_forward_backward(self) -> None:
        self.out = self._gradients(self.kernel, "wkv7")

    def verify_wkv7_forward_backward(self) -> Tensor:
        return self._gradients(self.kernel.reference, "wkv7")

    def benchmark_wkv6_step(self) -> None:
        self.out = self._step("wkv6")

    def verify_wkv6_step(self) -> Tensor:
        return self._first_token("wkv6")

    def benchmark_wkv7_step(self) -> None:
        self.out = self._step("wkv7")

    def verify_wkv7_step(self) -> Tensor:
        return self._first_token("wkv7")

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device)

    def _forward(self, module: object, operator: str) -> Tensor:
        return getattr(module, operator)(*self.inputs[operator])[0]

    def _gradients(self, module: object, operator: str) -> Tensor:
        leaves = [x.clone().requires_grad_() for x in self.inputs[operator]]
        y, _ = getattr(module, operator)(*leaves)
        return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(y, leaves, self.grad)])

    def _step(self, operator: str) -> Tensor:
        """One token from an empty state, which the step itself overwrites."""
        self.state.zero_()
        token = [x[:, 0] if x.ndim == 4 else x for x in self.inputs[operator]]
        return getattr(self.kernel, f"{operator}_step_")(*token, self.state)

    def _first_token(self, operator: str) -> Tensor:
        token = [x[:, :1] if x.ndim == 4 else x for x in self.inputs[operator]]
        return getattr(self.kernel.reference, operator)(*token)[0][:, 0]
