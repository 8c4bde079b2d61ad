"""Choose kernels by measurement: the whole network is built once per choice, and each step keeps the one that ran fastest in its place.

What was measured is kept on disk by machine, compiler, kernels, threads, shape and density, and is not measured again."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from abridged import files
from abridged.compiler.library import Array, Library
from abridged.compiler.plan import Choice, Plan, Step
from abridged.errors import InputError

ROUNDS = 7, 60  # at least and at most; between them until SECONDS have passed
SECONDS = 2.0
CLEARLY = 0.02  # by so much another choice must be faster than the preferred one, lest noise decide

Build = Callable[[Plan, Path], None]  # writes model.so and weights.bin of a plan into a directory


def tune(
    plan: Plan, build: Build, machine: str, threads: int, inputs: Sequence[Array], outputs: Sequence[Array]
) -> Plan:
    """The plan with each step's fastest choice first. `machine` says for what the measurements hold."""
    cache = _cache_file(machine, threads)
    known: dict[str, list[Any]] = _read(cache)
    keys = [_key(step) for step in plan.steps]
    if any(len(step.choices) > 1 and key not in known for step, key in zip(plan.steps, keys, strict=True)):
        best: dict[str, tuple[float, Choice]] = {}
        for step, key, times in zip(plan.steps, keys, _measured(plan, build, threads, inputs, outputs), strict=True):
            fastest = min(range(len(step.choices)), key=lambda i: times[i] * (1 if i == 0 else 1 + CLEARLY))
            if key not in best or times[fastest] < best[key][0]:
                best[key] = times[fastest], step.choices[fastest]
        known |= {key: _named(choice) for key, (_, choice) in best.items()}
        with suppress(InputError):  # a machine without a home of its own measures again next time
            files.write_atomic(cache, json.dumps(known).encode())
    steps = (_preferring(step, known.get(key)) for step, key in zip(plan.steps, keys, strict=True))
    return replace(plan, steps=tuple(steps))


def _measured(
    plan: Plan, build: Build, threads: int, inputs: Sequence[Array], outputs: Sequence[Array]
) -> list[list[float]]:
    """Least milliseconds of each step by choice; the variants of the network take turns."""
    count = max((len(step.choices) for step in plan.steps), default=1)
    with tempfile.TemporaryDirectory(prefix="abridged-tune-") as folder:
        libraries = []
        for i in range(count):
            steps = (replace(s, choices=(s.choices[min(i, len(s.choices) - 1)],)) for s in plan.steps)
            directory = Path(folder) / str(i)
            directory.mkdir()
            build(replace(plan, steps=tuple(steps)), directory)
            libraries.append(Library(directory, threads))
        rounds: list[list[list[float]]] = []
        end = time.perf_counter() + SECONDS
        while len(rounds) < ROUNDS[0] or (len(rounds) < ROUNDS[1] and time.perf_counter() < end):
            rounds.append([library.step_times(inputs, outputs) for library in libraries])
        runs = np.array(rounds)
        for library in libraries:
            library.close()
    least = runs.min(axis=0)  # (variant, step)
    return [[float(least[i, j]) for i in range(len(step.choices))] for j, step in enumerate(plan.steps)]


def _key(step: Step) -> str:
    """A step's shape and its density in twentieths."""
    call = step.choice.call
    tile = dict(step.choice.tile)
    macros = [item for item in call.macros if item[0] not in tile]
    density = None if step.weight is None else round(20 * float(np.mean(step.weight != 0)))
    return hashlib.sha256(repr((macros, call.text, density, len(step.choices))).encode()).hexdigest()[:24]


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
