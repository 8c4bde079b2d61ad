"""The law-suite of the op set: every op's declaration, its shapes on the meta device, its accuracy, and a second opinion in numpy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from abridged.errors import InputError
from abridged.graph.graph import Attr, Node, Value
from abridged.graph.ops import OPS, apply, infer, signature

EPS = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Case:
    """Inputs and attributes of one application; `reference` is a second opinion, of the inputs in numpy's float64.

    `terms` bounds the rounding error: |float32 − float64| ≤ terms · eps · (largest magnitude on the way)."""

    inputs: tuple[Tensor | None, ...]
    attrs: Mapping[str, Attr] = field(default_factory=dict)
    reference: Callable[..., Any] | None = None
    terms: int = 8


def _randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(math.prod(shape)))


def _positive(*shape: int) -> Tensor:
    return _randn(*shape).abs() + 0.5


X = _randn(2, 6, 5, 7)  # (N, C, H, W)
Y = X.flip(0) * 0.5 + 1
ROW, BOX, MAT = _randn(2, 6, 7), _randn(1, 4, 3, 5, 4), _randn(5, 3)
INT = torch.tensor([[3, -7, 2], [5, 4, -1]])
BOOL = X > 0
C = 6
W, B, MEAN, VAR = _positive(C), _randn(C), _randn(C) * 0.1, _positive(C)

# Second opinions, some by definition rather than by a library call.


def _conv_by_sum(x, weight, bias, *, stride, padding, dilation, groups):
    """Σ over the kernel's taps, one shifted copy of the padded input each."""
    out, taps = weight.shape[0], weight.shape[2:]
    x = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in padding)])
    size = [(n - d * (k - 1) - 1) // s + 1 for n, d, k, s in zip(x.shape[2:], dilation, taps, stride, strict=True)]
    y = np.zeros((x.shape[0], out, *size))
    per = out // groups
    for tap in np.ndindex(*taps):
        at = tuple(slice(t * d, t * d + s * n, s) for t, d, s, n in zip(tap, dilation, stride, size, strict=True))
        for g in range(groups):
            window = x[(slice(None), slice(g * weight.shape[1], (g + 1) * weight.shape[1]), *at)]
            w = weight[(slice(g * per, (g + 1) * per), slice(None), *tap)]
            y[:, g * per : (g + 1) * per] += np.einsum("oi,ni...->no...", w, window)
    return y if bias is None else y + bias.reshape(-1, *(1,) * len(size))


def _normal(x, axes, eps):
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + eps)


def _channel(v, x):
    return v.reshape(-1, *(1,) * (x.ndim - 2))


def _attention(q, k, v, mask, *, causal, scale):
    logits = scale * q @ k.swapaxes(-1, -2)
    if causal:
        logits = np.where(np.tri(*logits.shape[-2:], dtype=bool), logits, -np.inf)
    if mask is not None:
        logits = np.where(mask, logits, -np.inf) if mask.dtype == bool else logits + mask
    with np.errstate(invalid="ignore"):
        weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.nan_to_num(weights / weights.sum(-1, keepdims=True)) @ v


def _softmax(x, axis):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


_erf = np.vectorize(math.erf)
CONV = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2}
POOL = {"kernel": (3, 2), "stride": (2, 2), "padding": (1, 0), "ceil_mode": False}
ATTENTION = {"causal": False, "scale": 0.4}
WINDOW = {"axes": (1, 3), "keepdim": False}
ONE = {"axis": 2, "keepdim": True}

UNARY: dict[str, Callable[[Any], Any]] = {
    "neg": np.negative, "abs": np.abs, "sign": np.sign, "floor": np.floor, "ceil": np.ceil, "round": np.round,
    "exp": np.exp, "sin": np.sin, "cos": np.cos, "tanh": np.tanh, "erf": _erf, "sigmoid": _sigmoid,
    "relu": lambda x: np.maximum(x, 0), "silu": lambda x: x * _sigmoid(x),
    "mish": lambda x: x * np.tanh(np.log1p(np.exp(x))),
    "hardsigmoid": lambda x: np.clip(x + 3, 0, 6) / 6, "hardswish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
}  # fmt: skip
POSITIVE = {"reciprocal": lambda x: 1 / x, "sqrt": np.sqrt, "rsqrt": lambda x: 1 / np.sqrt(x), "log": np.log}
BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "maximum": np.maximum, "minimum": np.minimum,
    "floor_div": np.floor_divide, "remainder": np.mod, "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal,
    "gt": np.greater, "ge": np.greater_equal, "logical_and": np.logical_and, "logical_or": np.logical_or,
    "logical_xor": np.logical_xor,
}  # fmt: skip

