"""`python -m tests.loopback_hub --root DIR`: serve until interrupted; the first line out is the URL."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys

from . import LoopbackHub


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.loopback_hub",
        description="A Hub of kernels and models on 127.0.0.1. Point clients at it with HF_ENDPOINT=<URL>.",
    )
    parser.add_argument(
        "--root", required=True, help="folder that keeps the repositories; created when missing"
    )
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (default: a free one)")
    parser.add_argument("--trust", action="append", default=[], metavar="NAME", help="vouch for a publisher")
    options = parser.parse_args()
    try:
        hub = LoopbackHub(options.root, options.port, tuple(options.trust))
    except (OSError, OverflowError) as error:
        print(f"cannot serve {options.root} on 127.0.0.1:{options.port}: {error}", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with hub:
        print(hub.url, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            hub.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
