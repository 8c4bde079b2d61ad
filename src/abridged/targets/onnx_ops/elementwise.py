"""Functions of one or two tensors, element by element."""

from __future__ import annotations

from collections.abc import Callable

import torch

from abridged.targets.onnx_emitter import EMIT, NARROW, Emitter

# ---- one tensor, element by element ----------------------------------------------------------------------------------


def _unary(name: str, rule: Callable[[Emitter, str], str], integers: Callable[[Emitter, str], str] | None) -> None:
    """A function of floats. On integers it is `integers`, or by None the same function of the result's (float) dtype."""

    def emit(e: Emitter, x: str) -> str:
        if e.dtype(x).is_floating_point:
            return rule(e, x)
        return rule(e, e.cast(x, e.result.dtype)) if integers is None else integers(e, x)

    EMIT.entry(name)(emit)


def _same(e: Emitter, x: str) -> str:
    return x


def _op(op: str) -> Callable[[Emitter, str], str]:
    return lambda e, x: e(op, x)


def _wide(op: str) -> Callable[[Emitter, str], str]:
    return lambda e, x: _widened(e, op, x)


_unary("neg", _op("Neg"), _wide("Neg"))
_unary("abs", _op("Abs"), _op("Abs"))
_unary("sign", _op("Sign"), _op("Sign"))
_unary("floor", _op("Floor"), _same)
_unary("ceil", _op("Ceil"), _same)
_unary("round", _op("Round"), _same)
_unary("reciprocal", _op("Reciprocal"), None)
_unary("sqrt", _op("Sqrt"), None)
_unary("rsqrt", lambda e, x: e("Reciprocal", e("Sqrt", x)), None)
_unary("exp", _op("Exp"), None)
_unary("log", _op("Log"), None)
_unary("sin", _op("Sin"), None)
_unary("cos", _op("Cos"), None)
_unary("tanh", _op("Tanh"), None)
_unary("erf", _op("Erf"), None)
_unary("relu", _op("Relu"), lambda e, x: _widened(e, "Max", x, e.literal(0, e.dtype(x))))
_unary("sigmoid", _op("Sigmoid"), None)
_unary("silu", lambda e, x: e("Mul", x, e("Sigmoid", x)), None)
_unary("mish", lambda e, x: e("Mul", x, e("Tanh", e("Softplus", x))), None)
_unary("hardsigmoid", lambda e, x: e("HardSigmoid", x, alpha=1 / 6, beta=0.5), None)
_unary("hardswish", lambda e, x: e("Mul", x, e("HardSigmoid", x, alpha=1 / 6, beta=0.5)), None)


@EMIT.entry("logical_not")
def logical_not(e: Emitter, x: str) -> str:
    return e("Not", _truth(e, x))


@EMIT.entry("gelu")
def gelu(e: Emitter, x: str, *, approximate: str) -> str:
    return e("Gelu", x, approximate=approximate)


@EMIT.entry("leaky_relu")
def leaky_relu(e: Emitter, x: str, *, negative_slope: float) -> str:
    return e("LeakyRelu", x, alpha=negative_slope)


@EMIT.entry("elu")
def elu(e: Emitter, x: str, *, alpha: float) -> str:
    return e("Elu", x, alpha=alpha)


@EMIT.entry("softplus")
def softplus(e: Emitter, x: str, *, beta: float, threshold: float) -> str:
    dtype = e.dtype(x)
    scaled = x if beta == 1 else e("Mul", x, e.literal(beta, dtype))
    y = e("Softplus", scaled)
    y = y if beta == 1 else e("Div", y, e.literal(beta, dtype))
    if threshold >= 20:  # log(1 + eˣ) − x < eps · x from there on
        return y
    return e("Where", e("Greater", scaled, e.literal(threshold, dtype)), x, y)


@EMIT.entry("clamp")
def clamp(e: Emitter, x: str, *, min: float | None, max: float | None) -> str:
    low, high = (None if bound is None else e.literal(bound, e.dtype(x)) for bound in (min, max))
    return e("Clip", x, low, high)


