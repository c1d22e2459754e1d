"""`python -m tests.fuzz.run TARGET FOLDER FLAGS`: a process of libFuzzer's own, which ends it."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

from tests.fuzz.targets import TARGETS


def main(name: str, folder: Path, flags: list[str]) -> None:
    """Fuzz a target; `folder` keeps the corpus, and what made it fail."""
    target = TARGETS[name]
    # Instrumented on the way in, and nothing else: JSON's and TOML's own branches would lead elsewhere.
    with atheris.instrument_imports(include=[target.module]):
        __import__(target.module)
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    atheris.Setup([sys.argv[0], str(corpus), f"-artifact_prefix={folder}/failed-", *flags], target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
