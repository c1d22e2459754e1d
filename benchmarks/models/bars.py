"""What is promised of whole models: errors everywhere, and against fla's model in the same run."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.models import fla_models, ours
from benchmarks.models.contestant import TRAINING
from benchmarks.models.measure import GRAPH

EXACT = {"logits": 1e-4, "gradients": 1e-3}  # of float32, after many layers of random weights
TIMES_LOOP = 2.0  # of lower precision: over the loop in Python in the same dtype
PROMISED = ("rwkv7", "0.4B")


def bars(row: dict) -> list[dict]:
    """Each promise about a row: `name`, `value`, `bar`, `holds`, `enforced`.

    Ratios are of ours over fla's: seconds and bytes. Nothing was promised of other shapes.
    """
    by_name = {one["name"]: one for one in row["contestants"]}
    enforced = (row["version"], row["size"]) == PROMISED
    found = []
    for name, value, bar, always in (*_errors(row, by_name), *_ratios(by_name)):
        holds = bool(value <= bar)
        found.append(
            {"name": name, "value": value, "bar": bar, "holds": holds, "enforced": always or enforced}
        )
    return found


def missed(row: dict) -> list[dict]:
    """The bars that make a run fail."""
    return [bar for bar in row["bars"] if bar["enforced"] and not bar["holds"]]


def _errors(row: dict, by_name: dict[str, dict]) -> Iterator[tuple[str, float, float, bool]]:
    loop = by_name[ours.LOOP]["errors"]
    for one in (by_name[name] for name in ours.OURS if name in by_name):
        name = one["name"]
        yield f"failures of {name}", len(one["failed"]), 0, True
        for what, value in one["errors"].items():
            # A graph decodes the same tokens, one by one.
            like = {"graph": "logits"}.get(what, what)
            bar = EXACT[like] if row["dtype"] == "float32" else TIMES_LOOP * loop[like]
            yield f"error of {what}, {name}", value, bar, True


def _ratios(by_name: dict[str, dict]) -> Iterator[tuple[str, float, float, bool]]:
    """The faster of ours, with the memory that it takes, against the best of fla's at each."""
    peers = [by_name[name] for name in (fla_models.NAME, fla_models.LEAN) if name in by_name]
    for what in (TRAINING, GRAPH):
        own = [by_name[name] for name in ours.OURS if what in by_name.get(name, {})]
        theirs = [one[what] for one in peers if what in one]
        if not own or not theirs:
            continue
        best = min(own, key=lambda one: one[what]["seconds"]["median"])
        fastest = min(one["seconds"]["median"] for one in theirs)
        what_for = what.replace("_", " in a CUDA ").replace("decode", "decoding")
        yield f"{what_for}, {best['name']} / fla", best[what]["seconds"]["median"] / fastest, 1.0, False
        if "peak_gib" in best[what]:
            least = min(one["peak_gib"] for one in theirs)
            yield f"memory of {what_for}, {best['name']} / fla", best[what]["peak_gib"] / least, 1.0, False
