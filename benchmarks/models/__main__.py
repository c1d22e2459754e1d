"""`python -m benchmarks.models`: whole models of RWKV-5, 6 and 7, beside the loop in Python and others."""

from __future__ import annotations

import argparse
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.cpu import load_kernel
from benchmarks.gpu.__main__ import default_folder
from benchmarks.gpu.preparation import REHEARSAL, Preparation
from benchmarks.gpu.timing import Stopwatch
from benchmarks.machine import RESULTS, ROOT, describe, describe_gpu, disturbed, watch_other_work
from benchmarks.models import store
from benchmarks.models.bars import bars, missed
from benchmarks.models.measure import Setting, measure, prepare
from benchmarks.models.shapes import PUBLISHED, SIZES, VERSIONS, sizes, work
from benchmarks.models.table import print_results
from benchmarks.stamp import outcome
from benchmarks.together import together


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write; 1 if a bar is missed."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    if options.peers:
        sys.path.append(str(options.peers.resolve()))
    # Off a terminal rich assumes 80 columns, too few for the table.
    console = Console() if Console().is_terminal else Console(width=160)
    kernel = load_kernel(options.kernel)
    machine = {**describe(kernel, options.commit), **(describe_gpu(device) if device.type == "cuda" else {})}
    machine |= {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "tests": outcome(kernel.__name__),
    }
    console.print(f"{machine.get('gpu', machine['cpu'])}, {kernel.__name__}", highlight=False)
    start = time.monotonic()

    def say(line: str) -> None:
        console.print(f"{time.monotonic() - start:5.0f} s  {line}", highlight=False)

    preparation = REHEARSAL if options.prepare else Preparation(options.peer_seconds)
    setting = Setting(kernel, Stopwatch(device), options.compile, options.use_peers, preparation, say)
    if options.prepare:
        return prepare_all(setting, options, arguments)
    folder = options.out or _folder(device, machine, options)
    rows = []
    for version, size in options.models:
        if time.monotonic() - start > options.seconds:
            say(f"{version} {size}: left out, more than {options.seconds:g} s have passed")
            continue
        other_work = watch_other_work()
        for row in measure(setting, sizes(version, size), size, work(device, size, options.quick)):
            if device.type == "cpu":
                machine["other_work"] = other_work()
            # Written after each kind of work: a run that is cut off leaves what it had.
            row["bars"] = bars(row)
            store.add(folder, machine, row)
        rows.append(row)
    print_results(console, rows)
    if device.type == "cpu" and (disturbance := disturbed(store.load(folder)["machine"])):
        console.print(disturbance, style="yellow", highlight=False)
    say(f"written to {folder / store.NAME}; `python -m benchmarks.report` puts it into docs/performance.md")
    return int(any(missed(row) for row in rows))


def prepare_all(setting: Setting, options: argparse.Namespace, arguments: list[str]) -> int:
    """Have everything compiled: a model in this process, several in processes of their own."""
    if len(options.models) > 1:
        each = {" ".join(one): [*arguments, "--only", one[0], "--sizes", one[1]] for one in options.models}
        return int(bool(together("benchmarks.models", each, setting.say)))
    version, size = options.models[0]
    prepare(setting, sizes(version, size), size, work(setting.device, size, options.quick))
    setting.say("prepared")
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.models",
        description="Tokens a second of whole models with random weights: a prompt, decoding, and training "
        "without the optimizer, with memory and errors. Beside ours runs the same model on the loop in "
        "Python, on a GPU fla's of the same shape, and on the CPU the package rwkv. Exit status 1 if a "
        "bar is missed.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=VERSIONS, help="versions  (default: all)")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, help="(default: 0.1B on the CPU, all on a GPU)")
    parser.add_argument("--full", action="store_true", help="all sizes on the CPU too")
    parser.add_argument("--quick", action="store_true", help="RWKV-7 of 0.1B alone, few rounds: a first look")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=min(2, torch.get_num_threads()), help="on the CPU")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="ours compiled too  (default: on a GPU)",
    )
    parser.add_argument("--peers", type=Path, metavar="DIR", help="folder of other people's packages")
    parser.add_argument("--no-peers", dest="use_peers", action="store_false", help="ours alone")
    parser.add_argument(
        "--peer-seconds",
        type=float,
        help="for a peer to get ready for a kind of work  (default: 120, quick 15)",
    )
    parser.add_argument(
        "--prepare",
        action="store_true",
        help="only have ours and the peers compile, models at once: a later run finds it on the disk; "
        "the GPU may be busy meanwhile",
    )
    parser.add_argument("--seconds", type=float, default=3600, help="begin no further model after so long")
    parser.add_argument("--commit", metavar="SHA", help="what the tree holds, where Git cannot tell")
    parser.add_argument("--kernel", type=Path, default=ROOT, help="folder that holds build/ or variants")
    parser.add_argument("--out", type=Path, help="folder for the results  (default: that of the machine)")
    options = parser.parse_args(arguments)
    gpu = torch.device(options.device).type == "cuda"
    if gpu and not torch.cuda.is_available():
        parser.error(f"Torch {torch.__version__} sees no GPU here (`nvidia-smi` lists them)")
    if options.compile is None:
        options.compile = gpu
    if options.peer_seconds is None:
        options.peer_seconds = 15 if options.quick else 120
    usual = ("0.1B",) if options.quick or not (gpu or options.full) else tuple(PUBLISHED)
    versions = options.only or (("rwkv7",) if options.quick else VERSIONS)
    # The newest version and the middle size first: a run that is cut short has what is asked for most.
    order = ("0.4B", "0.1B", "1.5B", "trial")
    chosen = sorted(options.sizes or usual, key=order.index)
    options.models = [(v, s) for v in sorted(versions, reverse=True) for s in chosen]
    return options


def _folder(device: torch.device, machine: dict, options: argparse.Namespace) -> Path:
    """Where the report looks; a first look is not for it."""
    trial = options.quick or "trial" in (options.sizes or ())
    if device.type == "cpu" and not trial:
        return RESULTS
    return default_folder(machine.get("gpu", ""), trial)


if __name__ == "__main__":
    sys.exit(main())
