"""Computation one element at a time in the values' own C types, for what vectors of floats do not cover.

A step is a nest of loops over an index space, whose body is C on the indices `i0`, `i1` … and the typed pointers `x0`, `x1` …
(what it reads) and `y` (what it writes). The C compiler vectorizes the inner loop where it can."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import torch

from abridged.compiler.elementwise import single
from abridged.compiler.nest import extent, indices, merged
from abridged.compiler.plan import Call, Choice, Layout, Step
from abridged.graph.graph import Node

Number = bool | int | float


def step(node: Node, shape: Sequence[int], reads: Sequence[Layout], write: Layout, body: str, tables: str = "") -> Step:
    """Run `body` once for each index of `shape`; units of work are the indices of all axes but the last."""
    *outer, n = shape or (1,)
    at = "".join(f" const long i{axis} = {index};" for axis, index in enumerate(indices(outer)))
    pointers = [
        f"const {read.type} *x{i} = (const {read.type} *)a->in[{i}]; (void)x{i};" for i, read in enumerate(reads)
    ]
    text = f"""enum {{ NAME_tasks = {prod(outer)} }};
LOCAL void NAME(const struct nest *a, long begin, long end) {{
  {tables}
  {" ".join(pointers)}
  {write.type} *y = ({write.type} *)a->out;
  for (long u = begin; u < end; u++) {{
   {at}
    for (long i{len(outer)} = 0; i{len(outer)} < {n}; i{len(outer)}++) {{ {body} }}
  }}
}}
"""
    return Step(node, (Choice(Call("", text=text)),), tuple(reads), write)


def elementwise(node: Node, shape: tuple[int, ...], reads: Sequence[Layout], write: Layout, text: str) -> Step:
    """`write` = `text` of `reads`, whose strides are 0 where they broadcast; all have the axes of `shape`."""
    loops = merged(shape, [write.strides, *(read.strides for read in reads)])
    sizes, strides = [n for n, _ in loops], [s for _, s in loops]
    operands = [f"x{k}[{offset([s[k + 1] for s in strides])}]" for k in range(len(reads))]
    put = f"y[{offset([s[0] for s in strides])}] = ({write.type})({text.format(*operands)});"
    return cleared(step(node, sizes, reads, write, put), shape)


def cleared(made: Step, shape: tuple[int, ...]) -> Step:
    """The step, before which what lies between the elements that it writes becomes zero, if that is wanted."""
    write = made.write
    if not write.zero:
        return made
    return replace(made, clears=((write, extent(shape, write)),))


def offset(strides: Sequence[int], names: Sequence[str] | None = None) -> str:
    """C for Σ index · stride; the indices are i0, i1 … unless others are named.

    >>> offset((6, 0, 1))
    'i0 * 6 + i2 * 1'
    """
    names = names or [f"i{axis}" for axis in range(len(strides))]
    return " + ".join(f"{name} * {s}" for name, s in zip(names, strides, strict=True) if s) or "0"


def table(name: str, numbers: Sequence[int] | Sequence[float], kind: str = "int32_t") -> str:
    """C that defines a constant array.

    >>> table("t", [1, -1])
    'static const int32_t t[] = {1, -1};'
    """
    items = [literal(float(n), torch.float32) if kind == "float" else str(n) for n in numbers]
    return f"static const {kind} {name}[] = {{{', '.join(items)}}};"


def literal(value: Number, dtype: torch.dtype) -> str:
    """A C constant of a Python number.

    >>> literal(6, torch.float32), literal(-(2**63), torch.int64)
    ('6.0f', '(-9223372036854775807 - 1)')
    """
    if not dtype.is_floating_point:
        return "(-9223372036854775807 - 1)" if int(value) == -(2**63) else str(int(value))
    if dtype == torch.float32:
        return single(float(value))
    return {"inf": "INFINITY", "-inf": "-INFINITY", "nan": "NAN"}.get(str(float(value)), repr(float(value)))


def missing(dtype: torch.dtype) -> str:
    """What is read where an index leads outside: NaN, or an integer's lowest."""
    lowest = 0 if dtype == torch.bool else float("nan") if dtype.is_floating_point else torch.iinfo(dtype).min
    return literal(lowest, dtype)
