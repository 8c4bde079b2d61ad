"""Trials: what a user's forward really bears. A group is cut in a copy and the forward run; a raise or a wrong answer freezes it.

A literal 18 and `x.shape[1] // 2` look alike in a graph, so no reading of it can tell. Everything is cut at once first; what fails
is blamed on the groups near the module that raised, every group of a kind together, and on as few kinds as will do.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from abridged.data.batches import each
from abridged.data.evaluate import device_of
from abridged.errors import UnsupportedError
from abridged.graph.structure import flatten
from abridged.pruning.coupling.groups import Coupling, Group
from abridged.pruning.surgery import Fold, Gone, Number, cut, numbers, sizes

Kind = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Settled:
    """What may go, and the groups that the forward did not bear to be cut (their `reason` says why)."""

    gone: Gone
    frozen: tuple[Group, ...]
    numbers: frozenset[Number]  # that looked like sizes, and are none


@dataclass(frozen=True)
class Verdict:
    """How a cut module runs: the path of the module that raised, "" if the answer is wrong, None if all is right."""

    culprit: str | None
    why: str
    reached: float  # how many modules had been called

    def better(self, other: Verdict) -> bool:
        """Whether it gets past where the other one fails."""
        return self.culprit != other.culprit and self.reached >= other.reached


class Trial:
    """Cuts of one model, judged by what its forward answers to the example. `expected` makes the right answers of those of the whole model."""

    def __init__(
        self,
        model: nn.Module,
        coupling: Coupling,
        example: tuple[Any, ...],
        folds: Callable[[Gone], tuple[Fold, ...]],
        expected: Callable[[Sequence[Tensor], Gone], Sequence[Tensor]],
    ) -> None:
        self.model, self.coupling, self.example = model, coupling, example
        self.folds, self.expected = folds, expected
        self.whole, self.dtype = _whole(model, coupling, example)
        self.numbers: set[Number] = set()
        self._verdicts: dict[tuple[bytes, frozenset[Number]], Verdict] = {}
        self.kinds = {number: _kind(model, coupling, group) for number, group in enumerate(coupling.groups)}

    def settle(self, gone: Gone) -> Settled:
        """Cut all that can go; freeze, kind by kind, what the forward does not bear."""
        frozen: list[Group] = []
        gone = gone.copy()
        while True:
            verdict = self._judge(gone)
            if verdict.culprit is None:
                return Settled(gone, tuple(frozen), frozenset(self.numbers))
            if not gone.any():
                raise UnsupportedError(
                    "the model cannot be cut: even its whole copy, with the channels at zero, is no good"
                    f" ({verdict.why})"
                )
            if self._number(verdict.culprit, gone):
                continue
            guilty = self._nearest(verdict, gone) if verdict.culprit else self._wrong(gone)
            for number in guilty:
                group = self.coupling.groups[number]
                frozen.append(Group(group.units, group.axes, group.heads, verdict.why))
                gone[group.units] = False

    def _judge(self, gone: Gone) -> Verdict:
        """How the module runs and answers when it is cut."""
        key = gone.tobytes(), frozenset(self.numbers)
        if key not in self._verdicts:
            self._verdicts[key] = self._tried(gone)
        return self._verdicts[key]

    def _tried(self, gone: Gone) -> Verdict:
        calls = _Calls()
        small = cut(self.model, self.coupling, gone, self.folds(gone), self.dtype, self.numbers).eval()
        try:
            with calls.of(small):
                answers = answer(small, self.example)
        except Exception as error:  # whatever the user's forward raises
            return Verdict(calls.last, f"forward does not bear it: {_line(error)}", calls.begun)
        wanted = self.expected(self.whole, gone)
        if len(answers) == len(wanted) and all(map(close, answers, wanted)):
            return self._train(small, calls)
        if not all(bool(torch.isfinite(x).all()) for x in wanted):
            return Verdict("", "it answers NaN or infinity", math.inf)
        return Verdict("", "forward answers otherwise without it: it holds a number that was its size", math.inf)

    def _train(self, small: nn.Module, calls: _Calls) -> Verdict:
        """How it runs in training mode, where the whole one does.

        Shapes alone are tried, on the meta device, where the whole model runs there. The module is of no use afterwards."""
        try:
            if self.trains:
                with calls.of(small):
                    answer(small.to(self.trains).train(), _on(self.trains, self.example))
        except Exception as error:  # whatever the user's forward raises
            return Verdict(calls.last, f"forward does not bear it in training mode: {_line(error)}", calls.begun)
        return Verdict(None, "", math.inf)

    @functools.cached_property
    def trains(self) -> str | None:
        """The device on which the whole model's training mode is tried: meta, else its own; None where it does not run."""
        own = str(device_of(self.model))
        for device in ("meta", own):
            try:
                answer(_whole_on(device, self.model).train(), _on(device, self.example))
                return device
            except Exception:  # whatever the user's forward raises
                continue
        return None

    def _number(self, culprit: str, gone: Gone) -> bool:
        """Whether leaving a whole number as it was mends what a module that raised, or one around it, did."""
        path = "" if culprit == _ROOT else culprit
        while True:
            module = self.model.get_submodule(path)
            doubtful = numbers(module, sizes(self.coupling, gone).get(path, {})) - self.numbers
            for number in sorted(doubtful, key=lambda number: number.name):
                self.numbers.add(number)
                if self._judge(gone).culprit != culprit:
                    return True
                self.numbers.remove(number)
            if not path:
                return False
            path = path.rpartition(".")[0]

    def _nearest(self, verdict: Verdict, gone: Gone) -> list[int]:
        """The groups of the most local kind without which it does not raise there, of those that touch the module that raised,
        or the nearest one around it; where no kind alone is guilty, those of a set of kinds that all have to stay."""
        active = self._active(gone)
        path = "" if verdict.culprit == _ROOT else str(verdict.culprit)
        while True:
            touching = [n for n in active if any(_inside(p, path) for p in self._paths(n))]
            if touching or not path:
                break
            path = path.rpartition(".")[0]

        def mends(staying: list[list[int]]) -> bool:
            return self._judge(gone & ~self._units([n for kind in staying for n in kind])).better(verdict)

        near, every = self._by_kind(touching, active), self._by_kind(active, active)
        for kind in near:
            if mends([kind]):
                return kind
        return _least(near if mends(near) else every, mends)

    def _active(self, gone: Gone) -> list[int]:
        """The groups being cut."""
        return [n for n, group in enumerate(self.coupling.groups) if gone[group.units].any()]

    def _by_kind(self, numbers: Sequence[int], active: Sequence[int]) -> list[list[int]]:
        """All active groups of the kinds of these, kind by kind, the most local first."""
        local = sorted(numbers, key=lambda n: len(self.coupling.groups[n].axes))
        return [[n for n in active if self.kinds[n] == kind] for kind in dict.fromkeys(self.kinds[n] for n in local)]

    def _units(self, numbers: Sequence[int]) -> Gone:
        """The units of some groups."""
        units = np.zeros(self.coupling.count, bool)
        for n in numbers:
            units[self.coupling.groups[n].units] = True
        return units

    def _paths(self, number: int) -> Iterator[str]:
        for axis in self.coupling.groups[number].axes:
            for key in self.coupling.graph.constants[self.coupling.axes[axis].constant].keys:
                yield key.rpartition(".")[0]

    def _wrong(self, gone: Gone) -> list[int]:
        """The groups of the first kind that alone makes the answer wrong; where none does alone, those of a set of kinds that
        all have to stay."""
        active = self._active(gone)
        kinds = self._by_kind(active, active)
        for kind in kinds:
            if self._judge(gone & self._units(kind)).culprit is not None:
                return kind
        return _least(
            kinds,
            lambda staying: self._judge(gone & ~self._units([n for kind in staying for n in kind])).culprit is None,
        )


