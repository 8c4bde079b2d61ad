"""A plan as C: one self-contained file, its header, and the weights as the kernels read them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from abridged import kernels
from abridged.compiler import nest
from abridged.compiler.plan import SLACK, Call, Layout, Mask, Parts, Plan, Step, Weights, rounded

ALIGNMENT = 64  # bytes


@dataclass(frozen=True, slots=True)
class Sources:
    """`files` by name; `parts` is into how many units of about equal size model.c may be compiled."""

    files: dict[str, bytes]
    parts: int


class _Blob:
    """weights.bin as it grows: equal contents once, each at an aligned offset."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._offsets: dict[bytes, int] = {}
        self._end = 0

    def add(self, content: bytes) -> int:
        if content not in self._offsets:
            self._offsets[content] = self._end
            padded = content + bytes(-len(content) % ALIGNMENT)
            self._chunks.append(padded)
            self._end += len(padded)
        return self._offsets[content]

    def bytes(self) -> bytes:
        return b"".join(self._chunks) + bytes(4 * SLACK)


_HEADER = """/* Written by Abridged. One network: static shapes, no globals, no allocation. */
#ifndef MODEL_H
#define MODEL_H

#define MODEL_INPUTS {inputs}
#define MODEL_OUTPUTS {outputs}
#define MODEL_STEPS {steps}
#define MODEL_ARENA_BYTES {arena}L /* of floats; a multiple of 64 */
#define MODEL_WEIGHTS_BYTES {weights}L /* weights.bin; a multiple of 64 */
#define MODEL_WEIGHTS_ID "{digest}" /* its SHA-256 begins so */

/* Runs task(args, begin, end) over all of [0, count), in any parts and order, at once or not. */
typedef void (*model_task)(const void *args, long begin, long end);
typedef void (*model_parallel_for)(void *pool, model_task task, const void *args, long count);

#ifdef __GNUC__
#define MODEL_API __attribute__((visibility("default")))
#define MODEL_ALIGNED __attribute__((aligned(64))) /* for speed: where arena and weights should begin */
#else
#define MODEL_API
#define MODEL_ALIGNED
#endif

MODEL_API long model_arena_bytes(void);
/* Once per arena, before the first run. */
MODEL_API void model_prepare(void *arena);
/* parallel_for may be 0: then all is done here, one after the other. */
MODEL_API void model_run(const float *const *inputs, float *const *outputs, const void *weights, void *arena,
                         model_parallel_for parallel_for, void *pool);
#endif
"""

# Arguments of a step of bands: those of the first, and how much further those of the next begin.
_BANDS = """
struct args_bands { struct args a; long x, y, r; };
INLINE struct args args_band(const void *args, long k) {
  const struct args_bands *s = args;
  struct args a = s->a;
  a.x += k * s->x;
  a.y += k * s->y;
  if (a.r) a.r += k * s->r;
  a.band = k;
  return a;
}
struct nest_bands { struct nest a; long out, in[8]; };
INLINE struct nest nest_band(const void *args, long k) {
  const struct nest_bands *s = args;
  struct nest a = s->a;
  for (int i = 0; i < 8 && a.in[i]; i++) a.in[i] += k * s->in[i];
  a.out += k * s->out;
  return a;
}
"""

_MASKS = """
static void mask(int32_t *m, long total, const long *shape, const long *strides, int rank) {
  for (long p = 0; p < total; p++) m[p] = 0;
  long count = 1;
  for (int i = 0; i < rank; i++) count *= shape[i];
  for (long u = 0; u < count; u++) {
    long rest = u, p = 0;
    for (int i = rank - 1; i >= 0; rest /= shape[i--]) p += rest % shape[i] * strides[i];
    m[p] = -1;
  }
}
"""


