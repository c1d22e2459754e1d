"""The workflows on GitHub: what they build is what can be built. `make check` looks at their schema."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from builder.config import open_repository
from builder.variants import known_variants

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_a_release_has_every_variant() -> None:
    release = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())
    listed = release["jobs"]["build"]["strategy"]["matrix"]["variant"]
    assert sorted(listed) == sorted(variant.name for variant in known_variants(open_repository(ROOT)))


def test_actions_of_others_are_pinned_by_commit() -> None:
    used = [line for path in WORKFLOWS for line in path.read_text().splitlines() if "uses:" in line]
    assert used
    for line in used:
        assert re.search(r"uses: [\w./-]+@[0-9a-f]{40} # v[\d.]+$", line), line
