"""A checkpoint with BlinkDL's names as the weights of flash-linear-attention's models."""

from __future__ import annotations

import torch
from torch import Tensor

from examples.models.layout import Sizes

Weights = dict[str, Tensor]

OUTSIDE = {
    "emb.weight": "model.embeddings.weight",
    "head.weight": "lm_head.weight",
    **{
        f"{ours}.{part}": f"model.{theirs}.{part}"
        for ours, theirs in (("blocks.0.ln0", "layers.0.pre_norm"), ("ln_out", "norm"))
        for part in ("weight", "bias")
    },
}
NORMS = {"ln1": "attn_norm", "ln2": "ffn_norm", "att.ln_x": "attn.g_norm"}
LAYERS = {"receptance": "r", "key": "k", "value": "v", "gate": "g", "output": "o"}
FLA_ORDER = "rwkvg"  # of RWKV-6's mixtures, which BlinkDL has as wkvrg


def fla_weights(size: Sizes, checkpoint: Weights) -> Weights:
    """By fla's names and in its shapes; the values are shared as far as they can be."""
    checkpoint = {name: checkpoint[name].view(shape) for name, shape in size.shapes().items()}
    found = {theirs: checkpoint[ours] for ours, theirs in OUTSIDE.items()}
    convert = _rwkv6 if size.folder == "rwkv6" else _rwkv7
    for layer in range(size.num_hidden_layers):
        prefix = f"blocks.{layer}."
        block = {
            name.removeprefix(prefix): weight
            for name, weight in checkpoint.items()
            if name.startswith(prefix)
        }
        theirs = {
            f"{fla}.{part}": block[f"{ours}.{part}"]
            for ours, fla in NORMS.items()
            for part in ("weight", "bias")
        }
        theirs |= {"ffn.value.weight": block["ffn.value.weight"], **convert(block)}
        found |= {f"model.layers.{layer}.{name}": weight for name, weight in theirs.items()}
    return found


def _rwkv7(block: Weights) -> Weights:
    found = {f"attn.x_{name}": block[f"att.x_{name}"].view(1, 1, -1) for name in "rwkvag"}
    found |= {f"attn.{name}": block[f"att.{name}"] for name in ("k_k", "k_a", "r_k")}
    for name in ("receptance", "key", "value", "output"):
        found[f"attn.{LAYERS[name]}_proj.weight"] = block[f"att.{name}.weight"]
    for name in "wvag":
        if f"att.{name}1" in block:
            found |= _low_rank(f"attn.{name}_lora", block, f"att.{name}")
        if f"att.{name}0" in block:
            found[f"attn.{name}_lora.lora.2.bias"] = block[f"att.{name}0"]
    return {**found, "ffn.x_k": block["ffn.x_k"], "ffn.key.weight": block["ffn.key.weight"]}


def _rwkv6(block: Weights) -> Weights:
    order = ["wkvrg".index(name) for name in FLA_ORDER]
    inner, outer = block["att.time_maa_w1"], block["att.time_maa_w2"]
    found = {
        "attn.x_proj.0.mu": block["att.time_maa_x"],
        "attn.x_proj.0.linear.weight": inner.unflatten(1, (5, -1))[:, order].flatten(1).T.contiguous(),
        "attn.x_proj.2.weight": outer[order].permute(2, 0, 1).flatten(1).contiguous(),
        "attn.x_bias": torch.stack([block[f"att.time_maa_{name}"] for name in FLA_ORDER]),
        "attn.bonus": block["att.time_faaaa"],
        "attn.o_proj.weight": block["att.output.weight"],
        "attn.w_proj.linear.lora.2.bias": block["att.time_decay"],
        **_low_rank("attn.w_proj.linear", block, "att.time_decay_w"),
    }
    for name in ("receptance", "key", "value", "gate"):
        found[f"attn.{LAYERS[name]}_proj.linear.weight"] = block[f"att.{name}.weight"]
    for name, mix in (("key", "k"), ("receptance", "r")):
        found[f"ffn.{name}.mu"] = block[f"ffn.time_maa_{mix}"]
        found[f"ffn.{name}.linear.weight"] = block[f"ffn.{name}.weight"]
    return found


def _low_rank(name: str, block: Weights, factor: str) -> Weights:
    factors = ((0, block[f"{factor}1"]), (2, block[f"{factor}2"]))
    return {f"{name}.lora.{index}.weight": weight.T.contiguous() for index, weight in factors}
