"""What is known of a value holds whatever the input is, for every op; and channels that are zero are known where they have to be."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from models import Layers, randomize
from test_ops import _all_cases
from torch import Tensor, nn

import abridged as ab
from abridged.graph.graph import Constant, Graph, Node, Value
from abridged.graph.ops import apply, infer
from abridged.pruning.known import known

FILLS = (-3.0, 0.0, 0.7, 5.0)
told: set[str] = set()


def _graph(op: str, attrs: dict, inputs: list[Tensor | None]) -> Graph:
    """The op alone: floating inputs are constants, and the others are not known."""
    names = tuple(None if x is None else f"x{i}" for i, x in enumerate(inputs))
    tensors = {name: x for name, x in zip(names, inputs, strict=True) if name}
    values = {name: Value(name, tuple(x.shape), x.dtype) for name, x in tensors.items()}
    results = apply(Node(op, (), (), attrs), tuple(inputs), torch.float64)
    node = Node(op, names, tuple(f"y{i}" for i in range(len(results))), attrs)
    values |= {value.name: value for value in infer(node, values)}
    constants = {name: Constant(x, (name,)) for name, x in tensors.items() if x.is_floating_point()}
    free = tuple(name for name in tensors if name not in constants)
    return Graph((node,), values, constants, free, (), {"tuple": []}, {"tuple": []})


def _holes(x: Tensor, axis: int, seed: int) -> Tensor:
    """Some of it zero and some of it not known: whole slices along an axis, or single elements (axis −1)."""
    draw = torch.Generator().manual_seed(seed)
    shape = x.shape if axis < 0 else [n if i == axis else 1 for i, n in enumerate(x.shape)]
    kind = torch.randint(0, 3, tuple(shape), generator=draw).expand(x.shape)
    return x.double().masked_fill(kind == 0, 0).masked_fill(kind == 1, torch.nan)


@pytest.mark.parametrize(("op", "case"), _all_cases())
@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_what_is_known_holds_for_every_input(op: str, case, axis: int) -> None:
    seeds = range(3)
    for seed in seeds:
        inputs = [
            _holes(x, min(axis, x.ndim - 1), seed + i) if x is not None and x.is_floating_point() else x
            for i, x in enumerate(case.inputs)
        ]
        graph = _graph(op, case.attrs, inputs)
        (node,) = graph.nodes
        found = known(graph, dict.fromkeys(node.outputs))
        for fill in FILLS:
            filled = tuple(x.nan_to_num(fill) if x is not None and x.is_floating_point() else x for x in inputs)
            for name, right in zip(node.outputs, apply(node, filled, torch.float64), strict=True):
                if name in found:
                    assert found[name].shape == right.shape, op
                    sure = ~found[name].isnan() & right.isfinite()  # such as with a variance below zero
                    assert torch.allclose(found[name][sure], right[sure].to(found[name].dtype)), (op, fill)
                    told.update({op} if sure.any() else ())


def test_the_law_tested_something() -> None:
    data = {
        "conv",
        "conv_transpose",
        "linear",
        "matmul",
        "batch_norm",
        "mul",
        "relu",
        "take",
        "amax",
        "amin",
        "max_pool",
    }
    assert data <= told, data - told


TOKENS = torch.tensor([[1, 2, 3, 4, 5, 6], [9, 8, 7, 6, 5, 4]])
IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))


def _embedded(forward, **layers: nn.Module) -> Layers:
    return Layers(forward, e=nn.Embedding(10, 16), **layers)


def _tied() -> nn.Module:
    net = _embedded(
        lambda m, x: m.o(m.e(x) + m.d(F.relu(m.h(m.e(x))))),
        h=nn.Linear(16, 32), d=nn.Linear(32, 16), o=nn.Linear(16, 10, bias=False),
    )  # fmt: skip
    net.o.weight = net.e.weight
    return net


EMBEDDED = {
    "linear": lambda: nn.Sequential(nn.Embedding(10, 16), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)),
    "norm": lambda: nn.Sequential(
        nn.Embedding(10, 16), nn.LayerNorm(16), nn.Dropout(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)
    ),
    "mean": lambda: _embedded(lambda m, x: m.o(m.e(x).mean(1)), o=nn.Linear(16, 4)),
    "flatten": lambda: _embedded(lambda m, x: m.o(m.e(x).flatten(1)), o=nn.Linear(96, 4)),
    "convolution": lambda: _embedded(
        lambda m, x: m.o(F.relu(m.c(m.e(x).transpose(1, 2))).amax(2)), c=nn.Conv1d(16, 8, 3), o=nn.Linear(8, 4)
    ),
    "tied": _tied,
}


def _halved_alike(model: nn.Module, x: Tensor) -> None:
    """Half of the channels go, and `shrink` removes all that `prune` zeroes."""
    randomize(model).eval()
    masks = ab.prune(model, 0.5, pattern="channel", example=x, say=None)
    lines: list[str] = []
    small = ab.shrink(model, x, say=lines.append)
    removed = masks.summary[0].partition(" channels removed")[0]
    assert lines[0].startswith(removed), (masks.summary, lines)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    torch.testing.assert_close(small(x), model(x))


def test_what_an_output_shares_with_an_embedding_goes_from_both() -> None:
    net = _tied().eval()
    ab.prune(net, 0.5, pattern="channel", example=TOKENS, say=None)
    small = ab.shrink(net, TOKENS, say=None)
    assert small.o.weight is small.e.weight
    assert (small.e.embedding_dim, small.h.in_features, small.d.out_features) == (8, 8, 8)


@pytest.mark.parametrize("kind", EMBEDDED)
def test_channels_of_an_embedding_go(kind: str) -> None:
    _halved_alike(EMBEDDED[kind](), TOKENS)


@pytest.mark.parametrize("x", [torch.tensor(3), torch.tensor([1, 2])])
def test_tokens_without_a_batch(x: Tensor) -> None:
    _halved_alike(_embedded(lambda m, x: m.o(m.e(x)), o=nn.Linear(16, 4)), x)


REDUCED = {
    "amax": lambda y: y.amax((2, 3)),
    "amin": lambda y: y.amin((2, 3)),
    "max": lambda y: y.flatten(2).max(2)[0],
    "logsumexp": lambda y: y.logsumexp((2, 3)),
    "pow": lambda y: y.exp().pow(1.5).mean((2, 3)),
}


@pytest.mark.parametrize("kind", REDUCED)
def test_what_is_reduced_of_a_channel_that_is_zero_is_known(kind: str) -> None:
    reduce = REDUCED[kind]
    _halved_alike(Layers(lambda m, x: m.o(reduce(F.relu(m.a(x)))), a=nn.Conv2d(3, 8, 3), o=nn.Linear(8, 4)), IMAGE)


def test_a_depthwise_transposed_convolution_of_channels_that_are_zero_is_known() -> None:
    up = nn.ConvTranspose2d(8, 8, 2, 2, groups=8)
    _halved_alike(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), up, nn.ReLU(), nn.Conv2d(8, 4, 1)), IMAGE)
