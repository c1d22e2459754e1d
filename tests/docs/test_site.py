"""The site that `make docs` builds: complete, without dead links, and fetching nothing from elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

import flash_rwkv

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / ".build" / "site"
TOOLS = ROOT / ".build" / "docs-env" / "bin"


@pytest.fixture(scope="module")
def pages() -> dict[str, Page]:
    """The pages of the site by their path."""
    found = {path.relative_to(SITE).as_posix(): Page(path.read_text()) for path in SITE.rglob("*.html")}
    if "index.html" not in found:
        pytest.fail(f"{SITE} holds no site: run `make docs` first", pytrace=False)
    return found


class Page(HTMLParser):
    """What a page names, fetches and says."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.fetched: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.ids.add(values.get("id") or "")
        self.fetched.add(values.get("src") or "")
        if tag == "link":
            self.fetched.add(values.get("href") or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def documented(page: Page) -> set[str]:
    """The last names of what the page has an entry for, such as `wkv7` of `flash_rwkv.ops.wkv7`."""
    return {name.rpartition(".")[2] for name in page.ids if "flash_rwkv." in name}


def test_every_public_function_has_an_entry(kernel, pages: dict[str, Page]) -> None:
    submodules = {"fla": kernel.fla, "layers": kernel.layers, "reference": kernel.reference}
    expected = {name for name in kernel.__all__ if name not in submodules}
    for page, module in submodules.items():
        assert set(module.__all__) - {"DECAYS"} <= documented(pages[f"api/{page}.html"]), page
    operators = {"operators", "compat", "transformers"}
    entries = set().union(*(documented(pages[f"api/{page}.html"]) for page in operators))
    # Second names of functions that have one already.
    assert expected - entries == {"forward_bf16", "backward_bf16", "forward_with_state_bf16"}
    own = set(flash_rwkv.__all__) - set(kernel.__all__) - {"__version__"}
    assert own <= documented(pages["api/loader.html"])


def test_command_line_is_that_of_the_package(pages: dict[str, Page]) -> None:
    text = pages["api/cli.html"].text
    for option in ("flash-rwkv info --help", "--all-variants", "FLASH_RWKV_CACHE", "--revision SHA"):
        assert option in text


def test_examples_of_the_readme_are_in_the_quick_start(pages: dict[str, Page]) -> None:
    assert "rwkv.wkv7_step_(*token, pool, slots" in pages["index.html"].text


def test_references_in_docstrings_became_links(pages: dict[str, Page]) -> None:
    assert [name for name, page in pages.items() if name.startswith("api/") and ":func:" in page.text] == []


def test_nothing_is_fetched_from_elsewhere(pages: dict[str, Page]) -> None:
    outside = {(name, url) for name, page in pages.items() for url in page.fetched if "//" in url}
    assert outside == set()
    styles = [path for path in SITE.rglob("*.css") if "url(http" in path.read_text().replace(" ", "")]
    assert styles == []


@pytest.mark.parametrize("link", ["nowhere.md", "conventions.md#nowhere", "images/nowhere.png"])
def test_a_link_that_leads_nowhere_is_an_error(tmp_path: Path, link: str) -> None:
    for name in ("README.md", "loader", "torch-ext"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    with (tmp_path / "docs" / "index.md").open("a") as page:
        page.write(f"\n[a link]({link})\n")
    environment = {**os.environ, "PATH": f"{TOOLS}:{os.environ['PATH']}", "NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(
        [TOOLS / "mkdocs", "build"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 1
    assert "nowhere" in result.stderr
    assert "Aborted with 1 warning" in result.stdout
