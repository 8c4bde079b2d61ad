"""Sensitivity: how much the loss grows when one layer alone is pruned, as curves; and the allocation that follows from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from abridged.calibration.gradients import calibration_batches
from abridged.data import Data
from abridged.data.evaluate import device_of, judging
from abridged.errors import InputError, expect
from abridged.files import write_atomic
from abridged.progress import bar
from abridged.pruning.collect import Collector
from abridged.pruning.plan import Plan
from abridged.pruning.select import select

SPARSITIES = (0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0)


@dataclass(frozen=True)
class Sensitivity:
    """Loss at each sparsity for each layer pruned alone: `losses[name][i]` at `sparsities[i]`; the first is 0, the dense loss."""

    sparsities: tuple[float, ...]
    losses: Mapping[str, tuple[float, ...]]
    sizes: Mapping[str, int]  # weights of each layer
    criterion: str = "magnitude"
    samples: int = 0

    @property
    def dense(self) -> float:
        """The loss of the model as it is."""
        return next(iter(self.losses.values()))[0]

    def allocate(self, density: float, costs: Mapping[str, float] | None = None) -> dict[str, float]:
        """Density per layer that keeps Σ cost · density at the share `density` with the least sum of losses.

        The losses are taken for additive, and each curve for its lower convex hull; then the steepest pieces are kept first
        until the budget is spent, which is the optimum (a fractional knapsack). `costs`: of a whole layer, its weights
        where it is not given, or its MACs."""
        cost = {name: float(self.sizes[name] if costs is None else costs[name]) for name in self.losses}
        pieces = []
        for name, losses in self.losses.items():
            hull = _hull([(1 - s, loss) for s, loss in zip(reversed(self.sparsities), reversed(losses), strict=True)])
            for (low, worse), (high, better) in pairwise(hull):
                pieces.append(((worse - better) / (cost[name] * (high - low)), name, high - low))
        kept, left = dict.fromkeys(self.losses, 0.0), density * sum(cost.values())
        for _, name, width in sorted(
            pieces, key=lambda piece: -piece[0]
        ):  # stable: of equal ones the earlier layer first
            part = min(width, max(0.0, left) / cost[name])
            kept[name] += part
            left -= part * cost[name]
        return {name: min(1.0, share) for name, share in kept.items()}

    def __str__(self) -> str:
        width = max(map(len, self.losses))
        head = f"{'loss at sparsity':{width}} " + " ".join(f"{100 * s:7.4g}%" for s in self.sparsities)
        rows = [f"{name:{width}} " + " ".join(f"{loss:8.4g}" for loss in row) for name, row in self.losses.items()]
        return "\n".join([head, *rows])

    def plot(self, path: str | Path) -> Path:
        """Write the curves as one self-contained HTML page and return its path."""
        import plotly.graph_objects as go

        figure = go.Figure()
        for name, losses in self.losses.items():
            figure.add_scatter(x=[100 * s for s in self.sparsities], y=list(losses), name=name, mode="lines+markers")
        title = f"Loss when one layer alone is pruned ({self.criterion}, {self.samples:,} samples)"
        figure.update_layout(
            title=title, xaxis_title="Sparsity of the layer, %", yaxis_title="Loss", template="plotly_white"
        )
        write_atomic(Path(path), figure.to_html(include_plotlyjs=True).encode())
        return Path(path)


def sensitivity(
    model: nn.Module,
    data: Data,
    *,
    sparsities: Sequence[float] = SPARSITIES,
    criterion: str = "magnitude",
    pattern: str = "unstructured",
    samples: int = 1024,
    seed: int = 0,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
) -> Sensitivity:
    """Prune each layer alone to each sparsity and measure the loss on `samples` training samples; the model stays as it is.

    What is a layer and which weights go is as in `prune`. Give the result to `prune` as its allocation. Raises `InputError`
    for sparsities outside (0, 1], data without labels, and whatever `prune` refuses.
    """
    expect(model, nn.Module, "sensitivity takes an nn.Module")
    if not isinstance(data, Data):
        raise InputError(f"sensitivity needs data=ab.Data(…), not {type(data).__name__}")
    bad = [s for s in sparsities if isinstance(s, bool) or not isinstance(s, (int, float)) or not 0 < s <= 1]
    if bad or not sparsities:
        raise InputError(f"sparsities must be numbers in (0, 1], not {bad or sparsities!r}")
    grid = tuple(sorted({float(s) for s in sparsities}))
    names, _, _ = select(model, include, exclude)
    collector = Collector(data, None, samples)
    batches = list(calibration_batches(data, samples, seed))
    chosen = {}
    for s in grid:
        plan = Plan(1 - s, None, criterion, pattern, "uniform", seed=seed)
        plan.check()
        collector.check(criterion, plan.needs)
        chosen[s] = plan.masks(model, names, {}, 0, collector)
    losses: dict[str, list[float]] = {name: [] for name in names}
    with judging(model), bar("Sensitivity", total=len(names) * len(grid)) as task:
        dense = _loss(model, data, batches, {})
        for name in names:
            losses[name].append(dense)
            for s in grid:
                weight = model.get_parameter(name)
                losses[name].append(_loss(model, data, batches, {name: weight * chosen[s][name]}))
                task.advance()
    sizes = {name: model.get_parameter(name).numel() for name in names}
    rows = {name: tuple(row) for name, row in losses.items()}
    return Sensitivity((0.0, *grid), rows, sizes, criterion, sum(batch.size for batch in batches))


def _loss(model: nn.Module, data: Data, batches: Sequence[Any], changed: dict[str, Tensor]) -> float:
    total, device = 0.0, device_of(model)
    for batch in batches:
        if batch.y is None:
            raise InputError("train: there are no labels: the loss needs them")
        x, y = batch.to(device)
        outputs = functional_call(model, changed, x if isinstance(x, tuple) else (x,))
        total += float(data.loss_function(outputs, y)) * batch.size
    mean: float = total / sum(batch.size for batch in batches)
    if not math.isfinite(mean):
        raise InputError(f"the loss on the training samples is {mean}: no sensitivity can be told")
    return mean


def _hull(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The lower convex hull of points in the order of x, from the first to the last, never rising towards the last.

    >>> _hull([(0.0, 4.0), (0.5, 3.5), (0.7, 0.0), (1.0, 1.0)])
    [(0.0, 4.0), (0.7, 0.0), (1.0, 0.0)]
    """
    hull: list[tuple[float, float]] = []
    least = float("inf")
    for x, y in points:  # a denser layer can always do what a sparser one does
        least = min(least, y)
        while len(hull) > 1 and (hull[-1][1] - hull[-2][1]) * (x - hull[-2][0]) >= (least - hull[-2][1]) * (
            hull[-1][0] - hull[-2][0]
        ):
            hull.pop()
        hull.append((x, least))
    return hull
