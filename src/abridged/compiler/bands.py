"""Which maps lie in bands of lines, one for each thread.

A core fetches memory ahead of what it reads. Where threads have parts of the same rows, and rows are short, that takes from another
core what it wrote or will write, again in every layer: two threads were no faster than one at such maps. So a class of maps may be
cut into bands: all channels of a band lie together, and a thread that has the same band in every layer shares no memory with the
others but the lines where bands meet. Those a kernel of its own (`halo.c`) brings from the neighbours before a window reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import TYPE_CHECKING

from abridged.compiler.fuse import Group, in_vectors
from abridged.compiler.select import SPARSE
from abridged.graph.graph import Graph, Node

if TYPE_CHECKING:
    from abridged.compiler.geometry import Geometry

# Bytes of a channel's band: of fewer, vectors are few; of more, what is fetched ahead is a small part.
LEAST, MOST = 256, 8192


def lines_of_bands(geometry: Geometry, groups: Sequence[Group]) -> Iterator[tuple[list[str], int]]:
    """The names of each class that lies in bands, and how many lines a band has."""
    strangers = {
        name
        for group in groups
        if not _knows_bands(geometry, group)
        for node in group.nodes
        for name in (*node.inputs, *node.outputs)
    }
    loads = {group.output: _load(geometry.graph, group.anchor) for group in groups if group.anchor.op == "conv"}
    for names in geometry.classes():
        (size, *others) = geometry.sizes(names[0])
        if others or len(size) != 3 or size[0] != 1 or any(geometry.channel.get(name, 1) != 1 for name in names):
            continue
        if not strangers.isdisjoint(names):
            continue
        lines, load = -(-size[1] // geometry.machine.threads), sum(loads.get(name, 0) for name in names)
        if geometry.reach(names[0]) <= lines < size[1] and worth_it(4 * lines * size[2], load):
            yield names, lines


def worth_it(size: int, load: int) -> bool:
    """Whether bands are, of so many bytes a channel: weights, of which each thread reads all, are a smaller load than maps."""
    return LEAST <= size <= MOST and load <= 0


def _load(graph: Graph, node: Node) -> int:
    """About how many bytes more a convolution reads as weights than it reads and writes in maps."""
    x, weight, _ = node.inputs
    maps = sum(4 * prod(graph.values[name].shape) for name in (x, node.outputs[0]) if name)
    constant = graph.constants.get(weight or "")
    if constant is None:
        return -maps
    tensor = constant.tensor
    size, left = tensor.numel(), int(tensor.count_nonzero())
    return (5 * left if left <= (1 - SPARSE) * size else 4 * size) - maps


def _knows_bands(geometry: Geometry, group: Group) -> bool:
    """Whether the lowering of a group reads and writes maps in bands."""
    node, graph = group.anchor, geometry.graph
    x, y = node.inputs[0] or "", group.output
    if node.op in ("conv", "max_pool", "avg_pool"):
        return True
    if node.op == "adaptive_avg_pool":
        return prod(graph.values[y].shape[2:]) == 1
    if node.op == "mean":
        return len(graph.values[x].shape) == 4 and sorted(node.integers("axes")) == [2, 3]
    if node.op in ("cat", "split", "slice"):
        names = [name for name in (*node.inputs, *node.outputs) if name is not None]
        return all(geometry.is_rows(name) and geometry.channel[name] == node.integer("axis") for name in names)
    if not in_vectors(graph, node):
        return False
    return all(geometry.together(name, y) or prod(graph.values[name].shape[-2:]) == 1 for name in (y, *group.operands))
