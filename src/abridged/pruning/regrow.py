"""Regrowth: sparse from the first step to the last, while weights that do little are exchanged for ones that may do more.

A way of regrowth is four choices, each an entry of a table: by which criterion weights are dropped (`CRITERIA`), by
which rule others grow in their place (`GROWTHS`), how the exchanged fraction decays over time (`SCHEDULES`), and which
layers get the places that became free (`REDISTRIBUTIONS`). `REGROWTHS` names the combinations of the literature.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from abridged.errors import InputError, UnsupportedError, nearest
from abridged.pruning.criteria import CRITERIA, Stats
from abridged.pruning.patterns import Layout
from abridged.pruning.ranking import count, top
from abridged.pruning.schedules import SCHEDULES
from abridged.tables import Table


@dataclass(frozen=True)
class Evidence:
    """What is known about one weight when it exchanges: all tensors of the weight's shape."""

    name: str
    weight: Tensor
    held: Tensor  # True: kept so far
    gradient: Tensor  # dense: of removed weights too
    momentum: Tensor | None = None  # the optimizer's; None where it keeps none
    seed: int = 0
    step: int = 0

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Evidence:
        """The same with every tensor changed."""
        moving = None if self.momentum is None else change(self.momentum)
        weight, held, gradient = (change(part) for part in (self.weight, self.held, self.gradient))
        return replace(self, weight=weight, held=held, gradient=gradient, momentum=moving)

    @property
    def moving(self) -> Tensor:
        """The momentum. Raises `InputError` where the optimizer keeps none."""
        if self.momentum is None:
            raise InputError(
                f"regrowth by momentum, but the optimizer keeps none of {self.name}: "
                "use SGD with momentum, Adam or AdamW, or regrow='rigl', which looks at the gradient"
            )
        return self.momentum


# --- which weights grow: evidence → scores of the weight's shape; of the removed ones the highest grow ------------------

Growth = Callable[[Evidence], Tensor]
GROWTHS: Table[Growth] = Table("growth")


@GROWTHS.entry("random")
def random(evidence: Evidence) -> Tensor:
    """Uniform noise in [0, 1), new at each exchange: SET (Mocanu et al. 2018, "Scalable training … evolutionary").

    Depends on seed, name, step and shape alone, so that a resumed run and every device draw the same."""
    key = f"{evidence.seed} {evidence.step} {evidence.name}"
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    return torch.rand(evidence.weight.shape, generator=generator).to(evidence.weight.device)


@GROWTHS.entry("gradient")
def gradient(evidence: Evidence) -> Tensor:
    """Where the loss would fall fastest now: |∂L/∂w| (Evci et al. 2020, "Rigging the Lottery")."""
    return evidence.gradient.abs()


@GROWTHS.entry("momentum")
def momentum(evidence: Evidence) -> Tensor:
    """Where it has been falling: |m|, for Adam |m| / (√v + ε) (Dettmers & Zettlemoyer 2019, "Sparse Networks from
    Scratch")."""
    return evidence.moving.abs()


# --- where: (evidence, how many the layer lost) → the layer's share of all that grow, up to a common factor ---------------

Redistribution = Callable[[Evidence, int], float]
REDISTRIBUTIONS: Table[Redistribution] = Table("redistribution")


@REDISTRIBUTIONS.entry("none")
def none(evidence: Evidence, lost: int) -> float:
    """Each layer as many as it lost: densities of layers stay (Mocanu et al. 2018; Evci et al. 2020)."""
    return float(lost)


@REDISTRIBUTIONS.entry("momentum")
def momentum_share(evidence: Evidence, lost: int) -> float:
    """By the mean momentum of the weights that a layer has: Σ|m| over kept / their number (Dettmers & Zettlemoyer 2019)."""
    return _mean(evidence.moving, evidence.held)


@REDISTRIBUTIONS.entry("gradient")
def gradient_share(evidence: Evidence, lost: int) -> float:
    """By the mean gradient of the weights that a layer has, Σ|g| over kept / their number (after Dettmers & Zettlemoyer
    2019, without memory)."""
    return _mean(evidence.gradient, evidence.held)


def _mean(values: Tensor, held: Tensor) -> float:
    chosen = values[held]
    return float(chosen.abs().double().mean()) if chosen.numel() else 0.0


