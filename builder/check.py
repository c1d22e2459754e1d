"""Everything a variant must satisfy before it is published."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kernels._rust import Digest, DigestAlgorithm, DigestValidationError, Metadata

from builder.abi import abi_findings
from builder.config import PLAIN, Repository
from builder.elf import SharedObject, read_shared_object
from builder.errors import BuilderError
from builder.includes import unlisted_headers
from builder.isa import leaked_instructions
from builder.machines import machine_of_variant
from builder.package import METADATA
from builder.rules import python_findings
from builder.source_state import tracked_files
from builder.unit_names import CUDA_SUFFIXES, module_findings, source_findings
from builder.variants import PlainVariant

SYSTEM_LIBRARIES = frozenset(
    {
        "libstdc++.so.6",
        "libm.so.6",
        "libgcc_s.so.1",
        "libc.so.6",
        "libpthread.so.0",
        "libdl.so.2",
        "librt.so.1",
    }
)
LOADERS = re.compile(r"ld-linux-(x86-64\.so\.2|aarch64\.so\.1)")
TORCH_LIBRARIES = {
    "cpu": frozenset({"libtorch.so", "libtorch_cpu.so", "libc10.so"}),
    "cuda": frozenset({"libtorch.so", "libtorch_cpu.so", "libc10.so", "libtorch_cuda.so", "libc10_cuda.so"}),
}
CUDA_RUNTIME = re.compile(r"libcudart\.so\.\d+")
# C names of Torch's stable ABI and of Python; anything else without a version is somebody's private symbol.
STABLE_IMPORT = re.compile(r"aoti_torch_\w+|torch_\w+|_?Py\w+|__cudart\w*")
GENERATED = frozenset({"_ops.py", "registration.h", METADATA})


@dataclass(frozen=True)
class Finding:
    """Something that must not ship, and where."""

    where: str
    what: str


def check_variants(repository: Repository, folder: Path) -> tuple[list[str], list[Finding]]:
    """Check the sources and every variant under a folder (or the folder itself, when it is one).

    Returns:
        Names of the variants looked at, and the findings.

    Raises:
        BuilderError: there is no variant.
    """
    variants = variant_folders(folder)
    findings = list(check_sources(repository))
    for variant in variants:
        findings += (Finding(variant.name, what) for what in check_variant(variant, repository.python_name))
    return [variant.name for variant in variants], findings


def variant_folders(folder: Path, wanted: Sequence[str] = (), called: str | None = None) -> list[Path]:
    """The variants under a folder, or the folder itself when it is one.

    Args:
        wanted: names of those to return; empty for all.
        called: what the folder is to a user, if that is not its path.

    Raises:
        BuilderError: there is none, or a wanted one is missing.
    """
    variants = [folder] if (folder / METADATA).is_file() else sorted(_folders(folder))
    if not variants:
        raise BuilderError(f"{folder} holds no build variant. Run `python -m builder build` first.")
    names = [variant.name for variant in variants]
    if missing := [name for name in wanted if name not in names]:
        raise BuilderError(f"{called or folder} has no variant {missing[0]}; it has {', '.join(names)}.")
    return [variant for variant in variants if not wanted or variant.name in wanted]


def check_sources(repository: Repository) -> Iterator[Finding]:
    """Rules for what is committed."""
    package = repository.package
    init = package / "__init__.py"
    if not init.is_file():
        yield Finding("torch-ext", f"torch-ext/{repository.python_name}/__init__.py is missing")
    elif "__all__" not in init.read_text(encoding="utf-8"):
        yield Finding(
            "torch-ext", f"{init.relative_to(repository.root)} has no __all__, the kernel's public API"
        )
    for path in sorted(package.rglob("*.py")):
        where = path.relative_to(repository.root).as_posix()
        yield from (Finding(where, what) for what in python_findings(path, repository.python_name))
    for name in tracked_files(repository.root, "torch-ext") or ():
        if Path(name).name in GENERATED:
            yield Finding(name, "is generated at every build and must not be committed")
    for header in unlisted_headers(repository):
        yield Finding("build.toml", f"{header} is included but not listed: add it to the `src` of a section")
    yield from _cuda_carries_cpu(repository)
    for source in _cuda_sources(repository):
        yield from (Finding(source, what) for what in source_findings(repository.root / source))


def check_variant(folder: Path, python_name: str) -> Iterator[str]:
    """Findings in one variant's folder."""
    metadata = _read_metadata(folder)
    if isinstance(metadata, str):
        yield metadata
        return
    yield from _layout_findings(folder, metadata, python_name)
    yield from _digest_findings(folder, metadata)
    for path in sorted(folder.rglob("*.py")):
        generated = path.name == "_ops.py"
        for what in python_findings(path, python_name, generated):
            yield f"{path.relative_to(folder).as_posix()}: {what}"
    for module in sorted(folder.glob("*.so")):
        yield from (
            f"{module.name}: {what}" for what in _module_findings(module, metadata, folder.name, python_name)
        )