def emit(plan: Plan, every: bool = False) -> Sources:
    """model.c, model.h and weights.bin. `every`: with all choices of every step, of which `model_choices` says which one runs."""
    blob = _Blob()
    constants = {name: blob.add(tensor.tobytes()) for name, tensor in plan.constants.items()}
    symbols: dict[tuple[Call, int], str] = {}
    lines = []
    for i, step in enumerate(plan.steps):
        ways = []
        for choice in step.choices if every else step.choices[:1]:
            symbol = symbols.setdefault((choice.call, step.bands), f"k{len(symbols)}")
            ways.append(_step(plan, replace(step, choices=(choice,)), symbol, constants, blob))
        lines.append(ways[0] if len(ways) == 1 else _switch(i, ways))
    parts = _parts([_instance(call, bands, symbol) for (call, bands), symbol in symbols.items()])
    weights = blob.bytes()
    header = _HEADER.format(
        inputs=len(plan.inputs),
        outputs=len(plan.outputs),
        steps=len(plan.steps),
        arena=4 * plan.arena,
        weights=len(weights),
        digest=hashlib.sha256(weights).hexdigest()[:16],
    )
    source = "\n".join(
        [
            '#include "model.h"\n#include <math.h>',
            kernels.preamble(),
            nest.PREAMBLE,
            _BANDS if any(step.bands > 1 for step in plan.steps) else "",
            *(_part(i, texts) for i, texts in enumerate(parts)),
            f"#if PART < 0 || PART == {len(parts)}",
            _declarations(symbols.values()),
            _MASKS if plan.masks else "",
            "long model_arena_bytes(void) { return MODEL_ARENA_BYTES; }",
            _prepare(plan),
            f"MODEL_API int model_choices[{max(1, len(lines))}];" if every else "",
            _run(lines, plan.parts),
            "#endif\n",
        ]
    )
    paths = "".join(f"{_line(step.node.path)}\n" for step in plan.steps)
    files = {
        "model.c": source.encode(),
        "model.h": header.encode(),
        "weights.bin": weights,
        "steps.txt": paths.encode(),
    }
    return Sources(files, len(parts) + 1)


def _instance(call: Call, bands: int, symbol: str) -> str:
    if call.family:
        text = kernels.instantiate(kernels.families()[call.family], symbol, dict(call.macros))
    else:
        text = call.text.replace("NAME", symbol)
    kind, task = ("args" if call.family else "nest"), f"{{ {symbol}(args, begin, end); }}"
    if bands > 1:
        task = f"""{{
  for (long k = begin / {symbol}_tasks; k < {bands} && k * {symbol}_tasks < end; k++) {{
    struct {kind} a = {kind}_band(args, k);
    {symbol}(&a, MAX(begin - k * {symbol}_tasks, 0), MIN(end - k * {symbol}_tasks, {symbol}_tasks));
  }}
}}"""
    return f"""{text}
static void {symbol}_task(const void *args, long begin, long end) {task}
LOCAL void {symbol}_start(model_parallel_for parallel_for, void *pool, const void *args) {{
  if (parallel_for) parallel_for(pool, {symbol}_task, args, {bands} * {symbol}_tasks);
  else {symbol}_task(args, 0, {bands} * {symbol}_tasks);
}}
"""


def _parts(instances: list[str], size: int = 60_000) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for text in instances:
        if sum(map(len, parts[-1])) > size:
            parts.append([])
        parts[-1].append(text)
    return parts


def _part(i: int, texts: list[str]) -> str:
    guard = (
        "#ifndef PART\n#define PART -1 /* all of them; or the number of one part to compile alone */\n#endif\n"
        if i == 0
        else ""
    )
    return f"{guard}#if PART < 0 || PART == {i}\n" + "\n".join(texts) + "#endif\n"


def _declarations(symbols: Iterable[str]) -> str:
    return "\n".join(f"LOCAL void {symbol}_start(model_parallel_for, void *, const void *);" for symbol in symbols)


