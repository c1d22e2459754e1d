"""`python -m examples.models.convert MODEL.pth FOLDER`: BlinkDL's weights as a model repository."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import click
import torch
from rich.progress import track
from safetensors.torch import save_file

from . import layout

MODELS = Path(__file__).parent
SHARD_BYTES = 4 * 2**30
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def convert(
    checkpoint: Path,
    folder: Path,
    *,
    vocabulary: Path | None = None,
    kernel_lock: Path | None = None,
    dtype: str = "bfloat16",
    shard_bytes: int = SHARD_BYTES,
) -> layout.Sizes:
    """Write a model repository from a checkpoint, one shard in memory at a time.

    Args:
        checkpoint: a `.pth` of tensors, names as in BlinkDL/RWKV-LM; nothing else in it is run.
        folder: where the repository goes; made when missing.
        vocabulary: the world vocabulary's file, for the tokenizer.
        kernel_lock: which kernel the model's code names, from `flash-rwkv lock`.
        dtype: `"float32"`, `"bfloat16"` or `"float16"`.
        shard_bytes: when to begin another file of weights.

    Raises:
        ValueError: an unknown version of RWKV, a name or shape that does not fit, or a lock
            that names no commit.
    """
    pin = None if kernel_lock is None else pin_of(kernel_lock)
    tensors = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)
    size = layout.sizes(tensors)

    copy_code(size.folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {**asdict(size), "dtype": dtype}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    if pin is not None:
        (folder / "pin_rwkv.py").write_text(pin)
    if vocabulary is not None:
        shutil.copyfile(vocabulary, folder / "rwkv_vocab.txt")
    _write_weights(tensors, size.shapes(), folder, DTYPES[dtype], shard_bytes)
    return size


def copy_code(model: str, folder: Path) -> None:
    """Copy a repository of this folder, `"rwkv7"` say, without weights; its links become files."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in (MODELS / model).iterdir():
        if path.is_file():
            shutil.copyfile(path, folder / path.name)


def pin_of(kernel_lock: Path) -> str:
    """The text of `pin_rwkv.py` for the kernel that a lock of the pip package flash-rwkv names.

    Raises:
        ValueError: the lock names another repository than the models do, or no commit.
    """
    lock = json.loads(kernel_lock.read_text())
    head, _, _ = (MODELS / "common" / "pin_rwkv.py").read_text().partition("REVISION = ")
    if f'REPOSITORY = "{lock["repository"]}"\n' not in head:
        raise ValueError(f"{kernel_lock} is of {lock['repository']}, whose kernels the models do not run")
    if not re.fullmatch("[0-9a-f]{40}", lock["revision"] or ""):
        raise ValueError(f"{kernel_lock} must name a full commit sha, got {lock['revision']!r}")
    files = {
        variant: {name: entry["sha256"] for name, entry in entries.items()}
        for variant, entries in lock["variants"].items()
    }
    comment = "# Of each build variant the SHA-256 of every file."
    return f'{head}REVISION = "{lock["revision"]}"\n{comment}\nFILES = {json.dumps(files, indent=4)}\n'


def _write_weights(
    tensors, shapes: layout.Shapes, folder: Path, dtype: torch.dtype, shard_bytes: int
) -> None:
    shards: list[list[str]] = [[]]
    room = shard_bytes
    for name in sorted(shapes):
        room -= tensors[name].numel() * dtype.itemsize
        if room < 0 and shards[-1]:
            shards.append([])
            room = shard_bytes - tensors[name].numel() * dtype.itemsize
        shards[-1].append(name)
    index: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = (
            f"model-{number:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else "model.safetensors"
        )
        part = {}
        for name in track(names, description=file):
            part[layout.name_in_model(name)] = tensors[name].reshape(shapes[name]).to(dtype, copy=True)
        save_file(part, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    if len(shards) > 1:
        total = sum(tensors[name].numel() for name in shapes) * dtype.itemsize
        content = {"metadata": {"total_size": total}, "weight_map": index}
        (folder / "model.safetensors.index.json").write_text(json.dumps(content, indent=2) + "\n")


@click.command(help=__doc__)
@click.argument("checkpoint", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--vocabulary", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="for the tokenizer"
)
@click.option(
    "--kernel-lock",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="which kernel the model runs, from `flash-rwkv lock`",
)
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="bfloat16", show_default=True)
def main(
    checkpoint: Path, folder: Path, vocabulary: Path | None, kernel_lock: Path | None, dtype: str
) -> None:
    try:
        size = convert(checkpoint, folder, vocabulary=vocabulary, kernel_lock=kernel_lock, dtype=dtype)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    click.echo(
        f"{folder}: RWKV {size.version}, {size.num_hidden_layers} layers of {size.hidden_size} channels"
    )


if __name__ == "__main__":
    main()
