"""Choosing channels: which units of each coupled group go, so that a share of channels, MACs or parameters is left."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from abridged.errors import InputError, UnsupportedError
from abridged.graph.capture import capture
from abridged.graph.cost import COSTS
from abridged.pruning.collect import Collector
from abridged.pruning.coupling.groups import Coupling, Group, couple
from abridged.pruning.criteria import CRITERIA
from abridged.pruning.layers import Weight, weights_of
from abridged.pruning.masks import Masks
from abridged.pruning.plan import Plan, require_finite
from abridged.pruning.ranking import count
from abridged.pruning.shrink import Constants, left, settle
from abridged.pruning.surgery import Gone, size_left, staying

Scores = npt.NDArray[np.float64]
Repair = Callable[[nn.Module, Mapping[str, Tensor]], tuple[str, ...]]  # (model, masks by parameter) → remarks


class ChannelMasks(Masks):
    """Masks of whole channels: what produces a channel that goes is zero, its weights, bias, scale and shift."""

    channels: str = ""

    @property
    def summary(self) -> tuple[str, ...]:
        """Lines that say what was touched and what was not."""
        return (self.channels, *self.notes)


@dataclass(frozen=True)
class Goal:
    """How much is to be left: exactly one of the fraction of channels removed, and the shares of MACs or parameters left."""

    sparsity: float | None = None
    macs: float | None = None
    parameters: float | None = None


def prune_channels(
    model: nn.Module,
    goal: Goal,
    *,
    example: Any,
    collector: Collector,
    criterion: str = "magnitude",
    allocation: str = "uniform",
    exact: bool = True,
    heads: bool = False,
    round_to: int = 1,
    seed: int = 0,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    repair: Repair | None = None,
) -> ChannelMasks:
    """Zero the least important channels (or attention heads alone) of every coupled group; see `prune`.

    `repair` is given the model, still whole, and masks of all that makes or reads the channels that go."""
    _check(goal, allocation, round_to, example)
    coupling = couple(capture(model, example), exact=exact)
    chosen = [g for g in coupling.groups if (g.heads or not heads) and _named(coupling, g, include, exclude)]
    if not chosen:
        why = "include and exclude leave no group of channels" if coupling.groups else "; ".join(left(coupling, ()))
        raise InputError(f"nothing to prune: {why or 'the model has no channels that could go'}")
    scores = _scores(model, coupling, chosen, criterion, collector, seed)
    frozen: list[Group] = []
    while True:
        going = [g for g in chosen if not any(g.units is f.units for f in frozen)]
        gone = _choose(coupling, going, scores, goal, allocation, round_to)
        masks = _masks(model, coupling, gone)
        before = _zero(model, masks)
        try:
            settled = settle(model, Constants(coupling), example, gone)
        finally:
            _restore(model, before)
        frozen += settled.frozen
        if not settled.frozen:
            break
    said = repair(model, _masks(model, coupling, gone, reading=True)) if repair else ()
    plan = Plan(density=_density(masks), criterion=criterion, seed=seed)
    found = ChannelMasks(model, masks, plan, left=(*left(coupling, frozen), *said))
    found.channels = (
        f"{int(gone.sum()):,} of {coupling.count:,} channels removed in {len(going)} of {len(chosen)} groups"
        f" ({criterion}, {'heads' if heads else 'channel'}, {allocation})"
    )
    found.apply()
    return found


def refuse(pattern: str, options: Mapping[str, object]) -> None:
    """Raise `InputError` for an option that a pattern has no use for."""
    for name, value in options.items():
        if value is not None:
            raise InputError(f"{name} does not go with pattern {pattern}: leave it out")


def _check(goal: Goal, allocation: str, round_to: int, example: Any) -> None:
    given = {name: value for name, value in vars(goal).items() if value is not None}
    if len(given) != 1:
        raise InputError(f"give exactly one of sparsity, macs and parameters, not {' and '.join(given) or 'none'}")
    ((name, value),) = given.items()
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= 1:
        raise InputError(f"{name} must be a number in [0, 1], not {value!r}")
    if allocation not in ("uniform", "global"):
        raise UnsupportedError(f"allocation '{allocation}' does not work on channels; use 'uniform' or 'global'")
    if isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1:
        raise InputError(f"round_to must be a whole number from 1, not {round_to!r}")
    if example is None:
        raise InputError("pattern 'channel' follows the network's channels: give example=, an input of it")


def _named(coupling: Coupling, group: Group, include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Whether a glob fits a weight that makes the group's channels, or a module above it."""
    names = [
        path
        for axis in group.axes
        if not coupling.axes[axis].ends
        for key in coupling.graph.constants[coupling.axes[axis].constant].keys
        for path in _paths(key)
    ]

    def fits(globs: Sequence[str]) -> bool:
        return any(fnmatchcase(name, glob) for name in names for glob in ([globs] if isinstance(globs, str) else globs))

    return fits(include) and not fits(exclude)


