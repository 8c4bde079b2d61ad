"""What an artifact promises whatever its target: checked inputs, the model's structure, files that were not touched."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from abridged.delivery import deploy
from abridged.errors import InputError, UnsupportedError
from abridged.graph.capture import capture
from abridged.graph.graph import Graph
from abridged.targets import TARGETS, build, load
from abridged.targets.artifact import MANIFEST, Artifact, Manifest, thread_count


class Two(nn.Module):
    """Two inputs, one of them integers, and nested outputs: one is an input, one is there twice, one is None."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(10, 4)
        self.mix = nn.Linear(4, 3)

    def forward(self, tokens: Tensor, more: dict[str, Tensor]) -> dict[str, Any]:
        y = self.mix(self.words(tokens)) + more["bias"]
        return {"y": y, "rest": (y.relu(), [tokens, y], None), "bias": self.mix.bias}


TOKENS = torch.tensor([[1, 2, 3, 9, 0]])


@pytest.fixture(scope="module")
def two() -> Two:
    torch.manual_seed(0)
    return Two().eval()


@pytest.fixture(scope="module")
def graph(two: Two) -> Graph:
    return capture(two, (TOKENS, {"bias": torch.ones(3)}))


@pytest.fixture
def artifact(graph: Graph, tmp_path: Path) -> Artifact:
    return build(graph, "onnxruntime", tmp_path / "net", threads=1)


def close(a: object, b: object) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_torch_in_torch_out_in_the_models_structure(artifact: Artifact, two: Two) -> None:
    bias = torch.randn(3)
    close(artifact(TOKENS, {"bias": bias}), two(TOKENS, {"bias": bias}))


def test_numpy_in_numpy_out(artifact: Artifact, two: Two) -> None:
    found = artifact(TOKENS.numpy(), {"bias": np.ones(3, np.float32)})
    assert isinstance(found["rest"], tuple)
    assert isinstance(found["rest"][0], np.ndarray)
    close(torch.from_numpy(found["y"]), two(TOKENS, {"bias": torch.ones(3)})["y"])


def test_inputs_may_be_views_and_want_gradients(artifact: Artifact, two: Two) -> None:
    tokens, bias = TOKENS.repeat(1, 2)[:, ::2], torch.randn(6, requires_grad=True)[::2]
    for given in (bias, torch._neg_view(-bias)):
        close(artifact(tokens, {"bias": given}), two(tokens, {"bias": bias}))


def test_an_artifact_is_loaded_elsewhere_and_not_pickled(artifact: Artifact) -> None:
    with pytest.raises(InputError, match="not copied or pickled; load it where it is wanted"):
        pickle.dumps(artifact)


def test_the_example_may_be_of_numpy() -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor, more: dict[str, Tensor]) -> Tensor:
            return x + more["bias"]

    given = np.eye(3, dtype=np.float32)[::-1], {"bias": np.ones((), np.float32)}
    with deploy(Sum(), given, threads=1) as artifact:
        np.testing.assert_array_equal(artifact(*given), given[0] + 1)
    with pytest.raises(InputError, match="the example holds an array of >f4, which torch does not have"):
        deploy(nn.ReLU(), np.ones(3, ">f4"))


def test_inputs_by_name_are_refused(artifact: Artifact) -> None:
    with pytest.raises(InputError, match=r"inputs are positional \(tokens: int64\[1, 5\], .*\), got 'tokens' by name"):
        artifact(tokens=TOKENS)


