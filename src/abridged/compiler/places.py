"""Ops that move elements to other places: along each axis by a table, or by indices that the network computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from abridged.compiler import scalar
from abridged.compiler.fuse import Group
from abridged.compiler.lower import ANY, Lowering
from abridged.compiler.scalar import literal, missing, offset, table
from abridged.graph.graph import Attr, Node
from abridged.graph.ops import apply

Sources = dict[int, list[int]]  # by axis: which element of x stands at each place of y, -1 where none does


def sources(node: Node, shape: Sequence[int]) -> Sources:
    """Where the elements of y stand in x, a tensor of `shape` with as many axes as y; axes left out stay as they are.

    >>> sources(Node("roll", (), (), {"shifts": (1,), "axes": (0,)}), (3, 5))
    {0: [2, 0, 1]}
    """
    attrs: dict[str, Any] = dict(node.attrs)
    match node.op:
        case "flip":
            return {axis: list(range(shape[axis]))[::-1] for axis in attrs["axes"]}
        case "roll":
            pairs = zip(attrs["axes"], attrs["shifts"], strict=True)
            return {axis: [(i - shift) % shape[axis] for i in range(shape[axis])] for axis, shift in pairs}
        case "repeat":
            return {axis: list(range(shape[axis])) * n for axis, n in enumerate(attrs["repeats"]) if n != 1}
        case "repeat_interleave":
            n = shape[attrs["axis"]] * attrs["repeats"]
            return {attrs["axis"]: [i // attrs["repeats"] for i in range(n)]}
        case "pad":
            return {axis: _padded(n, shape[axis], attrs["mode"]) for axis, n in enumerate(attrs["padding"]) if any(n)}
        case "resize":
            return {axis + 2: _nearest(shape[axis + 2], attrs, axis) for axis in range(len(attrs["size"]))}
    raise AssertionError(node.op)


def _padded(around: tuple[int, int], size: int, mode: str) -> list[int]:
    attrs: dict[str, Attr] = {"padding": ((0, 0), (0, 0), around), "mode": mode, "value": -1}
    return _applied("pad", torch.arange(size), attrs)


def _nearest(size: int, attrs: dict[str, Any], axis: int) -> list[int]:
    one: dict[str, Attr] = {name: None if attrs[name] is None else (attrs[name][axis],) for name in ("size", "scales")}
    numbers = torch.arange(size, dtype=torch.float32)  # as PyTorch rounds coordinates
    return _applied("resize", numbers, {**one, "mode": "nearest", "align_corners": False})


def _applied(op: str, numbers: torch.Tensor, attrs: dict[str, Attr]) -> list[int]:
    """What the op's own meaning does with the places of a line."""
    return apply(Node(op, (), (), attrs), (numbers.reshape(1, 1, -1),))[0].flatten().int().tolist()


@ANY.entry("flip", "roll", "repeat", "repeat_interleave", "pad")
def moved(low: Lowering, group: Group) -> None:
    node, y = group.anchor, group.output
    x = node.inputs[0] or ""
    shape, more = low.shape(y), len(low.shape(y)) - len(low.shape(x))
    source, target = low.layout(x), low.place(y)
    strides = (0,) * more + source.strides
    maps = {
        axis: found for axis, found in sources(node, (1,) * more + low.shape(x)).items() if strides[axis] or -1 in found
    }
    names = [f"from{axis}[i{axis}]" if axis in maps else f"i{axis}" for axis in range(len(shape))]
    value = f"x0[{offset(strides, names)}]"
    holes = [f"{names[axis]} < 0" for axis, found in maps.items() if -1 in found]
    if holes:
        fill = literal(node.real("value"), low.value(x).dtype)
        value = f"{' || '.join(holes)} ? {fill} : {value}"
    tables = " ".join(table(f"from{axis}", found) for axis, found in maps.items())
    made = scalar.step(node, shape, [source], target, f"y[{offset(target.strides)}] = {value};", tables)
    low.add(scalar.cleared(made, shape))


# ---- by indices --------------------------------------------------------------------------------------------------


