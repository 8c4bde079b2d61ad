"""Shape and place: the same elements elsewhere."""

from __future__ import annotations

import numpy as np
import torch

from abridged.targets.onnx_emitter import EMIT, NARROW, Emitter, Ints

_BEFORE_ALL = -(2**63) + 1  # where a slice that runs backwards ends


@EMIT.entry("reshape")
def reshape(e: Emitter, x: str, *, shape: Ints) -> str:
    return e("Reshape", x, e.literal(shape), allowzero=1 if 0 in shape else None)


@EMIT.entry("permute")
def permute(e: Emitter, x: str, *, axes: Ints) -> str:
    return e("Transpose", x, perm=axes) if axes else x


@EMIT.entry("expand")
def expand(e: Emitter, x: str, *, shape: Ints) -> str:
    return e("Expand", x, e.literal(shape))


@EMIT.entry("repeat")
def repeat(e: Emitter, x: str, *, repeats: Ints) -> str:
    more = len(repeats) - len(e.shape(x))
    x = e("Reshape", x, e.literal([1] * more + [*e.shape(x)])) if more else x
    return e("Tile", x, e.literal(repeats))


@EMIT.entry("repeat_interleave")
def repeat_interleave(e: Emitter, x: str, *, repeats: int, axis: int) -> str:
    positions = torch.arange(e.shape(x)[axis]).repeat_interleave(repeats)
    return e("Gather", x, e.literal(positions), axis=axis)


@EMIT.entry("cat")
def cat(e: Emitter, *xs: str, axis: int) -> str:
    return e("Concat", *xs, axis=axis)


@EMIT.entry("split")
def split(e: Emitter, x: str, *, sizes: Ints, axis: int) -> tuple[str, ...]:
    return e.several("Split", len(sizes), x, e.literal(sizes), axis=axis)


@EMIT.entry("slice")
def slice(e: Emitter, x: str, *, axis: int, start: int, stop: int, step: int) -> str:
    return e.cut(x, axis, start, stop, step)


@EMIT.entry("pad")
def pad(e: Emitter, x: str, *, padding: tuple[tuple[int, int], ...], mode: str, value: float) -> str:
    if mode == "circular":  # a mode that not every runtime knows
        for axis, (before, after) in enumerate(padding):
            size = e.result.shape[axis] - before - after
            x = e("Gather", x, e.literal(np.arange(-before, size + after) % size), axis=axis) if before or after else x
        return x
    pads = e.literal([before for before, _ in padding] + [after for _, after in padding])
    name = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}[mode]
    dtype = e.dtype(x)
    if dtype in NARROW:
        return e.cast(e("Pad", e.cast(x, torch.int32), pads, e.literal(value, torch.int32), mode=name), dtype)
    return e("Pad", x, pads, e.literal(value, dtype) if mode == "constant" else None, mode=name)


@EMIT.entry("roll")
def roll(e: Emitter, x: str, *, shifts: Ints, axes: Ints) -> str:
    for shift, axis in zip(shifts, axes, strict=True):
        size = e.result.shape[axis]
        start = -shift % size if size else 0
        if start:
            x = e("Concat", e.cut(x, axis, start, size), e.cut(x, axis, 0, start), axis=axis)
    return x


@EMIT.entry("flip")
def flip(e: Emitter, x: str, *, axes: Ints) -> str:
    for axis in axes:
        x = e.cut(x, axis, -1, _BEFORE_ALL, -1)
    return x


@EMIT.entry("take")
def take(e: Emitter, x: str, index: str, *, axis: int) -> str:
    return e("Gather", x, index, axis=axis)


@EMIT.entry("gather")
def gather(e: Emitter, x: str, index: str, *, axis: int) -> str:
    return e("GatherElements", x, index, axis=axis)


@EMIT.entry("scatter")
def scatter(e: Emitter, x: str, index: str, source: str, *, axis: int) -> str:
    for i, (size, wider) in enumerate(zip(e.shape(index), e.shape(source), strict=True)):
        source = source if size == wider else e.cut(source, i, 0, size)
    return e("ScatterElements", x, index, source, axis=axis)


@EMIT.entry("index")
def index(e: Emitter, x: str, *indices: str | None) -> str:
    """Indexed axes first, GatherND, and the indices' own axes back to where numpy puts them."""
    rank, axes = len(e.shape(x)), [axis for axis, name in enumerate(indices) if name is not None]
    names = [name for name in indices if name is not None]
    if len(axes) == 1:
        return e("Gather", x, names[0], axis=axes[0])
    shape = np.broadcast_shapes(*(e.shape(name) for name in names))
    last = e.literal([-1])
    places = [e("Unsqueeze", e("Expand", name, e.literal(shape)), last) for name in names]
    rest = [axis for axis in range(rank) if axis not in axes]
    front = e("Transpose", x, perm=[*axes, *rest])
    y = e("GatherND", front, e("Concat", *places, axis=-1))  # (*shape, *rest)
    adjacent = axes == list(range(axes[0], axes[-1] + 1))
    before = axes[0] if adjacent else 0  # of the rest, how many stand before
    wide, total = len(shape), len(shape) + len(rest)
    return e("Transpose", y, perm=[*range(wide, wide + before), *range(wide), *range(wide + before, total)])
