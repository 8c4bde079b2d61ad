"""Pools and means over maps to kernel calls."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from abridged.compiler.fuse import Group
from abridged.compiler.geometry import Window
from abridged.compiler.lower import LOWER, Lowering, macros_of_window
from abridged.compiler.plan import Call, Choice, Layout, Step
from abridged.graph.graph import Attr, Node


@LOWER.entry("max_pool", "avg_pool")
def _pool(low: Lowering, group: Group) -> None:
    pool(low, group.anchor, group.output)


@LOWER.entry("adaptive_avg_pool", "adaptive_max_pool")
def _adaptive(low: Lowering, group: Group) -> None:
    """The mean of whole maps, or windows of one size where they divide the map."""
    node, y = group.anchor, group.output
    x = node.inputs[0] or ""
    sizes, wanted = low.shape(x)[2:], low.shape(y)[2:]
    if all(n == 1 for n in wanted) and node.op == "adaptive_avg_pool":
        mean(low, node, y)
        return
    if any(n % m for n, m in zip(sizes, wanted, strict=True)):
        # One window per output, each of its own size, as a resize of means: only where each axis grows or divides.
        raise low.refuse(node, f"from {list(sizes)} to {list(wanted)}")
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
        raise low.refuse(node, "of columns")
    macros = {
        "C": channels,
        "XROW": source.strides[1],
        "YROW": target.strides[1],
        "N": batch,
        "XSTACK": source.strides[0],
        "YSTACK": target.strides[0],
        "XPITCH": source.strides[2] if len(sizes) > 1 else 0,
        "H": prod(sizes[:-1]),
        "W": sizes[-1],
    }
    low.add(
        Step(node, (Choice(Call("mean", tuple(macros.items()))),), (source,), target, clears=around(low, y, target))
    )


def pool(low: Lowering, node: Node, y: str) -> None:
    """Windows that may hang over every edge."""
    x = node.inputs[0] or ""
    source, target = low.layout(x), low.place(y)
    window = Window(low.graph, node, y)
    macros = macros_of_window(low, node, window, x, y, source, target) | {
        "C": low.shape(x)[1],
        "AVERAGE": int(node.op == "avg_pool"),
        "COUNT_PAD": int(bool(node.attrs.get("count_include_pad"))),
    }
    for name in ("SPAN", "MASK", "CLEAR"):
        del macros[name]
    low.add(
        Step(node, (Choice(Call("pool", tuple(macros.items()))),), (source,), target, clears=around(low, y, target))
    )


def around(low: Lowering, y: str, target: Layout) -> tuple[tuple[Layout, int], ...]:
    """All of the value's rows, where what lies between its elements must be zero."""
    return ((target, low.shape(y)[1] * target.strides[1]),) if target.zero else ()
