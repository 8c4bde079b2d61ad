"""`measure`: an artifact beside what it is compared with, both books, in one interleaved run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from typing import Any

from torch import nn

from abridged.data import Data
from abridged.errors import NOTHING, InputError, expect, nearest
from abridged.graph.capture import capture
from abridged.graph.graph import Graph
from abridged.measurement import gate
from abridged.measurement.environment import environment
from abridged.measurement.practice import Runs, as_torch, call_of, practice
from abridged.measurement.records import Contender, Deviation, Environment, Record, Theory
from abridged.measurement.theory import theory
from abridged.targets import TARGETS, build, load
from abridged.targets.artifact import Artifact, Signature

NOISY = 0.2  # a spread above which a time says little
STANDS_IN = "The artifact's sources were compiled for this machine: times, load and memory are not its device's."
Rival = nn.Module | Artifact | str


class Measurement(Record):
    """Contenders of one interleaved run: the first is what was measured, the others what it is compared with."""

    contenders: tuple[Contender, ...]
    environment: Environment
    seconds: float  # of timing for each
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Contender:
        for contender in self.contenders:
            if contender.name == name:
                return contender
        raise InputError(f"no contender '{name}'{nearest(name, [each.name for each in self.contenders])}")

    def speedup(self, name: str | None = None) -> float:
        """How many times faster the first contender is than another (the second, if not named): samples per second,
        from the medians of this one run. Raises `InputError` where a time is missing."""
        return _samples_per_second(self.contenders[0]) / _samples_per_second(self._other(name))

    def smaller(self, name: str | None = None) -> float:
        """How many times smaller the first contender's files are than another's (the second's, if not named)."""
        return self._other(name).practice.bytes / self.contenders[0].practice.bytes

    def promised(self, name: str | None = None) -> tuple[float, float] | None:
        """What theory promises over another: (times smaller, times faster), None where a theory is missing.

        Dense bytes of the other / packed bytes of the first; dense MACs of the other / effective MACs of the first,
        per sample."""
        ours, theirs = self.contenders[0].theory, self._other(name).theory
        if ours is None or theirs is None or not (ours.bytes_packed and ours.effective_macs):
            return None
        faster = (theirs.macs / theirs.batch) / (ours.effective_macs / ours.batch)
        return theirs.bytes_dense / ours.bytes_packed, faster

    def realised(self, name: str | None = None) -> tuple[float, float] | None:
        """Practice gain / theory gain, of size and of speed; None where a theory is missing."""
        promise = self.promised(name)
        return promise and (self.smaller(name) / promise[0], self.speedup(name) / promise[1])

    def _other(self, name: str | None) -> Contender:
        if name is None and len(self.contenders) < 2:
            raise InputError("nothing to compare with: measure(…, against=[…])")
        return self.contenders[1] if name is None else self[name]

    def to_json(self) -> str:
        """One line; `from_json` reads it back."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str | bytes) -> Measurement:
        try:
            return cls.model_validate_json(text)
        except ValueError as error:
            raise InputError(f"not a measurement of Abridged: {str(error).splitlines()[0]}") from None

    def __str__(self) -> str:
        """A table for people, with a line about the machine and the notes below it."""
        from abridged.measurement.table import render

        return render(self)


def measure(
    artifact: Artifact,
    against: Sequence[Rival] = (),
    data: Data | None = None,
    *,
    source: nn.Module | None = None,
    example: Any = None,
    seconds: float = 2.0,
    threads: int | None = None,
    split: str = "test",
    fresh: bool = True,
) -> Measurement:
    """Measure an artifact in its runtime, interleaved with modules, other artifacts, and targets.

    `against`: a module runs in PyTorch; a string is the first module, on that target. `data`: also the accuracy of each,
    on `split`. `source`: the module that the artifact was built from, for its theory and its deviation; if not given,
    the first module of `against` that computes the same. `example`, `seconds`, `fresh`: see `practice`. `threads`: of
    all, by default the artifact's. Raises `InputError` for what cannot be measured."""
    expect(artifact, Artifact, "measure takes an artifact, ab.deploy(…) or ab.load(path)")
    expect(data, (Data, NOTHING), "data must be an ab.Data")
    expect(seconds, (int, float), "seconds must be a number")
    expect(against, (list, tuple), "against must be a list of modules, artifacts and names of targets")
    modules = [item for item in against if isinstance(item, nn.Module)]
    _refuse(against, modules)
    count = threads or artifact.threads
    with ExitStack() as stack:

        def with_threads(item: Artifact) -> Artifact:
            return item if item.threads == count else stack.enter_context(closing(load(item.path, count)))

        book = _Book(with_threads(artifact), call_of(artifact, example, data))
        for item in against:
            if isinstance(item, Artifact):
                book.add(_folder(item), with_threads(item))
            elif isinstance(item, nn.Module):
                book.add(type(item).__name__, item, theory(book.graph(item)))
            else:
                book.deploy(stack, modules[0], item, count)
        book.find_source(modules if source is None else [source], given=source is not None)
        found = practice(
            book.runs, data, example=book.call, seconds=seconds, threads=count, split=split, fresh=fresh,
            deviations=book.deviations,
        )  # fmt: skip
    contenders = tuple(
        Contender(name=name, practice=each, theory=book.theories.get(name)) for name, each in found.items()
    )
    return Measurement(
        contenders=contenders,
        environment=environment(count),
        seconds=seconds,
        notes=(*book.notes, *_noise(contenders)),
    )


class _Book:
    """What is known of each contender before it is measured."""

    def __init__(self, artifact: Artifact, call: tuple[Any, ...]) -> None:
        self.artifact, self.call = artifact, call
        self.runs: dict[str, Runs] = {"artifact": artifact}
        self.theories: dict[str, Theory] = {}
        self.deviations: dict[str, Deviation] = {}
        self.notes = [STANDS_IN] if artifact.stands_in else []
        self._graphs: dict[nn.Module, Graph] = {}

    def graph(self, module: nn.Module) -> Graph:
        if module not in self._graphs:
            self._graphs[module] = capture(module, as_torch(self.call))
        return self._graphs[module]

    def add(self, name: str, runs: Runs, counted: Theory | None = None, deviation: Deviation | None = None) -> None:
        names = (name, *(f"{name} {number}" for number in range(2, len(self.runs) + 3)))
        name = next(each for each in names if each not in self.runs)
        self.runs[name] = runs
        if counted is not None:
            self.theories[name] = counted
        if deviation is not None:
            self.deviations[name] = deviation

    def deploy(self, stack: ExitStack, module: nn.Module, target: str, threads: int) -> None:
        """Add a module on a target, in a folder that goes with the stack."""
        graph = self.graph(module)
        built = stack.enter_context(closing(build(graph, target, threads=threads)))
        deviation = gate.check(built, module, graph, [self.call])
        self.add(f"{type(module).__name__} on {target}", built, theory(graph), deviation)

    def find_source(self, modules: Sequence[nn.Module], *, given: bool) -> None:
        """Which module the artifact was built from: one that computes the same gives it theory and deviation."""
        for module in modules:
            graph = self.graph(module)
            name = type(module).__name__
            if not _alike(self.artifact.signature, Signature.of(graph)):
                self.notes.append(f"The artifact has other outputs than {name}.")
                continue
            judge = gate.check if given else gate.compare
            deviation = judge(self.artifact, module, graph, [self.call])
            if given or deviation.kept:
                self.theories["artifact"], self.deviations["artifact"] = theory(graph), deviation
                return
            self.notes.append(
                f"The artifact is another network than {name}: outputs differ by {deviation.largest:.2g}."
            )


def _alike(one: Signature, other: Signature) -> bool:
    """Whether the outputs have the same shapes, dtypes and structure; the inputs do, they were captured with them."""
    ports = [[(port.shape, port.dtype) for port in signature.outputs] for signature in (one, other)]
    return ports[0] == ports[1] and one.output_structure == other.output_structure


def _refuse(against: Sequence[Rival], modules: Sequence[nn.Module]) -> None:
    for item in against:
        if isinstance(item, str):
            _ = TARGETS[item]  # an unknown target raises
            if not modules:
                raise InputError(f"against '{item}': also give the module that is to run on it")
        elif not isinstance(item, nn.Module | Artifact):
            raise InputError(f"against: expected a module, an artifact or a target's name, got {type(item).__name__}")


def _samples_per_second(contender: Contender) -> float:
    if not contender.practice.throughput:
        raise InputError(f"'{contender.name}' has no latency")
    return contender.practice.throughput


def _folder(artifact: Artifact) -> str:
    """A folder's name; of "my-run/artifact" that of the run."""
    path = artifact.path.resolve()
    return path.parent.name if path.name == "artifact" else path.name


def _noise(contenders: Sequence[Contender]) -> list[str]:
    noisy = [c.name for c in contenders if c.practice.latency and c.practice.latency.spread > NOISY]
    return [f"The machine was noisy: spread above {NOISY:.0%} for {', '.join(noisy)}."] if noisy else []
