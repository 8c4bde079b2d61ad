"""The same networks in OpenVINO: read from our ONNX, saved in its own format, fp32 throughout."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_onnx_export import CASES, Case, bound, single
from torch import Tensor, nn

from abridged.errors import InputError, UnsupportedError
from abridged.files import sha256
from abridged.graph.capture import capture
from abridged.graph.interpret import interpret
from abridged.graph.ops import OPS, apply
from abridged.targets import build, load
from abridged.targets.artifact import MANIFEST, Manifest
from abridged.targets.onnx_export import to_onnx

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


def _reseal(manifest: Path, old: str, new: str) -> None:
    """Edit a manifest and give it the checksum that it then should have."""
    altered = Manifest.model_validate_json(manifest.read_text().replace(old, new))
    manifest.write_text(altered.sealed().model_dump_json())


def test_a_signature_that_is_not_the_files_is_refused(net: Net, inputs: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    build(capture(net, inputs), "openvino", tmp_path / "net").close()
    manifest = tmp_path / "net" / "abridged.json"
    _reseal(manifest, '"tokens"', '"words"')
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


def beyond(case: Case) -> bool:
    """What OpenVINO does otherwise: its remainder of floats is off by the divisor where that divides, which the export
    gate refuses; and it gathers only where index and data are equally large along the other axes, and says so."""
    if case.op in ("floor_div", "remainder"):
        return case.inputs[0].is_floating_point()
    return (
        case.op == "gather"
        and case.inputs[0].shape[1 - case.attrs["axis"]] != case.inputs[1].shape[1 - case.attrs["axis"]]
    )


@pytest.mark.slow
@pytest.mark.parametrize("op", sorted(OPS))
def test_openvino_reads_the_onnx_form_of_every_op(op: str) -> None:
    core = openvino.Core()
    cases = [case for case in CASES[op]() if not beyond(case)]
    assert cases
    for case in cases:
        graph = single(case)
        compiled = core.compile_model(
            core.read_model(to_onnx(graph).SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
        found = compiled.create_infer_request().infer([case.inputs[int(name[1:])].numpy() for name in graph.inputs])
        for i, expected in enumerate(apply(graph.nodes[0], case.inputs)):
            allowed = bound(case, graph.nodes[0], expected) if expected.is_floating_point() else 0
            np.testing.assert_allclose(found[i], expected.numpy(), rtol=0, atol=allowed, err_msg=str(case))


def test_what_openvino_refuses_is_one_line(
    net: Net, inputs: tuple[Tensor, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = capture(net, inputs)
    build(graph, "openvino", tmp_path / "net").close()
    file, manifest = tmp_path / "net" / "model.xml", tmp_path / "net" / MANIFEST
    before = sha256(file)
    file.write_bytes(file.read_bytes().replace(b'type="Convolution"', b'type="Konvolution"'))
    _reseal(manifest, before, sha256(file))
    with pytest.raises(UnsupportedError, match=r"model\.xml: refused by OpenVINO: .*") as caught:
        load(tmp_path / "net")
    assert "\n" not in str(caught.value)


def test_what_openvino_cannot_read_is_one_line(tmp_path: Path) -> None:
    class Pick(nn.Module):
        def forward(self, x: Tensor, index: Tensor) -> Tensor:
            return torch.gather(x, 1, index)

    graph = capture(Pick(), (torch.randn(4, 5), torch.zeros(2, 7, dtype=torch.int64)))
    with pytest.raises(UnsupportedError, match=r"OpenVINO cannot read the network: .*") as caught:
        build(graph, "openvino", tmp_path / "net")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
