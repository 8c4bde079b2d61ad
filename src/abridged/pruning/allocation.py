"""Allocations: how dense each layer becomes, so that the whole reaches its density. One function each in `ALLOCATIONS`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from abridged.errors import UnsupportedError
from abridged.pruning.criteria import left_share
from abridged.pruning.ranking import count, kth_largest
from abridged.tables import Table

HALVINGS = 50  # of the interval in which the density that meets a budget of MACs is sought


@dataclass(frozen=True, eq=False)
class Layer:
    """One weight that is pruned: its own shape, the scores of its units (sets, units), its MACs per weight and sample."""

    shape: torch.Size
    units: Tensor
    positions: float = 1.0

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def members(self) -> int:
        """Weights in one unit."""
        return self.size // self.units.numel()


class Ranked(dict[str, float]):
    """Densities that one ranking of all units gave, and the score at which it was cut."""

    cut: float | None = None


# (layers by parameter name, density of all their weights) → density of each.
Allocation = Callable[[Mapping[str, Layer], float], dict[str, float]]
ALLOCATIONS: Table[Allocation] = Table("allocation")


@ALLOCATIONS.entry("uniform")
def uniform(layers: Mapping[str, Layer], density: float) -> dict[str, float]:
    """Every layer the same: d_l = d (the baseline of Gale et al. 2019, "The State of Sparsity in Deep Neural Networks")."""
    return dict.fromkeys(layers, density)


@ALLOCATIONS.entry("global")
def global_(layers: Mapping[str, Layer], density: float) -> dict[str, float]:
    """One ranking across all layers: d_l = |{i in l : s_i among the d · N highest}| / n_l (Han et al. 2015).

    Exact over the whole; of equal scores those of earlier layers stay. Where the units of layers differ in size (rows, say),
    they are ranked by score per weight, and the whole is exact to within one unit. Raises `UnsupportedError` for a pattern that
    fixes the density inside small groups, such as N:M, since there nothing is left to distribute.
    """
    for name, layer in layers.items():
        if layer.units.shape[0] > 1:
            raise UnsupportedError(
                f"{name}: this pattern fixes the density inside each group of {layer.units.shape[1]},"
                " so layers cannot compete; use allocation='uniform'"
            )
    if len({layer.members for layer in layers.values()}) > 1:
        return _by_weight(layers, density)
    units = {name: layer.units for name, layer in layers.items()}
    keep = count(density, sum(part.numel() for part in units.values()))
    if keep == 0:
        return dict.fromkeys(layers, 0.0)
    cut = kth_largest(list(units.values()), keep)
    kept = {name: int((part > cut).count_nonzero()) for name, part in units.items()}
    spare = keep - sum(kept.values())
    for name, part in units.items():
        tied = min(spare, int((part == cut).count_nonzero())) if spare else 0
        kept[name] += tied
        spare -= tied
    densities = Ranked({name: kept[name] / part.numel() for name, part in units.items()})
    densities.cut = cut
    return densities


@ALLOCATIONS.entry("erdos-renyi", "er")
def erdos_renyi(layers: Mapping[str, Layer], density: float) -> dict[str, float]:
    """Thin layers stay denser: d_l = min(1, ε (I + O) / (I · O)), kernels not counted (Mocanu et al. 2018, "SET")."""
    return _scaled(layers, density, {name: _share(layer.shape[:2]) for name, layer in layers.items()})


@ALLOCATIONS.entry("erk")
def erk(layers: Mapping[str, Layer], density: float) -> dict[str, float]:
    """The same with the kernel: d_l = min(1, ε (I + O + kh + kw) / (I · O · kh · kw)) (Evci et al. 2020, "RigL").

    ε is such that the whole has its density; I is the number of inputs of one group.
    """
    return _scaled(layers, density, {name: _share(layer.shape) for name, layer in layers.items()})


@ALLOCATIONS.entry("lamp")
def lamp(layers: Mapping[str, Layer], density: float) -> dict[str, float]:
    """One ranking of each unit's share of what is left in its layer: s² / Σ_{s' ≥ s} s'² (Lee et al. 2021, "LAMP").

    The strongest unit of each layer has share 1, so that no layer collapses before the others are empty but for one.
    """
    shares = {}
    for name, layer in layers.items():
        row = layer.units.reshape(-1)
        share = left_share(row.clamp_min(0))
        # Units that are zero or removed go first, here as everywhere.
        shares[name] = Layer(layer.shape, torch.where(row < 0, row.double(), share)[None], layer.positions)
    return global_(shares, density)


def _share(shape: Sequence[int]) -> float:
    return sum(shape) / math.prod(shape)


def _scaled(layers: Mapping[str, Layer], density: float, shares: Mapping[str, float]) -> dict[str, float]:
    """min(1, ε · share) of each layer, ε such that density · N weights stay."""
    if density == 1:
        return dict.fromkeys(layers, 1.0)
    densities: dict[str, float] = {}
    left = density * sum(layer.size for layer in layers.values())
    # From the largest share down: once one layer is not full, none with a smaller share is.
    for name in sorted(layers, key=lambda name: -shares[name]):
        open_ = sum(layers[other].size * shares[other] for other in layers if other not in densities)
        densities[name] = min(1.0, left / open_ * shares[name])
        if densities[name] < 1:
            scale = left / open_
            densities |= {other: scale * shares[other] for other in layers if other not in densities}
            break
        left -= layers[name].size
    return {name: min(1.0, max(0.0, densities[name])) for name in layers}


def _by_weight(layers: Mapping[str, Layer], density: float) -> dict[str, float]:
    """Units of several sizes in the order of their score per weight, until density · N weights are reached."""
    flat = [(layer.units.double() / layer.members).reshape(-1).cpu() for layer in layers.values()]
    sizes = torch.tensor([layer.members for layer in layers.values()])
    owner = torch.repeat_interleave(torch.arange(len(flat)), torch.tensor([len(part) for part in flat]))
    order = owner[torch.cat(flat).argsort(descending=True, stable=True)]
    reached = sizes[order].cumsum(0)
    # The last unit stays where that is nearer to the target than leaving it.
    kept = order[reached - sizes[order] / 2 <= density * float(reached[-1])]
    number = torch.bincount(kept, minlength=len(flat)).tolist()
    return {name: number[i] / len(flat[i]) for i, name in enumerate(layers)}


def within_macs(allocate: Allocation, layers: Mapping[str, Layer], density: float) -> dict[str, float]:
    """The same allocation for the density at which that fraction of the multiply-accumulates stays, found by halving."""
    macs = {name: layer.size * layer.positions for name, layer in layers.items()}
    target = density * sum(macs.values())
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        given = allocate(layers, middle)
        low, high = (low, middle) if sum(given[name] * macs[name] for name in layers) > target else (middle, high)
    return allocate(layers, high if density == 1 else low)
