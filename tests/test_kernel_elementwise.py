"""The law of the element-wise expressions: each at every vector width, over the whole range of floats, NaN and infinities."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kernel_checks import MACHINES, build

from abridged.compiler.elementwise import EXPRESSIONS, expression
from abridged.graph.graph import Node
from abridged.graph.ops import apply, signature
from abridged.kernels import preamble

# Attributes of the ops that have some; several sets where they take different ways.
ATTRS: dict[str, list[dict[str, Any]]] = {
    "gelu": [{"approximate": "none"}, {"approximate": "tanh"}],
    "clamp": [{"min": -1.5, "max": 2.0}, {"min": None, "max": 0.25}, {"min": 0.0, "max": None}],
    "leaky_relu": [{"negative_slope": 0.01}, {"negative_slope": -0.5}],
    "elu": [{"alpha": 1.0}, {"alpha": 0.3}],
    "softplus": [{"beta": 1.0, "threshold": 20.0}, {"beta": 3.0, "threshold": 6.0}],
}
CASES = [(op, attrs) for op in EXPRESSIONS for attrs in ATTRS.get(op, [{}])]
EPS, TINY, LARGEST = (float(getattr(np.finfo(np.float32), name)) for name in ("eps", "tiny", "max"))
CANCELS = ("gelu",)  # x/2 · (1 + erf …) rounds at the size of x, in PyTorch too
EDGES = [0, 1, 0.5, 9, 20, 87.3, 88.72, 88.73, 103.9, 104.1, TINY, 1e-45, LARGEST, np.inf, np.nan]
ALL = np.array([sign * edge for edge in EDGES for sign in (1, -1)], np.float32)


def operands(count: int) -> list[np.ndarray]:
    """One: edges, a grid around zero, every magnitude. Two: all pairs of edges, and all of those at random."""
    magnitudes = np.logspace(-45, 38.5, 2003)
    near, far = np.linspace(-6, 6, 8009), np.linspace(-110, 110, 8009)
    x = np.concatenate([ALL, near, far, magnitudes, -magnitudes]).astype(np.float32)
    if count == 2:
        a, b = np.meshgrid(ALL, ALL)
        y = np.append(b.ravel(), np.random.default_rng(0).permutation(x))
        x = np.append(a.ravel(), x)
    else:
        y = x
    return [np.pad(values, (0, -len(values) % 16)) for values in (x, y)]


@pytest.mark.parametrize("machine", MACHINES)
def test_expressions_equal_float64(machine: str, tmp_path: Path) -> None:
    text = preamble()
    for i, (op, attrs) in enumerate(CASES):
        value = expression(Node(op, (), (), attrs), ["v_load(x + i)", "v_load(y + i)"][: len(signature(op).inputs)])
        loop = f"for (long i = 0; i < n; i += LANES) v_store(out + i, {value});"
        text += f"void k{i}(const float *x, const float *y, float *out, long n) {{ (void)y; {loop} }}\n"
    library = build(text, tmp_path, MACHINES[machine])
    for i, (op, attrs) in enumerate(CASES):
        count = len(signature(op).inputs)
        x, y = operands(count)
        found = np.full_like(x, 7)
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in (x, y, found)]
        getattr(library, f"k{i}")(*pointers, ctypes.c_long(len(x)))
        given = tuple(torch.from_numpy(array).double() for array in (x, y)[:count])
        exact = apply(Node(op, (), (), attrs), given)[0].numpy()
        with np.errstate(over="ignore", invalid="ignore"):
            rounded = exact.astype(np.float32)
            # 4 units in the last place, and what the rounding of beta · x does; below the normal numbers all may be lost.
            steps = 4 + abs(x * attrs.get("beta", 0))
            bound = steps * EPS * abs(exact) + TINY * np.fmax(1, abs(x)) + (EPS * abs(x) if op in CANCELS else 0)
            right = (found == rounded) | (np.isnan(found) & np.isnan(exact)) | (abs(found - exact) <= bound)
        wrong = np.flatnonzero(~right)
        assert not wrong.size, (
            f"{op} {attrs} of {x[wrong[:4]]} {y[wrong[:4]]}: {found[wrong[:4]]}, not {exact[wrong[:4]]}"
        )
