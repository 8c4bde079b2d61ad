"""What to remove, as data, and the one place where criterion, pattern, allocation and schedule meet."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from abridged.errors import InputError, UnsupportedError
from abridged.pruning.allocation import ALLOCATIONS, Layer
from abridged.pruning.criteria import CRITERIA, Stats
from abridged.pruning.patterns import PATTERNS, Pattern
from abridged.pruning.regrow import Evidence, Regrowth, exchange
from abridged.pruning.schedules import SCHEDULES


@dataclass(frozen=True)
class Plan:
    """How much goes, by which rules, until when. Either `density` (of the end) or `threshold` is set."""

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

    def __post_init__(self) -> None:
        # An unknown name raises here, before anything is touched.
        CRITERIA[self.criterion]
        PATTERNS[self.pattern]
        ALLOCATIONS[self.allocation]
        SCHEDULES[self.schedule]

    def due(self, step: int) -> bool:
        """Whether the masks are chosen anew after this optimizer step (1 is the first)."""
        if self.regrow:
            return step % self.every == 0 and self.regrow.due(step / self.steps)
        return step == self.steps or (step < self.steps and step % self.every == 0)

    def density_at(self, step: int) -> float | None:
        """Density after an optimizer step: 1 − sparsity · f(step / steps); exactly `density` from the last one on."""
        t = min(step / self.steps, 1.0) if self.steps else 1.0
        return None if self.density is None else self.density + (1 - self.density) * (1 - SCHEDULES[self.schedule](t))

    def masks(self, weights: Mapping[str, Tensor], held: Mapping[str, Tensor], step: int) -> dict[str, Tensor]:
        """Which weights stay (True) after an optimizer step.

        Whatever the criterion says, units that `held` removes already go first, then units that are zero. Raises
        `InputError` for a weight with NaN or infinity."""
        layers = self._layers(weights, held)
        pattern, density = PATTERNS[self.pattern], self.density_at(step)
        if density is None:
            return {
                name: _at_least(pattern, name, layer, weights[name], self.threshold) for name, layer in layers.items()
            }
        densities = ALLOCATIONS[self.allocation](layers, density)
        return {name: pattern.mask(layer.units, densities[name], layer.shape) for name, layer in layers.items()}

    def exchanged(self, layers: Mapping[str, Evidence], step: int) -> dict[str, Tensor]:
        """Which weights stay after an optimizer step of a regrowth: as many as before, in part others.

        Raises `InputError` for a weight with NaN or infinity."""
        for name, layer in layers.items():
            _require_finite(name, layer.weight)
        assert self.regrow
        return exchange(self.regrow, PATTERNS[self.pattern], layers, step / self.steps)

    def _layers(self, weights: Mapping[str, Tensor], held: Mapping[str, Tensor]) -> dict[str, Layer]:
        # One dtype for all, so that scores of different layers compare exactly; half precision has too small a range.
        dtype = functools.reduce(torch.promote_types, (w.dtype for w in weights.values()), torch.float32)
        layers = {}
        for name, weight in weights.items():
            _require_finite(name, weight)
            scores = CRITERIA[self.criterion](weight, Stats(name, self.seed)).to(dtype)
            units = _last(PATTERNS[self.pattern], scores, weight, held.get(name))
            layers[name] = Layer(weight.shape, units)
        return layers


def _last(pattern: Pattern, scores: Tensor, weight: Tensor, held: Tensor | None) -> Tensor:
    """Scores of the units, where those that are zero rank below every other, and those removed before lowest."""
    units = pattern.score(scores)
    if int(weight.count_nonzero()) < weight.numel():
        units.masked_fill_(~pattern.alive(weight != 0), torch.finfo(scores.dtype).min)
    if held is not None:
        units.masked_fill_(~pattern.alive(held.to(weight.device)), -math.inf)
    return units


def _at_least(pattern: Pattern, name: str, layer: Layer, weight: Tensor, threshold: float | None) -> Tensor:
    if layer.units.shape[0] > 1:
        raise UnsupportedError(f"{name}: a threshold cannot keep a pattern of groups; give sparsity")
    # In the weight's own precision: a weight that was set to 0.7 must count as 0.7 in bfloat16 too.
    bound = torch.tensor(threshold, dtype=weight.dtype).to(layer.units)
    return pattern.expand(layer.units >= bound, layer.shape)


def _require_finite(name: str, weight: Tensor) -> None:
    low, high = weight.aminmax()  # NaN comes through
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError(
            f"{name} holds NaN or infinity: its weights cannot be ranked; train again from a sound checkpoint"
        )
