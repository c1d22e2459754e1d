"""The benchmark of whole models, on the smallest ones."""

from __future__ import annotations

import json
import math
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from benchmarks import report
from benchmarks.gpu.preparation import Preparation
from benchmarks.gpu.timing import Stopwatch
from benchmarks.models import __main__ as command
from benchmarks.models import fla_models, ours, store
from benchmarks.models import report as models_report
from benchmarks.models.bars import bars, missed
from benchmarks.models.fla_weights import fla_weights
from benchmarks.models.measure import Row, Setting, Trial
from benchmarks.models.memory import peak_bytes
from benchmarks.models.shapes import VERSIONS, sizes, work

pytestmark = pytest.mark.cpu_only
CPU = torch.device("cpu")


def speed(tokens: int, seconds: float, **more: float) -> dict:
    spread = {"median": seconds, "low": seconds, "high": seconds}
    return {"tokens": tokens, "seconds": spread, "tokens_s": tokens / seconds, **more}


def contestant(name: str, training: float = 0.1, peak: float = 8.0, graph: float = 1e-3, **errors) -> dict:
    errors = errors or {"logits": 1e-2, "gradients": 2e-2, "graph": 1e-2}
    return {
        "name": name,
        "errors": errors,
        "failed": {},
        "prefill": speed(4096, 0.05),
        "decode": speed(1, 9e-3),
        "decode_graph": speed(1, graph),
        "training": speed(4096, training, peak_gib=peak),
    }


def row(version: str = "rwkv7", size: str = "0.4B", compiled: dict | None = None, **changes) -> dict:
    """One in which every promise holds; `changes` are to the fastest of ours."""
    found = {
        "version": version,
        "size": size,
        "dtype": "bfloat16",
        "contestants": [
            contestant(ours.NAME, training=0.2),
            contestant(ours.COMPILED, **{"training": 0.09, "peak": 7.5, **changes}),
            contestant(ours.LOOP, training=30.0, graph=2e-3, logits=1e-2, gradients=2e-2),
            contestant(fla_models.NAME, logits=1e-2),
            contestant(fla_models.LEAN, training=0.11, peak=7.6),
        ],
    }
    return {**found, "bars": bars(found)}


def test_shapes_are_the_published_ones() -> None:
    """Parameters of the official RWKV-7 models, in millions."""
    for name, expected in (("0.1B", 191.0), ("0.4B", 450.8), ("1.5B", 1527.4)):
        count = sum(math.prod(shape) for shape in sizes("rwkv7", name).shapes().values())
        assert count / 1e6 == pytest.approx(expected, abs=0.1)


def test_promises_hold_and_are_missed() -> None:
    assert missed(row()) == []
    assert {bar["name"] for bar in row()["bars"]} >= {
        "training, flash-rwkv, compiled / fla",
        "memory of training, flash-rwkv, compiled / fla",
        "decoding in a CUDA graph, flash-rwkv / fla",
    }
    for name, changes in (
        ("training, flash-rwkv, compiled / fla", {"training": 0.105}),
        ("memory of training, flash-rwkv, compiled / fla", {"peak": 7.7}),
        ("error of gradients, flash-rwkv, compiled", {"logits": 1e-2, "gradients": 5e-2}),
        ("error of gradients, flash-rwkv, compiled", {"logits": 1e-2, "gradients": math.nan}),
    ):
        assert [bar["name"] for bar in missed(row(**changes))] == [name]


def test_of_other_shapes_only_errors_are_promised() -> None:
    assert missed(row("rwkv6", training=9.0, peak=99.0)) == []
    assert [bar["name"] for bar in missed(row("rwkv6", logits=0.5))] == [
        "error of logits, flash-rwkv, compiled"
    ]


def test_results_of_a_build_add_up_and_those_of_others_go(tmp_path: Path) -> None:
    machine = {"commit": "c" * 40, "build": "b", "date": "1", "dirty": False}
    for version, size in (("rwkv7", "0.4B"), ("rwkv5", "0.1B"), ("rwkv7", "0.4B")):
        store.add(tmp_path, {**machine, "date": "2"}, row(version, size))
    rows = store.load(tmp_path)["rows"]
    assert [(one["version"], one["size"]) for one in rows] == [("rwkv5", "0.1B"), ("rwkv7", "0.4B")]
    store.add(tmp_path, {**machine, "commit": "d" * 40}, row())
    assert len(store.load(tmp_path)["rows"]) == 1
    assert store.load(tmp_path / "nowhere") is None


@pytest.mark.parametrize("version", ["rwkv6", "rwkv7"])
def test_every_weight_goes_to_fla(version: str) -> None:
    size = sizes(version, "trial")
    checkpoint = ours.random_weights(size, CPU)
    found = fla_weights(size, checkpoint)
    assert sum(x.numel() for x in found.values()) == sum(map(math.prod, size.shapes().values()))
    if (
        version == "rwkv6"
    ):  # what it adds to the value's mixture, of which fla's is the fourth and ours the third
        inner = torch.randn(3, 5, size.mix_rank)
        theirs = found["model.layers.1.attn.x_proj.2.weight"].view(size.hidden_size, 5, -1)
        expected = inner[:, 3] @ checkpoint["blocks.1.att.time_maa_w2"][2]
        torch.testing.assert_close(torch.einsum("tnr,hnr->tnh", inner, theirs)[:, 3], expected)


