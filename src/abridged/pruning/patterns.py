"""Patterns: what goes together. A pattern is one function in `PATTERNS` from a weight's shape to a `Layout`.

A layout sees a weight (groups, outputs, inputs, taps) as units, each removed whole or not at all, in sets that each
keep the same number of units: nothing but a rearrangement (sets, units, members). Unstructured is (1, n, 1); blocks and
rows (1, blocks, weights of one); N:M (n / M, M, 1). Where there is one set, units of different layers can compete.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from abridged.errors import InputError, nearest
from abridged.pruning.ranking import count, top
from abridged.tables import Table

Shape = tuple[int, int, int, int]  # groups, outputs and inputs of each, kernel taps
F = TypeVar("F", bound="Callable[[Shape], Layout]")


class MisfitError(Exception):
    """Why a pattern does not fit a weight, in a few words."""


@dataclass(frozen=True)
class Layout:
    """The axes into which a weight is cut: some of them count sets, some units, some the members of a unit."""

    split: tuple[int, ...]
    sets: tuple[int, ...] = ()
    units: tuple[int, ...] = ()
    members: tuple[int, ...] = ()

    def arrange(self, elements: Tensor) -> Tensor:
        """Elements (groups, outputs, inputs, taps) of any dtype → (sets, units, members), each in one place."""
        size = [math.prod(self.split[axis] for axis in axes) for axes in (self.sets, self.units, self.members)]
        return elements.reshape(self.split).permute(self._order).reshape(size)

    def score(self, scores: Tensor) -> Tensor:
        """Scores (groups, outputs, inputs, taps) → (sets, units): the sum over the members of a unit."""
        arranged = self.arrange(scores)
        return arranged.sum(2) if arranged.shape[2] > 1 else arranged[:, :, 0]

    def expand(self, kept: Tensor, shape: torch.Size) -> Tensor:
        """Booleans (sets, units) → booleans of `shape` (groups, outputs, inputs, taps), equal for all members of a unit."""
        sizes = [self.split[axis] for axis in self._order]
        spread = kept.reshape(sizes[: len(sizes) - len(self.members)] + [1] * len(self.members)).expand(sizes)
        return spread.permute([self._order.index(axis) for axis in range(len(sizes))]).reshape(shape)

    def alive(self, kept: Tensor) -> Tensor:
        """Booleans (groups, outputs, inputs, taps) → (sets, units): True where any member is."""
        arranged = self.arrange(kept)
        return arranged.any(2) if arranged.shape[2] > 1 else arranged[:, :, 0]

    def mask(self, units: Tensor, density: float, shape: torch.Size, guess: float | None = None) -> Tensor:
        """Booleans of `shape`, True for the weights of the best units of each set: `count` says how many, `top` which."""
        return self.expand(top(units, count(density, units.shape[1]), guess), shape)

    @property
    def _order(self) -> tuple[int, ...]:
        return (*self.sets, *self.units, *self.members)


@dataclass(frozen=True)
class Pattern:
    """What is removed together. `layout(shape)` raises `MisfitError` for a weight that it does not fit.

    With a `density` the pattern itself says how much stays, and layers cannot compete. Where `outputs` is true, a unit is
    a whole output channel."""

    layout: Callable[[Shape], Layout]
    density: float | None = None
    outputs: bool = False

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        return self.layout.__doc__


class Patterns(Table[Pattern]):
    """The table of patterns. Names with numbers in them, such as "2:4" and "block 4x1", are understood for any numbers."""

    def __getitem__(self, name: str) -> Pattern:
        if name not in self._entries and isinstance(name, str):
            if found := re.fullmatch(r"([0-9]+):([0-9]+)", name):
                return n_of_m(int(found[1]), int(found[2]))
            if found := re.fullmatch(r"block ([0-9]+)x([0-9]+)", name):
                return block(int(found[1]), int(found[2]))
            if name in STRUCTURED:
                raise InputError(
                    f"pattern '{name}' goes through the whole network; here a pattern of weights is asked for, such as 'row'"
                )
            raise InputError(
                f"unknown pattern '{name}'{nearest(name, [*self, *STRUCTURED])}; N:M is written '2:4', a block of outputs x inputs 'block 4x1'"
            )
        return super().__getitem__(name)

    def unit(self, name: str, *, outputs: bool = False) -> Callable[[F], F]:
        """Decorator that adds a function from a weight's shape to its layout."""

        def add(layout: F) -> F:
            self.entry(name)(Pattern(layout, outputs=outputs))
            return layout

        return add


