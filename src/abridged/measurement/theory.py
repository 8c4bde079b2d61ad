"""What a network costs on paper: parameters, non-zeros, MACs and bytes, of every layer and of the whole.

- A *parameter* is an element of an `nn.Parameter` that the captured forward reads, trainable or frozen; a shared weight
  counts once, with the layer that reads it first. For a network whose forward reads all of them the total is
  `sum(p.numel() for p in model.parameters())`.
- *Bytes* are those of every tensor the network needs to run: parameters, and also buffers (batch-norm statistics,
  index tables), once each. *Packed* is what `abridged.save` would write for each. Single numbers in the user's forward
  are code and count nothing.
- A layer is a module path, as in `named_modules()`; the whole is the sum of its layers, in every column.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn

from abridged.graph.cost import cost, known, nonzeros
from abridged.graph.graph import Constant, Graph, Node
from abridged.measurement.records import LayerTheory, Theory
from abridged.weights import packed_bytes

COLUMNS = ("parameters", "nonzeros", "macs", "effective_macs", "bytes_dense", "bytes_packed")


@dataclass
class _Layer:
    nodes: list[Node] = field(default_factory=list)
    constants: list[Constant] = field(default_factory=list)


def theory(graph: Graph) -> Theory:
    """Count a Graph. MACs are those of one whole input batch as captured.

    >>> import torch
    >>> from abridged.graph.capture import capture
    >>> counted = theory(capture(nn.Linear(8, 4), torch.zeros(2, 8)))
    >>> counted.parameters, counted.macs, counted.bytes_dense
    (36, 64, 144)
    """
    weights = known(graph)
    layers: list[LayerTheory] = []
    for path, layer in _layers(graph).items():
        costs = [cost(node, graph, weights) for node in layer.nodes]
        counts = [_count(constant) for constant in layer.constants]
        layers.append(
            LayerTheory(
                path=path,
                ops=tuple(node.op for node in layer.nodes),
                shape=graph.values[layer.nodes[-1].outputs[-1]].shape if layer.nodes else (),
                macs=sum(each.macs for each in costs),
                effective_macs=sum(each.effective_macs for each in costs),
                **{name: sum(count[name] for count in counts) for name in ("parameters", "nonzeros", *COLUMNS[4:])},
            )
        )
    return Theory(batch=batch_size(graph), layers=tuple(layers), **total(layers))


def total(layers: Iterable[LayerTheory]) -> dict[str, int]:
    """The sum of every column."""
    rows = list(layers)
    return {name: sum(getattr(row, name) for row in rows) for name in COLUMNS}


def batch_size(graph: Graph) -> int:
    """The samples of one call: the first axis of the first input."""
    shapes = [graph.values[name].shape for name in graph.inputs]
    return shapes[0][0] if shapes and shapes[0] else 1


def _layers(graph: Graph) -> dict[str, _Layer]:
    """The nodes of each module path, in the order in which they first run, and the constants that they read first."""
    layers: dict[str, _Layer] = {}
    seen: set[str] = set()
    for node in graph:
        layer = layers.setdefault(node.path, _Layer())
        layer.nodes.append(node)
        for name in node.inputs:
            if name is not None and name in graph.constants and name not in seen:
                seen.add(name)
                layer.constants.append(graph.constants[name])
    unread = [graph.constants[name] for name in dict.fromkeys(graph.outputs) if name in graph.constants.keys() - seen]
    if unread:  # an output that is a constant
        layers.setdefault("", _Layer()).constants.extend(unread)
    return layers


def _count(constant: Constant) -> dict[str, int]:
    tensor = constant.tensor
    if tensor.ndim == 0 and not constant.keys:
        return dict.fromkeys(COLUMNS, 0)
    trainable = isinstance(tensor, nn.Parameter)
    dense = tensor.numel() * tensor.element_size()
    return {
        "parameters": tensor.numel() if trainable else 0,
        "nonzeros": nonzeros(tensor) if trainable else 0,
        "bytes_dense": dense,
        "bytes_packed": packed_bytes(tensor),
    }
