"""`python -m flash_rwkv`, the same as the command `flash-rwkv`."""

from __future__ import annotations

import sys

from .cli import main

sys.exit(main())
