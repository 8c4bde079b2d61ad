"""What a legal Graph is. Runs after capture and after every change of a Graph."""

from __future__ import annotations

import keyword
import re
from collections.abc import Collection, Iterator

import torch

from abridged.errors import AbridgedError, InputError, nearest
from abridged.graph.graph import Attr, Constant, Graph, Node, Structure, Value
from abridged.graph.ops import OPS, infer, signature
from abridged.graph.structure import indices, unflatten

# C's keywords, less those that Python has too: a name must do as an identifier of emitted code.
_C = """auto case char const default do double enum extern float goto inline int long register restrict short signed sizeof
    static struct switch typedef union unsigned void volatile main NULL"""
C_KEYWORDS = frozenset(re.findall(r"\w+", _C))


class GraphError(AbridgedError):
    """A Graph is not legal: the text names the node and its module path."""


def verify(graph: Graph) -> Graph:
    """The graph itself if it is legal; otherwise raises `GraphError` with the first complaint.

    Legal: names are identifiers, each defined once and before its use; every op is known, with the inputs and attributes that its
    signature declares; shapes and dtypes are those that its meaning gives; constants are what their values say; outputs exist;
    the structures name every input and output once."""
    for complaint in _complaints(graph):
        raise GraphError(complaint)
    return graph


def legal_name(name: str) -> bool:
    """Can this name a value: an identifier of ASCII letters, digits and `_`, and no keyword of C or Python."""
    return (
        bool(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name)) and name not in C_KEYWORDS and not keyword.iskeyword(name)
    )


def _complaints(graph: Graph) -> Iterator[str]:
    yield from (f"'{name}' cannot name a value" for name in graph.values if not legal_name(name))
    yield from (
        f"values['{name}'] is named '{value.name}'" for name, value in graph.values.items() if value.name != name
    )
    defined: set[str] = set()
    for name in (*graph.inputs, *graph.constants):
        yield from _define(name, defined, graph)
    for name, constant in graph.constants.items():
        yield from (f"constant '{name}' {problem}" for problem in _constant(constant, graph.values[name]))
    for node in graph.nodes:
        yield from (f"{problem}, in: {node}" for problem in _node(node, defined, graph))
    yield from (f"output '{name}' is never defined" for name in graph.outputs if name not in defined)
    yield from (f"value '{name}' is never defined" for name in graph.values if name not in defined)
    yield from _structure("input", graph.input_structure, len(graph.inputs))
    yield from _structure("output", graph.output_structure, len(graph.outputs))


def _define(name: str, defined: set[str], graph: Graph) -> Iterator[str]:
    if name in defined:
        yield f"'{name}' is defined twice"
    if name not in graph.values:
        yield f"'{name}' has no value"
    defined.add(name)


def _constant(constant: Constant, value: Value) -> Iterator[str]:
    tensor = constant.tensor
    if tuple(tensor.shape) != value.shape or tensor.dtype != value.dtype:
        yield f"is {tensor.dtype} {tuple(tensor.shape)}, its value says {value.dtype} {value.shape}"
    elif constant.number is not None and not _same(tensor, torch.full_like(tensor, constant.number)):
        yield f"is {tensor.tolist()}, its number says {constant.number}"


def _same(x: torch.Tensor, y: torch.Tensor) -> bool:
    return torch.allclose(x.double(), y.double(), rtol=0, atol=0, equal_nan=True)


def _node(node: Node, defined: set[str], graph: Graph) -> Iterator[str]:
    if node.op not in OPS:
        yield f"unknown op '{node.op}'{nearest(node.op, OPS)}"
    yield from _inputs(node, defined)
    yield from _attrs(node)
    for name in node.outputs:
        yield from _define(name, defined, graph)
    try:
        inferred = infer(node, graph.values)
    except Exception as error:  # whatever torch says of a meaning that cannot run on these inputs
        yield str(error).partition("\n")[0]
        return
    for value in inferred:
        stated = graph.values[value.name]
        if (value.shape, value.dtype) != (stated.shape, stated.dtype):
            yield f"'{value.name}' is {value.dtype} {value.shape}, its value says {stated.dtype} {stated.shape}"


def _inputs(node: Node, defined: Collection[str]) -> Iterator[str]:
    declared = signature(node.op)
    required = len(declared.inputs)
    if len(node.inputs) < required or (len(node.inputs) > required and declared.variadic is None):
        yield f"{node.op} takes {required} inputs, not {len(node.inputs)}"
    parameters = (*declared.inputs, *[str(declared.variadic)] * (len(node.inputs) - required))
    for parameter, name in zip(parameters, node.inputs, strict=True):
        if name is None and parameter not in declared.optional:
            yield f"{node.op} needs its input '{parameter}'"
        if name is not None and name not in defined:
            yield f"'{name}' is read before it is defined"


def _attrs(node: Node) -> Iterator[str]:
    declared = set(signature(node.op).attrs)
    yield from (f"{node.op} needs its attribute '{name}'" for name in sorted(declared - set(node.attrs)))
    yield from (f"{node.op} has no attribute '{name}'" for name in sorted(set(node.attrs) - declared))
    yield from (f"attribute '{name}' is a {type(v).__name__}" for name, v in node.attrs.items() if not _literal(v))


def _literal(attr: Attr) -> bool:
    if isinstance(attr, tuple):
        return all(map(_literal, attr))
    return attr is None or isinstance(attr, bool | int | float | str | torch.dtype)


def _structure(which: str, structure: Structure, count: int) -> Iterator[str]:
    try:
        unflatten(structure, range(count))
    except InputError as error:
        yield f"the {which} structure is {error}"
        return
    named = list(indices(structure))
    if sorted(named) != list(range(count)):
        yield f"the {which} structure names {named} of {count} tensors"
