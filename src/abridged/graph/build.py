"""Building a Graph node by node: shapes are inferred as nodes are added, and names are given at the end."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from abridged.graph.graph import Attr, Constant, Graph, Node, Structure, Value
from abridged.graph.ops import apply, infer, signature
from abridged.graph.verify import legal_name, verify

Number = bool | int | float
Operand = Value | Number


class Builder:
    """A Graph in the making. Call it with an op's name, its inputs and its attributes; it answers with the output's Value.

    >>> build = Builder()
    >>> x = build.input("x", (2, 3), torch.float32)
    >>> y = build("relu", build.binary("sub", x, 1))
    >>> print(build.finish([y], {"tuple": [0]}, 0))
    sub = sub(x, sub_y)
    relu = relu(sub)
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.values: dict[str, Value] = {}
        self.constants: dict[str, Constant] = {}
        self.inputs: list[str] = []
        self.called: dict[str, str] = {}  # the module's own names of its constants
        self.path = ""  # where the nodes to come belong
        self.source = ""

    # -- what flows ----------------------------------------------------------------------------------------------------

    def input(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Value:
        self.inputs.append(name)
        return self._value(name, tuple(shape), dtype)

    def constant(
        self, tensor: Tensor, keys: tuple[str, ...] = (), number: Number | None = None, name: str = ""
    ) -> Value:
        """A known tensor, never copied; `name` is the module's for one that has no key (a buffer that is not saved)."""
        value = self._value(f"%{len(self.values)}", tuple(tensor.shape), tensor.dtype)
        self.constants[value.name] = Constant(tensor, keys, number)
        if keys or name:
            self.called[value.name] = keys[0] if keys else name
        return value

    def literal(self, number: Number, dtype: torch.dtype) -> Value:
        """A Python number, as a 0-d constant."""
        tensor = torch.tensor(number, dtype=dtype)
        return self.constant(tensor, number=number if dtype.is_floating_point else tensor.item())

    def many(self, op: str, *inputs: Value | None, outputs: int, **attrs: Attr) -> tuple[Value, ...]:
        """Add a node with several outputs; of literals alone, the results are literals."""
        names = tuple(f"%{len(self.values) + i}" for i in range(outputs))
        node = Node(op, tuple(None if x is None else x.name for x in inputs), names, attrs, self.path, self.source)
        if inputs and all(name is None or self._is_literal(name) for name in node.inputs):
            known = (None if name is None else self.constants[name].tensor for name in node.inputs)
            return tuple(self.constant(tensor) for tensor in apply(node, tuple(known)))
        values = infer(node, self.values)
        self.values.update((value.name, value) for value in values)
        self.nodes.append(node)
        return values

    def __call__(self, op: str, *inputs: Value | None, **attrs: Attr) -> Value:
        return self.many(op, *inputs, outputs=1, **attrs)[0]

    def _is_literal(self, name: str) -> bool:
        """A tensor that the module does not hold; a lone number stays what it is, exact."""
        return name in self.constants and name not in self.called and self.constants[name].number is None

    def _value(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Value:
        self.values[name] = Value(name, shape, dtype)
        return self.values[name]

    # -- common phrases ------------------------------------------------------------------------------------------------

    def cast(self, x: Operand, dtype: torch.dtype) -> Value:
        """x in a dtype: nothing if it has it, another constant if it is a literal, else a cast."""
        if not isinstance(x, Value):
            return self.literal(x, dtype)
        if x.dtype == dtype:
            return x
        constant = self.constants.get(x.name)
        if constant is not None and constant.number is not None:
            return self.literal(constant.number, dtype)
        return self("cast", x, dtype=dtype)

    def floating(self, x: Operand) -> Value:
        """x as PyTorch sees it where an integer becomes a float."""
        dtype = x.dtype if isinstance(x, Value) else torch.get_default_dtype()
        return self.cast(x, dtype if dtype.is_floating_point else torch.get_default_dtype())

    def promote(self, *xs: Operand, dtype: torch.dtype | None = None) -> tuple[Value, ...]:
        """All in the dtype that PyTorch's type promotion gives them together."""
        stand_ins = [torch.empty(x.shape, dtype=x.dtype, device="meta") if isinstance(x, Value) else x for x in xs]
        common = stand_ins[0]
        for other in stand_ins[1:]:
            result = torch.result_type(common, other)
            deep = [s for s in (common, other) if isinstance(s, Tensor)]
            common = torch.empty(max((s.shape for s in deep), key=len, default=()), dtype=result, device="meta")
        given = common.dtype if isinstance(common, Tensor) else torch.get_default_dtype()
        return tuple(self.cast(x, dtype or given) for x in xs)

    def binary(self, op: str, x: Operand, y: Operand) -> Value:
        """A binary op after type promotion."""
        return self(op, *self.promote(x, y))

    def reshape(self, x: Value, shape: Sequence[int]) -> Value:
        return x if x.shape == tuple(shape) else self("reshape", x, shape=tuple(shape))

    def permute(self, x: Value, axes: Sequence[int]) -> Value:
        return x if tuple(axes) == tuple(range(len(x.shape))) else self("permute", x, axes=tuple(axes))

    def expand(self, x: Value, shape: Sequence[int]) -> Value:
        return x if x.shape == tuple(shape) else self("expand", x, shape=tuple(shape))

    def known(self, x: Value) -> Tensor | None:
        """The tensor that x always is, if it comes from constants alone."""
        if x.name in self.constants:
            return self.constants[x.name].tensor.detach()
        if x.name in self.inputs:
            return None
        node = next(node for node in self.nodes if x.name in node.outputs)
        inputs = tuple(None if name is None else self.known(self.values[name]) for name in node.inputs)
        if any(tensor is None for tensor, name in zip(inputs, node.inputs, strict=True) if name):
            return None
        return apply(node, inputs)[node.outputs.index(x.name)]

    # -- the end -------------------------------------------------------------------------------------------------------

    def finish(self, outputs: Sequence[Value], input_structure: Structure, output_structure: Structure) -> Graph:
        """The verified Graph of what the outputs need, under readable names."""
        nodes = _live(self.nodes, [value.name for value in outputs])
        used = {name for node in nodes for name in node.inputs} | {value.name for value in outputs}
        constants = {name: constant for name, constant in self.constants.items() if name in used}
        names = _names(self.inputs, {old: self.called.get(old, "") for old in constants}, nodes)
        return verify(
            Graph(
                nodes=tuple(
                    replace(node, inputs=tuple(n and names[n] for n in node.inputs), outputs=_all(names, node.outputs))
                    for node in nodes
                ),
                values={names[old]: replace(self.values[old], name=names[old]) for old in names},
                constants={names[old]: constant for old, constant in constants.items()},
                inputs=_all(names, self.inputs),
                outputs=_all(names, (value.name for value in outputs)),
                input_structure=input_structure,
                output_structure=output_structure,
            )
        )


def _all(names: Mapping[str, str], olds: Iterable[str]) -> tuple[str, ...]:
    return tuple(names[old] for old in olds)


def _live(nodes: Sequence[Node], outputs: Iterable[str]) -> list[Node]:
    """The nodes that the outputs depend on, in their order."""
    wanted: set[str | None] = set(outputs)
    live = []
    for node in reversed(nodes):
        if wanted.intersection(node.outputs):
            wanted.update(node.inputs)
            live.append(node)
    return live[::-1]


def _names(inputs: Sequence[str], constants: Mapping[str, str], nodes: Sequence[Node]) -> dict[str, str]:
    """A readable, unique and legal name for every temporary one: inputs by the user's names, weights by the module's, a node by
    its module path if it is the module's only kind of op, else by path and op, a literal by the node that reads it."""
    names: dict[str, str] = {}
    taken: set[str] = set()

    def name(old: str, wish: str) -> None:
        wish = re.sub(r"\W", "_", wish, flags=re.ASCII)
        wish = f"m{wish}" if not wish or wish[0].isdigit() else wish
        free = (f"{wish}_{i}" if i > 1 else wish for i in range(1, len(taken) + 3))
        names[old] = next(n for n in free if n not in taken and legal_name(n))
        taken.add(names[old])

    for old in inputs:
        name(old, old)
    for old, called in constants.items():
        if called:
            name(old, called)
    kinds: defaultdict[str, set[str]] = defaultdict(set)
    for node in nodes:
        kinds[node.path].add(node.op)
    for node in nodes:
        wish = node.path if node.path and len(kinds[node.path]) == 1 else f"{node.path}.{node.op}".lstrip(".")
        for i, old in enumerate(node.outputs):
            name(old, f"{wish}_{i}" if len(node.outputs) > 1 else wish)
    for node in nodes:
        for parameter, reads in zip(_parameters(node), node.inputs, strict=True):
            if reads is not None and reads not in names:
                name(reads, f"{names[node.outputs[0]]}_{parameter}")
    for old in constants:
        if old not in names:
            name(old, "literal")
    return names


def _parameters(node: Node) -> list[str]:
    declared = signature(node.op)
    more = len(node.inputs) - len(declared.inputs)
    return [*declared.inputs, *(f"{declared.variadic}_{i}" for i in range(more))]
