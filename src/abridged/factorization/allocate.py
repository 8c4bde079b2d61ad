"""One budget over all layers: the ranks that lose least for what they save."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from abridged.factorization.decomposition import Ranks


@dataclass(frozen=True)
class Option:
    """One way to have a layer: what it costs (parameters, MACs, seconds …), and its error, of which layers add up.

    No ranks: the dense layer itself, whose error is 0."""

    cost: float
    error: float
    ranks: Ranks | None = None


def hull(options: Sequence[Option]) -> list[Option]:
    """The options on the lower convex hull of error over cost, the dearest first: no mix of two others beats one of them.

    >>> [option.cost for option in hull([Option(9, 0), Option(8, 5), Option(4, 1), Option(1, 3), Option(5, 3)])]
    [9, 4, 1]
    """
    kept: list[Option] = []
    for option in sorted(options, key=lambda option: (-option.cost, option.error)):
        if kept and option.cost == kept[-1].cost:
            continue
        while kept and option.error <= kept[-1].error:
            kept.pop()  # cheaper and not worse
        while len(kept) > 1 and _slope(kept[-2], kept[-1]) >= _slope(kept[-1], option):
            kept.pop()
        kept.append(option)
    return kept


def worthwhile(options: Sequence[Option], most: int) -> list[Ranks]:
    """About `most` ranks of the convex hull, evenly along it, with the cheapest: where to look at each would take too long.

    >>> worthwhile([Option(cost, 1 / cost, (cost,)) for cost in range(1, 100)], 4)
    [(99,), (74,), (49,), (24,), (1,)]
    """
    best = [option.ranks for option in hull(options) if option.ranks is not None]
    some = best[:: max(1, math.ceil(len(best) / most))]
    return some if some[-1:] == best[-1:] else [*some, best[-1]]


def allocate(layers: Mapping[str, Sequence[Option]], budget: float) -> dict[str, Option] | None:
    """An option per layer, of cost at most `budget` together and of the least sum of errors; None if none is so cheap.

    Steps along the convex hulls in the order of error per cost saved solve the Lagrangian problem, and so are optimal
    wherever they land on the budget exactly (Everett 1963); the last step may save more than was asked, and what it left
    over is spent on whatever then lowers the error most."""
    hulls = {name: hull(options) for name, options in layers.items()}
    chosen = dict.fromkeys(hulls, 0)
    total = sum(options[0].cost for options in hulls.values())
    steps = sorted(
        (_slope(before, after), name, at)
        for name, options in hulls.items()
        for at, (before, after) in enumerate(pairwise(options), start=1)
    )
    for _, name, at in steps:
        if total <= budget:
            break
        total -= hulls[name][at - 1].cost - hulls[name][at].cost
        chosen[name] = at
    if total > budget:
        return None
    return _spend({name: hulls[name][at] for name, at in chosen.items()}, layers, budget - total)


def _slope(dear: Option, cheap: Option) -> float:
    """The error that a step makes for each unit of cost it saves."""
    return (cheap.error - dear.error) / (dear.cost - cheap.cost)


def _spend(chosen: dict[str, Option], layers: Mapping[str, Sequence[Option]], slack: float) -> dict[str, Option]:
    while True:
        better = [
            (chosen[name].error - option.error, name, option)
            for name, options in layers.items()
            for option in options
            if option.error < chosen[name].error and option.cost - chosen[name].cost <= slack
        ]
        if not better:
            return chosen
        _, name, option = max(better, key=lambda gain: gain[0])
        slack -= option.cost - chosen[name].cost
        chosen[name] = option
