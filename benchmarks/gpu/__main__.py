"""`python -m benchmarks.gpu`: the operators on a GPU beside other people's, with errors, floors and bars."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.cases import OPERATORS
from benchmarks.cpu import load_kernel
from benchmarks.gpu import decode, forward_backward
from benchmarks.gpu.bars import bars, missed
from benchmarks.gpu.gate import wrong
from benchmarks.gpu.peers import compile_ahead
from benchmarks.gpu.preparation import REHEARSAL, Preparation
from benchmarks.gpu.report import SAME
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.shapes import QUICK_SHAPES, QUICK_STEPS, SHAPES, STEPS, Shape, StepShape
from benchmarks.gpu.slug import slug
from benchmarks.gpu.table import print_results
from benchmarks.gpu.timing import Stopwatch
from benchmarks.machine import RESULTS, ROOT, describe, describe_gpu
from benchmarks.stamp import outcome
from benchmarks.together import together


def main(arguments: list[str] | None = None) -> int:
    """Check, measure, print and write; 1 if a bar is missed, 2 if the kernel is wrong."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit(
            f"Torch {torch.__version__} at {torch.__path__[0]} sees no GPU here (`nvidia-smi` lists them)."
        )
    # Off a terminal rich assumes 80 columns, too few for the tables.
    console = Console() if Console().is_terminal else Console(width=160)

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False)

    if options.peers:
        sys.path.append(str(options.peers.resolve()))
    if options.prepare and len(options.only) > 1:
        each = {operator: [*arguments, "--only", operator] for operator in options.only}
        return int(bool(together("benchmarks.gpu", each, say)))
    kernel = load_kernel(options.kernel)
    if options.prepare:
        prepare(Setting(kernel, Stopwatch(device), 0.0, REHEARSAL, say), options.only, options.quick)
        return 0
    if options.peers and device.type == "cuda":
        compile_ahead(options.peers.resolve(), options.only)
    console.print(f"{kernel.__name__}: accuracy", highlight=False)
    if lines := wrong(kernel, device, options.only):
        console.print("\n".join(lines), style="red", markup=False, highlight=False)
        console.print("No time is measured of a kernel that is wrong.")
        return 2
    watch = Stopwatch(device)
    copy_rate = watch.copy_rate()
    machine = {
        **describe(kernel, options.commit),
        **describe_gpu(device),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "tests": outcome(kernel.__name__),
        "copy_tb_s": [copy_rate / 1e12],
    }
    console.print(
        f"{machine['gpu']}, copies at {copy_rate / 1e12:.2f} TB/s, tests {machine['tests']}", highlight=False
    )
    preparation = Preparation(options.peer_seconds) if options.peers else None
    setting = Setting(kernel, watch, copy_rate, preparation, say)
    folder = options.out or default_folder(machine["gpu"], options.quick or device.type != "cuda")
    folder.mkdir(parents=True, exist_ok=True)
    results = []
    for operator in options.only:
        begun = left_over(folder, operator, machine) if options.resume else {"rows": [], "steps": []}
        for result in measured(setting, operator, options.quick, begun):
            # Written after each shape: a run that is cut off leaves what it had.
            result = {"machine": machine, "operator": operator, **result}
            result["bars"] = bars(result)
            write(folder, result)
        # Once more: a card that has slowed down meanwhile shows.
        machine["copy_tb_s"].append(watch.copy_rate() / 1e12)
        write(folder, result)
        results.append(result)
    print_results(console, results)
    console.print(
        f"written to {folder}/*.json; `python -m benchmarks.report` puts them into docs/performance.md"
    )
    return int(any(missed(result) for result in results))


def measured(
    setting: Setting, operator: str, quick: bool, begun: dict[str, list[dict]]
) -> Iterator[dict[str, list[dict]]]:
    """Rows of forward and backward and of the decode step: those begun with, then with each one more."""
    shapes, steps = shapes_of(operator, quick)
    if begun["rows"]:
        yield begun  # there may be nothing left to time
    for rows, measure, found in (
        (begun["rows"], forward_backward.measure, shapes),
        (begun["steps"], decode.measure, steps),
    ):
        for shape in found[len(rows) :]:
            rows.append(measure(setting, shape))
            if setting.device.type == "cuda":
                torch.cuda.empty_cache()
            yield begun


