"""MACs: every entry of COSTS against a count by hand, whole networks against torch's own flop counter."""

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from abridged.graph.capture import capture
from abridged.graph.cost import COSTS, Cost, cost, known
from abridged.graph.graph import Constant, Graph, Node, Value
from abridged.graph.ops import OPS, infer

NETWORKS = Path(__file__).resolve().parents[2] / "shared" / "networks.txt"


def one(op: str, inputs: Sequence[Tensor | None], constants: Sequence[int] = (), **attrs: object) -> tuple[Node, Graph]:
    """A graph of one node; the inputs numbered in `constants` are constants."""
    names = [None if tensor is None else f"x{i}" for i, tensor in enumerate(inputs)]
    tensors = {name: tensor for name, tensor in zip(names, inputs, strict=True) if name is not None}
    values = {name: Value(name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    node = Node(op, tuple(names), ("y",), attrs)
    held = {names[i]: Constant(tensors[names[i]]) for i in constants}
    free = tuple(name for name in tensors if name not in held)
    values |= {value.name: value for value in infer(node, values)}
    return node, Graph((node,), values, held, free, ("y",), {"tuple": [*range(len(free))]}, 0)


def counted(run: Callable[[], object]) -> int:
    """MACs that torch counts. On the meta device: there its counter knows every attention."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() // 2


def meta(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


CONV = {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)}
Case = tuple[Sequence[Tensor | None], Mapping[str, object], Callable[..., object]]
CASES: dict[str, list[Case]] = {
    "conv": [
        ([meta(3, 4, 9, 8), meta(6, 4, 3, 3), meta(6)], {**CONV, "groups": 1}, lambda *a: F.conv2d(*a, **CONV)),
        ([meta(3, 4, 9, 8), meta(6, 2, 3, 3), None], {**CONV, "groups": 2}, lambda *a: F.conv2d(*a, **CONV, groups=2)),
        (
            [meta(1, 5, 7), meta(5, 1, 3), None],
            {"stride": (1,), "padding": (1,), "dilation": (1,), "groups": 5},
            lambda *a: F.conv1d(*a, padding=1, groups=5),
        ),
        (
            [meta(2, 3, 4, 5, 6), meta(7, 3, 2, 2, 2), None],
            {"stride": (1,) * 3, "padding": (0,) * 3, "dilation": (1,) * 3, "groups": 1},
            lambda *a: F.conv3d(*a),
        ),
    ],
    "conv_transpose": [
        (
            [meta(2, 4, 5, 6), meta(4, 3, 3, 3), meta(3)],
            {"stride": (2, 2), "padding": (1, 1), "output_padding": (1, 0), "dilation": (1, 1), "groups": 1},
            lambda *a: F.conv_transpose2d(*a, stride=2, padding=1, output_padding=(1, 0)),
        ),
        (
            [meta(2, 4, 5), meta(4, 3, 3), None],
            {"stride": (1,), "padding": (0,), "output_padding": (0,), "dilation": (1,), "groups": 2},
            lambda *a: F.conv_transpose1d(*a, groups=2),
        ),
    ],
    "linear": [
        ([meta(2, 7, 5), meta(3, 5), meta(3)], {}, F.linear),
        ([meta(1, 5), meta(3, 5), None], {}, F.linear),
    ],
    "matmul": [
        ([meta(2, 7, 5), meta(5, 3)], {}, torch.matmul),
        ([meta(4, 1, 7, 5), meta(2, 5, 3)], {}, torch.matmul),
    ],
    "attention": [
        (
            [meta(2, 4, 10, 8), meta(2, 4, 12, 8), meta(2, 4, 12, 6), meta(10, 12)],
            {"causal": False, "scale": 1.0},
            lambda q, k, v, mask: F.scaled_dot_product_attention(q, k, v, mask),
        ),
        (
            [meta(2, 4, 10, 8), meta(2, 4, 10, 8), meta(2, 4, 10, 8), None],
            {"causal": True, "scale": 1.0},
            lambda q, k, v, _: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        ),
    ],
    "einsum": [
        ([meta(*shape) for shape in shapes], {"equation": equation}, lambda *a, e=equation: torch.einsum(e, *a))
        for equation, shapes in {
            "ij,jk->ik": [(3, 4), (4, 5)],
            "ij,jk": [(3, 4), (4, 5)],
            "bij, bjk -> bik": [(2, 3, 4), (2, 4, 5)],
            "...ij,jk->...ik": [(7, 3, 4), (4, 5)],
            "a...i,...i->a...": [(7, 2, 3, 4), (3, 4)],
            "...ij,...jk": [(6, 2, 3, 4), (2, 4, 5)],
            "ij,kj->i": [(3, 4), (5, 4)],
            "i,j->ij": [(3,), (4,)],
            "ij,ij->ij": [(3, 4), (3, 4)],
            "ij,ij->": [(3, 4), (3, 4)],
            "ii,ij->j": [(3, 3), (3, 4)],
            "ij->ji": [(3, 4)],
            "ij,k->ik": [(3, 4), (5,)],
        }.items()
    ],
}


@pytest.mark.parametrize("op", COSTS)
def test_every_entry_counts_as_torch_counts(op: str) -> None:
    assert op in OPS
    assert CASES[op], "every entry is tested"
    for inputs, attrs, run in CASES[op]:
        node, graph = one(op, inputs, **attrs)
        assert cost(node, graph) == Cost(*[counted(lambda i=inputs, r=run: r(*i))] * 2), node


def test_three_operands_from_the_left() -> None:
    node, graph = one("einsum", [meta(3, 4), meta(4, 5), meta(5, 6)], equation="ij,jk,kl->il")
    assert cost(node, graph).macs == 3 * 4 * 5 + 3 * 5 * 6


def test_a_dot_product_counts_though_torch_does_not_count_it() -> None:
    node, graph = one("matmul", [meta(1, 7), meta(7, 1)])
    assert cost(node, graph).macs == 7


def test_what_multiplies_without_accumulating_costs_nothing() -> None:
    node, graph = one("mul", [meta(3, 4), meta(3, 4)])
    assert cost(node, graph) == Cost(0, 0)


sizes = st.integers(1, 4)


@given(
    n=sizes,
    i=sizes,
    o=sizes,
    k=st.integers(1, 3),
    size=st.integers(3, 6),
    groups=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_effective_macs_are_the_products_left(
    n: int, i: int, o: int, k: int, size: int, groups: int, seed: int
) -> None:
    """A convolution of ones with the weight's non-zeros as ones sums exactly the products that are not skipped."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(o * groups, i, k, k, generator=generator)
    weight[torch.rand(weight.shape, generator=generator) < 0.5] = 0
    x = torch.ones(n, i * groups, size, size)
    attrs = {"stride": (2, 1), "padding": (0, 0), "dilation": (1, 1), "groups": groups}
    node, graph = one("conv", [x, weight, None], constants=[1], **attrs)
    left = F.conv2d(x.double(), (weight != 0).double(), stride=(2, 1), groups=groups).sum()
    dense = F.conv2d(x.double(), torch.ones_like(weight).double(), stride=(2, 1), groups=groups).sum()
    assert cost(node, graph) == Cost(int(dense), int(left))


@pytest.mark.parametrize("constants", list(product((0, 1))))
def test_effective_macs_of_a_matmul_and_an_einsum(constants: tuple[int]) -> None:
    pair = [torch.ones(3, 4), torch.ones(4, 5)]
    for tensor in pair:
        tensor[0] = 0
    left = {0: 60 * 2 // 3, 1: 60 * 3 // 4}[constants[0]]
    for node, graph in (one("matmul", pair, constants), one("einsum", pair, constants, equation="ij,jk->ik")):
        assert cost(node, graph) == Cost(60, left)


@pytest.mark.parametrize("equation", ["ii,ij->j", "ij,kj->i"])
def test_no_zero_is_skipped_where_elements_are_not_used_alike(equation: str) -> None:
    node, graph = one("einsum", [torch.ones(3, 3), torch.zeros(3, 3)], [1], equation=equation)
    assert cost(node, graph).macs == cost(node, graph).effective_macs > 0


def test_attention_and_biases_skip_nothing() -> None:
    q = torch.zeros(1, 2, 4)
    node, graph = one("attention", [q, q, q, None], [0, 1, 2], causal=False, scale=1.0)
    assert cost(node, graph) == Cost(32, 32)
    node, graph = one("linear", [torch.ones(2, 3), torch.ones(4, 3), torch.zeros(4)], [1, 2])
    assert cost(node, graph) == Cost(24, 24)


def test_an_empty_weight_costs_nothing() -> None:
    node, graph = one("linear", [torch.ones(2, 0), torch.ones(4, 0), None], [1])
    assert cost(node, graph) == Cost(0, 0)


class Reparametrized(nn.Module):
    """A weight that is computed from constants alone is known before the network runs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (2 * self.weight).t()


def test_weights_computed_from_constants_are_known() -> None:
    graph = capture(Reparametrized(), torch.zeros(3, 4))
    assert sum(cost(node, graph, known(graph)).effective_macs for node in graph) == 3 * 4
    assert sum(cost(node, graph, {}).effective_macs for node in graph) == 3 * 16


def test_nothing_is_known_on_the_meta_device() -> None:
    assert known(capture(nn.Linear(3, 4, device="meta"), meta(2, 3))) == {}


def build(models, name: str) -> nn.Module:
    options = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return models.get_model(name, weights=None, **options).eval()


def same_as_torch(model: nn.Module, x: Tensor) -> None:
    graph = capture(model, x)
    ours = sum(cost(node, graph, {}).macs for node in graph)
    with torch.enable_grad():  # without gradients an attention layer takes a fused path that torch does not count
        assert ours == counted(lambda: model.to("meta")(x.to("meta")))
    assert ours > 1e6


FAST = {"mobilenet_v3_small": 64, "shufflenet_v2_x0_5": 64, "squeezenet1_1": 64, "googlenet": 64}


@pytest.mark.parametrize("name", FAST)
def test_networks_as_torch_counts_them(torchvision_models, name: str) -> None:
    same_as_torch(build(torchvision_models, name), torch.zeros(2, 3, FAST[name], FAST[name]))


def test_a_vision_transformer_as_torch_counts_it(torchvision_models) -> None:
    vit = torchvision_models.VisionTransformer(32, 8, 2, 4, 64, 128, num_classes=10).eval()
    same_as_torch(vit, torch.zeros(2, 3, 32, 32))


def test_a_shifted_window_transformer_as_torch_counts_it(torchvision_models) -> None:
    swin = torchvision_models.SwinTransformer([4, 4], 32, [2, 2], [2, 4], [4, 4], num_classes=10).eval()
    same_as_torch(swin, torch.zeros(2, 3, 32, 32))


ALL = [line for line in NETWORKS.read_text().splitlines() if line[:1] not in ("", "#")] if NETWORKS.exists() else []


@pytest.mark.slow
@pytest.mark.skipif(not ALL, reason="needs the list of networks in ../shared")
@pytest.mark.parametrize("name", ALL)
def test_every_network_as_torch_counts_it(torchvision_models, name: str) -> None:
    size = 299 if name == "inception_v3" else 224
    same_as_torch(build(torchvision_models, name), torch.zeros(1, 3, size, size))