def _paths(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


# ---- which -----------------------------------------------------------------------------------------------------------


def _scores(
    model: nn.Module, coupling: Coupling, groups: Sequence[Group], criterion: str, collector: Collector, seed: int
) -> Scores:
    """(units,): over the matrices and kernels of a unit's group, the mean of its scores there, each relative to the layer's mean."""
    rule = CRITERIA[criterion]
    collector.check(criterion, rule.needs)
    axes = [coupling.axes[number] for number in sorted({number for group in groups for number in group.axes})]
    named = dict(model.named_parameters(remove_duplicate=False))
    keys = {axis.constant: coupling.graph.constants[axis.constant].keys[0] for axis in axes}
    weights = weights_of(model, [key for key in dict.fromkeys(keys.values()) if key in named and named[key].ndim > 1])
    for key, weight in weights.items():
        require_finite(key, weight.values, "channels")
    stats = collector(model, weights, {}, rule.needs, seed)
    total, layers = np.zeros(coupling.count), np.zeros(coupling.count)
    terms: dict[str, Tensor] = {}
    for axis in axes:
        key = keys[axis.constant]
        if key not in weights or (rule.per == "output" and axis.ends):
            continue
        if key not in terms:
            found = rule.score(weights[key].canonical, stats[key]).detach().cpu()
            terms = {key: found.to(torch.promote_types(found.dtype, torch.float32))}
        lines = _lines(rule.combine, terms[key], weights[key], axis.axis, rule.per == "output").double().numpy()
        movable = axis.units >= 0
        places = np.bincount(axis.units[movable], minlength=coupling.count)
        sums = np.bincount(axis.units[movable], lines[movable], minlength=coupling.count)
        present = places > 0
        total[present] += sums[present] / places[present] / max(abs(lines).mean(), 1e-300)
        layers[present] += 1
    return total / np.maximum(layers, 1)


def _lines(combine: Callable[[Tensor], Tensor], terms: Tensor, weight: Weight, axis: int, outputs: bool) -> Tensor:
    """(n,): the score of each place along one axis of a parameter."""
    if outputs:
        return terms.reshape(-1)
    return combine(weight.form.original(terms, weight.values.shape).movedim(axis, 0).flatten(1))


def _choose(
    coupling: Coupling, groups: Sequence[Group], scores: Scores, goal: Goal, allocation: str, round_to: int
) -> Gone:
    """The units that go. A goal in MACs or parameters is met from below by bisection over the share of channels."""
    if not groups:
        raise InputError("nothing to prune: forward bears no cut; see shrink's reasons")

    def at(sparsity: float) -> Gone:
        return _at(coupling, groups, scores, sparsity, allocation, round_to)

    if goal.sparsity is not None:
        return at(goal.sparsity)
    weigh = _macs if goal.macs is not None else _parameters
    target = goal.macs if goal.macs is not None else goal.parameters
    whole = weigh(coupling, np.zeros(coupling.count, bool))
    least = weigh(coupling, at(1.0)) / whole
    assert target is not None
    if least > target:
        what = "macs" if goal.macs is not None else "parameters"
        raise InputError(f"{what}={target}: with one channel left in every group {least:.3f} are left; ask for more")
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if weigh(coupling, at(middle)) <= target * whole else (middle, high)
    return at(high)


def _at(
    coupling: Coupling, groups: Sequence[Group], scores: Scores, sparsity: float, allocation: str, round_to: int
) -> Gone:
    gone = np.zeros(coupling.count, bool)
    if allocation == "global":
        every = np.concatenate([group.units for group in groups])
        cut = np.sort(scores[every])[len(every) - count(1 - sparsity, len(every)) :]
        bound = cut[0] if len(cut) else math.inf
    for group in groups:
        size = len(group.units)
        keep = count(1 - sparsity, size) if allocation == "uniform" else int((scores[group.units] >= bound).sum())
        keep = _rounded(keep, size, round_to)
        order = np.argsort(-scores[group.units], kind="stable")
        gone[group.units[order[keep:]]] = True
    return gone


def _rounded(keep: int, size: int, multiple: int) -> int:
    """The nearest multiple, at least one, at most all.

    >>> _rounded(11, 64, 8), _rounded(0, 64, 1), _rounded(3, 6, 8)
    (8, 1, 6)
    """
    return min(size, max(1, round(keep / multiple)) * multiple)


# ---- what it costs ---------------------------------------------------------------------------------------------------


def _parameters(coupling: Coupling, gone: Gone) -> float:
    shares = _shares(coupling, gone)
    constants = coupling.graph.constants.items()
    return sum(c.tensor.numel() * shares.get(name, 1.0) for name, c in constants if isinstance(c.tensor, nn.Parameter))


def _shares(coupling: Coupling, gone: Gone) -> dict[str, float]:
    """By constant: the share of its elements that stays."""
    shares: dict[str, float] = {}
    for axis in coupling.axes:
        shares[axis.constant] = shares.get(axis.constant, 1.0) * float(staying(axis.units, gone).mean())
    return shares


def _macs(coupling: Coupling, gone: Gone) -> float:
    """MACs of the cut network: each node's, in the sizes that are left."""
    sizes = {name: size_left(coupling, name, gone) for name in coupling.graph.values}
    return sum(
        COSTS[node.op](node, tuple(sizes[n] if n else () for n in node.inputs), tuple(sizes[n] for n in node.outputs))
        for node in coupling.graph
        if node.op in COSTS
    )


# ---- zeros -----------------------------------------------------------------------------------------------------------


def _masks(model: nn.Module, coupling: Coupling, gone: Gone, *, reading: bool = False) -> dict[str, Tensor]:
    """By parameter: False along every axis that makes (with `reading`, or reads) channels that go."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    masks: dict[str, Tensor] = {}
    for axis in coupling.axes:
        key = coupling.graph.constants[axis.constant].keys[0]
        stays = staying(axis.units, gone)
        if (axis.ends and not reading) or stays.all() or key not in parameters:
            continue
        shape = [-1 if i == axis.axis else 1 for i in range(parameters[key].ndim)]
        line = torch.from_numpy(stays).reshape(shape).expand(parameters[key].shape)
        masks[key] = (masks[key] & line if key in masks else line.clone()).to(parameters[key].device)
    return masks


@torch.no_grad()
def _zero(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Write the zeros; the weights as they were."""
    before = {name: model.get_parameter(name).detach().clone() for name in masks}
    for name, mask in masks.items():
        model.get_parameter(name).masked_fill_(~mask, 0)
    return before


@torch.no_grad()
def _restore(model: nn.Module, before: Mapping[str, Tensor]) -> None:
    for name, tensor in before.items():
        model.get_parameter(name).copy_(tensor)


def _density(masks: Mapping[str, Tensor]) -> float:
    return sum(int(m.count_nonzero()) for m in masks.values()) / max(1, sum(m.numel() for m in masks.values()))
