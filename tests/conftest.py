"""The kernel under test: always the built variant, loaded the way a user's `kernels.get_kernel` loads it."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

# Examples follow from the test alone, so that a failure repeats everywhere; no limit on the time of one,
# which depends on what else the machine does.
settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("repeatable")
# For a night: `ARGS="tests/ops/test_properties.py --hypothesis-profile=thorough"`, other examples each time.
settings.register_profile("thorough", deadline=None, print_blob=True, max_examples=5000)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device", default="cpu", help="device of the operators' inputs, e.g. cuda (default: cpu)"
    )
    parser.addoption(
        "--kernel",
        metavar="PATH",
        type=Path,
        default=None,
        help="test what this folder holds in build/, not this checkout's own build; write --kernel=PATH",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "kernels_ci: the subset that upstream's CI runs, under a minute in all"
    )
    config.addinivalue_line("markers", "cpu_only: of what only the CPU kernels offer, such as float64")
    config.addinivalue_line("markers", "compiled_only: of what the variant in plain PyTorch has not")
    config.addinivalue_line("markers", "xdist_group(name): to be run by one process, one after the other")
    config.addinivalue_line("markers", "cuda_only: of what only CUDA has, such as streams and graphs")
    if device_type(config) == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError(
            f"--device {config.getoption('device')}: Torch {torch.__version__} sees no GPU here; leave the "
            "option out to test the CPU kernels"
        )
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)  # there is a worker per core already


def device_type(config: pytest.Config) -> str:
    return torch.device(config.getoption("device")).type


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what the device or the variant does not have: deselected, not skipped."""
    others = ["cuda_only" if device_type(config) == "cpu" else "cpu_only"]
    kernel = config.getoption("kernel")
    if kernel is not None and kernel.name == "torch-universal":
        others.append("compiled_only")
    dropped = [item for item in items if any(item.get_closest_marker(other) for other in others)]
    config.hook.pytest_deselected(items=dropped)
    items[:] = [item for item in items if item not in dropped]


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> torch.device:
    """Where the operators' inputs live."""
    return torch.device(pytestconfig.getoption("device"))


@pytest.fixture(scope="session")
def kernel_path(pytestconfig: pytest.Config) -> Path:
    """The folder that `kernels.get_local_kernel` is given."""
    return (pytestconfig.getoption("kernel") or ROOT).resolve()


@pytest.fixture(scope="session")
def kernel(kernel_path: Path) -> ModuleType:
    """The built kernel. Its id names the sources it was made from, so a stale build is noticed."""
    from kernels import get_local_kernel

    if kernel_path != ROOT:
        return get_local_kernel(kernel_path)
    if not any((ROOT / "build").glob("*/metadata.json")):
        pytest.fail("build/ holds no variant: run `make build` first", pytrace=False)
    loaded = get_local_kernel(ROOT)
    if loaded.__name__ not in (current := _ids_of_sources()):
        pytest.fail(
            f"build/ is older than its sources: it holds {loaded.__name__}, they make "
            f"{' or '.join(current)}: run `make build` first",
            pytrace=False,
        )
    return loaded


def _ids_of_sources() -> list[str]:
    from builder.config import open_repository
    from builder.source_state import source_state

    repository = open_repository(ROOT)
    state = source_state(repository)
    return [state.build_id(repository, backend) for backend in repository.backends]


@pytest.fixture
def threads():
    """Sets the number of threads for a test: `threads(4)`."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
