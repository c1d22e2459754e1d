"""The results as tables on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from benchmarks.gpu.bars import label


def print_results(console: Console, results: list[dict]) -> None:
    """Times with the error beside each, then the bars."""
    if any(result["rows"] for result in results):
        console.print(_forward_backward(results))
    if any(result["steps"] for result in results):
        console.print(_steps(results))
    table = Table("", "bar", "at most", "measured", "")
    for result in results:
        for bar in result["bars"]:
            verdict = "[green]pass[/]" if bar["holds"] else "[red]FAIL[/]" if bar["enforced"] else "over"
            table.add_row(
                result["operator"], bar["name"], f"{bar['bar']:.3g}", f"{bar['value']:.3g}", verdict
            )
    console.print(table)


def _forward_backward(results: list[dict]) -> Table:
    table = Table(
        "",
        "",
        "forward, ms",
        "quartiles",
        "of copy",
        "error",
        "fwd + bwd, ms",
        "quartiles",
        "of copy",
        "error",
    )
    for result in results:
        for row in result["rows"]:
            floor = row["floor_ms"]
            table.add_row(
                result["operator"],
                label(row["shape"]),
                f"floor {floor['forward']:.3f}",
                "",
                "",
                "",
                f"floor {floor['forward_backward']:.3f}",
            )
            for one in row["contestants"]:
                table.add_row("", one["name"], *_cells(one))
            table.add_section()
    return table


def _cells(one: dict) -> list[str]:
    if "failed" in one:
        return [f"[yellow]{one['failed']}[/]"]
    cells = []
    for what, error in (("forward", "forward"), ("forward_backward", "backward")):
        if what not in one["ms"]:
            cells += ["–", "", "", ""]
            continue
        time = one["ms"][what]
        cells += [
            f"{time['median']:.3f}",
            f"{time['low']:.3f}–{time['high']:.3f}",
            f"{one['of_copy_rate'][what]:.0%}",
            f"{one['errors'][error]:.1e}",
        ]
    return cells


def _steps(results: list[dict]) -> Table:
    table = Table(
        "", "", "in a graph, µs", "of copy", "eager, µs", "of it the op", "error of y", "of the state"
    )
    for result in results:
        for row in result["steps"]:
            table.add_row(f"{result['operator']}_step_", label(row["shape"]), f"floor {row['floor_us']:.1f}")
            for one in row["contestants"]:
                if "failed" in one:
                    table.add_row("", one["name"], f"[yellow]{one['failed']}[/]")
                    continue
                state = one["errors"].get("state")
                table.add_row(
                    "",
                    one["name"],
                    f"{one['graph_us']['median']:.1f}",
                    f"{one['of_copy_rate']:.0%}",
                    f"{one['eager_us']['median']:.1f}",
                    f"{one['op_us']['median']:.1f}" if "op_us" in one else "",
                    f"{one['errors']['y']:.1e}",
                    "" if state is None else f"{state:.1e}",
                )
            table.add_section()
    return table
