"""The package rwkv on the CPU, in a process of its own: it reads its settings when it is imported.

`python -m benchmarks.models.official CHECKPOINT` is that process. It takes orders from its standard input, a
line each, and answers each with a line when it is done.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.machine import ROOT
from examples.models.layout import Sizes

NAME = "rwkv (pip)"


class Official:
    """The parent's end: a model that prefills and decodes when asked to."""

    def __init__(self, size: Sizes, weights: dict[str, Tensor], threads: int) -> None:
        self._folder = tempfile.TemporaryDirectory()
        checkpoint = Path(self._folder.name) / "model.pth"
        torch.save(weights, checkpoint)
        settings = {"RWKV_V7_ON": str(int(size.folder == "rwkv7")), "RWKV_JIT_ON": "1", "RWKV_CUDA_ON": "0"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.models.official", str(checkpoint), str(threads)],
            cwd=ROOT,
            env={**os.environ, **settings, "OMP_NUM_THREADS": str(threads)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._wait()

    def give(self, ids: Tensor) -> None:
        """The tokens `[T]` that prompts are cut from."""
        path = Path(self._folder.name) / "ids.pt"
        torch.save(ids, path)
        self._ask(f"tokens {path}")

    def prefill(self, tokens: int) -> None:
        """The first tokens, and the logits of the last one."""
        self._ask(f"prefill {tokens}")

    def decode(self) -> None:
        """One token more."""
        self._ask("decode")

    def logits(self, tokens: int) -> Tensor:
        """`[T, vocabulary]` of the first tokens."""
        path = Path(self._folder.name) / "logits.pt"
        self._ask(f"logits {tokens} {path}")
        return torch.load(path)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._folder.cleanup()

    def _ask(self, order: str) -> None:
        print(order, file=self._process.stdin, flush=True)
        self._wait()

    def _wait(self) -> None:
        for line in self._process.stdout:  # among what the package prints
            if line == "done\n":
                return
        raise RuntimeError(f"the process of the package rwkv ended with status {self._process.wait()}")


def serve(checkpoint: str, threads: int) -> None:
    """The child's end."""
    torch.set_num_threads(threads)
    from rwkv.model import RWKV

    torch.set_grad_enabled(False)
    model = RWKV(model=checkpoint.removesuffix(".pth"), strategy="cpu fp32")
    ids, state = [0], None
    print("done", flush=True)
    for line in sys.stdin:
        order, *arguments = line.split()
        if order == "tokens":
            ids = torch.load(arguments[0]).tolist()
        elif order == "prefill":
            _, state = model.forward(ids[: int(arguments[0])], None)
        elif order == "decode":
            _, state = model.forward(ids[:1], state)
        elif order == "logits":
            torch.save(model.forward(ids[: int(arguments[0])], None, full_output=True)[0], arguments[1])
        print("done", flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
