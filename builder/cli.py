"""The command line of `python -m builder`."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from builder.abi import can_check_abi
from builder.build import build_variant
from builder.config import Repository, open_repository
from builder.errors import BuilderError
from builder.lock import make_lock, read_lock, write_lock
from builder.native import resolve_native
from builder.reproduce import print_comparison, reproduce
from builder.source_state import tag_commit
from builder.toolchain import refuse_what_is_missing
from builder.variants import PlainVariant, Variant, find_variant, known_variants

# check and publish need packages that building does not, as on an offline machine: they are imported late.
if TYPE_CHECKING:
    from builder.check import Finding

console = Console()


class _Commands(click.Group):
    """Prints a BuilderError as the one paragraph it is and exits with status 1."""

    def invoke(self, context: click.Context) -> object:
        try:
            return super().invoke(context)
        except BuilderError as error:
            Console(stderr=True).print(
                f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True
            )
            sys.exit(1)


@click.group(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.option(
    "--root",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=".",
    help="The kernel repository: the folder of build.toml.  [default: the current folder]",
)
@click.pass_context
def main(context: click.Context, root: Path) -> None:
    """Compile, check and publish this kernel repository, without Nix and without a network."""
    context.obj = root.resolve()


@main.command("list")
@click.pass_obj
def list_command(root: Path) -> None:
    """Show the variants, which can be built here, and why not the others."""
    table = Table("variant", "can be built here", box=None, pad_edge=False)
    for variant in known_variants(open_repository(root)):
        reason = _why_not(variant)
        table.add_row(variant.name, "[green]yes[/]" if reason is None else f"[yellow]no:[/] {reason}")
    console.print(table)


def _why_not(variant: Variant | PlainVariant) -> str | None:
    if isinstance(variant, PlainVariant):
        return None
    try:
        refuse_what_is_missing(variant)
    except BuilderError as error:
        return str(error)
    return None


@main.command("build")
@click.option("--variant", "names", multiple=True, metavar="NAME", help="Build this one; repeatable.")
@click.option("--all", "everything", is_flag=True, help="Build every variant that can be built here.")
@click.option(
    "--capability",
    "capabilities",
    multiple=True,
    metavar="X.Y",
    help="Compile CUDA sources for this capability only, `native` for that of the GPU here; repeatable. For "
    "development: it makes CUDA builds several times faster, and the metadata names what the binary holds.",
)
@click.option(
    "--locked",
    is_flag=True,
    help="With the tools of builder/toolchain.lock, or not at all; what is published.",
)
@click.option(
    "-j", "--jobs", type=click.IntRange(min=1), help="Commands at a time.  [default: ninja's choice]"
)
@click.option("--clean", is_flag=True, help="Compile everything again.")
@click.option("-v", "--verbose", is_flag=True, help="Print the commands.")
@click.pass_obj
def build_command(
    root: Path,
    names: tuple[str, ...],
    everything: bool,
    capabilities: tuple[str, ...],
    locked: bool,
    jobs: int | None,
    clean: bool,
    verbose: bool,
) -> None:
    """Compile into build/<variant>/.

    Without --variant or --all this builds the cpu variant of this machine, and the one that holds nothing
    compiled: CUDA takes many times as long and is built when asked for. Only what changed is compiled again.
    """
    repository = open_repository(root)
    options = dict(capabilities=resolve_native(capabilities), jobs=jobs, clean=clean, verbose=verbose)
    lock = read_lock(repository) if locked else None
    for variant in _selected(repository, names, everything):
        built = build_variant(repository, variant, console, **options, lock=lock)
        what = f"{built.commands} commands" if built.commands or built.changed else "up to date"
        console.print(
            f"{built.folder.relative_to(root)}  {built.build_id}  ({what})", highlight=False, soft_wrap=True
        )


def _selected(
    repository: Repository, names: tuple[str, ...], everything: bool
) -> list[Variant | PlainVariant]:
    if names and everything:
        raise BuilderError("Give either --variant or --all, not both.")
    if names:
        return [find_variant(repository, name) for name in dict.fromkeys(names)]
    known = known_variants(repository)
    if everything:
        known = [variant for variant in known if _why_not(variant) is None]
    else:
        plain = [variant for variant in known if isinstance(variant, PlainVariant)]
        for_cpu = [variant for variant in known if variant.backend == "cpu" and variant not in plain]
        here = [variant for variant in for_cpu if _on_this_machine(variant)]
        known = [*(here or for_cpu[:1]), *plain]  # nothing fits: building the first says why
    if not known:
        raise BuilderError("No variant can be built here. `python -m builder list` says why.")
    return known


def _on_this_machine(variant: Variant) -> bool:
    return platform.system() == "Linux" and platform.machine() == variant.platform.machine


@main.command("lock")
@click.pass_obj
def lock_command(root: Path) -> None:
    """Write builder/toolchain.lock: this machine's compilers and headers, and CUDA's wheels by their digests.

    Asks the package index for the newest wheels of each CUDA release, and downloads none of them. Commit the
    file: it is an input of the build.
    """
    repository = open_repository(root)
    with console.status("locking"):
        lock = make_lock(repository)
    path = write_lock(repository, lock)
    for wheels in lock.cuda.values():
        for wheel in wheels:
            console.print(
                f"{wheel.name} {wheel.version}  sha256 {wheel.sha256}", highlight=False, soft_wrap=True
            )
    compilers = [pair for packages in lock.compilers.values() for pair in packages.items()]
    for name, value in sorted([*lock.host.items(), *compilers]):
        console.print(f"{name} {value}", highlight=False, soft_wrap=True)
    console.print(f"{path.relative_to(root)}  sha256 {lock.sha256}", highlight=False, soft_wrap=True)


@main.command("check")
@click.argument("folder", type=click.Path(path_type=Path), required=False, metavar="[DIR]")
@click.pass_obj
def check_command(root: Path, folder: Path | None) -> None:
    """Check the variants under DIR (default: build/) and the kernel's sources.

    ABI (manylinux_2_28, Python 3.9's abi3), libraries and symbols, instructions outside their instruction
    set's namespace, metadata, digests, layout, and the static rules for Python. Any finding: exit status 1.
    """
    from builder.check import check_variants

    repository = open_repository(root)
    with console.status("checking"):
        names, findings = check_variants(repository, folder or root / "build")
    _print_findings(["sources", *names], findings)
    if not can_check_abi():
        console.print("The ABI was not checked: that needs `pip install kernel-abi-check`.", style="yellow")
    if findings:
        sys.exit(1)


def _print_findings(checked: list[str], findings: list[Finding]) -> None:
    for finding in findings:
        console.print(
            f"[red]{escape(finding.where)}:[/] {escape(finding.what)}", highlight=False, soft_wrap=True
        )
    table = Table("checked", "findings", box=None, pad_edge=False)
    for name in checked:
        count = sum((f.where if f.where in checked else "sources") == name for f in findings)
        table.add_row(name, f"[red]{count}[/]" if count else "[green]none[/]")
    console.print(table)


@main.command("reproduce")
@click.option("--variant", "names", multiple=True, metavar="NAME", help="This one; repeatable.")
@click.option(
    "--capability",
    "capabilities",
    multiple=True,
    metavar="X.Y",
    help="Compile CUDA sources for this capability only; repeatable.",
)
@click.option("--locked", is_flag=True, help="With the tools of builder/toolchain.lock.")
@click.pass_obj
def reproduce_command(
    root: Path, names: tuple[str, ...], capabilities: tuple[str, ...], locked: bool
) -> None:
    """Build the last commit twice and compare every file. Any difference: exit status 1.

    The two builds have folders, numbers of jobs, umasks, time zones and users of their own. Without --variant
    they are of what `build` makes. Where files differ, both builds stay in .build/reproduce.
    """
    repository = open_repository(root)
    same = True
    for variant in _selected(repository, names, False):
        pairs = reproduce(repository, variant.name, resolve_native(capabilities), locked, console)
        console.print(variant.name, highlight=False)
        same &= print_comparison(pairs, ("the first", "the second"), console)
    if not same:
        sys.exit(1)


@main.command("verify")
@click.argument("where", metavar="DIR-or-URL")
@click.option("--variant", "names", multiple=True, metavar="NAME", help="This one alone; repeatable.")
@click.pass_obj
def verify_command(root: Path, where: str, names: tuple[str, ...]) -> None:
    """Build published variants again, from the commit each one names, and compare every file.

    They are in a folder, or at an address such as https://huggingface.co/kernels/OWNER/NAME/tree/v1. What
    runs is that commit of the checkout here, with the tools of its lock if the variant names one. Any
    difference: exit status 1, and the build stays in .build/verify.
    """
    from builder.verify import fetch_published, verify

    repository = open_repository(root)
    same = True
    for published in fetch_published(where, repository, names):
        pairs = verify(repository, published, console)
        console.print(published.name, highlight=False)
        same &= print_comparison(pairs, ("the published", "the rebuilt"), console)
    if not same:
        sys.exit(1)


@main.command("sign")
@click.option("--variant", "names", multiple=True, metavar="NAME", help="This one alone; repeatable.")
@click.option(
    "--identity-token",
    "token",
    metavar="TOKEN",
    help="An OpenID Connect token for the audience `sigstore`.  [default: that of the CI job this runs in]",
)
@click.option(
    "--trust-config",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Another Sigstore than the public one, as a ClientTrustConfig.",
)
@click.pass_obj
def sign_command(root: Path, names: tuple[str, ...], token: str | None, trust_config: Path | None) -> None:
    """Sign the variants in build/ with Sigstore: each gets a metadata.json.sigstore.

    The metadata has the digest of every other file. There is no key to keep: the signature is of the
    identity that the token proves, such as a workflow on GitHub, and is entered in a public log. `publish`
    uploads it; a loader can require it.
    """
    from builder.sign import sign

    with console.status("signing"):
        signed, identity = sign(open_repository(root), names, token, trust_config)
    for path in signed:
        console.print(str(path.relative_to(root)), highlight=False, soft_wrap=True)
    console.print(f"signed as {identity}", highlight=False, soft_wrap=True)


@main.command("publish")
@click.option("--repo", metavar="OWNER/NAME", help="Hub repository.  [default: repo-id of build.toml]")
@click.option("--version", type=click.IntRange(min=1), help="Branch vN.  [default: version of build.toml]")
@click.option("--endpoint", metavar="URL", help="Another Hub.  [default: HF_ENDPOINT, else huggingface.co]")
@click.option(
    "--token", metavar="TOKEN", help="Access token.  [default: that of `hf auth login`, or HF_TOKEN]"
)
@click.option(
    "--trial",
    is_flag=True,
    help="Publish what is no release: of a dirty tree, not locked, incomplete, or of another API.",
)
@click.option("--dry-run", is_flag=True, help="Check everything, print what would be sent, send nothing.")
@click.pass_obj
def publish_command(
    root: Path,
    repo: str | None,
    version: int | None,
    endpoint: str | None,
    token: str | None,
    trial: bool,
    dry_run: bool,
) -> None:
    """Check build/, then upload it to branch vN of a kernel repository, and CARD.md to main as its README.

    A release is of one commit, complete, built with --locked, and breaks no API that the version has. It gets
    a tag. Prints the commit's sha and the line of code that loads exactly that commit.
    """
    from builder.publish import compare_with_published, prepare_upload, upload

    repository = open_repository(root)
    repo = repo or repository.hub_repo
    if repo is None:
        raise BuilderError("No repository: pass --repo, or set repo-id under [general.hub] in build.toml.")
    with console.status("checking"):
        plan = prepare_upload(repository, repo, version or repository.version, trial)
    size = sum(path.stat().st_size for path in plan.files.values()) / 1e6
    console.print(f"{len(plan.files)} files, {size:.1f} MB → {repo} {plan.branch}", highlight=False)
    with console.status("comparing with what is published"):
        compare_with_published(plan, endpoint, token)
    if dry_run:
        for name in sorted(plan.files):
            console.print(f"  {name}", highlight=False, soft_wrap=True)
        return
    sha = upload(plan, endpoint, token)
    console.print(f"commit {sha}", highlight=False)
    if plan.tag:
        tag_commit(root, plan.tag, plan.commit)
        console.print(
            f"tag {plan.tag}, here too: `git push origin {plan.tag}`", highlight=False, markup=False
        )
    console.print(
        f'get_kernel("{repo}", revision="{sha}", trust_remote_code=["{repo}"])',
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
