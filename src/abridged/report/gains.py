"""What was gained: theory against practice for size and speed, and what it cost in accuracy."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from abridged.ledger import Ledger, Row
from abridged.measurement.records import Accuracy, Practice
from abridged.report.cells import Cell, derived, divide, number, times

# Runtimes that execute the same arithmetic whatever the weights are: a zero costs them as much as any number.
DENSE_RUNTIMES = frozenset({"onnxruntime", "openvino", "pytorch"})

LOWER_IS_BETTER = frozenset({"loss", "error", "mse", "mae", "rmse", "perplexity"})


def practice_of(row: Row | None, target: str) -> Practice | None:
    return next((each for each in row.practice if each.target == target), None) if row else None


def median_of(practice: Practice | None) -> float | None:
    return practice.latency.median_ms if practice and practice.latency else None


@dataclass(frozen=True, slots=True)
class Gain:
    """One promise and what became of it. Bars are widths in percent."""

    name: str  # "size" | "speed"
    headline: Cell  # practice as a person says it …
    word: str  # … "smaller", "larger", "as fast"
    theory: Cell
    practice: Cell
    realised: Cell
    before: Cell
    after: Cell
    theory_bar: float
    practice_bar: float
    realised_bar: float
    noisy: bool  # the practice ratio is within the spread of its own runs


def _bar(value: float | None, full: float | None) -> float:
    share = divide(value, full)
    return 0.0 if share is None else round(100 * min(1.0, max(0.0, share)), 2)


def _gain(
    name: str,
    word: str,
    theory: float | None,
    known: tuple[float | None, ...],
    before: Cell,
    after: Cell,
    noisy: bool = False,
) -> Gain:
    practice = divide(before.value, after.value)
    realised = divide(practice, theory)
    full = max((each for each in (theory, practice) if each is not None), default=None)
    shown = derived(f"gain.{name}.practice", practice, "ratio", before.value, after.value)
    text, word = times(practice, word) if practice is not None else (shown.text, "")
    return Gain(
        name=name,
        headline=replace(shown, text=text),
        word=word,
        theory=derived(f"gain.{name}.theory", theory, "ratio", *known),
        practice=shown,
        realised=derived(f"gain.{name}.realised", realised, "realised", *known, before.value, after.value),
        before=before,
        after=after,
        theory_bar=_bar(theory, full),
        practice_bar=_bar(practice, full),
        realised_bar=_bar(realised, 1.0),
        noisy=noisy,
    )


def size_gain(ledger: Ledger) -> Gain:
    """Theory: dense bytes / packed bytes. Practice: bytes of the files the target needs, dense / compressed."""
    dense, final, target = ledger.dense, ledger.final, ledger.target
    known = (dense.theory.bytes_dense if dense else None, final.theory.bytes_packed if final else None)
    files = [practice_of(row, target) for row in (dense, final)]
    before, after = (
        number(f"{name}.practice.{target}.bytes", each.bytes if each else None, "bytes")
        for name, each in zip(("dense", "final"), files, strict=True)
    )
    return _gain("size", "smaller", divide(*known), known, before, after)


def macs_per_sample(row: Row | None, *, effective: bool) -> float | None:
    if row is None:
        return None
    return divide(row.theory.effective_macs if effective else row.theory.macs, row.theory.batch)


def speed_gain(ledger: Ledger) -> Gain:
    """Theory: dense MACs / effective MACs, per sample. Practice: median latencies of one interleaved run."""
    dense, final, target = ledger.dense, ledger.final, ledger.target
    known = (macs_per_sample(dense, effective=False), macs_per_sample(final, effective=True))
    timed = [practice_of(row, target) for row in (dense, final)]
    before, after = (
        number(f"{name}.practice.{target}.latency.median_ms", median_of(each), "ms")
        for name, each in zip(("dense", "final"), timed, strict=True)
    )
    ratio = divide(before.value, after.value)
    spread = max((each.latency.spread for each in timed if each and each.latency), default=0.0)
    return _gain(
        "speed", "as fast", divide(*known), known, before, after, ratio is not None and abs(ratio - 1) <= spread
    )


def is_fraction(metric: str) -> bool:
    """Whether a metric is a share of right answers, shown in percent and compared in points."""
    return "accuracy" in metric.lower() or metric.lower().startswith("top")


def accuracy_cell(key: str, accuracy: Accuracy | None) -> Cell:
    """The value with its 95 % interval below it."""
    if accuracy is None:
        return number(key, None, "percent")
    cell = number(f"{key}.value", accuracy.value, "percent" if is_fraction(accuracy.metric) else "plain")
    return cell.noting(interval_text(accuracy)) if cell.value is not None else cell


def interval_text(accuracy: Accuracy) -> str:
    if not (math.isfinite(accuracy.low) and math.isfinite(accuracy.high)):
        return "no interval"
    if is_fraction(accuracy.metric):
        return f"{100 * accuracy.low:.1f}–{100 * accuracy.high:.1f} %"
    unit = number("", accuracy.low, "plain"), number("", accuracy.high, "plain")
    return f"{unit[0].text} to {unit[1].text}"


@dataclass(frozen=True, slots=True)
class Interval:
    """One line of the accuracy chart: positions in percent of its axis."""

    label: str
    cell: Cell
    left: float
    width: float
    dot: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Accuracy before and after, both on the same held-out samples in the same place."""

    basis: str  # "test split, 360 samples, in onnxruntime"
    metric: str
    samples: int
    before: Cell
    after: Cell
    control: Cell
    change: Cell  # after − before
    margin: str  # the interval of the change, in words
    within_noise: bool | None  # None: nothing to compare
    direction: str  # "loss" | "gain" | "change", where the metric's better side is unknown
    intervals: tuple[Interval, ...]


