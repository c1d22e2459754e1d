"""The GPU's benchmark, as far as a machine without a GPU can try it."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from types import ModuleType

import pytest
import torch

from benchmarks import report
from benchmarks.accuracy import Results, reference_results, worst_errors
from benchmarks.cases import OPERATORS, make_case
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import gate
from benchmarks.gpu import report as gpu_report
from benchmarks.gpu.bars import bars, missed
from benchmarks.gpu.decode import moved_bytes as moved_by_a_step
from benchmarks.gpu.forward_backward import moved_bytes
from benchmarks.gpu.limit import message, time_limit
from benchmarks.gpu.shapes import SHAPES, STEPS
from benchmarks.gpu.slug import slug
from benchmarks.gpu.timing import Stopwatch, Time

pytestmark = pytest.mark.cpu_only


def time(value: float) -> dict[str, float]:
    return {"median": value, "low": 0.9 * value, "high": 1.1 * value}


def forward_row(
    forward: float = 3.0,
    both: float = 11.0,
    error: float = 2e-3,
    state_error: float = 1e-7,
    algorithm: str = "recurrent",
) -> dict:
    own = {
        "name": "flash-rwkv",
        "ms": {"forward": time(forward), "forward_backward": time(both)},
        "of_copy_rate": {"forward": 0.15, "forward_backward": 0.11},
        "errors": {"forward": error, "state": state_error, "backward": 2e-3},
    }
    peer = {**own, "name": "fla chunk", "ms": {"forward": time(6.0), "forward_backward": time(23.0)}}
    slow = {**own, "name": "fla slow", "ms": {"forward": time(9.0)}}
    return {
        "shape": {"B": 8, "T": 4096, "H": 64, "N": 64, "dtype": "bf16", "algorithm": algorithm},
        "decay": "log",
        "bytes": {"forward": 1, "forward_backward": 2},
        "floor_ms": {"forward": 0.44, "forward_backward": 1.27},
        "plain_errors": {"forward": 1.7e-3, "state": 1e-7, "backward": 1.7e-3},
        "contestants": [own, peer, slow, {"name": "FlashRWKV2", "failed": "ModuleNotFoundError: tilelang"}],
    }


def step_row(batch: int = 1, state: str = "fp32", graph: float = 4.0, eager: float = 14.0) -> dict:
    own = {
        "name": "flash-rwkv",
        "graph_us": time(graph),
        "eager_us": time(eager),
        "op_us": time(9.0),
        "of_copy_rate": 0.5,
        "errors": {"y": 1.7e-3, "state": 1e-7 if state == "fp32" else 3e-4},
    }
    peer = {**own, "name": "fla fused_recurrent", "graph_us": time(6.8), "errors": {"y": 1.8e-3}}
    return {
        "shape": {"B": batch, "H": 64, "N": 64, "state": state},
        "bytes": 1,
        "floor_us": 1.0,
        "plain_errors": {"y": 1.7e-3, "state": 3e-4},
        "contestants": [own, peer],
    }


def result(
    gpu: str = "NVIDIA H200", tests: str = "green", operator: str = "wkv7", **rows: list[dict]
) -> dict:
    machine = {
        "commit": "c" * 40,
        "build": "_flash_rwkv_cuda_ccccccc",
        "gpu": gpu,
        "driver": "580.1",
        "torch": "2.11.0+cu130",
        "tests": tests,
        "copy_tb_s": [4.2, 4.24],
    }
    found = {"machine": machine, "operator": operator, "rows": [forward_row()], "steps": [step_row()], **rows}
    return {**found, "bars": bars(found)}


def test_shapes_are_those_of_the_bars() -> None:
    """Every promise is measured."""
    from benchmarks.gpu.bars import TIME_BARS
    from benchmarks.gpu.shapes import dtype_name

    timed = [{"operator": s.operator, "B": s.batch, "T": s.tokens, "algorithm": s.algorithm} for s in SHAPES]
    timed += [{"operator": s.operator, "B": s.batch, "state": dtype_name(s.pool_dtype)} for s in STEPS]
    for bar in TIME_BARS:
        assert any({"operator": bar.operator, **bar.shape}.items() <= shape.items() for shape in timed), bar


def test_bars_hold() -> None:
    found = result()
    assert {bar["name"].partition(", B")[0] for bar in found["bars"]} == {
        "forward, ms",
        "forward + backward, ms",
        "step, graph, µs",
        "step, eager, µs",
        "error, forward",
        "error, backward",
        "error, y",
        "error, state",
    }
    assert missed(found) == []


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("forward, ms, B8 T4096 H64 N64 bf16 recurrent", {"rows": [forward_row(forward=3.6)]}),
        ("forward + backward, ms, B8 T4096 H64 N64 bf16 recurrent", {"rows": [forward_row(both=12.1)]}),
        ("error, forward, B8 T4096 H64 N64 bf16 recurrent", {"rows": [forward_row(error=3.5e-3)]}),
        ("error, forward, B8 T4096 H64 N64 bf16 recurrent", {"rows": [forward_row(error=float("nan"))]}),
        ("error, state, B8 T4096 H64 N64 bf16 recurrent", {"rows": [forward_row(state_error=1.1e-5)]}),
        (
            "error, state, B8 T4096 H64 N64 bf16 chunk",
            {"rows": [forward_row(1.0, 4.0, state_error=1.6e-3, algorithm="chunk")]},
        ),
        ("step, graph, µs, B1 H64 N64 fp32 state", {"steps": [step_row(graph=5.1)]}),
        ("step, eager, µs, B1 H64 N64 fp32 state", {"steps": [step_row(eager=15.1)]}),
        ("step, graph, µs, B512 H64 N64 fp16 state", {"steps": [step_row(512, "fp16", graph=146.0)]}),
    ],
)
def test_bars_are_missed(name: str, rows: dict) -> None:
    assert [bar["name"] for bar in missed(result(**rows))] == [name]


def test_what_does_not_train_is_judged_and_shown_by_its_forward_pass() -> None:
    row = forward_row()
    own = row["contestants"][0]
    own["ms"].pop("forward_backward")
    own["of_copy_rate"].pop("forward_backward")
    own["errors"]["backward"] = None
    own["errors"]["state"] = None
    found = result(rows=[row])
    assert missed(found) == []
    assert not any("backward" in bar["name"] for bar in found["bars"])
    assert gpu_report.section([found]).count("| – | – | – | – | – |") == 1


def test_times_are_promised_of_one_gpu_and_errors_of_all() -> None:
    slow_and_wrong = [forward_row(forward=99.0, error=1.0)]
    found = result("NVIDIA H100 80GB HBM3", rows=slow_and_wrong)
    assert any(not bar["holds"] and not bar["enforced"] for bar in found["bars"])
    assert [bar["name"].partition(", B")[0] for bar in missed(found)] == ["error, forward"]


@pytest.mark.parametrize("operator", OPERATORS)
def test_bytes_are_each_tensor_once(operator: str) -> None:
    case = make_case(operator, 2, 8, 3, dtype=torch.bfloat16)
    token, small = 2 * 8 * 3 * 64 * 2, 3 * 64 * 2
    wide = {"wkv4": (2, 2), "wkv5": (3, 2), "wkv6": (4, 1), "wkv7": (6, 0)}[operator]
    inputs = wide[0] * token + wide[1] * small
    assert moved_bytes(case) == {"forward": inputs + token, "forward_backward": 3 * inputs + 2 * token}
    state = 2 * 3 * 64 * (3 if operator == "wkv4" else 64) * 2
    one = 2 * 3 * 64 * 2
    step = moved_by_a_step(case.first_token(), torch.float16)
    assert step == 2 * state + (wide[0] + 1) * one + wide[1] * small


@pytest.mark.parametrize("operator", OPERATORS)
def test_errors_are_those_of_the_chosen_heads(kernel: ModuleType, operator: str) -> None:
    """Of outputs and gradients, those that sum over sequences included."""
    case = make_case(operator, 2, 5, 3)
    leaves = {name: x.clone().requires_grad_() for name, x in case.inputs.items()}
    y, state = getattr(kernel, operator)(*leaves.values(), **case.options)
    grad_y = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    gradients = dict(zip(leaves, torch.autograd.grad(y, list(leaves.values()), grad_y), strict=True))
    results = Results(y.detach(), state.detach(), gradients)
    expected = [(h, reference_results(kernel.reference, case, grad_y, h, torch.float64)) for h in (0, 2)]
    errors = worst_errors(case, results, expected)
    assert all(0 < error < 1e-5 for error in errors.values())

    case.of_heads(gradients["v"], 2, 3)[..., 0] += 100
    assert worst_errors(case, results, expected)["backward"] > 0.1
    case.of_heads(results.y, 0, 1)[..., 0] = torch.nan
    assert not worst_errors(case, results, expected)["forward"] < 1
    assert worst_errors(case, Results(y.detach()), expected)["backward"] is None


def test_times_are_medians_between_quartiles() -> None:
    assert Time.of([3.0, 1.0, 2.0, 4.0, 100.0]) == Time(3.0, 2.0, 4.0)
    calls: list[str] = []
    runs = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    assert set(Stopwatch(torch.device("cpu")).turns(runs, rounds=2, warm=1)) == {"a", "b"}
    assert "".join(calls) == "ab" * 3


def test_a_peer_that_takes_too_long() -> None:
    with pytest.raises(TimeoutError, match=r"not ready after 0\.05 s"), time_limit(0.05):
        threading.Event().wait(20)
    assert message(ValueError("first\nsecond")) == "ValueError: first"


def test_a_quick_run_writes_what_it_prints(
    kernel_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every operator; peers that are not installed are named, with the reason."""
    arguments = ["--quick", "--device", "cpu", "--kernel", str(kernel_path), "--peers", str(tmp_path)]
    status = command.main([*arguments, "--peer-seconds", "30", "--commit", "c" * 40, "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert status == 0, printed
    for operator in OPERATORS:
        written = json.loads((tmp_path / f"{operator}.json").read_text())
        assert written["machine"]["commit"] == "c" * 40
        assert written["machine"]["tests"] == "not run"
        own, *peers = written["rows"][0]["contestants"]
        assert own["errors"]["backward"] < 1e-2
        assert peers
        assert all("Error" in peer["failed"] for peer in peers)
        assert all(bar["holds"] for bar in written["bars"])
    assert "FAIL" not in printed


def test_a_run_goes_on_where_it_was_cut_off(
    kernel_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --resume, and only if the results are of the same build."""
    arguments = ["--quick", "--only", "wkv6", "--device", "cpu", "--kernel", str(kernel_path)]
    arguments += ["--out", str(tmp_path)]
    path = tmp_path / "wkv6.json"
    assert command.main([*arguments, "--commit", "c" * 40]) == 0
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({**whole, "steps": []}))
    capsys.readouterr()
    assert command.main([*arguments, "--resume", "--commit", "c" * 40]) == 0
    printed = capsys.readouterr().out
    assert "wkv6_step_ B" in printed
    assert "timing" not in printed
    resumed = json.loads(path.read_text())
    assert resumed["rows"] == whole["rows"]
    assert [row["shape"] for row in resumed["steps"]] == [row["shape"] for row in whole["steps"]]
    before = path.read_bytes()
    with pytest.raises(SystemExit, match=f"has commit '{'c' * 40}', and this run '{'d' * 40}'"):
        command.main([*arguments, "--resume", "--commit", "d" * 40])
    assert path.read_bytes() == before


def test_no_time_of_a_wrong_kernel(
    kernel_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("y is off")

    monkeypatch.setattr(gate, "assert_accurate", refuse)
    status = command.main(
        ["--only", "wkv6", "--device", "cpu", "--kernel", str(kernel_path), "--out", str(tmp_path)]
    )
    assert status == 2
    assert "wkv6 torch.bfloat16: y is off" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_section_of_a_gpu(tmp_path: Path) -> None:
    (tmp_path / "wkv7.json").write_text(json.dumps(result()))
    results = gpu_report.load(tmp_path)
    section = gpu_report.section(results)
    assert "**NVIDIA H200**, driver 580.1, Torch 2.11.0+cu130, commit cccccccccc" in section
    assert (
        "| `wkv7` | B8 T4096 H64 N64 bf16 recurrent | 3 | 15% | 2.0e-03 | 6 (fla chunk) | 2.0e-03 "
        "| 11 | 11% | 2.0e-03 | 23 (fla chunk) | 2.0e-03 |" in section
    )
    assert (
        "| `wkv7_step_` | B1 H64 N64 fp32 state | 4.0 | 50% | 1.7e-03 | 6.8 (fla fused_recurrent) | 1.8e-03 "
        "| 14.0 | 14.0 (fla fused_recurrent) |" in section
    )
    pictures = gpu_report.plot(results, tmp_path / "images")
    assert [path.name for path in pictures] == ["gpu-nvidia-h200.png", "gpu-nvidia-h200-decode.png"]
    assert all(f"(images/{path.name})" in section for path in pictures)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
    text = f"a\n{gpu_report.BEGIN}\n{gpu_report.END}\nb\n"
    assert report.insert(text, "", gpu_report.BEGIN, gpu_report.END) == text
    assert section in report.insert(text, section, gpu_report.BEGIN, gpu_report.END)


def test_a_gpu_without_peers_or_steps(tmp_path: Path) -> None:
    row = forward_row()
    found = result(operator="wkv6", rows=[{**row, "contestants": row["contestants"][:1]}], steps=[])
    section = gpu_report.section([found])
    assert "| – | – |" in section
    assert "wkv7's decode step was not timed with this build." in section
    stale = tmp_path / "gpu-nvidia-h200-decode.png"
    stale.touch()
    assert [path.name for path in gpu_report.plot([found], tmp_path)] == ["gpu-nvidia-h200.png"]
    assert not stale.exists()


@pytest.mark.parametrize("tests", ["red", "not run"])
def test_no_speed_in_the_readme_without_green_tests(tmp_path: Path, tests: str) -> None:
    folder = tmp_path / slug("NVIDIA H200")
    folder.mkdir()
    (folder / "wkv7.json").write_text(json.dumps(result(tests=tests)))
    with pytest.raises(
        SystemExit, match=f"are {tests}; a speed is reported of a build whose tests are green"
    ):
        report.load_gpus(tmp_path)


def test_no_mixture_of_builds(tmp_path: Path) -> None:
    (tmp_path / "wkv7.json").write_text(json.dumps(result()))
    other = result(operator="wkv6")
    other["machine"]["build"] = "_flash_rwkv_cuda_ddddddd"
    (tmp_path / "wkv6.json").write_text(json.dumps(other))
    with pytest.raises(SystemExit, match="different builds"):
        gpu_report.load(tmp_path)


def test_names_of_folders() -> None:
    assert slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
