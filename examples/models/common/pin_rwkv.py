"""The kernel that the model runs: one repository, one commit, and what its files hold there.

`examples/models/convert.py --kernel-lock` writes the last two; zeros: none yet.
"""

from __future__ import annotations

REPOSITORY = "flash-rwkv/flash-rwkv"
# The commit, a full sha.
REVISION = "0000000000000000000000000000000000000000"
# Of each build variant the SHA-256 of every file.
FILES: dict[str, dict[str, str]] = {}
