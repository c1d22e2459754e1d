"""The models of flash-linear-attention, where it is installed, at the same shapes; it has no RWKV-5."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.models.contestant import EVERYTHING, TRAINING, Contestant
from benchmarks.models.fla_weights import fla_weights
from benchmarks.models.shapes import Work
from examples.models.layout import Sizes

NAME, LEAN = "fla", "fla, fused loss"


def contestants(size: Sizes, weights: dict[str, Tensor], work: Work) -> dict[str, Callable[[], Contestant]]:
    """By name, with our weights: as it comes, and for training with the loss that keeps no logits."""
    if size.folder == "rwkv5":
        return {}
    lean = {"fuse_cross_entropy": False, "fuse_linear_cross_entropy": True}

    def build(name: str, does: frozenset[str], **options: bool) -> Contestant:
        model = _build(size, options)
        own = {name: weight.to(work.dtype) for name, weight in fla_weights(size, weights).items()}
        model.load_state_dict(own, assign=True)
        return Contestant(name, model.requires_grad_(), work.tokens, does, in_place=False)

    return {
        NAME: lambda: build(NAME, EVERYTHING),
        LEAN: lambda: build(LEAN, frozenset({TRAINING}), **lean),
    }


def _build(size: Sizes, options: dict[str, bool]) -> nn.Module:
    from fla import models

    common = {
        "vocab_size": size.vocab_size,
        "hidden_size": size.hidden_size,
        "num_hidden_layers": size.num_hidden_layers,
        "intermediate_size": size.intermediate_size,
        "num_heads": size.num_heads,
        "use_l2warp": False,  # a penalty that ours does not have
        **options,
    }
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if size.folder == "rwkv6":
            ranks = {"proj_low_rank_dim": size.mix_rank, "gate_low_rank_dim": size.decay_rank}
            return models.RWKV6ForCausalLM(models.RWKV6Config(**common, **ranks, expand_k=1.0))
        ranks = {
            "decay_low_rank_dim": size.decay_rank,
            "a_low_rank_dim": size.rate_rank,
            "v_low_rank_dim": size.value_rank,
            "gate_low_rank_dim": size.gate_rank,
        }
        return models.RWKV7ForCausalLM(models.RWKV7Config(**common, **ranks, head_dim=size.head_size))
