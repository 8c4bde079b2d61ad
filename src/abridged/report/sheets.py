"""The tables of the report, as data: every format renders the same cells."""

from __future__ import annotations

from collections.abc import Iterator

from abridged.ledger import Ledger, Row
from abridged.measurement.records import Device, LayerTheory, Practice
from abridged.report.cells import (
    Cell,
    Column,
    Line,
    Sheet,
    derived,
    divide,
    number,
    percent_text,
    points_text,
    sentence,
    times_text,
    words,
)
from abridged.report.gains import (
    Comparison,
    Gain,
    accuracy_cell,
    control_of,
    interval_text,
    is_fraction,
    median_of,
    practice_of,
)

CONTROL_NOTE = "the fair control"
ABSENT = Cell("–", tone="muted")


def _times(before: float | None, after: float | None, word: str) -> str:
    return times_text(divide(before, after), word)


def _noted(cell: Cell, note: str) -> Cell:
    return cell.noting(note) if cell.value is not None else cell


def _title(row: Row) -> Cell:
    name = row.name if row.title and row.title != row.name else ""
    notes = (name, CONTROL_NOTE if row.kind == "control" else "")
    return words(row.title or row.name, note=" · ".join(filter(None, notes)))


def _accuracy(row: Row, dense: Row | None, field: str) -> Cell:
    accuracy, start = getattr(row, field), getattr(dense, field) if dense else None
    cell = accuracy_cell(f"{row.name}.{field}", accuracy)
    if cell.value is None or start is None or row is dense or not is_fraction(accuracy.metric):
        return cell
    return cell.noting(f"{interval_text(accuracy)}\n{points_text(accuracy.value - start.value)}")


def steps(ledger: Ledger) -> Sheet:
    """Step by step: what each promised, what it delivered on the target, and the change against dense."""
    target = ledger.target
    return Sheet(
        name="steps",
        caption=f"Theory, and practice on {target}",
        columns=(
            Column("Step", numeric=False),
            Column("Test acc.", hint="accuracy, held out, never selected on; with its 95 % interval"),
            Column("Val. acc.", hint="accuracy on the split that steps may select on"),
            Column("Non-zeros", hint="weights that are not zero"),
            Column("MACs", hint="multiply-accumulates with every weight, zero or not"),
            Column("Effective MACs", hint="MACs left when zero weights are skipped"),
            Column("Packed", hint="theory: bytes of the weights as Abridged packs them"),
            Column("Files", hint=f"practice: bytes of every file that {target} needs"),
            Column("Median", hint=f"latency of one call on {target}"),
            Column("p95", hint="95th percentile of the latency"),
            Column("Took", hint="time spent on the step itself"),
        ),
        lines=tuple(Line(_step(row, ledger.dense, target), row.kind) for row in ledger.rows),
        empty="The ledger holds no step.",
    )


def _step(row: Row, dense: Row | None, target: str) -> tuple[Cell, ...]:
    theory, practice = row.theory, practice_of(row, target)
    before, start = dense.theory if dense else None, practice_of(dense, target)
    step = row is not dense
    at, there = f"{row.name}.theory", f"{row.name}.practice.{target}"
    left = divide(theory.nonzeros, before.parameters) if before else None
    median, files = median_of(practice), practice.bytes if practice else None
    fewer = _times(before.macs, theory.effective_macs, "fewer") if before and step else ""
    smaller = _times(before.bytes_dense, theory.bytes_packed, "smaller") if before and step else ""
    latency = practice.latency if practice else None
    return (
        _title(row),
        _accuracy(row, dense, "test_accuracy"),
        _accuracy(row, dense, "accuracy"),
        number(
            f"{at}.nonzeros",
            theory.nonzeros,
            "count",
            note=f"{percent_text(left)} of dense" if left is not None and step else "",
        ),
        number(f"{at}.macs", theory.macs, "count"),
        number(f"{at}.effective_macs", theory.effective_macs, "count", note=fewer),
        number(f"{at}.bytes_packed", theory.bytes_packed, "bytes", note=smaller),
        _noted(
            number(f"{there}.bytes", files, "bytes"), _times(start.bytes, files, "smaller") if start and step else ""
        ),
        _noted(
            number(f"{there}.latency.median_ms", median, "ms"),
            _times(median_of(start), median, "as fast") if step else "",
        ),
        number(f"{there}.latency.p95_ms", latency.p95_ms if latency else None, "ms"),
        number(f"{row.name}.seconds", row.seconds, "seconds") if row.seconds else ABSENT,
    )


