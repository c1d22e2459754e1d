"""What is promised of one NVIDIA H200, and of errors anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

PROMISED_ON = "H200"
EXACT = 1e-5  # of float32
TIMES_PLAIN = 2.0  # of the low-precision dtypes: over the same formula in plain PyTorch
# Of the matrix form, whose operands are rounded.
CHUNK = {
    "wkv5": {"forward": 2.8e-3, "state": 1.5e-3, "backward": 3.5e-3},
    "wkv6": {"forward": 2.8e-3, "state": 1.5e-3, "backward": 3.5e-3},
    "wkv7": {"forward": 2.8e-3, "state": 1.5e-3, "backward": 4.5e-3},
}


@dataclass(frozen=True)
class TimeBar:
    """The longest that one of our rows may take, in its own unit."""

    operator: str
    shape: dict[str, int | str]  # what identifies the row
    column: str  # "forward", "forward_backward", "graph_us" or "eager_us"
    at_most: float


_LARGE, _SMALL = {"B": 8, "T": 4096}, {"B": 1, "T": 4096}
_RECURRENT = {**_LARGE, "algorithm": "recurrent"}
TIME_BARS = (
    TimeBar("wkv7", _RECURRENT, "forward", 3.5),
    TimeBar("wkv7", _RECURRENT, "forward_backward", 12.0),
    TimeBar("wkv6", _RECURRENT, "forward", 3.5),
    TimeBar("wkv6", _RECURRENT, "forward_backward", 14.0),
    *(
        TimeBar(operator, {"B": batch, "T": tokens, "algorithm": "chunk"}, column, at_most)
        for operator, batch, tokens, column, at_most in (
            ("wkv7", 8, 4096, "forward", 1.1),
            ("wkv7", 32, 1024, "forward", 0.55),
            ("wkv7", 1, 4096, "forward", 0.21),
            ("wkv7", 4, 4096, "forward", 0.25),
            ("wkv7", 8, 4096, "forward_backward", 4.1),
            ("wkv7", 32, 1024, "forward_backward", 2.0),
            ("wkv7", 1, 4096, "forward_backward", 0.8),
            ("wkv7", 4, 4096, "forward_backward", 0.95),
            ("wkv7", 1, 32768, "forward", 1.6),
            ("wkv7", 1, 32768, "forward_backward", 6.0),
            ("wkv6", 8, 4096, "forward", 0.9),
            ("wkv6", 32, 1024, "forward", 0.45),
            ("wkv6", 1, 4096, "forward", 0.12),
            ("wkv5", 8, 4096, "forward", 0.7),
            ("wkv5", 1, 4096, "forward", 0.1),
            ("wkv6", 8, 4096, "forward_backward", 3.4),
            ("wkv6", 32, 1024, "forward_backward", 1.7),
            ("wkv6", 1, 4096, "forward_backward", 0.55),
            ("wkv5", 8, 4096, "forward_backward", 2.6),
            ("wkv5", 1, 4096, "forward_backward", 0.45),
        )
    ),
    TimeBar("wkv4", _LARGE, "forward", 1.5),
    TimeBar("wkv4", _LARGE, "forward_backward", 4.0),
    TimeBar("wkv4", _SMALL, "forward", 0.6),
    TimeBar("wkv7", {"B": 512, "state": "fp32"}, "graph_us", 280.0),
    TimeBar("wkv7", {"B": 512, "state": "fp16"}, "graph_us", 145.0),
    TimeBar("wkv7", {"B": 64, "state": "fp32"}, "graph_us", 40.0),
    TimeBar("wkv7", {"B": 1, "state": "fp32"}, "graph_us", 5.0),
    TimeBar("wkv7", {"B": 1, "state": "fp32"}, "eager_us", 15.0),
)


def bars(result: dict) -> list[dict]:
    """Each promise that concerns an operator's result: `name`, `value`, `bar`, `holds`, `enforced`.

    Times are promised of one kind of GPU: on others they are shown, and nothing fails.
    """
    enforced = PROMISED_ON in result["machine"]["gpu"]
    rows = [*result["rows"], *result["steps"]]
    found = [
        {"name": name, "value": value, "bar": bar, "holds": bool(value <= bar), "enforced": enforced}
        for time in TIME_BARS
        if time.operator == result["operator"]
        for row in rows
        if time.shape.items() <= row["shape"].items()
        for name, value, bar in _time(time, row)
    ]
    for row in rows:
        for name, value, bar in _errors(result["operator"], row):
            holds = bool(value <= bar)
            found.append({"name": name, "value": value, "bar": bar, "holds": holds, "enforced": True})
    return found


def missed(result: dict) -> list[dict]:
    """The bars that make a run fail."""
    return [bar for bar in result["bars"] if bar["enforced"] and not bar["holds"]]


def label(shape: dict) -> str:
    """`B8 T4096 H64 N64 bf16`."""
    return " ".join(
        f"{k}{v}" if k in "BTHNC" else f"{v}{' state' if k == 'state' else ''}" for k, v in shape.items()
    )


def _time(bar: TimeBar, row: dict) -> Iterator[tuple[str, float, float]]:
    own = row["contestants"][0]
    if bar.column in own.get("ms", {}):
        what = bar.column.replace("_", " + ")
        yield f"{what}, ms, {label(row['shape'])}", own["ms"][bar.column]["median"], bar.at_most
    elif bar.column in own:
        what = bar.column.removesuffix("_us")
        yield f"step, {what}, µs, {label(row['shape'])}", own[bar.column]["median"], bar.at_most


def _errors(operator: str, row: dict) -> Iterator[tuple[str, float, float]]:
    for what, value in row["contestants"][0]["errors"].items():
        if value is None:  # of what it does not do
            continue
        # A state is float32 unless it belongs to a pool of others.
        exact = row["shape"].get("dtype") == "fp32" or (
            what == "state" and row["shape"].get("state", "fp32") == "fp32"
        )
        # Where plain PyTorch happens to be exact, float32's own rounding remains.
        if row["shape"].get("algorithm") == "chunk":
            bar = CHUNK[operator][what]
        else:
            bar = EXACT if exact else max(TIMES_PLAIN * row["plain_errors"][what], EXACT)
        yield f"error, {what}, {label(row['shape'])}", value, bar
