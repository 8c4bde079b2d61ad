"""The oracle: a Graph run node by node with each op's meaning. Slow, and obviously right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from abridged.errors import InputError
from abridged.graph.graph import Constant, Graph, Node, Value
from abridged.graph.ops import apply
from abridged.graph.structure import flatten, unflatten

Observe = Callable[[Node, tuple[Tensor, ...]], None]


def interpret(graph: Graph, *inputs: Any, dtype: torch.dtype | None = None) -> Any:
    """A network's outputs, in the user's own structure, from its positional inputs.

    With `dtype=torch.float64` every floating tensor is float64, the numbers of the user's code included: a reference
    for every other way to run the network. Raises `InputError` when the inputs are not those that were captured."""
    leaves, structure = flatten(inputs)
    if structure != graph.input_structure:
        raise InputError(f"the inputs are nested as {structure}, the network was captured with {graph.input_structure}")
    return unflatten(graph.output_structure, run(graph, leaves, dtype=dtype))


@torch.no_grad()
def run(
    graph: Graph, inputs: Sequence[Tensor], *, dtype: torch.dtype | None = None, observe: Observe | None = None
) -> tuple[Tensor, ...]:
    """The flat outputs from the flat inputs; `observe` sees the results of every node as it runs."""
    if len(inputs) != len(graph.inputs):
        raise InputError(f"the network takes {len(graph.inputs)} input tensors, not {len(inputs)}")
    known: dict[str, Tensor] = {
        name: _checked(graph.values[name], tensor, dtype) for name, tensor in zip(graph.inputs, inputs, strict=True)
    }
    device = inputs[0].device if inputs else torch.device("cpu")
    known |= {name: _constant(constant, dtype).to(device) for name, constant in graph.constants.items()}
    last = _last_uses(graph)
    for position, node in enumerate(graph.nodes):
        results = apply(node, tuple(None if name is None else known[name] for name in node.inputs), dtype)
        if observe is not None:
            observe(node, results)
        known.update(zip(node.outputs, results, strict=True))
        for name in {name for name in (*node.inputs, *node.outputs) if name is not None}:
            if last.get(name, position) == position:
                del known[name]
    return tuple(known[name] for name in graph.outputs)


def _constant(constant: Constant, dtype: torch.dtype | None) -> Tensor:
    tensor = constant.tensor.detach()
    if dtype is None or not tensor.is_floating_point():
        return tensor
    return tensor.to(dtype) if constant.number is None else torch.full_like(tensor, constant.number, dtype=dtype)


def _checked(value: Value, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise InputError(f"input '{value.name}' must be a tensor, not {type(tensor).__name__}")
    if tuple(tensor.shape) != value.shape:
        raise InputError(f"input '{value.name}' has shape {tuple(tensor.shape)}; captured with {value.shape}")
    if dtype is not None and value.dtype.is_floating_point and tensor.is_floating_point():
        return tensor.to(dtype)
    if tensor.dtype != value.dtype:
        raise InputError(f"input '{value.name}' is {tensor.dtype}; the network was captured with {value.dtype}")
    return tensor


def _last_uses(graph: Graph) -> Mapping[str | None, int]:
    """Position of the last node that reads each name; outputs outlive every node, what nobody reads is absent."""
    last: dict[str | None, int] = {name: i for i, node in enumerate(graph.nodes) for name in node.inputs}
    return last | dict.fromkeys(graph.outputs, len(graph.nodes))