CASES: dict[str, list[Case]] = {
    "conv": [
        Case((X, _randn(4, 3, 3, 2), _randn(4)), CONV, _conv_by_sum, 30),
        Case((ROW, _randn(3, 6, 3), None), {"stride": (1,), "padding": (0,), "dilation": (2,), "groups": 1}, _conv_by_sum, 30),
        Case((BOX, _randn(4, 1, 2, 2, 2), None), {"stride": (1, 2, 1), "padding": (0, 1, 0), "dilation": (1, 1, 1), "groups": 4}, _conv_by_sum, 30),
    ],
    "conv_transpose": [
        Case((X, _randn(6, 2, 3, 3), _randn(4)), {"stride": (2, 1), "padding": (1, 0), "output_padding": (1, 0), "dilation": (1, 1), "groups": 2}, None, 40),
        Case((ROW, _randn(6, 2, 3), None), {"stride": (1,), "padding": (0,), "output_padding": (0,), "dilation": (1,), "groups": 1}, None, 40),
        Case((BOX, _randn(4, 2, 2, 2, 2), None), {"stride": (1,) * 3, "padding": (0,) * 3, "output_padding": (0,) * 3, "dilation": (1,) * 3, "groups": 1}, None, 40),
    ],
    "linear": [Case((X, _randn(4, 7), _randn(4)), {}, lambda x, w, b: x @ w.T + b, 12), Case((X, _randn(4, 7), None), {}, lambda x, w, b: x @ w.T, 12)],
    "matmul": [Case((X, Y.transpose(2, 3)[:1]), {}, np.matmul, 12)],
    "einsum": [Case((X, Y), {"equation": "nchw,nkhw->nck"}, lambda x, y, *, equation: np.einsum(equation, x, y), 50)],
    "attention": [
        Case((X, Y, Y, None), ATTENTION, _attention, 30),
        Case((X, Y, Y, None), {"causal": True, "scale": 0.2}, _attention, 30),
        Case((X, Y, X, X[:, :, :, :5]), ATTENTION, _attention, 30),
        Case((X, Y, X, X[:, :, :, :1] > 0), ATTENTION, _attention, 30),  # some rows may look nowhere
    ],
    "batch_norm": [
        Case((X, W, B, MEAN, VAR), {"eps": 1e-3}, lambda x, w, b, m, v, *, eps: (x - _channel(m, x)) / np.sqrt(_channel(v, x) + eps) * _channel(w, x) + _channel(b, x)),
        Case((ROW, None, None, MEAN, VAR), {"eps": 1e-3}, lambda x, w, b, m, v, *, eps: (x - _channel(m, x)) / np.sqrt(_channel(v, x) + eps)),
    ],
    "layer_norm": [
        Case((X, _randn(5, 7), None), {"normalized_shape": (5, 7), "eps": 1e-5}, lambda x, w, b, *, normalized_shape, eps: _normal(x, (2, 3), eps) * w, 60),
        Case((X, None, None), {"normalized_shape": (7,), "eps": 1e-5}, lambda x, w, b, *, normalized_shape, eps: _normal(x, (3,), eps), 60),
    ],
    "rms_norm": [Case((X, _randn(7)), {"normalized_shape": (7,), "eps": 1e-5}, lambda x, w, *, normalized_shape, eps: x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * w, 20)],
    "group_norm": [
        Case((X, W, B), {"groups": 3, "eps": 1e-5}, lambda x, w, b, *, groups, eps: _normal(x.reshape(2, 3, 2, 5, 7), (2, 3, 4), eps).reshape(x.shape) * _channel(w, x) + _channel(b, x), 100),
        Case((ROW, None, None), {"groups": 6, "eps": 1e-5}, lambda x, w, b, *, groups, eps: _normal(x, (2,), eps), 100),
    ],
    "max_pool": [Case((X,), {**POOL, "dilation": (1, 2)}), Case((ROW,), {"kernel": (2,), "stride": (2,), "padding": (0,), "dilation": (1,), "ceil_mode": True}), Case((BOX,), {"kernel": (2, 2, 2), "stride": (1, 1, 1), "padding": (0, 0, 0), "dilation": (1, 1, 1), "ceil_mode": False})],
    "avg_pool": [Case((X,), {**POOL, "count_include_pad": True}), Case((ROW,), {"kernel": (2,), "stride": (2,), "padding": (1,), "ceil_mode": True, "count_include_pad": False}), Case((BOX,), {"kernel": (2, 2, 2), "stride": (1, 1, 1), "padding": (0, 0, 0), "ceil_mode": False, "count_include_pad": True})],
    "adaptive_avg_pool": [Case((X,), {"output_size": (1, 1)}, lambda x, *, output_size: x.mean((2, 3), keepdims=True), 40), Case((X,), {"output_size": (3, 9)}), Case((ROW,), {"output_size": (3,)}), Case((BOX,), {"output_size": (2, 5, 1)})],
    "adaptive_max_pool": [Case((X,), {"output_size": (1, 1)}, lambda x, *, output_size: x.max((2, 3), keepdims=True)), Case((ROW,), {"output_size": (3,)}), Case((BOX,), {"output_size": (2, 5, 1)})],
    "resize": [
        Case((X,), {"size": (10, 14), "scales": None, "mode": "nearest", "align_corners": False}, lambda x, **_: x.repeat(2, 2).repeat(2, 3)),
        Case((X,), {"size": (7, 11), "scales": None, "mode": "linear", "align_corners": True}, None, 400),
        Case((X,), {"size": (7, 10), "scales": (1.5, 1.5), "mode": "linear", "align_corners": False}, None, 400),
        Case((X,), {"size": (7, 11), "scales": None, "mode": "cubic", "align_corners": False}, None, 400),
        Case((ROW,), {"size": (9,), "scales": None, "mode": "linear", "align_corners": False}, None, 400),
        Case((BOX,), {"size": (3, 2, 9), "scales": None, "mode": "linear", "align_corners": False}, None, 400),
    ],
    **{name: [Case((X * 2,), {}, f, 16)] for name, f in UNARY.items()},
    **{name: [Case((X.abs() + 0.5,), {}, f)] for name, f in POSITIVE.items()},
    "logical_not": [Case((BOOL,), {}, np.logical_not), Case((INT,), {}, np.logical_not)],
    "gelu": [
        Case((X,), {"approximate": "none"}, lambda x, *, approximate: x * 0.5 * (1 + _erf(x / math.sqrt(2)))),
        Case((X,), {"approximate": "tanh"}, lambda x, *, approximate: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))),
    ],
    "leaky_relu": [Case((X,), {"negative_slope": 0.1}, lambda x, *, negative_slope: np.where(x > 0, x, x * negative_slope))],
    "elu": [Case((X,), {"alpha": 0.7}, lambda x, *, alpha: np.where(x > 0, x, alpha * np.expm1(x)))],
    "softplus": [Case((X * 8,), {"beta": 2.0, "threshold": 20.0}, lambda x, *, beta, threshold: np.logaddexp(0, beta * x) / beta)],
    "clamp": [
        Case((X,), {"min": -0.5, "max": None}, lambda x, *, min, max: np.maximum(x, min)),
        Case((X,), {"min": 0.0, "max": 6.0}, lambda x, *, min, max: np.clip(x, min, max)),
        Case((INT,), {"min": None, "max": 3}, lambda x, *, min, max: np.minimum(x, max)),
    ],
    "cast": [Case((X * 9,), {"dtype": torch.int32}, lambda x, *, dtype: x.astype(np.int32)), Case((BOOL,), {"dtype": torch.uint8}, lambda x, *, dtype: x.astype(np.uint8))],
    **{name: [Case((X, Y[:, :1]), {}, f, 24), Case((INT, torch.tensor(2)), {}, f)] for name, f in BINARY.items()},
    "div": [Case((X, Y[:, :1]), {}, np.divide)],
    "pow": [Case((X.abs() + 0.1, Y), {}, np.power, 64), Case((X, torch.tensor(2.0)), {}, np.power), Case((INT, torch.tensor(3)), {}, np.power)],
    "prelu": [Case((X, W * 0.1), {}, lambda x, w: np.where(x > 0, x, x * _channel(w, x))), Case((X, W[:1]), {}, lambda x, w: np.where(x > 0, x, x * w))],
    "where": [Case((BOOL, X, torch.tensor(1.5)), {}, np.where), Case((INT > 0, INT, INT[:1]), {}, np.where)],
    "softmax": [Case((X,), {"axis": 1}, _softmax, 16)],
    "log_softmax": [Case((X,), {"axis": 3}, lambda x, axis: np.log(_softmax(x, axis)), 16)],
    "cumsum": [Case((X,), {"axis": 2}, np.cumsum), Case((INT,), {"axis": 1}, np.cumsum)],
    "sum": [Case((X,), WINDOW, lambda x, *, axes, keepdim: x.sum(axes, keepdims=keepdim), 50), Case((INT,), {"axes": (0,), "keepdim": True}, lambda x, *, axes, keepdim: x.sum(axes, keepdims=keepdim))],
    "mean": [Case((X,), WINDOW, lambda x, *, axes, keepdim: x.mean(axes, keepdims=keepdim), 50)],
    "prod": [Case((X,), WINDOW, lambda x, *, axes, keepdim: x.prod(axes, keepdims=keepdim), 50), Case((INT,), {"axes": (0, 1), "keepdim": True}, lambda x, *, axes, keepdim: x.prod(axes, keepdims=keepdim))],
    "amax": [Case((X,), WINDOW, lambda x, *, axes, keepdim: x.max(axes, keepdims=keepdim))],
    "amin": [Case((X,), {**WINDOW, "keepdim": True}, lambda x, *, axes, keepdim: x.min(axes, keepdims=keepdim))],
    "var": [Case((X,), {**WINDOW, "correction": 1.0}, lambda x, *, axes, correction, keepdim: x.var(axes, ddof=correction, keepdims=keepdim), 80)],
    "vector_norm": [
        Case((X,), {**WINDOW, "ord": 2.0}, lambda x, *, ord, axes, keepdim: np.sqrt((x**2).sum(axes)), 50),
        Case((X,), {**WINDOW, "ord": math.inf}, lambda x, *, ord, axes, keepdim: np.abs(x).max(axes)),
    ],
    "argmax": [Case((X,), ONE, lambda x, *, axis, keepdim: x.argmax(axis, keepdims=keepdim)), Case((INT * 0,), {"axis": 0, "keepdim": False}, lambda x, *, axis, keepdim: x.argmax(axis))],
    "argmin": [Case((X,), {**ONE, "keepdim": False}, lambda x, *, axis, keepdim: x.argmin(axis, keepdims=keepdim))],
    "reshape": [Case((X,), {"shape": (12, 35)}, lambda x, *, shape: x.reshape(shape))],
    "permute": [Case((X,), {"axes": (2, 0, 3, 1)}, lambda x, *, axes: x.transpose(axes))],
    "expand": [Case((MAT[:, :1],), {"shape": (2, 5, 4)}, lambda x, *, shape: np.broadcast_to(x, shape))],
    "repeat": [Case((MAT,), {"repeats": (2, 3)}, lambda x, *, repeats: np.tile(x, repeats))],
    "repeat_interleave": [Case((MAT,), {"repeats": 3, "axis": 1}, lambda x, *, repeats, axis: np.repeat(x, repeats, axis))],
    "cat": [Case((X, Y, X), {"axis": 2}, lambda *xs, axis: np.concatenate(xs, axis)), Case((INT,), {"axis": 0}, lambda *xs, axis: xs[0])],
    "split": [Case((X,), {"sizes": (1, 2, 3), "axis": 1}, lambda x, *, sizes, axis: tuple(np.split(x, (1, 3), axis)))],
    "slice": [Case((X,), {"axis": 3, "start": 1, "stop": 7, "step": 2}, lambda x, **_: x[..., 1:7:2]), Case((X,), {"axis": 0, "start": 1, "stop": 1, "step": 1}, lambda x, **_: x[1:1])],
    "pad": [
        Case((X,), {"padding": ((0, 0), (1, 0), (2, 3), (0, 1)), "mode": "constant", "value": 2.5}, lambda x, *, padding, mode, value: np.pad(x, padding, constant_values=value)),
        Case((X,), {"padding": ((0, 0), (0, 0), (2, 3), (0, 1)), "mode": "reflect", "value": 0.0}, lambda x, *, padding, mode, value: np.pad(x, padding, "reflect")),
        Case((X,), {"padding": ((0, 0), (0, 0), (2, 3), (0, 1)), "mode": "replicate", "value": 0.0}, lambda x, *, padding, mode, value: np.pad(x, padding, "edge")),
        Case((INT,), {"padding": ((1, 2), (3, 1)), "mode": "circular", "value": 0.0}, lambda x, *, padding, mode, value: np.pad(x, padding, "wrap")),
        Case((BOOL,), {"padding": ((1, 0),) * 4, "mode": "constant", "value": 0.0}, lambda x, *, padding, mode, value: np.pad(x, padding)),
    ],
    "roll": [Case((X,), {"shifts": (2, -3), "axes": (1, 3)}, lambda x, *, shifts, axes: np.roll(x, shifts, axes))],
    "flip": [Case((X,), {"axes": (1, 2)}, lambda x, *, axes: np.flip(x, axes))],
    "take": [Case((X, INT.abs() % 5), {"axis": 2}, lambda x, i, *, axis: x.take(i, axis)), Case((INT, torch.tensor(1)), {"axis": 0}, lambda x, i, *, axis: x.take(i, axis))],
    "gather": [Case((X, BOOL.long()), {"axis": 1}, lambda x, i, *, axis: np.take_along_axis(x, i, axis))],
    "scatter": [Case((MAT, torch.tensor([[2, 0], [1, 2]]), MAT[:2, :2] + 9), {"axis": 1}, lambda x, i, s, *, axis: (y := x.copy(), np.put_along_axis(y[:2], i, s, 1), y)[2])],
    "index": [Case((X, None, torch.tensor([[0], [3]]), torch.tensor([1, 0, 2])), {}, lambda x, _, i, j: x[:, i, j]), Case((X, INT.abs() % 2, None, INT.abs() % 5), {}, lambda x, i, _, j: x[i, :, j])],
}  # fmt: skip


