"""The capabilities of the GPUs of this machine, for `--capability native`."""

from __future__ import annotations

from builder.errors import BuilderError

NATIVE = "native"


def resolve_native(capabilities: tuple[str, ...]) -> tuple[str, ...]:
    """`capabilities` with `native` replaced by what Torch says of the GPUs here.

    Raises:
        BuilderError: `native` is wanted and Torch sees no GPU.
    """
    if NATIVE not in capabilities:
        return capabilities
    found = [c for name in capabilities for c in (_of_this_machine() if name == NATIVE else [name])]
    return tuple(dict.fromkeys(found))


def _of_this_machine() -> list[str]:
    import torch  # here, as it takes seconds

    if not torch.cuda.is_available():
        build = f"was built for CUDA {torch.version.cuda}" if torch.version.cuda else "was built without CUDA"
        raise BuilderError(
            f"--capability {NATIVE}: Torch {torch.__version__}, which {build}, sees no GPU here. "
            "Name a capability, such as 9.0."
        )
    indices = range(torch.cuda.device_count())
    return ["{}.{}".format(*torch.cuda.get_device_capability(index)) for index in indices]
