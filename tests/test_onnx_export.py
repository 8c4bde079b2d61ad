"""Every op of the Graph, as ONNX Runtime runs its ONNX form, against the op's meaning; and pruned weights in the file."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from abridged.errors import UnsupportedError
from abridged.graph.graph import Constant, Graph, Node, Value
from abridged.graph.ops import OPS, apply, infer
from abridged.targets import onnx_emitter, onnx_export
from abridged.targets.onnx_emitter import pack
from abridged.targets.onnx_export import to_onnx, write_onnx
from abridged.targets.onnx_ops import EMIT

EPS = torch.finfo(torch.float32).eps


@dataclass
class Case:
    """One application of an op. `terms`: roundings that reach one output. `known`: positions that are constants."""

    op: str
    inputs: tuple[Tensor | None, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    terms: int = 8
    known: tuple[int, ...] = ()

    def __str__(self) -> str:
        shapes = "·".join("-" if x is None else f"{str(x.dtype)[6:]}{list(x.shape)}" for x in self.inputs)
        return f"{self.op} {shapes} {' '.join(f'{k}={v}' for k, v in self.attrs.items())}".replace(" ", "_")


def single(case: Case) -> Graph:
    """The Graph of one node."""
    names = [None if x is None else f"x{i}" for i, x in enumerate(case.inputs)]
    tensors = {f"x{i}": x for i, x in enumerate(case.inputs) if x is not None}
    values = {name: Value(name, tuple(x.shape), x.dtype) for name, x in tensors.items()}
    known = {f"x{i}" for i in case.known}
    inputs = tuple(name for name in tensors if name not in known)
    count = len(case.attrs["sizes"]) if case.op == "split" else 1
    outputs = tuple(f"y{i}" for i in range(count))
    node = Node(case.op, tuple(names), outputs, case.attrs, path="net.layer", source="net.py:1")
    values |= {value.name: value for value in infer(node, values)}
    structure = {"tuple": list(range(len(inputs)))}, {"tuple": list(range(count))}
    return Graph((node,), values, {name: Constant(tensors[name]) for name in known}, inputs, outputs, *structure)


def run_onnx(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feed)


def r(*shape: int, low: float | None = None, high: float = 2.0) -> Tensor:
    """Normal floats, or uniform ones within bounds."""
    return torch.randn(shape) if low is None else torch.empty(shape).uniform_(low, high)


def i(*shape: int, low: int = -9, high: int = 10, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.randint(low, high, shape).to(dtype)


def b(*shape: int) -> Tensor:
    return torch.rand(shape) > 0.5


CASES: dict[str, Callable[[], list[Case]]] = {}


def cases(*ops: str) -> Callable[[Callable[..., list[Case]]], None]:
    def add(make: Callable[..., list[Case]]) -> None:
        for op in ops:
            CASES[op] = lambda op=op: make(op)

    return add


@cases("conv")
def _(op: str) -> list[Case]:
    def case(x: Tensor, w: Tensor, bias: bool, stride: int, padding: int, dilation: int, groups: int) -> Case:
        n = w.dim() - 2
        attrs = {"stride": (stride,) * n, "padding": (padding,) * n, "dilation": (dilation,) * n, "groups": groups}
        return Case(op, (x, w, r(len(w)) if bias else None), attrs, w[0].numel() + 1)

    return [
        case(r(2, 3, 9), r(4, 3, 3), True, 2, 1, 1, 1),
        case(r(1, 3, 8, 7), r(5, 3, 3, 3), True, 1, 1, 1, 1),
        case(r(1, 4, 9, 9), r(4, 1, 3, 3), False, 2, 2, 2, 4),
        case(r(1, 6, 5, 5), r(4, 3, 1, 1), True, 1, 0, 1, 2),
        case(r(1, 2, 5, 6, 7), r(3, 2, 2, 3, 1), True, 1, 1, 1, 1),
        Case(op, (r(1, 2, 8, 8), r(3, 2, 1, 5), None), {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 1), "groups": 1}, 11),
    ]  # fmt: skip


@cases("conv_transpose")
def _(op: str) -> list[Case]:
    def case(
        x: Tensor, w: Tensor, bias: int | None, stride: int, padding: int, extra: int, dilation: int, groups: int
    ) -> Case:
        n = w.dim() - 2
        attrs = {
            "stride": (stride,) * n,
            "padding": (padding,) * n,
            "output_padding": (extra,) * n,
            "dilation": (dilation,) * n,
            "groups": groups,
        }
        return Case(op, (x, w, None if bias is None else r(bias)), attrs, w[:, 0].numel() + 1)

    return [
        case(r(1, 3, 5, 6), r(3, 4, 3, 3), 4, 2, 1, 1, 1, 1),
        case(r(2, 4, 5), r(4, 3, 4), None, 3, 0, 2, 1, 1),
        case(r(1, 4, 5, 5), r(4, 2, 2, 2), 4, 2, 0, 0, 2, 2),
        case(r(1, 2, 3, 4, 3), r(2, 3, 2, 2, 2), 3, 2, 1, 0, 1, 1),
    ]


@cases("linear")
def _(op: str) -> list[Case]:
    return [
        Case(op, (r(*lead, 5), r(7, 5), bias), {}, 6, (1,))
        for lead in [(), (1,), (3,), (2, 3), (2, 3, 4)]
        for bias in (None, r(7))
    ]


@cases("matmul")
def _(op: str) -> list[Case]:
    pairs = [((3, 4), (4, 5)), ((2, 1, 3, 4), (5, 4, 2)), ((4,), (4, 2)), ((3, 4), (4,)), ((4,), (4,))]
    return [Case(op, (r(*x), r(*y)), {}, x[-1]) for x, y in pairs] + [Case(op, (i(3, 4), i(4, 2)), {})]


@cases("einsum")
def _(op: str) -> list[Case]:
    return [
        Case(op, (r(2, 3, 4), r(2, 4, 5)), {"equation": "bij,bjk->bik"}, 4),
        Case(op, (r(2, 3, 4), r(5, 4)), {"equation": "... i, o i -> ... o"}, 4),
        Case(op, (r(3, 4), r(3)), {"equation": "ij,i->j"}, 3),
        Case(op, (r(2, 3), r(3, 4), r(4, 2)), {"equation": "ab,bc,ca->"}, 24),
    ]


@cases("attention")
def _(op: str) -> list[Case]:
    q, k, v = r(2, 3, 5, 8), r(2, 3, 7, 8), r(2, 3, 7, 4)
    blind = b(2, 1, 5, 7)
    blind[0, 0, 2] = False
    added = r(5, 7)
    added[1, :4] = -math.inf
    return [
        Case(op, (q, k, v, None), {"causal": False, "scale": 0.3}, 32),
        Case(op, (q, k, v, None), {"causal": True, "scale": 0.3}, 32),
        Case(op, (q, k, v, blind), {"causal": False, "scale": 0.3}, 32),
        Case(op, (q, k, v, blind), {"causal": False, "scale": 0.3}, 32, (3,)),
        Case(op, (q, k, v, blind), {"causal": True, "scale": 0.3}, 32),
        Case(op, (q, k, v, added), {"causal": False, "scale": 0.3}, 32),
        Case(op, (q, k, v, added), {"causal": False, "scale": 0.3}, 32, (3,)),
        Case(op, (r(5, 8), r(7, 8), r(7, 4), None), {"causal": False, "scale": 1.0}, 32),
    ]


@cases("batch_norm")
def _(op: str) -> list[Case]:
    return [
        Case(op, (r(*shape), weight, bias, r(3), r(3, low=0.5)), {"eps": 1e-3})
        for shape in [(2, 3), (2, 3, 4), (2, 3, 4, 5), (1, 3, 2, 2, 2)]
        for weight, bias in [(r(3), r(3)), (None, None)]
    ]


@cases("layer_norm")
def _(op: str) -> list[Case]:
    return [
        Case(op, (r(2, 3, *shape), weight, bias), {"normalized_shape": shape, "eps": 1e-5}, 32)
        for shape in [(8,), (4, 5)]
        for weight, bias in [(r(*shape), r(*shape)), (r(*shape), None), (None, None)]
    ]


@cases("rms_norm")
def _(op: str) -> list[Case]:
    shapes = [(8,), (4, 5)]
    return [Case(op, (r(2, 3, *s), w), {"normalized_shape": s, "eps": 1e-6}, 32) for s in shapes for w in (r(*s), None)]


@cases("group_norm")
def _(op: str) -> list[Case]:
    return [
        Case(op, (r(*shape), weight, bias), {"groups": groups, "eps": 1e-5}, 64)
        for shape in [(2, 6, 4), (2, 6, 4, 3), (2, 6)]
        for groups in (1, 2, 6)
        for weight, bias in [(r(6), r(6)), (None, None)]
        if not (shape == (2, 6) and groups == 6)
    ]


POOLS = [
    # size, kernel, stride, padding, dilation
    ((7, 8), (3, 3), (2, 2), (1, 1), (1, 1)),
    ((6, 6), (2, 2), (2, 2), (0, 0), (1, 1)),
    ((7, 7), (3, 2), (2, 3), (1, 0), (1, 1)),
    ((9, 10), (3, 3), (2, 2), (1, 1), (2, 2)),
    ((5, 5), (2, 2), (3, 3), (1, 1), (1, 1)),
    ((9,), (3,), (2,), (1,), (1,)),
    ((10,), (4,), (3,), (2,), (1,)),
    ((5, 6, 7), (2, 3, 2), (2, 2, 2), (1, 1, 0), (1, 1, 1)),
    ((13, 13), (3, 3), (2, 2), (0, 0), (1, 1)),
    ((14, 14), (3, 3), (2, 2), (0, 0), (1, 1)),
]


@cases("max_pool")
def _(op: str) -> list[Case]:
    keys = ("kernel", "stride", "padding", "dilation")
    return [
        Case(op, (r(2, 3, *pool[0]),), {**dict(zip(keys, pool[1:], strict=True)), "ceil_mode": ceil}, 0)
        for pool in POOLS
        for ceil in (False, True)
    ]


@cases("avg_pool")
def _(op: str) -> list[Case]:
    return [
        Case(
            op,
            (r(2, 3, *size),),
            {"kernel": kernel, "stride": stride, "padding": padding, "ceil_mode": ceil, "count_include_pad": include},
            math.prod(kernel) + 1,
        )
        for size, kernel, stride, padding, _ in POOLS
        for ceil in (False, True)
        for include in (False, True)
    ]


@cases("adaptive_avg_pool", "adaptive_max_pool")
def _(op: str) -> list[Case]:
    sizes = [((7, 7), (1, 1)), ((8, 6), (4, 2)), ((7, 5), (3, 5)), ((1, 2), (7, 7)), ((7, 7), (7, 7)), ((9,), (4,))]
    sizes += [((5, 6, 7), (2, 3, 1)), ((5,), (1,)), ((4, 4, 4), (1, 1, 1))]
    return [Case(op, (r(2, 3, *size),), {"output_size": out}, math.prod(size) + 4) for size, out in sizes]


@cases("resize")
def _(op: str) -> list[Case]:
    def case(
        size: tuple[int, ...], out: tuple[int, ...], scales: tuple[float, ...] | None, mode: str, corners: bool
    ) -> Case:
        if scales is not None:
            out = tuple(math.floor(a * s) for a, s in zip(size, scales, strict=True))
        return Case(op, (r(2, 3, *size),), {"size": out, "scales": scales, "mode": mode, "align_corners": corners}, 256)

    return [
        case((4, 5), (8, 10), None, "nearest", False),
        case((6, 7), (10, 3), None, "nearest", False),
        case((6, 7), (), (1.7, 2.3), "nearest", False),
        case((6,), (15,), None, "nearest", False),
        case((3, 2, 4), (6, 4, 8), None, "nearest", False),
        case((4, 5), (8, 10), None, "linear", False),
        case((4, 5), (9, 7), None, "linear", True),
        case((9, 8), (4, 1), None, "linear", False),
        case((4, 5), (), (1.7, 2.3), "linear", False),
        case((4, 5), (), (2.0, 2.0), "linear", True),
        case((6,), (15,), None, "linear", False),
        case((3, 2, 4), (6, 4, 7), None, "linear", False),
        case((5, 6), (8, 9), None, "cubic", False),
        case((5, 6), (8, 9), None, "cubic", True),
        case((5, 6), (), (1.5, 2.0), "cubic", False),
    ]


@cases("neg", "abs", "sign")
def _(op: str) -> list[Case]:
    return [Case(op, (x,)) for x in (r(3, 4), r(), i(3), i(4, dtype=torch.int32), i(4, dtype=torch.int8))]


@cases("floor", "ceil", "round")
def _(op: str) -> list[Case]:
    return [Case(op, (x,)) for x in (r(3, 4) * 5, torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5]), i(3))]


@cases("exp", "sin", "cos", "tanh", "erf", "sigmoid")
def _(op: str) -> list[Case]:
    return [Case(op, (x,), {}, 16) for x in (r(3, 40), r(), i(5))]


@cases("relu")
def _(op: str) -> list[Case]:
    return [Case(op, (x,)) for x in (r(3, 4), r(), i(5), i(5, dtype=torch.int8), i(5, dtype=torch.int32))]


@cases("silu", "mish", "hardsigmoid", "hardswish")
def _(op: str) -> list[Case]:
    return [Case(op, (x,), {}, 16) for x in (r(3, 40) * 4, r())]


@cases("sqrt", "rsqrt", "log", "reciprocal")
def _(op: str) -> list[Case]:
    return [Case(op, (x,), {}, 8) for x in (r(3, 4, low=0.1, high=9.0), r(low=0.1), i(5, low=1))]


@cases("logical_not")
def _(op: str) -> list[Case]:
    return [Case(op, (x,)) for x in (b(3, 4), i(9, low=-1, high=2), r(4).round())]


@cases("gelu")
def _(op: str) -> list[Case]:
    return [Case(op, (r(3, 40) * 3,), {"approximate": how}, 16) for how in ("none", "tanh")]


@cases("leaky_relu")
def _(op: str) -> list[Case]:
    return [Case(op, (r(3, 4),), {"negative_slope": slope}) for slope in (0.01, 0.2)]


@cases("elu")
def _(op: str) -> list[Case]:
    return [Case(op, (r(3, 4),), {"alpha": alpha}) for alpha in (1.0, 0.5)]


@cases("softplus")
def _(op: str) -> list[Case]:
    choices = [(1.0, 20.0), (2.0, 20.0), (0.5, 1.0)]
    return [Case(op, (r(50) * 20,), {"beta": beta, "threshold": threshold}) for beta, threshold in choices]


@cases("clamp")
def _(op: str) -> list[Case]:
    bounds = [(0.0, 6.0), (None, 1.0), (-1.0, None), (1.0, -1.0)]
    return [Case(op, (r(3, 4) * 4,), {"min": low, "max": high}) for low, high in bounds] + [
        Case(op, (i(9),), {"min": 0, "max": 5}),
        Case(op, (i(9, dtype=torch.int8),), {"min": -2, "max": None}),
    ]


@cases("cast")
def _(op: str) -> list[Case]:
    to = (torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool, torch.float16)
    return [Case(op, (x,), {"dtype": dtype}) for x in (r(5, low=0) * 5, i(5, low=0), b(5)) for dtype in to]


@cases("add", "sub", "mul", "maximum", "minimum")
def _(op: str) -> list[Case]:
    made = [(r(2, 3, 4), r(3, 1)), (r(3), r()), (i(3, 4), i(4)), (r(3).double(), r(1).double())]
    made += [(i(5, dtype=torch.uint8, low=0, high=255), i(5, dtype=torch.uint8, low=0, high=255))]
    made += [(i(5, dtype=torch.int32), i(5, dtype=torch.int32))]
    made += [] if op == "sub" else [(b(9), b(9))]
    return [Case(op, pair) for pair in made]


@cases("div")
def _(op: str) -> list[Case]:
    return [
        Case(op, (r(2, 3), r(3, low=0.5))),
        Case(op, (r(2, 3), r(low=0.5))),
        Case(op, (r(3).double(), r(3).double())),
    ]


@cases("pow")
def _(op: str) -> list[Case]:
    two = torch.tensor(2.0)
    return [
        Case(op, (r(3, 4, low=0.1), r(4))),
        Case(op, (r(3, 4), two), known=(1,)),
        Case(op, (i(5), i(5, low=0, high=4))),
    ]


@cases("floor_div", "remainder")
def _(op: str) -> list[Case]:
    divisors = torch.tensor([3.0, -3.0, 0.7, -2.5])
    ints = torch.tensor([3, -3, 7, -2])
    made = [(r(5, 4) * 9, divisors), (i(5, 4), ints), (i(5, 4, dtype=torch.int8), ints.to(torch.int8))]
    made += [
        (i(5, 4, low=0, dtype=torch.int32), ints.to(torch.int32)),
        (torch.tensor([1.0, 6.0]), torch.tensor([0.1, 3.0])),
    ]
    return [Case(op, pair) for pair in made]


@cases("eq", "ne", "lt", "le", "gt", "ge")
def _(op: str) -> list[Case]:
    made = [
        (i(5, 4, low=0, high=3).float(), i(4, low=0, high=3).float()),
        (i(5, low=0, high=2), i(low=0, high=2)),
        (b(9), b(9)),
    ]
    made += [
        (i(9, low=0, high=3, dtype=dtype), i(9, low=0, high=3, dtype=dtype)) for dtype in (torch.uint8, torch.int32)
    ]
    return [Case(op, pair) for pair in made]


@cases("logical_and", "logical_or", "logical_xor")
def _(op: str) -> list[Case]:
    return [
        Case(op, (b(9), b(9))),
        Case(op, (i(9, low=0, high=2), i(9, low=0, high=2))),
        Case(op, (r(9).round(), r(9).round())),
        Case(op, (b(3, 1), b(4))),
    ]


@cases("prelu")
def _(op: str) -> list[Case]:
    return [Case(op, (r(2, 3, 4, 5), r(3))), Case(op, (r(2, 3), r(3))), Case(op, (r(2, 3, 4), r(1)))]


@cases("where")
def _(op: str) -> list[Case]:
    return [
        Case(op, (b(3, 4), r(4), r())),
        Case(op, (b(3, 1), i(4), i(4))),
        Case(op, (b(5), b(5), b(5))),
        Case(op, (b(5), i(5, dtype=torch.int8), i(5, dtype=torch.int8))),
        Case(op, (b(5), i(5, dtype=torch.int32), i(5, dtype=torch.int32))),
    ]


@cases("softmax", "log_softmax")
def _(op: str) -> list[Case]:
    return [Case(op, (r(2, 5, 3) * 4,), {"axis": axis}, 32) for axis in (0, 1, 2)]


@cases("cumsum")
def _(op: str) -> list[Case]:
    made = [r(3, 4), i(3, 4), i(3, 4, dtype=torch.int8), i(3, 4, dtype=torch.int32)]
    return [Case(op, (x,), {"axis": axis}) for x in made for axis in (0, 1)]


AXES = [((0,), False), ((1, 2), True), ((0, 1, 2), False), ((), False)]


@cases("sum", "mean", "amax", "amin", "prod")
def _(op: str) -> list[Case]:
    made = [r(2, 3, 4)] if op == "mean" else [r(2, 3, 4), i(2, 3, 4, low=-2, high=3)]
    made += [] if op in ("mean", "prod") else [i(2, 3, 4, dtype=torch.uint8, low=0, high=3)]
    made += [b(2, 3, 4)] if op in ("amax", "amin") else []
    axes = [(a, k) for a, k in AXES if a or op != "prod"]
    return [Case(op, (x,), {"axes": a, "keepdim": k}, 24) for x in made for a, k in axes] + [
        Case(op, (r(),), {"axes": (), "keepdim": False})
    ]


@cases("var")
def _(op: str) -> list[Case]:
    return [
        Case(op, (r(2, 3, 4),), {"axes": a, "correction": c, "keepdim": k}, 48) for a, k in AXES for c in (0.0, 1.0)
    ]


@cases("vector_norm")
def _(op: str) -> list[Case]:
    return [
        Case(op, (x,), {"ord": ord, "axes": a, "keepdim": k}, 48)
        for ord in (0.0, 1.0, 2.0, 3.0, math.inf, -math.inf)
        for x, a, k in [(r(2, 3, 4), (0,), False), (r(2, 3, 4), (1, 2), True)]
    ] + [Case(op, (r(),), {"ord": 2.0, "axes": (), "keepdim": False})]


@cases("argmax", "argmin")
def _(op: str) -> list[Case]:
    made = [r(3, 5), i(3, 5, low=0, high=2), i(3, 5, low=0, high=2, dtype=torch.int8), r(3, 5).double()]
    return [Case(op, (x,), {"axis": axis, "keepdim": k}) for x in made for axis in (0, 1) for k in (False, True)]


@cases("reshape")
def _(op: str) -> list[Case]:
    return [
        Case(op, (x,), {"shape": s})
        for x, s in [(r(2, 6), (3, 4)), (r(1), ()), (r(), (1, 1)), (r(0, 3), (3, 0)), (b(4), (2, 2))]
    ]


@cases("permute")
def _(op: str) -> list[Case]:
    return [
        Case(op, (x,), {"axes": a})
        for x, a in [(r(2, 3, 4), (2, 0, 1)), (r(), ()), (i(2, 3), (1, 0)), (b(2, 3), (1, 0))]
    ]


@cases("expand")
def _(op: str) -> list[Case]:
    return [
        Case(op, (x,), {"shape": s}) for x, s in [(r(1, 3), (2, 4, 3)), (r(), (2, 2)), (i(3, 1), (3, 2)), (b(1), (3,))]
    ]


@cases("repeat")
def _(op: str) -> list[Case]:
    return [
        Case(op, (x,), {"repeats": s}) for x, s in [(r(2, 3), (2, 1)), (r(3), (2, 3)), (i(2, 1), (1, 4)), (b(2), (3,))]
    ]


@cases("repeat_interleave")
def _(op: str) -> list[Case]:
    return [Case(op, (x,), {"repeats": 3, "axis": axis}) for x in (r(2, 3), i(2, 3), b(2, 3)) for axis in (0, 1)]


@cases("cat")
def _(op: str) -> list[Case]:
    return [
        Case(op, (r(2, 3), r(2, 1), r(2, 3)), {"axis": 1}),
        Case(op, (i(1, 3), i(2, 3)), {"axis": 0}),
        Case(op, (b(3), b(2)), {"axis": 0}),
        Case(op, (r(2, 3),), {"axis": 0}),
    ]


@cases("split")
def _(op: str) -> list[Case]:
    return [Case(op, (x,), {"sizes": (1, 3, 2), "axis": 1}) for x in (r(2, 6), i(2, 6), b(2, 6))] + [
        Case(op, (r(4),), {"sizes": (4,), "axis": 0})
    ]


@cases("slice")
def _(op: str) -> list[Case]:
    choices = [(0, 1, 4, 1), (1, 0, 6, 2), (1, 2, 2, 1), (0, 0, 5, 3)]
    return [
        Case(op, (x,), {"axis": axis, "start": start, "stop": stop, "step": step})
        for x in (r(5, 6), i(5, 6), b(5, 6))
        for axis, start, stop, step in choices
    ]


@cases("pad")
def _(op: str) -> list[Case]:
    made = [
        Case(op, (r(2, 3, 6, 7),), {"padding": ((0, 0), (0, 0), (1, 2), (3, 0)), "mode": mode, "value": value})
        for mode, value in [
            ("constant", 0.0),
            ("constant", -1.5),
            ("reflect", 0.0),
            ("replicate", 0.0),
            ("circular", 0.0),
        ]
    ]
    made += [Case(op, (r(2, 5),), {"padding": ((0, 0), (-1, 2)), "mode": "constant", "value": 0.0})]
    made += [
        Case(op, (x,), {"padding": ((1, 1),), "mode": "constant", "value": value})
        for x, value in [(i(4), 3), (b(4), 1), (i(4, dtype=torch.int8), 3)]
    ]
    return made


@cases("roll")
def _(op: str) -> list[Case]:
    choices = [((1,), (0,)), ((-2, 3), (0, 1)), ((0, 7), (0, 1)), ((4,), (0,))]
    return [Case(op, (x,), {"shifts": s, "axes": a}) for x in (r(4, 5), b(4, 5)) for s, a in choices]


@cases("flip")
def _(op: str) -> list[Case]:
    return [Case(op, (x,), {"axes": axes}) for x in (r(2, 3, 4), i(2, 3, 4)) for axes in [(0,), (1, 2), ()]]


@cases("take")
def _(op: str) -> list[Case]:
    return [
        Case(op, (r(5, 3), i(2, 4, low=0, high=5)), {"axis": 0}),
        Case(op, (r(2, 5, 3), i(low=0, high=5)), {"axis": 1}),
        Case(op, (b(2, 5), i(3, low=0, high=5)), {"axis": 1}),
    ]


@cases("gather")
def _(op: str) -> list[Case]:
    return [
        Case(op, (r(4, 5), i(3, 5, low=0, high=4)), {"axis": 0}),
        Case(op, (i(4, 5), i(2, 7, low=0, high=5)), {"axis": 1}),
    ]


@cases("scatter")
def _(op: str) -> list[Case]:
    index = torch.tensor([[0, 2, 1], [3, 1, 2]])
    return [
        Case(op, (r(2, 4), index, r(2, 3)), {"axis": 1}),
        Case(op, (r(2, 4), index, r(3, 5)), {"axis": 1}),
        Case(op, (i(4, 3), index, i(2, 3)), {"axis": 0}),
    ]


@cases("index")
def _(op: str) -> list[Case]:
    x = r(4, 5, 6, 3)
    j, k = i(2, 1, low=0, high=4), i(3, low=0, high=4)
    patterns = [
        (j,),
        (None, j),
        (j, k),
        (None, j, k),
        (j, None, k),
        (None, j, None, i(3, low=-3, high=3)),
        (j, j, j, i(1, low=0, high=3)),
    ]
    return [Case(op, (x, *indices)) for indices in patterns] + [Case(op, (b(4, 5), k, k))]


def test_every_op_has_a_rule_and_every_rule_has_cases() -> None:
    assert set(EMIT) == set(OPS) == set(CASES)


@pytest.mark.parametrize("op", sorted(OPS))
def test_onnx_says_what_the_op_means(op: str) -> None:
    made = CASES[op]()
    assert made
    for case in made:
        check(case)


def check(case: Case) -> None:
    graph = single(case)
    model = to_onnx(graph)
    onnx.checker.check_model(model, full_check=True)
    feed = {name: case.inputs[int(name[1:])].numpy() for name in graph.inputs}
    answers = run_onnx(model, feed)
    expected = apply(graph.nodes[0], case.inputs)
    assert len(answers) == len(expected) > 0
    for answer, torch_says in zip(answers, expected, strict=True):
        assert answer.shape == tuple(torch_says.shape), case
        assert answer.dtype.name == str(torch_says.dtype)[6:], case
        if torch_says.dtype not in (torch.float32, torch.float64):
            np.testing.assert_array_equal(answer, torch_says.numpy(), err_msg=str(case))
            continue
        allowed = bound(case, graph.nodes[0], torch_says)
        off = np.abs(answer.astype(np.float64) - torch_says.double().numpy())
        assert off.size == 0 or np.nanmax(off) <= allowed, f"{case}: {np.nanmax(off)} > {allowed}"
        np.testing.assert_array_equal(np.isnan(answer), np.isnan(torch_says.numpy()), err_msg=str(case))


def bound(case: Case, node: Node, result: Tensor) -> float:
    """2 × terms × eps × magnitude: each side rounds each term once; linear ops are as large as with |inputs|."""
    if case.op in ("conv", "conv_transpose", "linear", "matmul", "einsum", "sum", "cumsum", "mean"):
        absolute = tuple(None if x is None else x.abs() for x in case.inputs)
        result = apply(node, absolute)[0]
    magnitude = max([1.0, *(float(x.abs().max()) for x in (result,) if x.numel())])
    return 2 * case.terms * EPS * magnitude


# ---- names -----------------------------------------------------------------------------------------------------------


def test_names_say_where_a_node_comes_from() -> None:
    case = Case("silu", (r(3),))
    model = to_onnx(single(case))
    assert [node.name for node in model.graph.node] == ["net.layer/y0", "net.layer/y0/1"]
    assert {node.doc_string for node in model.graph.node} == {"net.py:1"}
    assert model.graph.node[-1].output == ["y0"]
    assert model.producer_name == "abridged"


def test_an_unsupported_dtype_names_the_module() -> None:
    with pytest.raises(UnsupportedError, match=r"y0 = cast\(x0\)  # net.layer net.py:1: ONNX export of torch.bfloat16"):
        to_onnx(single(Case("cast", (r(3),), {"dtype": torch.bfloat16})))
    with pytest.raises(UnsupportedError, match=r"'x0': ONNX export of torch.bfloat16 is not supported"):
        to_onnx(single(Case("relu", (r(3).bfloat16(),))))


# ---- pruned weights --------------------------------------------------------------------------------------------------


def pruned(*shape: int, density: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, dtype=dtype) * (torch.rand(shape) < density)  # leaves −0.0 behind, as masks do


def size(weight: Tensor, sparse_storage: bool = True) -> int:
    graph = single(Case("linear", (r(2, weight.shape[1]), weight, None), known=(1,)))
    return len(to_onnx(graph, sparse_storage=sparse_storage).SerializeToString())


@pytest.mark.parametrize("density", [0.0, 0.001, 0.02, 0.1, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_pruned_weight_is_stored_by_its_nonzeros_and_is_the_same(density: float, dtype: torch.dtype) -> None:
    weight = pruned(64, 128, density=density, dtype=dtype)
    graph = single(Case("mul", (r(64, 128).to(dtype), weight), known=(1,)))
    sparse, dense = to_onnx(graph), to_onnx(graph, sparse_storage=False)
    onnx.checker.check_model(sparse, full_check=True)
    assert len(sparse.SerializeToString()) < len(dense.SerializeToString())
    feed = {"x0": np.ones((64, 128), str(dtype)[6:])}
    for model in (sparse, dense):
        (found,) = run_onnx(model, feed)
        np.testing.assert_array_equal(found, weight.numpy())


def test_ninety_percent_zeros_take_an_eighth() -> None:
    weight = pruned(512, 1024, density=0.1)
    assert size(weight) <= 0.127 * size(weight, sparse_storage=False)


@pytest.mark.parametrize("weight", [torch.zeros(8, 8), pruned(64, 64, density=0.9), torch.randn(64, 64)])
def test_what_would_not_be_smaller_stays_dense(weight: Tensor) -> None:
    assert pack(weight.numpy()) is None
    assert size(weight) == size(weight, sparse_storage=False)


def test_integers_and_what_no_runtime_folds_stay_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = np.zeros((100, 100), np.float32)
    assert pack(weight) is not None
    assert pack(weight.astype(np.int64)) is None
    monkeypatch.setattr(onnx_emitter, "FOLDABLE", weight.nbytes - 1)
    assert pack(weight) is None


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 3000), density=st.floats(0, 1))
@settings(deadline=None, max_examples=50)
def test_packing_loses_nothing(seed: int, count: int, density: float) -> None:
    generator = np.random.default_rng(seed)
    array = generator.standard_normal(count).astype(np.float32) * (generator.random(count) < density)
    array[generator.integers(count)] = generator.choice([np.nan, np.inf, 1e-45, 0.0])
    values, gaps = onnx_emitter._by_gaps(array)
    places = np.cumsum(gaps, dtype=np.int64)
    assert len(np.unique(places)) == len(values) <= np.count_nonzero(array) + count / 255
    again = np.zeros_like(array)
    again[places] = values
    np.testing.assert_array_equal(again, array)


def test_onnxruntime_folds_the_unpacking_and_fuses_as_with_dense_weights(tmp_path) -> None:
    weight = pruned(64, 32, 3, 3, density=0.1)
    conv = single(Case("conv", (r(1, 32, 8, 8), weight, None), {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}, known=(1,)))  # fmt: skip
    stats = {"mean": r(64), "var": r(64, low=0.5), "scale": r(64), "shift": r(64)}
    names = ("y0", "scale", "shift", "mean", "var")
    nodes = (
        *conv.nodes,
        Node("batch_norm", names, ("n",), {"eps": 1e-5}, path="net.norm"),
        Node("relu", ("n",), ("z",), path="net.act"),
    )
    values = {**conv.values, **{k: Value(k, (64,), torch.float32) for k in stats}}
    for node in nodes[1:]:
        values |= {value.name: value for value in infer(node, values)}
    constants = {**conv.constants, **{k: Constant(v) for k, v in stats.items()}}
    graph = Graph(nodes, values, constants, conv.inputs, ("z",), conv.input_structure, 0)
    for sparse_storage in (True, False):
        write_onnx(graph, tmp_path / "model.onnx", sparse_storage=sparse_storage)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        onnxruntime.InferenceSession(tmp_path / "model.onnx", options, providers=["CPUExecutionProvider"])
        left = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
        assert {"ScatterElements", "BatchNormalization", "Relu"}.isdisjoint(left)
        assert [op for op in left if not op.startswith("Reorder")] in (["Conv"], ["FusedConv"])


def test_weights_above_the_limit_of_protobuf_go_beside_the_file(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "LIMIT", 10_000)
    x, weight = r(2, 100), r(60, 100)
    write_onnx(single(Case("linear", (x, weight, None), known=(1,))), tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").stat().st_size < 2000
    assert (tmp_path / "weights.bin").stat().st_size >= weight.numel() * 4
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x0": x.numpy()})[0], (x @ weight.T).numpy(), atol=1e-4)
