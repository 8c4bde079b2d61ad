"""Ledgers to try the report on: a plausible one, a large one, and everything that can be missing or hostile."""

from __future__ import annotations

import math
from typing import Any

from abridged.ledger import Check, Curve, Ledger, Row
from abridged.measurement.records import Accuracy, Deviation, Environment, Latency, LayerTheory, Practice, Theory

HOSTILE = """<script>window.pwned=1</script>"><img src=x onerror=window.pwned=2>|`*_{{7*7}}\n# ü 模型 🦊"""

ENVIRONMENT = Environment(
    cpu="AMD EPYC 9B14",
    cores=2,
    threads=2,
    memory=8_323_000_000,
    platform="Linux-6.1-x86_64",
    python="3.12.4",
    versions={"abridged": "0.1.0", "torch": "2.13.0", "onnxruntime": "1.26.0", "numpy": "2.4.1"},
    date="2026-11-23T14:05:33+00:00",
)

LENET = (  # path, ops, output shape, parameters, MACs
    ("conv1", ("conv", "relu"), (1, 16, 8, 8), 160, 9_216),
    ("pool1", ("max_pool",), (1, 16, 4, 4), 0, 0),
    ("conv2", ("conv", "relu"), (1, 32, 4, 4), 4_640, 73_728),
    ("conv3", ("conv", "add", "relu"), (1, 32, 4, 4), 9_248, 147_456),
    ("", ("reshape",), (1, 512), 0, 0),
    ("fc1", ("linear", "relu"), (1, 64), 32_832, 32_768),
    ("fc2", ("linear",), (1, 10), 650, 640),
)


def accuracy(right: int, samples: int = 360, split: str = "test", metric: str = "accuracy") -> Accuracy:
    p, z = right / samples, 1.96
    centre, scale = p + z * z / (2 * samples), 1 + z * z / samples
    half = z * math.sqrt(p * (1 - p) / samples + (z / (2 * samples)) ** 2)
    low, high = (centre - half) / scale, (centre + half) / scale
    return Accuracy(metric=metric, value=p, low=low, high=high, samples=samples, split=split)


def theory(
    layers: tuple[tuple[str, tuple[str, ...], tuple[int, ...], int, int], ...],
    density: float = 1.0,
    milliseconds: float | None = None,
) -> Theory:
    """Counts of a network at a density; `milliseconds` is the time of a layer per million MACs."""
    counted = tuple(
        LayerTheory(
            path=path,
            ops=ops,
            shape=shape,
            parameters=parameters,
            nonzeros=round(parameters * density),
            macs=macs,
            effective_macs=round(macs * density),
            bytes_dense=4 * parameters,
            bytes_packed=min(4 * parameters, round(4 * parameters * density + parameters / 8)),
            milliseconds=None if milliseconds is None else 0.002 + milliseconds * macs / 1e6,
        )
        for path, ops, shape, parameters, macs in layers
    )
    fields = ("parameters", "nonzeros", "macs", "effective_macs", "bytes_dense", "bytes_packed")
    return Theory(
        **{field: sum(getattr(layer, field) for layer in counted) for field in fields}, batch=1, layers=counted
    )


def practice(target: str, size: int, ms: float, right: int, **more: Any) -> Practice:
    given = {
        "target": target,
        "bytes": size,
        "files": {"model.onnx": size - 900, "abridged.json": 900},
        "latency": Latency(median_ms=ms, p95_ms=1.31 * ms, spread=0.041, runs=412, threads=2),
        "throughput": 1000 / ms,
        "peak_memory": 21_400_000 + 40 * size,
        "load_ms": 12.7,
        "accuracy": accuracy(right),
        "deviation": Deviation(largest=4.77e-07, bound=3.1e-06),
    }
    return Practice(**given | more)


def curves(epochs: int, final: float, *, pruned: bool = False) -> tuple[Curve, ...]:
    times = [(epoch + 1) / epochs for epoch in range(epochs)]
    history = [
        Curve(name="loss", values=tuple(2.3 * math.exp(-4 * t) + 0.03 for t in times)),
        Curve(name="val accuracy", values=tuple(final * (1 - math.exp(-6 * t)) for t in times)),
    ]
    if pruned:
        history.append(Curve(name="density", values=tuple(0.1 + 0.9 * (1 - t) ** 3 for t in times)))
    return tuple(history)


