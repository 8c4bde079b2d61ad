"""Each element-wise op as a C expression on single elements of any type; `{0}`, `{1}` … are its operands."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from abridged.compiler import scalar
from abridged.compiler.fuse import Group
from abridged.compiler.lower import ANY, Lowering, broadcast
from abridged.compiler.scalar import literal
from abridged.graph.graph import Node

Dtype = torch.dtype
Form = str | Callable[[Node, Dtype], str]  # of the node and the type of its first operand


def _wrapping(sign: str) -> Callable[[Node, Dtype], str]:
    """Integers wrap around as PyTorch's do, which C promises of unsigned ones alone."""

    def form(node: Node, dtype: Dtype) -> str:
        if dtype == torch.bool:
            return {"+": "({0} | {1})", "*": "({0} & {1})"}[sign]
        return f"({{0}} {sign} {{1}})" if dtype.is_floating_point else f"((uint64_t){{0}} {sign} (uint64_t){{1}})"

    return form


def _by_kind(floating: str, integer: str) -> Callable[[Node, Dtype], str]:
    return lambda node, dtype: floating if dtype.is_floating_point else integer


def _libm(name: str) -> Callable[[Node, Dtype], str]:
    return lambda node, dtype: f"{name}{'f' if dtype == torch.float32 else ''}({{0}})"


def _clamp(node: Node, dtype: Dtype) -> str:
    text = "{0}"
    for bound, sign in (("min", "<"), ("max", ">")):
        limit = node.attrs[bound]
        if isinstance(limit, int | float):
            number = literal(limit, dtype)
            text = f"({text} {sign} {number} ? {number} : {text})"
    return text


def _cast(node: Node, dtype: Dtype) -> str:
    return "({0} != 0)" if node.attrs["dtype"] == torch.bool else "{0}"


_NAN_WINS = "({{0}} {} {{1}} || {{0}} != {{0}} ? {{0}} : {{1}})"

FORMS: Mapping[str, Form] = {
    "add": _wrapping("+"),
    "sub": _wrapping("-"),
    "mul": _wrapping("*"),
    "div": "({0} / {1})",
    "floor_div": _by_kind("d_floor_div({0}, {1})", "i_floor_div({0}, {1})"),
    "remainder": _by_kind("d_remainder({0}, {1})", "i_remainder({0}, {1})"),
    "pow": lambda node, dtype: {torch.float32: "powf({0}, {1})", torch.float64: "pow({0}, {1})"}.get(
        dtype, "i_pow({0}, {1})"
    ),
    "maximum": _NAN_WINS.format(">"),
    "minimum": _NAN_WINS.format("<"),
    "eq": "({0} == {1})",
    "ne": "({0} != {1})",
    "lt": "({0} < {1})",
    "le": "({0} <= {1})",
    "gt": "({0} > {1})",
    "ge": "({0} >= {1})",
    "logical_and": "({0} && {1})",
    "logical_or": "({0} || {1})",
    "logical_xor": "(!{0} != !{1})",
    "logical_not": "(!{0})",
    "where": "({0} ? {1} : {2})",
    "neg": _by_kind("(-{0})", "(0 - (uint64_t){0})"),
    "abs": "({0} > 0 ? {0} : 0 - {0})",
    "sign": "(({0} > 0) - ({0} < 0))",
    "floor": _libm("floor"),
    "ceil": _libm("ceil"),
    "round": _libm("rint"),
    "reciprocal": "(1 / {0})",
    "relu": "({0} < 0 ? 0 : {0})",
    "clamp": _clamp,
    "cast": _cast,
    "prelu": "({0} > 0 ? {0} : {1} * {0})",
    **{name: _libm(name) for name in ("sqrt", "exp", "log", "sin", "cos", "tanh", "erf")},
}


@ANY.entry(*FORMS)
def _arithmetic(low: Lowering, group: Group) -> None:
    node, y = group.anchor, group.output
    form, shape, dtype = FORMS[node.op], low.shape(y), low.value(node.inputs[0] or "").dtype
    reads = [broadcast(low.layout(name), low.shape(name), shape) for name in node.inputs if name]
    if node.op == "prelu":  # its weight lies along the channels, not along the last axis
        weight = node.inputs[1] or ""
        along = tuple(int(axis == 1 and low.shape(weight)[0] > 1) for axis in range(len(shape)))
        reads[1] = low.layout(weight).at(0, along)
    text = form if isinstance(form, str) else form(node, dtype)
    low.add(scalar.elementwise(node, shape, reads, low.place(y), text))