class _Basis(NamedTuple):
    key: str
    place: str


def _accuracy_at(row: Row | None, basis: _Basis) -> Accuracy | None:
    if row is None:
        return None
    if basis.key.startswith("practice."):
        practice = practice_of(row, basis.key.split(".")[1])
        return practice.accuracy if practice else None
    accuracy: Accuracy | None = getattr(row, basis.key)
    return accuracy


def _comparable(one: Accuracy | None, other: Accuracy | None) -> bool:
    if one is None or other is None:
        return False
    return (one.metric, one.split, one.samples) == (other.metric, other.split, other.samples)


def _bases(target: str) -> tuple[_Basis, ...]:
    """Where accuracy may have been taken, the most convincing first: in the runtime, held out, then selected on."""
    return (
        _Basis(f"practice.{target}.accuracy", f"in {target}"),
        _Basis("test_accuracy", "in PyTorch"),
        _Basis("accuracy", "in PyTorch"),
    )


def difference_interval(before: Accuracy, after: Accuracy) -> tuple[float, float]:
    """95 % interval of after − before from the two intervals (Newcombe, 1998, method 10).

    It takes the two samples as independent. They are the same samples here, so the true interval is narrower.

    >>> one = Accuracy(metric="accuracy", value=0.9, low=0.8, high=0.95, samples=50, split="test")
    >>> [round(bound, 3) for bound in difference_interval(one, one)]
    [-0.112, 0.112]
    """
    change = after.value - before.value
    low = change - math.hypot(after.value - after.low, before.high - before.value)
    high = change + math.hypot(after.high - after.value, before.value - before.low)
    return low, high


def _intervals(taken: list[tuple[str, str, Accuracy]]) -> tuple[Interval, ...]:
    shown = [each for each in taken if all(map(math.isfinite, (each[2].low, each[2].value, each[2].high)))]
    low = min((each.low for _, _, each in shown), default=0.0)
    span = max((each.high for _, _, each in shown), default=0.0) - low
    low, span = low - 0.08 * span, 1.16 * span

    def place(value: float) -> float:
        return round(100 * (divide(value - low, span) or 0.0), 2)

    return tuple(
        Interval(
            label, accuracy_cell(key, each), place(each.low), place(each.high) - place(each.low), place(each.value)
        )
        for label, key, each in shown
    )


def compare(ledger: Ledger) -> Comparison:
    """Accuracy of the dense and the compressed model on the first basis that both have."""
    dense, final, control = ledger.dense, ledger.final, control_of(ledger)
    bases = _bases(ledger.target)
    pairs = [(basis, _accuracy_at(dense, basis), _accuracy_at(final, basis)) for basis in bases]
    both = [pair for pair in pairs if _comparable(pair[1], pair[2])]
    basis, before, after = (both or [pair for pair in pairs if pair[1] or pair[2]] or pairs)[0]
    fair = _accuracy_at(control, basis)
    fair = fair if _comparable(fair, before or after) else None

    known = after or before
    change, margin, within, direction = (
        _change(before, after) if both and before and after else (None, "", None, "change")
    )
    unit = "points" if known and is_fraction(known.metric) else "change"
    taken = [("dense", before), ("control", fair), ("compressed", after)]
    keys = {"dense": "dense", "control": control.name if control else "control", "compressed": "final"}
    return Comparison(
        basis=f"{known.split} split, {known.samples:,} samples, {basis.place}" if known else "",
        metric=known.metric if known else "accuracy",
        samples=known.samples if known else 0,
        before=accuracy_cell(f"dense.{basis.key}", before),
        after=accuracy_cell(f"final.{basis.key}", after),
        control=accuracy_cell(f"{keys['control']}.{basis.key}", fair),
        change=number("gain.accuracy.change", change, unit),
        margin=margin,
        within_noise=within,
        direction=direction,
        intervals=_intervals([(label, f"{keys[label]}.{basis.key}", each) for label, each in taken if each]),
    )


def _change(before: Accuracy, after: Accuracy) -> tuple[float | None, str, bool | None, str]:
    low, high = difference_interval(before, after)
    if not (math.isfinite(low) and math.isfinite(high)):
        return None, "", None, "change"
    unit = "points" if is_fraction(after.metric) else "change"
    margin = " to ".join(number("", bound, unit).text.removesuffix(" points") for bound in (low, high))
    change = after.value - before.value
    return change, margin + (" points" if unit == "points" else ""), low <= 0 <= high, _direction(after.metric, change)


def _direction(metric: str, change: float) -> str:
    if is_fraction(metric):
        return "loss" if change < 0 else "gain"
    if metric.lower() in LOWER_IS_BETTER:
        return "loss" if change > 0 else "gain"
    return "change"


def control_of(ledger: Ledger) -> Row | None:
    return next((row for row in ledger.rows if row.kind == "control"), None)
