"""Reductions, softmaxes and layer norms: a vector of columns at a time, each walked along the reduced axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from abridged.compiler.elementwise import number
from abridged.compiler.fuse import Group
from abridged.compiler.lower import LOWER, Lowering
from abridged.compiler.nest import indices, merged, vector_load, vector_store
from abridged.compiler.plan import Call, Choice, Layout, Step
from abridged.compiler.pool import around, mean
from abridged.graph.graph import Node

_MEAN = "SUM(s, x); s = s / COUNT; "


@dataclass(frozen=True, slots=True)
class Column:
    """C statements over one column: EACH(statement) sees its elements as `x` (and `w`, `b` beside them), SUM(s, term) defines
    the sum `s` of a term in them, SUMS two of them at once, PUT(value) writes one."""

    body: str | Callable[[Node], str]
    keeps: bool = True  # one output per element, or one per column


def _norm(node: Node) -> str:
    order = node.real("ord")
    if math.isinf(order):
        pick, start = ("v_max", "0.0f") if order > 0 else ("v_min", "INFINITY")
        return f"V s = v_set({start}); EACH(s = {pick}(s, v_abs(x))); PUT(s);"
    term, root = {
        0.0: ("v_where(v_less(v_set(0.0f), v_abs(x)) | v_nan(x), v_set(1.0f), v_set(0.0f))", "s"),
        1.0: ("v_abs(x)", "s"),
        2.0: ("x * x", "v_sqrt(s)"),
    }.get(order, (f"v_pow(v_abs(x), {number(order)})", f"v_pow(s, {number(1 / (order or 1))})"))
    return f"SUM(s, {term}); PUT({root});"


# A mean is off by a unit in the last place, and where hardly more is left of the elements without it, that would show: what is
# left of them has a mean, too.
COLUMNS: Mapping[str, Column] = {
    "sum": Column("SUM(s, x); PUT(s);", keeps=False),
    "mean": Column(_MEAN + "PUT(s);", keeps=False),
    "prod": Column("V s = v_set(1.0f); EACH(s = s * x); PUT(s);", keeps=False),
    "var": Column(_MEAN + "SUM(d, x - s); s = s + d / COUNT; SUM(q, (x - s) * (x - s)); PUT(q / FREE);", keeps=False),
    "vector_norm": Column(_norm, keeps=False),
    "amax": Column("V s = v_set(-INFINITY); EACH(s = v_max(s, x)); PUT(s);", keeps=False),
    "amin": Column("V s = v_set(INFINITY); EACH(s = v_min(s, x)); PUT(s);", keeps=False),
    "softmax": Column(
        "V m = v_set(-INFINITY); EACH(m = v_max(m, x)); SUM(s, v_exp(x - m)); EACH(PUT(v_exp(x - m) / s));"
    ),
    "log_softmax": Column(
        # Both less than x, one by one: the sum of a large maximum and a small logarithm would be rounded.
        "V m = v_set(-INFINITY); EACH(m = v_max(m, x)); SUM(s, v_exp(x - m)); s = v_log(s); EACH(PUT(x - m - s));"
    ),
    "rms_norm": Column("SUM(q, x * x); q = 1.0f / v_sqrt(q / COUNT + EPS); EACH(PUT(x * q * w));"),
    "layer_norm": Column(
        _MEAN + "SUMS(d, x - s, q, (x - s) * (x - s)); d = d / COUNT; s = s + d; "
        "q = v_max(q / COUNT - d * d, v_set(0.0f)); q = 1.0f / v_sqrt(q + EPS); EACH(PUT((x - s) * q * w + b));"
    ),
}


@LOWER.entry(*(op for op in COLUMNS if op != "mean"))
def _columns(low: Lowering, group: Group) -> None:
    node, y = group.anchor, group.output
    name, *affine = node.inputs
    assert name is not None
    shape, source, target = low.shape(name), low.layout(name), low.place(y)
    axes = axes_of(node, len(shape))
    column = COLUMNS[node.op]
    strides = _strides(len(shape), axes, bool(node.attrs.get("keepdim")), target, column.keeps)
    parameters = [None if p is None else low.layout(p) for p in affine]
    text = _text(node, column, shape, axes, source.strides, strides, parameters)
    reads = (source, *(p for p in parameters if p is not None))
    clears = around(low, y, target) if target.zero else ()
    low.add(Step(node, (Choice(Call("", text=text)),), reads, target, clears=clears))


@LOWER.entry("mean")
def _mean(low: Lowering, group: Group) -> None:
    """The average of whole maps has a kernel of its own."""
    shape = low.shape(group.anchor.inputs[0] or "")
    lies = low.layout(group.anchor.inputs[0] or "").strides
    if len(shape) in (3, 4) and axes_of(group.anchor, len(shape)) == tuple(range(2, len(shape))) and lies[-1] == 1:
        mean(low, group.anchor, group.output)
    else:
        _columns(low, group)


def axes_of(node: Node, rank: int) -> tuple[int, ...]:
    """The axes that a reduction or norm runs over, in order."""
    if "normalized_shape" in node.attrs:
        return tuple(range(rank - len(node.integers("normalized_shape")), rank))
    return (node.integer("axis"),) if "axis" in node.attrs else tuple(sorted(node.integers("axes")))


def _strides(rank: int, axes: Sequence[int], keepdim: bool, target: Layout, keeps: bool) -> tuple[int, ...]:
    """The output's strides along the input's axes: 0 along those that are gone."""
    if keeps:
        return target.strides
    kept = [s for axis, s in enumerate(target.strides) if axis not in axes] if keepdim else list(target.strides)
    return tuple(0 if axis in axes else kept.pop(0) for axis in range(rank))


def _text(
    node: Node,
    column: Column,
    shape: tuple[int, ...],
    axes: Sequence[int],
    x: tuple[int, ...],
    y: tuple[int, ...],
    parameters: Sequence[Layout | None],
) -> str:
    across = [axis for axis in range(len(shape)) if axis not in axes]
    picked = [tuple(strides[axis] for axis in across) for strides in (x, y)]
    *outer, (n, inner) = merged(tuple(shape[axis] for axis in across), picked)
    at = list(zip(indices([size for size, _ in outer]), outer, strict=True))
    starts = ["".join(f" + {index} * {s[k]}" for index, (_, s) in at) for k in (0, 1)]
    # In blocks, whose sums are summed: one long sum would lose more to rounding with every element.
    loops = "".join(f"for (long r{axis} = 0; r{axis} < {shape[axis]}; r{axis}++) " for axis in axes[:-1])
    last, most = (axes[-1], shape[axes[-1]]) if axes else ("_", 1)
    loops += f"for (long block = 0; block < {most}; block += 64) "
    steps = f"for (long r{last} = block; r{last} < MIN(block + 64, {most}); r{last}++)"
    offsets = ["".join(f" + r{axis} * {strides[axis]}" for axis in axes) for strides in (x, y)]
    fields = iter(range(1, 3))
    given = [f"v_set(a->in[{next(fields)}][r])" if p is not None else None for p in parameters]
    scale, shift = (*given, None, None)[:2]
    count = prod(shape[axis] for axis in axes)
    free = max(0.0, count - node.real("correction", 0.0))
    load = vector_load("x", f"(p + j * {inner[0]}{offsets[0]})", inner[0], "n")
    eps = number(node.real("eps", 0.0))
    body = column.body if isinstance(column.body, str) else column.body(node)
    body = body.replace("COUNT", f"{count}.0f").replace("FREE", number(free)).replace("EPS", eps)
    put = vector_store(f"(out + j * {inner[1]}{offsets[1] if column.keeps else ''})", inner[1], "(value)", "n")
    return f"""#define WALK(behind, ...) {{ long r = 0; {loops}{{ {steps} {{ {load} V w = {scale or "v_set(1.0f)"}, b = {shift or "v_set(0.0f)"}; (void)w, (void)b; r++; __VA_ARGS__; }} behind; }} }}
#define EACH(...) WALK(, __VA_ARGS__)
#define SUM(s, term) V s = v_set(0.0f); {{ V t = s; WALK(s = s + t; t = v_set(0.0f), t = t + (term)) }}
#define SUMS(s, term, q, other) V s = v_set(0.0f), q = s; {{ V t = s, u = s; WALK(s = s + t; q = q + u; t = u = v_set(0.0f), t = t + (term); u = u + (other)) }}
#define PUT(value) {put}
enum {{ NAME_tasks = {prod(size for size, _ in outer)} }};
LOCAL void NAME(const struct nest *a, long begin, long end) {{
  for (long u = begin; u < end; u++) {{
    const float *p = a->in[0]{starts[0]};
    float *out = a->out{starts[1]};
    for (long j = 0; j < {n}; j += LANES) {{
      const long n = MIN(LANES, {n} - j);
      {body}
    }}
  }}
}}
#undef WALK
#undef EACH
#undef SUM
#undef SUMS
#undef PUT
"""
