"""Criteria: how much each weight matters. A criterion is one pure function in `CRITERIA`."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from abridged.tables import Table


@dataclass(frozen=True)
class Stats:
    """What a criterion may know about a weight beside its values."""

    name: str  # of the parameter
    seed: int = 0


# (weight, stats) → scores of the weight's shape, floating-point, finite, in memory of their own; the lowest go first.
Criterion = Callable[[Tensor, Stats], Tensor]
CRITERIA: Table[Criterion] = Table("criterion")


@CRITERIA.entry("magnitude")
def magnitude(weight: Tensor, stats: Stats) -> Tensor:
    """Absolute value: s = |w| (Han et al. 2015, "Learning both Weights and Connections").

    >>> magnitude(torch.tensor([-0.5, 0.25]), Stats("w")).tolist()
    [0.5, 0.25]
    """
    return weight.abs()


@CRITERIA.entry("random")
def random(weight: Tensor, stats: Stats) -> Tensor:
    """Uniform noise in [0, 1): the control that every criterion has to beat.

    The same on every device and at every step of a schedule, since it depends on seed, name and shape alone.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(f"{stats.seed} {stats.name}".encode()))
    return torch.rand(weight.shape, generator=generator).to(weight.device)