def _all_cases() -> list[Any]:
    return [pytest.param(op, case, id=f"{op}-{i}") for op, cases in CASES.items() for i, case in enumerate(cases)]


def _run(op: str, case: Case, dtype: torch.dtype) -> tuple[Tensor, ...]:
    inputs = tuple(t.to(dtype) if isinstance(t, Tensor) and t.is_floating_point() else t for t in case.inputs)
    return apply(Node(op, (), (), case.attrs), inputs)


def test_every_op_has_cases() -> None:
    assert set(CASES) == set(OPS)
    assert all(CASES.values())


@pytest.mark.parametrize("op", OPS)
def test_the_declaration_is_whole(op: str) -> None:
    declared = signature(op)
    assert OPS.summary(op)
    for case in CASES[op]:
        assert set(case.attrs) == set(declared.attrs)
        assert len(case.inputs) >= len(declared.inputs)
        assert len(case.inputs) == len(declared.inputs) or declared.variadic
    assert set(declared.optional) <= {*declared.inputs, declared.variadic}


@pytest.mark.parametrize(("op", "case"), _all_cases())
def test_shapes_on_the_meta_device_are_the_real_ones(op: str, case: Case) -> None:
    real = _run(op, case, torch.float32)
    values = {f"x{i}": Value(f"x{i}", tuple(t.shape), t.dtype) for i, t in enumerate(case.inputs) if t is not None}
    names = tuple(None if t is None else f"x{i}" for i, t in enumerate(case.inputs))
    node = Node(op, names, tuple(f"y{i}" for i in range(len(real))), case.attrs)
    assert [(v.shape, v.dtype) for v in infer(node, values)] == [(tuple(t.shape), t.dtype) for t in real]


