"""How much is asked for, checked before anything is touched."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, SupportsIndex

from abridged.errors import InputError, nearest
from abridged.globs import matches
from abridged.graph.graph import Graph

Rank = int | str | Sequence[int]
Cost = Callable[[Graph], float]  # seconds that a network or a layer takes

COUNTS = ("parameters", "macs", "seconds")
RULES = ("evbmf",)


@dataclass(frozen=True)
class Amount:
    """Exactly one of rank, energy and ratio is set; `of` says what a ratio counts."""

    rank: Rank | Mapping[str, Rank] | None = None
    energy: float | None = None
    ratio: float | None = None
    of: str = "parameters"
    cost: Cost | None = None

    def __post_init__(self) -> None:
        named = [name for name in ("rank", "energy", "ratio") if getattr(self, name) is not None]
        if len(named) != 1:
            raise InputError(f"give exactly one of rank, energy and ratio, not {' and '.join(named) or 'none'}")
        _inside("energy", self.energy, 1.0, "the share of ‖W‖² that the factors keep")
        _inside("ratio", self.ratio, None, f"what is left of the {self.unit}")
        if isinstance(self.rank, Mapping) and not self.rank:
            raise InputError("rank by layer is {glob: rank}, such as {'layer4.*': 8}: it is empty")
        for glob in self.globs:
            if not isinstance(glob, str):
                raise InputError(f"rank by layer is {{glob: rank}}, such as {{'layer4.*': 8}}: {glob!r} is no glob")
        for rank in self.rank.values() if isinstance(self.rank, Mapping) else [self.rank]:
            if rank is not None or isinstance(self.rank, Mapping):
                check_rank(rank)
        if self.of not in COUNTS:
            raise InputError(f"of: unknown count '{self.of}'{nearest(str(self.of), COUNTS)}")
        if self.cost is not None and not callable(self.cost):
            raise InputError(f"cost must be a function from a Graph to seconds, not {self.cost!r}")
        if self.of == "seconds" and self.cost is None:
            raise InputError("a ratio of seconds needs cost: a function from a Graph to the seconds it takes")
        if self.of != "parameters" and self.ratio is None:
            raise InputError(f"of='{self.of}' says what a ratio counts: give ratio, or leave it out")

    @property
    def unit(self) -> str:
        """What a ratio counts, for people."""
        return "MACs" if self.of == "macs" else self.of

    @property
    def text(self) -> str:
        """The amount in a few words."""
        if self.ratio is not None:
            return f"ratio {self.ratio:g} of the {self.unit}"
        return f"energy {self.energy:g}" if self.energy is not None else f"rank {self.rank}"

    @property
    def globs(self) -> tuple[str, ...]:
        """Over layer paths, of ranks by layer."""
        return tuple(self.rank) if isinstance(self.rank, Mapping) else ()

    def rank_of(self, weights: Sequence[str]) -> Rank | None:
        """The rank for a layer, by the names of its weight: a mapping's first glob that fits; None where none does."""
        if not isinstance(self.rank, Mapping):
            return self.rank
        return next((rank for glob, rank in self.rank.items() if matches(weights, [glob])), None)


def check_rank(rank: Any) -> None:
    """Raises `InputError` unless it is a whole number from 1, a sequence of such, or the name of a rule."""
    if isinstance(rank, str):
        if rank not in RULES:
            raise InputError(f"unknown rank rule '{rank}'{nearest(rank, RULES)}, or give a whole number")
        return
    each = list(rank) if isinstance(rank, Sequence) else [rank]
    if (
        isinstance(rank, bytes)
        or not each
        or any(isinstance(n, bool) or not isinstance(n, SupportsIndex) or int(n) < 1 for n in each)
    ):
        raise InputError(f"rank must be a whole number from 1, a tuple of these, or 'evbmf', not {rank!r}")


def _inside(name: str, value: Any, high: float | None, what: str) -> None:
    """Checks 0 < value < 1, or ≤ `high`."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InputError(f"{name} must be a number, not {value!r}")
    if not 0 < float(value) <= 1 or (high is None and value == 1):
        raise InputError(f"{name} is {what}, in (0, 1{')' if high is None else ']'}, not {value!r}")
