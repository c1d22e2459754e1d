"""The command `flash-rwkv`: see what would load, fetch it ahead of time, carry it along, pin a release."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from . import locking
from ._version import __version__
from .bundle import lock_name
from .errors import IntegrityError, LoaderError, NoVariantError
from .lockfile import Lock
from .plan import SHORT_NAME, Plan, make_plan
from .provide import provide, whereabouts
from .store import Store, default_store
from .wheels import make_wheel

_EPILOG = """
environment:
  FLASH_RWKV_LOCAL  folder to load from instead: what `prefetch --to` wrote, or a build of yours, unverified
  FLASH_RWKV_LOCK   lock file to use instead of the one in the package
  FLASH_RWKV_CACHE  folder of the verified copies (default: ~/.cache/flash-rwkv)
  FLASH_RWKV_SIGNER whose signature every kernel must have: an identity, perhaps a space and its issuer
                    (default: GitHub's); FLASH_RWKV_SIGSTORE_ROOT names another Sigstore's trusted_root.json
  HF_ENDPOINT, HF_HOME, KERNELS_CACHE, HF_HUB_OFFLINE  as everywhere with Hugging Face

exit status: 0 done, 1 refused or not possible (the reason is on stderr), 2 wrong usage
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except (LoaderError, ValueError) as error:
        print(f"flash-rwkv: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"flash-rwkv: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def info(options: argparse.Namespace) -> int:
    """Print the plan; the exit status says whether a load would succeed."""
    plan = make_plan(options.name, options.revision, None, options.backend)
    report = _report(plan)
    print(json.dumps(report, indent=2) if options.json else _as_text(report))
    return 0 if report["loads"] else 1


def prefetch(options: argparse.Namespace) -> int:
    """Fetch and verify, replacing what is damaged."""
    lock, variants = _chosen(options)
    store = Store(options.to.absolute()) if options.to else None
    for variant in variants:
        print(provide(lock, variant, store=store, repair=True))
    if store:
        store.write_text(lock_name(lock.repository, lock.commit), lock.dumps())
        _explain_transport(lock, store.root)
    return 0


def wheel(options: argparse.Namespace) -> int:
    """Fetch, verify and pack."""
    lock, variants = _chosen(options)
    print(make_wheel(lock, variants, options.output))
    return 0


def lock(options: argparse.Namespace) -> int:
    """Pin a revision and write the lock file."""
    pinned = locking.pin(options.repository, options.revision)
    options.output.write_text(pinned.dumps(), encoding="utf-8")
    files = sum(len(files) for files in pinned.variants.values())
    print(f"{options.output}: {pinned.repository} at {pinned.commit}, version {pinned.version}")
    print(f"{files} files in {len(pinned.variants)} variants: {', '.join(sorted(pinned.variants))}")
    return 0


def _chosen(options: argparse.Namespace) -> tuple[Lock, list[str]]:
    """Return the lock that the arguments name, and the variants of it that they choose."""
    plan = make_plan(options.name, options.revision, None, options.backend)
    if plan.lock is None:
        raise LoaderError("there is nothing to fetch while FLASH_RWKV_LOCAL is set: unset it")
    verifiable = [name for name, files in plan.lock.variants.items() if files]
    if options.all_variants:
        return plan.lock, verifiable
    for variant in options.variant:
        if variant not in verifiable:
            raise ValueError(f"--variant must be one of {', '.join(verifiable)}, got {variant!r}")
    return plan.lock, options.variant or [plan.variant]


def _explain_transport(lock: Lock, folder: Path) -> None:
    print(f"copy {folder} to the other machine and set FLASH_RWKV_LOCAL to it there", file=sys.stderr)
    if Lock.current().revision not in (None, lock.revision):
        print(f'load with get_kernel("{lock.repository}", revision="{lock.commit}")', file=sys.stderr)


def _report(plan: Plan) -> dict:
    """Collect what `info` shows; verifies a copy that is already here, asks no network."""
    import torch

    report = {
        "loader": __version__,
        "torch": torch.__version__,
        "repository": plan.repository,
        "revision": plan.lock.commit if plan.lock else None,
        "version": plan.lock.version if plan.lock else None,
        "pinned_by": plan.lock.origin if plan.lock else f"nothing: {plan.source}",
        "variants": {decision.variant: decision.reason or "fits" for decision in plan.decisions},
    }
    try:
        variant = plan.variant
    except NoVariantError:
        return {**report, "loads": None, "from": None}
    report["loads"] = variant
    if plan.lock is None:
        return {**report, "from": f"{plan.local[variant]} (unverified)"}
    if default_store().has(variant, plan.lock.variants[variant]):
        try:
            default_store().verified(variant, plan.lock.variants[variant])
        except IntegrityError as error:
            return {**report, "loads": None, "from": str(error)}
    return {**report, "from": whereabouts(plan.lock, variant)}


def _as_text(report: dict) -> str:
    facts = {key: value for key, value in report.items() if key not in ("variants", "loads", "from")}
    lines = [f"{key.replace('_', ' '):<11} {'-' if value is None else value}" for key, value in facts.items()]
    lines += ["", "variants, best first:"]
    for variant, verdict in report["variants"].items():
        lines.append(f"  {'*' if variant == report['loads'] else ' '} {variant}: {verdict}")
    lines += ["", f"{'loads':<11} {report['loads'] or 'nothing'}", f"{'from':<11} {report['from'] or '-'}"]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flash-rwkv",
        description="Find, fetch and pin the compiled RWKV kernels that `import flash_rwkv` loads.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"flash-rwkv {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    what = argparse.ArgumentParser(add_help=False)
    what.add_argument(
        "name", nargs="?", default=SHORT_NAME, help="repository id (default: the pinned repository)"
    )
    what.add_argument("--revision", metavar="SHA", help="full commit sha (default: the pinned one)")
    what.add_argument("--backend", help='"cpu" or the backend of Torch (default: the backend of Torch)')

    command = commands.add_parser(
        "info", parents=[what], help="show what would load here, from where, and why"
    )
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=info)

    which = argparse.ArgumentParser(add_help=False)
    group = which.add_mutually_exclusive_group()
    group.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="NAME",
        help="this one, repeat for more (default: the one for this machine)",
    )
    group.add_argument("--all-variants", action="store_true", help="all, for every platform")

    command = commands.add_parser(
        "prefetch", parents=[what, which], help="download and verify, for use without network"
    )
    command.add_argument(
        "--to", type=Path, metavar="DIR", help="put the verified files there (default: the cache)"
    )
    command.set_defaults(run=prefetch)

    command = commands.add_parser(
        "wheel",
        parents=[what, which],
        help="make a wheel of verified variants, for use without network",
        description="Make a wheel that pip installs beside this package, with variants that are then found "
        "there and verified like any others. Needs the package wheel: pip install 'flash-rwkv[wheel]'.",
    )
    command.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="folder for the wheel (default: here)",
    )
    command.set_defaults(run=wheel)

    command = commands.add_parser(
        "lock", help="pin a revision with the digest of every file of every variant"
    )
    command.add_argument("repository", metavar="REPO", help='repository id, "owner/name"')
    command.add_argument(
        "--revision", required=True, metavar="SHA", help="commit, or a branch or tag to resolve now"
    )
    command.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("flash_rwkv.lock.json"),
        metavar="FILE",
        help="(default: %(default)s)",
    )
    command.set_defaults(run=lock)
    return parser
