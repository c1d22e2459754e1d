"""Which build variant fits this machine, by the kernels library's rules, and why the others do not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .errors import NoVariantError


@dataclass(frozen=True)
class Decision:
    """The verdict on one variant; `reason` is empty when it fits."""

    variant: str
    reason: str = ""


def decide(variants: Mapping[str, object], backend: str | None) -> list[Decision]:
    """Judge every variant, those that fit first and the preferred one leading.

    Args:
        variants: names, each with something true if the variant can be loaded at all.
        backend: `"cpu"` or Torch's own; `None` for Torch's own.

    Raises:
        ValueError: `backend` is neither "cpu" nor the one Torch was built for.
    """
    from kernels.variants import VariantAccepted, parse_variant, resolve_variants

    known, others = {}, []
    for name, files in sorted(variants.items()):
        try:
            parsed = parse_variant(name)
        except ValueError as error:
            others.append(Decision(name, str(error)))
            continue
        if files:
            known[parsed] = name
        else:
            others.append(Decision(name, "its metadata.json has no digests, so it cannot be verified"))
    _, trace = resolve_variants(list(known), backend)
    decisions = [
        Decision(known.pop(judged.variant), "" if isinstance(judged, VariantAccepted) else judged.reason)
        for judged in trace
    ]
    unjudged = [Decision(name, "not supported by this Python interpreter") for name in known.values()]
    return decisions + unjudged + others


def preferred(decisions: list[Decision], source: str) -> str:
    """Return the variant to load; `NoVariantError` with every reason when there is none."""
    if decisions and not decisions[0].reason:
        return decisions[0].variant
    reasons = (
        "".join(f"\n  {decision.variant}: {decision.reason}" for decision in decisions) or "\n  (none at all)"
    )
    raise NoVariantError(f"no build variant of {source} fits this machine:{reasons}")
