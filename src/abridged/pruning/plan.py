"""What to remove, as data, and the one place where criterion, pattern, allocation and schedule meet."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from abridged.errors import InputError, UnsupportedError
from abridged.pruning.agents import AGENTS
from abridged.pruning.allocation import ALLOCATIONS, Layer, Ranked, within_macs
from abridged.pruning.collect import Collector
from abridged.pruning.criteria import CRITERIA, Criterion, Stats
from abridged.pruning.layers import Weight, weights_of
from abridged.pruning.patterns import PATTERNS, Layout, MisfitError, Pattern
from abridged.pruning.regrow import Evidence, Regrowth, exchange
from abridged.pruning.schedules import SCHEDULES


@dataclass(frozen=True)
class Plan:
    """How much goes, by which rules, until when. One of `density` (of the end), `threshold` and `layers` is set.

    Raises `InputError` for an unknown name."""

    density: float | None = None
    threshold: float | None = None
    criterion: str = "magnitude"
    pattern: str = "unstructured"
    allocation: str = "global"
    schedule: str = "one-shot"
    steps: int = 0  # optimizer steps until the end; 0: the end is at once
    every: int = 1  # optimizer steps between two choices
    seed: int = 0
    regrow: Regrowth | None = None  # the density is that of the end from the start, and weights are exchanged
    of: str = "weights"  # what `density` is a fraction of: weights or macs
    kept: int | None = None  # of a regrowth: how many weights stay, from the start to the end
    layers: str | None = None  # JSON: the final density of each layer by name, where it is said for each

    def __post_init__(self) -> None:
        CRITERIA[self.criterion], PATTERNS[self.pattern], SCHEDULES[self.schedule]  # an unknown name raises here
        if self.allocation not in ("per layer", "sensitivity", *AGENTS):  # these are told by `layers`
            ALLOCATIONS[self.allocation]

    def check(self) -> None:
        """Raises `UnsupportedError` where criterion, pattern, allocation, schedule and regrowth do not go together."""
        if reason := self.refusal:
            raise UnsupportedError(reason)

    @property
    def refusal(self) -> str | None:
        """Why criterion, pattern, allocation and schedule do not go together; None where they do."""
        criterion, pattern = CRITERIA[self.criterion], PATTERNS[self.pattern]
        if criterion.needs & {"scale", "active", "activation"}:
            return f"criterion '{self.criterion}' judges coupled channels: it needs pattern='channel'"
        if criterion.per == "output" and not pattern.outputs:
            return (
                f"criterion '{self.criterion}' judges whole output channels: it needs pattern='row' or 'channel',"
                f" not '{self.pattern}'"
            )
        if "movement" in criterion.needs and not self.gradual:
            return (
                f"criterion '{self.criterion}' is learnt while training: give a schedule such as 'cubic' and steps, and"
                " hold the masks to your optimizer"
            )
        if self.regrow and (needs := CRITERIA[self.regrow.drop].needs):
            return f"a regrowth drops by weights alone, and '{self.regrow.drop}' needs {' and '.join(sorted(needs))}"
        if self.allocation in AGENTS and criterion.rounds > 1:
            return (
                f"criterion '{self.criterion}' is taken anew in rounds for each density, and a search tries hundreds:"
                " choose another"
            )
        if pattern.density is not None:
            if self.regrow and self.regrow.redistribute != "none":
                return (
                    f"pattern '{self.pattern}' fixes the density inside each group, so layers cannot compete for the"
                    " weights that grow; use a regrowth with redistribute='none', such as 'rigl'"
                )
            if self.threshold is not None:
                return f"a threshold cannot keep a pattern of groups such as '{self.pattern}'; leave it out"
            if self.allocation != "uniform" or self.of != "weights":
                return (
                    f"pattern '{self.pattern}' fixes the density inside each group, so layers cannot compete and no"
                    " budget can be divided; use allocation='uniform'"
                )
        return None

    @property
    def gradual(self) -> bool:
        """Whether the sparsity grows from step to step."""
        return self.steps > 0 and self.regrow is None

    @property
    def needs(self) -> frozenset[str]:
        """What has to be known of each weight: names of fields of `Stats`."""
        return CRITERIA[self.criterion].needs | ({"positions"} if self.of == "macs" else set())

    def due(self, step: int) -> bool:
        """Whether the masks are chosen anew after this optimizer step (1 is the first)."""
        if self.regrow:
            return step % self.every == 0 and self.regrow.due(step / self.steps)
        return step == self.steps or (step < self.steps and step % self.every == 0)

    def density_at(self, step: int) -> float | None:
        """Density after an optimizer step: 1 − sparsity · f(step / steps); exactly `density` from the last one on."""
        return None if self.density is None else self._on_the_way(self.density, step)

    def _on_the_way(self, density: float, step: int) -> float:
        t = min(step / self.steps, 1.0) if self.steps else 1.0
        return density + (1 - density) * (1 - SCHEDULES[self.schedule](t))

    def masks(
        self, module: nn.Module, names: Iterable[str], held: Mapping[str, Tensor], step: int, collect: Collector
    ) -> dict[str, Tensor]:
        """Which weights of a module stay (True) after an optimizer step; the module is left as it is.

        Whatever the criterion says, units that `held` removes already go first, then units that are zero. Raises
        `InputError` for a weight with NaN or infinity, and for weights that the pattern does not fit."""
        weights, layouts = self._fitted(module, names)
        masks = dict(held)
        for share in self._rounds(step):
            layers = self._layers(weights, layouts, masks, collect(module, weights, masks, self.needs, self.seed))
            masks = self._choose(weights, layouts, layers, step, share)
        return masks

    def ranked(
        self, module: nn.Module, names: Iterable[str], collect: Collector
    ) -> tuple[dict[str, Layout], dict[str, Layer]]:
        """The layouts of weights, and the scores of their units as they are now. Raises as `masks` does."""
        weights, layouts = self._fitted(module, names)
        return layouts, self._layers(weights, layouts, {}, collect(module, weights, {}, self.needs, self.seed))

    def _fitted(self, module: nn.Module, names: Iterable[str]) -> tuple[dict[str, Weight], dict[str, Layout]]:
        """Weights that are finite, and how the pattern fits them."""
        weights = weights_of(module, names)
        layouts = _layouts(self.pattern, weights)
        for name, weight in weights.items():
            require_finite(name, weight.values)
        return weights, layouts

    def exchanged(
        self, module: nn.Module, layers: Mapping[str, Evidence], step: int, kept: int | None
    ) -> dict[str, Tensor]:
        """Which weights stay after an optimizer step of a regrowth: `kept`, or as many as before, in part others.

        Raises `InputError` for a weight with NaN or infinity."""
        weights, layouts = self._fitted(module, layers)
        assert self.regrow
        evidence = {name: layer.mapped(weights[name].form.canonical) for name, layer in layers.items()}
        masks = exchange(self.regrow, layouts, evidence, step / self.steps, kept)
        return {name: weights[name].form.original(mask, weights[name].values.shape) for name, mask in masks.items()}

    def _rounds(self, step: int) -> list[float]:
        """Exponents of the density: one for a schedule, which is a way of its own, or as many as the criterion asks for."""
        rounds = 1 if self.gradual or self.threshold is not None else CRITERIA[self.criterion].rounds
        return [index / rounds for index in range(1, rounds + 1)]

    def _choose(
        self,
        weights: Mapping[str, Weight],
        layouts: Mapping[str, Layout],
        layers: Mapping[str, Layer],
        step: int,
        share: float,
    ) -> dict[str, Tensor]:
        shapes = {name: weight.canonical.shape for name, weight in weights.items()}
        if self.threshold is not None:
            kept = {
                n: layouts[n].expand(_at_least(layer, weights[n].values, self.threshold), shapes[n])
                for n, layer in layers.items()
            }
        else:
            densities = self._densities(layers, step, share)
            # LAMP's ranking is of other scores than the units': their cut is none here, and is not taken for one.
            cut = densities.cut if isinstance(densities, Ranked) and self.allocation == "global" else None
            kept = {n: layouts[n].mask(layer.units, densities[n], shapes[n], cut) for n, layer in layers.items()}
        return {name: weights[name].form.original(mask, weights[name].values.shape) for name, mask in kept.items()}

    def _densities(self, layers: Mapping[str, Layer], step: int, share: float) -> dict[str, float]:
        if self.layers is not None:
            final: dict[str, float] = json.loads(self.layers)
            return {name: self._on_the_way(final[name], step) ** share for name in layers}
        density = self.density_at(step)
        assert density is not None
        allocate = ALLOCATIONS[self.allocation]
        return within_macs(allocate, layers, density**share) if self.of == "macs" else allocate(layers, density**share)

    def _layers(
        self,
        weights: Mapping[str, Weight],
        layouts: Mapping[str, Layout],
        held: Mapping[str, Tensor],
        stats: Mapping[str, Stats],
    ) -> dict[str, Layer]:
        criterion = CRITERIA[self.criterion]
        units = {}
        for name, weight in weights.items():
            scores = _units(criterion, layouts[name], weight, stats[name])
            units[name] = _last(layouts[name], scores, weight, held.get(name))
        # One dtype for all, so that scores of different layers compare exactly.
        dtype = functools.reduce(torch.promote_types, (part.dtype for part in units.values()))
        return {
            name: Layer(weight.values.shape, units[name].to(dtype), stats[name].positions or 1.0)
            for name, weight in weights.items()
        }


def fitting(pattern: Pattern, weight: Weight) -> Layout:
    """The layout of a weight. Raises `MisfitError`."""
    groups, outputs, inputs, taps = weight.canonical.shape
    return pattern.layout((groups, outputs, inputs, taps))


def _layouts(name: str, weights: Mapping[str, Weight]) -> dict[str, Layout]:
    """The pattern's layout of each weight, or one error on all that it does not fit."""
    layouts, misfits = {}, {}
    for key, weight in weights.items():
        try:
            layouts[key] = fitting(PATTERNS[name], weight)
        except MisfitError as misfit:
            misfits[key] = str(misfit)
    if misfits:
        key, reason = next(iter(misfits.items()))
        more = f" (nor {len(misfits) - 1} more)" if len(misfits) > 1 else ""
        raise InputError(f"pattern '{name}' does not fit {key}{more}: {reason}; add exclude={list(misfits)}")
    return layouts


