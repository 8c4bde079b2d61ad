"""Choosing channels: which units of each coupled group go, so that a share of channels, MACs or parameters is left."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from abridged.errors import InputError, UnsupportedError
from abridged.globs import check, listed, matches, some
from abridged.graph.cost import COSTS
from abridged.graph.graph import Node
from abridged.pruning.collect import Collector
from abridged.pruning.coupled import coupled
from abridged.pruning.coupling.groups import Coupling, Group, Units
from abridged.pruning.criteria import CRITERIA
from abridged.pruning.layers import Weight, weights_of
from abridged.pruning.masks import Masks
from abridged.pruning.plan import Plan, require_finite
from abridged.pruning.ranking import count
from abridged.pruning.shrink import Constants, left, settle, silent
from abridged.pruning.surgery import Gone, channels_of, size_left, staying, widths

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


@dataclass(frozen=True, eq=False)
class Channels:
    """The groups of a model whose channels may go, and how much each channel matters."""

    coupling: Coupling
    groups: tuple[Group, ...]
    scores: Scores  # (units,)
    round_to: int = 1
    steps: Units | None = None  # (units,): a multiple of how many units stays, so that one of `round_to` channels does
    left: tuple[str, ...] = ()  # lines on groups that keep all of their channels

    def gone(self, sparsities: Sequence[float]) -> Gone:
        """The units that go at a sparsity of each group; the nearest multiple of its step stays, and one at least."""
        gone = np.zeros(self.coupling.count, bool)
        for group, sparsity in zip(self.groups, sparsities, strict=True):
            size = len(group.units)
            keep = _rounded(count(1 - sparsity, size), size, _step(self.steps, group))
            order = np.argsort(-self.scores[group.units], kind="stable")
            gone[group.units[order[keep:]]] = True
        return gone

    def without(self, frozen: Sequence[Group]) -> Channels:
        """The same but for groups that forward does not bear to be cut. Raises `InputError` when none is left."""
        groups = tuple(g for g in self.groups if not any(g.units is f.units for f in frozen))
        if not groups:
            raise InputError(f"nothing to prune: {'; '.join([*left(self.coupling, frozen), *self.left])}")
        return replace(self, groups=groups)


def prune_channels(
    model: nn.Module,
    goal: Goal,
    *,
    example: Any,
    collector: Collector,
    criterion: str = "magnitude",
    allocation: str | Mapping[str, float] = "uniform",
    exact: bool = True,
    heads: bool = False,
    round_to: int = 1,
    seed: int = 0,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    repair: Repair | None = None,
) -> ChannelMasks:
    """Zero the least important channels (or attention heads alone) of every coupled group; see `prune`.

    An allocation by globs says the sparsity of each group itself, by the first glob that fits a weight that makes its
    channels; the other groups are left. `repair` is given the model, still whole, and masks of all that makes or reads the
    channels that go."""
    if isinstance(allocation, Mapping):
        include = tuple(allocation)
    every = channels(
        model, example, collector, criterion=criterion, exact=exact, heads=heads, round_to=round_to, seed=seed,
        include=include, exclude=exclude,
    )  # fmt: skip
    going, gone, frozen = _borne(model, every, goal, allocation, example)
    _check_removes(going, goal, gone)
    zero = _among(going.groups, silent(every.coupling)) & ~gone
    masks = masks_of(model, every.coupling, gone)
    said = repair(model, masks_of(model, every.coupling, gone, reading=True)) if repair else ()
    plan = Plan(density=_density(masks), criterion=criterion, seed=seed)
    found = ChannelMasks(model, masks, plan, left=(*left(every.coupling, frozen), *every.left, *said))
    how = allocation if isinstance(allocation, str) else "per layer"
    found.channels = (
        f"{_amount(every.coupling, gone, heads)} removed in {len(going.groups)} of {len(every.coupling.groups)} groups"
        f" ({criterion}, {'heads' if heads else 'channel'}, {how})"
    )
    found.apply()
    if zero.any():
        spare = channels_of(every.coupling)[zero].sum()
        found.remark(f"{spare:,} channels were zero already and are not held, since fewer were to go")
    return found


def _borne(
    model: nn.Module, every: Channels, goal: Goal, allocation: str | Mapping[str, float], example: Any
) -> tuple[Channels, Gone, list[Group]]:
    """The groups that can be cut, the units of them that go, and the other groups, with the reason."""
    frozen: list[Group] = []
    going, gone, tried = every, _choose(every, goal, allocation), None
    while True:
        with zeroed(model, masks_of(model, every.coupling, gone)):
            constants = Constants(every.coupling)
            if tried is not None and np.array_equal(gone, tried) and not constants.kept(gone):
                return going, gone, frozen
            settled = settle(model, constants, example, gone)
        if not settled.frozen:
            return going, gone, frozen
        tried = settled.gone
        frozen += settled.frozen
        going = every.without(frozen)
        gone = _choose(going, goal, allocation)


def _amount(coupling: Coupling, gone: Gone, heads: bool) -> str:
    if heads:
        return f"{gone.sum():,} of {sum(len(group.units) for group in coupling.groups if group.heads):,} heads"
    channels = channels_of(coupling)
    return f"{channels[gone].sum():,} of {channels.sum():,} channels"


def _among(groups: Sequence[Group], units: Gone) -> Gone:
    """Those of the units that are of these groups."""
    found = np.zeros_like(units)
    for group in groups:
        found[group.units] = units[group.units]
    return found


def channels(
    model: nn.Module,
    example: Any,
    collector: Collector,
    *,
    criterion: str,
    exact: bool,
    heads: bool,
    round_to: int,
    seed: int,
    include: Sequence[str],
    exclude: Sequence[str],
) -> Channels:
    """What globs choose of a model's coupled groups, ranked. Raises `InputError` when that is nothing."""
    refuse_learnt(criterion)
    if isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1:
        raise InputError(f"round_to must be a whole number from 1, not {round_to!r}")
    if example is None:
        raise InputError("pattern 'channel' follows the network's channels: give example=, an input of it")
    include, exclude = listed(include), listed(exclude)
    coupling = coupled(model, example, exact=exact)
    _check_plain(coupling)
    makers = {number: makers_of(coupling, group) for number, group in enumerate(coupling.groups)}
    names = (key for constant in coupling.graph.constants.values() for key in constant.keys)
    check(names, (*include, *exclude), "parameter and no module that has one")
    # What no parameter makes, such as a table of coordinates that a layer reads, is not pruned.
    kind = [n for n, group in enumerate(coupling.groups) if makers[n] and (group.heads or not heads)]
    chosen = [n for n in kind if matches(makers[n], include) and not matches(makers[n], exclude)]
    steps = _steps(coupling, round_to) if round_to > 1 else None
    narrow = [n for n in chosen if len(coupling.groups[n].units) <= _step(steps, coupling.groups[n]) > 1]
    apart = {
        "left by include and exclude": [n for n in kind if n not in chosen],
        f"left, since round_to={round_to} keeps all of their channels": narrow,
    }
    lines = tuple(f"{why}: {some([makers[n][0] for n in them])}" for why, them in apart.items() if them)
    groups = tuple(coupling.groups[n] for n in chosen if n not in narrow)
    if not groups:
        why = "; ".join([*lines, *left(coupling, ())])
        none = "attention heads that could go" if heads else "channels that could go"
        raise InputError(f"nothing to prune: {why or f'the model has no {none}'}")
    scores = _last(_scores(model, coupling, groups, criterion, collector, seed), silent(coupling))
    return Channels(coupling, groups, scores, round_to, steps, lines)


