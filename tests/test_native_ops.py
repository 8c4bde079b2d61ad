"""The law-suite of target `native`: every op of the table, with the cases of the op's own law-suite, equals its meaning."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from native_checks import agrees, poison
from test_ops import EPS, Case, _all_cases
from torch import nn

from abridged import targets
from abridged.compiler.pipeline import plan
from abridged.errors import UnsupportedError
from abridged.graph.build import Builder
from abridged.graph.capture import capture
from abridged.graph.graph import Graph, Node
from abridged.graph.ops import OPS, apply, signature

# What target `native` does not compute yet, by the words that the refusal must say.
REFUSED = {
    "conv-2": "conv over 3 spatial axes",
    "matmul-0": "matmul",
    "einsum-0": "einsum",
    "attention-0": "attention",
    "attention-1": "attention",
    "attention-2": "attention",
    "attention-3": "attention",
    "max_pool-2": "max_pool over 3 spatial axes",
    "avg_pool-2": "avg_pool over 3 spatial axes",
}
EVERY = {param.id: param.values for param in _all_cases()}
SIZES = (1, 2, 3, 7, 15, 16, 17, 31, 33)  # of a line: around vectors of 4, 8 and 16


def _edges() -> list[tuple[str, Case]]:
    """Ops over windows and axes, with every option, at sizes around those of a vector."""
    random, found = np.random.default_rng(0), []

    def some(*numbers: int) -> tuple[int, int]:
        return int(random.choice(numbers)), int(random.choice(numbers))

    def maps(*size: int) -> torch.Tensor:
        return torch.randn(2, 6, *size, generator=torch.Generator().manual_seed(sum(size)))

    def add(op: str, x: torch.Tensor, *more: torch.Tensor | None, terms: int = 40, **attrs: Any) -> None:
        found.append((op, Case((x, *more), attrs, None, terms)))

    for width in SIZES:
        x = maps(int(random.choice([3, 5, 8])), width)
        for _ in range(3):
            kernel = (int(random.choice([1, 2, 3])), int(random.choice([k for k in (1, 2, 3, 5) if k <= width])))
            around = {"kernel": kernel, "stride": some(1, 2, 3), "padding": tuple(k // 2 for k in kernel)}
            ceil = bool(random.integers(2))
            add("max_pool", x, **around, dilation=(1, 1), ceil_mode=ceil)
            add("avg_pool", x, **around, ceil_mode=ceil, count_include_pad=bool(random.integers(2)))
        add(
            "max_pool",
            x,
            kernel=(2, 1 + (width > 2)),
            stride=some(1, 2),
            padding=(1, 0),
            dilation=(2, 2),
            ceil_mode=False,
        )
        add("adaptive_avg_pool", x, output_size=some(1, 2, 4, 7))
        add("adaptive_max_pool", x, output_size=some(1, 2, 4, 7))
        add("group_norm", x, torch.randn(6), torch.randn(6), groups=int(random.choice([1, 2, 6])), eps=1e-5, terms=200)
        add("softmax", x, axis=int(random.integers(4)))
        add("log_softmax", x, axis=int(random.integers(4)))
        axes = tuple(sorted(random.choice(4, int(random.integers(1, 4)), replace=False).tolist()))
        for op in ("sum", "mean", "amax", "amin", "prod"):
            add(op, x, axes=axes, keepdim=bool(random.integers(2)), terms=300)
        add("var", x, axes=axes, correction=0.0, keepdim=False, terms=300)
        for order in (0.0, 1.0, 3.0, -math.inf):
            add("vector_norm", x, ord=order, axes=axes, keepdim=True, terms=300)
        add("cumsum", x, axis=int(random.integers(4)), terms=300)
        add("argmax", x, axis=int(random.integers(4)), keepdim=False)
        for mode in ("nearest", "linear"):
            for corners in (False, True)[: 1 + (mode == "linear")]:
                add("resize", x, size=some(1, 4, 9, 30), scales=None, mode=mode, align_corners=corners, terms=400)
        stride, kernel, dilation = some(1, 2, 3), some(1, 2, 3, 4), some(1, 2)
        extra = tuple(int(random.integers(max(s, d))) for s, d in zip(stride, dilation, strict=True))
        groups = int(random.choice([1, 2, 3]))
        padding = tuple(int(random.integers(d * (k - 1) // 2 + 1)) for k, d in zip(kernel, dilation, strict=True))
        bias = torch.randn(4 * groups) if width % 2 else None
        options = {
            "stride": stride,
            "padding": padding,
            "output_padding": extra,
            "dilation": dilation,
            "groups": groups,
        }
        add("conv_transpose", x, torch.randn(6, 4, *kernel), bias, **options, terms=200)
        add("slice", x, axis=3, start=0, stop=width, step=int(random.choice([1, 2, 5])))
        add("roll", x, shifts=(1, -4), axes=(2, 3))
        add("repeat", x, repeats=(1, 2, 1, 3))
        for mode in ("constant", "reflect", "replicate", "circular"):
            most = 0 if width == 1 and mode == "reflect" else min(width - (mode == "reflect"), 2)
            add("pad", x, padding=((0, 0), (0, 0), (2, 1), (most, most)), mode=mode, value=-1.5)
    return found


EVERY |= {f"{op}-edge{i}": (op, case) for i, (op, case) in enumerate(_edges())}
COMPUTED = [name for name in EVERY if name not in REFUSED]
PARAMETERS = {"weight", "bias", "mean", "var"}


def graph_of(cases: dict[str, tuple[str, Case]]) -> tuple[Graph, list[torch.Tensor]]:
    """All cases side by side in one network, whose inputs are theirs; weights are constants."""
    build, inputs, outputs = Builder(), [], []
    for op, case in cases.values():
        build.path = op
        declared = signature(op).inputs
        given = []
        for i, tensor in enumerate(case.inputs):
            constant = i < len(declared) and declared[i] in PARAMETERS
            if tensor is None or constant:
                given.append(None if tensor is None else build.constant(tensor))
                continue
            given.append(build.input(f"x{len(inputs)}", tensor.shape, tensor.dtype))
            inputs.append(tensor)
        count = len(apply(Node(op, (), (), case.attrs), case.inputs))
        outputs += build.many(op, *given, outputs=count, **case.attrs)
    structure = {"tuple": list(range(len(inputs)))}, {"tuple": list(range(len(outputs)))}
    return build.finish(outputs, *structure), inputs


@pytest.fixture(scope="module")
def results() -> dict[str, tuple[torch.Tensor, ...]]:
    """The outputs of every computed case, from one library."""
    cases = {name: EVERY[name] for name in COMPUTED}
    graph, inputs = graph_of(cases)
    with targets.build(graph, "native", threads=2, tune=False) as artifact:
        outputs = list(poison(artifact)(*inputs))
    found = {}
    for name, (op, case) in cases.items():
        count = len(apply(Node(op, (), (), case.attrs), case.inputs))
        found[name], outputs = tuple(outputs[:count]), outputs[count:]
    assert not outputs
    return found


@pytest.mark.parametrize("name", COMPUTED)
def test_every_op_equals_its_meaning(name: str, results: dict[str, tuple[torch.Tensor, ...]]) -> None:
    op, case = EVERY[name]
    double = tuple(t.double() if t is not None and t.is_floating_point() else t for t in case.inputs)
    exact = apply(Node(op, (), (), case.attrs), double)
    own = apply(Node(op, (), (), case.attrs), case.inputs)
    for got, expected, single in zip(results[name], exact, own, strict=True):
        assert (got.shape, got.dtype) == (single.shape, single.dtype)
        if not got.is_floating_point():
            assert torch.equal(got, single)
            continue
        numbers = [t.abs().max().item() for t in double if t is not None and t.numel() and t.dtype != torch.bool]
        largest = max([1.0, *numbers, *([expected.abs().max().item()] if expected.numel() else [])])
        assert ((got - expected).abs() <= case.terms * EPS * largest).all()


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_names_the_module_and_the_op(name: str) -> None:
    graph, _ = graph_of({name: EVERY[name]})
    with pytest.raises(UnsupportedError, match=f"module '{EVERY[name][0]}'.*{REFUSED[name]}"):
        plan(graph)


def test_every_op_is_computed_or_refused() -> None:
    kinds: defaultdict[str, set[Any]] = defaultdict(set)
    for name, (op, _) in EVERY.items():
        kinds[op].add(name in REFUSED)
    assert set(kinds) == set(OPS)
    assert {op for op, refused in kinds.items() if False not in refused} == {"matmul", "einsum", "attention"}


class Norms(nn.Module):
    """Every op that subtracts a mean, over groups of two sizes."""

    def forward(self, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(
            y
            for x in given
            for y in (
                F.layer_norm(x, x.shape[3:]),
                F.layer_norm(x, x.shape[2:]),
                F.layer_norm(x.mT, x.shape[2:3]),
                F.group_norm(x, 3),
                F.group_norm(x, 6),
                x.var(3, correction=0),
                x.var((2, 3), correction=0),
                x.std(2, correction=0),
            )
        )


class Of(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def test_norms_of_a_constant_are_nothing(fast_builds: None) -> None:
    """A mean that is off by one unit in the last place would show, times 1 / √eps."""
    torch.manual_seed(0)
    sizes = (1, 1), (2, 1), (1, 7), (7, 7), (3, 16), (5, 33), (200, 300)
    inputs = tuple(torch.randn(2, 3, 1, 1, 1).expand(2, 3, 2, *size).flatten(1, 2).contiguous() for size in sizes)
    with targets.build(capture(Norms(), inputs), "native", threads=2, tune=False) as artifact:
        for factor in (0.01, 1.0, 1000.0):
            for y in poison(artifact)(*(x * factor for x in inputs)):
                assert not y.any()


def test_norms_of_nearly_a_constant(fast_builds: None) -> None:
    torch.manual_seed(0)
    for module in (nn.LayerNorm([29, 33]), nn.LayerNorm([8, 29, 33]), nn.GroupNorm(2, 8), nn.InstanceNorm2d(8)):
        for scale in (0, 1e-6):
            layer = nn.Conv2d(3, 8, 3, padding=1)
            with torch.no_grad():
                layer.weight[::2] *= scale  # pruned, or as good as that: what is left of such a channel is its bias
            agrees(nn.Sequential(layer, module), torch.randn(2, 3, 29, 33))


LONG: dict[str, nn.Module] = {
    "layer_norm": nn.LayerNorm([64, 56, 56]),
    "group_norm": nn.GroupNorm(1, 64),
    "rms_norm": nn.RMSNorm([64, 56, 56]),
    "sum": Of(lambda x: x.sum((1, 2, 3))),
    "mean": Of(lambda x: x.mean((1, 2, 3))),
    "var": Of(lambda x: x.var((1, 2, 3))),
    "norm": Of(lambda x: torch.linalg.vector_norm(x, dim=(1, 2, 3))),
    "cumsum": Of(lambda x: x.flatten(1).cumsum(1)),
}


@pytest.mark.parametrize("name", LONG)
def test_long_sums_keep_their_digits(name: str, fast_builds: None) -> None:
    agrees(LONG[name], torch.rand(1, 64, 56, 56, generator=torch.Generator().manual_seed(0)))


def test_log_softmax_of_large_numbers(fast_builds: None) -> None:
    agrees(nn.LogSoftmax(1), torch.randn(4, 5) + 1e4)
