"""Reductions and running sums of values of any type, one element at a time."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from abridged.compiler import scalar
from abridged.compiler.columns import axes_of
from abridged.compiler.fuse import Group
from abridged.compiler.lower import ANY, Lowering
from abridged.compiler.scalar import literal, offset

# What `s` becomes for each element `v`; `r` is where it stands along the axis of an argmax. Only floats can be NAN(v).
STEPS: Mapping[str, str] = {
    "sum": "s += v;",
    "prod": "s *= v;",
    "amax": "if (v > s || NAN(v)) s = v;",
    "amin": "if (v < s || NAN(v)) s = v;",
    "argmax": "if (r == 0 || v > best || (NAN(v) && !(NAN(best)))) { best = v; s = r; }",
    "argmin": "if (r == 0 || v < best || (NAN(v) && !(NAN(best)))) { best = v; s = r; }",
}


def _start(op: str, dtype: torch.dtype) -> str:
    if op in ("amax", "amin"):
        sign = -1 if op == "amax" else 1
        if dtype == torch.bool:
            return "0" if op == "amax" else "1"
        if dtype.is_floating_point:
            return literal(sign * float("inf"), dtype)
        bounds = torch.iinfo(dtype)
        return literal(bounds.min if op == "amax" else bounds.max, dtype)
    return "1" if op == "prod" else "0"


@ANY.entry(*STEPS)
def _reduced(low: Lowering, group: Group) -> None:
    node, y = group.anchor, group.output
    x = node.inputs[0] or ""
    shape, source, target = low.shape(x), low.layout(x), low.place(y)
    axes = axes_of(node, len(shape))
    kept = [axis for axis in range(len(shape)) if axis not in axes]
    place = {axis: i for i, axis in enumerate(kept)}
    names = [f"r{axis}" if axis in axes else f"i{place[axis]}" for axis in range(len(shape))]
    strides = [s for axis, s in enumerate(target.strides) if not node.attrs["keepdim"] or axis not in axes]
    loops = " ".join(f"for (long r{axis} = 0; r{axis} < {shape[axis]}; r{axis}++)" for axis in axes)
    update = re.sub(r"NAN\((\w+)\)", r"\1 != \1" if source.type in ("float", "double") else "0", STEPS[node.op])
    kind = "uint64_t" if target.type == "int64_t" and node.op in ("sum", "prod") else target.type
    body = (
        f"{kind} s = {_start(node.op, low.value(y).dtype)}; {source.type} best = 0; (void)best; "
        f"{loops} {{ const {source.type} v = x0[{offset(source.strides, names)}]; "
        f"const long r = r{axes[0] if axes else 0}; (void)r; {update} }} y[{offset(strides)}] = ({target.type})s;"
    )
    made = scalar.step(node, [shape[axis] for axis in kept], [source], target, body)
    low.add(scalar.cleared(made, low.shape(y)))


@ANY.entry("cumsum")
def _running(low: Lowering, group: Group) -> None:
    node, y = group.anchor, group.output
    x = node.inputs[0] or ""
    shape, source, target, along = low.shape(x), low.layout(x), low.place(y), node.integer("axis")
    kept = [axis for axis in range(len(shape)) if axis != along]
    names = ["r" if axis == along else f"i{kept.index(axis)}" for axis in range(len(shape))]
    n = shape[along]
    # In double, as PyTorch: a running sum cannot be one of the sums of blocks.
    kind = {"int64_t": "uint64_t", "float": "double"}.get(target.type, target.type)
    body = (
        f"{kind} s = 0; for (long r = 0; r < {n}; r++) "
        f"{{ s += x0[{offset(source.strides, names)}]; y[{offset(target.strides, names)}] = ({target.type})s; }}"
    )
    made = scalar.step(node, [shape[axis] for axis in kept], [source], target, body)
    low.add(scalar.cleared(made, shape))