def _step(plan: Plan, step: Step, symbol: str, constants: dict[str, int], blob: _Blob) -> str:
    def start(buffer: str) -> str:
        kind, _, name = buffer.partition(":")
        if kind == "in":
            return f"inputs[{plan.inputs.index(buffer)}]"
        if kind == "out":
            return f"outputs[{name}]"
        return f"(const float *)(w + {constants[buffer]})" if kind == "const" else f"m + {plan.offsets[buffer]}"

    def address(layout: Layout) -> str:
        if layout.type == "float":
            return f"{start(layout.buffer)} + {layout.origin}"
        return f"(void *)(({layout.type} *)({start(layout.buffer)}) + {layout.origin})"

    mask = f"(const int32_t *)m + {plan.masks[step.mask]}" if step.mask else "0"
    clears = "".join(f"memset({address(layout)}, 0, {4 * n}); " for layout, n in step.clears)
    if step.choice.call.family:
        packed = (
            0
            if step.weight is None
            else blob.add(kernels.FORMATS[step.choice.format].pack(step.grouped, dict(step.choice.tile)))
        )
        bias = 0 if step.bias is None else blob.add(_biases(step.bias))
        residual = address(step.residual) if step.residual else "0"
        fields = f"{address(step.reads[0])}, {address(step.write)}, {residual}, w + {packed}, (const float *)(w + {bias}), {mask}"
        kind, values = "args", f"{{{fields}, 0}}"
    else:
        inputs = ", ".join(map(address, step.reads)) or "0"
        kind, values = "nest", f"{{{{{inputs}}}, {address(step.write)}, {mask}}}"
    arguments = f"struct {kind} a = {values}"
    if step.bands > 1:
        arguments = f"struct {kind}_bands a = {{{values}, {_shifts(step)}}}"
    where = _line(step.node.path).replace("*/", "* /")
    return f"  {{ {clears}{arguments}; {symbol}_start(parallel_for, pool, &a); }}  /* {where} {step.node.op} */"


def _shifts(step: Step) -> str:
    """How much further each operand of the next band begins."""
    reads = ", ".join("0" if step.by_line else str(read.apart) for read in step.reads) or "0"
    write = step.write.apart
    if step.choice.call.family:
        return f"{reads}, {write}, {step.residual.apart if step.residual else 0}"
    return f"{write}, {{{reads}}}"


def _switch(i: int, ways: list[str]) -> str:
    cases = "\n".join(f"  case {k}:\n{way}\n  break;" for k, way in enumerate(ways))
    return f"  switch (model_choices[{i}]) {{\n{cases}\n  }}"


def _line(path: str) -> str:
    """A module path on one line: the names of a ModuleDict may be any text."""
    return " ".join(path.splitlines())


def _biases(bias: Weights) -> bytes:
    return np.ascontiguousarray(np.pad(bias, (0, rounded(len(bias)) - len(bias)))).astype(np.float32).tobytes()


def _prepare(plan: Plan) -> str:
    def fill(mask: Mask, offset: int) -> str:
        shape, strides = (", ".join(map(str, numbers)) for numbers in (mask.shape, mask.strides))
        return (
            f"  mask((int32_t *)m + {offset}, {rounded(mask.span)}, "
            f"(const long[]){{{shape}}}, (const long[]){{{strides}}}, {len(mask.shape)});"
        )

    lines = [fill(mask, offset) for mask, offset in plan.masks.items()]
    return "\n".join(["void model_prepare(void *arena) {", "  float *m = arena;", "  (void)m;", *lines, "}"])


def _run(lines: list[str], parts: Parts | None) -> str:
    name = "void model_run" if parts is None else "static void run_part"
    text = _function(name, ["  const char *w = weights;", "  float *m = arena;", "  (void)w, (void)m;", *lines])
    if parts is None:
        return text
    loop = [
        f"  for (long i = 0; i < {parts.count}; i++) {{ /* of the batch, part by part */",
        f"    const float *in[] = {{{_of_part('inputs', 'const ', parts.inputs)}}};",
        f"    float *out[] = {{{_of_part('outputs', '', parts.outputs)}}};",
        "    run_part(in, out, weights, arena, parallel_for, pool);",
        "  }",
    ]
    return f"{text}\n{_function('void model_run', loop)}"


def _of_part(name: str, const: str, sizes: Sequence[int]) -> str:
    """Where part i of each input or output begins."""
    return ", ".join(f"({const}float *)(({const}char *){name}[{k}] + i * {size}L)" for k, size in enumerate(sizes))


def _function(name: str, body: list[str]) -> str:
    return "\n".join(
        [
            f"{name}(const float *const *inputs, float *const *outputs, const void *weights, void *arena,",
            "               model_parallel_for parallel_for, void *pool) {",
            *body,
            "}",
            "",
        ]
    )
