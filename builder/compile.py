"""Runs ninja and shows how far it is."""

from __future__ import annotations

import os
import re
import subprocess
from collections import deque

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from builder.errors import BuilderError
from builder.ninja_file import Plan, write_build_files

STATUS = re.compile(r"\[(\d+)/(\d+)\] (.*)")
NOTHING_TO_DO = "ninja: no work to do."


def compile_variant(plan: Plan, console: Console, jobs: int | None = None, verbose: bool = False) -> int:
    """Bring the plan's objects up to date.

    Returns:
        Number of commands that ran; 0 when everything was up to date.

    Raises:
        BuilderError: a command failed; its output has been printed.
    """
    path = write_build_files(plan)
    command = [plan.toolchain.ninja, "-f", str(path.relative_to(plan.repository.root))]
    command += ["-v"] if verbose else []
    command += ["-j", str(jobs)] if jobs else []
    process = subprocess.Popen(
        command,
        cwd=plan.repository.root,
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        done, output = _follow(process, plan.variant.name, console, verbose)
    finally:
        process.terminate()
        process.wait()
    if process.returncode:
        console.print("\n".join(output), markup=False, highlight=False, soft_wrap=True)
        raise BuilderError(
            f"{plan.variant.name} did not compile: the compiler's messages are above. "
            "Add --verbose to see the whole commands."
        )
    return done


def _environment() -> dict[str, str]:
    # The C locale keeps messages and sorting the same; the epoch stands in for any use of __DATE__.
    return {**os.environ, "NINJA_STATUS": "[%f/%t] ", "LC_ALL": "C", "SOURCE_DATE_EPOCH": "0"}


def _follow(process: subprocess.Popen, title: str, console: Console, verbose: bool) -> tuple[int, deque[str]]:
    """Turn ninja's status lines into a progress bar; keep the last of the other lines for an error."""
    done, other = 0, deque(maxlen=400)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=False) as progress:
        task = progress.add_task(title, total=None)
        for line in process.stdout:
            line = line.rstrip("\n")
            match = STATUS.match(line)
            if match:
                done, total, doing = int(match.group(1)), int(match.group(2)), match.group(3)
                progress.update(task, completed=done, total=total)
                if verbose or not console.is_terminal:
                    progress.console.print(
                        f"[{done}/{total}] {doing}", markup=False, highlight=False, soft_wrap=True
                    )
            elif line != NOTHING_TO_DO:
                other.append(line)
        progress.update(task, total=done or 1, completed=done or 1)
        process.wait()
    return done, other