def _pick(low: Lowering, group: Group, places: list[str], indices: dict[str, str], checks: list[str]) -> None:
    """y = x at `places`, C for its index along each axis, where no check fails; `indices` are the C types that they read."""
    node, y = group.anchor, group.output
    x = node.inputs[0] or ""
    source, target = low.layout(x), low.place(y)
    value = f"{' && '.join(checks)} ? x0[{offset(source.strides, places)}] : {missing(low.value(x).dtype)}"
    reads = [source, *(low.layout(name) for name in indices)]
    declared = " ".join(indices.values())
    made = scalar.step(node, low.shape(y), reads, target, f"{declared} y[{offset(target.strides)}] = {value};")
    low.add(scalar.cleared(made, low.shape(y)))


def _index(low: Lowering, k: int, name: str, first: int, rank: int) -> str:
    """C that defines `k1` …, the index that input k holds for the element at i0, i1 …; it broadcasts along `rank` axes from `first` on."""
    layout, shape = low.layout(name), low.shape(name)
    names = [f"i{first + rank - len(shape) + axis}" for axis in range(len(shape))]
    strides = [s if n > 1 else 0 for s, n in zip(layout.strides, shape, strict=True)]
    return f"const int64_t k{k} = x{k}[{offset(strides, names)}];"


def _inside(k: int, size: int) -> str:
    return f"k{k} >= 0 && k{k} < {size}"


@ANY.entry("take")
def _take(low: Lowering, group: Group) -> None:
    node = group.anchor
    x, index = (name or "" for name in node.inputs)
    axis, rank = node.integer("axis"), len(low.shape(index))
    after = [f"i{rank + axis + i}" for i in range(len(low.shape(x)) - axis - 1)]
    places = [*(f"i{i}" for i in range(axis)), "k1", *after]
    _pick(low, group, places, {index: _index(low, 1, index, axis, rank)}, [_inside(1, low.shape(x)[axis])])


@ANY.entry("gather")
def _gather(low: Lowering, group: Group) -> None:
    node = group.anchor
    x, index = (name or "" for name in node.inputs)
    axis, rank = node.integer("axis"), len(low.shape(x))
    places = ["k1" if i == axis else f"i{i}" for i in range(rank)]
    _pick(low, group, places, {index: _index(low, 1, index, 0, rank)}, [_inside(1, low.shape(x)[axis])])


@ANY.entry("index")
def _advanced(low: Lowering, group: Group) -> None:
    """Where the indexed axes are neighbours, the indices' own axes replace them; otherwise those come first."""
    node = group.anchor
    x, *given = node.inputs
    shape = low.shape(x or "")
    axes = [axis for axis, name in enumerate(given) if name is not None]
    rank = max(len(low.shape(given[axis] or "")) for axis in axes)
    first = axes[0] if axes[-1] - axes[0] == len(axes) - 1 else 0
    kept = iter([f"i{i}" for i in range(len(low.shape(group.output))) if not first <= i < first + rank])
    places: list[str] = []
    indices: dict[str, str] = {}
    checks: list[str] = []
    for axis, n in enumerate(shape):
        name = given[axis] if axis < len(given) else None
        if name is None:
            places.append(next(kept))
            continue
        k = list(indices).index(name) + 1 if name in indices else len(indices) + 1
        indices[name] = _index(low, k, name, first, rank)
        places.append(f"k{k}")
        checks.append(_inside(k, n))
    _pick(low, group, places, indices, checks)


@ANY.entry("scatter")
def _scatter(low: Lowering, group: Group) -> None:
    """x, over which the source is then written; one unit of work, in order."""
    node, y = group.anchor, group.output
    x, index, source = (name or "" for name in node.inputs)
    axis, shape = node.integer("axis"), low.shape(index)
    target = low.copy(node, low.value(x), low.layout(x), low.place(y))
    names = ["k1" if i == axis else f"r{i}" for i in range(len(shape))]
    mine = [f"r{i}" for i in range(len(shape))]
    loops = " ".join(f"for (long r{i} = 0; r{i} < {n}; r{i}++)" for i, n in enumerate(shape))
    read = f"const int64_t k1 = x1[{offset(low.layout(index).strides, mine)}];"
    write = f"y[{offset(target.strides, names)}] = x0[{offset(low.layout(source).strides, mine)}];"
    body = f"{loops} {{ {read} if ({_inside(1, low.shape(y)[axis])}) {write} }}"
    low.add(scalar.step(node, (), [low.layout(source), low.layout(index)], target, body))
