"""The same networks in OpenVINO: read from our ONNX, saved in its own format, fp32 throughout."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from abridged.errors import InputError
from abridged.graph.capture import capture
from abridged.graph.interpret import interpret
from abridged.targets import build, load

openvino = pytest.importorskip("openvino", reason="needs the extra: pip install 'abridged[openvino]'")


class Net(nn.Module):
    """A residual, a concat, a batch norm, two inputs and nested outputs, one of them an input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.wide = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.fc = nn.Linear(16, 300)
        self.words = nn.Embedding(20, 300)

    def forward(self, x: Tensor, tokens: Tensor) -> dict[str, Any]:
        y = self.norm(self.stem(x)).relu()
        y = torch.cat([y, y + self.wide(y)], 1)
        z = self.fc(y.mean((2, 3)))
        return {"logits": z + self.words(tokens), "more": (y, [tokens])}


@pytest.fixture(scope="module")
def inputs() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3, 9, 7), torch.tensor([3, 19])


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    net = Net().eval()
    nn.init.normal_(net.norm.running_mean)
    nn.init.uniform_(net.norm.running_var, 0.5, 1.5)
    return net


def test_it_answers_as_pytorch_in_the_models_structure(net: Net, inputs: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    graph = capture(net, inputs)
    with build(graph, "openvino", tmp_path / "net", threads=1) as artifact:
        found, exact, own = artifact(*inputs), interpret(graph, *inputs, dtype=torch.float64), net(*inputs)
        assert set(artifact.files) == {"model.xml", "model.bin", "abridged.json"}
    assert (found["logits"] - exact["logits"]).abs().max() <= 8 * (own["logits"] - exact["logits"]).abs().max()
    assert (found["more"][0] - exact["more"][0]).abs().max() <= 8 * (own["more"][0] - exact["more"][0]).abs().max()
    assert torch.equal(found["more"][1][0], inputs[1])


def test_loaded_it_answers_the_same_and_outputs_are_their_own(
    net: Net, inputs: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    with build(capture(net, inputs), "openvino", tmp_path / "net") as built, load(tmp_path / "net") as again:
        first = built(*inputs)["logits"]
        kept = first.clone()
        built(torch.randn(2, 3, 9, 7), inputs[1])
        assert torch.equal(first, kept)
        torch.testing.assert_close(again(*inputs)["logits"], kept, rtol=0, atol=0)
        numpy = again(*(x.numpy() for x in inputs))["logits"]
        np.testing.assert_array_equal(numpy, kept)


def test_pruned_weights_stay_small(net: Net, tmp_path: Path) -> None:
    wide = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512)).eval()
    x = torch.randn(4, 512)
    dense = build(capture(wide, x), "openvino").bytes
    for parameter in wide.parameters():
        parameter.data *= torch.rand_like(parameter) < 0.1
    wide[2].weight.data.zero_()
    graph = capture(wide, x)
    with (
        build(graph, "openvino", tmp_path / "net") as artifact,
        build(graph, "openvino", sparse_storage=False) as plain,
    ):
        assert artifact.bytes < 0.1 * dense
        np.testing.assert_allclose(artifact(x), plain(x), rtol=0, atol=1e-6)


def test_times_by_layer(net: Net, inputs: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    with build(capture(net, inputs), "openvino", tmp_path / "net") as artifact:
        times = artifact.layer_times(runs=3)
    assert times is not None
    assert {"stem", "wide", "fc"} <= set(times) <= {name for name, _ in net.named_modules()}


def test_a_signature_that_is_not_the_files_is_refused(net: Net, inputs: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    build(capture(net, inputs), "openvino", tmp_path / "net").close()
    manifest = tmp_path / "net" / "abridged.json"
    manifest.write_text(manifest.read_text().replace('"tokens"', '"words"'))
    with pytest.raises(InputError, match=r"has not the signature of model\.xml"):
        load(tmp_path / "net")


def test_a_missing_package_names_the_extra(
    net: Net, inputs: tuple[Tensor, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = capture(net, inputs)
    build(graph, "openvino", tmp_path / "net").close()
    monkeypatch.setitem(sys.modules, "openvino", None)
    for call in (lambda: build(graph, "openvino", tmp_path / "other"), lambda: load(tmp_path / "net")):
        with pytest.raises(InputError, match=r"needs a package: pip install 'abridged\[openvino\]'"):
            call()
    assert not (tmp_path / "other").exists()
