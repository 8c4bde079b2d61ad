"""The table of distillation losses, what a loss is given, and what it says it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from abridged.tables import Table


@dataclass(frozen=True)
class Outputs:
    """What one network gave for a batch: class scores (N, C) or (N, C, …), empty where no loss reads them; features by
    the student's module path (N, …), adapted to each other; and, of VID's adapter alone, the variances it predicts."""

    logits: Tensor
    features: Mapping[str, Tensor] = field(default_factory=dict)
    variances: Mapping[str, Tensor] = field(default_factory=dict)


class Shapes(NamedTuple):
    """Of one pair of layers: the student's path, both features' shapes (N, …), and the number of the student's classes."""

    path: str
    student: tuple[int, ...]
    teacher: tuple[int, ...]
    classes: int


class Adapted(NamedTuple):
    """What an adapter makes of a pair of features: two that can be compared, and perhaps a variance."""

    student: Tensor
    teacher: Tensor
    variance: Tensor | None = None


MakeAdapter = Callable[[Shapes], nn.Module]  # the module: (student feature, teacher feature) → Adapted


@dataclass(frozen=True)
class Needs:
    """What a loss reads: `logits` as scores of the same classes, as plain values of one shape, or not at all; `layers`:
    features of named layers, through `adapter`; `teacher`: False where the student is its own."""

    logits: Literal["classes", "values"] | None = "classes"
    layers: bool = False
    adapter: MakeAdapter | None = None
    teacher: bool = True


Loss = Callable[..., Tensor]  # (student Outputs, teacher Outputs, batch, **hyper) → scalar, the mean over the batch
LOSSES = Table[Loss]("distillation loss")
_NEEDS: dict[str, Needs] = {}


def loss(name: str, **needs: Any) -> Callable[[Loss], Loss]:
    """Decorator: add a function to LOSSES with the `Needs` given by name."""
    _NEEDS[name] = Needs(**needs)
    return LOSSES.entry(name)


def needs(name: str) -> Needs:
    """What the loss of this name needs; class scores alone, where it did not say."""
    return _NEEDS.get(name, Needs())
