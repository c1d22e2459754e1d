"""The demo from end to end; the exit status says whether everything held."""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
from itertools import islice
from pathlib import Path

import torch
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from examples.demo.accuracy import last_call, operator_errors
from examples.demo.data import Text as Corpus
from examples.demo.data import batches, even_windows, load_text
from examples.demo.generate import generate
from examples.demo.hub import LoadedKernel, load, private_hub, publish
from examples.demo.model import TITLES, LanguageModel
from examples.demo.recurrence import from_kernel, from_reference
from examples.demo.report import plot_losses, print_table
from examples.demo.result import Result
from examples.demo.speed import Comparison, compare_calls, compare_steps
from examples.demo.train import History, Settings, by_steps, by_time, train

COMPARED_STEPS = 4
VALIDATION_WINDOWS = 32
PROMPT = b"    def "
SAMPLE_BYTES = 400


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; 0 if the losses fell and every error is within its tolerance, else 1."""
    options = parse(arguments)
    # Off a terminal rich assumes 80 columns, too few for the progress display.
    console = Console() if Console().is_terminal else Console(width=120)
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="flash-rwkv-demo-") as folder, private_hub(Path(folder)) as hub:
        console.rule("build → Hub → get_kernel")
        commit = publish(hub)
        console.print(f"published build/ to {hub.url} as commit {commit}", highlight=False)
        kernel = load(commit)
        console.print(
            f"kernels.get_kernel loaded {kernel.variant} ({kernel.module.cpu_isa()})", highlight=False
        )
    corpus = load_text()
    console.print(
        f"text: {corpus.files} files of Python's standard library, {len(corpus.train) / 1e6:.1f} MB to train "
        f"on, {len(corpus.validation) / 1e6:.2f} MB to validate on",
        highlight=False,
    )
    results = [run(console, kernel, operator, corpus, options) for operator in ("wkv7", "wkv6")]
    return finish(console, kernel, results, options.out)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.demo",
        description="Publish build/ to a Hub on this machine, load it back by commit, and train a byte-level "
        "RWKV-7 and an RWKV-6 language model on the text of Python's standard library. Needs a build: "
        "`python -m builder build`.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--out", type=Path, default=Path("demo-output"), help="folder for the loss curve and the samples"
    )
    parser.add_argument("--seconds", type=float, default=60, help="time to train, both models together")
    parser.add_argument("--steps", type=int, help="training steps of each model, instead of --seconds")
    parser.add_argument("--seed", type=int, default=1, help="with --steps it decides the result")
    model = parser.add_argument_group("model and training")
    for setting in dataclasses.fields(Settings):
        if setting.name != "seed":
            flag = "--" + setting.name.replace("_", "-")
            model.add_argument(
                flag, type=type(setting.default), default=setting.default, help=setting.metadata["help"]
            )
    options = parser.parse_args(arguments)
    for name, least in {"seconds": 1, "steps": 1, "dim": 64, "layers": 1, "batch": 1, "tokens": 1}.items():
        value = getattr(options, name)
        if value is not None and value < least:
            parser.error(f"--{name} must be at least {least}, got {value}")
    if options.dim % 64:
        parser.error(f"--dim must be a multiple of the head size, 64, got {options.dim}")
    return options


def run(
    console: Console, kernel: LoadedKernel, operator: str, corpus: Corpus, options: argparse.Namespace
) -> Result:
    """Compare, train, measure and generate with one operator."""
    title = TITLES[operator]
    console.rule(title)
    settings = Settings(**{f.name: getattr(options, f.name) for f in dataclasses.fields(Settings)})
    torch.manual_seed(settings.seed)
    model = LanguageModel(operator, settings.dim, settings.layers)
    compiled = from_kernel(kernel.module, operator)
    plain = from_reference(kernel.reference, operator)
    data = batches(corpus.train, settings.batch, settings.tokens, settings.seed)
    windows = even_windows(corpus.validation, VALIDATION_WINDOWS, settings.tokens)
    per_step = settings.batch * settings.tokens

    with progress_display(console) as bar:
        task = bar.add_task(f"{title}, both ways", total=2 * COMPARED_STEPS, note="kernel and plain PyTorch")
        first = list(islice(data, COMPARED_STEPS))
        step, difference = compare_steps(model, compiled, plain, first, settings, lambda: bar.advance(task))
        progress = by_steps(options.steps) if options.steps else by_time(options.seconds / 2)
        task = bar.add_task(f"{title}, training", total=1.0, note="")
        history = train(
            model,
            compiled,
            data,
            windows,
            progress,
            settings,
            lambda history, done: bar.update(task, completed=done, note=note(history, per_step, step)),
        )

    call = last_call(model, compiled, windows[: settings.batch, :-1])
    forward_error, gradient_error = operator_errors(call, compiled, plain)
    sample, decode_error = generate(model, compiled, PROMPT, SAMPLE_BYTES, settings.seed)
    console.print(Panel(Text(sample.decode(errors="replace")), title=f"generated by {title}, byte by byte"))
    return Result(
        operator=operator,
        parameters=sum(p.numel() for p in model.parameters()),
        history=history,
        tokens_per_second=len(history.train) * per_step / history.seconds,
        step=step,
        call=compare_calls(call, compiled, plain),
        loss_difference=difference,
        forward_error=forward_error,
        gradient_error=gradient_error,
        decode_error=decode_error,
        sample=sample,
    )


def progress_display(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
    )


def note(history: History, per_step: int, step: Comparison) -> str:
    count, loss = history.train[-1]
    rate = count * per_step / history.seconds
    plain = per_step / step.plain
    return f"step {count}, loss {loss:.2f} bits/byte, {rate:,.0f} tokens/s (plain PyTorch: {plain:,.0f})"


def finish(console: Console, kernel: LoadedKernel, results: list[Result], out: Path) -> int:
    """Write the files, print the table and the verdict."""
    console.rule("result")
    plot_losses(results, out / "loss.png")
    for result in results:
        (out / f"sample-{result.operator}.txt").write_bytes(result.sample)
    print_table(console, kernel, results)
    console.print(f"loss curve: {os.path.relpath(out / 'loss.png')}, samples beside it", highlight=False)
    failures = [failure for result in results for failure in result.failures()]
    for failure in failures:
        console.print(f"FAILED: {failure}", style="bold red", highlight=False)
    if not failures:
        console.print(
            "Everything held: the losses fell, the errors are within tolerance.", style="bold green"
        )
    return 1 if failures else 0
