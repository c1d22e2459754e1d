"""The closing table and the picture of the losses."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from rich.console import Console
from rich.table import Table

from examples.demo.hub import LoadedKernel
from examples.demo.result import Result
from examples.demo.speed import Comparison

COLORS = {"wkv7": "#c2410c", "wkv6": "#1d4ed8"}


def both(times: Comparison) -> str:
    """Both times, in milliseconds."""
    return f"{times.kernel * 1e3:.1f} / {times.plain * 1e3:.1f} ms"


# The rows of the table, in order: label and what it shows of a result.
ROWS = {
    "parameters": lambda r: f"{r.parameters:,}",
    "training steps": lambda r: f"{len(r.history.train):,}",
    "validation loss, bits/byte": lambda r: f"{r.first_loss:.2f} → {r.last_loss:.2f}",
    "training speed, tokens/s": lambda r: f"{r.tokens_per_second:,.0f}",
    "training step, kernel / plain PyTorch": lambda r: both(r.step),
    "operator alone, kernel / plain PyTorch": lambda r: both(r.call),
    "speed-up of the training step": lambda r: f"{r.step.speedup:.1f} ×",
    "speed-up of the operator": lambda r: f"{r.call.speedup:.0f} ×",
    "loss, kernel against plain PyTorch": lambda r: f"{r.loss_difference:.1e}",
    "forward error against float64": lambda r: f"{r.forward_error:.1e}",
    "gradient error against float64": lambda r: f"{r.gradient_error:.1e}",
    "decoding against one call": lambda r: f"{r.decode_error:.1e}",
}


def print_table(console: Console, kernel: LoadedKernel, results: list[Result]) -> None:
    """Everything that was found out, one column a model."""
    table = Table(title="flash-rwkv on this machine", title_style="bold", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("variant", kernel.variant)
    table.add_row("build", kernel.build_id)
    table.add_row("commit on the Hub", kernel.commit)
    table.add_row("instruction set", kernel.module.cpu_isa())
    console.print(table)

    table = Table()
    table.add_column()
    for result in results:
        table.add_column(result.title, justify="right")
    for label, show in ROWS.items():
        table.add_row(label, *(show(result) for result in results))
    console.print(table)


def plot_losses(results: list[Result], path: Path) -> None:
    """Training and validation loss of each model over its steps, as a PNG."""
    figure, axes = pyplot.subplots(figsize=(8, 4.8), layout="constrained")
    for result in results:
        color = COLORS[result.operator]
        steps, losses = zip(*result.history.train, strict=True)
        axes.plot(steps, losses, color=color, alpha=0.18, linewidth=0.8)
        axes.plot(steps, smooth(losses), color=color, linewidth=1.4, label=f"{result.title}, training")
        steps, losses = zip(*result.history.validation, strict=True)
        label = f"{result.title}, validation ({losses[-1]:.2f} at the end)"
        axes.plot(steps, losses, color=color, linestyle="none", marker="o", markersize=4.5, label=label)
    axes.set(
        xlabel="training step", ylabel="loss, bits/byte", title="Python's standard library, byte by byte"
    )
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def smooth(values: tuple[float, ...], memory: float = 0.9) -> list[float]:
    """Running mean with exponentially fading weights, unbiased at the start."""
    total = weight = 0.0
    means = []
    for value in values:
        total = memory * total + (1 - memory) * value
        weight = memory * weight + 1 - memory
        means.append(total / weight)
    return means