# --- the combinations ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Regrowth:
    """One way of regrowth: at each exchange ⌊`fraction` · decay(t) · n + ½⌋ of a layer's n weights are dropped and as many
    grow, all layers together; t runs from 0 to 1 over the share `until` of the steps. A layer keeps one weight at least.

    `decay`: "constant" (Mocanu et al. 2018), or the schedule by which the fraction goes to zero: "cosine", "linear" …
    (Dettmers & Zettlemoyer 2019; Evci et al. 2020)."""

    drop: str = "magnitude"
    grow: str = "gradient"
    decay: str = "cosine"
    redistribute: str = "none"
    fraction: float = 0.3
    until: float = 1.0

    def __post_init__(self) -> None:
        # What is unknown or out of range raises here, before anything is touched.
        CRITERIA[self.drop]
        GROWTHS[self.grow]
        if self.decay != "constant" and SCHEDULES[self.decay](0.0):
            raise InputError(f"regrow: decay '{self.decay}' leaves nothing to exchange; use 'cosine', or 'constant'")
        REDISTRIBUTIONS[self.redistribute]
        for name in ("fraction", "until"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
                raise InputError(f"regrow: {name} must be in (0, 1], not {value!r}")
            object.__setattr__(self, name, float(value))

    @property
    def needs_momentum(self) -> bool:
        return "momentum" in (self.grow, self.redistribute)

    def due(self, t: float) -> bool:
        """Whether weights are still exchanged when the share t of the steps is done."""
        return t < self.until

    def part(self, t: float) -> float:
        """The fraction of each layer's weights that is exchanged then: fraction · (1 − schedule(t / until)), or constant."""
        return self.fraction * (1 if self.decay == "constant" else 1 - SCHEDULES[self.decay](min(t / self.until, 1.0)))

    def __str__(self) -> str:
        named = next((name for name, known in REGROWTHS.items() if known == self), None)
        return named or f"drop {self.drop}, grow {self.grow}"


REGROWTHS: Table[Regrowth] = Table("regrowth")
REGROWTHS.entry("set")(Regrowth(grow="random", decay="constant"))
REGROWTHS.entry("rigl")(Regrowth(grow="gradient", until=0.75))
REGROWTHS.entry("sparse-momentum")(Regrowth(grow="momentum", redistribute="momentum", fraction=0.5))


def regrowth(asked: str | Mapping[str, Any] | Regrowth | None) -> Regrowth | None:
    """What the `regrow` of a user means. Raises `InputError` for what it cannot."""
    if asked is None or isinstance(asked, Regrowth):
        return asked
    if isinstance(asked, Mapping):
        known = [field.name for field in fields(Regrowth)]
        for name in asked:
            if name not in known:
                raise InputError(f"regrow has no option '{name}'{nearest(str(name), known)}")
        return Regrowth(**asked)
    if not isinstance(asked, str):
        raise InputError(f"regrow must be one of {', '.join(REGROWTHS)}, or a Regrowth, not {asked!r}")
    return REGROWTHS[asked]


# --- one exchange -------------------------------------------------------------------------------------------------------


def exchange(
    way: Regrowth, layouts: Mapping[str, Layout], layers: Mapping[str, Evidence], t: float, kept: int | None = None
) -> dict[str, Tensor]:
    """New masks: in all layers together `kept` weights stay, as many as before unless it is given.

    Where layers compete and their units differ in size (rows, say), fewer by less than a unit of the largest. What was just
    dropped may grow back, and then has lost nothing. Raises `UnsupportedError` where layers should compete and the pattern
    fixes the density inside small groups."""
    stay, lost = {}, {}
    for name, layer in layers.items():
        stay[name], lost[name] = _survivors(way, layouts[name], layer, t)
        if stay[name].shape[0] > 1 and way.redistribute != "none":
            raise UnsupportedError(
                f"{name}: this pattern fixes the density inside each group of {stay[name].shape[1]}, so layers cannot"
                " compete for the weights that grow; use a regrowth with redistribute='none', such as 'rigl'"
            )
    gained = lost if way.redistribute == "none" else _shared(way, layers, stay, lost, kept)
    return {name: _grown(way, layouts[name], layer, stay[name], gained[name]) for name, layer in layers.items()}


def _shared(
    way: Regrowth,
    layers: Mapping[str, Evidence],
    stay: Mapping[str, Tensor],
    lost: Mapping[str, int],
    kept: int | None,
) -> dict[str, int]:
    """The units that grow in each layer, where layers compete."""
    share = REDISTRIBUTIONS[way.redistribute]
    shares = {name: share(layer, lost[name]) for name, layer in layers.items()}
    room = {name: int((~units).count_nonzero()) for name, units in stay.items()}
    sizes = {name: layer.weight.numel() // stay[name].numel() for name, layer in layers.items()}
    before = sum(int(layer.held.count_nonzero()) for layer in layers.values())
    survive = sum(int(units.count_nonzero()) * sizes[name] for name, units in stay.items())
    return apportion(shares, room, (before if kept is None else kept) - survive, sizes)


def _survivors(way: Regrowth, layout: Layout, layer: Evidence, t: float) -> tuple[Tensor, int]:
    """Which units (groups, units) are not dropped, and how many are."""
    kept = layout.alive(layer.held)
    groups, each = len(kept), int(kept.count_nonzero()) // len(kept)
    scores = CRITERIA[way.drop](layer.weight, Stats(layer.name, layer.seed))
    units = layout.score(_ranked(scores)).masked_fill_(~kept, -math.inf)
    dropped = min(count(way.part(t), each), max(each - 1, 0))
    return top(units, each - dropped), dropped * groups


def _grown(way: Regrowth, layout: Layout, layer: Evidence, stay: Tensor, gained: int) -> Tensor:
    """The mask with `gained` units more than `stay`, the same number in each group."""
    scores = layout.score(_ranked(GROWTHS[way.grow](layer))).masked_fill_(stay, -math.inf)
    return layout.expand(stay | top(scores, gained // len(stay)), layer.weight.shape)


def _ranked(scores: Tensor) -> Tensor:
    # Half precision has too small a range for sums over the members of a unit. A copy: what comes may be the gradient.
    return scores.to(torch.promote_types(scores.dtype, torch.float32), copy=True)


def apportion(
    shares: Mapping[str, float], room: Mapping[str, int], total: int, sizes: Mapping[str, int] | None = None
) -> dict[str, int]:
    """`total` weights divided in proportion to shares, as numbers of units of these sizes (of one weight, unless they are
    given), to none more units than its room; what does not fit goes to the others in the same proportion. Rounded by largest
    remainders, the earlier of equals first (Hamilton's method), as long as another unit fits: less than one is left.

    >>> apportion({"a": 3.0, "b": 1.0, "c": 0.0}, {"a": 4, "b": 9, "c": 9}, 8)
    {'a': 4, 'b': 4, 'c': 0}
    >>> apportion({"a": 1.0, "b": 1.0}, {"a": 9, "b": 9}, 18, {"a": 2, "b": 6})
    {'a': 6, 'b': 1}
    """
    common = math.gcd(*(sizes or {"": 1}).values())
    size = {name: sizes[name] // common if sizes else 1 for name in shares}
    given: dict[str, int] = {}
    while open_ := [name for name in shares if name not in given]:
        left = total // common - sum(units * size[name] for name, units in given.items())
        claims = {name: shares[name] for name in open_}
        if not any(claims.values()):
            claims = {name: float(room[name] * size[name]) for name in open_}
        whole = sum(claims.values()) or 1.0
        quotas = {name: left * claim / whole / size[name] for name, claim in claims.items()}
        full = {name: room[name] for name in open_ if quotas[name] >= room[name]}
        if not full:
            return {**given, **_rounded(quotas, left, size, room)}
        given |= full
    return given


def _rounded(
    quotas: Mapping[str, float], total: int, size: Mapping[str, int], room: Mapping[str, int]
) -> dict[str, int]:
    """Whole units next to the quotas, together of `total` weights, or of as many as whole units can have."""
    units = {name: math.floor(quota) for name, quota in quotas.items()}
    left = total - sum(size[name] * number for name, number in units.items())
    order = sorted(quotas, key=lambda name: units[name] - quotas[name])
    while fitting := [name for name in order if size[name] <= left and units[name] < room[name]]:
        for name in fitting:
            if size[name] <= left:
                units[name] += 1
                left -= size[name]
    return units
