"""The section of docs/performance.md about whole models: a table and a picture for each machine."""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib import pyplot

from benchmarks.gpu.slug import slug
from benchmarks.machine import disturbed
from benchmarks.models import fla_models, official, ours, store
from benchmarks.models.bars import missed
from benchmarks.models.contestant import DECODE, PREFILL, TRAINING
from benchmarks.models.measure import GRAPH
from benchmarks.models.shapes import VERSIONS
from benchmarks.models.table import HEADINGS, cells

BEGIN = "<!-- benchmarks of models: written by `python -m benchmarks.report`, do not edit -->"
END = "<!-- end of benchmarks of models -->"
COLORS = {
    ours.NAME: "#c2410c",
    ours.COMPILED: "#fdba74",
    ours.LOOP: "#1c1917",
    fla_models.NAME: "#78716c",
    fla_models.LEAN: "#a8a29e",
    official.NAME: "#d6d3d1",
}


def load(folder: Path) -> dict | None:
    """The results of one machine; None where there are none.

    Raises:
        SystemExit: other work disturbed them, or ours were wrong.
    """
    results = store.load(folder)
    if results is None:
        return None
    if "other_work" in results["machine"] and (disturbance := disturbed(results["machine"])):
        sys.exit(f"{folder}: {disturbance}")
    for row in results["rows"]:
        for bar in missed(row):
            if bar["name"].startswith("error"):
                sys.exit(f"{folder}: {row['version']} {row['size']}: {bar['name']} is {bar['value']:.1e}")
    return results


def section(results: dict) -> str:
    """What was measured on one machine, as Markdown."""
    machine, rows = results["machine"], results["rows"]
    ours_first = rows[0]["contestants"][0]
    where = machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} threads"
    lines = [
        f"**{where}**, Torch {machine['torch']}, commit {machine['commit'][:10]}: {rows[0]['dtype']}, one "
        f"sequence of {ours_first[PREFILL]['tokens']} tokens, medians of runs in turns; training is forward, "
        "loss and backward, its memory that of weights, gradients and activations. Errors are relative to "
        "the loop in Python in float32, with the same weights in all models of a shape.",
        "",
        f"| {' | '.join(HEADINGS)} |",
        f"|{'---|' * len(HEADINGS)}",
    ]
    for row in rows:
        for index, one in enumerate(row["contestants"]):
            label = f"{row['version']} {row['size']}" if index == 0 else ""
            lines.append(f"| {label} | {' | '.join(cells(one))} |")
    lines += ["", f"![Tokens a second of whole models on {where}](images/{picture(machine)})"]
    return "\n".join(lines)


def picture(machine: dict) -> str:
    """The file's name."""
    return f"models-{slug(machine.get('gpu') or 'cpu')}.png"


def plot(results: dict, images: Path) -> Path:
    """Tokens a second as bars: a row of panels for each kind of work, a column for each version."""
    machine, rows = results["machine"], results["rows"]
    kinds = (PREFILL, GRAPH if "gpu" in machine else DECODE, TRAINING)
    versions = [version for version in VERSIONS if any(row["version"] == version for row in rows)]
    figure, panels = pyplot.subplots(
        len(kinds), len(versions), figsize=(4.2 * len(versions), 7), squeeze=False, layout="constrained"
    )
    for kind, line in zip(kinds, panels, strict=True):
        for version, axes in zip(versions, line, strict=True):
            _bars(axes, kind, [row for row in rows if row["version"] == version])
            axes.set(title=f"{version}, {kind.replace('_', ' in a CUDA ')}", yscale="log")
        line[0].set(ylabel="tokens/s")
    labels = dict(
        pair for axes in panels.flat for pair in zip(*reversed(axes.get_legend_handles_labels()), strict=True)
    )
    figure.legend(
        labels.values(), labels.keys(), loc="outside lower center", ncols=6, frameon=False, fontsize=8
    )
    path = images / picture(machine)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return path


def _bars(axes: pyplot.Axes, kind: str, rows: list[dict]) -> None:
    for place, row in enumerate(rows):
        timed = [one for one in row["contestants"] if kind in one]
        width = 0.8 / max(1, len(timed))
        for index, one in enumerate(timed):
            x = place + (index - (len(timed) - 1) / 2) * width
            value, color = one[kind]["tokens_s"], COLORS[one["name"]]
            bar = axes.bar(x, value, 0.95 * width, color=color, label=one["name"])
            axes.bar_label(bar, [f"{value:,.3g}" if value < 1000 else f"{value / 1000:.3g}k"], fontsize=6)
    axes.set_xticks(range(len(rows)), [row["size"] for row in rows])
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(y=0.15)