ONES = {"bias": torch.ones(3)}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((), r"expected 2 input\(s\) \(tokens: int64\[1, 5\], .*float32\[3\]\), got 0"),
        ((TOKENS, ONES, TOKENS), r"expected 2 input\(s\) .*, got 3"),
        ((TOKENS.int(), ONES), "input 'tokens': expected dtype int64, got int32"),
        ((TOKENS[0], ONES), r"input 'tokens': expected shape \[1, 5\], got \[5\]"),
        ((TOKENS, {"bias": torch.ones(4)}), r"input '.*': expected shape \[3\], got \[4\]"),
        ((TOKENS, torch.ones(3)), "nested as .*dict.*, got"),
        ((TOKENS, {"b": torch.ones(3)}), "nested as .*'bias'.*, got .*'b'"),
        ((TOKENS, {"bias": np.ones(3, np.float32)}), "all inputs from torch or all from numpy"),
        ((TOKENS, {"bias": np.ones(3, ">f4")}), "expected dtype float32, got >f4"),
        ((TOKENS, {"bias": "ones"}), "expected a numpy array or torch tensor, got str"),
        ((TOKENS, {"bias": torch.ones(3, device="meta")}), "expected a tensor on the CPU, got one on meta"),
    ],
)
def test_wrong_inputs_are_refused_before_the_runtime_sees_them(
    artifact: Artifact, inputs: tuple[Any, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifact, "_engine", object())  # running it would raise AttributeError
    with pytest.raises(InputError, match=message):
        artifact(*inputs)


def test_it_tells_what_it_is(artifact: Artifact, tmp_path: Path) -> None:
    assert artifact.target == "onnxruntime"
    assert artifact.path == tmp_path / "net"
    assert artifact.threads == 1
    on_disk = {file.name: file.stat().st_size for file in artifact.path.iterdir()}
    assert artifact.files == on_disk
    assert artifact.bytes == sum(on_disk.values())
    assert str(artifact.signature).startswith("(tokens: int64[1, 5], ")
    assert len({port.name for port in artifact.signature.outputs}) == 5
    assert "Artifact('onnxruntime'" in repr(artifact)
    assert artifact.manifest.versions.keys() >= {"abridged", "onnx", "onnxruntime", "torch", "python"}
    assert artifact.manifest.options == {"sparse_storage": True}


def test_latency_on_random_and_given_inputs(artifact: Artifact) -> None:
    assert artifact.latency(0.01).median > 0
    assert artifact.latency(0.01, inputs=(TOKENS, ONES)).runs >= 20
    tokens, more = artifact.random_inputs()
    assert tokens.dtype == np.int64
    assert not tokens.any()
    assert more["bias"].std() > 0


def test_closed_means_closed(artifact: Artifact) -> None:
    with artifact as same:
        assert same is artifact
    artifact.close()
    for call in (lambda: artifact(TOKENS, ONES), artifact.latency, artifact.layer_times):
        with pytest.raises(InputError, match="is closed; load it again"):
            call()
    assert repr(artifact).endswith("closed)")


def test_loaded_it_answers_the_same(artifact: Artifact) -> None:
    with load(artifact.path, threads=2) as again:
        assert again.threads == 2
        assert again.manifest == artifact.manifest
        torch.testing.assert_close(again(TOKENS, ONES), artifact(TOKENS, ONES), rtol=0, atol=0)


def test_without_out_the_folder_goes_with_the_artifact(graph: Graph) -> None:
    artifact = build(graph)
    folder = artifact.path.parent
    assert folder.exists()
    assert artifact.threads == thread_count(None) >= 1
    del artifact
    assert not folder.exists()


def test_a_folder_that_is_not_empty_is_kept(graph: Graph, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    for force, message in [(False, "not empty and was kept"), (True, "holds other files")]:
        with pytest.raises(InputError, match=message):
            build(graph, out=tmp_path, force=force)
    with pytest.raises(InputError, match="is a file"):
        build(graph, out=tmp_path / "thesis.txt")
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_force_replaces_an_earlier_artifact(artifact: Artifact, graph: Graph) -> None:
    (artifact.path / "stale.bin").write_bytes(b"old")
    with pytest.raises(InputError, match="kept as it is"):
        build(graph, out=artifact.path)
    with build(graph, out=artifact.path, force=True) as again:
        assert {file.name for file in again.path.iterdir()} == set(again.files)


def test_what_fails_on_the_way_leaves_nothing(graph: Graph, tmp_path: Path) -> None:
    seen = []

    def refuse(artifact: Artifact) -> None:
        seen.append(artifact)
        artifact(TOKENS, ONES)
        raise UnsupportedError("no")

    for out in (tmp_path / "net", None):
        with pytest.raises(UnsupportedError, match="no"):
            build(graph, out=out, check=refuse)
    assert not list(tmp_path.iterdir())
    assert not any(artifact.path.exists() for artifact in seen)
    with pytest.raises(InputError, match="closed"):
        seen[0](TOKENS, ONES)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda graph: build(graph, "onnxruntim"), "unknown target 'onnxruntim'; did you mean 'onnxruntime'"),
        (
            lambda graph: build(graph, sparse_stroage=True),
            "has no option 'sparse_stroage'; did you mean 'sparse_storage'",
        ),
        (lambda graph: build(graph, threads=0), "threads: expected at least 1 and at most 512, got 0"),
    ],
)
def test_unknown_names_and_values_are_refused(graph: Graph, call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(graph)


def truncate(folder: Path) -> None:
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:-1])


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.onnx").write_bytes(content)


