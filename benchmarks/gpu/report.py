"""The section of docs/performance.md about GPUs: tables and pictures of benchmarks/results/<gpu>/."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from matplotlib import pyplot

from benchmarks.cases import OPERATORS
from benchmarks.gpu.bars import label
from benchmarks.gpu.slug import slug

BEGIN = "<!-- benchmarks on GPUs: written by `python -m benchmarks.report`, do not edit -->"
END = "<!-- end of benchmarks on GPUs -->"
OURS, OTHERS, FLOOR = "#c2410c", ("#78716c", "#a8a29e", "#d6d3d1"), "#1c1917"
SAME = ("commit", "build", "gpu", "torch", "tests")  # of all results of one GPU


def load(folder: Path) -> list[dict]:
    """The results of one GPU, in the order of the operators; none if there is no such folder.

    Raises:
        SystemExit: they are of different builds, or of one whose tests are not known to be green.
    """
    paths = [folder / f"{operator}.json" for operator in OPERATORS]
    results = [json.loads(path.read_text()) for path in paths if path.is_file()]
    for result in results:
        machine = result["machine"]
        if any(machine[key] != results[0]["machine"][key] for key in SAME):
            sys.exit(f"{folder} holds results of different builds: run `make gpu-bench` for all operators")
        if machine["tests"] != "green":
            sys.exit(
                f"{folder}: the tests of {machine['build']} are {machine['tests']}; a speed is reported of a "
                "build whose tests are green: run `make gpu-test`, then `make gpu-bench`"
            )
    return results


def section(results: list[dict]) -> str:
    """What was measured on one GPU, as Markdown."""
    machine = results[0]["machine"]
    lines = [
        f"**{machine['gpu']}**, driver {machine['driver']}, Torch {machine['torch']}, commit "
        f"{machine['commit'][:10]}; a copy moves {max(machine['copy_tb_s']):.2f} TB/s there. Medians of runs "
        "in turns; *of copy* is the share of that rate at which each input is read and each output written "
        "once. Errors are relative to the reference in float64. The peer is the fastest that ran in the same "
        "run.",
        "",
        "| | shape | forward, ms | of copy | error | peer, ms | error "
        "| forward + backward, ms | of copy | error | peer, ms | error |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        lines += (_row(result["operator"], row) for row in result["rows"])
    lines += [
        "",
        "| one decode step | shape | in a CUDA graph, µs | of copy | error | peer, µs | error "
        "| from Python, µs | peer, µs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        lines += (_step_row(result["operator"], row) for row in result["steps"])
    name = slug(machine["gpu"])
    lines += ["", f"![Forward and backward on {machine['gpu']} as bars](images/gpu-{name}.png)"]
    if _steps_of_wkv7(results):
        lines += ["", f"![Decode steps on {machine['gpu']}](images/gpu-{name}-decode.png)"]
    else:
        lines += ["", "wkv7's decode step was not timed with this build."]
    return "\n".join(lines)


def _row(operator: str, row: dict) -> str:
    cells = [f"`{operator}`", label(row["shape"])]
    for what, error in (("forward", "forward"), ("forward_backward", "backward")):
        own = row["contestants"][0]
        if what not in own["ms"]:
            cells += ["–"] * 5
            continue
        cells += [
            f"{own['ms'][what]['median']:.3g}",
            f"{own['of_copy_rate'][what]:.0%}",
            f"{own['errors'][error]:.1e}",
        ]
        timed = [one for one in row["contestants"][1:] if what in one.get("ms", {})]
        best = min(timed, key=lambda one: one["ms"][what]["median"], default=None)
        cells += (
            ["–", "–"]
            if best is None
            else [f"{best['ms'][what]['median']:.3g} ({best['name']})", f"{best['errors'][error]:.1e}"]
        )
    return f"| {' | '.join(cells)} |"


def _step_row(operator: str, row: dict) -> str:
    own = row["contestants"][0]
    timed = [one for one in row["contestants"][1:] if "graph_us" in one]
    best = min(timed, key=lambda one: one["graph_us"]["median"], default=None)
    eager = min(timed, key=lambda one: one["eager_us"]["median"], default=None)
    cells = [
        f"`{operator}_step_`",
        label(row["shape"]),
        f"{own['graph_us']['median']:.1f}",
        f"{own['of_copy_rate']:.0%}",
        f"{own['errors']['y']:.1e}",
        "–" if best is None else f"{best['graph_us']['median']:.1f} ({best['name']})",
        "–" if best is None else f"{best['errors']['y']:.1e}",
        f"{own['eager_us']['median']:.1f}",
        "–" if eager is None else f"{eager['eager_us']['median']:.1f} ({eager['name']})",
    ]
    return f"| {' | '.join(cells)} |"


def plot(results: list[dict], images: Path) -> list[Path]:
    """Draw the pictures of one GPU for which there are results; returns where they are."""
    images.mkdir(parents=True, exist_ok=True)
    name = slug(results[0]["machine"]["gpu"])
    pictures = {images / f"gpu-{name}.png": _plot_forward_backward}
    decode = images / f"gpu-{name}-decode.png"
    if _steps_of_wkv7(results):
        pictures[decode] = _plot_decode
    else:
        decode.unlink(missing_ok=True)
    for path, draw in pictures.items():
        figure = draw(results)
        figure.savefig(path, dpi=150)
        pyplot.close(figure)
    return list(pictures)


def _groups(results: list[dict]) -> dict[str, list[tuple[str, bool, dict, dict]]]:
    """What was timed, by its inputs: each contestant's name, whether it is ours, its row and its times."""
    groups: dict[str, list[tuple[str, bool, dict, dict]]] = {}
    for result in results:
        for row in result["rows"]:
            shape = {key: value for key, value in row["shape"].items() if key != "algorithm"}
            group = groups.setdefault(f"{result['operator']}\n{label(shape)}", [])
            algorithm = row["shape"].get("algorithm", "")
            for index, one in enumerate(row["contestants"]):
                name = f"{one['name']} {algorithm}".strip() if index == 0 else one["name"]
                group.append((name, index == 0, row, one.get("ms", {})))
    return groups


