"""`measure`: an artifact beside what it is compared with, in one interleaved run."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from torch import nn

from abridged.data import Data
from abridged.errors import InputError
from abridged.graph.capture import capture
from abridged.measurement import gate
from abridged.measurement.environment import environment
from abridged.measurement.practice import Runs, practice
from abridged.measurement.records import Contender, Deviation, Environment, Record, Theory
from abridged.measurement.theory import theory
from abridged.targets import build
from abridged.targets.artifact import Artifact


class Measurement(Record):
    """Contenders in one interleaved run; the first is what was measured, the others what it was measured against."""

    contenders: tuple[Contender, ...]
    environment: Environment

    def __getitem__(self, name: str) -> Contender:
        for contender in self.contenders:
            if contender.name == name:
                return contender
        raise InputError(f"no contender '{name}' here; there are {', '.join(c.name for c in self.contenders)}")

    def speedup(self, name: str) -> float:
        """How many times faster the first contender is than this one: median / median."""
        return _median(self[name]) / _median(self.contenders[0])

    def to_json(self) -> str:
        return self.model_dump_json(indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> Measurement:
        return cls.model_validate_json(text)

    def __str__(self) -> str:
        """A table for people: what was measured, and how the others compare with it."""
        from rich.console import Console
        from rich.table import Table

        table = Table(title="Measured in one interleaved run", caption=_caption(self.environment))
        for heading in ("", "bytes", "median ms", "p95 ms", "spread", "samples/s", "load ms", "peak memory", "metric", "deviation"):
            table.add_column(heading, justify="left" if not heading else "right")
        for contender in self.contenders:
            table.add_row(*_row(contender, self))
        out = io.StringIO()
        Console(file=out, width=150).print(table)
        return out.getvalue().rstrip()


def measure(
    artifact: Artifact,
    against: Sequence[nn.Module | Artifact | str] = (),
    data: Data | None = None,
    *,
    seconds: float = 2.0,
    threads: int | None = None,
) -> Measurement:
    """Measure an artifact beside modules, other artifacts, and targets: a string is the first module, on that target.

    With `data` also the accuracy of each on the test split. Random inputs of the artifact's shapes are timed, for
    `seconds` each. Raises `InputError` for a target without a module to build from, and for anything else in `against`."""
    module = next((item for item in against if isinstance(item, nn.Module)), None)
    example = artifact.random_inputs()
    runs: dict[str, Runs] = {artifact.target: artifact}
    theories: dict[str, Theory] = {}
    deviations: dict[str, Deviation] = {}
    built: list[Artifact] = []
    try:
        for item in against:
            if isinstance(item, str):
                if module is None:
                    raise InputError(f"against '{item}': also give the module that is to run on it")
                graph = capture(module, _tensors(example))
                made = build(graph, item, threads=threads or artifact.threads)
                built.append(made)
                name = _unique(f"{type(module).__name__} on {item}", runs)
                deviations[name] = gate.check(made, module, graph, [example])
                runs[name], theories[name] = made, theory(graph)
            elif isinstance(item, nn.Module):
                name = _unique(f"{type(item).__name__} in pytorch", runs)
                runs[name], theories[name] = item, theory(capture(item, _tensors(example)))
            elif isinstance(item, Artifact):
                runs[_unique(f"{item.path.name} on {item.target}", runs)] = item
            else:
                raise InputError(f"against: expected a module, an artifact or a target's name, got {type(item).__name__}")
        taken = practice(runs, data, example=example, seconds=seconds, threads=threads or artifact.threads, deviations=deviations)
    finally:
        for made in built:
            made.close()
    return Measurement(
        contenders=tuple(Contender(name=name, practice=found, theory=theories.get(name)) for name, found in taken.items()),
        environment=environment(threads or artifact.threads),
    )


def _tensors(example: tuple[Any, ...]) -> tuple[Any, ...]:
    import torch

    return tuple(torch.as_tensor(item) for item in example)


def _unique(name: str, taken: dict[str, Runs]) -> str:
    names = [name, *(f"{name} ({number})" for number in range(2, len(taken) + 3))]
    return next(candidate for candidate in names if candidate not in taken)


def _median(contender: Contender) -> float:
    if contender.practice.latency is None:
        raise InputError(f"'{contender.name}' has no latency")
    return contender.practice.latency.median_ms


def _row(contender: Contender, book: Measurement) -> tuple[str, ...]:
    found, first = contender.practice, book.contenders[0].practice
    same = contender is book.contenders[0]
    latency, score = found.latency, found.accuracy
    return (
        contender.name,
        f"{found.bytes:,}" + ("" if same else f" ({found.bytes / first.bytes:.2f}×)"),
        "" if latency is None else f"{latency.median_ms:.3f}" + ("" if same else f" ({book.speedup(contender.name):.2f}×)"),
        "" if latency is None else f"{latency.p95_ms:.3f}",
        "" if latency is None else f"{100 * latency.spread:.0f} %",
        "" if found.throughput is None else f"{found.throughput:,.0f}",
        "" if found.load_ms is None else f"{found.load_ms:.0f}",
        "" if found.peak_memory is None else f"{found.peak_memory / 1e6:.1f} MB",
        "" if score is None else f"{score.value:.4f} [{score.low:.4f}, {score.high:.4f}]",
        "" if found.deviation is None else f"{found.deviation.largest:.1e} ≤ {found.deviation.bound:.1e}",
    )


def _caption(environment: Environment) -> str:
    return f"{environment.cpu}, {environment.threads} threads; × of the first row's"
