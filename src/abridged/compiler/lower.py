"""Groups of nodes to kernel calls: one function per op, which finds its operands where they lie or has them copied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from abridged.compiler import nest, scalar
from abridged.compiler.fuse import Group, in_vectors
from abridged.compiler.geometry import VIEWS, Geometry, Window, positions
from abridged.compiler.plan import (
    C_TYPES,
    LANES,
    Call,
    Choice,
    Layout,
    Mask,
    Plan,
    Step,
    Weights,
    contiguous,
    floats,
    plain,
    rounded,
)
from abridged.compiler.view import view
from abridged.errors import UnsupportedError
from abridged.graph.graph import Graph, Node, Value
from abridged.tables import Table

# Kernel families by what a step needs; `select.py` adds the formats and tiles.
Macros = dict[str, int | str]


class Lowering:
    """The walk over the groups: layouts of the values so far, buffers, and the steps that fill them."""

    def __init__(self, graph: Graph, groups: Sequence[Group], geometry: Geometry) -> None:
        self.graph, self.geometry = graph, geometry
        self.values = dict(graph.values)
        self.layouts: dict[str, Layout] = {}
        self.sizes: dict[str, int] = {}
        self.constants: dict[str, Weights] = {}
        self.steps: list[Step] = []
        self._origins: dict[str, int] = {}  # of zero buffers that no step has begun to fill
        for name in graph.inputs:
            self.layouts[name] = self._plain(f"in:{name}", name)
        for group in groups:
            self._lower(group)
        for i, name in enumerate(graph.outputs):
            self._copy(group.anchor, self.value(name), self.layout(name), self._plain(f"out:{i}", name))

    def plan(self) -> Plan:
        outputs = tuple(f"out:{i}" for i in range(len(self.graph.outputs)))
        inputs = tuple(f"in:{name}" for name in self.graph.inputs)
        return Plan(tuple(self.steps), self.sizes, inputs, outputs, self.constants)

    # ---- values ----

    def value(self, name: str) -> Value:
        return self.values[name]

    def shape(self, name: str) -> tuple[int, ...]:
        return self.values[name].shape

    def layout(self, name: str) -> Layout:
        """Where a value lies; a constant gets a place among the weights when it is first read."""
        if name not in self.layouts:
            self.constants[f"const:{name}"] = self.constant(name).reshape(-1)
            self.layouts[name] = self._plain(f"const:{name}", name)
        return self.layouts[name]

    def constant(self, name: str) -> NDArray[Any]:
        return np.ascontiguousarray(self.graph.constants[name].tensor.detach().numpy())

    def place(self, name: str) -> Layout:
        """A place for a value that a step is about to write: inside the cat that it is a part of, or in a buffer of its own."""
        if name not in self.layouts:
            if name in self.geometry.inside:
                whole, first = self.geometry.inside[name]
                outer = self.place(whole)
                channel = self.geometry.channel[name]
                assert channel is not None
                self.layouts[name] = outer.at(first * outer.strides[channel])
            else:
                self.layouts[name] = self.buffer(self.value(name), name)
        return self.layouts[name]

    def buffer(self, value: Value, name: str, like: str | None = None) -> Layout:
        layout, size = self.geometry.layout(value, name, like)
        self.sizes[name] = size
        if layout.zero and layout.origin:
            self._origins[name] = layout.origin
        return layout

    def _plain(self, buffer: str, name: str) -> Layout:
        return plain(buffer, self.shape(name), self.value(name).dtype)

    # ---- steps ----

    def add(self, step: Step) -> None:
        origin = self._origins.pop(step.write.buffer, None)
        if origin:
            start = Layout(step.write.buffer, 0, ())
            step = replace(step, clears=((start, origin), *step.clears))
        self.steps.append(step)

    def refuse(self, node: Node, why: str = "") -> UnsupportedError:
        where = f"module '{node.path}'" if node.path else node.source or "the network"
        return UnsupportedError(f"{where}: target 'native' has no {node.op}{' ' + why if why else ''} yet")

    def _lower(self, group: Group) -> None:
        node = group.anchor
        names = (*(n for member in group.nodes for n in member.inputs if n), *node.outputs, group.output)
        others = [self.value(name).dtype for name in names if self.value(name).dtype != torch.float32]
        op = "elementwise" if in_vectors(self.graph, node) else node.op
        table = ANY if others or op not in LOWER else LOWER
        if op not in table or not C_TYPES.keys() >= set(others):
            raise self.refuse(node, f"of {str(others[0]).removeprefix('torch.')}" if others else "")
        table[op](self, group)

    def _copy(self, node: Node, value: Value, source: Layout, target: Layout) -> Layout:
        if target.type == "float":
            self.elementwise(node, value.shape, [source], target, "{0}")
        else:
            self.add(scalar.elementwise(node, value.shape, [source], target, "{0}"))
        return target

    def elementwise(
        self, node: Node, shape: tuple[int, ...], reads: Sequence[Layout], write: Layout, text: str
    ) -> None:
        channel = self._channel_of(shape, write)
        tight = any(read.buffer.startswith("in:") for read in reads)  # nothing may be read behind what is not ours
        step = None if channel is None or tight else nest.rowwise(node, shape, channel, reads, write, text)
        self.add(step or nest.elementwise(node, shape, reads, write, text))

    def _channel_of(self, shape: tuple[int, ...], write: Layout) -> int | None:
        """The axis of rows, where the layout has rows."""
        if write.buffer not in self.sizes or prod(shape) == 0:
            return None
        row = max(write.strides, default=0)
        channels = [axis for axis, stride in enumerate(write.strides) if stride == row]
        return channels[0] if channels and row % LANES == 0 else None

    def rows(self, node: Node, name: str, key: str) -> Layout:
        """The value as rows of the class of `key`: as it lies, or a copy."""
        like = Value(key, self.shape(name), self.value(name).dtype)
        wanted, _ = self.geometry.layout(like, key)
        found, channel = self.layout(name), self.geometry.channel[key]
        axes = [axis for axis, n in enumerate(self.shape(name)) if n > 1 and axis != channel]
        alike = all(found.strides[axis] == wanted.strides[axis] for axis in axes)
        if alike and (found.zero or not wanted.zero) and found.buffer in self.sizes:
            return found
        return self._copy(node, like, found, self.buffer(like, key))

    def vector(self, node: Node, name: str) -> Layout:
        """A value of one position as contiguous numbers: as it lies, or a copy."""
        found, shape = self.layout(name), self.shape(name)
        if all(stride == 1 for stride, n in zip(found.strides, shape, strict=True) if n > 1):
            return found
        buffer = f"{name}.vector{len(self.steps)}"
        return self._copy(node, self.value(name), found, self.fresh(buffer, shape))

    def straight(self, node: Node, name: str) -> Layout:
        """A copy of a value in row-major order."""
        value = self.value(name)
        target = self.fresh(f"{name}.straight{len(self.steps)}", value.shape, value.dtype)
        return self._copy(node, value, self.layout(name), target)

    def fresh(self, buffer: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Layout:
        """A contiguous buffer of the lowering's own."""
        self.sizes[buffer] = floats(shape, dtype)
        return plain(buffer, shape, dtype)


