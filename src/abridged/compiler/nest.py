"""Element-wise computation, copies among layouts included, as a C loop nest of the compiler's own."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from abridged.compiler.plan import Call, Choice, Layout, Mask, Step, rounded
from abridged.graph.graph import Node

PREAMBLE = """
struct nest { const float *in[8]; float *out; const int32_t *mask; };
INLINE V v_gather(const float *p, long stride, long n) {
  float t[LANES] = {0};
  for (long i = 0; i < n; i++) t[i] = p[i * stride];
  return v_load(t);
}
INLINE void v_scatter(float *p, long stride, V v, long n) {
  float t[LANES];
  v_store(t, v);
  for (long i = 0; i < n; i++) p[i * stride] = t[i];
}
/* Division that rounds down, and what it leaves, with the divisor's sign; by 0 an integer gives 0. */
INLINE int64_t i_remainder(int64_t a, int64_t b) {
  int64_t m = b == 0 || b == -1 ? 0 : a % b;
  return m && (m < 0) != (b < 0) ? m + b : m;
}
INLINE int64_t i_floor_div(int64_t a, int64_t b) {
  return b == 0 ? 0 : b == -1 ? (int64_t)(0 - (uint64_t)a) : (a - i_remainder(a, b)) / b;
}
INLINE double d_remainder(double a, double b) {
  double m = fmod(a, b);
  return m != 0 && (m < 0) != (b < 0) ? m + b : m;
}
INLINE double d_floor_div(double a, double b) { return b == 0 ? a / b : rint((a - d_remainder(a, b)) / b); }
INLINE int64_t i_pow(int64_t base, int64_t n) {
  uint64_t power = 1, square = (uint64_t)base;
  if (n < 0) return base == 1 ? 1 : base == -1 ? (n % 2 ? -1 : 1) : 0;
  for (; n; n >>= 1, square *= square) power *= n & 1 ? square : 1;
  return (int64_t)power;
}
"""

_TEMPLATE = """enum {{ NAME_tasks = {tasks} }};
LOCAL void NAME(const struct nest *a, long begin, long end) {{
  for (long u = begin; u < end; u++) {{
    {pointers}
    long j = 0;
    for (; j + LANES <= {n}; j += LANES) {{ {full} }}
    {tail}
  }}
}}
"""


def elementwise(node: Node, shape: tuple[int, ...], reads: Sequence[Layout], write: Layout, text: str) -> Step:
    """`write` = `text` of `reads`, whose strides are 0 where they broadcast; all have the axes of `shape`."""
    choice = (Choice(_call(shape, reads, write, text)),)
    # Its own rows alone: others may lie in the same buffer. What comes before the first row is cleared with the buffer.
    clears = ((write, extent(shape, write)),) if write.zero else ()
    return Step(node, choice, tuple(reads), write, clears=clears)


def rowwise(
    node: Node, shape: tuple[int, ...], channel: int, reads: Sequence[Layout], write: Layout, text: str
) -> Step | None:
    """As `elementwise`, but over the positions of a row as they lie, those between the elements too, which a mask then cuts.

    None where the operands do not lie alike."""
    places = [axis for axis in range(len(shape)) if axis != channel]
    lies = tuple(write.strides[axis] for axis in places)
    for read in reads:
        across = tuple(read.strides[axis] for axis in places if shape[axis] > 1)
        if any(across) and across != tuple(s for s, axis in zip(lies, places, strict=True) if shape[axis] > 1):
            return None
        if any(across) and read.cut != write.cut:
            return None
    shape = write.of_band(shape)
    mask = Mask(tuple(shape[axis] for axis in places), lies)
    row = write.strides[channel]
    if rounded(mask.span) > row:
        return None
    flat = [r.at(0, (r.strides[channel], 1 if any(r.strides[a] for a in places if shape[a] > 1) else 0)) for r in reads]
    call = _call((shape[channel], rounded(mask.span)), flat, write.at(0, (row, 1)), text, write.zero)
    if write.zero and row > rounded(mask.span):
        gap = f"for (long q = {rounded(mask.span)}; q < {row}; q++) out[q] = 0;"
        call = Call("", text=call.text.replace("/*gap*/", gap))
    return Step(node, (Choice(call),), tuple(reads), write, mask=mask if write.zero else None)


def extent(shape: tuple[int, ...], layout: Layout) -> int:
    """How far the rows of a value reach behind its first element, the room after the last one included."""
    return max((n * s for n, s in zip(shape, layout.strides, strict=True)), default=1)


def merged(shape: tuple[int, ...], strides: Sequence[tuple[int, ...]]) -> list[tuple[int, tuple[int, ...]]]:
    """(size, stride per operand) of each loop, outermost first by operand 0; axes that lie in one another become one.

    >>> merged((2, 3, 4), [(12, 4, 1), (12, 4, 1)])
    [(24, (1, 1))]
    """
    axes = [(n, tuple(s[i] for s in strides)) for i, n in enumerate(shape) if n != 1]
    loops: list[tuple[int, tuple[int, ...]]] = []
    for n, steps in sorted(axes, key=lambda axis: -axis[1][0]):
        if loops and loops[-1][1] == tuple(s * n for s in steps):
            loops[-1] = (loops[-1][0] * n, steps)
        else:
            loops.append((n, steps))
    return loops or [(1, (1,) * len(strides))]


def indices(sizes: Sequence[int]) -> list[str]:
    """C expressions of each index of the unit `u` in loops of these sizes."""
    return [f"(u / {prod(sizes[i + 1 :])} % {n})" for i, n in enumerate(sizes)]


def _call(shape: tuple[int, ...], reads: Sequence[Layout], write: Layout, text: str, masked: bool = False) -> Call:
    loops = merged(shape, [write.strides, *(r.strides for r in reads)]) if not masked else _two(shape, reads, write)
    *outer, (n, inner) = loops
    sizes = [size for size, _ in outer]

    def base(operand: int) -> str:
        return "".join(
            f" + {index} * {strides[operand]}"
            for index, (_, strides) in zip(indices(sizes), outer, strict=True)
            if strides[operand]
        )

    pointers = [f"float *out = a->out{base(0)};"]
    pointers += [f"const float *p{i} = a->in[{i}]{base(i + 1)};" for i in range(len(reads))]

    def body(count: str) -> str:
        loads = [vector_load(f"x{i}", f"(p{i} + j * {stride})", stride, count) for i, stride in enumerate(inner[1:])]
        result = text.format(*(f"x{i}" for i in range(len(reads))))
        result = f"v_and({result}, i_load(a->mask + j))" if masked else result
        return " ".join(loads) + " " + vector_store(f"(out + j * {inner[0]})", inner[0], result, count)

    tail = f"if (j < {n}) {{ {body(f'{n} - j')} }}" if masked is False else "/*gap*/"
    code = _TEMPLATE.format(tasks=prod(sizes), pointers=" ".join(pointers), n=n, full=body(""), tail=tail)
    return Call("", text=code)


def _two(shape: tuple[int, ...], reads: Sequence[Layout], write: Layout) -> list[tuple[int, tuple[int, ...]]]:
    return [(n, tuple(layout.strides[i] for layout in (write, *reads))) for i, n in enumerate(shape)]


def vector_load(name: str, address: str, stride: int, count: str) -> str:
    """C that defines a vector of elements `stride` apart; only the first `count` where it is not empty."""
    if stride == 0:
        return f"V {name} = v_set(*{address});"
    if stride == 1:
        return f"V {name} = v_load_n({address}, {count});" if count else f"V {name} = v_load({address});"
    return f"V {name} = v_gather({address}, {stride}, {count or 'LANES'});"


def vector_store(address: str, stride: int, value: str, count: str) -> str:
    """C that stores a vector likewise."""
    if stride == 1:
        return f"v_store_n({address}, {value}, {count});" if count else f"v_store({address}, {value});"
    return f"v_scatter({address}, {stride}, {value}, {count or 'LANES'});"