def practices(ledger: Ledger) -> Sheet:
    """Every artifact in its own runtime."""
    targets = dict.fromkeys(practice.target for row in ledger.rows for practice in row.practice)
    return Sheet(
        name="practice",
        caption="Each artifact in its own runtime",
        columns=(
            Column("Target", numeric=False),
            Column("Model", numeric=False),
            Column("Files"),
            Column("Median"),
            Column("p95"),
            Column("Spread", hint="interquartile range / median, over the runs"),
            Column("Throughput", hint="samples per second, from the median"),
            Column("Peak memory", hint="above the idle process, while loading and running"),
            Column("Load time"),
            Column("Accuracy there", hint="measured in the runtime itself, with its 95 % interval"),
        ),
        lines=tuple(
            Line(_practice(row, practice), row.kind)
            for target in targets
            for row in ledger.rows
            if (practice := practice_of(row, target))
        ),
        empty="No artifact was measured in a runtime.",
    )


def _practice(row: Row, practice: Practice) -> tuple[Cell, ...]:
    at, latency = f"{row.name}.practice.{practice.target}", practice.latency
    runs = f"{latency.runs:,} runs, {_plural(latency.threads, 'thread')}" if latency else ""
    return (
        words(practice.target),
        words(row.title or row.name),
        number(f"{at}.bytes", practice.bytes, "bytes", note=_plural(len(practice.files), "file")),
        number(f"{at}.latency.median_ms", latency.median_ms if latency else None, "ms", note=runs),
        number(f"{at}.latency.p95_ms", latency.p95_ms if latency else None, "ms"),
        number(f"{at}.latency.spread", latency.spread if latency else None, "percent"),
        number(f"{at}.throughput", practice.throughput, "rate"),
        number(f"{at}.peak_memory", practice.peak_memory, "bytes"),
        number(f"{at}.load_ms", practice.load_ms, "ms"),
        accuracy_cell(f"{at}.accuracy", practice.accuracy),
    )


def devices(ledger: Ledger) -> Sheet:
    """The delivered artifact on the devices that it was measured on."""
    return Sheet(
        name="devices",
        caption="The artifact on devices",
        columns=(
            Column("Device", numeric=False),
            Column("Median"),
            Column("p95"),
            Column("Spread", hint="interquartile range / median, over the runs"),
            Column("Weights"),
            Column("Memory", hint="the arena: everything that is between inputs and outputs"),
            Column("Compiler", numeric=False),
        ),
        lines=tuple(Line(_device(i, device), "step") for i, device in enumerate(ledger.devices)),
    )


def _device(i: int, device: Device) -> tuple[Cell, ...]:
    at, runs = f"devices.{i}", f"{device.runs:,} runs, {_plural(device.threads, 'thread')}"
    return (
        words(device.machine, note="emulated: no times" if device.emulated else ""),
        number(f"{at}.median_ms", device.median_ms, "ms", note="" if device.emulated else runs),
        number(f"{at}.p95_ms", device.p95_ms, "ms"),
        number(f"{at}.spread", device.spread, "percent"),
        number(f"{at}.weights_bytes", device.weights_bytes, "bytes"),
        number(f"{at}.arena_bytes", device.arena_bytes, "bytes"),
        words(device.compiler, note=device.flags),
    )


def _plural(amount: int, noun: str) -> str:
    return f"{amount:,} {noun}{'' if amount == 1 else 's'}"


