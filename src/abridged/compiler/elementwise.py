"""Each element-wise op as a C expression on vectors; `{0}`, `{1}` … are its operands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from abridged.graph.graph import Node

Attrs = Mapping[str, Any]


def single(value: float) -> str:
    """A C constant of type float: a Python number, rounded to one as PyTorch rounds it.

    >>> single(6), single(1e-60), single(-1e60)
    ('6.0f', '0.0f', '-INFINITY')
    """
    with np.errstate(over="ignore"):
        rounded = str(np.float32(value))
    return {"inf": "INFINITY", "-inf": "-INFINITY", "nan": "NAN"}.get(rounded, f"{rounded}f")


def number(value: float) -> str:
    """A C constant vector of a Python number.

    >>> number(6)
    'v_set(6.0f)'
    """
    return f"v_set({single(value)})"


def _clamp(a: Attrs) -> str:
    low = number(float("-inf") if a["min"] is None else a["min"])
    high = number(float("inf") if a["max"] is None else a["max"])
    return f"v_clamp({{0}}, {low}, {high})"


_SAME_NAME = ("abs", "sqrt", "exp", "log", "erf", "relu", "sigmoid", "silu", "tanh", "mish", "hardsigmoid", "hardswish")

EXPRESSIONS: Mapping[str, str | Callable[[Attrs], str]] = {
    "add": "({0} + {1})",
    "sub": "({0} - {1})",
    "mul": "({0} * {1})",
    "div": "({0} / {1})",
    "maximum": "v_max({0}, {1})",
    "minimum": "v_min({0}, {1})",
    "neg": "(-{0})",
    "reciprocal": "(1.0f / {0})",
    **{op: f"v_{op}({{0}})" for op in _SAME_NAME},
    "rsqrt": "(1.0f / v_sqrt({0}))",
    "gelu": lambda a: "v_gelu_tanh({0})" if a["approximate"] == "tanh" else "v_gelu({0})",
    "clamp": _clamp,
    "leaky_relu": lambda a: f"v_leaky_relu({{0}}, {number(a['negative_slope'])})",
    "elu": lambda a: f"v_elu({{0}}, {number(a['alpha'])})",
    "softplus": lambda a: f"v_softplus({{0}}, {number(a['beta'])}, {number(a['threshold'])})",
}


def expression(node: Node, operands: list[str]) -> str:
    """The node's value as a C expression of its operands' expressions."""
    form = EXPRESSIONS[node.op]
    return (form if isinstance(form, str) else form(node.attrs)).format(*operands)
