"""Coupling rules of data movement: labels move as the data does."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from abridged.graph.graph import Node
from abridged.pruning.coupling.labels import COUPLING, FIXED, Field, Flow, attrs, compressed, covered


@COUPLING.entry("reshape")
def reshape(flow: Flow, node: Node) -> list[list[Field]]:
    """Row-major order: axes that merge or split take their labels with them."""
    shape = flow.shape(str(node.inputs[0]))
    return [[reshaped(field, shape, attrs(node)["shape"]) for field in flow.of(node.inputs[0])]]


def reshaped(field: Field, old: Sequence[int], new: Sequence[int]) -> Field:
    """A field of a value of shape `old` for the same elements in shape `new`; it varies only along the axes where it must.

    >>> reshaped(np.arange(6).reshape(1, 6, 1), (8, 6, 5), (8, 2, 3, 5)).shape
    (1, 2, 3, 1)
    """
    full, short = [], []
    for before, after in _blocks(old, new):
        varies = any(field.shape[axis] > 1 for axis in before)
        full += [old[axis] if varies else 1 for axis in before]
        short += [new[axis] if varies else 1 for axis in after]
    return compressed(np.broadcast_to(field, full).reshape(short))


def _blocks(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The smallest runs of axes of either shape with the same number of elements.

    >>> _blocks((8, 6, 5), (8, 2, 3, 5))
    [([0], [0]), ([1], [1, 2]), ([2], [3])]
    """
    blocks, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        before: list[int] = []
        after: list[int] = []
        while (not before and not after) or prod(old[a] for a in before) != prod(new[a] for a in after):
            if i < len(old) and (j == len(new) or prod(old[a] for a in before) <= prod(new[a] for a in after)):
                before.append(i)
                i += 1
            else:
                after.append(j)
                j += 1
        if j < len(new) and new[j] == 1 and len(after) == 0:  # an axis of length 1 pairs with its like
            after.append(j)
            j += 1
        blocks.append((before, after))
    return blocks


@COUPLING.entry("permute")
def permute(flow: Flow, node: Node) -> list[list[Field]]:
    """Axes in another order."""
    return [[field.transpose(attrs(node)["axes"]) for field in flow.of(node.inputs[0])]]


@COUPLING.entry("expand")
def expand(flow: Flow, node: Node) -> list[list[Field]]:
    """The copies share their labels."""
    rank = len(attrs(node)["shape"])
    return [[field.reshape((1,) * (rank - field.ndim) + field.shape) for field in flow.of(node.inputs[0])]]


@COUPLING.entry("repeat")
def repeat(flow: Flow, node: Node) -> list[list[Field]]:
    """The copies share their labels."""
    repeats = attrs(node)["repeats"]
    moved = []
    for field in flow.of(node.inputs[0]):
        field = field.reshape((1,) * (len(repeats) - field.ndim) + field.shape)
        moved.append(np.tile(field, [n if axis in covered(field) else 1 for axis, n in enumerate(repeats)]))
    return [moved]


@COUPLING.entry("repeat_interleave")
def repeat_interleave(flow: Flow, node: Node) -> list[list[Field]]:
    """The copies share their labels."""
    axis, times = attrs(node)["axis"], attrs(node)["repeats"]
    return [[np.repeat(field, times, axis) if axis in covered(field) else field for field in flow.of(node.inputs[0])]]


@COUPLING.entry("cat")
def cat(flow: Flow, node: Node) -> list[list[Field]]:
    """One after another; what the parts have beside each other is tied."""
    axis, names = attrs(node)["axis"], [str(name) for name in node.inputs]
    shapes = [flow.shape(name) for name in names]
    covers = [sorted({covered(field) for field in flow.of(name) if axis in covered(field)}) for name in names]
    together = max((c for cover in covers for c in cover), key=len, default=())
    parts, beside = [], []
    for name, shape in zip(names, shapes, strict=True):
        across = [field for field in flow.of(name) if axis in covered(field)]
        size = [shape[a] if a in together else 1 for a in range(len(shape))]
        parts.append(np.broadcast_to(across[0] if across else np.array(FIXED), size) if together else None)
        thin = tuple(1 if a == axis else n for a, n in enumerate(shape))
        beside.append(([field for field in flow.of(name) if axis not in covered(field)], thin))
    merged = flow.merge(beside, "put beside a tensor of fixed size")
    return [[*merged, np.concatenate(parts, axis)] if together else merged]  # type: ignore[arg-type]