@pytest.mark.parametrize(("op", "case"), _all_cases())
def test_float32_is_float64_within_rounding(op: str, case: Case) -> None:
    magnitude = max(
        [1.0, *(float(t.abs().max()) for t in case.inputs if t is not None and t.numel() and t.dtype != torch.bool)]
    )
    for single, double in zip(_run(op, case, torch.float32), _run(op, case, torch.float64), strict=True):
        if not single.is_floating_point():
            assert torch.equal(single, double.to(single.dtype))
            continue
        largest = max(magnitude, float(double.abs().max()) if double.numel() else 0)
        assert double.dtype == torch.float64
        assert ((single.double() - double).abs() <= case.terms * EPS * largest).all()


@pytest.mark.parametrize(("op", "case"), [p for p in _all_cases() if p.values[1].reference is not None])
def test_a_second_opinion_agrees(op: str, case: Case) -> None:
    inputs = [None if t is None else t.double().numpy() if t.is_floating_point() else t.numpy() for t in case.inputs]
    expected = case.reference(*inputs, **case.attrs)  # type: ignore[misc]
    expected = expected if isinstance(expected, tuple) else (expected,)
    for got, wanted in zip(_run(op, case, torch.float64), expected, strict=True):
        assert tuple(got.shape) == np.shape(wanted)
        np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("op", OPS)
