"""`search_sparsities`: an agent learns how sparse each layer may be (He et al. 2018, "AMC: AutoML for Model Compression").

An episode walks through the layers (`environment`), the pruned model is judged without training, and the agent
(`agents`) learns from the reward. The budget, in MACs or in seconds, is met by every episode.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor, nn

from abridged import progress
from abridged.data import Data
from abridged.data.evaluate import evaluate
from abridged.errors import InputError
from abridged.graph.capture import capture
from abridged.graph.graph import Graph
from abridged.progress import Say, Task, bar, tell
from abridged.pruning.agents import AGENTS, Course
from abridged.pruning.asked import whole
from abridged.pruning.collect import Collector
from abridged.pruning.patterns import STRUCTURED
from abridged.pruning.plan import Plan
from abridged.pruning.prunable import Prunable, PrunableChannels, PrunableWeights, Row
from abridged.pruning.solvers import reestimate as estimate
from abridged.tables import Table

Cost = Callable[[Graph], float]  # seconds of a graph on the target
BATCH = 128


@dataclass(frozen=True)
class Episode:
    """One way to prune, and how good it is on the samples of the search: `value` is the metric, `error` what the reward lowers."""

    sparsities: tuple[float, ...]
    value: float
    error: float
    reward: float
    macs: float  # share left
    seconds: float | None = None  # of the pruned model on the target, estimated; measured for those that were the best


# --- rewards: (error, MACs left, seconds) → what the agent shall raise ---------------------------------------------------

Reward = Callable[[float, float, float], float]
REWARDS: Table[Reward] = Table("reward")


@REWARDS.entry("error")
def by_error(error: float, macs: float, seconds: float) -> float:
    """Resource-constrained: R = −error, under a budget that every episode meets (He et al. 2018, eq. 3)."""
    return -error


@REWARDS.entry("macs")
def by_macs(error: float, macs: float, seconds: float) -> float:
    """Accuracy-guaranteed: R = −error · log(MACs), for as few as cost no accuracy (He et al. 2018, eq. 4)."""
    return -error * math.log(macs)


@REWARDS.entry("latency")
def by_latency(error: float, macs: float, seconds: float) -> float:
    """The same on the clock: R = −error · log(latency in µs)."""
    return -error * math.log(seconds * 1e6)


# --- the door -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Search:
    """What a search found. `sparsities` is an allocation for `ab.prune`, by parameter name, and `masks` are its masks."""

    sparsities: Mapping[str, float]
    masks: Mapping[str, Tensor]
    best: Episode
    uniform: Episode  # the same sparsity for all layers, within the same budget
    dense: float  # the metric of the model as it is
    history: tuple[Episode, ...]
    how: str
    left: tuple[str, ...] = ()

    @property
    def summary(self) -> tuple[str, ...]:
        """Lines on what was found, and on what was left."""
        clock = f", {1e3 * self.best.seconds:.4g} ms" if self.best.seconds is not None else ""
        told = f"dense {self.dense:.4g}, uniform {self.uniform.value:.4g}, found {self.best.value:.4g}"
        return f"{self.how}: {told} at {self.best.macs:.4g} of the MACs{clock}", *self.left

    def __str__(self) -> str:
        return "\n".join(self.summary)


def search_sparsities(
    model: nn.Module,
    data: Data,
    *,
    macs: float | None = None,
    seconds: float | None = None,
    cost: Cost | None = None,
    agent: str = "ddpg",
    reward: str = "error",
    error: str = "metric",
    episodes: int = 200,
    warmup: int | None = None,
    most: float | None = None,
    criterion: str = "magnitude",
    pattern: str = "channel",
    samples: int = 512,
    reestimate: bool = False,
    example: Any = None,
    seed: int = 0,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    exact: bool = True,
    round_to: int = 1,
    say: Say | None = progress.say,
) -> Search:
    """Let an agent find how sparse each layer, or each group of coupled channels, may be. The model stays as it is.

    Budget: `macs`, the share of the multiply-accumulates that may be left, in (0, 1]; or `seconds`, the time that the pruned
    model may take, by `cost(graph) → seconds`, which measures on the target. Every episode meets the MACs; the seconds are
    estimated from MACs and measurements, and what is taken for the best was measured. Rewards "macs" and "latency" need no
    budget: they stop where accuracy falls.

    An episode gives each layer a sparsity in [0, `most`] (default: 0.8 of channels, 0.95 of weights), prunes a copy without training it, and takes the metric of `data` on
    `samples` of its val split (with `reestimate`, after batch norms were re-estimated on training samples). The `error` that
    a reward lowers is 1 − "metric" there, as in the paper, or the mean "loss" of `data`, which tells episodes apart where few
    samples are answered wrongly. The first `warmup` of the `episodes` (default: an eighth) are random. Uniform sparsity within
    the same budget is tried before them, so that the result is at least as good on these samples, by that error, and what the
    agent does without exploring after them; `history` holds these, too. Two searches with one
    seed agree exactly, unless they measure seconds.

    `agent`: a name of `AGENTS` ("ddpg", "td3", "sac"); they need `pip install 'abridged[rl]'`. `pattern`: "channel", "heads",
    or one of `ab.prune`'s in which densities are free; `criterion`, `include`, `exclude`, `exact`, `round_to` as there. The
    result's `sparsities` are an allocation for it: `ab.prune(model, pattern=…, allocation=found.sparsities, example=x)`.

    Raises `InputError` for a budget that `most` cannot reach, numbers out of range, unknown names, and what `prune` refuses.
    """
    most = (0.8 if pattern in STRUCTURED else 0.95) if most is None else most
    _check(model, data, macs, seconds, cost, reward, error, episodes, most)
    warmup = max(1, episodes // 8) if warmup is None else warmup
    if isinstance(warmup, bool) or not isinstance(warmup, int) or not 0 <= warmup <= episodes:
        raise InputError(f"warmup must be a whole number of episodes from 0 to {episodes}, not {warmup!r}")
    make = AGENTS[agent]
    if whole("seed", seed, 0) >= 1 << 32:
        raise InputError(f"seed must be a whole number below 2^32, not {seed}: the agents take no larger one")
    example = data.example_input() if example is None else example
    inputs = example if isinstance(example, tuple) else (example,)
    collector = Collector(data, inputs if len(inputs) > 1 else inputs[0], 1024)
    options: dict[str, Any] = {"include": include, "exclude": exclude}
    prunable: Prunable
    if pattern in STRUCTURED:
        options |= {"criterion": criterion, "exact": exact, "heads": pattern == "heads", "round_to": round_to}
        prunable = PrunableChannels(model, inputs, collector, most, seed=seed, **options)
    else:
        plan = Plan(1.0, criterion=criterion, pattern=pattern, allocation=agent, of="macs", seed=seed)
        prunable = PrunableWeights(model, inputs, collector, plan, **options)
    with _own_randomness():
        work = _Search(
            prunable, data, _few(data, samples, seed), inputs, REWARDS[reward], cost, macs, seconds, most, reestimate,
            error == "loss",
        )  # fmt: skip
        best = work.run(make, Course(episodes, warmup, seed))
    names = [place.name for place in prunable.places]
    found = Search(
        dict(zip(names, best.sparsities, strict=True)),
        prunable.masks(best.sparsities),
        best,
        work.uniform,
        work.dense,
        tuple(work.history),
        f"{agent}, {episodes} episodes over {len(names)} {'groups' if pattern in STRUCTURED else 'layers'}",
        prunable.left,
    )
    tell(found.summary, say)
    return found


def _check(
    model: object, data: object, macs: Any, seconds: Any, cost: object, reward: str, error: str, episodes: Any, most: Any
) -> None:  # fmt: skip
    if not isinstance(model, nn.Module):
        raise InputError(f"search_sparsities takes an nn.Module, not {type(model).__name__}")
    if not isinstance(data, Data):
        raise InputError(f"search_sparsities judges on data: give an ab.Data, not {type(data).__name__}")
    REWARDS[reward]
    if error not in ("loss", "metric"):
        raise InputError(f"error must be 'loss' or 'metric', not {error!r}: what a reward lowers")
    if macs is not None and seconds is not None:
        raise InputError("give macs or seconds as the budget, not both")
    if macs is None and seconds is None and reward == "error":
        raise InputError("give a budget: macs (the share left) or seconds; without one only the rewards 'macs' and 'latency' hold back")  # fmt: skip
    timed = seconds is not None or reward == "latency"
    if timed and not callable(cost):
        raise InputError("seconds are measured: give cost=, a function of a graph that returns seconds")
    if cost is not None and not timed:
        raise InputError("cost measures seconds: give seconds= as the budget, or reward='latency'")
    for name, value, high in (("macs", macs, 1.0), ("most", most, 1.0), ("seconds", seconds, math.inf)):
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) <= high or value == math.inf
        ):
            raise InputError(f"{name} must be a number {'in (0, 1]' if high == 1 else 'above 0'}, not {value!r}")
    if isinstance(episodes, bool) or not isinstance(episodes, int) or episodes < 1:
        raise InputError(f"episodes must be a whole number from 1, not {episodes!r}")


def _few(data: Data, samples: int, seed: int) -> Data:
    """The same data with the val split that the search judges by: `samples` of it, transformed already."""
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise InputError(f"samples must be a whole number from 1, not {samples!r}")
    few: list[tuple[Any, Any]] = []
    open_ = samples
    for batch in data.batches("val", BATCH, shuffle=True, seed=seed):
        part = batch.rows(slice(0, min(open_, batch.size)))
        few.append((part.x, part.y))
        open_ -= part.size
        if open_ == 0:
            break
    return dataclasses.replace(data, val=few, transform=None, notes=())


@contextmanager
def _own_randomness() -> Iterator[None]:
    """The global generators, which stable-baselines3 seeds and draws from, are afterwards as they were."""
    numpy, python = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        np.random.set_state(numpy)
        random.setstate(python)


@dataclass(eq=False)
class _Search:
    """One search: prunes, judges, remembers."""

    prunable: Prunable
    data: Data  # as given, to re-estimate on
    few: Data  # val is what is judged by
    inputs: tuple[Any, ...]
    reward: Reward
    cost: Cost | None
    macs: float | None
    seconds: float | None
    most: float
    estimating: bool
    by_loss: bool  # the error is the loss, else 1 − metric
    history: list[Episode] = field(default_factory=list)
    best: Episode | None = None
    whole: Row = field(init=False)  # MACs of the dense model, in parts
    dense: float = field(init=False)  # its metric
    uniform: Episode = field(init=False)
    clock: _Clock = field(init=False)
    task: Task = field(init=False)

    def run(self, make: Any, course: Course) -> Episode:
        from abridged.pruning.environment import Layers

        zeros = [0.0] * len(self.prunable.places)
        self.whole = self.prunable.macs(zeros)
        self.dense, _ = self._judge(zeros)
        if self.cost is not None:
            self.clock = _Clock(self.whole)
            self._measure(zeros)
            for t in range(len(zeros)):
                self._measure([self.most if other == t else 0.0 for other in range(len(zeros))])
        self._check_reach(len(zeros))
        self.uniform = self._uniform(len(zeros))
        with bar("Search", course.episodes) as self.task:
            layers = Layers(self.prunable.places, self.load, self.budget, self.most, self._learnt)
            agent = make(layers, course)
            agent.learn(total_timesteps=course.episodes * layers.length)
            state, _ = layers.reset()
            for _ in range(layers.length):  # once more, as the agent would without exploring
                state, *_ = layers.step(agent.predict(state, deterministic=True)[0])
        if self.best is None:
            raise InputError(f"seconds={self.seconds}: no pruned model was as fast when measured; allow more")
        return self.best

    # --- the budget

    @property
    def budget(self) -> float:
        """The share of the whole that may be left; of the seconds, where these are the budget."""
        if self.seconds is not None:
            return self.seconds / self.clock.estimate(self.whole)
        return 1.0 if self.macs is None else self.macs

    def load(self, sparsities: Sequence[float]) -> float:
        left = self.prunable.macs(sparsities)
        if self.seconds is not None:
            return self.clock.estimate(left) / self.clock.estimate(self.whole)
        return float(left.sum() / self.whole.sum())

    def _check_reach(self, layers: int) -> None:
        least = self.load([self.most] * layers)
        if least <= self.budget:
            return
        if self.seconds is None:
            raise InputError(
                f"macs={self.macs}: with {self.most:.4g} of every layer removed {least:.3f} are left; allow more MACs, or"
                " raise most"
            )
        fastest = 1e3 * least * self.clock.estimate(self.whole)
        raise InputError(
            f"seconds={self.seconds}: with {self.most:.4g} of every layer removed it takes about {fastest:.4g} ms; allow"
            " more, or raise most"
        )

    def _uniform(self, layers: int) -> Episode:
        """The least sparsity, the same for all layers, that meets the budget; as measured, where it is in seconds."""
        for _ in range(5):
            low, high = 0.0, self.most
            for _ in range(24):
                middle = (low + high) / 2
                low, high = (low, middle) if self.load([middle] * layers) <= self.budget else (middle, high)
            if self.load([0.0] * layers) <= self.budget:
                high = 0.0
            episode = self._judged([high] * layers)
            if self.best is not None:
                break
        return episode

    # --- one episode

    def _learnt(self, sparsities: Sequence[float]) -> float:
        """The reward that the agent is told: above that of uniform sparsity, which centres it on 0."""
        episode = self._judged(sparsities)
        assert self.best is not None or self.seconds is not None
        self.task.advance(best=math.nan if self.best is None else self.best.value)
        return episode.reward - self.uniform.reward

    def _judged(self, sparsities: Sequence[float]) -> Episode:
        left = self.prunable.macs(sparsities)
        value, error = self._judge(sparsities)
        seconds = self.clock.estimate(left) if self.cost is not None else None

        def episode(seconds: float | None) -> Episode:
            reward = self.reward(error, float(left.sum()), seconds or math.nan)
            return Episode(tuple(sparsities), value, error, reward, float(left.sum() / self.whole.sum()), seconds)

        found = episode(seconds)
        if self.best is None or found.reward > self.best.reward:
            if self.cost is not None:
                found = episode(self._measure(sparsities))
            kept = self.seconds is None or (found.seconds is not None and found.seconds <= self.seconds)
            if kept and (self.best is None or found.reward > self.best.reward):
                self.best = found
        self.history.append(found)
        return found

    def _judge(self, sparsities: Sequence[float]) -> tuple[float, float]:
        """The metric and the error of the model pruned so."""
        judge, losses = self.data.judge, []

        def compute(outputs: Any, target: Any) -> Tensor:
            values = judge.compute(outputs, target)
            if self.by_loss:
                losses.append(len(values) * float(self.data.loss_function(outputs, target)))
            return values

        few = dataclasses.replace(self.few, metric=dataclasses.replace(judge, compute=compute))
        with self.prunable.pruned(sparsities) as pruned:
            if self.estimating:
                pruned = copy.deepcopy(pruned)
                estimate(pruned, self.data, samples=2 * BATCH, say=None)
            score = evaluate(pruned, few, "val", batch_size=BATCH)
        if self.by_loss:
            error = sum(losses) / score.n
            return score.value, error if math.isfinite(error) else math.inf
        return score.value, 1 - score.value if judge.higher_is_better else score.value

    def _measure(self, sparsities: Sequence[float]) -> float:
        assert self.cost is not None
        with self.prunable.pruned(sparsities) as pruned:
            seconds = self.cost(capture(pruned.eval(), self.inputs))
        if not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
            raise InputError(f"cost must give seconds above 0, not {seconds!r}")
        self.clock.learn(self.prunable.macs(sparsities), float(seconds))
        return float(seconds)


class _Clock:
    """Seconds from MACs, part by part: t = r₀ + Σ rᵢ · MACsᵢ / MACsᵢ of the dense model, r ≥ 0, fitted to all measurements.

    Where these do not tell parts apart, each is taken to be as fast per MAC as the whole (a ridge towards that)."""

    def __init__(self, whole: Row) -> None:
        self._whole = whole
        self._rows: list[Row] = []
        self._seconds: list[float] = []
        self._rates: Row = np.zeros(len(whole) + 1)

    def learn(self, macs: Row, seconds: float) -> None:
        """One measurement more; the first is of the dense model."""
        self._rows.append(self._row(macs))
        self._seconds.append(seconds)
        dense = self._seconds[0]
        prior = np.append(self._whole / self._whole.sum(), 0.0)
        ridge = 0.1
        a = np.vstack([np.array(self._rows), ridge * np.eye(len(prior))])
        b = np.append(np.array(self._seconds) / dense, ridge * prior)
        self._rates = nnls(a, b)[0] * dense

    def estimate(self, macs: Row) -> float:
        return float(self._row(macs) @ self._rates)

    def _row(self, macs: Row) -> Row:
        return np.append(macs / np.maximum(self._whole, 1.0), 1.0)
