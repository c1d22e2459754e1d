"""A Hub that is down, slow or endless: few tries, short waits, and a sentence at the end."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from huggingface_hub import constants

from flash_rwkv import IntegrityError, UnavailableError, get_kernel, patience
from flash_rwkv import hub as client
from flash_rwkv.lockfile import Lock
from tests.loader.home import DEAD, Home
from tests.loader.publishing import REPOSITORY, VARIANT, TinyKernel, publish
from tests.loopback_hub import LoopbackHub

TRIES = len(patience.PAUSES) + 1


@contextmanager
def takes_at_most(seconds: float) -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds


def asked(hub: LoopbackHub, name: str) -> int:
    return len([request for request in hub.requests if request.path.endswith(name)])


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_errors_that_pass(pinned: Lock, hub: LoopbackHub, status: int) -> None:
    hub.faults.status("ops.py", status, times=TRIES - 1)
    assert get_kernel().whoami() == "tiny"
    assert asked(hub, "ops.py") == TRIES


@pytest.mark.parametrize("status", [500, 503])
def test_errors_that_stay(pinned: Lock, hub: LoopbackHub, status: int) -> None:
    hub.faults.status("/kernels/", status, times=1000)
    with pytest.raises(UnavailableError, match=rf"{status}.*\({TRIES} times\).*prefetch --to DIR"):
        get_kernel()
    assert len(hub.requests) <= TRIES * 5


@pytest.mark.parametrize("status", [401, 403, 410, 418])
def test_refusals_are_not_asked_again(pinned: Lock, hub: LoopbackHub, status: int) -> None:
    hub.faults.status("ops.py", status, times=1000)
    with pytest.raises(UnavailableError):
        get_kernel()
    assert asked(hub, "ops.py") == 1


def test_connections_that_break(pinned: Lock, hub: LoopbackHub) -> None:
    hub.faults.reset("ops.py", times=TRIES - 1)
    assert get_kernel().whoami() == "tiny"
    assert asked(hub, "ops.py") == TRIES


def test_connections_that_always_break(pinned: Lock, hub: LoopbackHub) -> None:
    hub.faults.reset("/kernels/", times=1000)
    with pytest.raises(UnavailableError, match=rf"\({TRIES} times\)"):
        get_kernel()


def test_download_that_always_stops(pinned: Lock, hub: LoopbackHub, home: Home) -> None:
    """It goes on where it stopped, and not for ever."""
    hub.faults.truncate("weights.bin", keep=1000, times=1000)
    with pytest.raises(UnavailableError, match=rf"\({TRIES} times\)"):
        get_kernel()
    ranges = [request.headers.get("range") for request in hub.requests if "weights.bin" in request.path]
    assert ranges == [None, *(f"bytes={1000 * count}-" for count in range(1, TRIES))]
    assert not list(home.store.iterdir()), "nothing of it was kept"


def test_server_that_knows_no_ranges(pinned: Lock, hub: LoopbackHub, tiny: TinyKernel) -> None:
    """It starts from the beginning, and so does what was written."""
    hub.faults.truncate("weights.bin", keep=100_000)
    hub.faults.answer("weights.bin", tiny.files()["weights.bin"])
    assert get_kernel().whoami() == "tiny"


def test_too_many_requests_is_waited_for(pinned: Lock, hub: LoopbackHub) -> None:
    hub.faults.status("ops.py", 429, retry_after="1")
    start = time.monotonic()
    assert get_kernel().whoami() == "tiny"
    assert 1 <= time.monotonic() - start < 5


def test_too_long_a_wait_is_refused(pinned: Lock, hub: LoopbackHub) -> None:
    hub.faults.status("/kernels/", 429, times=1000, retry_after="86400")
    with takes_at_most(5), pytest.raises(UnavailableError, match=r"429.*come again in 86400 seconds"):
        get_kernel()
    assert len(hub.requests) <= 5


@pytest.mark.parametrize("value", ["Fri, 01 Jan 2100 00:00:00 GMT", "-5", "soon", ""])
def test_odd_waits_are_not_followed(pinned: Lock, hub: LoopbackHub, value: str) -> None:
    hub.faults.status("ops.py", 503, retry_after=value)
    with takes_at_most(5):
        assert get_kernel().whoami() == "tiny"


def test_server_that_stalls(pinned: Lock, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    hub.faults.delay("ops.py", 1.0, times=1000)
    with takes_at_most(10), pytest.raises(UnavailableError, match=rf"timed out.*\({TRIES} times\)"):
        get_kernel()


def test_server_that_stalls_once(pinned: Lock, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    hub.faults.delay("ops.py", 1.0)
    assert get_kernel().whoami() == "tiny"


def test_server_that_trickles(pinned: Lock, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then keeps every time-out of the connection away."""
    monkeypatch.setattr(patience, "WINDOW", 0.2)
    hub.faults.trickle("ops.py", 0.05, times=1000)
    with takes_at_most(10), pytest.raises(UnavailableError, match=rf"bytes a second \({TRIES} times\)"):
        get_kernel()


