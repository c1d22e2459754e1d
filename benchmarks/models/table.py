"""The results as tables: cells for a terminal and for Markdown alike."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from benchmarks.models.contestant import DECODE, PREFILL, TRAINING
from benchmarks.models.measure import ENTER, GRAPH

WORK = (PREFILL, DECODE, GRAPH, TRAINING)
HEADINGS = (
    "model",
    "",
    "prefill, tokens/s",
    "decode, tokens/s",
    "in a CUDA graph",
    "training, tokens/s",
    "peak, GiB",
    "error of logits",
    "of gradients",
)


def print_results(console: Console, rows: list[dict]) -> None:
    """Speeds with the errors beside them, what failed, then the bars."""
    table = Table(*HEADINGS)
    for row in rows:
        for index, one in enumerate(row["contestants"]):
            table.add_row(f"{row['version']} {row['size']}" if index == 0 else "", *cells(one))
        table.add_section()
    console.print(table)
    for row in rows:
        for one in row["contestants"]:
            for what, why in one["failed"].items():
                line = f"{row['version']} {row['size']}, {one['name']}, {what}: {why}"
                console.print(line, style="yellow", markup=False, highlight=False)
    bars = Table("", "bar", "at most", "measured", "")
    for row in rows:
        for bar in row["bars"]:
            verdict = "[green]pass[/]" if bar["holds"] else "[red]FAIL[/]" if bar["enforced"] else "over"
            label = f"{row['version']} {row['size']}"
            bars.add_row(label, bar["name"], f"{bar['bar']:.2g}", f"{bar['value']:.3g}", verdict)
    console.print(bars)


def cells(one: dict) -> list[str]:
    """A contestant's name, its speeds, memory and errors; a dash for what there is not."""
    speeds = [_speed(one, what) for what in WORK]
    peak = one.get(TRAINING, {}).get("peak_gib")
    errors = (one["errors"].get(what) for what in ("logits", "gradients"))
    numbers = ["–" if error is None else f"{error:.1e}" for error in errors]
    return [one["name"], *speeds, "–" if peak is None else f"{peak:.2f}", *numbers]


def _speed(one: dict, what: str) -> str:
    if what not in one:
        return "failed" if {what, ENTER} & one["failed"].keys() else "–"
    value = one[what]["tokens_s"]
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
