"""Which variants there are, and what each of them needs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from builder.config import Repository
from builder.errors import BuilderError


@dataclass(frozen=True)
class Platform:
    """A backend on a machine.

    Attributes:
        backend: `cpu` or `cuda`.
        machine: its architecture, as `platform.machine()` names it.
        cuda: the toolkit's `major.minor`.
        nvrtc: whether its compiler is the library, as no package index has nvcc of that release.
        newest: the newest capability that its compiler knows; None: all that build.toml lists.
    """

    backend: str
    machine: str
    cuda: str | None = None
    nvrtc: bool = False
    newest: str | None = None

    @property
    def tag(self) -> str:
        """The backend as variant names spell it: `cpu`, `cu130`."""
        return f"cu{self.cuda.replace('.', '')}" if self.cuda else self.backend


PLATFORMS = (
    Platform("cpu", "x86_64"),
    Platform("cuda", "x86_64", cuda="13.0"),
    Platform("cuda", "x86_64", cuda="12.6", nvrtc=True, newest="9.0"),
    Platform("cpu", "aarch64"),
    Platform("cuda", "aarch64", cuda="13.0"),
)


@dataclass(frozen=True)
class Variant:
    """One build of the repository: a platform and the oldest Torch it loads in."""

    platform: Platform
    torch: str

    @property
    def name(self) -> str:
        """Its folder under build/, as the kernels loader parses it."""
        p = self.platform
        return f"torch-stable-abi{self.torch.replace('.', '')}-{p.tag}-{p.machine}-linux"

    @property
    def label(self) -> str:
        """What tells its build id from those of other variants."""
        return self.platform.backend

    @property
    def backend(self) -> str:
        """As metadata.json has it."""
        return self.platform.backend

    def of_the_cpu(self) -> Variant:
        """The one without CUDA on the same machine, which takes what the host has for both."""
        return replace(self, platform=Platform("cpu", self.platform.machine))


@dataclass(frozen=True)
class PlainVariant:
    """The build with nothing compiled in it, for every platform; loaders take it where no other fits."""

    name = "torch-universal"
    label = "universal"
    backend = "cpu"  # metadata.json must name one, and every machine has this


def known_variants(repository: Repository) -> list[Variant | PlainVariant]:
    """Every variant this builder knows how to make of a repository."""
    compiled = [
        Variant(p, repository.stable_abi[p.backend]) for p in PLATFORMS if p.backend in repository.backends
    ]
    return [*compiled, *([PlainVariant()] if repository.has_plain else [])]


def find_variant(repository: Repository, name: str) -> Variant | PlainVariant:
    """The variant of that name.

    Raises:
        BuilderError: unknown; the message names the known ones.
    """
    known = known_variants(repository)
    for variant in known:
        if variant.name == name:
            return variant
    raise BuilderError(f"Unknown variant {name}. Known: {', '.join(v.name for v in known)}.")


def complete_archs(repository: Repository, name: str) -> set[str]:
    """The capabilities that a whole build of a variant is compiled for; none if it is of no CUDA."""
    variant = find_variant(repository, name)
    if variant.backend != "cuda":
        return set()
    return repository.cuda_capabilities(variant.platform.newest)
