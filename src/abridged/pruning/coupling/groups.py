"""From labels to groups: which channels are one unit, which units are alike, and what cannot move."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from abridged.graph.graph import Graph, Node
from abridged.pruning.coupling import contractions, elements, moves  # noqa: F401  (they fill the table)
from abridged.pruning.coupling.labels import COUPLING as COUPLING
from abridged.pruning.coupling.labels import Field, Flow, covered

Units = npt.NDArray[np.int64]  # the unit at each position; −1 where the position is fixed


@dataclass(frozen=True, eq=False)
class Axis:
    """One axis of a constant: whose channels lie along it. `ends`: a weight's summed axis, where channels are only read."""

    constant: str
    axis: int
    units: Units
    ends: bool


@dataclass(frozen=True, eq=False)
class Ending:
    """A node that sums over channels: where each of its operands has them."""

    node: Node
    units: Units
    operands: tuple[tuple[str, int], ...]


@dataclass(frozen=True, eq=False)
class Group:
    """Units that have a place in the same axes of the same constants: any of them may go, or none (`reason` says why)."""

    units: Units
    axes: tuple[int, ...]  # positions in Coupling.axes
    heads: bool
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Coupling:
    """Every channel of a graph that can go (units 0 … count − 1), what goes with it, and what cannot go and why."""

    graph: Graph
    exact: bool
    count: int
    axes: tuple[Axis, ...]
    endings: tuple[Ending, ...]
    groups: tuple[Group, ...]
    fields: dict[str, list[Units]]  # of every value, as in `labels`
    held: tuple[Group, ...] = field(default=())  # groups that cannot go; their units are −1 elsewhere


def couple(graph: Graph, *, exact: bool = True) -> Coupling:
    """Derive the coupled channels of a graph by one rule per op.

    With `exact`, what a layer norm, a group norm or a mean over channels reads stays; without it these are taken over
    fewer channels. Raises `InputError` for an op without a rule.

    >>> import torch
    >>> from abridged.graph.capture import capture
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> [len(group.units) for group in couple(capture(model, torch.zeros(1, 4))).groups]
    [8]
    """
    flow = Flow(graph, exact=exact).walk()
    parts = _settled(flow)
    reasons = _reasons(flow, parts)
    free = ~np.isin(parts, list(reasons))
    names, units = np.unique(np.where(free, parts, -1), return_inverse=True)
    units = units - (1 if names[0] == -1 else 0)  # of each label; −1: cannot go
    ends = _mask(flow.consumed, flow.size)
    looked = {node.inputs[0] for node in graph if node.op == "take"}  # tied to an embedding: it makes channels, too
    axes = tuple(
        Axis(a.constant, a.axis, units[a.labels], bool(ends[a.labels[0]]) and a.constant not in looked)
        for a in flow.axes
    )
    heads = np.unique(units[_mask(flow.heads, flow.size)])
    endings = tuple(Ending(use.node, units[use.labels], use.operands) for use in flow.uses)
    return Coupling(
        graph=graph,
        exact=exact,
        count=int(units.max()) + 1,
        axes=axes,
        endings=endings,
        groups=tuple(_groups([a.units for a in axes], endings, heads)),
        fields={name: [units[f] for f in fields] for name, fields in flow.fields.items() if fields},
        held=tuple(_held(flow, parts, reasons)),
    )


def _settled(flow: Flow) -> Units:
    """The component of each label, after every field that covers several axes has become a product: rows or columns go whole.

    A field that others of the same round have touched waits for the next: after them it may be a product already, the other
    way round."""
    while True:
        parts = _components(flow)
        ties, touched = len(flow.ties), np.zeros(int(parts.max()) + 1, bool)
        for rectangle in _unique(flow.rectangles):
            kinds = parts[rectangle]
            axes = covered(rectangle)
            if touched[kinds].any() or any(_depends_only_on(kinds, axis, axes) for axis in axes):
                continue
            touched[kinds] = True
            for axis in axes[:-1]:  # the same places of each row
                flow.tie(rectangle, rectangle.take([0], axis))
        if len(flow.ties) == ties:
            return parts


def _unique(fields: Sequence[Field]) -> list[Field]:
    return list({(f.shape, f.tobytes()): f for f in fields}.values())


def _depends_only_on(kinds: Units, axis: int, axes: tuple[int, ...]) -> bool:
    first = kinds
    for other in axes:
        if other != axis:
            first = first.take([0], other)
    return bool((kinds == first).all())


def _components(flow: Flow) -> Units:
    ends = [np.concatenate([pair[side] for pair in flow.ties] or [np.zeros(0, np.int64)]) for side in (0, 1)]
    edges = coo_matrix((np.ones(len(ends[0]), np.int8), (ends[0], ends[1])), shape=(flow.size, flow.size))
    parts: Units = connected_components(edges, directed=False)[1].astype(np.int64)
    return parts


def _reasons(flow: Flow, parts: Units) -> dict[int, str]:
    """Why a component cannot go: the first thing that held it, or that it would leave nothing of an axis."""
    reasons: dict[int, str] = {}
    for labels, why in flow.frozen:
        for part in np.unique(parts[labels]):
            reasons.setdefault(int(part), why)
    for axis in flow.axes:
        kinds = parts[axis.labels]
        if (kinds == kinds[0]).all():
            reasons.setdefault(int(kinds[0]), "its channels can only go all together")
    return reasons


def _mask(fields: Sequence[Field], size: int) -> npt.NDArray[np.bool_]:
    mask = np.zeros(size, dtype=bool)
    for labels in fields:
        mask[labels] = True
    return mask


def _groups(axes: Sequence[Units], endings: Sequence[Ending], heads: Units) -> list[Group]:
    """Units by the set of axes in which they have a place. What no sum ever ends is no channel (rows of a table)."""
    every = np.concatenate([np.zeros(0, np.int64), *axes])
    ended = np.zeros(every.max(initial=-1) + 2, bool)
    for ending in endings:
        ended[ending.units] = True
    ended[-1] = False  # what is fixed
    numbers = np.repeat(np.arange(len(axes)), [len(units) for units in axes])
    channels = ended[every]
    # By unit, then by axis, in one pass: axes are many.
    pairs = np.unique(every[channels] * len(axes) + numbers[channels])
    every, numbers = np.divmod(pairs, max(1, len(axes)))
    units, starts = np.unique(every, return_index=True)
    alike: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for unit, places in zip(units.tolist(), np.split(numbers, starts[1:]), strict=bool(len(units))):
        alike[tuple(places.tolist())].append(unit)
    in_heads = set(heads.tolist())
    return [Group(np.array(units), places, units[0] in in_heads) for places, units in alike.items()]


def _held(flow: Flow, parts: Units, reasons: dict[int, str]) -> list[Group]:
    """What cannot go, by axis of a constant and reason."""
    found = []
    held = np.zeros(int(parts.max()) + 1, bool)
    held[list(reasons)] = True
    for number, axis in enumerate(flow.axes):
        kinds = parts[axis.labels]
        places = np.flatnonzero(held[kinds])
        if len(places):
            found.append(Group(places, (number,), False, reasons[int(kinds[places[0]])]))
    return found
