"""The committed lock of the toolchain: everything that decides the bytes of a build beside the sources.

CUDA comes as wheels, by their SHA-256, and is fetched. The host's compilers, one an architecture, and Torch's
headers are recorded: a locked build refuses a machine that has others than those of its variant.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from builder.config import Repository
from builder.cuda_wheels import Wheel, fetch_toolkit, resolve_wheels
from builder.errors import BuilderError
from builder.host import clang_packages, gcc_packages, host_facts
from builder.toolchain import Toolchain, find_clang, find_toolchain
from builder.variants import Variant, known_variants

LOCK = Path("builder") / "toolchain.lock"
TOOLKITS = Path(".build") / "toolchain"
CLANG = "clang"  # among the compilers, which the others are by architecture


@dataclass(frozen=True)
class Lock:
    """What builds are made with: names and versions on the host, of the packages of the compiler for each
    architecture and of clang too, and the wheels of each CUDA release.
    """

    host: dict[str, str]
    compilers: dict[str, dict[str, str]]
    cuda: dict[str, tuple[Wheel, ...]]

    def host_of(self, variant: Variant) -> dict[str, str]:
        """What of the host shows in a variant."""
        clang = self.compilers.get(CLANG, {}) if variant.platform.nvrtc else {}
        return {**self.host, **self.compilers.get(variant.platform.machine, {}), **clang}

    def text(self) -> str:
        """As it is committed."""
        cuda = {release: [asdict(wheel) for wheel in wheels] for release, wheels in self.cuda.items()}
        content = {"host": self.host, "compilers": self.compilers, "cuda": cuda}
        return json.dumps(content, indent=2, sort_keys=True) + "\n"

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text().encode()).hexdigest()


def make_lock(repository: Repository) -> Lock:
    """A lock of this machine's host tools and of the newest wheels of every CUDA release that is built for.

    Raises:
        BuilderError: a tool is missing, or the package index cannot be asked.
    """
    variants = [variant for variant in known_variants(repository) if isinstance(variant, Variant)]
    if not variants:
        raise BuilderError("build.toml describes nothing that is compiled, so there is nothing to lock.")
    by_machine = {variant.platform.machine: find_toolchain(variant.of_the_cpu()) for variant in variants}
    compilers = {machine: gcc_packages(toolchain.cxx) for machine, toolchain in by_machine.items()}
    if any(variant.platform.nvrtc for variant in variants):
        compilers[CLANG] = clang_packages(find_clang()[0])
    machines: dict[str, set[str]] = {}
    for platform in (variant.platform for variant in variants if variant.platform.cuda):
        machines.setdefault(platform.cuda, set()).add(platform.machine)
    return Lock(
        host_facts(next(iter(by_machine.values()))),
        compilers,
        {release: resolve_wheels(release, tuple(sorted(of))) for release, of in sorted(machines.items())},
    )


def write_lock(repository: Repository, lock: Lock) -> Path:
    path = repository.root / LOCK
    path.parent.mkdir(exist_ok=True)
    path.write_text(lock.text(), encoding="utf-8")
    return path


def read_lock(repository: Repository) -> Lock:
    """The committed lock.

    Raises:
        BuilderError: there is none, or it is damaged.
    """
    path = repository.root / LOCK
    if not path.is_file():
        raise BuilderError(f"{path} does not exist. Write it with `python -m builder lock` and commit it.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        cuda = {release: tuple(Wheel(**w) for w in wheels) for release, wheels in content["cuda"].items()}
        compilers = {machine: dict(packages) for machine, packages in content["compilers"].items()}
        return Lock(dict(content["host"]), compilers, cuda)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BuilderError(
            f"{path} is not a lock of a toolchain ({error!r}). Take it from Git, or write it with "
            "`python -m builder lock`."
        ) from error


def locked_toolchain(repository: Repository, lock: Lock, variant: Variant, console: Console) -> Toolchain:
    """The lock's tools, of which CUDA is fetched where it is not yet in .build/toolchain.

    Raises:
        BuilderError: the host has other tools than the lock; the message names each.
    """
    host = find_toolchain(variant.of_the_cpu())
    clang = clang_packages(find_clang()[0]) if variant.platform.nvrtc else {}
    _refuse_others(lock.host_of(variant), {**host_facts(host), **gcc_packages(host.cxx), **clang})
    return find_toolchain(variant, _toolkit(repository, lock, variant.platform.cuda, console))


def unlocked_toolchain(repository: Repository, variant: Variant, console: Console) -> Toolchain:
    """The tools of this machine; of a CUDA that comes as wheels alone, those of the lock.

    Raises:
        BuilderError: one is missing.
    """
    if not variant.platform.nvrtc:
        return find_toolchain(variant)
    lock = read_lock(repository)
    return find_toolchain(variant, _toolkit(repository, lock, variant.platform.cuda, console))


def _toolkit(repository: Repository, lock: Lock, release: str | None, console: Console) -> Path | None:
    if release is None:
        return None
    if release not in lock.cuda:
        raise BuilderError(f"{LOCK} has no wheels of CUDA {release}. Run `python -m builder lock`.")
    return fetch_toolkit(lock.cuda[release], repository.root / TOOLKITS, console)


def _refuse_others(locked: dict[str, str], found: dict[str, str]) -> None:
    names = sorted(name for name in {*locked, *found} if locked.get(name) != found.get(name))
    if names:
        listed = "; ".join(
            f"{name} is {found.get(name, 'missing')}, locked is {locked.get(name, 'none')}" for name in names
        )
        raise BuilderError(
            f"This machine's tools are not those of {LOCK}: {listed}. Install what is locked, build without "
            "--locked, or lock what is here with `python -m builder lock`."
        )