def _plot_forward_backward(results: list[dict]) -> pyplot.Figure:
    groups = _groups(results)
    bars = max(1, sum(len(group) for group in groups.values()))
    figure, panels = pyplot.subplots(
        1, 2, figsize=(11, 0.17 * bars + 0.2 * len(groups) + 1.2), sharey=True, layout="constrained"
    )
    places = []
    for axes, what in zip(panels, ("forward", "forward_backward"), strict=True):
        start, places = 0.0, []
        for group in groups.values():
            timed = [one for one in group if what in one[3]]
            timed.sort(key=lambda one: one[3][what]["median"])
            for y, (name, own, _, times) in enumerate(timed, 1):
                value = times[what]["median"]
                axes.barh(start + y, value, 0.9, color=OURS if own else OTHERS[0])
                axes.text(value, start + y, f" {value:.3g}  {name}", va="center", fontsize=6)
            axes.plot(
                2 * [group[0][2]["floor_ms"][what]],
                [start + 0.4, start + len(group) + 0.6],
                color=FLOOR,
                linewidth=1,
            )
            places.append(start + (len(group) + 1) / 2)
            start += len(group) + 1.2
        axes.set(
            xlabel=f"{what.replace('_', ' + ')}, ms (line: one copy of inputs and outputs)", xscale="log"
        )
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.25, y=0.01)
    panels[0].set_yticks(places, list(groups), fontsize=7)
    panels[0].invert_yaxis()
    return figure


def _steps_of_wkv7(results: list[dict]) -> list[dict]:
    return [row for result in results if result["operator"] == "wkv7" for row in result["steps"]]


def _plot_decode(results: list[dict]) -> pyplot.Figure:
    """wkv7's step over the batch, a panel a dtype of the state."""
    rows = _steps_of_wkv7(results)
    dtypes = sorted({row["shape"]["state"] for row in rows}, reverse=True)
    figure, panels = pyplot.subplots(
        1, len(dtypes), figsize=(5.5 * len(dtypes), 3.8), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, dtype in zip(panels[0], dtypes, strict=True):
        chosen = [row for row in rows if row["shape"]["state"] == dtype]
        names = list(
            dict.fromkeys(one["name"] for row in chosen for one in row["contestants"] if "graph_us" in one)
        )
        for index, name in enumerate(names):
            points = [
                (row["shape"]["B"], one["graph_us"]["median"])
                for row in chosen
                for one in row["contestants"]
                if one["name"] == name and "graph_us" in one
            ]
            color = OURS if index == 0 else OTHERS[(index - 1) % len(OTHERS)]
            axes.plot(*zip(*points, strict=True), marker="o", color=color, label=name)
        floor = [(row["shape"]["B"], row["floor_us"]) for row in chosen]
        axes.plot(
            *zip(*floor, strict=True), color=FLOOR, linewidth=1, linestyle=":", label="copy of the state"
        )
        axes.set(xscale="log", yscale="log", xlabel="sequences", title=f"wkv7_step_, {dtype} state")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    panels[0][0].set(ylabel="µs in a CUDA graph")
    return figure
