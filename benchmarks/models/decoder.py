"""Decoding token by token, from Python or as a CUDA graph of one step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.models.contestant import Contestant

WARM = 3  # steps that may still compile and allocate


class Decoder:
    """Behind a prompt: `step` reads `token` `[B, 1]` and leaves `logits` `[B, 1, vocabulary]`."""

    def __init__(self, contestant: Contestant, prompt: Tensor) -> None:
        self.contestant = contestant
        self.token = prompt[:, :1].clone()
        _, self.cache = contestant.prefill(prompt)
        self.logits: Tensor | None = None

    def step(self) -> None:
        self.logits = self.contestant.decode(self.token, self.cache)

    def captured(self) -> Callable[[], None]:
        """The step as a graph; with a cache that is updated in place, each replay is the next step."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM):
                self.step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step()
        return graph.replay

    def logits_of(self, ids: Tensor, step: Callable[[], None]) -> Tensor:
        """Of all of `ids` `[B, T]` from an empty cache, one step each, `[B, T, vocabulary]`."""
        with torch.no_grad():
            self.cache.reset()
        found = []
        for token in ids.unbind(1):
            self.token.copy_(token[:, None])
            step()
            found.append(self.logits.clone())
        return torch.cat(found, 1)
