"""Entry point of `python -m examples.demo`."""

import sys

from examples.demo.cli import main

if __name__ == "__main__":
    sys.exit(main())
