"""How PyTorch's ops become ours: one rule per ATen op, named by its schema's arguments.

A rule is a function `(b, x, ...) → Value`, or a tuple of them: `b` is the Graph in the making, the other parameters are those
of the ATen schema that matter (`self` and `input` are called x, `other` y), with the schema's defaults filled in. An argument
that a rule does not name must have its default value. An in-place op `relu_` follows the rule of `relu`.
`b.shape` and `b.dtype` are what PyTorch says of the result, so a rule for a view needs no arithmetic of its own.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch._ops import OpOverload

from abridged.errors import UnsupportedError
from abridged.graph.build import Builder
from abridged.graph.graph import Value
from abridged.tables import Table

Ints = Sequence[int]
Results = Value | tuple[Value, ...]
Rule = Callable[..., Results]

ATEN = Table[Rule]("ATen op")


class Lowering(Builder):
    """A Graph in the making, and what PyTorch says of the results of the op at hand."""

    shapes: tuple[tuple[int, ...], ...] = ()
    dtypes: tuple[torch.dtype, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.shapes[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.dtypes[0]

    def refuse(self, why: str) -> UnsupportedError:
        where = ": ".join(part for part in (self.source, self.path and f"module '{self.path}'") if part)
        return UnsupportedError(f"{where or 'the network'}: {why}")


def axis_of(x: Value, dim: int) -> int:
    return dim % max(len(x.shape), 1)


def axes_of(x: Value, dim: int | Ints | None) -> tuple[int, ...]:
    """Sorted axes from the front; None and () mean all."""
    if isinstance(dim, int):
        return (axis_of(x, dim),)
    return tuple(sorted(axis_of(x, d) for d in dim)) if dim else tuple(range(len(x.shape)))


def per_axis(given: int | Ints, axes: int, default: Ints = ()) -> tuple[int, ...]:
    """One number per spatial axis; PyTorch may give one for all, or none for the default."""
    numbers = (given,) if isinstance(given, int) else tuple(given) or tuple(default)
    return numbers * axes if len(numbers) == 1 else numbers


def batched(b: Lowering, x: Value, spatial: int, f: Callable[[Value], Value]) -> Value:
    """f of (N, C, *spatial), for an x that may lack N."""
    if len(x.shape) > spatial + 1:
        return f(x)
    y = f(b.reshape(x, (1, *x.shape)))
    return b.reshape(y, y.shape[1:])


# ---- calling a rule --------------------------------------------------------------------------------------------------

# Arguments that say nothing about the result that its shape and dtype do not say already.
_SAID_ALREADY = frozenset(
    re.findall(
        r"\w+",
        """dtype layout device pin_memory memory_format non_blocking copy implicit half_to_float momentum cudnn_enable cudnn_enabled
        padding_idx scale_grad_by_freq sparse generator N C HxW num_classes sparse_grad""",
    )
)

_OURS = {"self": "x", "input": "x", "other": "y"}


def arguments(op: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A call's arguments by the names of the schema, defaults included."""
    schema = op._schema.arguments
    given = {a.name: value for a, value in zip(schema, args, strict=False)} | dict(kwargs)
    return {a.name: given.get(a.name, a.default_value) for a in schema}


def rule_of(op: OpOverload) -> Callable[[Lowering, OpOverload, Mapping[str, Any]], Results] | None:
    """What turns a call of an ATen op into ours, or None: the rule of its overload `max.dim`, else of its name `max`."""
    space, _, name = op._schema.name.partition("::")
    names = (f"{name}.{op._overloadname}", f"{name.removesuffix('_')}.{op._overloadname}", name, name.removesuffix("_"))
    known = next((n for n in names if n in ATEN), None)
    if known is None or space != "aten":
        return None
    return lambda b, op, args: _apply(b, op, ATEN[known], args)


def _apply(b: Lowering, op: OpOverload, rule: Rule, args: Mapping[str, Any]) -> Results:
    parameters = inspect.signature(rule).parameters
    takes_all = any(p.kind == p.VAR_KEYWORD for p in parameters.values())
    taken = {}
    for argument in op._schema.arguments:
        name = _OURS.get(argument.name, argument.name)
        if name in parameters or takes_all:
            taken[name] = args[argument.name]
        elif argument.name not in _SAID_ALREADY and args[argument.name] != argument.default_value:
            raise b.refuse(f"{op} with {argument.name}={args[argument.name]} is not in the op set")
    return rule(b, **taken)