Lower = Callable[[Lowering, Group], None]
LOWER: Table[Lower] = Table("op of target 'native'")  # where all values are float32
ANY: Table[Lower] = Table("op of target 'native' on values of any type")  # where they are not, or LOWER has no such op


@LOWER.entry("elementwise")
def _elementwise(low: Lowering, group: Group) -> None:
    shape = low.shape(group.output)
    reads = [broadcast(low.layout(name), low.shape(name), shape) for name in group.operands]
    low.elementwise(group.anchor, shape, reads, low.place(group.output), group.text)


def broadcast(layout: Layout, shape: tuple[int, ...], wanted: tuple[int, ...]) -> Layout:
    """A value seen as of a larger shape, as numpy broadcasts."""
    strides = [
        0 if n == 1 and m != 1 else s
        for n, m, s in zip(shape, wanted[len(wanted) - len(shape) :], layout.strides, strict=True)
    ]
    return replace(layout, strides=(0,) * (len(wanted) - len(shape)) + tuple(strides))


@LOWER.entry(*VIEWS)
@ANY.entry(*VIEWS)
def _view(low: Lowering, group: Group) -> None:
    node = group.anchor
    (x, *_) = node.inputs
    assert x is not None
    source = low.layout(x)
    for part, layout in zip(node.outputs, view(node, low.shape(x), source), strict=True):
        if layout is not None:
            low.layouts[part] = layout
            continue
        # A reshape of rows with gaps: gather the elements in x's own shape, then see them in the new one.
        target = low.place(part)
        (back,) = view(replace(node, attrs={"shape": low.shape(x)}), low.shape(part), target)
        if back is not None:
            low._copy(node, low.value(x), source, replace(back, zero=target.zero))
            continue
        straight = low._copy(node, low.value(x), source, low.fresh(f"{part}.plain", low.shape(x), low.value(x).dtype))
        low._copy(node, low.value(part), straight.bare(contiguous(low.shape(part))), target)


