"""`python -m tests.fuzz`: feed mutated files to the readers of locks, metadata and build.toml."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.progress import track

from tests.fuzz.targets import ROOT, TARGETS

# A file that takes longer, or more memory, is a finding too.
LIMITS = ("-timeout=10", "-rss_limit_mb=2048", "-max_len=512", "-len_control=0")


def main(arguments: list[str] | None = None) -> int:
    """Print findings; the exit status is 1 if there are any, 2 where atheris is not installed."""
    options = _parser().parse_args(arguments)
    console = Console(highlight=False, soft_wrap=True)
    if find_spec("atheris") is None:
        console.print(
            "atheris is not installed: it has wheels for Linux x86-64 and Python up to 3.13", style="red"
        )
        return 2
    failed = []
    for name in track(options.target or TARGETS, "fuzzing", console=console):
        folder = options.keep / name if options.keep else Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-"))
        result = fuzz(name, folder, f"-max_total_time={options.seconds}", f"-seed={options.seed}")
        console.print(f"{name}: {result.stdout.splitlines()[-1]}", markup=False)
        if result.returncode:
            failed.append(name)
            console.print(_traceback(result.stdout), style="red", markup=False)
        for found in sorted(folder.glob("failed-*")):
            console.print(f"python -m tests.fuzz.run {name} {folder} {found}    runs it again")
    return int(bool(failed))


def fuzz(name: str, folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run one target with flags of libFuzzer, which ends with a status but 0 if it finds something."""
    folder.mkdir(parents=True, exist_ok=True)
    return subprocess.run(
        [sys.executable, "-m", "tests.fuzz.run", name, str(folder), *flags, *LIMITS],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'loader' / 'src'}:{os.environ.get('PYTHONPATH', '')}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )


def _traceback(log: str) -> str:
    """The part of a log that says what came out."""
    start = log.find("=== Uncaught Python exception")
    return log[start : log.find("==", start + 40)] if start >= 0 else log[-2000:]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.split(": ", 1)[1])
    parser.add_argument("--target", action="append", choices=TARGETS, help="repeatable (default: all)")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep corpora there and go on from them")
    return parser


if __name__ == "__main__":
    sys.exit(main())