def _check_plain(coupling: Coupling) -> None:
    for key in (key for constant in coupling.graph.constants.values() for key in constant.keys):
        path, _, rest = key.partition("parametrizations.")
        if rest:
            name = rest.partition(".")[0]
            raise UnsupportedError(
                f"{path}{name} is made by a parametrization, such as weight_norm, and channels cannot be zeroed through it:"
                f" torch.nn.utils.parametrize.remove_parametrizations(layer, '{name}') first"
            )


def makers_of(coupling: Coupling, group: Group) -> list[str]:
    """The names of the weights, biases and scales that make a group's channels, in the order of the graph."""
    return [
        key
        for axis in group.axes
        if not coupling.axes[axis].ends
        for key in coupling.graph.constants[coupling.axes[axis].constant].keys
    ]


def _steps(coupling: Coupling, multiple: int) -> Units:
    """(units,): how many units at a time make a multiple of channels in every width that a layer reads or writes."""
    steps = np.ones(coupling.count, np.int64)
    for counts in widths(coupling):
        steps = np.where(counts > 0, np.lcm(steps, multiple // np.gcd(multiple, counts)), steps)
    return steps


def _step(steps: Units | None, group: Group) -> int:
    return 1 if steps is None else int(np.lcm.reduce(steps[group.units]))


def refuse_learnt(criterion: str) -> None:
    """Raise `UnsupportedError` for a criterion that needs a training."""
    if "movement" in CRITERIA[criterion].needs:
        raise UnsupportedError(
            f"criterion '{criterion}' is learnt while training, and channels are pruned at once: choose another such as"
            " 'taylor', or prune weights by a schedule such as 'cubic'"
        )


def refuse(pattern: str, options: Mapping[str, object]) -> None:
    """Raise `InputError` for an option that a pattern has no use for."""
    for name, value in options.items():
        if value is not None:
            raise InputError(f"{name} does not go with pattern {pattern}: leave it out")


def check_goal(goal: Goal, allocation: str | Mapping[str, float]) -> None:
    """Raise `InputError` or `UnsupportedError` for an amount that is none, and for one that goes beside an allocation."""
    given = {name: value for name, value in vars(goal).items() if value is not None}
    if isinstance(allocation, Mapping):
        if given:
            raise InputError(f"allocation says what to prune and how much: leave out {next(iter(given))}")
        return
    if len(given) != 1:
        raise InputError(f"give exactly one of sparsity, macs and parameters, not {' and '.join(given) or 'none'}")
    ((name, value),) = given.items()
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= 1:
        raise InputError(f"{name} must be a number in [0, 1], not {value!r}")
    if allocation not in ("uniform", "global"):
        raise UnsupportedError(f"allocation '{allocation}' does not work on channels; use 'uniform' or 'global'")


def _check_removes(going: Channels, goal: Goal, gone: Gone) -> None:
    """Raises `InputError` where no channel goes."""
    if gone.any():
        return
    ((name, value),) = [(n, v) for n, v in vars(goal).items() if v is not None] or [("allocation", None)]
    if name == "sparsity" and value:
        widest = max(len(group.units) for group in going.groups)
        few = "one" if going.round_to == 1 else f"a step of {going.round_to}"
        raise InputError(
            f"sparsity={value} removes no channel: of the widest group, {widest}, it is less than half of {few}"
        )
    raise InputError(
        f"{name}{'' if value is None else f'={value}'} removes nothing: ask for"
        f" {'more' if name in ('sparsity', 'allocation') else 'a smaller share'}"
    )


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


def _last(scores: Scores, silent: Gone) -> Scores:
    """The same, where channels that are zero already rank below every other."""
    return scores - silent * (1 + np.ptp(scores)) if len(scores) else scores


def _lines(combine: Callable[[Tensor], Tensor], terms: Tensor, weight: Weight, axis: int, outputs: bool) -> Tensor:
    """(n,): the score of each place along one axis of a parameter."""
    if outputs:
        return terms.reshape(-1)
    return combine(weight.form.original(terms, weight.values.shape).movedim(axis, 0).flatten(1))


def _choose(found: Channels, goal: Goal, allocation: str | Mapping[str, float]) -> Gone:
    """The units that go. A goal in MACs or parameters is met from below, by bisection over the share of channels; where one
    share more or less decides about channels of many groups at once, those that matter most stay as far as the goal allows."""
    if isinstance(allocation, Mapping):
        return found.gone([sparsity_of(makers_of(found.coupling, group), allocation) for group in found.groups])

    def at(sparsity: float) -> Gone:
        return found.gone(_spread(found, sparsity, str(allocation)))

    if goal.sparsity is not None:
        return at(goal.sparsity)
    weigh = macs if goal.macs is not None else _parameters
    target = goal.macs if goal.macs is not None else goal.parameters
    whole = weigh(found.coupling, np.zeros(found.coupling.count, bool))
    least = weigh(found.coupling, at(1.0)) / whole
    assert target is not None
    if least > target:
        what = "macs" if goal.macs is not None else "parameters"
        few = "one channel" if found.round_to == 1 else f"{found.round_to} channels"
        share = next((t for t in (f"{least:.{n}f}" for n in range(3, 17)) if float(t) > target), f"{least}")
        raise InputError(f"{what}={target}: with {few} left in every group {share} are left; ask for more")
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if weigh(found.coupling, at(middle)) <= target * whole else (middle, high)
    gone, fewer = at(high), at(low)
    between = [group.units[gone[group.units] & ~fewer[group.units]] for group in found.groups]
    for units in sorted((u for u in between if len(u)), key=lambda u: -found.scores[u].max()):
        less = gone.copy()
        less[units] = False
        if weigh(found.coupling, less) <= target * whole:
            gone = less
    return gone


def sparsity_of(names: Sequence[str], allocation: Mapping[str, float]) -> float:
    """What the first glob that fits says of the group that these weights make."""
    return next(sparsity for glob, sparsity in allocation.items() if matches(names, (glob,)))


def _spread(found: Channels, sparsity: float, allocation: str) -> list[float]:
    """The sparsity of each group: the same, or what a ranking over all groups leaves of each."""
    if allocation == "uniform":
        return [sparsity] * len(found.groups)
    every = np.concatenate([found.scores[group.units] for group in found.groups])
    cut = np.sort(every)[len(every) - count(1 - sparsity, len(every)) :]
    bound = cut[0] if len(cut) else math.inf
    return [1 - int((found.scores[group.units] >= bound).sum()) / len(group.units) for group in found.groups]


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


def macs(coupling: Coupling, gone: Gone) -> float:
    """MACs of the cut network."""
    return float(macs_by_node(coupling, gone).sum())


def macs_by_node(coupling: Coupling, gone: Gone) -> Scores:
    """(nodes that multiply,): MACs of each node of the cut network, in the sizes that are left."""
    nodes = [node for node in coupling.graph if node.op in COSTS]
    names = {name for node in nodes for name in (*node.inputs, *node.outputs) if name}
    sizes = {name: size_left(coupling, name, gone) for name in names}

    def of(node: Node) -> int:
        inputs = tuple(sizes[name] if name else () for name in node.inputs)
        return COSTS[node.op](node, inputs, tuple(sizes[name] for name in node.outputs))

    return np.array([of(node) for node in nodes], np.float64)


# ---- zeros -----------------------------------------------------------------------------------------------------------


def masks_of(model: nn.Module, coupling: Coupling, gone: Gone, *, reading: bool = False) -> dict[str, Tensor]:
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


@contextmanager
def zeroed(model: nn.Module, masks: Mapping[str, Tensor]) -> Iterator[None]:
    """The zeros of masks in place for the block; then the weights are as they were."""
    before = {name: model.get_parameter(name).detach().clone() for name in masks}
    try:
        with torch.no_grad():
            for name, mask in masks.items():
                model.get_parameter(name).masked_fill_(~mask, 0)
        yield
    finally:
        with torch.no_grad():
            for name, tensor in before.items():
                model.get_parameter(name).copy_(tensor)


def _density(masks: Mapping[str, Tensor]) -> float:
    return sum(int(m.count_nonzero()) for m in masks.values()) / max(1, sum(m.numel() for m in masks.values()))
