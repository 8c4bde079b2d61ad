"""What was factorized, what was not and why, in numbers and in lines for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from abridged.factorization.choose import named
from abridged.factorization.decomposition import Ranks
from abridged.globs import some

Structure = Mapping[str, Mapping[str, Sequence[int]]]  # path → name of each kernel → its shape (groups, O, I, *k)


@dataclass(frozen=True)
class Line:
    """One layer that became factors. `error` is relative and squared: of the outputs where data was given, else of W."""

    path: str
    kind: str  # "Conv2d"
    method: str
    ranks: Ranks
    parameters: tuple[int, int]  # of the weight, before and after
    macs: tuple[int, int]  # of all calls that the example made, before and after
    error: float

    def __str__(self) -> str:
        sizes, macs = (f"{before:,} → {after:,}" for before, after in (self.parameters, self.macs))
        return (
            f"{self.path or 'the model'}: {self.method} {named(self.ranks)}, {sizes} weights, {macs} MACs, "
            f"relative error {self.error**0.5:.3g}"
        )


@dataclass(frozen=True)
class Report:
    """`str` gives the whole of it; `summary` is for the ledger."""

    what: str  # "svd, ratio 0.5 of the parameters"
    lines: tuple[Line, ...]
    left: Mapping[str, str]  # path → reason
    parameters: tuple[int, int]  # of the whole model, before and after
    structure: Structure  # from which `rebuild` makes the same modules
    notes: tuple[str, ...] = field(default=())

    @property
    def summary(self) -> tuple[str, ...]:
        """What was done in one line, and one line per reason why layers were left."""
        before, after = self.parameters
        layers = len(self.lines) + len(self.left)
        done = f"{self.what}: {len(self.lines)} of {layers} layers, {before:,} → {after:,} parameters"
        reasons = Counter(self.left.values())
        left = [
            f"{some([path or 'the model' for path, why in self.left.items() if why == reason])}: {reason}"
            for reason in reasons
        ]
        return done, *left, *self.notes

    def __str__(self) -> str:
        first, *rest = self.summary
        return "\n".join([first, *map(str, self.lines), *rest])
