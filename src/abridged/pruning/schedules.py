"""Schedules: when. A schedule is one function in `SCHEDULES`, from time t in [0, 1] to the fraction of the final sparsity.

Each starts at 0 or (one-shot) is 1 throughout, never falls, and is 1 at t = 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from abridged.tables import Table

Schedule = Callable[[float], float]
SCHEDULES: Table[Schedule] = Table("schedule")


@SCHEDULES.entry("one-shot")
def one_shot(t: float) -> float:
    """Everything at once: f(t) = 1 (LeCun et al. 1990; Lee et al. 2019 before training)."""
    return 1.0


@SCHEDULES.entry("linear")
def linear(t: float) -> float:
    """The same amount at each step: f(t) = t, the exponent 1 where "cubic" has 3 (Zhu & Gupta 2017)."""
    return t


@SCHEDULES.entry("cubic", "gradual")
def cubic(t: float) -> float:
    """Fast while much is redundant, then slower: f(t) = 1 − (1 − t)³ (Zhu & Gupta 2017, "To prune, or not to prune").

    >>> cubic(0.0), cubic(0.5), cubic(1.0)
    (0.0, 0.875, 1.0)
    """
    return 1 - (1 - t) ** 3


@SCHEDULES.entry("cosine")
def cosine(t: float) -> float:
    """Slow at both ends: f(t) = (1 − cos πt) / 2 (Dettmers & Zettlemoyer 2019, "Sparse Networks from Scratch").

    >>> cosine(0.0), round(cosine(0.5), 9), cosine(1.0)
    (0.0, 0.5, 1.0)
    """
    return (1 - math.cos(math.pi * t)) / 2


@SCHEDULES.entry("exponential")
def exponential(t: float) -> float:
    """Faster still at first: each step removes the same part of what is to go: f(t) = (1 − e^(−5t)) / (1 − e^(−5)).

    >>> exponential(0.0), round(exponential(0.5), 3), exponential(1.0)
    (0.0, 0.924, 1.0)
    """
    return math.expm1(-5 * t) / math.expm1(-5)
