"""Commands that run at the same time, their output line by line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

AT_ONCE = 4  # each has processes of its own that compile


def together(module: str, arguments: dict[str, Sequence[str]], say: Callable[[str], None]) -> list[str]:
    """Run `python -m module` with each of `arguments`, and tell every line with its name before it.

    Returns:
        The names of those that ended with another status than 0.
    """

    def follow(name: str) -> int:
        command = [sys.executable, "-u", "-m", module, *arguments[name]]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as process:
            for line in process.stdout:
                say(f"{name}: {line.rstrip()}")
        return process.returncode

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [name for name, status in zip(arguments, pool.map(follow, arguments), strict=True) if status]
