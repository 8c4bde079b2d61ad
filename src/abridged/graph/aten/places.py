"""Where elements stand: shapes, axes, slices, indices, joining and splitting."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from abridged.graph.aten.table import ATEN, Ints, Lowering, axis_of
from abridged.graph.build import Number, Operand
from abridged.graph.graph import Value

# ---- shape -----------------------------------------------------------------------------------------------------------

# Whatever they are called, they put the same elements in the shape that PyTorch says.
for _name in (
    "view", "_unsafe_view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as", "ravel",
    "_reshape_copy", "view_copy",
):  # fmt: skip
    ATEN.entry(_name)(lambda b, x, **_: b.reshape(b.cast(x, b.dtype), b.shape))
for _name in ("expand", "expand_as", "broadcast_to"):
    ATEN.entry(_name)(lambda b, x, **_: b.expand(x, b.shape))


@ATEN.entry("permute")
def _permute(b: Lowering, x: Value, dims: Ints) -> Value:
    return b.permute(x, [axis_of(x, dim) for dim in dims])


def _swapped(b: Lowering, x: Value, dim0: int, dim1: int) -> Value:
    axes = list(range(len(x.shape)))
    i, j = axis_of(x, dim0), axis_of(x, dim1)
    axes[i], axes[j] = j, i
    return b.permute(x, axes if axes else ())


ATEN.entry("transpose", "swapdims")(_swapped)
ATEN.entry("swapaxes")(lambda b, x, axis0, axis1: _swapped(b, x, axis0, axis1))
ATEN.entry("t")(lambda b, x: _swapped(b, x, 0, -1))
ATEN.entry("mT", "matrix_H", "adjoint")(lambda b, x: _swapped(b, x, -2, -1))
ATEN.entry("numpy_T")(lambda b, x: b.permute(x, range(len(x.shape))[::-1]))


@ATEN.entry("movedim", "moveaxis")
def _movedim(b: Lowering, x: Value, source: int | Ints, destination: int | Ints) -> Value:
    sources, targets = ([d] if isinstance(d, int) else d for d in (source, destination))
    placed = {axis_of(x, to): axis_of(x, of) for of, to in zip(sources, targets, strict=True)}
    rest = (axis for axis in range(len(x.shape)) if axis not in placed.values())
    return b.permute(x, [placed[axis] if axis in placed else next(rest) for axis in range(len(x.shape))])


@ATEN.entry("pixel_shuffle")
def _pixel_shuffle(b: Lowering, x: Value, upscale_factor: int) -> Value:
    """(..., C·r², H, W) → (..., C, H·r, W·r)."""
    *batch, c, h, w = x.shape
    r, n = upscale_factor, len(batch)
    x = b.reshape(x, (*batch, c // r**2, r, r, h, w))
    return b.reshape(b.permute(x, (*range(n + 1), n + 3, n + 1, n + 4, n + 2)), b.shape)


@ATEN.entry("pixel_unshuffle")
def _pixel_unshuffle(b: Lowering, x: Value, downscale_factor: int) -> Value:
    """(..., C, H·r, W·r) → (..., C·r², H, W)."""
    *batch, c, h, w = x.shape
    r, n = downscale_factor, len(batch)
    x = b.reshape(x, (*batch, c, h // r, r, w // r, r))
    return b.reshape(b.permute(x, (*range(n + 1), n + 2, n + 4, n + 1, n + 3)), b.shape)


@ATEN.entry("channel_shuffle", "native_channel_shuffle")
def _channel_shuffle(b: Lowering, x: Value, groups: int) -> Value:
    n, c, *rest = x.shape
    split = b.reshape(x, (n, groups, c // groups, *rest))
    return b.reshape(b.permute(split, (0, 2, 1, *range(3, len(split.shape)))), x.shape)


# ---- repetition and order --------------------------------------------------------------------------------------------


@ATEN.entry("repeat")
def _repeat(b: Lowering, x: Value, repeats: Ints) -> Value:
    x = b.reshape(x, (*(1,) * (len(repeats) - len(x.shape)), *x.shape))
    return x if set(repeats) <= {1} else b("repeat", x, repeats=tuple(repeats))


ATEN.entry("tile")(lambda b, x, dims: _repeat(b, x, (*(1,) * (len(x.shape) - len(dims)), *dims)))


@ATEN.entry("repeat_interleave")
def _repeat_interleave(b: Lowering, x: Value, repeats: Operand, dim: int | None) -> Value:
    if not isinstance(repeats, int):
        raise b.refuse("repeat_interleave takes one number of repeats, not a tensor of them")
    if dim is None:
        x, dim = b.reshape(x, (math.prod(x.shape),)), 0
    return b("repeat_interleave", x, repeats=repeats, axis=axis_of(x, dim))


@ATEN.entry("roll")
def _roll(b: Lowering, x: Value, shifts: int | Ints, dims: int | Ints) -> Value:
    shifts, dims = ((d,) if isinstance(d, int) else tuple(d) for d in (shifts, dims))
    if not dims:
        flat = b.reshape(x, (math.prod(x.shape),))
        return b.reshape(b("roll", flat, shifts=shifts, axes=(0,)), x.shape)
    return b("roll", x, shifts=shifts, axes=tuple(axis_of(x, dim) for dim in dims))


ATEN.entry("flip")(lambda b, x, dims: b("flip", x, axes=tuple(sorted(axis_of(x, dim) for dim in dims))))


def pads(b: Lowering, x: Value, pad: Ints, mode: str = "constant", value: float | None = 0.0) -> Value:
    """PyTorch's flat list, last axis first, as one pair per axis; negative ones crop."""
    pairs = [(0, 0)] * (len(x.shape) - len(pad) // 2) + [(pad[i], pad[i + 1]) for i in range(0, len(pad), 2)][::-1]
    for axis, (before, after) in enumerate(pairs):
        if before < 0 or after < 0:
            x = _sliced(b, x, axis, max(-before, 0), x.shape[axis] - max(-after, 0))
    padding = tuple((max(before, 0), max(after, 0)) for before, after in pairs)
    return x if set(padding) <= {(0, 0)} else b("pad", x, padding=padding, mode=mode, value=float(value or 0))


ATEN.entry("pad")(pads)
ATEN.entry("constant_pad_nd")(lambda b, x, pad, value: pads(b, x, pad, "constant", value))
for _n in (1, 2, 3):
    ATEN.entry(f"reflection_pad{_n}d")(lambda b, x, padding: pads(b, x, padding, "reflect"))
    ATEN.entry(f"replication_pad{_n}d")(lambda b, x, padding: pads(b, x, padding, "replicate"))


# ---- joining and splitting -------------------------------------------------------------------------------------------


@ATEN.entry("cat", "concat", "concatenate")
def _cat(b: Lowering, tensors: Sequence[Value], dim: int) -> Value:
    joined = [b.cast(x, b.dtype) for x in tensors if x.shape != (0,) or len(b.shape) == 1]
    return joined[0] if len(joined) == 1 else b("cat", *joined, axis=dim % len(b.shape))


@ATEN.entry("stack")
def _stack(b: Lowering, tensors: Sequence[Value], dim: int) -> Value:
    axis = dim % len(b.shape)
    shape = (*b.shape[:axis], 1, *b.shape[axis + 1 :])
    return _cat(b, [b.reshape(x, shape) for x in tensors], axis)


for _name in (
    "split",
    "split_with_sizes",
    "chunk",
    "tensor_split",
    "unsafe_split",
    "unsafe_chunk",
    "unsafe_split_with_sizes",
):
    ATEN.entry(_name)(lambda b, x, dim, **_: _split(b, x, axis_of(x, dim), b.shapes))


def _split(b: Lowering, x: Value, axis: int, shapes: Sequence[Ints]) -> tuple[Value, ...]:
    """Parts of the sizes that PyTorch says."""
    sizes = tuple(shape[axis] for shape in shapes)
    return (x,) if len(sizes) == 1 else b.many("split", x, outputs=len(sizes), sizes=sizes, axis=axis)


@ATEN.entry("unbind")
def _unbind(b: Lowering, x: Value, dim: int) -> tuple[Value, ...]:
    axis = axis_of(x, dim)
    one = (*x.shape[:axis], 1, *x.shape[axis + 1 :])
    return tuple(b.reshape(part, b.shape) for part in _split(b, x, axis, [one] * x.shape[axis]))


# ---- slices and indices ----------------------------------------------------------------------------------------------


def _sliced(b: Lowering, x: Value, axis: int, start: int | None, stop: int | None, step: int = 1) -> Value:
    first, last, _ = slice(start, stop).indices(x.shape[axis])
    if (first, last, step) == (0, x.shape[axis], 1):
        return x  # nothing is left out
    return b("slice", x, axis=axis, start=first, stop=max(first, last), step=step)


ATEN.entry("slice")(lambda b, x, dim, start, end, step: _sliced(b, x, axis_of(x, dim), start, end, step))


@ATEN.entry("narrow")
def _narrow(b: Lowering, x: Value, dim: int, start: int, length: int) -> Value:
    first = start % x.shape[dim] if start < 0 else start
    return _sliced(b, x, axis_of(x, dim), first, first + length)


@ATEN.entry("select")
def _select(b: Lowering, x: Value, dim: int, index: int) -> Value:
    axis = axis_of(x, dim)
    first = index % x.shape[axis]
    return b.reshape(_sliced(b, x, axis, first, first + 1), b.shape)


@ATEN.entry("slice_scatter")
def _slice_scatter(b: Lowering, x: Value, src: Value, dim: int, start: int | None, end: int | None, step: int) -> Value:
    """x with x[start:end:step] = src: joined from slices, or chosen by a mask where steps are left out."""
    axis, size = axis_of(x, dim), x.shape[axis_of(x, dim)]
    first, last, _ = slice(start, end).indices(size)
    if step == 1:
        parts = [_sliced(b, x, axis, 0, first), src, _sliced(b, x, axis, max(first, last), size)]
        parts = [b.cast(part, x.dtype) for part in parts if part.shape[axis]]
        return parts[0] if len(parts) == 1 else b("cat", *parts, axis=axis)
    written = torch.zeros(size, dtype=torch.bool)
    written[first:last:step] = True
    source = (written.cumsum(0) - 1).clamp(min=0)  # which slice of src each position would take
    mask = written.reshape(-1, *(1,) * (len(x.shape) - axis - 1))
    return b("where", b.constant(mask), b("take", src, b.constant(source), axis=axis), x)


@ATEN.entry("select_scatter")
def _select_scatter(b: Lowering, x: Value, src: Value, dim: int, index: int) -> Value:
    axis = axis_of(x, dim)
    first = index % x.shape[axis]
    row = b.reshape(src, (*x.shape[:axis], 1, *x.shape[axis + 1 :]))
    return _slice_scatter(b, x, row, axis, first, first + 1, 1)


def _from_front(b: Lowering, index: Value, size: int) -> Value:
    """An index as int64 without negative ones; nothing to do where it is known to have none."""
    index, known = b.cast(index, torch.int64), b.known(index)
    if known is not None and not bool((known < 0).any()):
        return index
    return b("where", b.binary("lt", index, 0), b.binary("add", index, size), index)


@ATEN.entry("index", "_unsafe_index")
def _index(b: Lowering, x: Value, indices: Sequence[Value | None]) -> Value:
    """x[indices], each of int64 (a mask of bools has no fixed shape, and is refused before)."""
    plain = [index and _from_front(b, index, x.shape[axis]) for axis, index in enumerate(indices)]
    used = [(axis, index) for axis, index in enumerate(plain) if index is not None]
    if len(used) == 1:
        return b("take", x, used[0][1], axis=used[0][0])
    return b("index", x, *plain)


@ATEN.entry("index_select")
def _index_select(b: Lowering, x: Value, dim: int, index: Value) -> Value:
    axis = axis_of(x, dim)
    return b.reshape(b("take", x, b.cast(index, torch.int64), axis=axis), b.shape)


ATEN.entry("embedding")(lambda b, weight, indices: b("take", weight, b.cast(indices, torch.int64), axis=0))
ATEN.entry("gather")(lambda b, x, dim, index: b("gather", x, index, axis=axis_of(x, dim)))


@ATEN.entry("take_along_dim")
def _take_along_dim(b: Lowering, x: Value, indices: Value, dim: int) -> Value:
    axis = axis_of(x, dim)
    whole = (*b.shape[:axis], x.shape[axis], *b.shape[axis + 1 :])
    return b("gather", b.expand(x, whole), b.expand(indices, b.shape), axis=axis)


@ATEN.entry("scatter")
def _scatter(b: Lowering, x: Value, dim: int, index: Value, src: Value | None = None, value: Number = 0) -> Value:
    source = b.expand(b.literal(value, x.dtype), index.shape) if src is None else src
    return b("scatter", x, index, source, axis=axis_of(x, dim))


@ATEN.entry("index_put", "_unsafe_index_put")
def _index_put(b: Lowering, x: Value, indices: Sequence[Value | None], values: Value) -> Value:
    """x[mask] = number; other assignments by index have no op of ours."""
    (mask, *more) = indices
    if mask is None or more or mask.dtype != torch.bool or math.prod(values.shape) != 1:
        raise b.refuse("assignment by index is there for a mask and a number alone; use torch.where or torch.scatter")
    whole = b.reshape(mask, (*mask.shape, *(1,) * (len(x.shape) - len(mask.shape))))
    return b("where", whole, b.reshape(values, ()), x)


@ATEN.entry("unfold")
def _unfold(b: Lowering, x: Value, dimension: int, size: int, step: int) -> Value:
    """Windows along an axis, which keeps their count; their elements become the last axis."""
    axis, rank = axis_of(x, dimension), len(x.shape)
    count = b.shape[axis]
    places = torch.arange(count)[:, None] * step + torch.arange(size)
    windows = b("take", x, b.constant(places), axis=axis)
    return b.permute(windows, [*range(axis + 1), *range(axis + 2, rank + 1), axis + 1])


def _triangle(b: Lowering, x: Value, kept: torch.Tensor) -> Value:
    return b("where", b.constant(kept), x, b.literal(0, x.dtype))


ATEN.entry("tril")(lambda b, x, diagonal: _triangle(b, x, torch.ones(x.shape[-2:], dtype=torch.bool).tril(diagonal)))
ATEN.entry("triu")(lambda b, x, diagonal: _triangle(b, x, torch.ones(x.shape[-2:], dtype=torch.bool).triu(diagonal)))


@ATEN.entry("one_hot")
def _one_hot(b: Lowering, x: Value) -> Value:
    """1 where the class is x, as int64; the number of classes is the result's."""
    classes = b.constant(torch.arange(b.shape[-1]))
    return b.cast(b("eq", b.reshape(x, (*x.shape, 1)), classes), torch.int64)


# ---- views that are written through ----------------------------------------------------------------------------------

# How new content of a view returns to what it views: `(b, whole, new, *the view's arguments) → whole`.
WRITE_BACK: dict[str, Callable[..., Value]] = {
    "alias": lambda b, whole, new: new,
    "detach": lambda b, whole, new: new,
    "view": lambda b, whole, new, size: b.reshape(new, whole.shape),
    "unsqueeze": lambda b, whole, new, dim: b.reshape(new, whole.shape),
    "squeeze": lambda b, whole, new, *dim: b.reshape(new, whole.shape),
    "transpose": lambda b, whole, new, dim0, dim1: _swapped(b, new, dim0, dim1),
    "t": lambda b, whole, new: _swapped(b, new, 0, -1),
    "permute": lambda b, whole, new, dims: b.permute(new, _inverse([axis_of(whole, dim) for dim in dims])),
    "select": lambda b, whole, new, dim, index: _select_scatter(b, whole, new, dim, index),
    "slice": lambda b, whole, new, dim, start, end, step: _slice_scatter(b, whole, new, dim, start, end, step),
}


def _inverse(axes: Ints) -> list[int]:
    return sorted(range(len(axes)), key=lambda i: axes[i])