def plausible(**changes: Any) -> Ledger:
    """The demo's ledger: two steps, a control, two targets, curves, a missed check."""
    dense_theory, sparse = theory(LENET, milliseconds=0.6), theory(LENET, 0.1, milliseconds=0.59)
    dense = Row(
        name="0-dense",
        kind="dense",
        title="Dense",
        seconds=24.3,
        theory=dense_theory,
        accuracy=accuracy(283, 287, "val"),
        test_accuracy=accuracy(356),
        practice=(
            practice("onnxruntime", 193_412, 0.0691, 356),
            practice("pytorch", 193_000, 0.2134, 356, deviation=None, peak_memory=None),
        ),
        curves=curves(20, 0.986),
    )
    prune = Row(
        name="1-prune",
        kind="step",
        title="Prune 90 % (magnitude, global, cubic)",
        options={"sparsity": 0.9, "criterion": "magnitude", "exclude": ["fc2"], "keep": None},
        seconds=31.2,
        theory=sparse,
        accuracy=accuracy(279, 287, "val"),
        test_accuracy=accuracy(352),
        practice=(practice("onnxruntime", 29_870, 0.0702, 352),),
        curves=curves(12, 0.97, pruned=True),
        notes=("3 of 3 convolutions, 2 of 2 linear layers pruned",),
    )
    distill = prune.model_copy(
        update={
            "name": "2-distill",
            "title": "Distil from the dense model",
            "options": {"temperature": 4.0, "alpha": 0.7},
            "test_accuracy": accuracy(355),
            "accuracy": accuracy(281, 287, "val"),
            "practice": (practice("onnxruntime", 29_870, 0.0688, 355),),
            "curves": curves(12, 0.98),
            "notes": (),
        }
    )
    control = dense.model_copy(
        update={
            "name": "control",
            "kind": "control",
            "title": "Dense, fine-tuned equally long",
            "seconds": 40.0,
            "test_accuracy": accuracy(357),
            "practice": (practice("onnxruntime", 193_412, 0.0694, 357),),
            "curves": curves(24, 0.989),
        }
    )
    ledger = Ledger(
        title="SmallCNN on digits",
        model="abridged.demo:network",
        data="digits",
        recipe={"name": "default", "steps": [{"prune": {"sparsity": 0.9}}, {"distill": {"temperature": 4.0}}]},
        seed=0,
        target="onnxruntime",
        artifact="artifact",
        rows=(dense, prune, distill, control),
        checks=(
            Check(name="accuracy drop", asked="at most 1.0 points", got="0.3 points", met=True),
            Check(name="latency ratio", asked="at most 0.5", got="0.996", met=False),
        ),
        warnings=("data has no test set: 20 % of it was held out, seeded",),
        environment=ENVIRONMENT,
    )
    return ledger.model_copy(update=changes)