def _units(criterion: Criterion, layout: Layout, weight: Weight, stats: Stats) -> Tensor:
    """Scores of the units (sets, units), at least in single precision: half precision has too small a range."""
    terms = criterion.score(weight.canonical, stats)
    terms = terms.to(torch.promote_types(terms.dtype, torch.float32))
    if criterion.per == "output":
        return terms.reshape(1, -1)
    return criterion.combine(layout.arrange(terms))


def _last(layout: Layout, units: Tensor, weight: Weight, held: Tensor | None) -> Tensor:
    """Scores of the units, where those that are zero rank below every other, and those removed before lowest."""
    if int(weight.values.count_nonzero()) < weight.values.numel():
        units.masked_fill_(~layout.alive(weight.canonical != 0), torch.finfo(units.dtype).min)
    if held is not None:
        units.masked_fill_(~layout.alive(weight.form.canonical(held.to(units.device))), -math.inf)
    return units


def _at_least(layer: Layer, weight: Tensor, threshold: float) -> Tensor:
    # In the weight's own precision: a weight that was set to 0.7 must count as 0.7 in bfloat16 too.
    return layer.units >= torch.tensor(threshold, dtype=weight.dtype).to(layer.units)


def require_finite(name: str, weight: Tensor, what: str = "weights") -> None:
    """Raises `InputError` for NaN and infinity."""
    low, high = weight.aminmax()  # NaN comes through
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError(
            f"{name} holds NaN or infinity: its {what} cannot be ranked; train again from a sound checkpoint"
        )