def _folders(folder: Path) -> list[Path]:
    """Subfolders that are, or pretend to be, variants."""
    if not folder.is_dir():
        return []
    return [p for p in folder.iterdir() if p.is_dir() and p.name.startswith("torch")]


def _cuda_carries_cpu(repository: Repository) -> Iterator[Finding]:
    """Every CPU unit must stand under "cuda" too, with the same flags."""
    if not {"cpu", "cuda"} <= set(repository.backends):
        return
    flags = {
        backend: {
            source: section.cxx_flags
            for section in repository.sections
            if section.backend == backend
            for source in section.sources
        }
        for backend in ("cpu", "cuda")
    }
    for source, cpu_flags in flags["cpu"].items():
        cuda_flags = flags["cuda"].get(source)
        if cuda_flags is None:
            yield Finding(
                "build.toml", f"{source} is listed for cpu but not for cuda, whose variants carry it too"
            )
        elif cuda_flags != cpu_flags:
            yield Finding("build.toml", f"{source} has other cxx-flags for cuda than for cpu")


def _cuda_sources(repository: Repository) -> list[str]:
    """Listed files that nvcc may see."""
    listed = {source for section in repository.sections for source in section.sources}
    return sorted(s for s in listed if s.endswith(CUDA_SUFFIXES) and (repository.root / s).is_file())


def _read_metadata(folder: Path) -> Metadata | str:
    path = folder / METADATA
    if not path.is_file():
        return f"{METADATA} is missing"
    try:
        return Metadata.read_from_file(path)
    except ValueError as error:
        return f"{METADATA} is not valid: {error}"


def _layout_findings(folder: Path, metadata: Metadata, python_name: str) -> Iterator[str]:
    backend = str(metadata.backend.backend_type)
    plain = folder.name == PlainVariant.name
    label = PlainVariant.label if plain else backend
    if not re.fullmatch(rf"_{python_name}_{label}_[0-9a-z]+(_dirty)?", metadata.id):
        yield f"{METADATA}: id {metadata.id} is not _{python_name}_{label}_<commit>"
    if metadata.name.python_name != python_name:
        yield f"{METADATA}: name {metadata.name} is not this kernel's"
    if metadata.provenance is None:
        yield f"{METADATA}: says nothing of the source it was built from (provenance)"
    if backend == "cuda" and not metadata.backend.archs:
        yield f"{METADATA}: names no CUDA capabilities (backend.archs)"
    registers = f"{PLAIN}/__init__.py" if plain else f"{metadata.id}.abi3.so"
    for name in ("__init__.py", "_ops.py", registers, f"{python_name}/__init__.py"):
        if not (folder / name).is_file():
            yield f"{name} is missing"
    for extra in sorted(folder.rglob("*.so")):
        if plain:
            yield f"{extra.name} is compiled, which nothing is that every platform can load"
        elif extra.name != registers:
            yield f"{extra.name} is not the module that {METADATA} names"


def _digest_findings(folder: Path, metadata: Metadata) -> Iterator[str]:
    if metadata.digest is None:
        yield f"{METADATA}: has no digests"
        return
    actual = Digest.hash_variant(DigestAlgorithm.SHA256, folder)
    try:
        metadata.digest.validate(actual)
    except DigestValidationError as error:
        yield from (f"digest: {violation}" for violation in error.violations)


def _module_findings(module: Path, metadata: Metadata, variant: str, python_name: str) -> Iterator[str]:
    yield from abi_findings(module)
    yield from module_findings(module)
    shared = read_shared_object(module)
    yield from _linkage_findings(shared, metadata)
    machine = machine_of_variant(variant)
    if machine is None or shared.machine != machine.elf:
        yield f"is compiled for {shared.machine}, which is not what {variant} promises"
        return
    for function, instruction in leaked_instructions(module, f"{python_name}::cpu", machine).items():
        yield f"{function} is outside its instruction set's namespace but uses `{instruction}`"


def _linkage_findings(shared: SharedObject, metadata: Metadata) -> Iterator[str]:
    backend = str(metadata.backend.backend_type)
    for library in shared.needed:
        runtime = backend == "cuda" and CUDA_RUNTIME.fullmatch(library)
        if not (
            library in SYSTEM_LIBRARIES | TORCH_LIBRARIES[backend] or LOADERS.fullmatch(library) or runtime
        ):
            yield f"needs {library}, which nobody promises to be there"
    if backend == "cuda" and "libtorch_cuda.so" not in shared.needed:
        yield "does not name libtorch_cuda.so among the libraries it needs: Torch's stream is not found"
    for path in shared.run_paths:
        yield f"looks for libraries in {path} (RPATH); it must use those that Torch loaded"
    init = f"PyInit_{metadata.id}"
    if init not in shared.exported:
        yield f"does not export {init}"
    for name in shared.exported:
        if name != init:
            yield f"exports {name}; only {init} may be seen, or two versions in one process would mix"
    for name in shared.unversioned_imports:
        if not STABLE_IMPORT.fullmatch(name):
            yield f"imports {name}, which is neither Torch's stable ABI nor Python's"
