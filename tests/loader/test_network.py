"""Without a network, behind proxies, amid a download: what is here serves, and the rest is said."""

from __future__ import annotations

import time

import pytest

from flash_rwkv import IntegrityError, UnavailableError, get_kernel
from flash_rwkv.lockfile import Lock
from flash_rwkv.provide import provide
from tests.loader.home import DEAD, Home
from tests.loader.publishing import REPOSITORY, VARIANT
from tests.loopback_hub import LoopbackHub

WHO = "import flash_rwkv; print(flash_rwkv.get_kernel().whoami())"


def test_no_network_and_nothing_here(pinned: Lock, home: Home) -> None:
    home.connect(DEAD)
    with pytest.raises(UnavailableError) as caught:
        get_kernel()
    for part in (REPOSITORY, pinned.revision, DEAD, "refused", "prefetch --to DIR", "FLASH_RWKV_LOCAL"):
        assert part in str(caught.value)


def test_no_network_but_loaded_before(pinned: Lock, hub: LoopbackHub, home: Home) -> None:
    assert home.run("-c", "import flash_rwkv; flash_rwkv.get_kernel()").returncode == 0
    hub.requests.clear()
    home.connect(DEAD)
    result = home.run("-c", "import flash_rwkv; print(flash_rwkv.get_kernel().whoami())")
    assert result.stdout == "tiny\n", result.stderr
    assert hub.requests == []


def test_offline_mode_is_honoured(pinned: Lock, hub: LoopbackHub, home: Home) -> None:
    result = home.run("-c", WHO, HF_HUB_OFFLINE="1")
    assert "UnavailableError" in result.stderr
    assert "offline mode" in result.stderr
    assert hub.requests == []


def test_hub_down(pinned: Lock, hub: LoopbackHub) -> None:
    hub.faults.status("/kernels/", 503, times=100)
    with pytest.raises(UnavailableError, match="503"):
        get_kernel()


def test_hub_hiccups_are_survived(pinned: Lock, hub: LoopbackHub) -> None:
    hub.faults.status("ops.py", 500)
    hub.faults.truncate("weights.bin", keep=100_000)
    assert get_kernel().whoami() == "tiny"
    resumed = [request for request in hub.requests if "range" in request.headers]
    assert [request.status for request in resumed] == [206]


def test_telemetry_may_be_off(pinned: Lock, hub: LoopbackHub, home: Home) -> None:
    result = home.run("-c", WHO, HF_HUB_DISABLE_TELEMETRY="1", DO_NOT_TRACK="1")
    assert result.stdout == "tiny\n", result.stderr
    assert {request.method for request in hub.requests} == {"GET"}
    assert not [request for request in hub.requests if "telemetry" in request.path]
    assert all("torch" not in request.headers["user-agent"] for request in hub.requests)


def test_offline_mode_needs_no_network(pinned: Lock, hub: LoopbackHub, home: Home) -> None:
    home.fill_cache(pinned)
    hub.requests.clear()
    for _ in ("from the Hugging Face cache", "from the verified copy"):
        result = home.run("-c", WHO, HF_HUB_OFFLINE="1")
        assert result.stdout == "tiny\n", result.stderr
    assert hub.requests == []


def test_through_a_proxy(pinned: Lock, hub: LoopbackHub, home: Home) -> None:
    """The name of the Hub is for the proxy to resolve."""
    result = home.run("-c", WHO, HF_ENDPOINT="http://hub.invalid:8080", HTTP_PROXY=hub.url, NO_PROXY="")
    assert result.stdout == "tiny\n", result.stderr
    assert {request.origin for request in hub.requests} == {"http://hub.invalid:8080"}


def test_proxy_that_is_down(pinned: Lock, hub: LoopbackHub, home: Home) -> None:
    result = home.run("-c", WHO, HTTP_PROXY=DEAD, NO_PROXY="")
    assert "UnavailableError" in result.stderr
    assert "refused" in result.stderr
    assert hub.requests == []


def test_missing_file_in_the_cache_is_fetched_alone(pinned: Lock, hub: LoopbackHub, home: Home) -> None:
    home.fill_cache(pinned)
    path = home.cached("weights.bin")
    path.resolve().unlink()  # the link stays, as after a cleanup of blobs
    hub.requests.clear()
    assert get_kernel().whoami() == "tiny"
    assert [request.path.rsplit("/", 1)[1] for request in hub.requests] == ["weights.bin"]


def test_missing_file_in_the_cache_without_network(pinned: Lock, home: Home) -> None:
    home.fill_cache(pinned)
    home.cached("weights.bin").unlink()
    home.connect(DEAD)
    with pytest.raises(UnavailableError, match="refused"):
        get_kernel()


def test_killed_while_downloading(pinned: Lock, hub: LoopbackHub, home: Home) -> None:
    hub.faults.delay("weights.bin", 30)
    process = home.start("-c", "import flash_rwkv; flash_rwkv.get_kernel()")
    while process.poll() is None and not any("ops.py" in request.path for request in hub.requests):
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert process.returncode < 0
    hub.faults.clear()
    assert get_kernel().whoami() == "tiny"


def test_file_missing_from_the_verified_copy(pinned: Lock, home: Home) -> None:
    provide(pinned, VARIANT)
    home.stored("weights.bin").unlink()
    with pytest.raises(IntegrityError, match=r"weights\.bin is missing.*prefetch"):
        get_kernel()
