"""Model repositories converted from small random checkpoints, loaded as a user loads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.loader.conftest import home, hub  # noqa: F401  (fixtures)

Tokens = Callable[..., torch.Tensor]


@pytest.fixture(scope="module", params=["5.2", "6.0", "7"])
def version(request: pytest.FixtureRequest) -> str:
    """The version of RWKV."""
    return request.param


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, version: str) -> Path:
    """A `.pth` as BlinkDL's."""
    from tests.models.checkpoints import SIZES, random_checkpoint

    path = tmp_path_factory.mktemp("official") / "small.pth"
    torch.save(random_checkpoint(SIZES[version]), path)
    return path


@pytest.fixture(scope="session")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home for the copies that transformers makes of models' code, and imports from."""
    from transformers import dynamic_module_utils

    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("modules")
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(folder))
        patch.syspath_prepend(folder)
        yield folder


@pytest.fixture(scope="module")
def environment(modules: Path, kernel_path: Path) -> Iterator[pytest.MonkeyPatch]:
    """Models get this checkout's kernel, or an error."""
    from examples.models.rwkv7.pin_rwkv import REPOSITORY

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_KERNELS", f"{REPOSITORY}={kernel_path}")
        patch.setenv("FLASH_RWKV_STRICT", "1")
        yield patch


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, version: str, checkpoint: Path, environment) -> Path:
    """The converted model, in float32."""
    from examples.models.convert import convert
    from tests.models.checkpoints import write_vocabulary

    folder = tmp_path_factory.mktemp("repository")
    vocabulary = write_vocabulary(folder / "vocabulary.txt")
    name = f"small{version[0]}"  # transformers keeps the code of folders of one name together
    convert(checkpoint, folder / name, vocabulary=vocabulary, dtype="float32")
    return folder / name


@pytest.fixture
def model(repository: Path, kernel, device: torch.device):
    """The model on the kernel."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(repository, trust_remote_code=True).eval().to(device)


@pytest.fixture
def tokens(device: torch.device) -> Tokens:
    """Makes random ids of a shape, the same each time: `tokens(2, 9)`."""

    def random_ids(*shape: int, seed: int = 1) -> torch.Tensor:
        return torch.randint(1, 300, shape, generator=torch.Generator().manual_seed(seed)).to(device)

    return random_ids