@COUPLING.entry("split")
def split(flow: Flow, node: Node) -> list[list[Field]]:
    """Each part takes its labels. Parts of one size stay so, since one number made them: the same places of each are tied."""
    axis, sizes = attrs(node)["axis"], attrs(node)["sizes"]
    ends = np.cumsum(sizes)
    parts = [
        [_cut(field, axis, end - n, end, 1) for field in flow.of(node.inputs[0])]
        for n, end in zip(sizes, ends, strict=True)
    ]
    for first, *others in zip(*parts, strict=True) if len(set(sizes)) == 1 else ():
        for other in others:
            flow.tie(first, other)
    return parts


@COUPLING.entry("slice")
def slice_(flow: Flow, node: Node) -> list[list[Field]]:
    """What is left out keeps its labels elsewhere."""
    a = attrs(node)
    return [[_cut(field, a["axis"], a["start"], a["stop"], a["step"]) for field in flow.of(node.inputs[0])]]


def _cut(field: Field, axis: int, start: int, stop: int, step: int) -> Field:
    return field[(*[slice(None)] * axis, slice(start, stop, step))] if axis in covered(field) else field


@COUPLING.entry("pad")
def pad(flow: Flow, node: Node) -> list[list[Field]]:
    """What is put around has a fixed size; padding that copies elements holds the axis."""
    around = attrs(node)["padding"]
    axes = [axis for axis, pair in enumerate(around) if any(pair)]
    if attrs(node)["mode"] != "constant":
        return [flow.hold_all(flow.of(node.inputs[0]), axes, "padded with copies of itself")]
    moved = []
    for field in flow.of(node.inputs[0]):
        width = [pair if axis in covered(field) else (0, 0) for axis, pair in enumerate(around)]
        moved.append(np.pad(field, width, constant_values=FIXED))
    return [moved]


@COUPLING.entry("roll")
def roll(flow: Flow, node: Node) -> list[list[Field]]:
    """Labels go round the end, too."""
    a = attrs(node)
    return [[np.roll(field, a["shifts"], a["axes"]) for field in flow.of(node.inputs[0])]]


@COUPLING.entry("flip")
def flip(flow: Flow, node: Node) -> list[list[Field]]:
    """Labels in reverse."""
    return [[np.flip(field, attrs(node)["axes"]) for field in flow.of(node.inputs[0])]]


@COUPLING.entry("take")
def take(flow: Flow, node: Node) -> list[list[Field]]:
    """By a known index labels move; by one that depends on the input the axis is held."""
    x, index = (str(name) for name in node.inputs)
    axis, rank = attrs(node)["axis"], len(flow.shape(index))
    flow.hold_all(flow.of(index), range(rank), "an index")
    fields = flow.of(x)
    known = flow.graph.constants.get(index)
    if known is None:
        fields = flow.hold_all(fields, [axis], "looked up by an index that the input gives")
    moved = []
    for field in fields:
        if axis in covered(field) and known is not None:
            moved.append(compressed(np.take(field, known.tensor.numpy(), axis)))
        else:
            moved.append(field.reshape(field.shape[:axis] + (1,) * rank + field.shape[axis + 1 :]))
    return [moved]


@COUPLING.entry("index")
def index(flow: Flow, node: Node) -> list[list[Field]]:
    """Axes that are indexed are held; the others stay, beside the place where the indices' own axes come."""
    x, *indices = node.inputs
    for name in indices:
        if name is not None:
            flow.hold_all(flow.of(name), range(len(flow.shape(name))), "an index")
    indexed = [axis for axis, name in enumerate(indices) if name is not None]
    rank = max(len(flow.shape(str(indices[axis]))) for axis in indexed)
    adjacent = indexed == list(range(indexed[0], indexed[-1] + 1))
    moved = []
    for field in flow.hold_all(flow.of(x), indexed, "looked up by an index"):
        sizes = [n for axis, n in enumerate(field.shape) if axis not in indexed]
        at = indexed[0] if adjacent else 0
        moved.append(field.reshape(sizes[:at] + [1] * rank + sizes[at:]))
    return [moved]


@COUPLING.entry("gather", "scatter")
def pick(flow: Flow, node: Node) -> list[list[Field]]:
    """Freezes: elements are picked one by one."""
    for name in node.inputs:
        for field in flow.of(name):
            flow.freeze(field, f"a {node.op} picks its elements")
    return [[]]
