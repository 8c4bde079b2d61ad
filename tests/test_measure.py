"""Measure: both books of every contender, and the table that people read."""

import copy
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from abridged.data import Data
from abridged.errors import InputError
from abridged.graph.capture import capture
from abridged.measurement import table
from abridged.measurement.measure import Measurement, measure
from abridged.measurement.records import Accuracy, Contender, Deviation, Environment, Latency, Practice, Theory
from abridged.targets import build
from abridged.targets.artifact import Artifact

BATCH = 4
QUICK = {"seconds": 0.02, "fresh": False}


class Net(nn.Sequential):
    pass


def dense() -> Net:
    torch.manual_seed(0)
    return Net(nn.Linear(6, 200), nn.ReLU(), nn.Linear(200, 3)).eval()


def pruned() -> Net:
    model = dense()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter[torch.rand(parameter.shape) < 0.9] = 0
    return model


def classes() -> Data:
    x, y = torch.randn(30, 6), torch.arange(30) % 3
    return Data((x, y), (x, y), (x, y))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory):
    graph = capture(pruned(), torch.zeros(BATCH, 6))
    with build(graph, "onnxruntime", tmp_path_factory.mktemp("small") / "artifact", threads=1) as built:
        yield built


def test_both_books_of_every_contender(small: Artifact) -> None:
    source = pruned()
    book = measure(small, [dense(), "onnxruntime"], classes(), source=source, seconds=0.02)
    assert [each.name for each in book.contenders] == ["artifact", "Net", "Net on onnxruntime"]
    ours, module, deployed = book.contenders
    assert [each.practice.target for each in book.contenders] == ["onnxruntime", "pytorch", "onnxruntime"]
    assert None not in (ours.theory, module.theory, deployed.theory)
    assert ours.theory.nonzeros < 0.2 * ours.theory.parameters
    assert module.theory == deployed.theory
    for each in (ours, deployed):
        assert each.practice.deviation is not None
        assert each.practice.deviation.kept
        assert each.practice.load_ms is not None
    assert module.practice.deviation is None
    assert all(each.practice.accuracy.samples == 30 for each in book.contenders)
    assert book.environment.threads == ours.practice.latency.threads == small.threads
    assert Measurement.from_json(book.to_json()) == book
    assert "\n" not in book.to_json()

    assert book.speedup() == book.speedup("Net") == ours.practice.throughput / module.practice.throughput
    assert book.smaller("Net") == module.practice.bytes / ours.practice.bytes
    smaller, faster = book.promised("Net")
    assert smaller == module.theory.bytes_dense / ours.theory.bytes_packed
    assert faster == module.theory.macs / ours.theory.effective_macs > 5
    assert book.realised("Net") == (book.smaller("Net") / smaller, book.speedup("Net") / faster)

    text = str(book)
    assert all(name in text for name in ("artifact", "Net on onnxruntime", "realised", "95 % interval"))
    assert f"{ours.practice.latency.median_ms:.3f} ms" in text
    assert max(map(len, text.splitlines()[:-3])) <= 100


def test_the_source_is_recognized_among_the_contenders(small: Artifact) -> None:
    book = measure(small, [dense(), pruned()], **QUICK)
    assert [each.name for each in book.contenders] == ["artifact", "Net", "Net 2"]
    assert book["artifact"].theory == book["Net 2"].theory
    assert book["artifact"].practice.deviation.kept
    assert any(
        re.fullmatch(r"The artifact is another network than Net: outputs differ by \S+\.", n) for n in book.notes
    )


def test_what_is_not_known_is_not_claimed(small: Artifact) -> None:
    other = nn.Linear(6, 7)
    book = measure(small, [dense(), other], **QUICK)
    assert book["artifact"].theory is None
    assert book["artifact"].practice.deviation is None
    assert book.promised("Net") is None
    assert book.realised("Net") is None
    assert "The artifact has other outputs than Linear." in book.notes
    assert "realised" not in str(book)


def test_a_source_that_it_is_not_is_printed_as_missed(small: Artifact) -> None:
    book = measure(small, source=dense(), **QUICK)
    assert not book["artifact"].practice.deviation.kept
    assert "MISSED" in str(book)


def test_an_artifact_alone(small: Artifact) -> None:
    book = measure(small, example=torch.randn(BATCH, 6), **QUICK)
    assert len(book.contenders) == 1
    assert "faster" not in str(book)
    with pytest.raises(InputError, match="nothing to compare with"):
        book.speedup()
    with pytest.raises(InputError, match="no contender 'artifict'; did you mean 'artifact'"):
        book["artifict"]


