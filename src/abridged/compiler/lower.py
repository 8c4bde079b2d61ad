"""Groups of nodes to kernel calls: one function per op, which finds its operands where they lie or has them copied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from abridged.compiler import nest, scalar
from abridged.compiler.fuse import Group, in_vectors
from abridged.compiler.geometry import VIEWS, Geometry
from abridged.compiler.plan import (
    C_TYPES,
    LANES,
    Call,
    Choice,
    Layout,
    Plan,
    Step,
    Weights,
    contiguous,
    floats,
    plain,
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
        self._origins: dict[str, Layout] = {}  # zero buffers that no step has begun to fill
        self._met: set[tuple[Layout, int]] = set()  # maps, of so many channels, that have lines of their neighbours
        for name in graph.inputs:
            self.layouts[name] = self._plain(f"in:{name}", name)
        for group in groups:
            self._lower(group)
        last = groups[-1].anchor if groups else Node("output", (), (), {})  # inputs and constants may be all there is
        for i, name in enumerate(graph.outputs):
            self.copy(last, self.value(name), self.layout(name), self._plain(f"out:{i}", name))

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
            self._origins[name] = layout
        return layout

    def _plain(self, buffer: str, name: str) -> Layout:
        return plain(buffer, self.shape(name), self.value(name).dtype)

    # ---- steps ----

    def add(self, step: Step) -> None:
        whole = self._origins.pop(step.write.buffer, None)
        if whole:
            starts = tuple((band.at(-whole.origin), whole.origin) for band in whole.each)
            step = replace(step, clears=(*starts, *step.clears))
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

    def copy(self, node: Node, value: Value, source: Layout, target: Layout) -> Layout:
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
        if step or not any(layout.bands for layout in (write, *reads)):
            self.add(step or nest.elementwise(node, shape, reads, write, text))
            return
        # Lines that lie in one band of every operand at a time.
        cuts = {h for layout in (write, *reads) for h in range(0, shape[2], layout.cut or shape[2])}
        clears = tuple((band, nest.extent(write.of_band(shape), band)) for band in write.each) if write.zero else ()
        for first, last in pairwise([*sorted(cuts), shape[2]]):
            part, *parts = (layout.line(first) for layout in (write, *reads))
            one = nest.elementwise(node, (*shape[:2], last - first, *shape[3:]), parts, replace(part, zero=False), text)
            self.add(replace(one, clears=() if first else clears))

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
        alike = all(found.strides[axis] == wanted.strides[axis] for axis in axes) and found.cut == wanted.cut
        if alike and (found.zero or not wanted.zero) and found.buffer in self.sizes:
            return found
        return self.copy(node, like, found, self.buffer(like, key))

    def meet(self, node: Node, source: Layout, shape: tuple[int, ...], reach: int) -> None:
        """Each band of rows gets so many of its neighbours' lines beside its own: as many as any window on rows of its class reads."""
        if source.bands is None or not reach or (source, shape[1]) in self._met:
            return
        self._met.add((source, shape[1]))
        _, channels, height, _ = shape
        macros: Macros = {
            "C": channels,
            "H": height,
            "YROW": source.strides[1],
            "YPITCH": source.strides[2],
            "LINES": source.bands.lines,
            "REACH": reach,
            "BANDS": source.bands.count,
            "APART": source.bands.apart,
        }
        self.add(Step(node, (Choice(Call("halo", tuple(macros.items()))),), (source,), source.band(0)))

    def vector(self, node: Node, name: str) -> Layout:
        """A value of one position as contiguous numbers: as it lies, or a copy."""
        found, shape = self.layout(name), self.shape(name)
        if all(stride == 1 for stride, n in zip(found.strides, shape, strict=True) if n > 1):
            return found
        buffer = f"{name}.vector{len(self.steps)}"
        return self.copy(node, self.value(name), found, self.fresh(buffer, shape))

    def straight(self, node: Node, name: str) -> Layout:
        """A copy of a value in row-major order."""
        value = self.value(name)
        target = self.fresh(f"{name}.straight{len(self.steps)}", value.shape, value.dtype)
        return self.copy(node, value, self.layout(name), target)

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
            low.copy(node, low.value(x), source, replace(back, zero=target.zero))
            continue
        straight = low.copy(node, low.value(x), source, low.fresh(f"{part}.plain", low.shape(x), low.value(x).dtype))
        low.copy(node, low.value(part), straight.bare(contiguous(low.shape(part))), target)


@LOWER.entry("cat")
@ANY.entry("cat")
def _cat(low: Lowering, group: Group) -> None:
    node, y = group.anchor, group.output
    axis = node.integer("axis")
    whole, first = low.place(y), 0
    rows = low.geometry.is_rows(y) and low.geometry.channel[y] == axis and whole.type == "float"
    for x in node.inputs:
        assert x is not None
        part = whole.at(first * whole.strides[axis])
        if not rows:
            # The parts lie between one another: each writes its own elements alone, and nothing is cleared after the first.
            make = nest.elementwise if whole.type == "float" else scalar.elementwise
            step = make(node, low.shape(x), [low.layout(x)], replace(part, zero=False), "{0}")
            clears = ((whole, nest.extent(low.shape(y), whole)),) if whole.zero and not first else ()
            low.add(replace(step, clears=clears))
        elif low.geometry.inside.get(x) != (y, first):
            low.copy(node, low.value(x), low.layout(x), part)
        first += low.shape(x)[axis]
