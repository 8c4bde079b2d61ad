"""Layers: convolutions, matrix products, attention, normalization, pooling, resizing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from abridged.graph.aten.places import pads
from abridged.graph.aten.table import ATEN, Ints, Lowering, Rule, batched, per_axis
from abridged.graph.graph import Value

# ---- linear ----------------------------------------------------------------------------------------------------------


def _convolve(
    b: Lowering, x: Value, weight: Value, bias: Value | None, stride: Any, padding: Any, dilation: Any, groups: int
) -> Value:
    n = len(weight.shape) - 2
    stride, dilation = per_axis(stride, n), per_axis(dilation, n)
    if isinstance(padding, str):
        totals = [d * (k - 1) * (padding == "same") for d, k in zip(dilation, weight.shape[2:], strict=True)]
        if any(total % 2 for total in totals):  # the odd one goes after
            x = pads(b, x, [k for total in reversed(totals) for k in (0, total % 2)])
        padding = [total // 2 for total in totals]
    return batched(
        b, x, n, lambda x: b("conv", x, weight, bias, stride=stride, padding=per_axis(padding, n), dilation=dilation, groups=groups)
    )  # fmt: skip


ATEN.entry("conv1d", "conv2d", "conv3d")(_convolve)


@ATEN.entry("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _convolve_transposed(
    b: Lowering,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Any,
    padding: Any,
    output_padding: Any,
    dilation: Any,
    groups: int,
) -> Value:
    n = len(weight.shape) - 2
    attrs = {"stride": stride, "padding": padding, "output_padding": output_padding, "dilation": dilation}
    tuples = {name: per_axis(given, n) for name, given in attrs.items()}
    return batched(b, x, n, lambda x: b("conv_transpose", x, weight, bias, groups=groups, **tuples))


@ATEN.entry("convolution")
def _convolution(
    b: Lowering,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Value:
    if transposed:
        return _convolve_transposed(b, x, weight, bias, stride, padding, output_padding, dilation, groups)
    return _convolve(b, x, weight, bias, stride, padding, dilation, groups)


@ATEN.entry("linear")
def _linear(b: Lowering, x: Value, weight: Value, bias: Value | None) -> Value:
    return b("linear", x, weight, bias)


def _matmul(b: Lowering, x: Value, y: Value) -> Value:
    """torch.matmul, vectors included."""
    left = b.reshape(x, (1, *x.shape)) if len(x.shape) == 1 else x
    right = b.reshape(y, (*y.shape, 1)) if len(y.shape) == 1 else y
    return b.reshape(b("matmul", left, right), b.shape)


ATEN.entry("matmul")(_matmul)
ATEN.entry("mm", "bmm")(lambda b, x, mat2: b("matmul", x, mat2))
ATEN.entry("mv")(lambda b, x, vec: _matmul(b, x, vec))
ATEN.entry("dot")(lambda b, x, tensor: _matmul(b, x, tensor))
ATEN.entry("outer", "ger")(lambda b, x, vec2: b("mul", b.reshape(x, (*x.shape, 1)), vec2))
ATEN.entry("einsum")(lambda b, equation, tensors: b("einsum", *tensors, equation=equation))


def _scaled(b: Lowering, x: Value, factor: float) -> Value:
    return x if factor == 1 else b.binary("mul", x, factor)


@ATEN.entry("addmm")
def _addmm(b: Lowering, x: Value, mat1: Value, mat2: Value, beta: float, alpha: float) -> Value:
    return b.binary("add", _scaled(b, _matmul(b, mat1, mat2), alpha), _scaled(b, x, beta))


ATEN.entry("addmv")(lambda b, x, mat, vec, beta, alpha: _addmm(b, x, mat, vec, beta, alpha))
ATEN.entry("baddbmm")(lambda b, x, batch1, batch2, beta, alpha: _addmm(b, x, batch1, batch2, beta, alpha))


@ATEN.entry("addbmm")
def _addbmm(b: Lowering, x: Value, batch1: Value, batch2: Value, beta: float, alpha: float) -> Value:
    total = b("sum", b("matmul", batch1, batch2), axes=(0,), keepdim=False)
    return b.binary("add", _scaled(b, total, alpha), _scaled(b, x, beta))


@ATEN.entry("scaled_dot_product_attention")
def _attention(
    b: Lowering,
    query: Value,
    key: Value,
    value: Value,
    attn_mask: Value | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> Value:
    if dropout_p > 0:
        raise b.refuse("attention has dropout although training is off: give it dropout_p=0 when not self.training")
    if enable_gqa and query.shape[-3] != key.shape[-3]:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = (b("repeat_interleave", t, repeats=repeats, axis=len(t.shape) - 3) for t in (key, value))
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    return b("attention", query, key, value, attn_mask, causal=is_causal, scale=float(scale))


# ---- normalization ---------------------------------------------------------------------------------------------------


def _standardized(b: Lowering, x: Value, axes: tuple[int, ...], eps: float) -> Value:
    centred = b("sub", x, b("mean", x, axes=axes, keepdim=True))
    variance = b("var", x, axes=axes, correction=0.0, keepdim=True)
    return b("mul", centred, b("rsqrt", b.binary("add", variance, eps)))


@ATEN.entry("batch_norm")
def _batch_norm(
    b: Lowering,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    running_mean: Value | None,
    running_var: Value | None,
    training: bool,
    eps: float,
) -> Value:
    if training and running_mean is not None:
        raise b.refuse("batch norm updates its statistics although training is off: export it in eval mode")
    if running_mean is not None:
        return b("batch_norm", x, weight, bias, running_mean, running_var, eps=eps)
    y = _standardized(b, x, (0, *range(2, len(x.shape))), eps)
    return _affine(b, y, weight, bias)


def _affine(b: Lowering, y: Value, weight: Value | None, bias: Value | None) -> Value:
    """y · weight + bias, one of each per channel of axis 1."""
    per_channel = (-1, *(1,) * (len(y.shape) - 2))
    if weight is not None:
        y = b("mul", y, b.reshape(weight, (weight.shape[0], *per_channel[1:])))
    return y if bias is None else b("add", y, b.reshape(bias, (bias.shape[0], *per_channel[1:])))


@ATEN.entry("_native_batch_norm_legit_no_training")
def _native_batch_norm(
    b: Lowering,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    running_mean: Value,
    running_var: Value,
    eps: float,
) -> tuple[Value, ...]:
    return (b("batch_norm", x, weight, bias, running_mean, running_var, eps=eps),)


@ATEN.entry("instance_norm")
def _instance_norm(
    b: Lowering,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    running_mean: Value | None,
    running_var: Value | None,
    use_input_stats: bool,
    eps: float,
) -> Value:
    if not use_input_stats:
        return b("batch_norm", x, weight, bias, running_mean, running_var, eps=eps)
    return b("group_norm", x, weight, bias, groups=x.shape[1], eps=eps)


@ATEN.entry("layer_norm")
def _layer_norm(
    b: Lowering, x: Value, normalized_shape: Ints, weight: Value | None, bias: Value | None, eps: float
) -> Value:
    return b("layer_norm", x, weight, bias, normalized_shape=tuple(normalized_shape), eps=eps)


ATEN.entry("native_layer_norm")(
    lambda b, x, normalized_shape, weight, bias, eps: (_layer_norm(b, x, normalized_shape, weight, bias, eps),)
)
ATEN.entry("group_norm")(
    lambda b, x, num_groups, weight, bias, eps: b("group_norm", x, weight, bias, groups=num_groups, eps=eps)
)
ATEN.entry("native_group_norm")(
    lambda b, x, weight, bias, group, eps: (b("group_norm", x, weight, bias, groups=group, eps=eps),)
)


@ATEN.entry("rms_norm")
def _rms_norm(b: Lowering, x: Value, normalized_shape: Ints, weight: Value | None, eps: float | None) -> Value:
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    return b("rms_norm", x, weight, normalized_shape=tuple(normalized_shape), eps=eps)


# ---- pooling and resizing --------------------------------------------------------------------------------------------


def _max_pool(axes: int) -> Rule:
    def rule(
        b: Lowering, x: Value, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
    ) -> Value:
        kernel = per_axis(kernel_size, axes)
        windows = {
            "kernel": kernel,
            "stride": per_axis(stride, axes, kernel),
            "padding": per_axis(padding, axes),
            "dilation": per_axis(dilation, axes),
        }
        return batched(b, x, axes, lambda x: b("max_pool", x, ceil_mode=ceil_mode, **windows))

    return rule


def _avg_pool(axes: int) -> Rule:
    def rule(
        b: Lowering, x: Value, kernel_size: Any, stride: Any, padding: Any, ceil_mode: bool, count_include_pad: bool
    ) -> Value:
        kernel = per_axis(kernel_size, axes)
        windows = {
            "kernel": kernel,
            "stride": per_axis(stride, axes, kernel),
            "padding": per_axis(padding, axes),
        }
        return batched(
            b, x, axes, lambda x: b("avg_pool", x, ceil_mode=ceil_mode, count_include_pad=count_include_pad, **windows)
        )

    return rule


def _adaptive_pool(op: str, axes: int) -> Rule:
    def rule(b: Lowering, x: Value, output_size: Any) -> Value:
        return batched(b, x, axes, lambda x: b(op, x, output_size=per_axis(output_size, axes)))

    return rule


def _first_of(rule: Rule) -> Rule:
    """A rule for an op that gives indices or statistics too, which we have no use for."""

    def first(b: Lowering, x: Value, **rest: Any) -> tuple[Value, ...]:
        value = rule(b, x, **rest)
        return value if isinstance(value, tuple) else (value,)

    return first


def _resize(mode: str) -> Rule:
    def rule(
        b: Lowering,
        x: Value,
        output_size: Any,
        scale_factors: Sequence[float] | None = None,
        align_corners: bool = False,
        scales: float | None = None,
        scales_d: float | None = None,
        scales_h: float | None = None,
        scales_w: float | None = None,
    ) -> Value:
        factors = scale_factors or [s for s in (scales, scales_d, scales_h, scales_w) if s is not None]
        exact = tuple(map(float, factors)) if len(factors) == len(x.shape) - 2 else None
        if mode == "nearest-exact":
            return _chosen(b, x, exact)
        return b("resize", x, size=b.shape[2:], scales=exact, mode=mode, align_corners=align_corners)

    return rule


def _chosen(b: Lowering, x: Value, scales: tuple[float, ...] | None) -> Value:
    """The nearest element by its centre: along each axis, take what PyTorch takes from the line 0, 1, 2 ..."""
    for axis, size in enumerate(b.shape[2:]):
        line = torch.arange(float(x.shape[axis + 2]))[None, None]  # (1, 1, size)
        how: dict[str, Any] = {"size": size} if scales is None else {"scale_factor": scales[axis]}
        places = F.interpolate(line, mode="nearest-exact", **how)[0, 0].long()
        x = b("take", x, b.constant(places), axis=axis + 2)
    return x


for _n in (1, 2, 3):
    ATEN.entry(f"max_pool{_n}d")(_max_pool(_n))
    ATEN.entry(f"avg_pool{_n}d")(_avg_pool(_n))
    ATEN.entry(f"adaptive_avg_pool{_n}d")(_adaptive_pool("adaptive_avg_pool", _n))
    ATEN.entry(f"adaptive_max_pool{_n}d")(_first_of(_adaptive_pool("adaptive_max_pool", _n)))
    ATEN.entry(f"upsample_nearest{_n}d")(_resize("nearest"))
    ATEN.entry(f"_upsample_nearest_exact{_n}d")(_resize("nearest-exact"))
ATEN.entry("_adaptive_avg_pool2d")(_adaptive_pool("adaptive_avg_pool", 2))
ATEN.entry("_adaptive_avg_pool3d")(_adaptive_pool("adaptive_avg_pool", 3))
ATEN.entry("max_pool2d_with_indices")(_first_of(_max_pool(2)))
ATEN.entry("max_pool3d_with_indices")(_first_of(_max_pool(3)))
for _name in ("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d"):
    ATEN.entry(_name)(_resize("linear"))
ATEN.entry("upsample_bicubic2d")(_resize("cubic"))