def gates(ledger: Ledger) -> Sheet:
    """The export gate: the largest deviation of each artifact from PyTorch, and its bound."""
    return Sheet(
        name="gate",
        caption="Export gate: the largest difference between artifact and PyTorch",
        columns=(
            Column("Target", numeric=False),
            Column("Model", numeric=False),
            Column("Largest deviation"),
            Column("Bound", hint="8 × the error of PyTorch's own fp32 against float64"),
            Column("Verdict", numeric=False),
        ),
        lines=tuple(
            Line(_gate(row, practice), row.kind)
            for row in ledger.rows
            for practice in row.practice
            if practice.deviation
        ),
        empty="No artifact was compared with PyTorch.",
    )


def _gate(row: Row, practice: Practice) -> tuple[Cell, ...]:
    deviation = practice.deviation
    assert deviation is not None
    at = f"{row.name}.practice.{practice.target}.deviation"
    begins = f"begins at {deviation.layer}" if deviation.layer and not deviation.kept else ""
    return (
        words(practice.target),
        words(row.title or row.name),
        number(f"{at}.largest", deviation.largest, "small"),
        number(f"{at}.bound", deviation.bound, "small"),
        words("kept" if deviation.kept else "missed", note=begins, tone="good" if deviation.kept else "bad"),
    )


def checks(ledger: Ledger) -> Sheet:
    """The budget: what was asked, what came."""
    return Sheet(
        name="checks",
        caption="The budget",
        columns=tuple(Column(title, numeric=False) for title in ("Check", "Asked", "Got", "Verdict")),
        lines=tuple(
            Line(
                (
                    words(check.name),
                    words(check.asked),
                    words(check.got),
                    words("met" if check.met else "missed", tone="good" if check.met else "bad"),
                )
            )
            for check in ledger.checks
        ),
        empty="No budget was set.",
    )


def layers(ledger: Ledger) -> Sheet:
    """Layer by layer, dense beside compressed. Columns of time only where a runtime could tell them."""
    dense, final = ledger.dense, ledger.final
    pairs = list(_pairs(dense, final))
    columns = [
        Column("Layer", numeric=False),
        Column("Ops", numeric=False),
        Column("Output", numeric=False, hint="shape, batch first"),
        Column("Parameters", hint="of the dense layer"),
        Column("Non-zeros", hint="weights of the compressed layer that are not zero"),
        Column("Sparsity", hint="1 − non-zeros / parameters of the compressed layer"),
        Column("MACs", hint="multiply-accumulates of the dense layer"),
        Column("Share", hint="of the MACs of the dense network"),
        Column("Eff. MACs", hint="effective: MACs of the compressed layer when its zero weights are skipped"),
        Column("Bytes", hint="of the dense weights"),
        Column("Packed", hint="bytes of the compressed weights as Abridged stores them"),
    ]
    with_times = timed(ledger)
    if with_times:
        columns += [Column("Time, dense"), Column("Time, compressed")]
    total = dense.theory.macs if dense else None
    return Sheet(
        name="layers",
        caption="Every layer, dense beside compressed",
        columns=tuple(columns),
        lines=tuple(Line(_layer(before, after, total, with_times)) for before, after in pairs),
        empty="The ledger holds no layers.",
    )


def timed(ledger: Ledger) -> bool:
    """Whether any runtime could say how long a layer takes."""
    rows = [row for row in (ledger.dense, ledger.final) if row]
    return any(layer.milliseconds is not None for row in rows for layer in row.theory.layers)


Keyed = tuple[str, LayerTheory]  # where in the ledger, and what


def _keyed(row: Row | None, name: str) -> dict[str, Keyed]:
    listed = row.theory.layers if row else ()
    return {layer.path: (f"{name}.theory.layers.{index}", layer) for index, layer in enumerate(listed)}


def _pairs(dense: Row | None, final: Row | None) -> Iterator[tuple[Keyed | None, Keyed | None]]:
    """Layers of both networks by path: dense order, then what only the compressed one has."""
    before, after = _keyed(dense, "dense"), _keyed(final, "final")
    for path in dict.fromkeys([*before, *after]):
        yield before.get(path), after.get(path)


