"""Runs the Python of a page: `python -m tests.docs.pages PAGE COMMIT`.

The blocks of a page are one program, from top to bottom. A block whose fence has a title from `NEEDS`, as in
```` ```python title="needs a GPU" ````, shows that title in the site. It runs where what it needs is there;
elsewhere it must fail for want of that and for no other reason, so nothing hides behind a mark.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# What a marked block may lack: the exception that says so.
NEEDS = {
    "needs a GPU": r"(AssertionError|RuntimeError): .*(CUDA|NVIDIA)",
    "needs the network": r"OSError: .* is not a valid model identifier",
    "needs fla": r"ModuleNotFoundError: No module named 'fla'",
    "needs RWKV-LM": r"ModuleNotFoundError: No module named 'src'",
}
# In an admonition or a tab a block is indented.
FENCE = re.compile(r"^(?P<indent> *)```py(?P<info>.*)\n(?P<code>(?s:.*?))^(?P=indent)```$", re.MULTILINE)
INFO = re.compile(r'thon(?: title="(?P<title>[^"]*)")?')


@dataclass(frozen=True)
class Block:
    """A block of Python; `needs` is one of `NEEDS`, or None for a block that runs everywhere."""

    page: str
    line: int
    needs: str | None
    code: str


def pages() -> list[str]:
    """The README and the pages of the site, as far as they have Python; design notes only tell."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    names = [path.relative_to(ROOT).as_posix() for path in found if path.parent.name != "decisions"]
    return [name for name in names if blocks(name)]


def blocks(page: str) -> list[Block]:
    """The Python blocks of a page.

    Raises:
        ValueError: a block's fence says something else than `python`, with or without a mark.
    """
    text = (ROOT / page).read_text(encoding="utf-8")
    found = []
    for fence in FENCE.finditer(text):
        line = text.count("\n", 0, fence.start()) + 1
        info = INFO.fullmatch(fence["info"])
        if info is None or (info["title"] and info["title"] not in NEEDS):
            raise ValueError(
                f'{page}:{line}: expected ```python, or with title="..." of {", ".join(NEEDS)}; '
                f"got ```py{fence['info']}"
            )
        found.append(Block(page, line, info["title"], textwrap.dedent(fence["code"])))
    return found


def run(page: str, commit: str) -> None:
    """Run a page with the commit in the place of `<commit sha>`; exceptions come with the page's line."""
    names: dict = {"__name__": "__page__"}
    for block in blocks(page):
        # Empty lines in front, so that a traceback has the line of the page.
        source = "\n" * block.line + block.code.replace("<commit sha>", commit)
        code = compile(source, str(ROOT / page), "exec")
        if block.needs is None:
            exec(code, names)
        else:
            _run_marked(block, code, names)


def _run_marked(block: Block, code: object, names: dict) -> None:
    try:
        exec(code, names)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        if not re.match(NEEDS[block.needs], reason):
            raise
        print(f"{block.page}:{block.line}: {block.needs}: {reason.splitlines()[0]}")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.docs.pages", description="Run the Python of a page."
    )
    parser.add_argument("page", help="such as docs/index.md")
    parser.add_argument("commit", help="what stands in the place of <commit sha>")
    options = parser.parse_args()
    run(options.page, options.commit)


if __name__ == "__main__":
    main()
