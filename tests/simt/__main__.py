"""Runs one operator of a checkout's CUDA kernels in the emulator, and says how far its results are off.

`python -m tests.simt --sources ../other-checkout --op wkv7 --tokens 37 --size 64`
"""

from __future__ import annotations

import time
from pathlib import Path

import click
import torch

from tests.helpers.measure import error, exact_and_plain, run, violations
from tests.helpers.operators import DECAYS, OPERATORS, Operator, make_inputs, options
from tests.simt import emulated

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@click.command(context_settings={"show_default": True})
@click.option(
    "--sources",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=emulated.ROOT,
    help="The checkout whose kernels run.",
    show_default="this one",
)
@click.option("--op", "name", type=click.Choice(list(OPERATORS)), default="wkv7")
@click.option("--batch", default=1)
@click.option("--tokens", default=37)
@click.option("--heads", default=2)
@click.option("--size", default=64, help="Of a head; RWKV-4 has heads times as many channels.")
@click.option("--packed", default="", help="Lengths of packed sequences, such as 5,0,32: replaces --tokens.")
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="fp32")
@click.option("--wide-dtype", type=click.Choice(list(DTYPES)), help="Of w and u.  [default: --dtype]")
@click.option("--decay", type=click.Choice(DECAYS), help="[default: the operator's]")
@click.option("--state/--no-state", default=True, help="Whether there is an initial state.")
@click.option("--seed", default=0)
@click.option("--order", "orders", multiple=True, default=["forward", "reverse", "1"], help="Of the threads.")
@click.option("--processors", multiple=True, default=[132, 1], help="Of the GPU: 1 makes few heads many.")
@click.option("--jobs", default=1, help="Compilers at a time.")
def main(sources: Path, jobs: int, orders: list[str], processors: list[int], **case) -> None:
    """Errors of outputs and gradients against float64, and whether they depend on the order of threads."""
    torch.set_num_threads(1)
    kernel = emulated.load(sources, jobs)
    operator, inputs, keywords = make_case(**case)
    exact, plain = exact_and_plain(kernel.reference, operator, inputs, **keywords)
    wrong = False
    for count in processors:
        first = None
        for order in orders:
            begin = time.monotonic()
            with emulated.setting(order=order, processors=count):
                results = run(kernel, operator, inputs, **keywords)
            print(f"--- {count} multiprocessors, order {order}: {time.monotonic() - begin:.2f} s")
            if first is not None:
                differing = [name for name in results if not _same(results[name], first[name])]
                wrong |= bool(differing)
                print(f"    bits differ from those of the first order: {', '.join(differing) or 'none'}")
                continue
            first = results
            for name, value in results.items():
                size = exact[name].double().norm().item()
                print(
                    f"    {name:12} {error(value, exact[name]) / size if size else 0:9.2e}"
                    f"   plain PyTorch {error(plain[name], exact[name]) / size if size else 0:9.2e}"
                )
            lines = violations(operator, inputs, results, exact, plain)
            wrong |= bool(lines)
            for line in lines:
                print(f"    WRONG {line}")
    raise SystemExit(wrong)


def make_case(
    name: str,
    batch: int,
    tokens: int,
    heads: int,
    size: int,
    packed: str,
    dtype: str,
    wide_dtype: str | None,
    decay: str | None,
    state: bool,
    seed: int,
) -> tuple[Operator, dict[str, torch.Tensor], dict]:
    """The operator, its inputs and its keywords."""
    operator = OPERATORS[name]
    lengths = [int(length) for length in packed.split(",")] if packed else []
    inputs = make_inputs(
        operator,
        batch=batch,
        tokens=sum(lengths) if lengths else tokens,
        heads=heads,
        size=size,
        dtype=DTYPES[dtype],
        wide_dtype=DTYPES.get(wide_dtype),
        decay=decay,
        state=state,
        sequences=len(lengths) or None,
        seed=seed,
    )
    if not lengths:
        return operator, inputs, options(operator, decay)
    starts = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    return operator, inputs, options(operator, decay, cu_seqlens=torch.tensor(starts, dtype=torch.int32))


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """To the last bit, NaN included."""
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


if __name__ == "__main__":
    main()
