"""Element by element, and along axes: activations, arithmetic, comparisons, reductions."""

from __future__ import annotations

import math
from typing import Any

import torch

from abridged.graph.aten.table import ATEN, Ints, Lowering, Rule, axes_of, axis_of
from abridged.graph.build import Number, Operand
from abridged.graph.graph import Value

# ---- nothing happens -------------------------------------------------------------------------------------------------


@ATEN.entry(
    "alias", "clone", "contiguous", "detach", "lift", "lift_fresh_copy", "positive", "to", "_to_copy",
    "resolve_conj", "resolve_neg",
)  # fmt: skip
def _same(b: Lowering, x: Value) -> Value:
    return b.cast(x, b.dtype)


ATEN.entry("type_as")(lambda b, x, y: b.cast(x, y.dtype))


@ATEN.entry("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
def _dropout(b: Lowering, x: Value, p: float, train: bool) -> Value:
    if train and p > 0:
        raise b.refuse("dropout is on although training is off: give it training=self.training")
    return x


def _filled(b: Lowering, source: Operand) -> Value:
    """The source in the shape and dtype of what it overwrites; a number becomes one constant."""
    if isinstance(source, Value):
        return b.expand(b.cast(source, b.dtype), b.shape)
    return b.constant(torch.full(b.shape, source, dtype=b.dtype))


ATEN.entry("copy")(lambda b, x, src: _filled(b, src))
ATEN.entry("fill")(lambda b, x, value: _filled(b, value))
ATEN.entry("zero")(lambda b, x: _filled(b, 0))


# ---- one tensor ------------------------------------------------------------------------------------------------------


def _floating(op: str) -> Rule:
    """Of floats alone: an integer becomes one."""
    return lambda b, x: b(op, b.floating(x))


for _op in (
    "reciprocal", "sqrt", "rsqrt", "exp", "log", "sin", "cos", "tanh", "erf", "sigmoid", "silu", "mish",
    "hardsigmoid", "hardswish",
):  # fmt: skip
    ATEN.entry(_op)(_floating(_op))


def _unary(op: str) -> Rule:
    return lambda b, x: b(op, x)


for _op in ("neg", "abs", "sign", "relu", "logical_not"):
    ATEN.entry(_op)(_unary(_op))


def _rounded(op: str) -> Rule:
    """Integers are round already."""
    return lambda b, x: b(op, x) if x.dtype.is_floating_point else x


for _op in ("floor", "ceil", "round"):
    ATEN.entry(_op)(_rounded(_op))


@ATEN.entry("trunc")
def _trunc(b: Lowering, x: Value) -> Value:
    return b("where", b.binary("lt", x, 0), b("ceil", x), b("floor", x)) if x.dtype.is_floating_point else x


ATEN.entry("bitwise_not")(lambda b, x: _only_bool(b, "logical_not", x))
ATEN.entry("log2")(lambda b, x: b.binary("mul", b("log", b.floating(x)), 1 / math.log(2)))
ATEN.entry("log10")(lambda b, x: b.binary("mul", b("log", b.floating(x)), 1 / math.log(10)))
ATEN.entry("square")(lambda b, x: b("mul", x, x))
ATEN.entry("gelu")(lambda b, x, approximate: b("gelu", x, approximate=approximate))
ATEN.entry("leaky_relu")(lambda b, x, negative_slope: b("leaky_relu", x, negative_slope=float(negative_slope)))
ATEN.entry("rrelu")(lambda b, x, lower, upper: b("leaky_relu", x, negative_slope=(lower + upper) / 2))
ATEN.entry("softplus")(lambda b, x, beta, threshold: b("softplus", x, beta=float(beta), threshold=float(threshold)))
ATEN.entry("prelu")(lambda b, x, weight: b("prelu", x, weight))
ATEN.entry("_prelu_kernel")(lambda b, x, weight: b("where", b.binary("gt", x, 0), x, b("mul", x, weight)))


@ATEN.entry("log_sigmoid")
def _log_sigmoid(b: Lowering, x: Value) -> Value:
    """min(x, 0) − log(1 + exp(−|x|))."""
    rest = b("softplus", b("neg", b("abs", x)), beta=1.0, threshold=20.0)
    return b("sub", b("clamp", x, min=None, max=0.0), rest)


@ATEN.entry("elu")
def _elu(b: Lowering, x: Value, alpha: Number, scale: Number, input_scale: Number) -> Value:
    """scale · (x where x > 0, else alpha · (exp(input_scale · x) − 1))."""
    if input_scale == 1:
        y = b("elu", x, alpha=float(alpha))
        return y if scale == 1 else b.binary("mul", y, scale)
    grown = b("elu", b.binary("mul", x, input_scale), alpha=float(alpha))
    return b.binary("mul", b("where", b.binary("gt", x, 0), x, grown), scale)


_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946
ATEN.entry("selu")(lambda b, x: _elu(b, x, _SELU_ALPHA, _SELU_SCALE, 1))
ATEN.entry("celu")(lambda b, x, alpha: _elu(b, x, alpha, 1, 1 / alpha))


@ATEN.entry("clamp")
def _clamp(b: Lowering, x: Value, min: Operand | None, max: Operand | None) -> Value:
    if isinstance(min, Value) or isinstance(max, Value):
        x = x if min is None else b.binary("maximum", x, min)
        return x if max is None else b.binary("minimum", x, max)
    return b("clamp", b.cast(x, b.dtype), min=min, max=max)


ATEN.entry("clamp_min")(lambda b, x, min: _clamp(b, x, min, None))
ATEN.entry("clamp_max")(lambda b, x, max: _clamp(b, x, None, max))
ATEN.entry("hardtanh")(lambda b, x, min_val, max_val: _clamp(b, x, min_val, max_val))
ATEN.entry("relu6")(lambda b, x: _clamp(b, x, 0.0, 6.0))


# ---- two tensors, or more --------------------------------------------------------------------------------------------


def _binary(op: str) -> Rule:
    return lambda b, x, y: b.binary(op, x, y)


for _op in ("mul", "remainder", "maximum", "minimum", "eq", "ne", "lt", "le", "gt", "ge"):
    ATEN.entry(_op)(_binary(_op))
for _alias, _op in (
    ("multiply", "mul"),
    ("greater", "gt"),
    ("less", "lt"),
    ("max.other", "maximum"),
    ("min.other", "minimum"),
):
    ATEN.entry(_alias)(_binary(_op))
for _op in ("logical_and", "logical_or", "logical_xor"):
    ATEN.entry(_op)(_binary(_op))


def _only_bool(b: Lowering, op: str, *xs: Operand) -> Value:
    """A bitwise op, of bools: there it is the logical one."""
    if b.dtype != torch.bool:
        raise b.refuse(f"bitwise ops are there for bool alone, not for {b.dtype}")
    return b(op, *b.promote(*xs))


def _bitwise(op: str) -> Rule:
    return lambda b, x, y: _only_bool(b, op, x, y)


for _op in ("and", "or", "xor"):
    ATEN.entry(f"bitwise_{_op}", f"__{_op}__")(_bitwise(f"logical_{_op}"))


def _times(b: Lowering, x: Operand, factor: Number) -> Operand:
    if factor == 1:
        return x
    return b.binary("mul", x, factor) if isinstance(x, Value) else x * factor


ATEN.entry("add")(lambda b, x, y, alpha: b.binary("add", x, _times(b, y, alpha)))
ATEN.entry("sub", "subtract")(lambda b, x, y, alpha: b.binary("sub", x, _times(b, y, alpha)))
ATEN.entry("rsub")(lambda b, x, y, alpha: b.binary("sub", y, _times(b, x, alpha)))
ATEN.entry("addcmul")(
    lambda b, x, tensor1, tensor2, value: b.binary("add", x, _times(b, b.binary("mul", tensor1, tensor2), value))
)
ATEN.entry("lerp")(lambda b, x, end, weight: b.binary("add", x, b.binary("mul", b.binary("sub", end, x), weight)))


@ATEN.entry("div", "divide", "true_divide")
def _div(b: Lowering, x: Value, y: Operand, rounding_mode: str | None = None) -> Value:
    left, right = b.promote(x, y)
    if rounding_mode == "floor":
        return b("floor_div", left, right)
    if rounding_mode is None or left.dtype.is_floating_point:
        quotient = b("div", b.floating(left), b.floating(right))
        return quotient if rounding_mode is None else _trunc(b, quotient)
    sign = b("mul", b("sign", left), b("sign", right))
    return b("mul", sign, b("floor_div", b("abs", left), b("abs", right)))


ATEN.entry("addcdiv")(
    lambda b, x, tensor1, tensor2, value: b.binary("add", x, _times(b, _div(b, tensor1, tensor2), value))
)
ATEN.entry("floor_divide")(lambda b, x, y: b("floor_div", *b.promote(x, y)))
ATEN.entry("pow")(lambda b, x, exponent: b.binary("pow", x, exponent))


@ATEN.entry("where")
def _where(b: Lowering, condition: Value, x: Operand, y: Operand) -> Value:
    return b("where", b.cast(condition, torch.bool), *b.promote(x, y))


@ATEN.entry("masked_fill")
def _masked_fill(b: Lowering, x: Value, mask: Value, value: Operand) -> Value:
    return b("where", mask, b.cast(value, x.dtype), x)


@ATEN.entry("isnan")
def _isnan(b: Lowering, x: Value) -> Value:
    return b("ne", x, x)


# ---- along axes ------------------------------------------------------------------------------------------------------


def _along(op: str) -> Rule:
    """Along one axis, in the dtype of the result."""
    return lambda b, x, dim: b(op, b.cast(x, b.dtype), axis=axis_of(x, dim))


for _op in ("softmax", "log_softmax"):
    ATEN.entry(_op, f"_{_op}")(_along(_op))
ATEN.entry("cumsum")(_along("cumsum"))


def _over(op: str) -> Rule:
    """Over some axes, or all of them, in the dtype of the result."""

    def rule(b: Lowering, x: Value, dim: int | Ints | None = None, keepdim: bool = False) -> Value:
        return b(op, b.cast(x, b.dtype), axes=axes_of(x, dim), keepdim=keepdim)

    return rule


for _op in ("sum", "mean", "prod", "amax", "amin"):
    ATEN.entry(_op)(_over(_op))
ATEN.entry("max")(_over("amax"))
ATEN.entry("min")(_over("amin"))


def _arg(op: str) -> Rule:
    def rule(b: Lowering, x: Value, dim: int | None, keepdim: bool) -> Value:
        if dim is not None:
            return b(op, x, axis=axis_of(x, dim), keepdim=keepdim)
        return b.reshape(b(op, b.reshape(x, (math.prod(x.shape),)), axis=0, keepdim=False), b.shape)

    return rule


def _extreme_and_place(value: str, place: str) -> Rule:
    def rule(b: Lowering, x: Value, dim: int, keepdim: bool) -> tuple[Value, ...]:
        axis = axis_of(x, dim)
        return b(value, x, axes=(axis,), keepdim=keepdim), b(place, x, axis=axis, keepdim=keepdim)

    return rule


for _value, _place in (("amax", "argmax"), ("amin", "argmin")):
    ATEN.entry(_place)(_arg(_place))
    ATEN.entry(f"{_value[1:]}.dim")(_extreme_and_place(_value, _place))


@ATEN.entry("var")
def _var(
    b: Lowering,
    x: Value,
    dim: int | Ints | None = None,
    correction: float | None = None,
    unbiased: bool = True,
    keepdim: bool = False,
) -> Value:
    minus = float(unbiased) if correction is None else float(correction)
    return b("var", x, axes=axes_of(x, dim), correction=minus, keepdim=keepdim)


ATEN.entry("std")(lambda b, x, **rest: b("sqrt", _var(b, x, **rest)))


@ATEN.entry("var_mean")
def _var_mean(
    b: Lowering, x: Value, dim: int | Ints | None = None, keepdim: bool = False, **rest: Any
) -> tuple[Value, ...]:
    return _var(b, x, dim, keepdim=keepdim, **rest), b("mean", x, axes=axes_of(x, dim), keepdim=keepdim)


@ATEN.entry("linalg_vector_norm")
def _vector_norm(b: Lowering, x: Value, ord: float, dim: int | Ints | None, keepdim: bool) -> Value:
    return b("vector_norm", b.cast(x, b.dtype), ord=float(ord), axes=axes_of(x, dim), keepdim=keepdim)


@ATEN.entry("norm")
def _norm(b: Lowering, x: Value, p: float | None = None, dim: Ints | None = None, keepdim: bool = False) -> Value:
    return _vector_norm(b, x, 2.0 if p is None else p, dim, keepdim)


@ATEN.entry("logsumexp")
def _logsumexp(b: Lowering, x: Value, dim: int | Ints, keepdim: bool) -> Value:
    """max + log Σ exp(x − max); where the maximum is infinite, another large number serves: ∞ − ∞ would be NaN."""
    x = b.cast(x, b.dtype)
    axes, most = axes_of(x, dim), torch.finfo(b.dtype).max
    largest = b("clamp", b("amax", x, axes=axes, keepdim=True), min=-most, max=most)
    total = b("sum", b("exp", b("sub", x, largest)), axes=axes, keepdim=True)
    return b.reshape(b("add", largest, b("log", total)), b.shape)


def _truth(op: str) -> Rule:
    """The extreme of bools, by way of uint8."""

    def rule(b: Lowering, x: Value, dim: int | Ints | None = None, keepdim: bool = False) -> Value:
        truth = b.cast(b.cast(x, torch.bool), torch.uint8)
        return b.cast(b(op, truth, axes=axes_of(x, dim), keepdim=keepdim), torch.bool)

    return rule


ATEN.entry("any")(_truth("amax"))
ATEN.entry("all")(_truth("amin"))