def test_artifacts_get_the_same_threads_and_a_name(small: Artifact, tmp_path: Path) -> None:
    graph = capture(dense(), torch.zeros(BATCH, 6))
    with build(graph, "onnxruntime", tmp_path / "dense", threads=2) as other:
        book = measure(small, [other], **QUICK)
        assert [each.name for each in book.contenders] == ["artifact", "dense"]
        assert {each.practice.latency.threads for each in book.contenders} == {small.threads}
        book = measure(other, [small], threads=1, **QUICK)
        assert [each.name for each in book.contenders] == ["artifact", small.path.parent.name]
        assert {each.practice.latency.threads for each in book.contenders} == {1}
        assert other.random_inputs() is not None
        other(*other.random_inputs())  # still open


@pytest.mark.parametrize(
    ("against", "message"),
    [
        (["onnxruntime"], "against 'onnxruntime': also give the module"),
        (["onnxrt"], "unknown target 'onnxrt'; did you mean 'onnxruntime'"),
        ([3], "against: expected a module, an artifact or a target's name, got int"),
    ],
)
def test_what_cannot_be_measured(small: Artifact, against: list, message: str) -> None:
    with pytest.raises(InputError, match=message):
        measure(small, against)


def test_what_is_no_measurement() -> None:
    with pytest.raises(InputError, match="not a measurement of Abridged"):
        Measurement.from_json("{}")


HERE = Environment(
    cpu="Fast", cores=2, threads=1, memory=1, platform="Linux", python="3", versions={"torch": "2"}, date="2026-01-01"
)


def told(name: str, ms: float | None, spread: float = 0.01, **more: object) -> Contender:
    latency = ms and Latency(median_ms=ms, p95_ms=2 * ms, spread=spread, runs=20, threads=1)
    practice = Practice(
        target="x", bytes=1000, files={"f": 1000}, latency=latency or None, throughput=ms and 1000 / ms, **more
    )
    return Contender(name=name, practice=practice)


def book_of(*contenders: Contender) -> Measurement:
    return Measurement(contenders=contenders, environment=HERE, seconds=1.0)


def row(book: Measurement, label: str) -> list[str]:
    line = next(line for line in str(book).splitlines() if line.strip().startswith(label))
    return re.split(r"\s{2,}", line.strip())[1:]


def test_a_slower_artifact_reads_slower() -> None:
    book = book_of(told("a", 10.0), told("b", 5.0))
    assert book.speedup("b") == 0.5
    assert row(book, "artifact is faster by") == ["–", "0.5×"]
    assert row(book, "latency, median") == ["10.0 ms", "5.000 ms"]


def test_a_difference_within_the_spread_is_called_noise() -> None:
    book = book_of(told("a", 1.0, spread=0.3), told("b", 1.2))
    assert row(book, "artifact is faster by") == ["–", "1.20× (noise)"]


def test_a_missing_time_is_not_invented() -> None:
    book = book_of(told("a", 1.0), told("b", None))
    assert row(book, "latency, median") == ["1.000 ms", "–"]
    assert "faster" not in str(book)
    with pytest.raises(InputError, match="'b' has no latency"):
        book.speedup("b")


def test_the_machine_stands_below() -> None:
    assert str(book_of(told("a", 1.0))).endswith("Fast, 2 cores, threads: 1, Linux; torch 2")


def test_metrics_and_deviations() -> None:
    error = Accuracy(metric="mse", value=0.12345, low=0.1, high=0.2, samples=1000, split="val")
    book = book_of(told("a", 1.0, accuracy=error, deviation=Deviation(largest=1.0, bound=0.5), peak_memory=5_000_000))
    assert row(book, "metric") == ["mse 0.1235"] or row(book, "metric") == ["mse 0.1234"]
    assert row(book, "95 % interval") == ["0.1 to 0.2"]
    assert row(book, "held-out samples") == ["1,000 val"]
    assert row(book, "· allowed") == ["5.0e-01 MISSED"]
    assert row(book, "peak memory") == ["5 MB"]
    assert table.milliseconds(12345.6) == "12,345.6 ms"


def test_nothing_is_promised_of_a_network_without_macs() -> None:
    counts = dict.fromkeys(("parameters", "nonzeros", "macs", "effective_macs", "bytes_dense", "bytes_packed"), 0)
    empty = Theory(batch=1, **counts)
    pair = [each.model_copy(update={"theory": empty}) for each in (told("a", 1.0), told("b", 1.0))]
    assert book_of(*pair).promised("b") is None


def test_noise_is_said(small: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    from abridged.measurement import measure as module

    monkeypatch.setattr(
        module, "practice", lambda runs, *_, **__: {name: told(name, 1.0, 0.5).practice for name in runs}
    )
    book = measure(small)
    assert "The machine was noisy: spread above 20% for artifact." in book.notes
    assert str(book).splitlines()[-1] in book.notes


def test_the_users_modules_stay_as_they_are(small: Artifact) -> None:
    model = dense().train()
    before = copy.deepcopy(model.state_dict())
    measure(small, [model], classes(), **QUICK)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
