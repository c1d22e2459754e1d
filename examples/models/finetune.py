"""Fine-tune a model on a text file: `python -m examples.models.finetune MODEL TEXT FOLDER`.

MODEL is a repository on the Hub, or a folder such as `examples.models.convert` makes. The tuned model goes
into FOLDER, with a picture of its loss.
"""

from __future__ import annotations

from pathlib import Path

import click
import matplotlib
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

from .state_tuning import StateTuned

matplotlib.use("Agg")
from matplotlib import pyplot

# What `--new` begins from: enough to watch a loss fall on a laptop.
NEW_SIZES = {"hidden_size": 256, "num_hidden_layers": 6}
PROMPT_TOKENS, SAMPLE_TOKENS = 16, 60


class Windows(Dataset):
    """A text cut into windows of as many tokens each; what is left over at the end is left out."""

    def __init__(self, ids: list[int], length: int) -> None:
        count = len(ids) // length
        if count == 0:
            raise ValueError(f"the text has {len(ids)} tokens, a window takes {length}")
        self.windows = torch.tensor(ids[: count * length]).view(count, length)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.windows[index], "labels": self.windows[index]}


def load(name: str, new: bool) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in float32, and its tokenizer; `new` starts from random weights of a small model."""
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
    if new:
        sizes = {**NEW_SIZES, "vocab_size": tokenizer.vocab_size}
        config = AutoConfig.from_pretrained(name, trust_remote_code=True, **sizes)
        return AutoModelForCausalLM.from_config(config, trust_remote_code=True), tokenizer
    model = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=True, dtype=torch.float32)
    return model, tokenizer


def train(
    model: nn.Module, data: Windows, folder: Path, steps: int, batch: int, learning_rate: float
) -> list[float]:
    """Train with transformers' Trainer, which shows its progress; returns the losses on the way."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        save_strategy="no",
        report_to="none",
        max_steps=steps,
        per_device_train_batch_size=batch,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=min(10, steps // 10),
        logging_steps=max(1, steps // 50),
        bf16=torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=data)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def plot(losses: list[float], steps: int, path: Path) -> None:
    """Draw the losses, which are means over equal parts of the steps."""
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axes.plot([steps * (index + 1) / len(losses) for index in range(len(losses))], losses)
    axes.set(xlabel="step", ylabel="loss, nats a token")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


@click.command(help=__doc__)
@click.argument("model_name", metavar="MODEL")
@click.argument("text", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--steps", default=200, show_default=True)
@click.option("--batch", default=4, show_default=True, help="windows a step")
@click.option("--length", default=256, show_default=True, help="tokens a window")
@click.option("--learning-rate", type=float, help="default: 3e-4, and 1e-2 for states")
@click.option("--states-only", is_flag=True, help="train the initial states alone: state tuning")
@click.option("--new", is_flag=True, help="start from random weights of a small model")
def main(
    model_name: str,
    text: Path,
    folder: Path,
    steps: int,
    batch: int,
    length: int,
    learning_rate: float | None,
    states_only: bool,
    new: bool,
) -> None:
    set_seed(0)
    model, tokenizer = load(model_name, new)
    ids = tokenizer(text.read_text(encoding="utf-8")).input_ids
    try:
        data = Windows(ids, length)
    except ValueError as error:
        raise click.ClickException(f"{text}: {error}; see --length") from None
    tuned = StateTuned(model) if states_only else model
    count = sum(parameter.numel() for parameter in tuned.parameters() if parameter.requires_grad)
    click.echo(f"{len(ids):,} tokens, {len(data):,} windows; {count:,} parameters to train")
    learning_rate = learning_rate or (1e-2 if states_only else 3e-4)
    losses = train(tuned, data, folder, steps, batch, learning_rate)

    folder.mkdir(parents=True, exist_ok=True)
    if states_only:
        tuned.save(folder / "states.safetensors")
    else:
        tuned.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    plot(losses, steps, folder / "loss.png")
    prompt = torch.tensor([ids[:PROMPT_TOKENS]], device=model.device)
    sample = tuned.eval().generate(prompt, max_new_tokens=SAMPLE_TOKENS)
    click.echo(f"loss {losses[0]:.3f} → {losses[-1]:.3f}, see {folder / 'loss.png'}; a sample:")
    click.echo(tokenizer.decode(sample[0]))


if __name__ == "__main__":
    main()
