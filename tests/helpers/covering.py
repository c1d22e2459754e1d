"""Few cases that together hold every pair of values: a covering array, found greedily."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any


def covering_cases(
    axes: Mapping[str, Sequence[Any]],
    allowed: Callable[[dict[str, Any]], bool] = lambda case: True,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """Cases `{axis: value}` such that any two values of two axes meet in one, if `allowed` lets them.

    Each case starts from a pair that has not met yet; of a fixed number of random completions the one that
    holds the most further pairs is taken. Deterministic for a seed.
    """
    chance = random.Random(seed)
    names = list(axes)
    missing = {
        ((a, i), (b, j))
        for a, b in combinations(names, 2)
        for i in range(len(axes[a]))
        for j in range(len(axes[b]))
    }
    while missing:
        pair = min(missing)
        candidates = (_completion(axes, names, pair, chance) for _ in range(50))
        fitting = [c for c in candidates if allowed({name: axes[name][i] for name, i in c.items()})]
        best = max(fitting, key=lambda c: len(missing & _pairs(c)), default=None)
        missing.discard(pair)
        if best is not None:
            missing -= _pairs(best)
            yield {name: axes[name][i] for name, i in best.items()}


def _completion(axes, names, pair, chance) -> dict[str, int]:
    fixed = dict(pair)
    return {name: fixed.get(name, chance.randrange(len(axes[name]))) for name in names}


def _pairs(case: dict[str, int]) -> set:
    return set(combinations(case.items(), 2))