def left_over(folder: Path, operator: str, machine: dict) -> dict[str, list[dict]]:
    """What a run that was cut off left in the folder.

    Raises:
        SystemExit: it is of another commit, build, GPU or Torch, and times stand side by side only of one.
    """
    path = folder / f"{operator}.json"
    if not path.is_file():
        return {"rows": [], "steps": []}
    result = json.loads(path.read_text())
    for key in SAME:
        if result["machine"][key] != machine[key]:
            sys.exit(
                f"--resume: {path} has {key} {result['machine'][key]!r}, and this run {machine[key]!r}; "
                "run without it to measure anew"
            )
    return {"rows": result["rows"], "steps": result["steps"]}


def prepare(setting: Setting, operators: list[str], quick: bool) -> None:
    """Have the peers compile everything, without a time of it."""
    start = time.monotonic()
    for operator in operators:
        shapes, steps = shapes_of(operator, quick)
        for shape in shapes:
            forward_backward.prepare(setting, shape)
        for step in steps:
            decode.prepare(setting, step)
    setting.say(f"prepared in {time.monotonic() - start:.0f} s")


def shapes_of(operator: str, quick: bool) -> tuple[list[Shape], list[StepShape]]:
    """For forward and backward, and for the decode step."""
    shapes, steps = (QUICK_SHAPES, QUICK_STEPS) if quick else (SHAPES, STEPS)
    return [x for x in shapes if x.operator == operator], [x for x in steps if x.operator == operator]


def write(folder: Path, result: dict) -> None:
    path = folder / f"{result['operator']}.json"
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def default_folder(gpu: str, trial: bool) -> Path:
    """Where the report looks for a GPU's results; those of a trial are not for it."""
    return ROOT / ".build" / "gpu-bench-trial" if trial else RESULTS.parent / slug(gpu)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description="Time forward, forward + backward and the decode step of each operator on a GPU, beside "
        "other people's kernels where they are installed. Exit status 1 if a bar is missed, 2 if the kernel "
        "is wrong. Needs a build: `make gpu-bench` makes it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--only", nargs="+", metavar="OPERATOR", default=list(OPERATORS), help="which to time"
    )
    parser.add_argument("--quick", action="store_true", help="small shapes, for a first look")
    parser.add_argument(
        "--peers", type=Path, metavar="DIR", help="folder of other people's packages; none: ours alone"
    )
    parser.add_argument("--no-peers", dest="peers", action="store_const", const=None, help="ours alone")
    parser.add_argument(
        "--peer-seconds", type=float, default=180, help="for a peer to compile and tune itself"
    )
    parser.add_argument(
        "--prepare",
        action="store_true",
        help="only have the peers compile, all operators at once: a later run finds it on the disk; the GPU "
        "may be busy meanwhile",
    )
    parser.add_argument(
        "--resume", action="store_true", help="keep the shapes that a run of the same build has timed"
    )
    parser.add_argument("--commit", metavar="SHA", help="what the tree holds, where Git cannot tell")
    parser.add_argument("--device", default="cuda", help="cpu, to try the benchmark itself out")
    parser.add_argument("--kernel", type=Path, default=ROOT, help="folder that holds build/ or variants")
    parser.add_argument("--out", type=Path, help="folder for the results  (default: that of the GPU)")
    options = parser.parse_args(arguments)
    for name in options.only:
        if name not in OPERATORS:
            parser.error(f"OPERATOR must be one of {', '.join(OPERATORS)}, got {name!r}")
    if options.prepare and not options.peers:
        parser.error("--prepare needs --peers DIR")
    return options


if __name__ == "__main__":
    sys.exit(main())
