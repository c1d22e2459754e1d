"""One model shape: every contestant's errors, times in turns, and memory."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from types import ModuleType

import torch
from torch import Tensor

from benchmarks.accuracy import relative_error
from benchmarks.gpu.limit import message
from benchmarks.gpu.preparation import Preparation
from benchmarks.gpu.timing import Run, Stopwatch, Time
from benchmarks.models import fla_models, official, ours
from benchmarks.models.contestant import DECODE, PREFILL, TRAINING, Contestant
from benchmarks.models.decoder import Decoder
from benchmarks.models.errors import Exact
from benchmarks.models.memory import peak_bytes
from benchmarks.models.shapes import Work
from examples.models.layout import Sizes

GRAPH = "decode_graph"
ENTER = "enter"  # without which there is nothing else
ROUNDS = range(3, 31)
DECODE_CALLS = 10
# All that may differ among layers: the first takes part in other graphs than the rest.
REHEARSED_LAYERS = 2


@dataclass(frozen=True)
class Setting:
    """What all measurements of a run share.

    Attributes:
        kernel: ours, loaded.
        watch: the clock of the device.
        compiled: whether our model is timed with compiled mixing too.
        peers: whether other people's models are timed beside it.
        preparation: what a first call of a kind of work runs in.
        say: told what goes on.
    """

    kernel: ModuleType
    watch: Stopwatch
    compiled: bool
    peers: bool
    preparation: Preparation
    say: Callable[[str], None]

    @property
    def device(self) -> torch.device:
        return self.watch.device


class Row:
    """What is found out about one contestant, as it goes into the results."""

    def __init__(self, name: str) -> None:
        self.found: dict = {"name": name, "errors": {}, "failed": {}}

    def time(self, what: str, tokens: int, time: Time) -> None:
        self.found[what] = {"tokens": tokens, "seconds": time.json(), "tokens_s": tokens / time.median}

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Whatever goes wrong in the block belongs into the table, and others go on."""
        try:
            yield
        except Exception as error:
            self.found["failed"][what] = message(error)

    def can(self, what: str) -> bool:
        return not {what, ENTER} & self.found["failed"].keys()


def measure(setting: Setting, size: Sizes, name: str, work: Work) -> Iterator[dict]:
    """Everything about one shape, ready for JSON, after each kind of work that adds to it."""
    trial = Trial(setting, size, name, work)
    try:
        trial.enter()
        # Most is promised of training, and what cannot be captured may leave the device unusable.
        stages = [trial.train, trial.prefill, trial.decode]
        if setting.device.type == "cuda":
            stages.append(trial.decode_in_graphs)
        for stage in stages:
            stage()
            yield {
                "version": size.folder,
                "size": name,
                "shape": asdict(size),
                "dtype": str(work.dtype).removeprefix("torch."),
                "batch": 1,
                "contestants": [row.found for row in trial.rows.values()],
            }
    finally:
        trial.close()


def prepare(setting: Setting, size: Sizes, name: str, work: Work) -> None:
    """Have ours and the peers compile what `measure` will need, without a time of it."""
    trial = Trial(setting, replace(size, num_hidden_layers=REHEARSED_LAYERS), name, work)
    try:
        trial.enter()
        for what in (PREFILL, DECODE, TRAINING):
            trial.get_ready(what, trial.contestants)
    finally:
        trial.close()