def edit(**change: Any) -> Any:
    def apply(folder: Path) -> None:
        manifest = json.loads((folder / MANIFEST).read_text())
        (folder / MANIFEST).write_text(json.dumps({**manifest, **change}))

    return apply


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (lambda folder: (folder / "model.onnx").unlink(), r"model.onnx: cannot be read: No such file"),
        (lambda folder: (folder / MANIFEST).unlink(), "not an artifact of Abridged: abridged.json is missing"),
        (truncate, r"model.onnx: has \d+ bytes, but was built with \d+"),
        (flip_a_bit, r"model.onnx: was altered since it was built"),
        (lambda folder: (folder / MANIFEST).write_text('{"format": 1,'), "abridged.json: damaged at JSON"),
        (lambda folder: (folder / MANIFEST).write_bytes(b"\xff\x00"), "abridged.json: damaged at JSON"),
        (edit(threads=3), "abridged.json: damaged at threads"),
        (edit(signature=None), "abridged.json: damaged at signature"),
        (edit(format=99), "artifact format 99, but this Abridged reads 1"),
        (edit(target="onnxruntme"), "abridged.json: was altered since it was built"),
        (edit(options={"sparse_storage": False}), "abridged.json: was altered since it was built"),
        (edit(files={"../../secret": {"bytes": 1, "sha256": ""}}), "outside the artifact"),
        (edit(files={"/etc/passwd": {"bytes": 1, "sha256": ""}}), "outside the artifact"),
    ],
)
def test_a_damaged_artifact_is_refused_in_one_line(artifact: Artifact, attack: Any, message: str) -> None:
    attack(artifact.path)
    with pytest.raises(InputError, match=message) as caught:
        load(artifact.path)
    assert "\n" not in str(caught.value)


def test_what_is_no_artifact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        load(tmp_path / "absent")


def test_a_signature_that_is_not_the_files_is_refused(artifact: Artifact) -> None:
    manifest = json.loads((artifact.path / MANIFEST).read_text())
    manifest["signature"]["inputs"][0]["name"] = "other"
    sealed = Manifest.model_validate(manifest).sealed()
    (artifact.path / MANIFEST).write_text(sealed.model_dump_json())
    with pytest.raises(InputError, match="has not the signature of"):
        load(artifact.path)


def test_listing_the_targets_imports_no_runtime() -> None:
    program = (
        "import sys; from abridged.targets import TARGETS; "
        "print([TARGETS.summary(name) for name in TARGETS]); "
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'openvino'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[1] == "[]"
    assert all(TARGETS.summary(name) for name in TARGETS)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_does_not_delete_its_parents_folder(graph: Graph) -> None:
    artifact = build(graph, "onnxruntime", threads=1)
    folder = artifact.path
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads that stay behind
        child = os.fork()
    if not child:
        del artifact
        os._exit(0)
    os.waitpid(child, 0)
    assert folder.exists()
    del artifact
    assert not folder.exists()