@LOWER.entry("cat")
@ANY.entry("cat")
def _cat(low: Lowering, group: Group) -> None:
    node, y = group.anchor, group.output
    axis = node.attrs["axis"]
    assert isinstance(axis, int)
    whole, first = low.place(y), 0
    for x in node.inputs:
        assert x is not None
        if low.geometry.inside.get(x) != (y, first):
            low._copy(node, low.value(x), low.layout(x), whole.at(first * whole.strides[axis]))
        first += low.shape(x)[axis]


# ---- linear operators --------------------------------------------------------------------------------------------


@LOWER.entry("conv")
def _conv(low: Lowering, group: Group) -> None:
    node, y = group.anchor, group.output
    x, weight, bias = _linear_inputs(low, node)
    window = Window(low.graph, node, y)
    groups = int(node.attrs["groups"])  # type: ignore[arg-type]
    flat = weight.reshape(*weight.shape[:2], -1)  # (O, C, T)
    taps = list(product(*map(range, window.kernel)))
    if prod(positions(low.shape(x), 1)) == prod(positions(low.shape(y), 1)) == 1 and groups == 1:
        centre = [
            i
            for i, tap in enumerate(taps)
            if all(t * d == p for t, d, p in zip(tap, window.dilation, window.padding, strict=True))
        ]
        matvec(low, group, x, flat[:, :, centre[0]] if centre else flat[:, :, 0] * 0, bias)
        return
    if window.strided and flat.shape[1] == 1:
        depthwise_strided(low, group, x, flat, bias, window)
        return
    target = low.place(y)
    if window.strided:
        source, offsets = split_phases(low, node, x, y, window, taps)
    else:
        source = low.rows(node, x, f"{y}.x")
        offsets = [
            sum(
                (t * d - p) * s
                for t, d, p, s in zip(tap, window.dilation, window.padding, source.strides[2:], strict=True)
            )
            for tap in taps
        ]
    rows(low, group, source, target, 1, flat, bias, groups, offsets)


def depthwise_strided(low: Lowering, group: Group, x: str, weight: Weights, bias: Weights, window: Window) -> None:
    """A strided convolution of single channels: so little is computed that moving x into phases would take longest."""
    node, y = group.anchor, group.output
    source, target = low.rows(node, x, f"{y}.x"), low.place(y)
    residual = _like(low, node, group.operands[0], y, target, 1) if group.operands else None
    macros = macros_of_window(low, node, window, x, y, source, target) | {
        "O": weight.shape[0] // low.shape(x)[1],
        "G": low.shape(x)[1],
        "RROW": residual.strides[1] if residual else 0,
        **_epilogue(group),
    }
    choice = Choice(Call("depthwise_strided", tuple(macros.items())))
    low.add(Step(node, (choice,), (source,), target, residual, weight, bias))


