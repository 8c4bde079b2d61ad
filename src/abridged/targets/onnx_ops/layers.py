"""Layers: products with weights, normalization, pooling, resizing."""

from __future__ import annotations

import math

import torch

from abridged.graph.ops import OPS
from abridged.targets.onnx_emitter import EMIT, Emitter, Ints

# ---- linear ----------------------------------------------------------------------------------------------------------


@EMIT.entry("conv")
def conv(
    e: Emitter, x: str, weight: str, bias: str | None, *, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> str:
    kernel = e.shape(weight)[2:]
    return e(
        "Conv",
        *_present(x, weight, bias),
        kernel_shape=kernel,
        strides=stride,
        pads=padding * 2,
        dilations=dilation,
        group=groups,
    )


@EMIT.entry("conv_transpose")
def conv_transpose(
    e: Emitter,
    x: str,
    weight: str,
    bias: str | None,
    *,
    stride: Ints,
    padding: Ints,
    output_padding: Ints,
    dilation: Ints,
    groups: int,
) -> str:
    return e(
        "ConvTranspose",
        *_present(x, weight, bias),
        kernel_shape=e.shape(weight)[2:],
        strides=stride,
        pads=padding * 2,
        output_padding=output_padding,
        dilations=dilation,
        group=groups,
    )


@EMIT.entry("linear")
def linear(e: Emitter, x: str, weight: str, bias: str | None) -> str:
    if len(e.shape(x)) == 2:
        return e("Gemm", *_present(x, weight, bias), transB=1)
    product = e("MatMul", x, e("Transpose", weight, perm=[1, 0]))
    return product if bias is None else e("Add", product, bias)


@EMIT.entry("matmul")
def matmul(e: Emitter, x: str, y: str) -> str:
    return e("MatMul", x, y)


@EMIT.entry("einsum")
def einsum(e: Emitter, *xs: str, equation: str) -> str:
    return e("Einsum", *xs, equation=equation.replace(" ", ""))


@EMIT.entry("attention")
def attention(e: Emitter, q: str, k: str, v: str, mask: str | None, *, causal: bool, scale: float) -> str:
    rank, dtype = len(e.shape(k)), e.dtype(q)
    keys = e("Transpose", k, perm=[*range(rank - 2), rank - 1, rank - 2])  # (..., E, S)
    logits = e("Mul", e("MatMul", q, keys), e.literal(scale, dtype))  # (..., T, S)
    never, allowed = e.literal(-math.inf, dtype), None
    if causal:
        allowed = e.literal(torch.ones(e.shape(q)[-2], e.shape(k)[-2], dtype=torch.bool).tril(), torch.bool)
    if mask is not None and e.dtype(mask) == torch.bool:
        allowed = mask if allowed is None else e("And", mask, allowed)
    elif mask is not None:
        logits = e("Add", logits, mask)
    if allowed is not None:
        logits = e("Where", allowed, logits, never)
    weights = e("Softmax", logits, axis=-1)
    if mask is not None and (causal or _may_blind(e.known(mask))):
        # A row of −∞ alone has become NaN: what was not allowed weighs nothing there either.
        if e.dtype(mask) != torch.bool:
            seen = e("Not", e("Equal", mask, never))
            allowed = seen if allowed is None else e("And", seen, allowed)
        weights = e("Where", allowed, weights, e.literal(0, dtype))
    return e("MatMul", weights, v)


def _may_blind(mask: torch.Tensor | None) -> bool:
    """Whether some row of the mask (or of one we do not know) may allow no key at all."""
    if mask is None:
        return True
    return bool((~mask if mask.dtype == torch.bool else mask == -math.inf).all(-1).any())


# ---- normalization ---------------------------------------------------------------------------------------------------


@EMIT.entry("batch_norm")
def batch_norm(e: Emitter, x: str, weight: str | None, bias: str | None, mean: str, var: str, *, eps: float) -> str:
    return e("BatchNormalization", x, *_affine(e, weight, bias, e.value(mean).shape), mean, var, epsilon=eps)


@EMIT.entry("layer_norm")
def layer_norm(e: Emitter, x: str, weight: str | None, bias: str | None, *, normalized_shape: Ints, eps: float) -> str:
    scale, shift = _affine(e, weight, bias, normalized_shape)
    return e("LayerNormalization", x, scale, shift, axis=-len(normalized_shape), epsilon=eps)


@EMIT.entry("rms_norm")
def rms_norm(e: Emitter, x: str, weight: str | None, *, normalized_shape: Ints, eps: float) -> str:
    axes = e.literal(list(range(-len(normalized_shape), 0)))
    square = e("ReduceMean", e("Mul", x, x), axes, keepdims=1)
    normal = e("Div", x, e("Sqrt", e("Add", square, e.literal(eps, e.dtype(x)))))
    return normal if weight is None else e("Mul", normal, weight)


@EMIT.entry("group_norm")
def group_norm(e: Emitter, x: str, weight: str | None, bias: str | None, *, groups: int, eps: float) -> str:
    batch, channels = e.shape(x)[:2]
    grouped = e("Reshape", x, e.literal([batch, groups, -1]))
    scale, shift = _affine(e, None, None, (groups,))
    y = e("InstanceNormalization", grouped, scale, shift, epsilon=eps)
    y = e("Reshape", y, e.literal(e.shape(x)))
    broadcast = e.literal([channels] + [1] * (len(e.shape(x)) - 2))
    if weight is not None:
        y = e("Mul", y, e("Reshape", weight, broadcast))
    return y if bias is None else e("Add", y, e("Reshape", bias, broadcast))


def _affine(e: Emitter, weight: str | None, bias: str | None, shape: Ints) -> tuple[str, str]:
    dtype = e.result.dtype
    return weight or e.literal(torch.ones(shape), dtype), bias or e.literal(torch.zeros(shape), dtype)


# ---- pooling and resizing --------------------------------------------------------------------------------------------


@EMIT.entry("max_pool")
def max_pool(e: Emitter, x: str, *, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints, ceil_mode: bool) -> str:
    pads = [*padding, *_after(e, x, kernel, stride, padding, dilation)]
    return e("MaxPool", x, kernel_shape=kernel, strides=stride, pads=pads, dilations=dilation)


@EMIT.entry("avg_pool")
def avg_pool(
    e: Emitter, x: str, *, kernel: Ints, stride: Ints, padding: Ints, ceil_mode: bool, count_include_pad: bool
) -> str:
    after = _after(e, x, kernel, stride, padding, (1,) * len(kernel))
    if not count_include_pad or not any(padding):
        return e("AveragePool", x, kernel_shape=kernel, strides=stride, pads=[*padding, *after])
    if tuple(after) == padding:
        return e("AveragePool", x, kernel_shape=kernel, strides=stride, pads=[*padding, *after], count_include_pad=1)
    # The zeros of the padding count, what hangs over beyond them does not: so the padding becomes part of the input.
    padded = e("Pad", x, e.literal([0, 0, *padding] * 2), e.literal(0, e.dtype(x)))
    beyond = [max(0, wide - pad) for wide, pad in zip(after, padding, strict=True)]
    return e("AveragePool", padded, kernel_shape=kernel, strides=stride, pads=[0 for _ in kernel] + beyond)


def _after(e: Emitter, x: str, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints) -> list[int]:
    """Padding behind each axis that makes the windows fit exactly: said so, every runtime agrees on the rounding.

    Less than `padding` where the last positions are in no window."""
    sizes = zip(e.shape(x)[2:], e.result.shape[2:], kernel, stride, padding, dilation, strict=True)
    return [max(0, (out - 1) * step + hop * (tap - 1) + 1 - size - pad) for size, out, tap, step, pad, hop in sizes]


@EMIT.entry("adaptive_avg_pool")
def adaptive_avg_pool(e: Emitter, x: str, *, output_size: Ints) -> str:
    return _adaptive(e, x, output_size, "AveragePool", "ReduceMean")


@EMIT.entry("adaptive_max_pool")
def adaptive_max_pool(e: Emitter, x: str, *, output_size: Ints) -> str:
    return _adaptive(e, x, output_size, "MaxPool", "ReduceMax")


def _adaptive(e: Emitter, x: str, output_size: Ints, pool: str, reduce: str) -> str:
    """A global or an even pool where the sizes divide, else the windows of each axis in turn, cut out and reduced."""
    sizes = e.shape(x)[2:]
    if sizes == output_size:
        return x
    if all(out == 1 for out in output_size):
        return e(f"Global{pool}", x)
    if all(size % out == 0 for size, out in zip(sizes, output_size, strict=True)):
        kernel = [size // out for size, out in zip(sizes, output_size, strict=True)]
        return e(pool, x, kernel_shape=kernel, strides=kernel)
    for axis, (size, out) in enumerate(zip(sizes, output_size, strict=True), start=2):
        windows = [(i * size // out, -(-(i + 1) * size // out)) for i in range(out)]
        if size != out:
            parts = [e(reduce, e.cut(x, axis, a, b), e.literal([axis]), keepdims=1) for a, b in windows]
            x = e("Concat", *parts, axis=axis)
    return x


@EMIT.entry("resize")
def resize(e: Emitter, x: str, *, size: Ints, scales: tuple[float, ...] | None, mode: str, align_corners: bool) -> str:
    before = e.shape(x)
    even = all(out % n == 0 for n, out in zip(before[2:], e.result.shape[2:], strict=True))
    if mode == "nearest" and (scales is not None or not even):
        return _nearest(e, x, size, scales)
    place = "asymmetric" if mode == "nearest" else "align_corners" if align_corners else "half_pixel"
    how = {"mode": mode, "coordinate_transformation_mode": place, "cubic_coeff_a": -0.75}
    if mode == "nearest":
        how["nearest_mode"] = "floor"
    if scales is None or align_corners:
        return e("Resize", x, None, None, e.literal([*before[:2], *size]), **how)
    return e("Resize", x, None, e.literal([1.0, 1.0, *scales], torch.float32), **how)


def _nearest(e: Emitter, x: str, size: Ints, scales: tuple[float, ...] | None) -> str:
    """By PyTorch's own positions, whose rounding no mode of ONNX's Resize promises."""
    for i, count in enumerate(e.shape(x)[2:]):
        line = torch.arange(count, dtype=torch.float32).reshape(1, 1, count)
        scale = None if scales is None else (scales[i],)
        positions = OPS["resize"](line, size=(size[i],), scales=scale, mode="nearest", align_corners=False)
        assert isinstance(positions, torch.Tensor)
        x = e("Gather", x, e.literal(positions.flatten().long()), axis=2 + i)
    return x


def _present(*names: str | None) -> tuple[str, ...]:
    return tuple(name for name in names if name is not None)
