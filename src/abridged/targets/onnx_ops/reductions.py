"""Functions along axes."""

from __future__ import annotations

import math

import torch

from abridged.targets.onnx_emitter import EMIT, NARROW, Emitter, Ints


@EMIT.entry("softmax")
def softmax(e: Emitter, x: str, *, axis: int) -> str:
    return e("Softmax", x, axis=axis)


@EMIT.entry("log_softmax")
def log_softmax(e: Emitter, x: str, *, axis: int) -> str:
    return e("LogSoftmax", x, axis=axis)


@EMIT.entry("cumsum")
def cumsum(e: Emitter, x: str, *, axis: int) -> str:
    if e.dtype(x) in NARROW:
        return e.cast(e("CumSum", e.cast(x, torch.int32), e.literal(axis)), e.dtype(x))
    return e("CumSum", x, e.literal(axis))


def _reduce(e: Emitter, op: str, x: str, rank: int, axes: Ints, keepdim: bool) -> str:
    """A reduction; no axes are all of them, as in PyTorch."""
    return e(op, x, e.literal(list(axes or range(rank))), keepdims=int(keepdim)) if rank else x


def _reduction(name: str, op: str) -> None:
    def emit(e: Emitter, x: str, *, axes: Ints, keepdim: bool) -> str:
        rank, dtype = len(e.shape(x)), e.dtype(x)
        if dtype not in (*NARROW, torch.bool):
            return _reduce(e, op, x, rank, axes, keepdim)
        return e.cast(_reduce(e, op, e.cast(x, torch.int32), rank, axes, keepdim), dtype)

    EMIT.entry(name)(emit)


_reduction("sum", "ReduceSum")
_reduction("mean", "ReduceMean")
_reduction("prod", "ReduceProd")
_reduction("amax", "ReduceMax")
_reduction("amin", "ReduceMin")


@EMIT.entry("var")
def var(e: Emitter, x: str, *, axes: Ints, correction: float, keepdim: bool) -> str:
    shape, dtype = e.shape(x), e.dtype(x)
    count = math.prod(shape[axis] for axis in axes or range(len(shape)))
    away = e("Sub", x, _reduce(e, "ReduceMean", x, len(shape), axes, True))
    total = _reduce(e, "ReduceSum", e("Mul", away, away), len(shape), axes, keepdim)
    return e("Div", total, e.literal(max(0.0, count - correction), dtype))


@EMIT.entry("vector_norm")
def vector_norm(e: Emitter, x: str, *, ord: float, axes: Ints, keepdim: bool) -> str:
    rank, dtype = len(e.shape(x)), e.dtype(x)
    size = e("Abs", x)
    if math.isinf(ord):
        return _reduce(e, "ReduceMax" if ord > 0 else "ReduceMin", size, rank, axes, keepdim)
    if ord == 0:
        apart = e.cast(e("Not", e("Equal", x, e.literal(0, dtype))), dtype)
        return _reduce(e, "ReduceSum", apart, rank, axes, keepdim)
    if ord in (1, 2):
        return _reduce(e, f"ReduceL{int(ord)}", x, rank, axes, keepdim) if rank else size
    total = _reduce(e, "ReduceSum", e("Pow", size, e.literal(ord, dtype)), rank, axes, keepdim)
    return e("Pow", total, e.literal(1 / ord, dtype))


@EMIT.entry("argmax")
def argmax(e: Emitter, x: str, *, axis: int, keepdim: bool) -> str:
    return e("ArgMax", _comparable(e, x), axis=axis, keepdims=int(keepdim))


@EMIT.entry("argmin")
def argmin(e: Emitter, x: str, *, axis: int, keepdim: bool) -> str:
    return e("ArgMin", _comparable(e, x), axis=axis, keepdims=int(keepdim))


def _comparable(e: Emitter, x: str) -> str:
    return e.cast(x, torch.int32) if e.dtype(x) in (*NARROW, torch.bool) else x