def _least(kinds: list[list[int]], mends: Callable[[list[list[int]]], bool]) -> list[int]:
    """The members of kinds of which no one can be left out, so that the rest still mends."""
    guilty = kinds
    for kind in kinds:
        rest = [other for other in guilty if other is not kind]
        if mends(rest):
            guilty = rest
    return [n for kind in guilty for n in kind]


_ROOT = "the model itself"


def _whole(
    model: nn.Module, coupling: Coupling, example: tuple[Any, ...]
) -> tuple[Sequence[Tensor], torch.dtype | None]:
    """What the model answers in float64 and evaluation mode; in its own dtype where its forward holds another one."""
    double = cut(model, coupling, np.zeros(coupling.count, bool), (), torch.float64).eval()
    try:
        return answer(double, example), torch.float64
    except Exception:  # whatever the user's forward raises
        return answer(copy.deepcopy(model).eval(), example), None


def _whole_on(device: str, model: nn.Module) -> nn.Module:
    """A copy of a model; on the meta device without a copy of its values."""
    memory: dict[int, Any] = {}
    for tensor in model.state_dict(keep_vars=True).values() if device == "meta" else ():
        empty = torch.empty_like(tensor, device="meta")
        memory[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(model, memory).to(device)


def _on(device: str, example: tuple[Any, ...]) -> tuple[Any, ...]:
    moved: tuple[Any, ...] = each(example, lambda x: x.to(device))
    return moved


def _inside(path: str, parent: str) -> bool:
    return not parent or path == parent or path.startswith(f"{parent}.")


def _kind(model: nn.Module, coupling: Coupling, group: Group) -> Kind:
    """What groups have in common that stand at the same place of like blocks."""
    found = set()
    for axis in group.axes:
        place = coupling.axes[axis]
        for key in coupling.graph.constants[place.constant].keys:
            path, _, leaf = key.rpartition(".")
            parent, _, name = path.rpartition(".")
            owner = type(model.get_submodule(parent)).__name__
            found.add(f"{owner} {name if not name.isdigit() else ''} {leaf} {place.axis}")
    return tuple(sorted(found))


class _Calls:
    """The modules whose forward runs: after a raise the last one is where."""

    def __init__(self) -> None:
        self.begun = 0
        self._inside: list[str] = []

    @property
    def last(self) -> str:
        return self._inside[-1] if self._inside else _ROOT

    @contextmanager
    def of(self, module: nn.Module) -> Iterator[None]:
        handles = []
        for path, child in module.named_modules():
            if path:
                handles.append(child.register_forward_pre_hook(lambda *_, path=path: self._begin(path)))
                handles.append(child.register_forward_hook(lambda *_: self._inside.pop() and None))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _begin(self, path: str) -> None:
        self.begun += 1
        self._inside.append(path)


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:160]


@torch.no_grad()
def answer(model: nn.Module, example: tuple[Any, ...]) -> list[Tensor]:
    """The flat outputs of a model for inputs brought to its floating dtype."""
    dtypes = {t.dtype for t in model.state_dict().values() if t.is_floating_point()}
    dtype = torch.float64 if dtypes == {torch.float64} else None
    inputs = (x.to(dtype) if dtype and isinstance(x, Tensor) and x.is_floating_point() else x for x in example)
    return [leaf for leaf in flatten(model(*inputs))[0] if isinstance(leaf, Tensor)]


def close(x: Tensor, y: Tensor) -> bool:
    """Equal but for rounding: |x − y| ≤ √eps · max |y|; different networks are farther apart, rounding stays far below it in float64."""
    if x.shape != y.shape or x.is_floating_point() != y.is_floating_point():
        return False
    if not x.is_floating_point() or not y.numel():
        return bool((x == y).all())
    bound = float(torch.finfo(x.dtype).eps) ** 0.5 * float(y.abs().max())
    return bool(((x - y).abs() <= bound).all())
