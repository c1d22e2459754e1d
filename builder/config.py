"""build.toml, validated by upstream's parser and then read for what the compiler needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import tomllib
from kernels._rust import Build, KernelName

from builder.capabilities import up_to
from builder.errors import BuilderError
from builder.machines import machine_of_flags

# The kernel's subpackage that registers its ops in Python, for the variant that holds nothing compiled.
PLAIN = "plain"


@dataclass(frozen=True)
class Section:
    """One list of sources under one set of flags: `[torch]` or a `[kernel.*]` table."""

    name: str
    backend: str | None  # None: part of every backend
    sources: tuple[str, ...]
    include: tuple[str, ...] = ()
    cxx_flags: tuple[str, ...] = ()
    cuda_flags: tuple[str, ...] = ()
    cuda_capabilities: tuple[str, ...] = ()

    @property
    def machine(self) -> str | None:
        """The architecture whose instructions its flags ask for; None: compiled for every one."""
        return machine_of_flags(self.cxx_flags)


@dataclass(frozen=True)
class Repository:
    """A kernel repository: its folder and what its build.toml says."""

    root: Path
    name: str
    version: int
    license: str
    backends: tuple[str, ...]
    stable_abi: dict[str, str]  # backend -> oldest Torch that loads the binary, e.g. "2.11"
    sections: tuple[Section, ...]
    python_depends: tuple[str, ...]
    hub_repo: str | None

    @property
    def python_name(self) -> str:
        """Name of the Python package, e.g. `flash_rwkv`."""
        return KernelName(self.name).python_name

    @property
    def package(self) -> Path:
        """The kernel's Python sources."""
        return self.root / "torch-ext" / self.python_name

    @property
    def has_plain(self) -> bool:
        """Whether the kernel's ops exist in plain PyTorch too."""
        return (self.package / PLAIN / "__init__.py").is_file()

    def sections_for(self, backend: str, machine: str) -> Iterator[Section]:
        """The sections compiled for one backend on one architecture, in the order of build.toml."""
        return (
            section
            for section in self.sections
            if section.backend in (None, backend) and section.machine in (None, machine)
        )

    def cuda_capabilities(self, newest: str | None) -> set[str]:
        """What a whole CUDA build is compiled for, by a compiler that knows capabilities up to `newest`."""
        sections = (section for section in self.sections if section.backend in (None, "cuda"))
        return {capability for s in sections for capability in up_to(s.cuda_capabilities, newest)}

    def inputs(self) -> list[str]:
        """Top-level names whose content decides what a build contains."""
        names = {"build.toml", "torch-ext", "builder"}
        names.update(Path(source).parts[0] for s in self.sections for source in s.sources)
        return sorted(name for name in names if (self.root / name).exists())


def open_repository(root: Path) -> Repository:
    """Read `root/build.toml`.

    Raises:
        BuilderError: there is none, upstream's parser refuses it, or it is no stable-ABI Torch kernel.
    """
    path = root / "build.toml"
    if not path.is_file():
        raise BuilderError(
            f"{path} does not exist. Run this in a kernel repository, or name one with --root."
        )
    try:
        Build.open(root)
    except ValueError as error:
        raise BuilderError(f"{path} is not a valid build.toml: {error}") from error

    table = tomllib.loads(path.read_text(encoding="utf-8"))
    general = table["general"]
    if "torch" not in table:
        raise BuilderError(f"{path} has no [torch] section; this builder only builds Torch extensions.")
    torch = table["torch"]
    backends = tuple(general["backends"])
    return Repository(
        root=root,
        name=general["name"],
        version=general["version"],
        license=general["license"],
        backends=backends,
        stable_abi=_stable_abi(torch.get("stable-abi"), backends, path),
        sections=(
            _section("torch", torch, None),
            *(_section(name, kernel, kernel["backend"]) for name, kernel in table.get("kernel", {}).items()),
        ),
        python_depends=tuple(general.get("python-depends", ())),
        hub_repo=general.get("hub", {}).get("repo-id"),
    )


def _section(name: str, table: dict, backend: str | None) -> Section:
    return Section(
        name=name,
        backend=backend,
        sources=tuple(_inside(name, source) for source in table.get("src", ())),
        include=tuple(table.get("include", ())),
        cxx_flags=tuple(table.get("cxx-flags", ())),
        cuda_flags=tuple(table.get("cuda-flags", ())),
        cuda_capabilities=tuple(table.get("cuda-capabilities", ())),
    )


def _inside(section: str, source: str) -> str:
    """A source that no commit of this repository holds could not be built again."""
    parts = PurePosixPath(source).parts
    if not parts or ".." in parts or source.startswith("/") or "\0" in source:
        raise BuilderError(
            f"build.toml: [{section}] src must name files inside the repository, got {source!r}. "
            "Give its path from the folder of build.toml."
        )
    return source


def _stable_abi(value: str | dict | None, backends: tuple[str, ...], path: Path) -> dict[str, str]:
    """One version for all backends or a table of them; only stable-ABI kernels are built here."""
    versions = dict.fromkeys(backends, value) if isinstance(value, str) else dict(value or {})
    missing = [backend for backend in backends if not versions.get(backend)]
    if missing:
        raise BuilderError(
            f"{path}: [torch] stable-abi names no Torch version for {', '.join(missing)}. This builder only "
            'makes stable-ABI variants; set stable-abi = "2.11".'
        )
    return versions
