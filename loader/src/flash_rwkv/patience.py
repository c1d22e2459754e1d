"""Patience with a Hub that fails, and its end: few tries, short pauses, a length and a pace for every answer.

The client library waits for as long as a Hub tells it to, and for ever where a body trickles or no listing
comes. Here all of that is bounded, so that a load ends in a kernel or in a sentence.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from .errors import IntegrityError, UnavailableError
from .lockfile import FileEntry

if TYPE_CHECKING:
    from httpx2 import Response

PAUSES = (0.5, 1.0, 2.0, 4.0)  # seconds before each further try
LONGEST_PAUSE = 30  # seconds for which a Hub may ask us to wait
PACE, WINDOW = 1024, 20.0  # bytes a second that an answer must bring, looked at once in so many seconds
LONGEST_ANSWER = 8 << 20  # bytes of one answer that is no file of a kernel

_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
# By name, as the client library has changed its HTTP package before and the names stayed. Without a network
# there is nothing to be patient with: whoever has none should hear so at once.
_NOT_CONNECTED = frozenset({"ConnectError", "ConnectTimeout", "ProxyError", "UnsupportedProtocol"})
_log = logging.getLogger("flash_rwkv")
_T = TypeVar("_T")
Advance = Callable[[int], object]


class NotThereError(UnavailableError):
    """The commit has no file or folder of that name."""


class Stalled(ConnectionError):
    """An answer came too slowly, or not to its end."""


def read(url: str, headers: dict[str, str], place: str) -> tuple[bytes, str | None]:
    """Return what `url` gives, and the address of the page after it if there is one.

    Args:
        place: what is asked for, and where; for the messages.

    Raises:
        UnavailableError: the Hub did not give it, also when asked again.
        IntegrityError: it does not end.
    """

    def attempt() -> tuple[bytes, str | None]:
        with _answer(url, headers) as response:
            body = b"".join(_paced(response, LONGEST_ANSWER))
            return body, response.links.get("next", {}).get("url")

    return _patiently(place, attempt)


def receive(
    url: str, headers: dict[str, str], size: int, target: Path, place: str, advance: Advance
) -> FileEntry:
    """Write what `url` gives to `target`, going on where a broken connection stopped.

    Args:
        size: bytes expected; not one more is written.
        place: what is asked for, and where; for the messages.
        advance: told how many bytes came.

    Returns:
        Digest and size of what was written.

    Raises:
        UnavailableError: the Hub did not give all of it, also when asked again.
        IntegrityError: the Hub has more than `size` bytes of it.
        OSError: `target` cannot be written.
    """
    hasher, received = hashlib.sha256(), 0
    headers = {**headers, "Accept-Encoding": "identity"}  # ranges are of the file, not of a compressed form

    def attempt() -> None:
        nonlocal hasher, received
        rest = {"Range": f"bytes={received}-"} if received else {}
        with _answer(url, {**headers, **rest}) as response:
            if response.status_code != 206:
                advance(-received)
                hasher, received = hashlib.sha256(), 0
                file.seek(0)
                file.truncate()
            for chunk in _paced(response, size - received):
                file.write(chunk)
                hasher.update(chunk)
                received += len(chunk)
                advance(len(chunk))
        if received < size:
            raise Stalled(f"the answer ended after {received} of {size} bytes")

    with target.open("wb") as file:
        _patiently(place, attempt)
    return FileEntry(hasher.hexdigest(), received)


def _patiently(place: str, attempt: Callable[[], _T]) -> _T:
    """Run `attempt`, again after failures that may pass; errors of the disk come through as they are."""
    from huggingface_hub.errors import (
        HTTPError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    for number, pause in enumerate((*PAUSES, None), start=1):
        try:
            return attempt()
        except RepositoryNotFoundError:
            raise UnavailableError(
                f"cannot get {place}: there is no such repository, or it is private"
            ) from None
        except RevisionNotFoundError:
            raise UnavailableError(f"cannot get {place}: the repository has no such revision") from None
        except RemoteEntryNotFoundError as error:
            raise NotThereError(f"cannot get {place}: {_reason(error)}") from None
        except (HTTPError, ConnectionError) as error:
            wanted = _wanted_pause(error)
            if pause is None or wanted > LONGEST_PAUSE or not _may_pass(error):
                raise UnavailableError(_explain(place, error, number, wanted)) from None
            _log.warning("%s: %s; trying again", place, _reason(error))
            time.sleep(max(pause, wanted))
    raise AssertionError("the last try returns or raises")


@contextmanager
def _answer(url: str, headers: dict[str, str]) -> Iterator[Response]:
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session, hf_raise_for_status

    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
        hf_raise_for_status(response)
        yield response


def _paced(response: Response, limit: int) -> Iterator[bytes]:
    """Hand on what comes, as long as it comes at a pace and ends within `limit` bytes."""
    since, count = time.monotonic(), 0
    for chunk in response.iter_bytes():
        limit -= len(chunk)
        if limit < 0:
            raise IntegrityError(f"{response.url} gives more bytes than expected. Nothing was loaded")
        yield chunk
        count += len(chunk)
        passed = time.monotonic() - since
        if passed > WINDOW:
            if count < PACE * passed:
                raise Stalled(f"the answer came at {count / passed:.0f} bytes a second")
            since, count = time.monotonic(), 0


def _may_pass(error: Exception) -> bool:
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _TRANSIENT
    return not isinstance(error, OfflineModeIsEnabled) and type(error).__name__ not in _NOT_CONNECTED


def _wanted_pause(error: Exception) -> int:
    """Return the seconds of a Retry-After; a date there is not used, as it would need clocks that agree."""
    response = getattr(error, "response", None)
    value = "" if response is None else response.headers.get("Retry-After", "").strip()
    return int(value) if value.isdecimal() else 0


def _explain(place: str, error: Exception, tries: int, wanted: int) -> str:
    count = f" ({tries} times)" if tries > 1 else ""
    later = f"; it asks to come again in {wanted} seconds" if wanted else ""
    return (
        f"cannot get {place}: {_reason(error)}{count}{later}. For a machine without network: run "
        "`flash-rwkv prefetch --to DIR` where there is one, copy DIR and set FLASH_RWKV_LOCAL=DIR"
    )


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
