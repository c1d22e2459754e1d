"""The loader with each way in which releases of the kernels library load, from the oldest that fits.

`requirements/kernels` names the releases beside the installed one; `make test` puts each into a folder.
"""

from __future__ import annotations

import json
import os
import platform
import re

import pytest

from tests.loader.home import ROOT, Home
from tests.loader.publishing import FOREIGN, VARIANT, TinyKernel, publish
from tests.loopback_hub import LoopbackHub

RELEASES = sorted(path.stem for path in (ROOT / "requirements" / "kernels").glob("*.txt"))
FITTING = f"torch-stable-abi211-cpu-{platform.machine()}-linux"
NEWER = f"torch-stable-abi299-cpu-{platform.machine()}-linux"

CODE = """
import json, os, sys
import kernels
from flash_rwkv import LoaderError, get_kernel

def told(error, *arguments, **keywords):
    try:
        get_kernel(*arguments, **keywords)
    except error as problem:
        return str(problem)

broken, greedy, tampered = sys.argv[2:]
kernel = get_kernel(backend="cpu")
os.environ["BREAK"] = "1"
report = {
    "release": kernels.__version__,
    "whoami": kernel.whoami(),
    "known": [loaded.module is kernel for loaded in kernels.get_loaded_kernels()],
    "broken": told(ImportError, sys.argv[1], broken),
    "greedy": told(LoaderError, sys.argv[1], greedy),
    "tampered": told(LoaderError, sys.argv[1], tampered),
}
del os.environ["BREAK"]
report["mended"] = get_kernel(sys.argv[1], broken).whoami()
print(json.dumps(report))
"""


def test_the_package_asks_for_these_releases() -> None:
    text = (ROOT / "loader" / "pyproject.toml").read_text()
    (oldest,) = re.findall(r'"kernels>=([\d.]+),', text)
    assert RELEASES[0] == oldest


@pytest.mark.parametrize("release", [*RELEASES, "installed"])
def test_release_of_kernels(hub: LoopbackHub, home: Home, release: str) -> None:
    folder = ROOT / ".build" / "kernels" / release
    if release != "installed" and not (folder / "kernels").is_dir():
        pytest.skip(f"kernels {release} is not in {folder}: `make test` puts it there")
    fitting = {FITTING: TinyKernel(text="compiled"), VARIANT: TinyKernel(text="plain"), NEWER: TinyKernel()}
    publish(hub, {**fitting, FOREIGN: TinyKernel()})
    source = (
        b"import os\nif 'BREAK' in os.environ: raise ImportError('broken')\nwkv7 = whoami = lambda: 'whole'\n"
    )
    broken = publish(hub, {VARIANT: TinyKernel(extra={"ops.py": source})}, "broken", "flash-rwkv/broken")
    depends = {"kernel-depends": [{"repo-id": "evil/kernel", "version": 1}]}
    greedy = publish(hub, {VARIANT: TinyKernel(extra_metadata=depends)}, "greedy", "flash-rwkv/broken")
    tampered = publish(hub, {VARIANT: TinyKernel(extra={"evil.py": b""})}, "tampered", "flash-rwkv/broken")
    home.pin(hub)
    hub.faults.answer(f"{tampered}/build/{VARIANT}/weights.bin", bytes(256 * 1024))
    path = os.pathsep.join([str(folder), os.environ["PYTHONPATH"]])
    arguments = ["flash-rwkv/broken", broken, greedy, tampered]
    result = home.run("-c", CODE, *arguments, **({} if release == "installed" else {"PYTHONPATH": path}))
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert release in ("installed", report["release"])
    assert (report["whoami"], report["known"]) == ("compiled", [True])
    assert (report["broken"], report["mended"]) == ("broken", "whole")
    assert "evil/kernel too: that is not allowed" in report["greedy"]
    assert "weights.bin" in report["tampered"]
    assert "is not the file that was pinned" in report["tampered"]
