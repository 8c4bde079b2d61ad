"""The Graph: what a network computes, as frozen data. Every later stage reads it; none changes it in place."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

# An attribute of a node: literals and (nested) tuples of them, nothing mutable, no tensors.
Attr = None | bool | int | float | str | torch.dtype | tuple["Attr", ...]

# How the user's (nested) arguments or outputs are made of the flat tensors, as JSON: an int is the index of a flat
# tensor, None is None, {"tuple": [...]}, {"list": [...]} and {"dict": {key: ...}} nest.
Structure = Any


@dataclass(frozen=True, slots=True)
class Quantization:
    """real = scale × (stored − zero_point), per tensor, or along `axis` when scale has one entry per channel."""

    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    axis: int | None = None


@dataclass(frozen=True, slots=True)
class Value:
    """One tensor that flows: its shape is static, batch included."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    quantization: Quantization | None = None


@dataclass(frozen=True, slots=True)
class Constant:
    """A value that is known. `tensor` is the module's own tensor, never a copy; `keys` are its state_dict keys
    (several when weights are shared, none when it is a literal of the user's forward). `number` is the Python number
    that a 0-d literal was written as: exact, where `tensor` is rounded to the dtype of the computation."""

    tensor: torch.Tensor
    keys: tuple[str, ...] = ()
    number: bool | int | float | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """One application of an op of `graph/ops.py`. An optional input that is absent is None."""

    op: str
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Attr] = field(default_factory=dict)
    path: str = ""  # module path, as in named_modules()
    source: str = ""  # the user's line: "net.py:12"

    # Attributes whose type the reader knows; `default` where an op may lack it. `TypeError` tells a graph that is wrong.

    def integer(self, name: str, default: int | None = None) -> int:
        found = self.attrs.get(name, default)
        if not isinstance(found, int):
            raise TypeError(f"{self.op}: {name} is {found!r}, not a whole number")
        return found

    def integers(self, name: str, default: tuple[int, ...] | None = None) -> tuple[int, ...]:
        found = self.attrs.get(name, default)
        if not isinstance(found, tuple) or not all(isinstance(item, int) for item in found):
            raise TypeError(f"{self.op}: {name} is {found!r}, not whole numbers")
        return tuple(item for item in found if isinstance(item, int))

    def real(self, name: str, default: float | None = None) -> float:
        found = self.attrs.get(name, default)
        if not isinstance(found, int | float):
            raise TypeError(f"{self.op}: {name} is {found!r}, not a number")
        return float(found)

    def __str__(self) -> str:
        where = " ".join(part for part in (self.path, self.source) if part)
        return f"{', '.join(self.outputs)} = {self.op}({', '.join(map(str, self.inputs))})" + (
            f"  # {where}" if where else ""
        )


@dataclass(frozen=True)
class Graph:
    """Nodes in an order in which they can run. `values` describes every name: inputs, constants, node outputs."""

    nodes: tuple[Node, ...]
    values: Mapping[str, Value]
    constants: Mapping[str, Constant]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    input_structure: Structure  # of the positional arguments: {"tuple": [0, 1, …]}
    output_structure: Structure

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __str__(self) -> str:
        return "\n".join(map(str, self.nodes))
