"""What a GPU leaves to chance, the emulator shows."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
import pytest

from tests.simt import emulated

pytestmark = pytest.mark.cpu_only

THREADS = 64


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def launcher(library: ctypes.CDLL) -> Callable[..., str | None]:
    """`launch(name, *arguments)`: None if all went well, else the message."""
    library.text_of.restype = ctypes.c_char_p

    def launch(name: str, *arguments) -> str | None:
        given = (pointer(x) if isinstance(x, np.ndarray) else x for x in arguments)
        error = getattr(library, name)(*given)
        return library.text_of(error).decode() if error else None

    return launch


@pytest.fixture
def launch(library) -> Callable[..., str | None]:
    return launcher(library)


@pytest.fixture
def launch_with_races(racing_library) -> Callable[..., str | None]:
    return launcher(racing_library)


def in_orders(launch, name: str, *arguments, shape: int) -> list[np.ndarray]:
    """What a kernel writes in each of three orders of its threads."""
    results = []
    for order in ("forward", "reverse", "5"):
        y = np.zeros(shape, np.float32)
        with emulated.setting(order):
            assert launch(name, *arguments, y) is None
        results.append(y)
    return results


@pytest.mark.parametrize("name", ["neighbour", "two_rounds"])
def test_races(launch, name) -> None:
    first, *others = in_orders(launch, name, True, shape=2 * THREADS)
    assert all(np.array_equal(first, other) for other in others)
    racing = in_orders(launch, name, False, shape=2 * THREADS)
    assert not all(np.array_equal(first, other) for other in racing)


@pytest.mark.parametrize("name", ["neighbour", "two_rounds"])
@pytest.mark.parametrize("order", ["forward", "reverse", "5"])
def test_races_are_named_in_every_order(launch_with_races, name, order) -> None:
    y = np.zeros(2 * THREADS, np.float32)
    with emulated.setting(order):
        assert launch_with_races(name, True, y) is None
        assert "which no barrier divides from warp" in launch_with_races(name, False, y)


@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("order", ["forward", "reverse", "5"])
def test_a_ring(launch_with_races, copies, order) -> None:
    x = np.arange(3 * 32 * 4, dtype=np.float32).reshape(3, 32, 4)
    y = np.zeros_like(x)
    with emulated.setting(order):
        assert launch_with_races("ring", copies, True, x, y) is None
        np.testing.assert_array_equal(y, x[:, ::-1])
        assert "divides from warp" in launch_with_races("ring", copies, False, x, y)


def test_a_copy_is_not_done_before_it_is_waited_for(launch_with_races) -> None:
    x = np.zeros((THREADS, 4), np.float32)
    assert "divides from warp" in launch_with_races("hasty_copy", x, np.zeros_like(x))


def test_shared_memory_is_garbage_at_first(launch) -> None:
    y = np.zeros((2, 2, THREADS), np.float32)
    assert launch("unwritten", y) is None
    assert (y[0] == 1).all()
    assert np.isnan(y[1]).all()


@pytest.mark.parametrize(("index", "side"), [(15, None), (16, "past the 64 bytes"), (-1, "before the start")])
def test_beyond_dynamic_shared_memory(launch, index, side) -> None:
    message = launch("beyond", index)
    assert (message is None) if side is None else side in message


def test_dynamic_shared_memory_that_is_not_there(launch) -> None:
    assert "49153 bytes" in launch("much_shared_memory", 49153, False)
    assert launch("much_shared_memory", 227 * 1024, True) is None
    assert launch("much_shared_memory", 227 * 1024 + 1, True) is not None


def test_too_many_threads(launch) -> None:
    assert "1025 threads" in launch("too_many_threads")


def test_threads_in_different_places(launch) -> None:
    message = launch("half_at_the_barrier")
    assert "threads 0 to 15: __syncthreads in mistakes.cu.cpp:" in message
    assert "threads 16 to 31: __syncwarp in mistakes.cu.cpp:" in message
    y = np.zeros(THREADS, np.float32)
    assert "__shfl_xor_sync" in launch("half_at_the_shuffle", y)
    assert "threads 0 to 31: __syncthreads in " in launch("two_barriers")


def test_lanes_that_have_returned(launch) -> None:
    y = np.zeros(THREADS, np.float32)
    assert launch("early_return", y) is None
    assert np.isnan(y[::2]).all()


def test_mask_without_oneself(launch) -> None:
    assert "not in its own mask" in launch("strange_mask")


def test_halves_of_a_warp(launch) -> None:
    y = np.zeros(THREADS, np.int32)
    for order in ("forward", "reverse", "3"):
        with emulated.setting(order):
            assert launch("halves_of_a_warp", y) is None
        lower = [3] * 16
        upper = [min(lane + 1, 31) + (1 << 20) for lane in range(16, 32)]
        assert y.tolist() == 2 * (lower + upper)


@pytest.mark.parametrize("waited", [0, 1, 2, 3])
def test_copies_are_there_when_waited_for(launch, waited) -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    y = np.zeros((THREADS, 3, 4), np.float32)
    assert launch("copies", waited, x, y) is None
    expected = x.copy()
    expected[2, 1:] = 0  # that copy is of four bytes
    expected[waited:] = np.nan
    np.testing.assert_array_equal(y, np.broadcast_to(expected, y.shape))


def test_copies_that_cannot_be(launch) -> None:
    x = np.zeros(4, np.float64)
    assert "not aligned" in launch("odd_copy", x)
    assert "not in shared memory" in launch("copy_to_nowhere", x)


def test_unknown_order(launch) -> None:
    with emulated.setting("sideways"):
        assert "FLASH_RWKV_SIMT_ORDER" in launch("beyond", 0)
