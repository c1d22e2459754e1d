"""Reads the Hugging Face cache and asks the Hub. Nothing from either is trusted before it is hashed."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from .errors import IntegrityError
from .lockfile import COMMIT, FileEntry, Files, Lock, safe_name, safe_path
from .patience import Advance, NotThereError, read, receive

if TYPE_CHECKING:
    from huggingface_hub import HfApi

SIGNATURE = "metadata.json.sigstore"
_UNHASHED = ("metadata.json", SIGNATURE)  # what a variant's own digests leave out
LONGEST_LISTING = 100  # pages


def make_api() -> HfApi:
    """Return a client that works with HF_HUB_DISABLE_TELEMETRY=1 too, unlike the kernels library's."""
    from huggingface_hub import HfApi

    from ._version import __version__

    return HfApi(library_name="flash-rwkv", library_version=__version__)


def cached(repository: str, revision: str, variant: str, names: Iterable[str]) -> dict[str, Path]:
    """Return those files of a variant that lie in the Hugging Face cache, asking nobody."""
    from huggingface_hub import try_to_load_from_cache

    options = {"cache_dir": os.environ.get("KERNELS_CACHE"), "revision": revision, "repo_type": "kernel"}
    paths = {name: try_to_load_from_cache(repository, f"build/{variant}/{name}", **options) for name in names}
    return {name: Path(path) for name, path in paths.items() if isinstance(path, str)}


def download(
    repository: str,
    commit: str,
    variant: str,
    name: str,
    size: int,
    target: Path,
    advance: Advance = lambda count: None,
) -> FileEntry:
    """Write a file of a variant to `target`, and nothing anywhere else; return its digest.

    Raises:
        UnavailableError: the Hub cannot be reached or does not have it.
        IntegrityError: it is longer than `size` bytes.
        OSError: `target` cannot be written.
    """
    url = f"{endpoint()}/kernels/{repository}/resolve/{commit}/build/{quote(variant)}/{quote(name)}"
    return receive(url, _headers(), size, target, _place(repository, commit), advance)


def resolve(repository: str, revision: str) -> str:
    """Return the commit that a branch, tag or commit stands for now.

    Raises:
        IntegrityError: the Hub answers with no commit, or with another than it was asked for.
    """
    url = f"{_api(repository)}/revision/{quote(revision, safe='')}"
    body, _ = read(url, _headers(), _place(repository, revision))
    with _understood(url):
        commit = json.loads(body)["sha"]
        if not COMMIT.fullmatch(commit) or (COMMIT.fullmatch(revision) and commit != revision):
            raise ValueError(f"it is of commit {commit!r}, not of {revision}")
    return commit


def describe(repository: str, commit: str) -> Lock:
    """Draw up a lock from the digests that a commit publishes for itself in each `metadata.json`."""
    resolve(repository, commit)
    variants, version = {}, None
    with tempfile.TemporaryDirectory(prefix="flash-rwkv-") as folder:
        path, signature = Path(folder) / "metadata.json", Path(folder) / SIGNATURE
        for variant, sizes in tree(repository, commit).items():
            download(repository, commit, variant, path.name, sizes[path.name], path)
            variants[variant] = own_digests(variant, path.read_bytes(), sizes)
            if variants[variant] and SIGNATURE in sizes:
                entry = download(repository, commit, variant, SIGNATURE, sizes[SIGNATURE], signature)
                variants[variant][SIGNATURE] = entry
            version = json.loads(path.read_bytes()).get("version")
    return Lock(repository, commit, version, variants, f"the digests published in {repository}")


def tree(repository: str, commit: str) -> dict[str, dict[str, int]]:
    """Return the size of every file of every variant of a commit, bytecode left out.

    Raises:
        IntegrityError: the listing has no end, or a name in it could lead out of its folder.
    """
    listing: dict[str, dict[str, int]] = {}
    url: str | None = f"{_api(repository)}/tree/{commit}/build?recursive=true"
    for _ in range(LONGEST_LISTING):
        page = url
        try:
            body, url = read(page, _headers(), _place(repository, commit))
        except NotThereError:  # no folder `build`, no variants
            return {}
        with _understood(page):
            for item in json.loads(body):
                _enter(listing, item)
            if url and not url.startswith(f"{endpoint()}/"):  # it would be sent the user's token
                raise ValueError(f"its next page is elsewhere, {url}")
        if not url:
            return {variant: sizes for variant, sizes in listing.items() if "metadata.json" in sizes}
    raise IntegrityError(f"{page}: the listing goes on after {LONGEST_LISTING} pages. Nothing was loaded")


def own_digests(variant: str, metadata: bytes, sizes: dict[str, int]) -> Files:
    """Return the table of files in a variant's `metadata.json`; empty when it has no SHA-256 digests.

    Raises:
        IntegrityError: the files there are not the files it lists.
    """
    with _understood(f"metadata.json of {variant}"):
        digest = json.loads(metadata).get("digest") or {}
        if digest.get("algorithm") != "sha256":
            return {}
        listed = {safe_path(name): base64.b64decode(value).hex() for name, value in digest["files"].items()}
        if differ := sorted((sizes.keys() - set(_UNHASHED)) ^ listed.keys()):
            raise ValueError(f"its digests and the files of the variant disagree on {differ[0]}")
    files = {name: FileEntry(sha256, sizes[name]) for name, sha256 in listed.items()}
    return {**files, "metadata.json": FileEntry(hashlib.sha256(metadata).hexdigest(), len(metadata))}


def endpoint() -> str:
    """Return the Hub in use."""
    from huggingface_hub import constants

    return constants.ENDPOINT


def _api(repository: str) -> str:
    return f"{endpoint()}/api/kernels/{repository}"


def _headers() -> dict[str, str]:
    from huggingface_hub.utils import build_hf_headers

    from ._version import __version__

    return build_hf_headers(library_name="flash-rwkv", library_version=__version__)


def _place(repository: str, revision: str) -> str:
    return f"{repository} at {revision} from {endpoint()}"


@contextmanager
def progress(title: str, size: int) -> Iterator[Advance]:
    """Show a bar for `size` bytes, in the client library's manner; nothing for none."""
    from huggingface_hub.utils import tqdm

    with tqdm(total=size, desc=title, unit="B", unit_scale=True, disable=not size or None) as bar:
        yield bar.update


def _enter(listing: dict[str, dict[str, int]], item: dict) -> None:
    variant, _, name = item["path"].removeprefix("build/").partition("/")
    if item["type"] == "file" and name and not name.endswith(".pyc"):
        listing.setdefault(safe_name(variant), {})[safe_path(name)] = int(item["size"])


@contextmanager
def _understood(what: str) -> Iterator[None]:
    """Refuse an answer that says what it must not, or nothing that makes sense."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise IntegrityError(f"{what} cannot be used: {error}. Nothing was loaded") from None
