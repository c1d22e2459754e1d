"""Reads the Hugging Face cache and asks the Hub. Nothing from either is trusted before it is hashed."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import IntegrityError, UnavailableError
from .lockfile import FileEntry, Files, Lock, safe_path

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_LARGE = 1 << 20  # files from this size on get a progress bar of their own
_UNHASHED = ("metadata.json", "metadata.json.sigstore")  # what a variant's own digests leave out


def make_api() -> HfApi:
    """Return a client that works with HF_HUB_DISABLE_TELEMETRY=1 too, unlike the kernels library's."""
    from huggingface_hub import HfApi

    from ._version import __version__

    return HfApi(library_name="flash-rwkv", library_version=__version__)


def cached(repository: str, revision: str, variant: str, names: Iterable[str]) -> dict[str, Path]:
    """Return those files of a variant that lie in the Hugging Face cache, asking nobody."""
    from huggingface_hub import try_to_load_from_cache

    options = {"cache_dir": _cache_dir(), "revision": revision, "repo_type": "kernel"}
    paths = {name: try_to_load_from_cache(repository, f"build/{variant}/{name}", **options) for name in names}
    return {name: Path(path) for name, path in paths.items() if isinstance(path, str)}


def download(
    repository: str,
    revision: str,
    variant: str,
    sizes: dict[str, int],
    *,
    force: bool = False,
    cache_dir: str | None = None,
) -> dict[str, Path]:
    """Fetch the files of a variant into the Hugging Face cache.

    Args:
        sizes: size in bytes of every file wanted.
        force: fetch files again that are in the cache.

    Raises:
        UnavailableError: the Hub cannot be reached or does not have them.
    """
    from huggingface_hub.utils import tqdm

    class Silent(tqdm):
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **{**options, "disable": True})

    def fetch(name: str) -> tuple[str, Path]:
        path = api.hf_hub_download(
            repository,
            f"build/{variant}/{name}",
            repo_type="kernel",
            revision=revision,
            cache_dir=cache_dir or _cache_dir(),
            force_download=force,
            tqdm_class=Silent if sizes[name] < _LARGE else None,
        )
        return name, Path(path)

    api = make_api()
    with _explained(repository, revision), ThreadPoolExecutor(max_workers=4) as pool:
        results = pool.map(fetch, sizes)
        return dict(tqdm(results, total=len(sizes), desc=f"Fetching {variant}", unit="file"))


def resolve(repository: str, revision: str) -> str:
    """Return the commit that a branch, tag or commit stands for now.

    Asked before anything longer, for it fails at once where downloads would try again for a minute.
    """
    from huggingface_hub.constants import HF_HUB_ETAG_TIMEOUT

    with _explained(repository, revision):
        return make_api().kernel_info(repository, revision=revision, timeout=HF_HUB_ETAG_TIMEOUT).sha


def describe(repository: str, commit: str) -> Lock:
    """Draw up a lock from the digests that a commit publishes for itself in each `metadata.json`."""
    resolve(repository, commit)
    variants, version = {}, None
    for variant, sizes in tree(repository, commit).items():
        wanted = {"metadata.json": sizes["metadata.json"]}
        metadata = download(repository, commit, variant, wanted, force=True)["metadata.json"]
        variants[variant] = own_digests(metadata, sizes)
        version = json.loads(metadata.read_bytes()).get("version")
    return Lock(repository, commit, version, variants, f"the digests published in {repository}")


def tree(repository: str, commit: str) -> dict[str, dict[str, int]]:
    """Return the size of every file of every variant of a commit, bytecode left out."""
    from huggingface_hub.errors import RemoteEntryNotFoundError

    listing: dict[str, dict[str, int]] = {}
    options = {"path_in_repo": "build", "recursive": True, "repo_type": "kernel", "revision": commit}
    with _explained(repository, commit), suppress(RemoteEntryNotFoundError):  # no folder `build`, no variants
        for item in make_api().list_repo_tree(repository, **options):
            variant, _, name = item.path.removeprefix("build/").partition("/")
            if name and hasattr(item, "size") and not name.endswith(".pyc"):
                listing.setdefault(variant, {})[name] = item.size
    return {variant: sizes for variant, sizes in listing.items() if "metadata.json" in sizes}


def own_digests(metadata: Path, sizes: dict[str, int]) -> Files:
    """Return the table of files in a variant's `metadata.json`; empty when it has no SHA-256 digests.

    Raises:
        IntegrityError: the files there are not the files it lists.
    """
    content = metadata.read_bytes()
    digest = json.loads(content).get("digest") or {}
    if digest.get("algorithm") != "sha256":
        return {}
    listed = {safe_path(name): base64.b64decode(value).hex() for name, value in digest["files"].items()}
    if differ := sorted((sizes.keys() - set(_UNHASHED)) ^ listed.keys()):
        raise IntegrityError(f"{metadata}: its digests and the files of the variant disagree on {differ[0]}")
    files = {name: FileEntry(sha256, sizes[name]) for name, sha256 in listed.items()}
    return {**files, "metadata.json": FileEntry(hashlib.sha256(content).hexdigest(), len(content))}


def endpoint() -> str:
    """Return the Hub in use, for messages."""
    from huggingface_hub import constants

    return constants.ENDPOINT


def _cache_dir() -> str | None:
    return os.environ.get("KERNELS_CACHE")


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__


@contextmanager
def _explained(repository: str, revision: str) -> Iterator[None]:
    """Turn whatever a request raises into `UnavailableError` with a way out."""
    from huggingface_hub.errors import HTTPError, RepositoryNotFoundError, RevisionNotFoundError

    place = f"{repository} at {revision} from {endpoint()}"
    try:
        yield
    except RepositoryNotFoundError:
        raise UnavailableError(f"cannot get {place}: there is no such repository, or it is private") from None
    except RevisionNotFoundError:
        raise UnavailableError(f"cannot get {place}: the repository has no such revision") from None
    except (HTTPError, OSError) as error:
        raise UnavailableError(
            f"cannot get {place}: {_reason(error)}. For a machine without network: run "
            "`flash-rwkv prefetch --to DIR` where there is one, copy DIR and set FLASH_RWKV_CACHE=DIR"
        ) from None