def test_the_loop_leaves_the_kernel_in_place(kernel: ModuleType) -> None:
    size = sizes("rwkv5", "trial")
    weights = ours.random_weights(size, CPU)
    own, loop = ours.contestants(size, weights, work(CPU, "trial", True), kernel, compiled=False)
    ids = torch.arange(1, 9)[None]
    before = own.logits(ids)
    torch.testing.assert_close(loop.logits(ids), before, rtol=0, atol=1e-4)
    assert torch.equal(own.logits(ids), before)
    assert not torch.equal(loop.logits(ids), before)


def test_memory_is_that_of_the_worst_moment() -> None:
    taken = peak_bytes(CPU, lambda: torch.ones(2**24).sum())
    if taken is None:
        pytest.skip("this system keeps no books of a process's memory")
    assert taken == pytest.approx(2**26, rel=0.2)


def test_a_small_run_writes_what_it_prints(
    kernel_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All versions, with the package rwkv in a process of its own, up to the page's section."""
    threads = torch.get_num_threads()
    arguments = ["--sizes", "trial", "--kernel", str(kernel_path), "--threads", "1", "--out", str(tmp_path)]
    try:
        status = command.main(arguments)
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert status == 0, printed
    written = json.loads((tmp_path / store.NAME).read_text())
    assert [one["version"] for one in written["rows"]] == list(VERSIONS)
    for one in written["rows"]:
        own, loop, pip = one["contestants"]
        assert own["errors"]["gradients"] < 1e-5
        assert pip["errors"]["logits"] < 1e-5, pip["failed"]
        assert all(work in each for each in (own, loop) for work in ("prefill", "decode", "training"))
        assert f"{pip['decode']['tokens_s']:,.0f}" in printed
    written["machine"]["other_work"] = 0.0
    assert models_report.section(written).count("| rwkv (pip) |") == 3


def test_a_run_that_is_cut_off_leaves_what_it_had(
    kernel_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: Trial) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Trial, "decode", interrupt)
    arguments = ["--only", "rwkv7", "--sizes", "trial", "--no-peers", "--out", str(tmp_path)]
    with pytest.raises(KeyboardInterrupt):
        command.main([*arguments, "--kernel", str(kernel_path)])
    own = store.load(tmp_path)["rows"][0]["contestants"][0]
    assert {"training", "prefill"} <= own.keys()
    assert "decode" not in own


def test_a_peer_that_is_not_ready_in_time_is_left_out(kernel: ModuleType) -> None:
    size = sizes("rwkv7", "trial")
    limit = Preparation(0.05)
    setting = Setting(kernel, Stopwatch(CPU), compiled=False, peers=False, preparation=limit, say=str)
    trial = Trial(setting, size, "trial", work(CPU, "trial", True))
    trial.enter()
    slow = replace(trial.contestants[0], name="slow", around=lambda: nullcontext(time.sleep(5)))
    trial.rows["slow"] = Row("slow")
    trial.contestants.append(slow)
    trial.peers.append(slow)
    trial.prefill()
    assert trial.rows["slow"].found["failed"] == {"prefill": "TimeoutError: not ready after 0.05 s"}
    assert "prefill" in trial.rows[ours.NAME].found
    trial.close()


def test_preparing_takes_the_same_path_and_writes_nothing(
    kernel_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--prepare", "--only", "rwkv6", "--sizes", "trial", "--no-peers", "--out", str(tmp_path)]
    assert command.main([*arguments, "--kernel", str(kernel_path)]) == 0
    printed = capsys.readouterr().out
    for what in ("prefill", "decode", "training"):
        assert f"{what}, preparing {ours.NAME}" in printed
    assert list(tmp_path.iterdir()) == []


def test_section_and_picture_of_a_gpu(tmp_path: Path) -> None:
    machine = {"gpu": "NVIDIA H200", "torch": "2.11.0", "commit": "c" * 40}
    store.add(tmp_path, machine, row())
    store.add(tmp_path, machine, row("rwkv6", "1.5B"))
    results = models_report.load(tmp_path)
    section = models_report.section(results)
    assert "| rwkv7 0.4B | flash-rwkv | 81,920 | 111 | 1,000 | 20,480 | 8.00 | 1.0e-02 | 2.0e-02 |" in section
    path = models_report.plot(results, tmp_path / "images")
    assert f"(images/{path.name})" in section
    assert path.read_bytes().startswith(b"\x89PNG")
    text = f"a\n{models_report.BEGIN}\n{models_report.END}\nb\n"
    assert section in report.insert(text, section, models_report.BEGIN, models_report.END)


def test_no_speed_of_a_wrong_model_or_a_busy_machine(tmp_path: Path) -> None:
    store.add(tmp_path, {"commit": "c" * 40}, row(logits=0.5))
    with pytest.raises(SystemExit, match="error of logits"):
        models_report.load(tmp_path)
    store.add(tmp_path, {"commit": "d" * 40, "other_work": 0.4}, row())
    with pytest.raises(SystemExit, match="40% of the cores"):
        models_report.load(tmp_path)