def test_meanings_are_deterministic_and_leave_their_inputs_alone(op: str) -> None:
    for case in CASES[op]:
        before = [None if t is None else t.clone() for t in case.inputs]
        first, second = _run(op, case, torch.float32), _run(op, case, torch.float32)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        assert all(a is None or torch.equal(a, b) for a, b in zip(case.inputs, before, strict=True))


def test_conv_transpose_is_the_adjoint_of_conv() -> None:
    """⟨conv(x), y⟩ = ⟨x, conv_transpose(y)⟩."""
    x, weight = _randn(2, 4, 7, 9).double(), _randn(6, 2, 3, 3).double()
    attrs = {"stride": (2, 2), "padding": (1, 0), "dilation": (1, 2), "groups": 2}
    y = OPS["conv"](x, weight, None, **attrs)
    z = _randn(*y.shape).double()
    back = OPS["conv_transpose"](z, weight, None, output_padding=(0, 0), **attrs)
    assert torch.allclose((y * z).sum(), (x[:, :, : back.shape[2], : back.shape[3]] * back).sum())


def test_attention_is_pytorchs() -> None:
    for case in CASES["attention"]:
        q, k, v, mask = (t if t is None or t.dtype == torch.bool else t.double() for t in case.inputs)
        theirs = F.scaled_dot_product_attention(
            q, k, v, mask, is_causal=case.attrs["causal"], scale=case.attrs["scale"]
        )
        torch.testing.assert_close(_run("attention", case, torch.float64)[0], theirs)


