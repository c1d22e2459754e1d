"""The documents keep their word: code blocks run, commands and links exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from examples.demo.hub import private_hub, publish
from tests.docs.pages import blocks as blocks_of_python
from tests.docs.pages import pages, run

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    path.relative_to(ROOT).as_posix()
    for folder in (".", "docs", "docs/api", "docs/decisions", "builder", "loader")
    for path in sorted((ROOT / folder).glob("*.md"))
]


def blocks(document: str, language: str) -> list[str]:
    """The fenced code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)


def commands(document: str) -> list[list[str]]:
    """The shell commands in a document's bash blocks, without comments, split into words."""
    lines = "".join(blocks(document, "bash")).splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The sha of build/ on a Hub that child processes talk to."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            patch.setenv(name, os.environ[name])  # so that the Hub's settings are undone afterwards
        with private_hub(tmp_path_factory.mktemp("hub")) as hub:
            yield publish(hub)


@pytest.mark.parametrize("page", pages())
def test_code_of_a_page_runs(published: str, page: str) -> None:
    """What the page shows runs on the build of this checkout, published to a Hub on this machine."""
    settings = {"PYTHONPATH": str(ROOT / "loader" / "src"), "FLASH_RWKV_LOCAL": str(ROOT / "build")}
    result = subprocess.run(
        [sys.executable, "-m", "tests.docs.pages", page, published],
        cwd=ROOT,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr


def test_pages_with_code_are_found() -> None:
    assert {"README.md", "docs/conventions.md", "docs/integration.md", "docs/porting.md"} <= set(pages())


@pytest.mark.parametrize(
    ("fence", "complaint"),
    [('python title="later"', "needs a GPU"), ("python linenums", "expected"), ("py", "expected")],
)
def test_unknown_marks_are_refused(monkeypatch, tmp_path: Path, fence: str, complaint: str) -> None:
    monkeypatch.setattr("tests.docs.pages.ROOT", tmp_path)
    (tmp_path / "page.md").write_text(f"text\n\n```{fence}\n1 + 1\n```\n")
    with pytest.raises(ValueError, match=rf"page\.md:3: .*{complaint}"):
        blocks_of_python("page.md")


def test_a_mark_excuses_nothing_else(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tests.docs.pages.ROOT", tmp_path)
    (tmp_path / "page.md").write_text('```python title="needs fla"\nimport flaa\n```\n')
    with pytest.raises(ModuleNotFoundError, match="flaa"):
        run("page.md", "0" * 40)


def test_code_of_the_card_names_a_kernel_that_loads(published: str) -> None:
    (code,) = blocks("CARD.md", "python")
    load = code.partition("y, state")[0].replace("<commit sha>", published)
    result = subprocess.run(
        [sys.executable, "-c", f"{load}\nprint(rwkv.wkv7)"], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("document", ["README.md", "CARD.md"])
def test_operators_named_in_the_documents_exist(kernel, document: str) -> None:
    named = set(
        re.findall(r"`(wkv\d(?:_step_)?|rwkv\d_cuda_linear_attention)\b", (ROOT / document).read_text())
    )
    assert {"wkv4", "wkv5", "wkv6", "wkv7", "wkv7_step_"} <= named
    assert named <= set(kernel.__all__)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    text = re.sub(r"^```.*?^```", "", (ROOT / document).read_text(), flags=re.MULTILINE | re.DOTALL)
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    local = [link for link in links if link and "://" not in link]
    assert [link for link in local if not ((ROOT / document).parent / link).exists()] == []


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_commands_exist(document: str) -> None:
    found = commands(document)
    assert found
    targets = [words[1] for words in found if words[0] == "make"]
    for target in targets:
        dry = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
        assert dry.returncode == 0, dry.stderr
    for words in found:
        if words[:2] == ["python", "-m"]:
            assert_options_exist([sys.executable, *words[1:4]], words[4:])


def assert_options_exist(command: list[str], arguments: list[str]) -> None:
    """Each `--option` among the arguments is in the command's help."""
    shown = subprocess.run([*command, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    for option in (word for word in arguments if word.startswith("--")):
        assert option in shown.stdout


def test_help_of_make_lists_every_target() -> None:
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True).stdout
    phony = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for target in " ".join(phony).split():
        assert re.search(rf"^  make {target} ", shown, re.MULTILINE), target


def test_speed_in_the_readme_is_what_was_measured() -> None:
    check = [sys.executable, "-m", "benchmarks.report", "--check"]
    result = subprocess.run(check, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