def test_first_use_of_a_revision_is_as_patient(hub: LoopbackHub, home: Home) -> None:
    commit = publish(hub, {VARIANT: TinyKernel()})
    home.connect(hub.url)
    hub.requests.clear()
    for path in ("/revision/", "/tree/", "metadata.json"):
        hub.faults.status(path, 503)
    assert get_kernel(REPOSITORY, revision=commit).whoami() == "tiny"
    hub.faults.status("/revision/", 503, times=1000)
    with pytest.raises(UnavailableError, match=rf"503.*\({TRIES} times\)"):
        get_kernel(REPOSITORY, revision="e" * 40)


def test_no_network_is_said_at_once(pinned: Lock, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PAUSES", (60.0,))
    home.connect(DEAD)
    with takes_at_most(5), pytest.raises(UnavailableError, match="refused"):
        get_kernel()


# Answers without end


def test_file_that_does_not_end(pinned: Lock, hub: LoopbackHub, home: Home) -> None:
    """What comes after the size in the lock is not written."""
    hub.faults.answer("weights.bin", bytes(50 << 20))
    with pytest.raises(IntegrityError, match=r"weights\.bin gives more bytes than expected"):
        get_kernel()
    assert not list(home.store.iterdir())


def test_answer_that_does_not_end(hub: LoopbackHub, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "LONGEST_ANSWER", 1000)
    home.connect(hub.url)
    hub.faults.answer("/revision/", b" " * 100_000)
    with pytest.raises(IntegrityError, match="more bytes than expected"):
        get_kernel(REPOSITORY, revision="e" * 40)


def test_listing_that_does_not_end(hub: LoopbackHub, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "LONGEST_LISTING", 5)
    commit = publish(hub, {VARIANT: TinyKernel()})
    home.connect(hub.url)
    hub.faults.answer("/tree/", b"[]", link=f'<{hub.url}/api/kernels/a/b/tree/c>; rel="next"')
    with pytest.raises(IntegrityError, match="goes on after 5 pages"):
        get_kernel(REPOSITORY, revision=commit)


def test_listing_that_goes_on_elsewhere(hub: LoopbackHub, home: Home) -> None:
    """The next page would get the user's token."""
    commit = publish(hub, {VARIANT: TinyKernel()})
    home.connect(hub.url)
    hub.faults.answer("/tree/", b"[]", link='<http://127.0.0.1:9/evil>; rel="next"')
    with pytest.raises(IntegrityError, match="next page is elsewhere"):
        get_kernel(REPOSITORY, revision=commit)


@pytest.mark.parametrize("body", [b"", b"null", b"{}", b"[]", b'{"sha": 7}', b'{"sha": "main"}', b"\xff"])
def test_answer_that_makes_no_sense(hub: LoopbackHub, home: Home, body: bytes) -> None:
    home.connect(hub.url)
    hub.faults.answer("/revision/", body)
    with pytest.raises(IntegrityError, match="cannot be used"):
        get_kernel(REPOSITORY, revision="e" * 40)


@pytest.mark.parametrize(
    "item", [7, {}, {"type": "file"}, {"type": "file", "path": "build/a/b", "size": "x"}]
)
def test_listing_that_makes_no_sense(hub: LoopbackHub, home: Home, item: object) -> None:
    commit = publish(hub, {VARIANT: TinyKernel()})
    home.connect(hub.url)
    hub.faults.answer("/tree/", json.dumps([item]).encode())
    with pytest.raises(IntegrityError, match="cannot be used"):
        get_kernel(REPOSITORY, revision=commit)