@pytest.mark.parametrize("op", [*BINARY, "where"])
def test_mixed_dtypes_are_refused(op: str) -> None:
    inputs = (X, X.double()) if op != "where" else (BOOL, X, X.double())
    with pytest.raises(TypeError, match="takes one dtype"):
        OPS[op](*inputs)
    with pytest.raises(TypeError, match="takes one dtype"):
        OPS["cat"](X, X.double(), axis=0)


def test_an_unknown_op_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'softmax'"):
        signature("softmx")


def test_infer_tells_1_from_true_and_counts_outputs() -> None:
    values = {"i": Value("i", (3,), torch.int64)}
    for bound, dtype in ((1, torch.int64), (1.0, torch.float32), (1, torch.int64)):
        (value,) = infer(Node("clamp", ("i",), ("y",), {"min": bound, "max": None}), values)
        assert value.dtype == dtype
    with pytest.raises(ValueError, match="1 outputs, not 2"):
        infer(Node("neg", ("i",), ("y", "z")), values)


SIZES = st.sampled_from([1, 2, 3, 5, 7, 11])


@settings(deadline=None, max_examples=60)
@given(
    size=st.tuples(SIZES, SIZES),
    channels=st.sampled_from([(1, 1, 1), (2, 3, 1), (4, 4, 4), (6, 2, 2), (3, 5, 1)]),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
)
def test_conv_of_any_shape_is_the_sum_over_its_taps(size, channels, kernel, stride, padding, dilation) -> None:
    inner, outer, groups = channels
    if any(n + 2 * p < d * (k - 1) + 1 for n, p, d, k in zip(size, padding, dilation, kernel, strict=True)):
        return
    x, weight = _randn(2, inner, *size).double(), _randn(outer, inner // groups, *kernel).double()
    attrs = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    np.testing.assert_allclose(
        OPS["conv"](x, weight, None, **attrs).numpy(),
        _conv_by_sum(x.numpy(), weight.numpy(), None, **attrs),
        atol=1e-12,
    )
