"""The CUDA variant: compiled where there is a toolkit, explained where there is none."""

from __future__ import annotations

import json
import subprocess

import pytest

from builder.elf import read_shared_object
from builder.errors import BuilderError
from builder.native import resolve_native
from builder.ninja_file import gencode_flags
from tests.builder.tiny_kernel import CUDA_VARIANT, TinyKernel, toolkit


@pytest.mark.parametrize("machine", [toolkit()])
def test_cuda_variant(tiny: TinyKernel, machine: str) -> None:
    result = tiny.run("build", "--variant", CUDA_VARIANT, "--capability", "9.0")
    if machine == "no toolkit":
        assert result.exit_code == 1
        assert "CUDA 13.0" in result.output
        return
    assert result.exit_code == 0, result.output
    shared = read_shared_object(tiny.module(CUDA_VARIANT))
    assert {"libtorch_cuda.so", "libcudart.so.13"} <= set(shared.needed)
    assert "aoti_torch_get_current_cuda_stream" in shared.unversioned_imports
    metadata = json.loads((tiny.variant(CUDA_VARIANT) / "metadata.json").read_text())
    assert metadata["backend"] == {"type": "cuda", "archs": ["9.0"]}
    assert metadata["toolchain"]["nvcc"].startswith("13.0")
    assert tiny.run("check").exit_code == 0
    embedded = subprocess.run(
        ["strings", "-a", str(tiny.module(CUDA_VARIANT))], capture_output=True, text=True
    ).stdout
    assert "tiny_kernel" in embedded


def test_gencode_flags() -> None:
    assert gencode_flags(("7.5", "9.0a", "12.0+PTX")) == [
        "-gencode=arch=compute_75,code=sm_75",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_120,code=sm_120",
        "-gencode=arch=compute_120,code=compute_120",
    ]


@pytest.mark.parametrize("capability", ["90", "sm_90", "9.0+ptx", ""])
def test_capability_of_another_form(capability: str) -> None:
    with pytest.raises(BuilderError, match="is not of the form"):
        gencode_flags((capability,))


@pytest.mark.parametrize(
    ("devices", "capabilities"), [([(9, 0)], ("9.0",)), ([(8, 9), (12, 0), (8, 9)], ("8.9", "12.0"))]
)
def test_capability_of_the_gpus_here(
    monkeypatch: pytest.MonkeyPatch, devices: list[tuple[int, int]], capabilities: tuple[str, ...]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: len(devices))
    monkeypatch.setattr("torch.cuda.get_device_capability", devices.__getitem__)
    assert resolve_native(("native",)) == capabilities
    assert resolve_native(("7.5", "native")) == ("7.5", *capabilities)


def test_capability_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert resolve_native(("9.0",)) == ("9.0",)
    with pytest.raises(BuilderError, match="sees no GPU here"):
        resolve_native(("native",))
