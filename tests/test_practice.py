"""Practice: real artifacts beside PyTorch; every number is measured, on the same inputs, with the same threads."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from abridged.data import Data
from abridged.errors import GateError, InputError
from abridged.graph.capture import capture
from abridged.measurement import fresh
from abridged.measurement import practice as module
from abridged.measurement.fresh import Fresh, measure_fresh, observe
from abridged.measurement.practice import call_of, common_threads, files_of, inputs_of, practice, torch_threads
from abridged.measurement.records import Deviation, Practice
from abridged.targets import build, load
from abridged.targets.artifact import Artifact

BATCH = 4


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.9), nn.Linear(32, 3)).eval()


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory):
    graph = capture(net(), torch.zeros(BATCH, 6))
    with build(graph, "onnxruntime", tmp_path_factory.mktemp("practice") / "net", threads=1) as built:
        yield built


def classes() -> Data:
    x, y = torch.randn(30, 6), torch.arange(30) % 3
    return Data((x, y), (x, y), (x, y))


def test_everything_of_an_artifact_and_a_module(artifact: Artifact) -> None:
    model = net().train()
    kept = Deviation(largest=0.0, bound=1.0)
    threads = torch.get_num_threads()
    found = practice(
        {"fast": artifact, "pytorch": model}, classes(), seconds=0.05, min_runs=7, deviations={"fast": kept}
    )
    assert list(found) == ["fast", "pytorch"]
    assert all(submodule.training for submodule in model.modules()), "modes are put back"
    assert torch.get_num_threads() == threads
    fast, slow = found["fast"], found["pytorch"]
    for each in (fast, slow):
        assert each.latency is not None
        assert 0 < each.latency.median_ms <= each.latency.p95_ms
        assert each.latency.runs >= 7
        assert each.latency.threads == 1
        assert each.throughput == pytest.approx(BATCH / each.latency.median_ms * 1000)
        assert each.accuracy is not None
        assert (each.accuracy.samples, each.accuracy.split) == (30, "test")
        assert each.bytes == sum(each.files.values())
        assert Practice.model_validate_json(each.model_dump_json()) == each
    assert fast.latency.runs == slow.latency.runs
    assert (fast.target, slow.target) == ("onnxruntime", "pytorch")
    assert fast.accuracy == slow.accuracy, "the same answers on the same samples"
    assert fast.files == {path.name: path.stat().st_size for path in artifact.path.iterdir()}
    assert (fast.deviation, slow.deviation) == (kept, None)
    assert fast.load_ms is not None
    assert fast.load_ms > 0
    assert (slow.load_ms, slow.peak_memory) == (None, None), "a module in this process has neither"


def test_without_data_and_fresh_processes(artifact: Artifact) -> None:
    (found,) = practice({"alone": artifact}, seconds=0, min_runs=3, fresh=False).values()
    assert (found.accuracy, found.load_ms, found.peak_memory) == (None, None, None)
    assert found.latency is not None
    assert found.latency.runs == 3


def test_contenders_take_turns_with_a_pause(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def spy(calls, **options):
        asked.update(options)
        options["progress"](0.0)
        options["progress"](0.255)
        options["progress"](0.2551)
        return time_interleaved(calls, seconds=0, min_runs=1)

    time_interleaved = module.time_interleaved
    monkeypatch.setattr(module, "time_interleaved", spy)
    practice({"a": artifact, "b": net()}, seconds=3.0, fresh=False)
    assert (asked["seconds"], asked["repeat"], asked["pause"]) == (6.0, module.REPEAT, module.PAUSE)
    practice({"a": artifact}, seconds=3.0, fresh=False)
    assert (asked["seconds"], asked["repeat"], asked["pause"]) == (3.0, 1, 0.0)


def test_a_call_of_no_measurable_time_has_no_throughput(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "time_interleaved", lambda calls, **_: {name: module.Samples((0.0,)) for name in calls})
    assert practice({"a": artifact}, fresh=False)["a"].throughput is None


def test_a_larger_network_takes_more_memory(artifact: Artifact) -> None:
    graph = capture(nn.Sequential(nn.Linear(6, 2000), nn.ReLU(), nn.Linear(2000, 2000)), torch.zeros(1, 6))
    with build(graph, threads=1) as large:
        found = [measure_fresh(each).peak_memory for each in (artifact, large)]
    if None in found:
        pytest.skip("this system does not say how much memory a process took")
    assert found[1] - found[0] > 0.8 * 16e6, found
    assert found[0] < 100e6


def test_observing_in_this_process(artifact: Artifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = observe(artifact.path, 1)
    assert found.load_ms > 0
    monkeypatch.setattr(fresh, "Path", lambda name: tmp_path / "absent" / "clear_refs")
    assert observe(artifact.path, 1).peak_memory is None


def test_an_artifact_that_does_not_load_says_so_in_one_line(
    tmp_path: Path, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifact, "path", tmp_path)
    with pytest.raises(GateError, match=r"does not run in a fresh process: .*not an artifact") as error:
        measure_fresh(artifact)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (subprocess.CalledProcessError(-9, "", "", ""), "exit status -9"),
        (subprocess.TimeoutExpired("", 1), "did not load and run within"),
    ],
)
def test_a_process_that_dies(artifact: Artifact, monkeypatch: pytest.MonkeyPatch, failure, message: str) -> None:
    def run(*args: object, **options: object) -> None:
        raise failure

    monkeypatch.setattr(fresh.subprocess, "run", run)
    with pytest.raises(GateError, match=message):
        measure_fresh(artifact)


def test_the_child_finds_this_package_first(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    def run(command, env, **options):
        seen.update(env, command=command)
        return subprocess.CompletedProcess(
            command, 0, "noise\n" + json.dumps({"load_ms": 1.5, "peak_memory": 7}) + "\n"
        )

    monkeypatch.setattr(fresh.subprocess, "run", run)
    for before in (None, "elsewhere"):
        monkeypatch.delenv("PYTHONPATH", raising=False)
        if before:
            monkeypatch.setenv("PYTHONPATH", before)
        assert measure_fresh(artifact) == Fresh(load_ms=1.5, peak_memory=7)
        first, *rest = seen["PYTHONPATH"].split(":")
        assert (Path(first) / "abridged" / "__init__.py").exists()
        assert rest == ([before] if before else [])
    assert seen["command"][-2:] == [str(artifact.path), "1"]


def test_bytes_of_a_module_are_those_of_its_file(tmp_path: Path) -> None:
    model = net()
    safetensors.torch.save_file(model.state_dict(), tmp_path / "net.safetensors")
    assert files_of(model) == {"weights.safetensors": (tmp_path / "net.safetensors").stat().st_size}


def test_shared_weights_are_stored_once_and_hidden_buffers_never() -> None:
    tied = nn.Sequential(nn.Linear(100, 100, bias=False), nn.Linear(100, 100, bias=False))
    tied[1].weight = tied[0].weight
    tied.register_buffer("table", torch.zeros(10_000), persistent=False)
    assert 40_000 < files_of(tied)["weights.safetensors"] < 40_500


def test_threads_are_equal_or_refused(artifact: Artifact) -> None:
    assert common_threads({"a": artifact, "b": net()}, None) == 1
    assert common_threads({"b": net()}, 2) == 2
    assert common_threads({"b": net()}, None) >= 1
    with pytest.raises(InputError, match="'a' was loaded with 1 threads, to be compared with 2"):
        common_threads({"a": artifact}, 2)
    with load(artifact.path, threads=2) as other, pytest.raises(InputError, match="'b' was loaded with 2 threads"):
        practice({"a": artifact, "b": other})
    with torch_threads(2):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 1


def test_a_module_elsewhere_is_refused(artifact: Artifact) -> None:
    with pytest.raises(InputError, match=r"Sequential is on meta: .*model\.cpu"):
        practice({"a": artifact, "b": net().to("meta")}, fresh=False)


def test_everyone_gets_the_same_inputs_in_their_own_form(artifact: Artifact) -> None:
    x = torch.randn(BATCH, 6)
    contenders = {"a": artifact, "b": net()}
    for example in (x, (x,), x.numpy(), (x.numpy(),)):
        found = inputs_of(contenders, example, None)
        assert isinstance(found["a"][0], np.ndarray)
        assert isinstance(found["b"][0], Tensor)
        assert np.array_equal(found["a"][0], x.numpy())
        assert torch.equal(found["b"][0], x)
    drawn = inputs_of(contenders, None, None)
    assert torch.equal(torch.from_numpy(drawn["a"][0]), drawn["b"][0])
    data = classes()
    from_data = inputs_of(contenders, None, data)
    assert torch.equal(from_data["b"][0], data.val.x[:BATCH])
    assert torch.equal(inputs_of({"b": net()}, None, data)["b"][0], data.val.x[:1])
    assert torch.equal(inputs_of({"b": net()}, x, data)["b"][0], x)


def test_an_artifact_of_another_batch_gets_its_own_inputs(artifact: Artifact) -> None:
    with build(capture(net(), torch.zeros(2, 6)), threads=1) as other:
        found = inputs_of({"a": artifact, "b": other}, torch.randn(BATCH, 6), None)
        assert (found["a"][0].shape, found["b"][0].shape) == ((BATCH, 6), (2, 6))
        result = practice({"a": artifact, "b": other}, seconds=0, min_runs=2, fresh=False)["b"]
        assert result.throughput == pytest.approx(2 / result.latency.median_ms * 1000)


def test_inputs_that_cannot_be(artifact: Artifact) -> None:
    with pytest.raises(InputError, match="give example or data"):
        practice({"pytorch": net()})
    with pytest.raises(InputError, match=r"example: does not fit net, which takes \(.*float32\[4, 6\]"):
        call_of(artifact, torch.zeros(BATCH, 7))
    with pytest.raises(InputError, match="example: does not fit"):
        call_of(artifact, torch.zeros(BATCH, 6, dtype=torch.float64))
    small = Data((torch.zeros(2, 6), None), (torch.zeros(2, 6), None), (torch.zeros(2, 6), None))
    assert call_of(artifact, None, small)[0].shape == (BATCH, 6), "two samples are no batch of four"


class Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.answer = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.answer.sum()


def test_a_network_of_one_number_is_one_sample() -> None:
    with build(capture(Constant(), torch.tensor(1.0)), threads=1) as artifact:
        found = practice({"a": artifact}, seconds=0, min_runs=1, fresh=False)["a"]
        assert found.throughput == pytest.approx(1 / found.latency.median_ms * 1000)
