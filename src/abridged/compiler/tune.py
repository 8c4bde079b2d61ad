"""Choose kernels by measurement, of each step in its place: how fast a kernel is depends on what its neighbours leave in which cache.

The network is built once with every choice of every step. First each step takes the choice that is fastest while all steps take their
first, their second, and so on; then each kind of step tries its other choices among the neighbours that it now has. What was found is
kept on disk by machine, compiler, kernels, threads, shape and density, and is not measured again."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from abridged import files
from abridged.compiler.library import Array, Library
from abridged.compiler.plan import Choice, Plan, Step
from abridged.errors import InputError

ROUNDS = 5, 60  # at least and at most; between them until the time is over
SECONDS = 2.0  # of each of the two passes
LARGEST = (
    16_000_000  # weights of a step that is tuned; more take gigabytes in all their forms, and are waited for in any
)
CLEARLY = 0.02  # by so much another choice must be faster than the one before it, lest noise decide

# Writes model.so and weights.bin into a directory, perhaps with every choice.
Build = Callable[[Plan, Path, bool], None]
Picks = list[int]  # of each step, which of its choices
Times = NDArray[np.float64]  # milliseconds, of each step


def tune(
    plan: Plan, build: Build, machine: str, threads: int, inputs: Sequence[Array], outputs: Sequence[Array]
) -> Plan:
    """The plan with each step's fastest choice first. `machine` says for what the measurements hold."""
    small = (step.weight is None or step.weight.size <= LARGEST for step in plan.steps)
    steps = (
        step if tuned else replace(step, choices=step.choices[:1])
        for step, tuned in zip(plan.steps, small, strict=True)
    )
    plan = replace(plan, steps=tuple(steps))
    cache = _cache_file(machine, threads)
    known: dict[str, list[Any]] = _read(cache)
    keys = [_key(step) for step in plan.steps]
    if any(len(step.choices) > 1 and key not in known for step, key in zip(plan.steps, keys, strict=True)):
        picks = _measured(plan, keys, build, threads, inputs, outputs)
        known |= {key: _named(step.choices[pick]) for step, key, pick in zip(plan.steps, keys, picks, strict=True)}
        with suppress(InputError):  # a machine without a home of its own measures again next time
            files.write_atomic(cache, json.dumps(known).encode())
    return replace(plan, steps=tuple(map(_preferring, plan.steps, map(known.get, keys))))


def _measured(
    plan: Plan, keys: Sequence[str], build: Build, threads: int, inputs: Sequence[Array], outputs: Sequence[Array]
) -> Picks:
    """The fastest choice of each step; steps with the same key make the same."""
    with tempfile.TemporaryDirectory(prefix="abridged-tune-") as folder:
        build(plan, Path(folder), True)
        counts = [len(step.choices) for step in plan.steps]
        with closing(Library(Path(folder), threads)) as library:

            def measure(picks: Picks) -> list[float]:
                library.choose(picks)
                return library.step_times(inputs, outputs)

            return _among_neighbours(_alone(counts, keys, measure), counts, keys, measure)


def _alone(counts: Sequence[int], keys: Sequence[str], measure: Callable[[Picks], list[float]]) -> Picks:
    """The choices that are fastest when all steps take their first, their second …"""
    times = _least([[min(i, count - 1) for count in counts] for i in range(max(counts, default=1))], measure, SECONDS)
    picks = [0] * len(counts)
    for steps in _by_key(keys).values():
        sums = [float(times[i, steps].sum()) for i in range(counts[steps[0]])]
        fastest = _clearly(sums)
        for step in steps:
            picks[step] = fastest
    return picks


def _among_neighbours(
    picks: Picks, counts: Sequence[int], keys: Sequence[str], measure: Callable[[Picks], list[float]]
) -> Picks:
    """Picks of which each was compared with its other choices, by the time of its steps and those that follow them, among the
    neighbours that it has. Steps of several keys change at once, where none is next to another."""
    kinds, picks = _by_key(keys), list(picks)
    sets = _apart(keys)
    for together in sets:
        trials = [list(picks)]
        for turn in range(1, max(counts[kinds[key][0]] for key in together)):
            changed = {step for key in together for step in kinds[key] if turn < counts[step]}
            trials.append([(pick + turn) % counts[i] if i in changed else pick for i, pick in enumerate(picks)])
        times = _least(trials, measure, SECONDS / len(sets))
        for key in together:
            felt = sorted({at for step in kinds[key] for at in (step, step + 1) if at < len(keys)})
            sums = [float(row[felt].sum()) for row in times[: counts[kinds[key][0]]]]
            fastest = _clearly(sums)
            for step in kinds[key]:
                picks[step] = trials[fastest][step]
    return picks


def _clearly(times: Sequence[float]) -> int:
    """Which is the fastest, the first one unless another is clearly faster."""
    return min(range(len(times)), key=lambda i: times[i] * (1 if i == 0 else 1 + CLEARLY))


def _by_key(keys: Sequence[str]) -> dict[str, list[int]]:
    """The steps of each key."""
    found: dict[str, list[int]] = {}
    for step, key in enumerate(keys):
        found.setdefault(key, []).append(step)
    return found


def _apart(keys: Sequence[str]) -> list[list[str]]:
    """Keys in sets within which no step of one is next to a step of another."""
    beside = {frozenset(pair) for pair in pairwise(keys)}
    sets: list[list[str]] = []
    for key in dict.fromkeys(keys):
        free = [some for some in sets if not any(frozenset((key, other)) in beside for other in some)]
        if free:
            free[0].append(key)
        else:
            sets.append([key])
    return sets


def _least(trials: Sequence[Picks], measure: Callable[[Picks], list[float]], seconds: float) -> Times:
    """Least milliseconds (trial, step); the trials take turns."""
    rounds: list[list[list[float]]] = []
    end = time.perf_counter() + seconds
    while len(rounds) < ROUNDS[0] or (len(rounds) < ROUNDS[1] and time.perf_counter() < end):
        rounds.append([measure(trial) for trial in trials])
    least: Times = np.array(rounds).min(axis=0)
    return least


def _key(step: Step) -> str:
    """A step's shape, its density in twentieths, and its choices."""
    call = step.choice.call
    tile = dict(step.choice.tile)
    macros = [item for item in call.macros if item[0] not in tile]
    density = None if step.weight is None else round(20 * float(np.mean(step.weight != 0)))
    made = macros, step.bands, call.text, density, list(map(_named, step.choices))
    return hashlib.sha256(repr(made).encode()).hexdigest()[:24]


def _named(choice: Choice) -> list[Any]:
    return [[choice.call.family, choice.format], *([name, n] for name, n in choice.tile)]


def _preferring(step: Step, named: list[Any] | None) -> Step:
    return replace(step, choices=tuple(sorted(step.choices, key=lambda choice: _named(choice) != named)))


def _cache_file(machine: str, threads: int) -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "abridged" / "tuning" / f"{hashlib.sha256(f'{machine} {threads}'.encode()).hexdigest()[:24]}.json"


def _read(cache: Path) -> dict[str, list[Any]]:
    """Measurements kept earlier; a file that is missing or damaged is as none."""
    try:
        found = json.loads(cache.read_bytes())
    except (OSError, ValueError):
        return {}
    return dict(found) if isinstance(found, Mapping) else {}
