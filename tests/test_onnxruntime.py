"""Real networks in ONNX Runtime: as near to float64 as PyTorch is, dense and pruned, layer by layer in time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from abridged.errors import UnsupportedError
from abridged.graph.capture import capture
from abridged.graph.graph import Graph
from abridged.graph.interpret import interpret
from abridged.targets import build
from abridged.targets.artifact import Artifact
from abridged.targets.provenance import Made, Ran, attribute

NETWORKS = Path(__file__).parents[1].parent / "shared" / "networks.txt"

# One of every family, at the smallest size it takes.
FEW = {
    "convnext_tiny": 64,
    "efficientnet_b0": 64,
    "googlenet": 64,
    "mobilenet_v3_small": 64,
    "resnet18": 64,
    "shufflenet_v2_x0_5": 64,
    "swin_t": 64,
    "vit_b_32": 224,
}


def all_networks() -> list[str]:
    return [line for line in NETWORKS.read_text().split("\n") if line[:1].isalnum()] if NETWORKS.exists() else []


def network(models: Any, name: str, size: int) -> tuple[nn.Module, Tensor]:
    """Random weights and random batch-norm statistics, which an untrained network would not have."""
    more = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    if name.startswith("vit"):
        more["image_size"] = size
    model = models.get_model(name, weights=None, **more).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model, torch.randn(1, 3, size, size)


def prune_(model: nn.Module, density: float) -> None:
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= torch.rand_like(parameter) < density
            parameter.data /= density**0.5  # keep the activations' variance


def check_against_float64(graph: Graph, model: nn.Module, artifact: Artifact, *inputs: Tensor) -> None:
    """DESIGN's bound for whole networks: at most 8 times PyTorch's own fp32 error."""
    exact = interpret(graph, *inputs, dtype=torch.float64)
    with torch.no_grad():
        own = (model(*inputs) - exact).abs().max().item()
    theirs = (artifact(*inputs) - exact).abs().max().item()
    assert theirs <= 8 * own, f"{theirs} > 8 × {own}"


@pytest.fixture(params=sorted(FEW))
def few(request: pytest.FixtureRequest, torchvision_models: Any) -> tuple[nn.Module, Tensor]:
    return network(torchvision_models, request.param, FEW[request.param])


def test_a_network_is_as_near_to_float64_as_pytorch_is(few: tuple[nn.Module, Tensor], tmp_path: Path) -> None:
    model, x = few
    graph = capture(model, x)
    with build(graph, out=tmp_path / "net") as artifact:
        check_against_float64(graph, model, artifact, x)


@pytest.mark.slow
@pytest.mark.parametrize("name", all_networks())
def test_every_network(name: str, torchvision_models: Any, tmp_path: Path) -> None:
    model, x = network(torchvision_models, name, 299 if name == "inception_v3" else 224)
    graph = capture(model, x)
    for target in ("onnxruntime", "openvino"):
        with build(graph, target) as artifact:
            check_against_float64(graph, model, artifact, x)


def test_a_pruned_network_is_smaller_on_disk_and_the_same(torchvision_models: Any, tmp_path: Path) -> None:
    model, x = network(torchvision_models, "resnet18", 64)
    dense = build(capture(model, x), out=tmp_path / "dense").bytes
    prune_(model, 0.1)
    graph = capture(model, x)
    with build(graph, out=tmp_path / "sparse") as artifact:
        assert artifact.bytes < 0.13 * dense
        check_against_float64(graph, model, artifact, x)
        with build(graph, sparse_storage=False) as plain:
            assert plain.bytes > 0.99 * dense
            np.testing.assert_array_equal(plain(x), artifact(x))


def test_two_artifacts_live_at_once(tmp_path: Path) -> None:
    nets = [nn.Linear(4, 2).eval(), nn.Sequential(nn.Linear(4, 8), nn.Tanh()).eval()]
    x = torch.randn(3, 4)
    artifacts = [build(capture(net, x), out=tmp_path / str(i)) for i, net in enumerate(nets)]
    for _ in range(3):
        for net, artifact in zip(nets, artifacts, strict=True):
            torch.testing.assert_close(artifact(x), net(x), rtol=0, atol=1e-6)
    artifacts[0].close()
    torch.testing.assert_close(artifacts[1](x), nets[1](x), rtol=0, atol=1e-6)


def test_times_by_layer_name_every_layer_that_computes(torchvision_models: Any, tmp_path: Path) -> None:
    model, x = network(torchvision_models, "resnet18", 64)
    with build(capture(model, x), out=tmp_path / "net") as artifact:
        times = artifact.layer_times(runs=3)
    assert times is not None
    convolutions = {name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    assert convolutions | {"fc"} <= set(times)
    assert set(times) <= {name for name, _ in model.named_modules()}
    assert all(time >= 0 for time in times.values())
    assert sum(times[name] for name in convolutions) > 0.5 * sum(times.values())
    assert not list(Path.cwd().glob("profile*"))


def test_a_node_that_fusion_renamed_belongs_to_the_layer_it_grew_from() -> None:
    """Two convolutions, one of which took in the sum and the activation; a layout change of the runtime's own."""
    made = {
        "first/a": Made("Conv", ()),
        "second/b": Made("Conv", ()),
        "/sum": Made("Add", ("first/a", "second/b")),
        "act/relu": Made("Relu", ("/sum",)),
        "fc/m": Made("MatMul", ("act/relu",)),
    }
    ran = [
        Ran(("ReorderInput",), None, 1.0),
        Ran(("act/relu",), "Conv", 4.0),
        Ran(("first/a",), "Conv", 2.0),
        Ran(("fc/m",), "MatMul", 8.0),
        Ran(("fc/m",), "Unheard", 16.0),
    ]
    assert attribute(ran, made) == {"": 1.0, "first": 2.0, "second": 4.0, "fc": 24.0}


def test_what_the_runtime_refuses_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    class Erf(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.erf(x)

    graph = capture(Erf(), torch.zeros(3, dtype=torch.float64))
    with pytest.raises(UnsupportedError, match=r"refused by ONNX Runtime: .*Erf") as caught:
        build(graph, out=tmp_path / "net")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
