"""`python -m benchmarks.report`: puts measured results into docs/performance.md, as tables and pictures."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from benchmarks.cases import OPERATORS
from benchmarks.gpu import report as gpu
from benchmarks.machine import RESULTS, ROOT, disturbed
from benchmarks.models import report as models

BEGIN = "<!-- benchmarks: written by `python -m benchmarks.report`, do not edit -->"
END = "<!-- end of benchmarks -->"
PAGE = ROOT / "docs" / "performance.md"
PICTURE = ROOT / "docs" / "images" / "cpu.png"


def main(arguments: list[str] | None = None) -> int:
    """Write the page's sections and their pictures, or with --check only compare the sections."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report",
        description="Write the results of `python -m benchmarks.cpu`, `.gpu` and `.models` into "
        "docs/performance.md, between its markers.",
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit status 1 if the page is stale"
    )
    options = parser.parse_args(arguments)
    results, of_gpus, of_models = load(RESULTS), load_gpus(RESULTS.parent), load_models(RESULTS.parent)
    text = PAGE.read_text()
    fresh = insert(text, section(results))
    fresh = insert(fresh, "\n\n".join(map(gpu.section, of_gpus)), gpu.BEGIN, gpu.END)
    fresh = insert(fresh, "\n\n".join(map(models.section, of_models)), models.BEGIN, models.END)
    if options.check:
        if fresh != text:
            print(
                "docs/performance.md is older than benchmarks/results: run `python -m benchmarks.report`",
                file=sys.stderr,
            )
        return int(fresh != text)
    PAGE.write_text(fresh)
    plot(results, PICTURE)
    pictures = [PICTURE, *(path for each in of_gpus for path in gpu.plot(each, PICTURE.parent))]
    pictures += [models.plot(each, PICTURE.parent) for each in of_models]
    print(f"wrote {', '.join(str(path.relative_to(ROOT)) for path in (PAGE, *pictures))}")
    return 0


def load_gpus(folder: Path) -> list[list[dict]]:
    """The results of every GPU that there are any of, the CPU's left out."""
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and path != RESULTS)
    return [results for results in map(gpu.load, folders) if results]


def load_models(folder: Path) -> list[dict]:
    """The results of whole models, of every machine that there are any of."""
    folders = sorted(path for path in folder.iterdir() if path.is_dir())
    return [results for results in map(models.load, folders) if results]


def load(folder: Path) -> list[dict]:
    """The results of one run, in the order of the operators.

    Raises:
        SystemExit: there are none, they come from different runs, or other work disturbed them.
    """
    paths = [folder / f"{operator}.json" for operator in OPERATORS]
    results = [json.loads(path.read_text()) for path in paths if path.is_file()]
    if not results:
        sys.exit(f"{folder} holds no results: run `make bench` first")
    if any(result["machine"] != results[0]["machine"] for result in results):
        sys.exit(
            f"{folder} holds results of different commits or machines: run `make bench` for all operators"
        )
    if disturbance := disturbed(results[0]["machine"]):
        sys.exit(f"{folder}: {disturbance}")
    return results


def insert(text: str, section: str, begin: str = BEGIN, end: str = END) -> str:
    """`text` with `section` between the markers, of which there must be one each."""
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"docs/performance.md must have one line {begin!r} and one line {end!r}")
    before, rest = text.split(begin)
    section = f"{section}\n" if section else ""
    return f"{before}{begin}\n{section}{end}{rest.split(end)[1]}"


def section(results: list[dict]) -> str:
    """What was measured where, as Markdown."""
    machine, shape = results[0]["machine"], results[-1]["shape"]
    lines = [
        f"{machine['cpu']} ({machine['instruction_set']}), {machine['threads']} threads, float32, "
        f"B{shape['B']} T{shape['T']} H{shape['H']} N{shape['N']} (wkv4: as many channels), "
        f"Torch {machine['torch']}, commit {machine['commit'][:10]}; medians of runs in turns. The C++ loops "
        "in `benchmarks/cpu_baseline` are compiled with `-O3 -march=x86-64-v3`: plain, as the formula is "
        "written, and the fastest that it becomes with its loops turned round; both with the decay given or "
        "computed, whichever is faster. Errors are relative to the reference in float64.",
        "",
        "| | forward, ms | error | plain loop, ms | ratio | fastest loop, ms | ratio "
        "| forward + backward, ms | error | one-token step, µs | error |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *(_row(result) for result in results),
    ]
    return "\n".join(lines)


def _row(result: dict) -> str:
    error = {name: f"{value:.1e}" for name, value in result["errors"].items()}
    cells = [
        f"`{result['operator']}`",
        f"{result['forward_ms']:.2f}",
        error["forward"],
        f"{result['plain_ms']:.2f}",
        f"{result['forward_over_plain']:.2f}",
        f"{result['fastest_ms']:.2f}",
        f"{result['forward_over_fastest']:.2f}",
        f"{result['forward_backward_ms']:.2f}",
        error["backward"],
        f"{result['step_us']:.0f}",
        error["step"],
    ]
    return f"| {' | '.join(cells)} |"


def plot(results: list[dict], path: Path) -> None:
    """Forward beside the C++ loops, and forward with backward, as bars."""
    figure, axes = pyplot.subplots(figsize=(8, 3.6), layout="constrained")
    series = {
        "plain C++ loop, forward": ([r["plain_ms"] for r in results], "#a8a29e"),
        "fastest C++ loop, forward": ([r["fastest_ms"] for r in results], "#d6d3d1"),
        "forward": ([r["forward_ms"] for r in results], "#c2410c"),
        "forward + backward": ([r["forward_backward_ms"] for r in results], "#fdba74"),
    }
    for index, (label, (values, color)) in enumerate(series.items()):
        places = [place + (index - 1.5) * 0.21 for place in range(len(results))]
        bars = axes.bar(places, values, width=0.2, label=label, color=color)
        axes.bar_label(bars, fmt="%.1f", fontsize=7)
    axes.set_xticks(range(len(results)), [r["operator"] for r in results])
    axes.set(ylabel="ms")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
