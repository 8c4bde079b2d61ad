"""How much room each value's rows get, so that linear operators find padding in place and read and write at one pitch.

A value lies as channel-major rows when it has a channel axis and more than one position. Rows that one kernel reads and writes at
the same positions are of one *class*: they share the pitch of every position axis. Maps of some classes lie in bands."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import repeat
from math import prod
from operator import add, mul

import torch

from abridged.compiler.bands import lines_of_bands
from abridged.compiler.fuse import Group
from abridged.compiler.plan import LANES, SLACK, Bands, Layout, Machine, contiguous, floats, plain, rounded
from abridged.compiler.select import in_place
from abridged.graph.graph import Graph, Node, Value

FARTHEST = SLACK // LANES  # stride of which a vector's lanes are all within what may be read behind a buffer
VIEWS = ("reshape", "permute", "slice", "split", "expand")
DEFAULT_CHANNEL = {2: 1, 3: 2, 4: 1}  # by rank, where no op has said what is a channel


def positions(shape: Iterable[int], channel: int) -> tuple[int, ...]:
    """The sizes of all axes but the channel's."""
    return tuple(n for axis, n in enumerate(shape) if axis != channel)


class Geometry:
    """Channel axes, classes, and zero demands of all values of a graph."""

    def __init__(self, graph: Graph, groups: list[Group], machine: Machine) -> None:
        self.graph, self.machine = graph, machine
        self.channel: dict[str, int | None] = {}
        self.zero: set[str] = set()
        self.inside: dict[str, tuple[str, int]] = {}  # a part of a cat: (whole, first channel)
        self._parent: dict[str, str] = {}
        # Of each class: position sizes, and the zeros that are wanted beside them along each position axis.
        self._members: dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]] = {}
        self._made = {group.output for group in groups if group.anchor.op not in VIEWS}
        self._reach: dict[str, int] = {}  # lines above or below an output's own that windows on rows of a name read
        self._asked: dict[str, str] = {}  # whose windows those are on: by the same names
        self._seen_in: dict[str, str] = {}  # what a view looks at
        for group in groups:
            self._see(group)
        self._reaches = {self._find(names[0]): max(map(self._reach.get, names, repeat(0))) for names in self.classes()}
        self._lines: dict[str, int] = {}  # of a band, by the roots of classes that lie in bands
        if machine.threads > 1:
            self._lines = {self._find(first): n for (first, *_), n in lines_of_bands(self, groups)}
        for key, x in self._asked.items():
            if self._reach[key] and self._find(key) in self._lines:  # lines of other bands take the room of zeros
                self.zero.update((key, x) if self.together(key, x) else (key,))
        for group in reversed(groups):
            self._propagate_zero(group.anchor)
        self._roomy = self._with_room(groups)

    # ---- questions ----

    def layout(self, value: Value, buffer: str, like: str | None = None) -> tuple[Layout, int]:
        """A new value's layout in a buffer of its own, and that buffer's size."""
        channel = self.channel.get(value.name)
        if channel is None or not self.is_rows(like or value.name) or value.dtype != torch.float32:
            return plain(buffer, value.shape, value.dtype), floats(value.shape, value.dtype)
        key = like or value.name
        strides, gap, span = self._metric(key)
        lines = self._lines.get(self._find(key))
        before, after = (gap, (2 if lines and self.reach(key) else 1) * gap) if value.name in self._roomy else (0, 0)
        # An odd number of vectors: rows a power of two apart would fall on one another in the cache.
        row = (rounded(span + after) // LANES | 1) * LANES
        size, bands = rounded(before) + value.shape[channel] * row, None
        if lines:
            bands = Bands(-(-value.shape[2] // lines), lines, rounded(size))
            size = bands.count * bands.apart
        full = (*strides[:channel], row, *strides[channel:])
        return Layout(buffer, rounded(before), full, value.name in self.zero, bands=bands), size

    def reach(self, name: str) -> int:
        """How many lines of its neighbours a band of these rows has beside its own."""
        return self._reaches.get(self._find(name), 0)

    def classes(self) -> list[list[str]]:
        """The names of each class."""
        found: dict[str, list[str]] = {}
        for name in self._parent:
            found.setdefault(self._find(name), []).append(name)
        return list(found.values())

    def sizes(self, name: str) -> set[tuple[int, ...]]:
        """The sizes of the position axes in a class."""
        return {sizes for sizes, _ in self._members[self._find(name)]}

    def together(self, name: str, other: str) -> bool:
        """Whether two names are rows of one class."""
        return self.is_rows(name) and self.is_rows(other) and self._find(name) == self._find(other)

    def is_rows(self, name: str) -> bool:
        return name in self._parent

    def in_place(self, node: Node) -> bool:
        """Whether a convolution with a stride reads its input as it lies; others find it moved into phases."""
        weight = self.graph.constants.get(node.inputs[1] or "")
        if weight is None or weight.tensor.ndim > 4 or max(node.integers("stride")) > FARTHEST:
            return False
        return in_place(weight.tensor.detach().flatten(2).numpy(), node.integer("groups"), self.machine)

    # ---- what each op asks for ----

    def _see(self, group: Group) -> None:
        node, y = group.anchor, group.output
        see = getattr(self, f"_see_{node.op}", self._see_other)
        see(node, y)
        if node.op in VIEWS:
            self._seen_in.update((part, node.inputs[0] or "") for part in node.outputs)
        for name in group.operands:
            alike = self._shape(name) == self._shape(y) and self.channel.get(name) == self.channel[y]
            if alike and self.is_rows(y) and self.is_rows(name):
                self._union(name, y)

    def _see_conv(self, node: Node, y: str) -> None:
        x = node.inputs[0]
        assert x is not None
        self.channel[y] = 1
        single = prod(positions(self._shape(y), 1)) == prod(positions(self._shape(x), 1)) == 1
        if single and node.integer("groups") == 1:  # a matrix times a vector
            return
        self._add(y)
        window = Window(self.graph, node, y)
        if window.strided and self.in_place(node):
            self._ask(x, f"{y}.x", window)
        elif window.strided:
            self._add(f"{y}.x", window.phase_sizes)
            self._union(f"{y}.x", y)
        else:
            self._ask(x, f"{y}.x", window)
            self._union(f"{y}.x", y)

    def _ask(self, x: str, key: str, window: Window) -> None:
        """A kernel reads x with its zero padding in place; `key` stands for x in case that it must be a copy."""
        self._add(key, window.sizes, window.gap)
        self.channel[key] = 1
        self._reach[key], self._asked[key] = window.reach, x
        if any(window.gap):
            self.zero.add(key)
        if self.is_rows(x) and self.channel[x] == 1:
            self._union(key, x)
            if any(window.gap):
                self.zero.add(x)

    def _see_linear(self, node: Node, y: str) -> None:
        x = node.inputs[0]
        assert x is not None
        last = len(self._shape(y)) - 1
        self.channel[y] = last
        if prod(self._shape(y)[:-1]) == 1:
            return
        self._add(y)
        key = f"{y}.x"
        self.channel[key] = last
        self._add(key, positions(self._shape(y), last))
        self._union(key, y)
        if self.is_rows(x) and self.channel[x] == last:
            self._union(x, y)

    def _see_pool(self, node: Node, y: str) -> None:
        self.channel[y] = 1
        if prod(positions(self._shape(y), 1)) > 1:
            self._add(y)

    _see_max_pool = _see_avg_pool = _see_adaptive_avg_pool = _see_adaptive_max_pool = _see_group_norm = _see_pool

    def _memory(self, name: str) -> str:
        """The value whose memory a view looks at."""
        while name in self._seen_in:
            name = self._seen_in[name]
        return name

    def _see_permute(self, node: Node, y: str) -> None:
        x, axes = node.inputs[0], node.integers("axes")
        assert x is not None
        channel = self.channel.get(x)
        if channel is None:
            return
        self.channel[y] = axes.index(channel)
        rest = [axis for axis in axes if axis != channel]
        if self.is_rows(x) and rest == sorted(rest):
            self._add(y)
            self._union(x, y)

    def _see_split(self, node: Node, y: str) -> None:
        x, axis = node.inputs[0], node.integer("axis")
        assert x is not None
        for part in node.outputs:
            self.channel[part] = self.channel.get(x)
            if self.is_rows(x) and axis == self.channel[x]:
                self._add(part)
                self._union(x, part)

    _see_slice = _see_split

    def _see_cat(self, node: Node, y: str) -> None:
        axis = node.integer("axis")
        self._see_other(node, y)
        if not self.is_rows(y) or axis != self.channel[y]:
            return
        # What a window reads sooner is not put where other parts are yet to be written beside it.
        first, sooner = 0, set(map(self._memory, self._asked.values()))
        for x in node.inputs:
            assert x is not None
            if x in self._made and self.is_rows(x) and self.channel[x] == axis:
                self._union(x, y)
                if x not in self.inside and node.inputs.count(x) == 1 and x not in sooner:
                    self.inside[x] = (y, first)
            first += self._shape(x)[self.channel[y] or 0]

    def _see_other(self, node: Node, y: str) -> None:
        """Element-wise, or anything else: as the first input of the same rank lies."""
        shape = self._shape(y)
        known = [x for x in node.inputs if x in self.channel and len(self._shape(x)) == len(shape)]
        full = [x for x in known if self._shape(x) == shape]
        self.channel[y] = self.channel[(full or known)[0]] if known else DEFAULT_CHANNEL.get(len(shape))
        channel = self.channel[y]
        if channel is None or prod(positions(shape, channel)) == 1:
            return
        self._add(y)
        for x in full:
            if self.is_rows(x) and self.channel[x] == channel and node.op not in VIEWS:
                self._union(x, y)

    def _propagate_zero(self, node: Node) -> None:
        """A part must be zero where its whole must be; so must what a view looks at."""
        if node.op in VIEWS and self.zero.intersection(node.outputs):
            self.zero.update(name for name in node.inputs if name is not None)
        for x in node.inputs:
            if x in self.inside and self.inside[x][0] in self.zero:
                self.zero.add(x)

    def _with_room(self, groups: Iterable[Group]) -> set[str]:
        """The values whose rows have room for zeros: what must be zero, and so that sums can be written over their residuals, both of
        them where one has it."""
        found = set(self.zero)
        pairs = [(name, group.output) for group in groups for name in group.operands]
        while more := {name for pair in pairs if found.intersection(pair) for name in pair} - found:
            found |= more
        return found

    # ---- classes: union-find ----

    def _shape(self, name: str) -> tuple[int, ...]:
        return self.graph.values[name].shape

    def _add(self, name: str, sizes: tuple[int, ...] | None = None, gap: tuple[int, ...] | None = None) -> None:
        sizes = sizes or positions(self._shape(name), self.channel[name] or 0)
        self._parent[name] = name
        self._members[name] = [(sizes, gap or (0,) * len(sizes))]

    def _find(self, name: str) -> str:
        while self._parent[name] != name:
            name = self._parent[name]
        return name

    def _union(self, a: str, b: str) -> None:
        a, b = self._find(a), self._find(b)
        if a != b and len(self._members[a][0][0]) == len(self._members[b][0][0]):
            self._parent[a] = b
            self._members[b] += self._members.pop(a)

    def _metric(self, name: str) -> tuple[tuple[int, ...], int, int]:
        """Strides of the position axes, the zeros that may be wanted before and after a row, and how far its elements reach."""
        members = self._members[self._find(name)]
        room = tuple(map(max, zip(*(map(add, sizes, gap) for sizes, gap in members), strict=True)))
        lines = self._lines.get(self._find(name))
        if lines:
            sizes, pitch = members[0][0], room[2]
            gap = self.reach(name) * pitch + room[2] - sizes[2]
            return (lines * pitch, pitch, 1), gap, (lines - 1) * pitch + sizes[2]
        strides = contiguous(room)
        gap = max(sum(map(mul, gap, strides)) for _, gap in members)
        span = max(1 + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True)) for sizes, _ in members)
        return strides, gap, span


class Window:
    """The window of a convolution or pool, in numbers per spatial axis."""

    def __init__(self, graph: Graph, node: Node, y: str) -> None:
        x = node.inputs[0]
        assert x is not None
        self.x_shape, self.y_shape = graph.values[x].shape, graph.values[y].shape
        rank = len(self.x_shape) - 2
        weight = graph.values[node.inputs[1] or ""].shape if len(node.inputs) > 1 else ()
        self.kernel = weight[2:] if weight else node.integers("kernel")
        self.stride = node.integers("stride", (1,) * rank)
        self.padding = node.integers("padding", (0,) * rank)
        self.dilation = node.integers("dilation", (1,) * rank)

    @property
    def strided(self) -> bool:
        return any(s != 1 for s in self.stride)

    @property
    def gap(self) -> tuple[int, ...]:
        """Zeros that are read beside the elements, at most, per position axis (the batch has none)."""
        sides = []
        for n, m, k, s, p, d in zip(
            self.x_shape[2:], self.y_shape[2:], self.kernel, self.stride, self.padding, self.dilation, strict=True
        ):
            sides.append(max(p, (m - 1) * s + (k - 1) * d - p - (n - 1), 0))
        return (0, *sides)

    @property
    def reach(self) -> int:
        """Lines above or below that of an output's first tap which a window reads, at most."""
        p, d, k = self.padding[0], self.dilation[0], self.kernel[0]
        return max(p, (k - 1) * d - p)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Position sizes of x."""
        return (self.x_shape[0], *self.x_shape[2:])

    @property
    def phase_sizes(self) -> tuple[int, ...]:
        """Position sizes of one phase of x, padding included: output position o reads tap t at o + t·dilation // stride."""
        lines = [
            m + (k - 1) * d // s
            for m, k, s, d in zip(self.y_shape[2:], self.kernel, self.stride, self.dilation, strict=True)
        ]
        return (self.y_shape[0], *lines)