def _field(keyed: Keyed | None, name: str, unit: str) -> Cell:
    return number(f"{keyed[0]}.{name}", getattr(keyed[1], name), unit) if keyed else ABSENT


def _layer(before: Keyed | None, after: Keyed | None, total: float | None, with_times: bool) -> tuple[Cell, ...]:
    shown = after or before
    assert shown is not None
    layer = shown[1]
    share = divide(before[1].macs, total) if before else None
    sparsity = divide(layer.parameters - layer.nonzeros, layer.parameters)
    cells = (
        words(layer.path or "(the model itself)"),
        words(", ".join(dict.fromkeys(layer.ops))),
        words(_shapes(before, after)),
        _field(before, "parameters", "count"),
        _field(after, "nonzeros", "count"),
        derived("", sparsity, "percent") if after and sparsity is not None else ABSENT,
        _field(before, "macs", "count"),
        number("", share, "percent", bar=round(100 * share, 2)) if share is not None else ABSENT,
        _field(after, "effective_macs", "count"),
        _field(before, "bytes_dense", "bytes"),
        _field(after, "bytes_packed", "bytes"),
    )
    return (*cells, _field(before, "milliseconds", "ms"), _field(after, "milliseconds", "ms")) if with_times else cells


def _shapes(*pair: Keyed | None) -> str:
    """The output shape, or both where compression changed it: "1×64×8×8 → 1×48×8×8"."""
    return " → ".join(dict.fromkeys("×".join(map(str, each[1].shape)) or "scalar" for each in pair if each))


def glance(ledger: Ledger, size: Gain, speed: Gain, accuracy: Comparison) -> Sheet:
    """Dense, control, compressed: what a person reads first."""
    control = control_of(ledger)
    columns = {"Dense": ("dense", ledger.dense), "Compressed": ("final", ledger.final)}
    if control:
        columns = {"Dense": columns["Dense"], "Control": (control.name, control), "Compressed": columns["Compressed"]}
    dense, final = ledger.dense, ledger.final
    fewer = _times(dense.theory.nonzeros, final.theory.nonzeros, "fewer") if dense and final else ""
    judged = {"Dense": accuracy.before, "Control": accuracy.control, "Compressed": accuracy.after}

    def line(title: str, field: str, unit: str, change: str) -> Line:
        cells = (_at_a_glance(name, row, field, unit, ledger.target) for name, row in columns.values())
        return Line((words(title), *cells, words(change)))

    return Sheet(
        name="glance",
        caption="At a glance",
        columns=(Column("", False), *map(Column, columns), Column("Change", False)),
        lines=(
            line("File size", "practice.bytes", "bytes", _measured(size.practice, "smaller")),
            line("Latency (median)", "practice.latency.median_ms", "ms", _measured(speed.practice, "as fast")),
            Line((words(sentence(accuracy.metric)), *(judged[name] for name in columns), _judged(accuracy))),
            line("Non-zero weights", "theory.nonzeros", "count", fewer),
            line("Effective MACs", "theory.effective_macs", "count", _measured(speed.theory, "fewer")),
            line("Packed weights", "theory.bytes_packed", "bytes", _measured(size.theory, "smaller")),
        ),
    )


def _at_a_glance(name: str, row: Row | None, field: str, unit: str, target: str) -> Cell:
    if field.startswith("theory."):
        return number(f"{name}.{field}", getattr(row.theory, field.removeprefix("theory.")) if row else None, unit)
    practice = practice_of(row, target)
    value = median_of(practice) if "latency" in field else practice.bytes if practice else None
    return number(f"{name}.practice.{target}.{field.removeprefix('practice.')}", value, unit)


def _measured(cell: Cell, word: str) -> str:
    return times_text(cell.value, word) or cell.text


def _judged(accuracy: Comparison) -> Cell:
    note = {True: "within the noise", False: "more than noise", None: ""}[accuracy.within_noise]
    return accuracy.change.noting(note)
