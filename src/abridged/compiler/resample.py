"""Interpolation and adaptive pools: along each axis, an output is a weighted sum, or the largest, of its own window."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from abridged.compiler import scalar
from abridged.compiler.fuse import Group
from abridged.compiler.lower import ANY, Lowering
from abridged.compiler.places import moved
from abridged.compiler.plan import Layout
from abridged.compiler.scalar import offset, table
from abridged.graph.graph import Node
from abridged.graph.ops import OPS

Matrix = NDArray[np.float32]
Taps = tuple[NDArray[np.intp], NDArray[np.intp], Matrix]  # of each tap its output, its input and its weight, by outputs


def matrix(node: Node, size: int, axis: int, number: float = 1.0) -> Matrix:
    """What the op makes along spatial axis `axis` of each element, if that is `number` and the others are 0: (outputs, inputs).

    Its own meaning says so, in float32, where rounding decides which elements are read."""
    attrs: dict[str, Any] = {
        name: (value[axis],) if isinstance(value, tuple) else value for name, value in node.attrs.items()
    }
    x, cubic = torch.zeros(size, size).fill_diagonal_(number)[:, None], attrs.get("mode") == "cubic"
    if cubic:  # PyTorch has it for two axes alone: the other one is four lines that stay, and x the second of them
        attrs |= {"size": (4, *attrs["size"]), "scales": attrs["scales"] and (1.0, *attrs["scales"])}
        x = F.pad(x[:, :, None], (0, 0, 1, 2))
    y = OPS[node.op](x, **attrs)
    assert isinstance(y, torch.Tensor)
    found: Matrix = (y[:, 0, 1] if cubic else y[:, 0]).T.numpy()
    return found


def taps(node: Node, size: int, axis: int) -> Taps:
    """All that is multiplied along spatial axis `axis`: by a weight of 0, too, since 0 × ∞ is NaN.

    Where taps of both signs meet in one element at the edge, ∞ becomes NaN as well: they are their sum and a tap of weight 0."""
    weights, lost = matrix(node, size, axis), np.isnan(matrix(node, size, axis, float("inf")))
    outputs, inputs, zero = np.nonzero(np.stack([weights != 0, lost], -1))
    return outputs, inputs, np.where(zero, 0, weights[outputs, inputs])


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
    wanted = {axis: taps(node, shape[axis], axis - 2) for axis in steps}
    steps = [axis for axis in steps if not _copies(wanted[axis], shape[axis])] or steps[:1]
    for axis in steps:
        shape[axis] = low.shape(y)[axis]
        last = axis == steps[-1]
        target = low.place(y) if last else low.fresh(f"{y}.axis{axis}", tuple(shape))
        _along(low, node, tuple(shape), axis, wanted[axis], source, target)
        source = target


def _copies(taps: Taps, size: int) -> bool:
    outputs, inputs, weights = taps
    return np.array_equal(outputs, range(size)) and np.array_equal(inputs, outputs) and bool((weights == 1).all())


def _along(
    low: Lowering, node: Node, shape: tuple[int, ...], axis: int, taps: Taps, source: Layout, target: Layout
) -> None:
    outputs, inputs, weights = taps
    starts = np.searchsorted(outputs, np.arange(shape[axis] + 1))
    tables = " ".join(
        [
            table("starts", starts.tolist()),
            table("places", inputs.tolist()),
            table("weights", weights.tolist(), "float"),
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
