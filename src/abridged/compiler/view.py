"""Ops that move nothing: the same elements seen along other axes."""

from __future__ import annotations

from dataclasses import replace

from abridged.compiler.plan import Layout
from abridged.graph.graph import Node


def view(node: Node, shape: tuple[int, ...], layout: Layout) -> list[Layout | None]:
    """The layouts of a view's outputs, given its input's; None where the elements do not lie so."""
    strides = layout.strides
    if node.op == "permute":
        return [layout.at(0, tuple(strides[axis] for axis in node.integers("axes")))]
    if node.op == "expand":
        wanted = node.integers("shape")
        own = [0 if n == 1 else s for n, s in zip(shape, strides, strict=True)]
        return [layout.bare((0,) * (len(wanted) - len(shape)) + tuple(own))]
    if node.op == "reshape":
        new = reshaped(shape, strides, node.integers("shape"))
        return [None if new is None else layout.bare(new)]
    axis = node.integer("axis")
    if node.op == "slice":
        start, step = node.integer("start"), node.integer("step")
        across = tuple(s * step if i == axis else s for i, s in enumerate(strides))
        keeps = layout.zero and strides[axis] == max(strides)
        return [replace(layout.at(start * strides[axis], across), zero=keeps)]
    sizes = node.integers("sizes")
    keeps = layout.zero and strides[axis] == max(strides)
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [replace(layout.at(start * strides[axis]), zero=keeps) for start in starts]


def reshaped(shape: tuple[int, ...], strides: tuple[int, ...], wanted: tuple[int, ...]) -> tuple[int, ...] | None:
    """Strides of the same elements in row-major order in another shape, or None where they need a copy.

    >>> reshaped((2, 6), (100, 1), (2, 2, 3))
    (100, 3, 1)
    >>> reshaped((2, 6), (100, 1), (12,)) is None
    True
    """
    old: list[tuple[int, int]] = []
    for n, stride in zip(shape, strides, strict=True):
        if old and old[-1][1] == n * stride:
            old[-1] = (old[-1][0] * n, stride)
        elif n != 1:
            old.append((n, stride))
    result: list[int] = []
    for size in reversed(wanted):
        n, stride = old.pop() if size != 1 and old else (1, 0)
        if n % size:
            return None
        result.append(stride)
        if n != size:
            old.append((n // size, stride * size))
    return tuple(reversed(result))