def _linear_inputs(low: Lowering, node: Node) -> tuple[str, Weights, Weights]:
    """x, weight and bias of a convolution or linear layer; a bias that is absent is zero."""
    x, weight, bias = node.inputs
    for name in (weight, bias):
        if name is not None and name not in low.graph.constants:
            raise low.refuse(node, "whose weights are computed")
    assert x is not None
    assert weight is not None
    w = low.constant(weight)
    return x, w, np.zeros(len(w), np.float32) if bias is None else low.constant(bias)


@LOWER.entry("linear")
def _linear(low: Lowering, group: Group) -> None:
    node, y = group.anchor, group.output
    x, weight, bias = _linear_inputs(low, node)
    if prod(low.shape(x)[:-1]) == 1:
        matvec(low, group, x, weight, bias)
        return
    channel = len(low.shape(x)) - 1
    target, source = low.place(y), low.rows(node, x, f"{y}.x")
    rows(low, group, source, target, channel, weight[:, :, None], bias, 1, [0])


def matvec(low: Lowering, group: Group, x: str, weight: Weights, bias: Weights) -> None:
    """y = W · x with one position."""
    node = group.anchor
    macros: Macros = {"O": weight.shape[0], "K": weight.shape[1], **_epilogue(group)}
    residual = low.vector(node, group.operands[0]) if group.operands else None
    source = low.vector(node, x)
    low.add(
        Step(
            node,
            (Choice(Call("linear", tuple(macros.items()))),),
            (source,),
            low.place(group.output),
            residual,
            weight[:, :, None],
            bias,
        )
    )


def rows(
    low: Lowering,
    group: Group,
    source: Layout,
    target: Layout,
    channel: int,
    weight: Weights,
    bias: Weights,
    groups: int,
    offsets: Sequence[int],
) -> None:
    """y[o, p] = act(Σ W[o, c, t] · x[c, offsets[t] + p] + b[o], r[o, p]) over the positions p of a row."""
    node, shape = group.anchor, low.shape(group.output)
    mask = mask_of(shape, channel, target)
    row = target.strides[channel]
    residual = None
    if group.operands:
        key = group.output if low.geometry.is_rows(group.output) else group.operands[0]
        residual = _like(low, node, group.operands[0], key, target, channel)
    macros: Macros = {
        "O": weight.shape[0] // groups,
        "C": weight.shape[1],
        "G": groups,
        "T": len(offsets),
        "TAPS": "{" + ", ".join(map(str, offsets)) + "}",
        "XROW": source.strides[channel],
        "YROW": row,
        "RROW": residual.strides[channel] if residual else 0,
        "SPAN": mask.span,
        "MASK": int(target.zero),
        "CLEAR": row - rounded(mask.span) if target.zero else 0,
        **_epilogue(group),
    }
    choice = Choice(Call("conv", tuple(macros.items())))
    low.add(Step(node, (choice,), (source,), target, residual, weight, bias, mask if target.zero else None))


def _like(low: Lowering, node: Node, name: str, key: str, target: Layout, channel: int) -> Layout:
    """A residual at the target's pitch: as it lies, where room is behind it, or a copy."""
    found = low.layout(name)
    axes = [axis for axis, n in enumerate(low.shape(name)) if n > 1 and axis != channel]
    if found.buffer in low.sizes and all(found.strides[axis] == target.strides[axis] for axis in axes):
        return found
    own = replace(low.value(key), name=key)
    return low._copy(node, own, found, low.buffer(own, f"{key}.r"))


def mask_of(shape: tuple[int, ...], channel: int, layout: Layout) -> Mask:
    return Mask(positions(shape, channel), positions(layout.strides, channel))


def _epilogue(group: Group) -> Macros:
    return {"RESIDUAL": len(group.operands), "EPILOGUE(v, r)": group.text.format("r")}