class Trial:
    """The contestants of one shape, and what is found out about each."""

    def __init__(self, setting: Setting, size: Sizes, name: str, work: Work) -> None:
        self.setting, self.size, self.name, self.work = setting, size, name, work
        generator = torch.Generator(setting.device).manual_seed(1)
        shape = (1, work.tokens)
        self.ids = torch.randint(1, size.vocab_size, shape, generator=generator, device=setting.device)
        self.rows: dict[str, Row] = {}
        self.contestants: list[Contestant] = []
        self.peers: list[Contestant] = []
        self.pip: official.Official | None = None

    def enter(self) -> None:
        """Make the contestants, all with the same weights, and compare ours with the loop in float32."""
        setting, size, work = self.setting, self.size, self.work
        self._say("the loop in float32")
        weights = ours.random_weights(size, setting.device)
        loop = ours.looping(size, weights, torch.float32, work.loop_tokens, setting.kernel)
        self.exact = Exact.of(loop, self.ids[:, : work.checked_tokens])
        for each in ours.contestants(size, weights, work, setting.kernel, setting.compiled):
            row = self._join(each)
            if each.name == ours.LOOP and work.dtype == torch.float32:
                continue  # it is what the others are compared with
            self._say(f"errors of {each.name}")
            with row.attempt(ENTER):
                errors = {"logits": self.exact.of_logits(each), "gradients": self.exact.of_gradients(each)}
                row.found["errors"] = errors
        if setting.peers and setting.device.type == "cuda":
            for name, build in fla_models.contestants(size, weights, work).items():
                self._enter_peer(name, build)
        elif setting.peers:
            self._enter_official(weights)

    def get_ready(self, what: str, contestants: Sequence[Contestant]) -> None:
        """A first call of a kind of work, in which they compile and tune themselves."""
        for each in contestants:
            row = self.rows[each.name]
            if what not in each.does or not row.can(what):
                continue
            self._say(f"{what}, preparing {each.name}")
            with row.attempt(what), self.setting.preparation():
                self._first(each, what)
                self.setting.watch.wait()

    def prefill(self) -> None:
        self.get_ready(PREFILL, self.peers)
        self._say("prefill")
        runs = {each.name: lambda each=each: each.prefill(self.ids) for each in self._able(PREFILL)}
        tokens = {each.name: each.tokens for each in self._able(PREFILL)}
        if self.pip is not None:
            runs[official.NAME] = lambda: self.pip.prefill(self.work.tokens)
            tokens[official.NAME] = self.work.tokens
        for name, time in self._turns(runs).items():
            self.rows[name].time(PREFILL, tokens[name], time)

    def decode(self) -> None:
        self.get_ready(DECODE, self.peers)
        self._say("decode")
        prompt = self.ids[:, : self.work.loop_tokens]
        runs = {each.name: Decoder(each, prompt).step for each in self._able(DECODE)}
        if self.setting.device.type == "cuda":
            watch = self.setting.watch
            times = {name: watch.from_the_host(run, DECODE_CALLS, 5) for name, run in runs.items()}
        else:
            if self.pip is not None:
                self.pip.prefill(self.work.loop_tokens)
                runs[official.NAME] = self.pip.decode
            times = self._turns(runs)
        for name, time in times.items():
            self.rows[name].time(DECODE, 1, time)

    def decode_in_graphs(self) -> None:
        """Each alone; what cannot be captured is left out, with the reason."""
        self._say("decoding in a CUDA graph")
        for each in self._able(DECODE):
            row = self.rows[each.name]
            with row.attempt(GRAPH):
                decoder = Decoder(each, self.exact.ids)
                replay = decoder.captured()
                row.time(GRAPH, 1, self.setting.watch.turns({"step": replay}, rounds=30)["step"])
                if each.in_place:
                    logits = decoder.logits_of(self.exact.ids, replay)
                    row.found["errors"]["graph"] = relative_error(logits, self.exact.logits)

    def train(self) -> None:
        self.get_ready(TRAINING, self.peers)
        self._say("training")
        able = self._able(TRAINING)
        runs = {each.name: lambda each=each: each.train(self.ids) for each in able}
        times = self._turns(runs)
        for each in able:
            each.model.zero_grad(set_to_none=True)
        for each in able:
            row = self.rows[each.name]
            row.time(TRAINING, each.tokens, times[each.name])
            peak = peak_bytes(self.setting.device, runs[each.name])
            if peak is not None:  # beyond the weights, which are there before
                row.found[TRAINING]["peak_gib"] = (each.weights_bytes() + peak) / 2**30
            each.model.zero_grad(set_to_none=True)

    def close(self) -> None:
        """Give the next shape the memory, and the compiler a clean slate."""
        if self.pip is not None:
            self.pip.close()
        self.contestants.clear()
        self.peers.clear()
        torch._dynamo.reset()
        gc.collect()
        if self.setting.device.type == "cuda":
            torch.cuda.empty_cache()

    def _join(self, contestant: Contestant) -> Row:
        self.contestants.append(contestant)
        return self.rows.setdefault(contestant.name, Row(contestant.name))

    def _able(self, what: str) -> list[Contestant]:
        return [each for each in self.contestants if what in each.does and self.rows[each.name].can(what)]

    def _enter_peer(self, name: str, build: Callable[[], Contestant]) -> None:
        self._say(f"importing {name}")
        row = self.rows[name] = Row(name)
        with row.attempt(ENTER), self.setting.preparation():
            peer = build()
            self._join(peer)
            self.peers.append(peer)

    def _first(self, contestant: Contestant, what: str) -> None:
        if what == PREFILL:
            contestant.prefill(self.ids)
            self.rows[contestant.name].found["errors"]["logits"] = self.exact.of_logits(contestant)
        elif what == DECODE:
            Decoder(contestant, self.ids[:, : self.work.loop_tokens]).step()
        else:
            contestant.train(self.ids)

    def _enter_official(self, weights: dict[str, Tensor]) -> None:
        row = self.rows[official.NAME] = Row(official.NAME)
        with row.attempt(ENTER):
            pip = official.Official(self.size, weights, torch.get_num_threads())
            pip.give(self.ids[0])
            logits = pip.logits(self.exact.ids.shape[1])
            row.found["errors"] = {"logits": relative_error(logits, self.exact.logits[0])}
            self.pip = pip

    def _turns(self, runs: dict[str, Run]) -> dict[str, Time]:
        """In turns, for about as many seconds as there are for it."""
        once = sum(time.median for time in self.setting.watch.turns(runs, rounds=1, warm=1).values())
        rounds = min(max(int(self.work.seconds / once), ROUNDS.start), ROUNDS.stop - 1)
        return self.setting.watch.turns(runs, rounds, warm=0)

    def _say(self, what: str) -> None:
        self.setting.say(f"{self.size.folder} {self.name}: {what}")
