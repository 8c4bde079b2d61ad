"""Interpolation and adaptive pools: along each axis, an output is a weighted sum, or the largest, of its own window."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from abridged.compiler import scalar
from abridged.compiler.fuse import Group
from abridged.compiler.lower import ANY, Lowering
from abridged.compiler.places import moved
from abridged.compiler.plan import Layout
from abridged.compiler.scalar import offset, table
from abridged.graph.graph import Node
from abridged.graph.ops import OPS

Matrix = NDArray[np.float64]


def matrix(node: Node, size: int, axis: int) -> Matrix:
    """What the op does along spatial axis `axis`: (outputs, inputs). Its own meaning says so, of each unit vector."""
    attrs: dict[str, Any] = {
        name: (value[axis],) if isinstance(value, tuple) else value for name, value in node.attrs.items()
    }
    units = torch.eye(size, dtype=torch.float64)[:, None]
    if attrs.get("mode") == "cubic":  # PyTorch has it for two axes alone
        attrs |= {name: None if attrs[name] is None else (1, *attrs[name]) for name in ("size", "scales")}
        units = units[:, :, None]
    y = OPS[node.op](units, **attrs)
    assert isinstance(y, torch.Tensor)
    found: Matrix = y.reshape(size, -1).T.numpy()
    return found


@ANY.entry("resize")
def _resize(low: Lowering, group: Group) -> None:
    if low.value(group.output).dtype != torch.float32 and group.anchor.attrs["mode"] != "nearest":
        raise low.refuse(group.anchor, f"of {str(low.value(group.output).dtype).removeprefix('torch.')}")
    if group.anchor.attrs["mode"] == "nearest":
        moved(low, group)
    else:
        resampled(low, group.anchor, group.output)


def resampled(low: Lowering, node: Node, y: str) -> None:
    """One spatial axis after the other, the last one first."""
    source, shape = low.layout(node.inputs[0] or ""), list(low.shape(node.inputs[0] or ""))
    steps = list(range(len(shape) - 1, 1, -1))
    wanted = {axis: matrix(node, shape[axis], axis - 2) for axis in steps}
    steps = [axis for axis in steps if not np.array_equal(wanted[axis], np.eye(shape[axis]))] or steps[:1]
    for axis in steps:
        shape[axis] = len(wanted[axis])
        last = axis == steps[-1]
        target = low.place(y) if last else low.fresh(f"{y}.axis{axis}", tuple(shape))
        _along(low, node, tuple(shape), axis, wanted[axis], source, target)
        source = target


def _along(
    low: Lowering, node: Node, shape: tuple[int, ...], axis: int, weights: Matrix, source: Layout, target: Layout
) -> None:
    rows, columns = np.nonzero(weights)
    starts = np.searchsorted(rows, np.arange(len(weights) + 1))
    tables = " ".join(
        [
            table("starts", starts.tolist()),
            table("places", columns.tolist()),
            table("weights", weights[rows, columns].tolist(), "float"),
        ]
    )
    names = ["places[t]" if i == axis else f"i{i}" for i in range(len(shape))]
    body = (
        f"float s = 0; for (long t = starts[i{axis}]; t < starts[i{axis} + 1]; t++) "
        f"s += weights[t] * x0[{offset(source.strides, names)}]; y[{offset(target.strides)}] = s;"
    )
    low.add(scalar.cleared(scalar.step(node, shape, [source], target, body, tables), shape))


def largest(low: Lowering, node: Node, y: str) -> None:
    """The largest of [⌊i·size / output⌋, ⌈(i + 1)·size / output⌉) along each spatial axis."""
    x = node.inputs[0] or ""
    source, target, sizes, shape = low.layout(x), low.place(y), low.shape(x), low.shape(y)
    loops = " ".join(
        f"for (long r{axis} = i{axis} * {n} / {m}; r{axis} < ((i{axis} + 1) * {n} + {m - 1}) / {m}; r{axis}++)"
        for axis, (n, m) in enumerate(zip(sizes, shape, strict=True))
        if axis > 1
    )
    names = [f"i{axis}" if axis < 2 else f"r{axis}" for axis in range(len(shape))]
    body = (
        f"float s = -INFINITY; {loops} {{ const float v = x0[{offset(source.strides, names)}]; "
        f"s = v > s || v != v ? v : s; }} y[{offset(target.strides)}] = s;"
    )
    low.add(scalar.cleared(scalar.step(node, shape, [source], target, body), shape))
