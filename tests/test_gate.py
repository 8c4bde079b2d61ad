"""The export gate: right artifacts pass, and a fault anywhere is found where it is."""

import importlib
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from abridged.errors import GateError, InputError
from abridged.graph.capture import capture
from abridged.graph.graph import Constant, Graph
from abridged.graph.interpret import run
from abridged.graph.verify import verify
from abridged.measurement.gate import Gap, Reference, check, gaps, require, up_to
from abridged.measurement.records import Deviation
from abridged.targets import build

onnxruntime = importlib.import_module("abridged.targets.onnxruntime")  # the module; the entry has the same name


class Branches(nn.Module):
    """A residual, a concat, several outputs, one of them of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.left = nn.Conv2d(8, 8, 3, padding=1)
        self.right = nn.Conv2d(8, 4, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.cat([x + self.left(x), self.right(x)], 1).mean((2, 3))
        logits = self.head(x)
        return {"logits": logits, "class": logits.argmax(1), "sure": logits > 0}


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Branches().eval()


def inputs(count: int = 2) -> list[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(2, 3, 9, 9, generator=generator),) for _ in range(count)]


def altered(graph: Graph, key: str, change: Callable[[Tensor], Tensor]) -> Graph:
    """The graph with one constant that is not what the module holds. A graph without that constant stays."""
    constants = {
        name: Constant(change(constant.tensor.detach()), constant.keys) if key in constant.keys else constant
        for name, constant in graph.constants.items()
    }
    return replace(graph, constants=constants)


@pytest.fixture
def break_target(monkeypatch: pytest.MonkeyPatch):
    """Make the target write other weights than it is given: a fault that every build has."""

    def inject(key: str, change: Callable[[Tensor], Tensor]) -> None:
        right = onnxruntime.TARGET

        def wrong(graph, directory, options) -> None:
            right.write(altered(graph, key, change), directory, options)

        monkeypatch.setattr(onnxruntime, "TARGET", replace(right, write=wrong))

    return inject


def one_changed(tensor: Tensor) -> Tensor:
    changed = tensor.clone()
    changed.view(-1)[3] += 0.05
    return changed


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_a_right_artifact_passes(model: nn.Module, target: str) -> None:
    pytest.importorskip(target)
    graph = capture(model, inputs()[0])
    with build(graph, target, threads=1) as artifact:
        found = check(artifact, model.train(), graph, inputs())
        assert model.training, "the modes are restored"
        assert found.kept
        assert 0 < found.largest <= found.bound < 1e-4
        assert found.layer is None
        assert require(artifact, model, graph, [given.numpy() for (given,) in inputs()]) == found, "numpy, and no tuple"


@pytest.mark.parametrize("layer", ["stem", "left", "right", "head"])
def test_a_fault_is_found_in_its_layer(model: nn.Module, break_target, layer: str) -> None:
    graph = capture(model, inputs()[0])
    break_target(f"{layer}.weight", one_changed)
    with build(graph, "onnxruntime", threads=1) as artifact:
        found = check(artifact, model, graph, inputs())
        assert not found.kept
        op = "linear" if layer == "head" else "conv"
        assert found.layer is not None
        assert found.layer.startswith(f"{layer} ({op}, "), found.layer
        assert "test_gate.py:" in found.layer
        with pytest.raises(
            GateError, match=rf"deviates from PyTorch by .* allowed; it begins at {layer} \({op}"
        ) as error:
            require(artifact, model, graph, inputs())
        assert "\n" not in str(error.value)


def test_a_fault_in_the_middle_of_a_deep_network_takes_few_builds(
    break_target, monkeypatch: pytest.MonkeyPatch
) -> None:
    from abridged.measurement import gate

    layers = [layer for _ in range(20) for layer in (nn.Linear(6, 6), nn.Tanh())]
    deep, x = nn.Sequential(*layers), torch.randn(2, 6)
    graph = capture(deep, x)
    break_target("26.weight", one_changed)
    builds: list[Graph] = []
    monkeypatch.setattr(gate, "build", lambda graph, *a, **k: builds.append(graph) or build(graph, *a, **k))
    with build(graph, threads=1) as artifact:
        assert str(check(artifact, deep, graph, [x]).layer).startswith("26 (linear")
    assert len(builds) <= 7


def test_an_artifact_that_was_altered_after_it_was_built(model: nn.Module) -> None:
    graph = capture(model, inputs()[0])
    with (
        build(altered(graph, "left.weight", one_changed), threads=1) as artifact,
        pytest.raises(GateError, match="files were altered"),
    ):
        require(artifact, model, graph, inputs())


def test_nan_where_pytorch_has_a_number_fails(model: nn.Module, break_target) -> None:
    graph = capture(model, inputs()[0])
    break_target("head.bias", lambda bias: torch.full_like(bias, math.nan))
    with build(graph, threads=1) as artifact:
        found = check(artifact, model, graph, inputs())
    assert (found.largest, found.kept) == (math.inf, False)
    assert str(found.layer).startswith("head")
    assert Deviation.model_validate_json(found.model_dump_json()) == found


class Moody(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor

    factor = 1.0


def test_a_graph_that_is_not_the_module_fails() -> None:
    moody, x = Moody(), torch.randn(2, 3)
    graph = capture(moody, x)
    moody.factor = 1.1
    with build(graph, threads=1) as artifact, pytest.raises(GateError, match="captured graph deviates from the module"):
        check(artifact, moody, graph, [x])


def test_an_exported_program_is_its_own_model() -> None:
    net, x = nn.Linear(3, 2), torch.randn(2, 3)
    program = torch.export.export(net, (x,))
    graph = capture(program)
    with build(graph, threads=1) as artifact:
        assert check(artifact, program, graph, [x]).kept


def test_nothing_to_compare_on(model: nn.Module) -> None:
    graph = capture(model, inputs()[0])
    with build(graph, threads=1) as artifact, pytest.raises(InputError, match="at least one input"):
        check(artifact, model, graph, [])


def test_a_constant_output_cannot_be_bisected(model: nn.Module) -> None:
    class Passing(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x + 1

    graph = capture(Passing(), torch.ones(2))
    with build(graph, threads=1) as artifact:
        wrong = replace(graph, outputs=graph.outputs[::-1])
        assert check(artifact, lambda_module(wrong), wrong, [torch.ones(2)]).layer is None


def lambda_module(graph: Graph) -> nn.Module:
    class Interpreted(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return run(graph, [x])

    return Interpreted()


def gap(y: object, own: object, exact: object = None) -> Gap:
    tensors = [torch.tensor(value) for value in (y, own)]
    exact64 = tensors[1].double() if exact is None else torch.tensor(exact, dtype=torch.float64)
    return gaps([[tensors[0]]], [Reference((), [tensors[1]], [exact64])])[0]


def test_the_bound_by_hand() -> None:
    eps = torch.finfo(torch.float32).eps
    assert gap([1.5, 4.0], [1.25, 4.0], [1.0, 4.0]) == Gap(0.5, 8 * 0.25)
    assert gap([1.0], [1.0]) == Gap(0.0, 8 * 4 * eps), "by luck exact: the floor"
    assert gap([1.0, 2.0], [1.0, 2.0]).bound == 8 * 4 * eps * 2
    assert gap([0.0], [0.0]) == Gap(0.0, 0.0)
    assert gap([1e-3], [0.0]).ratio == math.inf
    assert gap([1.5], [1.0], [1.0]).ratio > 1
    half = torch.tensor([1.0]).half()
    assert gaps([[half]], [Reference((), [half], [half.double()])])[0].bound == 8 * 4 * torch.finfo(torch.float16).eps
    assert gaps([], [Reference((), [], [])]) == []


@pytest.mark.parametrize(
    ("y", "own", "ok"),
    [
        ([1, 2], [1, 2], True),
        ([1, 3], [1, 2], False),
        ([2**60 + 1], [2**60], False),
        ([True, False], [True, False], True),
        ([True, True], [True, False], False),
        ([math.inf, 1.0], [math.inf, 1.0], True),
        ([-math.inf, 1.0], [math.inf, 1.0], False),
        ([math.nan], [math.nan], True),
        ([7.0], [math.nan], False),
        ([math.nan], [7.0], False),
        ([3e38], [math.inf], False),
    ],
)
def test_integers_booleans_and_what_is_not_finite_are_equal_or_wrong(y: list, own: list, ok: bool) -> None:
    assert (gap(y, own).ratio <= 1) is ok


def test_a_reference_that_overflows_itself_allows_anything() -> None:
    assert gap([1.0], [2.0], [math.inf]).ratio == 0


@settings(deadline=None, max_examples=20)
@given(st.data())
def test_a_part_of_a_graph_is_legal_and_means_the_same(data: st.DataObject) -> None:
    torch.manual_seed(0)
    graph = capture(Branches().eval(), inputs()[0])
    seen: dict[str, Tensor] = {}
    run(graph, inputs()[0], observe=lambda node, results: seen.update(zip(node.outputs, results, strict=True)))
    node = data.draw(st.sampled_from(graph.nodes))
    part = verify(up_to(graph, *node.outputs))
    assert part.nodes[-1] is node
    for name, value in zip(node.outputs, run(part, inputs()[0]), strict=True):
        assert torch.equal(value, seen[name])
