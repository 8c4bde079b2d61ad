"""Pass: a batch in parts. Where no sample looks at another, the network of a few samples runs for one part of the batch after the
other: their maps stay near, and the arena has room for one part alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from math import prod

from abridged.compiler.arithmetic import FORMS
from abridged.compiler.elementwise import EXPRESSIONS
from abridged.compiler.plan import Parts
from abridged.graph.graph import Graph, Node, Value
from abridged.graph.ops import infer

# Bytes of the largest value of a part: of larger ones, one layer leaves the next nothing in any cache.
TOGETHER = 4 << 20


def _always(node: Node, rank: int) -> bool:
    return True


def _by_axis(node: Node, rank: int) -> bool:
    return node.integer("axis") > 0


def _by_axes(node: Node, rank: int) -> bool:
    return node.integers("axes") != () and 0 not in node.integers("axes")


def _by_shape(node: Node, rank: int) -> bool:
    return len(node.integers("normalized_shape")) < rank


def _by_repeats(node: Node, rank: int) -> bool:
    return len(node.integers("repeats")) == rank and node.integers("repeats")[0] == 1


def _by_padding(node: Node, rank: int) -> bool:
    padding = node.attrs["padding"]
    return isinstance(padding, tuple) and padding[0] == (0, 0)


# By op: whether it leaves the samples along the first axis of its first input, of so many axes, apart. Element-wise ops are not here.
_APART: dict[str, Callable[[Node, int], bool]] = {
    **dict.fromkeys(("conv", "conv_transpose", "batch_norm", "group_norm", "resize"), _always),
    **dict.fromkeys(("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool"), _always),
    "reshape": _always,  # of row-major order; whether the first axis is still the batch, its size tells
    **dict.fromkeys(("softmax", "log_softmax", "cumsum", "argmax", "argmin"), _by_axis),
    **dict.fromkeys(("cat", "split", "slice", "repeat_interleave", "take", "gather", "scatter"), _by_axis),
    **dict.fromkeys(("sum", "mean", "prod", "amax", "amin", "var", "vector_norm", "roll", "flip"), _by_axes),
    **dict.fromkeys(("layer_norm", "rms_norm"), _by_shape),
    "linear": lambda node, rank: rank > 1,
    "permute": lambda node, rank: node.integers("axes")[0] == 0,
    "expand": lambda node, rank: len(node.integers("shape")) == rank,
    "repeat": _by_repeats,
    "pad": _by_padding,
}
_ALIKE = ("cat", "gather", "scatter")  # all of whose inputs are of the batch; other ops have weights, which are not


def in_parts(graph: Graph) -> tuple[Graph, Parts | None]:
    """The network of one part of the batch, and how to run it for all; the graph itself where that is better or must be."""
    sizes = {graph.values[name].shape[:1] for name in (*graph.inputs, *graph.outputs)}
    if len(sizes) != 1 or sizes == {()}:
        return graph, None
    ((samples,),) = sizes
    size = _together(graph, samples)
    part = _of(graph, samples, size) if size < samples else None
    if part is None:
        return graph, None
    inputs, outputs = (tuple(_bytes(part.values[name]) for name in names) for names in (graph.inputs, graph.outputs))
    return part, Parts(samples // size, inputs, outputs)


def _together(graph: Graph, samples: int) -> int:
    """How many samples of the batch are a part."""
    computed = (_bytes(value) for name, value in graph.values.items() if name not in graph.constants)
    largest = max(computed, default=0)
    fitting = (n for n in range(1, samples + 1) if samples % n == 0 and n * largest <= TOGETHER * samples)
    return max(fitting, default=1)


def _bytes(value: Value) -> int:
    return prod(value.shape) * value.dtype.itemsize


def _of(graph: Graph, samples: int, size: int) -> Graph | None:
    """The same network for `size` samples; None where one may look at another, or an output is not the batch's."""
    values = {**graph.values, **{name: _cut(graph.values[name], size) for name in graph.inputs}}
    batch, nodes = set(graph.inputs), []
    for node in graph:
        if not batch.isdisjoint(node.inputs):
            whole = [graph.values[name] for name in node.outputs]
            if any(value.shape[:1] != (samples,) for value in whole) or not _apart(node, graph.values, batch):
                return None
            if node.op in ("reshape", "expand"):
                node = replace(node, attrs={**node.attrs, "shape": (size, *node.integers("shape")[1:])})
            batch.update(node.outputs)
            values |= {value.name: value for value in infer(node, values)}
            if any(values[value.name] != _cut(value, size) for value in whole):
                return None
        nodes.append(node)
    return replace(graph, nodes=tuple(nodes), values=values) if batch.issuperset(graph.outputs) else None


def _cut(value: Value, size: int) -> Value:
    return replace(value, shape=(size, *value.shape[1:]))


def _apart(node: Node, values: Mapping[str, Value], batch: Collection[str]) -> bool:
    """Whether samples, along the first axis of what the node reads of the batch, do not meet in it."""
    names = [name for name in node.inputs if name is not None]
    ranks = [len(values[name].shape) for name in names]
    if node.op in FORMS or node.op in EXPRESSIONS:
        shared = [values[name].shape for name in names if name not in batch]
        alike = all(rank == max(ranks) for name, rank in zip(names, ranks, strict=True) if name in batch)
        return alike and all(len(shape) < max(ranks) or shape[0] == 1 for shape in shared)
    if node.op not in _APART or not _APART[node.op](node, ranks[0]):
        return False
    own = [name in batch for name in names]
    return all(own) if node.op in _ALIKE else own[0] and not any(own[1:])