def deep(layers: int = 520) -> Ledger:
    """As many layers as a ResNet-152 has."""
    listed = []
    for index in range(layers):
        width = 64 * 2 ** (4 * index // layers)
        kind = index % 3
        side = 56 >> (4 * index // layers)
        listed.append(
            (
                f"layer{1 + 4 * index // layers}.{index % 130 // 3}.{('conv', 'bn', 'relu')[kind]}{index}",
                (("conv",), ("batch_norm",), ("relu", "add"))[kind],
                (1, width, side, side),
                (width * width * 9, 2 * width, 0)[kind],
                (width * width * 9 * side * side, 0, 0)[kind],
            )
        )
    network = tuple(listed)
    dense = Row(
        name="0-dense",
        kind="dense",
        title="Dense",
        theory=theory(network),
        practice=(practice("openvino", 232_000_000, 95.2, 300),),
    )
    step = Row(
        name="1-prune",
        kind="step",
        title="Prune 80 %",
        theory=theory(network, 0.2),
        practice=(practice("openvino", 231_000_000, 97.9, 240),),
    )
    return plausible(
        title="ResNet-152 on ImageNet",
        model="torchvision:resnet152",
        target="openvino",
        rows=(dense, step),
        checks=(),
        warnings=(),
    )


def bare() -> Ledger:
    """Only a dense row that nothing measured, and nothing else that may be absent."""
    nothing = Theory(parameters=0, nonzeros=0, macs=0, effective_macs=0, bytes_dense=0, bytes_packed=0, batch=0)
    return plausible(
        rows=(Row(name="0-dense", kind="dense", title="", theory=nothing),),
        checks=(),
        warnings=(),
        recipe={},
        artifact=None,
    )


def emptied() -> Ledger:
    """A step that left no weight, and files and times of zero: every ratio of it is undefined."""
    still = Latency(median_ms=0.0, p95_ms=0.0, spread=0.0, runs=0, threads=1)
    nothing = Practice(target="onnxruntime", bytes=0, files={}, latency=still)
    full, none = theory(LENET), theory(LENET, 0.0)
    none = none.model_copy(update={"bytes_packed": 0})
    rows = (
        Row(name="0-dense", kind="dense", title="Dense", theory=full, practice=(nothing,)),
        Row(name="1-prune", kind="step", title="Prune 100 %", theory=none, practice=(nothing,)),
    )
    return plausible(rows=rows)


def failed() -> Ledger:
    """Everything missed: the gate, the budget, accuracy; numbers that are not numbers."""
    good = plausible()
    first, *steps, control = good.rows
    broken = practice(
        "onnxruntime",
        251_000,
        0.31,
        150,
        deviation=Deviation(largest=float("nan"), bound=3e-6, layer="conv3"),
        throughput=float("inf"),
    )
    last = steps[-1].model_copy(update={"practice": (broken,), "test_accuracy": None})
    nan = Curve(name="loss", values=(2.3, float("nan"), float("inf"), 1.0))
    first = first.model_copy(update={"curves": (*first.curves, nan, Curve(name="empty", values=()))})
    checks = tuple(
        check.model_copy(update={"met": False, "got": "57.2 points"} if "drop" in check.name else {})
        for check in good.checks
    )
    return good.model_copy(update={"rows": (first, *steps[:-1], last, control), "checks": checks})


def unmeasured() -> Ledger:
    """Theory alone: no practice, no accuracy, no curves."""
    rows = tuple(
        row.model_copy(update={"practice": (), "accuracy": None, "test_accuracy": None, "curves": ()})
        for row in plausible().rows
    )
    return plausible(rows=rows, artifact=None, checks=())


def regression() -> Ledger:
    """A metric that is no fraction, and a lower one is better."""

    def error(value: float) -> Accuracy:
        return Accuracy(metric="mse", value=value, low=0.9 * value, high=1.1 * value, samples=100, split="test")

    rows = tuple(
        row.model_copy(update={"practice": (), "accuracy": None, "test_accuracy": error(0.012 + 0.01 * index)})
        for index, row in enumerate(plausible().rows)
    )
    return plausible(rows=rows)


def hostile() -> Ledger:
    """Every text is an attack."""
    good = plausible()
    layers = tuple((f"{HOSTILE}.{path}", (HOSTILE,), shape, *counts) for path, _, shape, *counts in LENET)
    rows = tuple(
        row.model_copy(
            update={
                "title": HOSTILE,
                "notes": (HOSTILE,),
                "options": {HOSTILE: [HOSTILE]},
                "theory": theory(layers, 0.5),  # type: ignore[arg-type]
                "curves": (Curve(name=HOSTILE, values=(1.0, 2.0)),),
            }
        )
        for row in good.rows
    )
    environment = ENVIRONMENT.model_copy(update={"cpu": HOSTILE, "versions": {HOSTILE: HOSTILE}})
    texts = {"title": HOSTILE, "model": HOSTILE, "data": HOSTILE, "artifact": HOSTILE, "warnings": (HOSTILE,)}
    checks = (Check(name=HOSTILE, asked=HOSTILE, got=HOSTILE, met=False),)
    return good.model_copy(
        update={**texts, "rows": rows, "checks": checks, "environment": environment, "recipe": {HOSTILE: HOSTILE}}
    )


LEDGERS = {
    "plausible": plausible,
    "deep": deep,
    "bare": bare,
    "emptied": emptied,
    "failed": failed,
    "unmeasured": unmeasured,
    "regression": regression,
    "hostile": hostile,
}
