"""A Measurement as a table for people: one column for each contender, one line for each thing measured."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from abridged.measurement.records import Accuracy, Contender, Environment, Practice

if TYPE_CHECKING:
    from abridged.measurement.measure import Measurement

NONE = "–"  # not measured, or not known

T = TypeVar("T")
Cell = Callable[[Practice], str | None]


def render(book: Measurement) -> str:
    """The table, the machine, and the notes, as plain text."""
    table = Table(box=SIMPLE_HEAD, title="Theory and practice", title_justify="left")
    table.add_column("")
    for contender in book.contenders:
        table.add_column(contender.name, justify="right")
    for label, cell in PRACTICE.items():
        _add(table, label, [cell(contender.practice) for contender in book.contenders])
    if len(book.contenders) > 1:
        table.add_section()
        for label, compare in COMPARED.items():
            _add(table, label, [None, *(compare(book, contender) for contender in book.contenders[1:])])
    out = io.StringIO()
    width = 28 + 26 * len(book.contenders)
    Console(file=out, width=width, color_system=None, highlight=False, markup=False).print(table)
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    return "\n".join([*filter(None, lines), machine(book.environment), *book.notes])


def _add(table: Table, label: str, cells: list[str | None]) -> None:
    if any(cells):
        table.add_row(label, *(cell or NONE for cell in cells))


def machine(environment: Environment) -> str:
    """One line about where the numbers were taken."""
    versions = ", ".join(f"{name} {version}" for name, version in environment.versions.items())
    return f"{environment.cpu}, {environment.cores} cores, threads: {environment.threads}, {environment.platform}; {versions}"


def size(count: float) -> str:
    """
    >>> size(999), size(66700), size(12_345_678), size(2e10)
    ('999 B', '66.7 kB', '12.3 MB', '20 GB')
    """
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def number(value: float) -> str:
    """Three digits, or every digit before the point.

    >>> number(0.0421), number(6.8), number(41.25), number(24280.3)
    ('0.042', '6.80', '41.2', '24,280')
    """
    return (
        f"{value:.2g}"
        if value < 1
        else f"{value:.2f}"
        if value < 10
        else f"{value:.1f}"
        if value < 100
        else f"{value:,.0f}"
    )


def milliseconds(ms: float) -> str:
    return f"{ms:.3f} ms" if ms < 10 else f"{ms:,.1f} ms"


def _percent(accuracy: Accuracy) -> bool:
    return "accuracy" in accuracy.metric or accuracy.metric.startswith("top")


def score(accuracy: Accuracy) -> str:
    return f"{accuracy.metric} " + (f"{accuracy.value:.2%}" if _percent(accuracy) else f"{accuracy.value:.4g}")


def interval(accuracy: Accuracy) -> str:
    form = "{:.1%} to {:.1%}" if _percent(accuracy) else "{:.4g} to {:.4g}"
    return form.format(accuracy.low, accuracy.high)


def _row(get: Callable[[Practice], T | None], show: Callable[[T], str]) -> Cell:
    """The cell of a value that may not have been measured."""

    def cell(practice: Practice) -> str | None:
        value = get(practice)
        return None if value is None else show(value)

    return cell


PRACTICE: dict[str, Cell] = {
    "runtime": lambda p: p.target,
    "files": lambda p: size(p.bytes),
    "latency, median": _row(lambda p: p.latency, lambda latency: milliseconds(latency.median_ms)),
    "latency, p95": _row(lambda p: p.latency, lambda latency: milliseconds(latency.p95_ms)),
    "spread (IQR / median)": _row(lambda p: p.latency, lambda latency: f"{latency.spread:.0%}"),
    "runs": _row(lambda p: p.latency, lambda latency: str(latency.runs)),
    "samples per second": _row(lambda p: p.throughput, number),
    "peak memory": _row(lambda p: p.peak_memory, size),
    "load": _row(lambda p: p.load_ms, milliseconds),
    "metric": _row(lambda p: p.accuracy, score),
    "95 % interval": _row(lambda p: p.accuracy, interval),
    "held-out samples": _row(lambda p: p.accuracy, lambda accuracy: f"{accuracy.samples:,} {accuracy.split}"),
    "deviation from PyTorch": _row(lambda p: p.deviation, lambda d: f"{d.largest:.1e}"),
    "· allowed": _row(lambda p: p.deviation, lambda d: f"{d.bound:.1e}" + ("" if d.kept else " MISSED")),
}


def _faster(book: Measurement, other: Contender) -> str | None:
    if not (other.practice.throughput and book.contenders[0].practice.throughput):
        return None
    ratio = book.speedup(other.name)
    spreads = [c.practice.latency.spread for c in (book.contenders[0], other) if c.practice.latency]
    return f"{number(ratio)}×" + (" (noise)" if abs(ratio - 1) <= max(spreads, default=0.0) else "")


def _promised(index: int) -> Callable[[Measurement, Contender], str | None]:
    def cell(book: Measurement, other: Contender) -> str | None:
        promise = book.promised(other.name)
        return promise and f"{number(promise[index])}×"

    return cell


def _realised(index: int) -> Callable[[Measurement, Contender], str | None]:
    def cell(book: Measurement, other: Contender) -> str | None:
        realised = book.realised(other.name)
        return realised and f"{realised[index]:.2f}"

    return cell


# What the first contender gains over each other one.
COMPARED: dict[str, Callable[[Measurement, Contender], str | None]] = {
    "artifact is smaller by": lambda book, other: f"{number(book.smaller(other.name))}×",
    "· in theory, size": _promised(0),
    "· realised, size": _realised(0),
    "artifact is faster by": _faster,
    "· in theory, speed": _promised(1),
    "· realised, speed": _realised(1),
}
