"""Labels: every channel that could be removed carries a number, and numbers that must go together are tied.

A value has *fields*: arrays of labels with the value's rank, as long as the value along the axes on which labels vary
("covered") and 1 along the others. An element of the value exists as long as its label in every field does. A feature
map has one field (1, C, 1, 1), a weight one per axis, (O, 1, 1, 1) and (1, I, 1, 1), queries split into heads one field
(1, H, 1, D). An axis that no field covers has a fixed size. Data movement moves labels just as it moves data;
what reads two tensors position by position ties their labels; what mixes an axis (a norm, a softmax) holds it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from abridged.graph.graph import Graph, Node
from abridged.tables import Table

Field = npt.NDArray[np.int64]
KERNEL = "the kernel's size"
FIXED = 0  # the label of what can never go
Operand = tuple[Sequence[Field], tuple[int, ...]]  # fields, shape


@dataclass(frozen=True, eq=False)
class Use:
    """Where channels end, being summed over: in each operand named, `labels` lie along that axis."""

    node: Node
    labels: Field  # (n,)
    operands: tuple[tuple[str, int], ...]  # (value name, axis); the name of a value inside an op is its node's


@dataclass(frozen=True, eq=False)
class AxisOf:
    """One axis of a constant, and the labels along it."""

    constant: str
    axis: int
    labels: Field  # (n,)


# (flow, node) → fields of each output.
Rule = Callable[["Flow", Node], list[list[Field]]]
COUPLING: Table[Rule] = Table("coupling rule")


class Flow:
    """One walk through a graph: the fields of every value, the ties found, what is held and why."""

    def __init__(self, graph: Graph, *, exact: bool) -> None:
        self.graph, self.exact = graph, exact
        self.fields: dict[str, list[Field]] = {name: [] for name in graph.inputs}
        self.size = 1  # labels given out so far; 0 is FIXED
        self.ties: list[tuple[Field, Field]] = []
        self.frozen: list[tuple[Field, str]] = [(np.array([FIXED]), "its size is fixed")]
        self.axes: list[AxisOf] = []
        self.uses: list[Use] = []
        self.consumed: list[Field] = []  # labels along the summed axes of weights
        self.heads: list[Field] = []
        self.rectangles: list[Field] = []  # fields that cover several axes
        self.derived = set(graph.constants)  # values that depend on no input

    def walk(self) -> Flow:
        """Apply every node's rule; what leaves the network is frozen."""
        for node in self.graph:
            if all(name in self.derived for name in node.inputs if name):
                self.derived.update(node.outputs)
            for name, fields in zip(node.outputs, COUPLING[node.op](self, node), strict=True):
                self.fields[name] = [field for field in fields if field.any() and self._whole(field)]
        for name in self.graph.outputs:
            for field in self.of(name):
                self.freeze(field, "an output of the network")
        return self

    def _whole(self, field: Field) -> bool:
        """Note a field; one of a single label is frozen, since its value could only go as a whole."""
        if field.size == 1:
            self.freeze(field, "a part of one channel is taken out")
        elif len(covered(field)) > 1:
            self.rectangles.append(field)
        return field.size > 1

    def of(self, name: str | None) -> list[Field]:
        """The fields of a value. A constant with a key has labels of its own along every axis; any other is fixed."""
        if name is None:
            return []
        if name not in self.fields:
            self.fields[name] = self._constant(name) if self.graph.constants[name].keys else []
        return self.fields[name]

    def shape(self, name: str) -> tuple[int, ...]:
        return self.graph.values[name].shape

    def operand(self, name: str) -> Operand:
        return self.of(name), self.shape(name)

    def _constant(self, name: str) -> list[Field]:
        shape = self.shape(name)
        fields = []
        for axis, size in enumerate(shape):
            if size > 1:
                labels = self.fresh(size)
                self.axes.append(AxisOf(name, axis, labels))
                fields.append(along(labels, axis, len(shape)))
        return fields

    def fresh(self, count: int) -> Field:
        self.size += count
        return np.arange(self.size - count, self.size)

    def tie(self, a: Field, b: Field) -> None:
        """Position by position, broadcast: what goes here goes there."""
        a, b = np.broadcast_arrays(a, b)
        self.ties.append((a.ravel(), b.ravel()))

    def freeze(self, field: Field, reason: str) -> None:
        self.frozen.append((field.ravel(), reason))

    def hold(self, field: Field, axis: int, reason: str) -> list[Field]:
        """Nothing may be removed along an axis: whole slices across it may, if the field covers another axis. What is left of the field."""
        if covered(field) == (axis,):
            self.freeze(field, reason)
            return []
        first = field.take([0], axis)
        self.tie(field, first)
        return [first]

    def hold_all(self, fields: Iterable[Field], axes: Iterable[int], reason: str) -> list[Field]:
        left = list(fields)
        for axis in axes:
            left = [
                part
                for field in left
                for part in (self.hold(field, axis, reason) if axis in covered(field) else [field])
            ]
        return left

    def lines(self, name: str, axes: Sequence[int], reason: str) -> list[Field | None]:
        """The labels along each of these axes (None: fixed); every other axis is held."""
        found: dict[int, Field] = {}
        rest = [axis for axis in range(len(self.shape(name))) if axis not in axes]
        for field in self.hold_all(self.of(name), rest, reason):
            if len(covered(field)) > 1:
                self.freeze(field, reason)
            elif covered(field):
                found[covered(field)[0]] = field.ravel()
        return [found.get(axis) for axis in axes]

    def tie_lines(self, a: Field | None, b: Field | None, reason: str) -> None:
        """Tie two lines of labels; where one side is fixed, so is the other."""
        if a is not None and b is not None:
            self.tie(a, b)
        for line in (a, b):
            if line is not None and (a is None or b is None):
                self.freeze(line, reason)

    def merge(self, operands: Sequence[Operand], reason: str) -> list[Field]:
        """The fields of what reads operands position by position, broadcast as in numpy; their labels are tied."""
        rank = max(len(shape) for _, shape in operands)
        shapes = [(1,) * (rank - len(shape)) + shape for _, shape in operands]
        sides = [
            [field.reshape((1,) * (rank - field.ndim) + field.shape) for field in fields] for fields, _ in operands
        ]
        self._hold_fixed(sides, shapes, rank, reason)
        merged: list[Field] = []
        for side in sides:
            for field in side:
                merged = self._join(merged, field, reason)
        return merged

    def _hold_fixed(self, sides: list[list[Field]], shapes: Sequence[tuple[int, ...]], rank: int, reason: str) -> None:
        """Where one operand's size is fixed, the others' is too."""
        changed = True
        while changed:
            changed = False
            for axis in range(rank):
                covers = [any(axis in covered(field) for field in side) for side in sides]
                fixed = any(shape[axis] > 1 and not c for shape, c in zip(shapes, covers, strict=True))
                if fixed and any(covers):
                    sides[:] = [self.hold_all(side, [axis], reason) for side in sides]
                    changed = True

    def _join(self, merged: list[Field], field: Field, reason: str) -> list[Field]:
        """Tie one more field to those it overlaps with."""
        for i, other in enumerate(merged):
            a, b = covered(other), covered(field)
            if a == b:
                self.tie(other, field)
                return merged
            if not set(a) & set(b):
                continue
            large, small = (other, field) if len(a) > len(b) else (field, other)
            rest = merged[:i] + merged[i + 1 :]
            if not set(covered(small)) < set(covered(large)):
                self.freeze(large, reason)
                self.freeze(small, reason)
                return rest
            if max(covered(small)) < min(set(covered(large)) - set(covered(small))):  # by the outer axes: heads
                self.tie(large, small)
                return self._join(rest, large, reason)
            self.freeze(small, reason)
            for left in self.hold_all([large], covered(small), reason):
                rest = self._join(rest, left, reason)
            return rest
        return [*merged, field]

    def use(self, node: Node, labels: Field, operands: Sequence[tuple[str, int]]) -> None:
        self.uses.append(Use(node, labels, tuple(operands)))


def covered(field: Field) -> tuple[int, ...]:
    """The axes along which labels vary."""
    return tuple(axis for axis, size in enumerate(field.shape) if size > 1)


def along(labels: Field, axis: int, rank: int) -> Field:
    """Labels (n,) as a field of some rank that covers one axis."""
    return labels.reshape([-1 if i == axis else 1 for i in range(rank)])


def compressed(field: Field) -> Field:
    """The same with length 1 along every axis on which labels do not vary."""
    for axis in covered(field):
        first = field.take([0], axis)
        if (field == first).all():
            field = first
    return field


def attrs(node: Node) -> Mapping[str, Any]:
    """A node's attributes, whose types its op's declaration gives."""
    return node.attrs
