"""Entry point of `python -m examples.demo`."""

import os
import sys

# Torch's worker threads spin between operations, by default so long that a small model trains many times
# slower on cores that others use too. Spinning this short costs little.
# Torch reads it when it is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

from examples.demo.cli import main

if __name__ == "__main__":
    sys.exit(main())