@EMIT.entry("cast")
def cast(e: Emitter, x: str, *, dtype: torch.dtype) -> str:
    return e.cast(x, dtype)


# ---- two tensors, element by element ---------------------------------------------------------------------------------


def _widened(e: Emitter, op: str, *xs: str) -> str:
    """An op on the result's dtype; on narrow integers by way of int32, which wraps as they do."""
    dtype = e.result.dtype
    if dtype not in NARROW:
        return e(op, *xs)
    return e.cast(e(op, *(e.cast(x, torch.int32) for x in xs)), dtype)


def _arithmetic(name: str, op: str, booleans: str | None = None) -> None:
    """An ONNX op of two tensors; on booleans, where it is defined, the logical op that it is there."""

    def emit(e: Emitter, x: str, y: str) -> str:
        return e(booleans, x, y) if booleans and e.dtype(x) == torch.bool else _widened(e, op, x, y)

    EMIT.entry(name)(emit)


_arithmetic("add", "Add", "Or")
_arithmetic("sub", "Sub")
_arithmetic("mul", "Mul", "And")
_arithmetic("div", "Div")
_arithmetic("pow", "Pow")
_arithmetic("maximum", "Max", "Or")
_arithmetic("minimum", "Min", "And")


@EMIT.entry("remainder")
def remainder(e: Emitter, x: str, y: str) -> str:
    if not e.dtype(x).is_floating_point:
        return _widened(e, "Mod", x, y)
    zero = e.literal(0, e.dtype(x))
    rest = e("Mod", x, y, fmod=1)  # has the sign of x
    crossed = e("Xor", e("Less", rest, zero), e("Less", y, zero))
    return e("Where", e("And", e("Not", e("Equal", rest, zero)), crossed), e("Add", rest, y), rest)


@EMIT.entry("floor_div")
def floor_div(e: Emitter, x: str, y: str) -> str:
    dtype = e.dtype(x)
    if dtype in NARROW:
        x, y = e.cast(x, torch.int32), e.cast(y, torch.int32)
        return e.cast(e("Div", e("Sub", x, e("Mod", x, y)), y), dtype)
    quotient = e("Div", e("Sub", x, remainder(e, x, y)), y)
    return e("Round", quotient) if dtype.is_floating_point else quotient


def _comparison(name: str, op: str, negated: bool = False) -> None:
    def emit(e: Emitter, x: str, y: str) -> str:
        if e.dtype(x) in NARROW or (e.dtype(x) == torch.bool and op != "Equal"):
            x, y = e.cast(x, torch.int32), e.cast(y, torch.int32)
        return e("Not", e(op, x, y)) if negated else e(op, x, y)

    EMIT.entry(name)(emit)


_comparison("eq", "Equal")
_comparison("ne", "Equal", negated=True)
_comparison("lt", "Less")
_comparison("le", "LessOrEqual")
_comparison("gt", "Greater")
_comparison("ge", "GreaterOrEqual")


def _logical(name: str, op: str) -> None:
    EMIT.entry(name)(lambda e, x, y: e(op, _truth(e, x), _truth(e, y)))


_logical("logical_and", "And")
_logical("logical_or", "Or")
_logical("logical_xor", "Xor")


def _truth(e: Emitter, x: str) -> str:
    return x if e.dtype(x) == torch.bool else e.cast(x, torch.bool)


@EMIT.entry("prelu")
def prelu(e: Emitter, x: str, weight: str) -> str:
    trailing = [1] * max(0, len(e.shape(x)) - 2)
    return e("PRelu", x, e("Reshape", weight, e.literal([*e.shape(weight), *trailing])))


@EMIT.entry("where")
def where(e: Emitter, condition: str, x: str, y: str) -> str:
    dtype = e.dtype(x)
    if dtype not in (*NARROW, torch.bool):
        return e("Where", condition, x, y)
    return e.cast(e("Where", condition, e.cast(x, torch.int32), e.cast(y, torch.int32)), dtype)
