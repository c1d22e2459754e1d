"""`python -m benchmarks.cpu`: the CPU operators beside a plain C++ loop, with errors and bars."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from types import ModuleType

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.cases import OPERATORS, make_case
from benchmarks.machine import RESULTS, ROOT, describe, disturbed, watch_other_work
from benchmarks.measure import measure


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write; 1 if a bar is missed."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    # Off a terminal rich assumes 80 columns, too few for the table.
    console = Console() if Console().is_terminal else Console(width=120)
    kernel = load_kernel(options.kernel)
    machine = describe(kernel)
    console.print(
        f"{machine['cpu']}, {machine['instruction_set']}, {machine['threads']} threads", highlight=False
    )
    results = []
    other_work = watch_other_work()
    with Progress(console=console) as bar:
        for operator in options.operators:
            task = bar.add_task(operator, total=options.repeats + 1)
            case = make_case(operator, options.batch, options.tokens, options.heads)
            results.append(
                measure(kernel, case, options.threads, options.repeats, lambda task=task: bar.advance(task))
            )
    machine["other_work"] = other_work()
    print_results(console, results)
    if disturbance := disturbed(machine):
        console.print(disturbance, style="yellow", highlight=False)
    options.out.mkdir(parents=True, exist_ok=True)
    for result in results:
        path = options.out / f"{result['operator']}.json"
        path.write_text(json.dumps({"machine": machine, **result}, indent=2, ensure_ascii=False) + "\n")
    console.print(
        f"written to {options.out}/*.json; `python -m benchmarks.report` puts them into docs/performance.md"
    )
    return 0 if all(bar["holds"] for result in results for bar in result["bars"].values()) else 1


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cpu",
        description="Time forward, forward + backward and one decode step of each operator on the CPU, in "
        "turns with a plain C++ loop compiled in the same run. Exit status 1 if a bar is missed. Needs a "
        "build: `python -m builder build`.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "operators", nargs="*", metavar="OPERATOR", default=list(OPERATORS), help="which to time"
    )
    parser.add_argument("--repeats", type=int, default=41, help="rounds, of which the medians are taken")
    parser.add_argument("--threads", type=int, default=2, help="threads of the operators and of the loop")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--heads", type=int, default=32, help="of size 64; wkv4 gets as many channels")
    parser.add_argument("--kernel", type=Path, default=ROOT, help="folder that holds build/ or variants")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    options = parser.parse_args(arguments)
    for name in options.operators:
        if name not in OPERATORS:
            parser.error(f"OPERATOR must be one of {', '.join(OPERATORS)}, got {name!r}")
    for name in ("repeats", "threads", "batch", "tokens", "heads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    return options


def load_kernel(folder: Path) -> ModuleType:
    """The built kernel, loaded as a user loads a local one."""
    from kernels import get_local_kernel

    return get_local_kernel(folder.resolve())


def print_results(console: Console, results: list[dict]) -> None:
    """Times with the error beside each, then the bars."""
    table = Table("", "what", "time", "against", "ratio", "error")
    for result in results:
        error = {name: f"{value:.1e}" for name, value in result["errors"].items()}
        forward, both = f"{result['forward_ms']:.2f} ms", f"{result['forward_backward_ms']:.2f} ms"
        plain, fastest = (
            f"plain loop {result['plain_ms']:.2f} ms",
            f"fastest loop {result['fastest_ms']:.2f} ms",
        )
        shape = " ".join(f"{key}{value}" for key, value in result["shape"].items())
        rows = [
            ("forward", forward, plain, f"{result['forward_over_plain']:.2f}", error["forward"]),
            ("", "", fastest, f"{result['forward_over_fastest']:.2f}", ""),
            (
                "forward + backward",
                both,
                "forward",
                f"{result['forward_backward_over_forward']:.2f}",
                error["backward"],
            ),
            ("one-token step", f"{result['step_us']:.1f} µs", "", "", error["step"]),
        ]
        for label, row in zip((result["operator"], shape, "", ""), rows, strict=True):
            table.add_row(label, *row)
        table.add_section()
    console.print(table)
    console.print(
        "Loops: C++ in benchmarks/cpu_baseline, -O3 -march=x86-64-v3, with the decay given or computed."
    )
    bars = Table("", "bar", "at most", "measured", "")
    for result in results:
        for name, bar in result["bars"].items():
            verdict = "[green]pass[/]" if bar["holds"] else "[red]FAIL[/]"
            bars.add_row(result["operator"], name, f"{bar['bar']:g}", f"{bar['value']:.3g}", verdict)
    console.print(bars)


if __name__ == "__main__":
    sys.exit(main())