def split_phases(
    low: Lowering, node: Node, x: str, y: str, window: Window, taps: Sequence[tuple[int, ...]]
) -> tuple[Layout, list[int]]:
    """x rearranged so that a strided window reads consecutive positions: per channel one row of each phase that a tap reads.

    Output o reads padded coordinate stride·o + dilation·tap, which is line o + (dilation·tap) // stride of a phase."""
    low.geometry.channel[f"{y}.x"] = 1
    like, _ = low.geometry.layout(Value(f"{y}.x", (1,) * len(low.shape(x)), low.value(x).dtype), f"{y}.x")
    pitches, sizes = like.strides[2:], window.phase_sizes
    sub = rounded(Mask(sizes, positions(like.strides, 1)).span)
    places = [
        [(t * d % s, t * d // s) for t, d, s in zip(tap, window.dilation, window.stride, strict=True)] for tap in taps
    ]
    phases = sorted({tuple(phase for phase, _ in place) for place in places})
    offsets = [
        phases.index(tuple(phase for phase, _ in place)) * sub
        + sum(line * pitch for (_, line), pitch in zip(place, pitches, strict=True))
        for place in places
    ]
    batch, channels, *spatial = low.shape(x)
    source, row = low.layout(x), len(phases) * sub
    target = Layout(f"{y}.x", 0, (like.strides[0], row, *pitches))
    low.sizes[target.buffer] = channels * row
    macros = _two_axes(low, node, window, spatial, source.strides) | {
        "C": channels,
        "XROW": source.strides[1],
        "YROW": row,
        "N": batch,
        "XSTACK": source.strides[0],
        "YSTACK": like.strides[0],
        "PHASES": "{" + ", ".join("{" + ", ".join(map(str, (0,) * (2 - len(p)) + p)) + "}" for p in phases) + "}",
        "P": len(phases),
        "SUB": sub,
        "HS": sizes[1] if len(sizes) > 2 else 1,
        "WS": sizes[-1],
        "YPITCH": pitches[0] if len(pitches) > 1 else 0,
    }
    low.add(Step(node, (Choice(Call("split", tuple(macros.items()))),), (source,), target))
    return target, offsets


def _two_axes(low: Lowering, node: Node, window: Window, spatial: Sequence[int], strides: tuple[int, ...]) -> Macros:
    """Macros of a window over one or two spatial axes, as over two."""
    if len(spatial) > 2:
        raise low.refuse(node, f"over {len(spatial)} spatial axes")

    def two(numbers: Sequence[int], default: int) -> tuple[int, int]:
        return (default, numbers[0]) if len(numbers) == 1 else (numbers[0], numbers[1])

    pairs = {
        ("SY", "SX"): two(window.stride, 1),
        ("PY", "PX"): two(window.padding, 0),
        ("DY", "DX"): two(window.dilation, 1),
        ("KH", "KW"): two(window.kernel, 1),
        ("H", "W"): two(spatial, 1),
        ("OH", "OW"): two(window.y_shape[2:], 1),
        ("XPITCH", "XSTEP"): two(strides[2:], 0),
    }
    return {name: n for names, numbers in pairs.items() for name, n in zip(names, numbers, strict=True)}


def macros_of_window(
    low: Lowering, node: Node, window: Window, x: str, y: str, source: Layout, target: Layout
) -> Macros:
    mask = mask_of(low.shape(y), 1, target)
    batch, _, *spatial = low.shape(x)
    return _two_axes(low, node, window, spatial, source.strides) | {
        "XROW": source.strides[1],
        "YROW": target.strides[1],
        "N": batch,
        "XSTACK": source.strides[0],
        "YSTACK": target.strides[0],
        "YPITCH": target.strides[2] if len(spatial) > 1 else 0,
        "SPAN": mask.span,
        "MASK": int(target.zero),
        "CLEAR": target.strides[1] - rounded(mask.span) if target.zero else 0,
    }
