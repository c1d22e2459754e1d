"""Commands in Linux namespaces of their own, with mounts and networks that nobody else sees."""

from __future__ import annotations

import os
import subprocess
from functools import lru_cache

import pytest


def unshared(*kinds: str) -> list[str]:
    """Return the start of a command line that runs the rest in new namespaces, e.g. of `"mount"`.

    Skips the test where the kernel, or whoever made this container, does not allow that.
    """
    command = ["unshare", *(f"--{kind}" for kind in kinds)]
    if os.geteuid() != 0:
        command.append("--map-root-user")
    if error := _refusal(tuple(command), "mount" in kinds):
        pytest.skip(f"`{' '.join(command)}` does not work here: {error}")
    return command


@lru_cache
def _refusal(command: tuple[str, ...], mounts: bool) -> str:
    trial = "mount -t tmpfs tmpfs /mnt" if mounts else "true"
    try:
        result = subprocess.run([*command, "sh", "-c", trial], capture_output=True, text=True)
    except FileNotFoundError:
        return "it is not installed"
    return result.stderr.strip() if result.returncode else ""