PATTERNS = Patterns("pattern")
STRUCTURED = ("channel", "heads")  # these go through the whole network: `channels`


@PATTERNS.unit("unstructured")
def unstructured(shape: Shape) -> Layout:
    """Any single weight (LeCun et al. 1990, "Optimal Brain Damage"; Han et al. 2015)."""
    return Layout((math.prod(shape), 1), units=(0,), members=(1,))


@PATTERNS.unit("kernel")
def kernel(shape: Shape) -> Layout:
    """All taps of the filter from one input channel to one output channel (Mao et al. 2017)."""
    if shape[3] == 1:
        raise MisfitError("it has no kernel of several taps")
    return Layout(shape, units=(0, 1, 2), members=(3,))


@PATTERNS.unit("row", outputs=True)
def row(shape: Shape) -> Layout:
    """All weights into one output channel or feature, its bias left (Li et al. 2017 without the coupling)."""
    return Layout(shape, units=(0, 1), members=(2, 3))


@PATTERNS.unit("column")
def column(shape: Shape) -> Layout:
    """All weights out of one input channel or feature (He et al. 2017 without the coupling)."""
    return Layout(shape, units=(0, 2), members=(1, 3))


def n_of_m(n: int, m: int) -> Pattern:
    """N of every M consecutive input channels of one output and tap stay (Mishra et al. 2021; Zhou et al. 2021).

    >>> n_of_m(2, 4).layout((1, 8, 16, 9)).split, n_of_m(2, 4).density
    ((1, 8, 4, 4, 9, 1), 0.5)
    """
    if not 0 < n < m:
        raise InputError(f"pattern '{n}:{m}': N of M needs 0 < N < M, such as '2:4'")

    def layout(shape: Shape) -> Layout:
        groups, outputs, inputs, taps = shape
        if inputs % m:
            raise MisfitError(f"{inputs} input channels{_each(groups)} are no multiple of {m}")
        return Layout((groups, outputs, inputs // m, m, taps, 1), sets=(0, 1, 4, 2), units=(3,), members=(5,))

    layout.__doc__ = f"{n} of every {m} consecutive input channels stay (Mishra et al. 2021; Zhou et al. 2021)."
    return Pattern(layout, density=n / m)


def block(r: int, c: int) -> Pattern:
    """Blocks of r output by c input channels of one tap (Gray et al. 2017; Narang et al. 2017).

    >>> block(4, 2).layout((1, 8, 16, 9)).split
    (1, 2, 4, 8, 2, 9)
    """
    if r < 1 or c < 1:
        raise InputError(f"pattern 'block {r}x{c}': a block has at least 1x1 weights")

    def layout(shape: Shape) -> Layout:
        groups, outputs, inputs, taps = shape
        for size, part, what in ((outputs, r, "output"), (inputs, c, "input")):
            if size % part:
                raise MisfitError(f"{size} {what} channels{_each(groups)} are no multiple of {part}")
        split = (groups, outputs // r, r, inputs // c, c, taps)
        return Layout(split, units=(0, 1, 3, 5), members=(2, 4))

    layout.__doc__ = f"Blocks of {r} output by {c} input channels of one tap (Gray et al. 2017; Narang et al. 2017)."
    return Pattern(layout)


def _each(groups: int) -> str:
    return " of each group" if groups > 1 else ""


for _n, _m in ((2, 4), (4, 8), (1, 4)):
    PATTERNS.entry(f"{_n}:{_m}")(n_of_m(_n, _m))
for _r, _c in ((1, 4), (4, 1), (4, 4)):
    PATTERNS.entry(f"block {_r}x{_c}")(block(_r, _c))


def density(name: str) -> float | None:
    """The density that a pattern fixes by its name, such as ½ by "2:4"; None where it fixes none, or is unknown."""
    try:
        return PATTERNS[name].density
    except InputError:
        return None
