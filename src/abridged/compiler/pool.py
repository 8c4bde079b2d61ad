"""Pools and means over maps to kernel calls."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np

from abridged.compiler.elementwise import single
from abridged.compiler.fuse import Group
from abridged.compiler.geometry import Window
from abridged.compiler.linear import macros_of_window, map_line
from abridged.compiler.lower import LOWER, Lowering, Macros
from abridged.compiler.nest import extent, merged
from abridged.compiler.plan import Call, Choice, Layout, Step, rounded
from abridged.compiler.resample import largest, resampled
from abridged.graph.graph import Attr, Node


@LOWER.entry("max_pool", "avg_pool")
def _pool(low: Lowering, group: Group) -> None:
    pool(low, group.anchor, group.output)


@LOWER.entry("adaptive_avg_pool", "adaptive_max_pool")
def _adaptive(low: Lowering, group: Group) -> None:
    """The mean of whole maps, or windows of one size where they divide the map, or each of its own."""
    node, y = group.anchor, group.output
    x = node.inputs[0] or ""
    sizes, wanted = low.shape(x)[2:], low.shape(y)[2:]
    if all(n == 1 for n in wanted) and node.op == "adaptive_avg_pool" and len(sizes) < 3:
        mean(low, node, y)
        return
    if len(sizes) > 2 or any(n % m for n, m in zip(sizes, wanted, strict=True)):
        (resampled if node.op == "adaptive_avg_pool" else largest)(low, node, y)
        return
    kernel = tuple(n // m for n, m in zip(sizes, wanted, strict=True))
    attrs: dict[str, Attr] = {
        "kernel": kernel,
        "stride": kernel,
        "padding": (0,) * len(kernel),
        "count_include_pad": False,
    }
    pool(low, replace(node, op=node.op.removeprefix("adaptive_"), attrs=attrs), y)


def mean(low: Lowering, node: Node, y: str) -> None:
    """Each map's average; y (N, C, …) has one position per map, or no position axes at all."""
    x = node.inputs[0] or ""
    source, target = low.layout(x), low.place(y)
    batch, channels, *sizes = low.shape(x)
    if source.strides[-1] != 1 and sizes[-1] > 1:
        source = low.straight(node, x)
    macros: Macros = {
        "C": channels,
        "XROW": source.strides[1],
        "YROW": target.strides[1],
        "N": batch,
        "XSTACK": source.strides[0],
        "YSTACK": target.strides[0],
        "XAT(line, band)": map_line(source),
        "H": prod(sizes[:-1]),
        "W": sizes[-1],
    }
    low.add(
        Step(node, (Choice(Call("mean", tuple(macros.items()))),), (source,), target, clears=around(low, y, target))
    )


@LOWER.entry("group_norm")
def _group_norm(low: Lowering, group: Group) -> None:
    """Maps of up to three axes, or more that lie end to end; lines that do are one."""
    node, y = group.anchor, group.output
    x, scale, shift = node.inputs
    assert x is not None
    if any(name is not None and name not in low.graph.constants for name in (scale, shift)):
        raise low.refuse(node, "whose weights are computed")
    batch, channels, *sizes = low.shape(x)
    source, target = low.layout(x), low.place(y)
    if sizes and sizes[-1] > 1 and source.strides[-1] != 1:
        source = low.straight(node, x)
    lines = merged(tuple(sizes), [source.strides[2:], target.strides[2:]])
    lines += [] if lines[-1][1] == (1, 1) else [(1, (1, 1))]
    if len(lines) > 3:
        raise low.refuse(node, f"over {len(lines)} spatial axes")
    lines = [*[(1, (0, 0))] * (3 - len(lines)), *lines]
    macros: Macros = {"C": channels, "CG": channels // node.integer("groups"), "N": batch}
    macros |= dict(zip("DHW", (size for size, _ in lines), strict=True))
    macros["EPS"] = single(node.real("eps"))
    for i, (side, layout) in enumerate((("X", source), ("Y", target))):
        plane, pitch = (strides[i] for _, strides in lines[:2])
        stack, row = layout.strides[:2]
        macros |= {f"{side}STACK": stack, f"{side}ROW": row, f"{side}PLANE": plane, f"{side}PITCH": pitch}
    scales = np.ones(channels, np.float32) if scale is None else low.constant(scale)
    shifts = np.zeros(channels, np.float32) if shift is None else low.constant(shift)
    biases = np.concatenate([np.pad(scales, (0, rounded(channels) - channels)), shifts])
    choice = Choice(Call("group_norm", tuple(macros.items())))
    low.add(Step(node, (choice,), (source,), target, bias=biases, clears=around(low, y, target)))


def pool(low: Lowering, node: Node, y: str) -> None:
    """Windows that may hang over every edge."""
    x = node.inputs[0] or ""
    source, target = low.layout(x), low.place(y)
    window = Window(low.graph, node, y)
    macros = macros_of_window(low, node, window, x, y, source, target) | {
        "C": low.shape(x)[1],
        "AVERAGE": int(node.op == "avg_pool"),
        "COUNT_PAD": int(bool(node.attrs.get("count_include_pad"))),
        "XAT(line, band)": map_line(source),
    }
    del macros["SPAN"]
    low.add(Step(node, (Choice(Call("pool", tuple(macros.items()))),), (source,), target, by_line=True))


def around(low: Lowering, y: str, target: Layout) -> tuple[tuple[Layout, int], ...]:
    """All of the value's rows, where what lies between its elements must be zero."""
    return ((target, extent(low.shape(y), target)),) if target.zero else ()
