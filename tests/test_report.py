"""The report says what the ledger says: every number is traced back, nothing missing reads as 0, nothing is executed."""

from __future__ import annotations

import ast
import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report_ledgers import (
    HOSTILE,
    LEDGERS,
    accuracy,
    bare,
    deep,
    emptied,
    failed,
    hostile,
    plausible,
    practice,
    unmeasured,
)
from rich.console import Console

from abridged.errors import InputError
from abridged.ledger import Check, Ledger, Row
from abridged.measurement.records import Latency, LayerTheory, Practice, Theory
from abridged.report import html, markdown, summary, terminal, view, write
from abridged.report.cells import NOT_MEASURED, UNDEFINED, Cell, Sheet
from abridged.report.gains import difference_interval

SHEETS = ("glance", "checks", "steps", "practice", "gate", "layers")


def look_up(ledger: Ledger, key: str) -> Any:
    """The value of the ledger that a data-key names: "final.practice.onnxruntime.bytes"."""
    name, *path = key.split(".")
    found: Any = {"final": ledger.final, "dense": ledger.dense}.get(name, ledger.row(name))
    if path[0] == "practice":
        found = next(each for each in found.practice if each.target == path[1])
        path = path[2:]
    else:
        found, path = getattr(found, path[0]), path[1:]
    for step in path:
        found = found[int(step)] if step.isdigit() else getattr(found, step)
    return found


class Page(HTMLParser):
    """The elements of a page, and what stands in those that carry a number."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.numbers: list[tuple[dict[str, str | None], str]] = []
        self.text = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if "data-key" in dict(attrs):
            self.numbers.append((dict(attrs), ""))
        elif self.numbers and tag not in ("small",):
            self.numbers.append(({}, ""))

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.text += data
        if self.numbers and not self.numbers[-1][1]:
            self.numbers[-1] = (self.numbers[-1][0], data.strip())


def numbers(text: str) -> list[tuple[str, str | None, str]]:
    """Key, exact value and shown text of every number of a page."""
    return [(str(attrs["data-key"]), attrs.get("data-value"), shown) for attrs, shown in Page(text).numbers if attrs]


def printed(ledger: Ledger, width: int = 80) -> str:
    console = Console(file=StringIO(), width=width, record=False)
    console.print(summary(ledger))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


@pytest.fixture(params=LEDGERS)
def ledger(request: pytest.FixtureRequest) -> Ledger:
    return LEDGERS[request.param]()


# Every ledger


def test_both_files_are_written_and_the_same_each_time(ledger: Ledger, tmp_path: Path) -> None:
    page = write(ledger, tmp_path / "run")
    first = page.read_bytes()
    assert page == tmp_path / "run" / "report.html"
    assert sorted(each.name for each in page.parent.iterdir()) == ["report.html", "report.md"]
    assert write(ledger, tmp_path / "run").read_bytes() == first


def test_every_number_of_the_page_is_the_ledgers(ledger: Ledger) -> None:
    found = [each for each in numbers(html.render(view(ledger))) if not each[0].startswith("gain.")]
    checked = 0
    for key, value, shown in found:
        if value is not None:
            assert float(value) == look_up(ledger, key), key
            checked += 1
        else:
            assert shown in (NOT_MEASURED, UNDEFINED, "not finite"), (key, shown)
    assert checked >= 4, "the page shows no number"


def test_a_ledger_that_went_through_json_reads_the_same(tmp_path: Path) -> None:
    plausible().save(tmp_path / "ledger.json")
    assert view(Ledger.load(tmp_path / "ledger.json")) == view(plausible())


def test_the_page_asks_nothing_of_the_network(ledger: Ledger) -> None:
    page = Page(html.render(view(ledger)))
    assert len(page.tags) > 50
    for tag, attrs in page.tags:
        assert tag not in ("iframe", "object", "embed", "base", "form", "img")
        for name in ("src", "href", "action", "srcset"):
            assert (attrs.get(name) or "#").startswith(("#", "data:")), (tag, attrs)
    style = html._asset("style.css")
    assert "url(" not in style
    assert "@import" not in style


def test_only_our_own_scripts_may_run(ledger: Ledger) -> None:
    text = html.render(view(ledger))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy
    assert policy[1].replace("&#39;", "'").startswith("default-src 'none'; script-src 'sha256-")
    script = re.findall(r"<script>(.*?)</script>", text, re.S)
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert len(script) == 1
    assert digest in policy[1]
    assert not [tag for tag, attrs in Page(text).tags if any(name.startswith("on") for name in attrs)]


def test_plotly_accepts_every_figure(ledger: Ledger) -> None:
    import plotly.graph_objects as go

    for plot in view(ledger).plots:
        for choice in plot.choices:
            assert go.Figure(choice.figure).data
            json.dumps(choice.figure, allow_nan=False)


def test_the_summary_fits_a_terminal(ledger: Ledger) -> None:
    if ledger.title != HOSTILE:
        assert max(map(len, printed(ledger).splitlines())) <= 80


def test_markdown_tables_have_as_many_cells_as_heads(ledger: Ledger) -> None:
    text = markdown.render(view(ledger))
    rows = [len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("| ")]
    assert rows
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1, block


# What the numbers are


def test_the_gains_are_the_ratios_that_the_ledger_gives() -> None:
    ledger = plausible()
    dense, final = ledger.dense, ledger.final
    assert dense
    assert final
    shown = view(ledger)
    assert shown.size.theory.value == dense.theory.bytes_dense / final.theory.bytes_packed
    assert shown.size.practice.value == 193_412 / 29_870
    assert shown.size.realised.value == pytest.approx((193_412 / 29_870) / shown.size.theory.value)
    assert shown.speed.theory.value == dense.theory.macs / final.theory.effective_macs
    assert shown.speed.practice.value == 0.0691 / 0.0688
    assert shown.accuracy.change.value == pytest.approx(-1 / 360)
    assert shown.accuracy.within_noise
    assert shown.accuracy.basis == "test split, 360 samples, in onnxruntime"


def test_the_verdict_is_one_plain_sentence() -> None:
    assert view(plausible()).verdict == (
        "6.5 × smaller, 1.0 × as fast, accuracy 98.9 % → 98.6 % (−0.3 points, within the noise of 360 samples)."
    )
    assert view(failed()).verdict == (
        "1.3 × larger, 0.22 × as fast (slower), accuracy 98.9 % → 41.7 % (−57.2 points, more than the noise of 360 samples)."
    )
    assert view(unmeasured()).verdict == (
        "7.6 × smaller on paper (file size not measured), 10.0 × fewer MACs on paper (latency not measured),"
        " accuracy not measured."
    )
    assert view(bare()).verdict == "Nothing is compressed yet: the ledger holds no compression step."
    assert view(emptied()).verdict == "File size undefined, latency undefined, accuracy not measured."
    assert view(LEDGERS["regression"]()).verdict.endswith(
        "mse 0.0120 → 0.0320 (+0.020, more than the noise of 100 samples)."
    )


def test_the_interval_of_a_change_holds_the_change_and_is_symmetric() -> None:
    one, other = accuracy(356), accuracy(300)
    low, high = difference_interval(one, other)
    assert low < other.value - one.value < high < 0
    assert difference_interval(other, one) == pytest.approx((-high, -low))


def test_accuracy_is_compared_on_the_same_samples_only() -> None:
    first, *steps, control = plausible().rows
    other = practice("onnxruntime", 30_000, 0.07, 300).model_copy(update={"accuracy": accuracy(100, 120)})
    last = steps[-1].model_copy(update={"practice": (other,)})
    shown = view(plausible(rows=(first, last, control)))
    assert (
        shown.accuracy.basis == "test split, 360 samples, in PyTorch"
    )  # the runtime's 120 are not the dense model's 360
    alone = last.model_copy(update={"test_accuracy": None, "accuracy": None})
    shown = view(plausible(rows=(first, alone)))
    assert shown.accuracy.change.text == NOT_MEASURED
    assert "not comparable" in shown.verdict


@pytest.mark.parametrize(
    ("metric", "values", "says"),
    [
        ("accuracy", (0.9, 0.5), "a real loss"),
        ("top-5 accuracy", (0.5, 0.9), "a real gain"),
        ("mse", (0.5, 0.9), "a real loss"),
        ("mse", (0.9, 0.5), "a real gain"),
        ("my_score", (0.9, 0.5), "a real change"),  # nobody said which side is better
        ("accuracy", (0.9, 0.9), "no more than chance"),
        ("accuracy", (0.9, math.nan), "not measured on the same samples"),
    ],
)
def test_a_change_of_accuracy_is_judged(metric: str, values: tuple[float, float], says: str) -> None:
    found = [
        accuracy(1, metric=metric).model_copy(update={"value": value, "low": value - 0.01, "high": value + 0.01})
        for value in values
    ]
    first, step, *_ = plausible().rows
    rows = tuple(
        row.model_copy(update={"practice": (), "accuracy": None, "test_accuracy": each})
        for row, each in zip((first, step), found, strict=True)
    )
    assert says in view(plausible(rows=rows)).accuracy_words


def test_theory_of_different_batches_is_compared_per_sample() -> None:
    first, step, *_ = plausible().rows
    eight = step.theory.model_copy(
        update={"batch": 8, "macs": 8 * step.theory.macs, "effective_macs": 8 * step.theory.effective_macs}
    )
    ratio = view(plausible(rows=(first, step))).speed.theory.value
    assert view(plausible(rows=(first, step.model_copy(update={"theory": eight})))).speed.theory.value == pytest.approx(
        ratio
    )


def with_results(files: int, ms: float, density: float, target: str = "onnxruntime") -> Ledger:
    """A ledger whose dense model takes 100 kB and 1 ms, and whose compressed one takes this."""
    still = {"spread": 0.01, "p95_ms": 1.0, "runs": 100, "threads": 1}
    weights = {"parameters": 25_000, "macs": 1_000_000, "bytes_dense": 100_000, "batch": 1}
    rows = tuple(
        Row(
            name=name,
            kind=kind,  # type: ignore[arg-type]
            title=name,
            theory=Theory(
                **weights,
                nonzeros=round(25_000 * left),
                effective_macs=round(1e6 * left),
                bytes_packed=round(1e5 * left),
            ),
            practice=(Practice(target=target, bytes=size, files={}, latency=Latency(median_ms=time, **still)),),
        )
        for name, kind, left, size, time in (("dense", "dense", 1, 100_000, 1.0), ("prune", "step", density, files, ms))
    )
    return plausible(rows=rows, target=target)


@pytest.mark.parametrize(
    ("files", "density", "says"),
    [
        (10_500, 0.1, "keep what theory promised"),
        (100_000, 0.1, "stores every zero"),
        (40_000, 0.1, "part of the promise"),
        (5_000, 0.1, "More than theory counted"),
        (100_000, 1.0, "promises no smaller file"),
        (100_000, 0.0, "no ratio to compare"),
        (0, 0.1, "no ratio"),
    ],
)
def test_size_is_explained(files: int, density: float, says: str) -> None:
    assert says in view(with_results(files, 1.0, density)).size_words


@pytest.mark.parametrize(
    ("ms", "density", "target", "says"),
    [
        (1.0, 0.1, "onnxruntime", "multiplies the zeros"),
        (1.0, 0.1, "onnxruntime", "within the run-to-run spread"),
        (0.5, 0.1, "onnxruntime", "Part of the promise"),
        (1.0, 0.1, "native", "None of the promise"),
        (0.11, 0.1, "native", "keeps what theory promised"),
        (1.0, 1.0, "native", "promises no speed-up"),
        (1.0, 0.0, "native", "no ratio to compare"),
        (0.0, 0.1, "native", "no ratio"),
    ],
)
def test_speed_is_explained(ms: float, density: float, target: str, says: str) -> None:
    assert says in view(with_results(50_000, ms, density, target)).speed_words


@pytest.mark.parametrize(
    ("files", "word"),
    [(50_000, "2.0 × smaller"), (200_000, "2.0 × larger"), (100_000, "The same size"), (98_000, "The same size")],
)
def test_a_larger_file_is_called_larger(files: int, word: str) -> None:
    assert view(with_results(files, 1.0, 0.5)).verdict.startswith(word)


def test_layers_of_both_networks_stand_in_one_table() -> None:
    first, step, *_ = plausible().rows
    kept = tuple(layer.model_copy(update={"shape": (1, 3)}) for layer in step.theory.layers[1:])
    added = LayerTheory(path="fc1.low", ops=("linear",), shape=(1, 8))
    theory = step.theory.model_copy(update={"layers": (*kept, added)})
    sheet = view(plausible(rows=(first, step.model_copy(update={"theory": theory})))).layers
    by_path = {line.cells[0].text: line for line in sheet.lines}
    assert list(by_path) == ["conv1", "pool1", "conv2", "conv3", "(the model itself)", "fc1", "fc2", "fc1.low"]
    assert by_path["conv2"].cells[2].text == "1×32×4×4 → 1×3"
    assert by_path["conv1"].cells[4].text == "–"  # gone
    assert by_path["fc1.low"].cells[3].text == "–"  # new
    assert sum(line.cells[7].value or 0 for line in sheet.lines) == pytest.approx(1)  # shares of MACs


# What is missing, what is missed


def test_what_is_missing_is_never_zero() -> None:
    shown = view(unmeasured())
    steps = {column.title: cell for column, cell in zip(shown.steps.columns, shown.steps.lines[1].cells, strict=True)}
    assert {steps[title].text for title in ("Test acc.", "Val. acc.", "Files", "Median", "p95")} == {NOT_MEASURED}
    assert shown.size.practice.text == shown.size.realised.text == NOT_MEASURED
    assert shown.size.theory.value
    for text in (html.render(shown), markdown.render(shown), printed(unmeasured())):
        assert NOT_MEASURED in " ".join(text.split())


def test_what_has_no_value_is_undefined() -> None:
    shown = view(emptied())
    gains = (shown.size, shown.speed)
    assert (
        {gain.theory.text for gain in gains}
        == {gain.practice.text for gain in gains}
        == {gain.realised.text for gain in gains}
        == {UNDEFINED}
    )


def test_a_missed_check_is_printed_as_missed() -> None:
    for make, line in (
        (plausible, "latency ratio: asked at most 0.5, got 0.996"),
        (failed, "accuracy drop: asked at most 1.0 points"),
    ):
        shown = view(make())
        assert shown.status.tone == "bad"
        assert line in Page(html.render(shown)).text.replace("\u00a0", " ")
        assert f"**missed:** {line}" in markdown.render(shown)
        assert f"missed: {line}" in " ".join(printed(make()).split())
    assert "beginning at conv3" in view(failed()).missed[-1]


def test_met_checks_are_counted() -> None:
    met = plausible().checks[:1]
    assert view(plausible(checks=met)).status.text == "All 5 checks met"
    alone = tuple(row.model_copy(update={"practice": ()}) for row in plausible().rows)
    assert view(plausible(checks=met, rows=alone)).status.text == "1 check met"
    assert view(bare()).status.text == "No check was made"


def test_a_page_without_plots_carries_no_library() -> None:
    assert len(html.render(view(bare()))) < 60_000
    assert 1_500_000 < len(html.render(view(plausible()))) < 2_300_000


def test_markdown_of_a_large_network_keeps_its_largest_layers() -> None:
    shown = view(deep())
    text = markdown.render(shown)
    assert f"The 20 layers with the most MACs of {len(shown.layers.lines)}" in text
    assert len(text) < 20_000
    kept = markdown.largest(shown.layers)
    assert (
        min(line.cells[6].value or 0 for line in kept.lines)
        == sorted(line.cells[6].value or 0 for line in shown.layers.lines)[-20]
    )


# Hostile text


def test_hostile_names_are_only_text() -> None:
    page = Page(html.render(view(hostile())))
    scripts = [attrs for tag, attrs in page.tags if tag == "script"]
    assert [attrs.get("id") for attrs in scripts] == ["plots", "library", None]
    assert "<script>window.pwned=1</script>" in page.text  # as the reader sees it
    text = markdown.render(view(hostile()))
    outside = re.sub(r"^(`{3,})(\w*)\n.*?\n\1$", "", text, flags=re.S | re.M)
    assert "<script" not in outside
    assert "<img" not in outside


def test_rich_markup_in_a_name_stays_text() -> None:
    ledger = plausible(
        title="[red]x[/red][/]", warnings=("[bold]",), checks=(Check(name="[/]", asked="", got="", met=False),)
    )
    assert "[red]x[/red][/]" in printed(ledger)
    assert "[bold]" in printed(ledger)


@pytest.mark.parametrize("make", [plausible, hostile, bare])
def test_code_to_copy_is_python(make: Any) -> None:
    shown = view(make())
    for snippet in shown.snippets:
        ast.parse(snippet.code)
    assert 'ab.load_into(model, "model.safetensors")' in shown.snippets[-1].code


def with_steps(*kinds: str) -> Ledger:
    """A ledger whose steps made smaller layers, without zeros."""
    first, *_ = plausible().rows
    theory = first.theory.model_copy(update={"macs": first.theory.macs // 4, "effective_macs": first.theory.macs // 4})
    steps = [
        first.model_copy(
            update={
                "name": f"{at}-{kind}", "kind": "step", "options": {kind: {}}, "theory": theory,
                "practice": (practice("onnxruntime", 193_000, 0.069, 356),),
            }
        )
        for at, kind in enumerate(kinds, 1)
    ]  # fmt: skip
    return plausible(rows=(first, *steps))


def test_smaller_layers_are_not_called_zeros() -> None:
    shown = view(with_steps("factorize"))
    assert "zero" not in shown.size_words + shown.speed_words
    assert "None of the promise arrives" in shown.speed_words


@pytest.mark.parametrize(
    ("steps", "code"),
    [
        (["prune"], 'ab.load_into(model, "model.safetensors")'),
        (["factorize", "distill"], 'thin = ab.load_factorized(model, "model.safetensors")'),
        (["prune", "shrink", "factorize"], 'recipe="recipe.yaml", out=".", seed=0, resume=True)'),
        (["factorize", "factorize"], "resume=True"),
    ],
)
def test_the_way_to_load_fits_what_the_steps_made(steps: list[str], code: str) -> None:
    own = view(with_steps(*steps)).snippets[-1].code
    ast.parse(own)
    assert code in own


def test_a_runtime_of_its_own_needs_no_abridged() -> None:
    plain = {snippet.title: snippet.code for snippet in view(plausible()).snippets}[
        "The artifact, with ONNX Runtime alone"
    ]
    assert 'ort.InferenceSession("artifact/model.onnx")' in plain
    assert "abridged" not in plain
    single = view(plausible(artifact="net.onnx")).snippets[1].code
    assert 'ort.InferenceSession("net.onnx")' in single
    assert len(view(plausible(target="openvino")).snippets) == 2
    first, *_ = plausible().rows
    odd = practice("onnxruntime", 1, 1.0, 1, files={"weights.bin": 1})
    rows = (first, first.model_copy(update={"name": "1", "kind": "step", "practice": (odd,)}))
    assert len(view(plausible(rows=rows)).snippets) == 2


@given(st.text())
def test_markdown_code_cannot_be_closed_by_its_content(text: str) -> None:
    block = markdown.fence(text, "python")
    ticks = block[: len(block) - len(block.lstrip("`"))]
    assert ticks not in text
    assert "\n" not in markdown.escape(text)


# Files


def test_an_unwritable_place_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(InputError, match="cannot be written"):
        write(plausible(), tmp_path / "run")
    assert [each.name for each in tmp_path.iterdir()] == ["run"]


# Any ledger at all

odd = st.sampled_from([0.0, 5e-324, math.nan, math.inf])
amounts = st.one_of(st.floats(0, 1e9), odd)
shares = st.one_of(st.floats(0, 1), odd)
anything = st.one_of(st.none(), amounts)
whole = st.one_of(st.just(0), st.integers(0, 2**60))


@st.composite
def theories(draw: st.DrawFn) -> Theory:
    fields = ("parameters", "nonzeros", "macs", "effective_macs", "bytes_dense", "bytes_packed")
    layers = tuple(
        LayerTheory(
            path=draw(st.sampled_from(["", "a", "b.c"])),
            ops=("conv",),
            shape=(1,),
            milliseconds=draw(anything),
            **{f: draw(whole) for f in fields},
        )
        for _ in range(draw(st.integers(0, 2)))
    )
    return Theory(**{field: draw(whole) for field in fields}, batch=draw(st.integers(0, 3)), layers=layers)


@st.composite
def practices(draw: st.DrawFn) -> Practice:
    latency = Latency(
        median_ms=draw(amounts), p95_ms=draw(amounts), spread=draw(shares), runs=draw(st.integers(0, 9)), threads=1
    )
    found = accuracy(5).model_copy(update={name: draw(shares) for name in ("value", "low", "high")})
    return Practice(
        target=draw(st.sampled_from(["onnxruntime", "native"])),
        bytes=draw(whole),
        files={},
        latency=draw(st.sampled_from([latency, None])),
        throughput=draw(anything),
        load_ms=draw(anything),
        accuracy=draw(st.sampled_from([found, None])),
    )


@st.composite
def ledgers(draw: st.DrawFn) -> Ledger:
    kinds = draw(st.lists(st.sampled_from(["dense", "step", "control"]), max_size=4))
    rows = tuple(
        Row(
            name=f"{index}-{kind}",
            kind=kind,
            title="",
            theory=draw(theories()),
            practice=tuple(draw(st.lists(practices(), max_size=2))),
        )  # type: ignore[arg-type]
        for index, kind in enumerate(kinds)
    )
    return plausible(rows=rows)


def cells_of(shown: Any) -> list[Cell]:
    sheets: list[Sheet] = [getattr(shown, name) for name in SHEETS]
    cells = [cell for sheet in sheets for line in sheet.lines for cell in line.cells]
    for gain in (shown.size, shown.speed):
        cells += [gain.theory, gain.practice, gain.realised, gain.headline, gain.before, gain.after]
    return [*cells, shown.accuracy.before, shown.accuracy.after, shown.accuracy.change]


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ledgers())
def test_no_ledger_breaks_the_report(ledger: Ledger) -> None:
    shown = view(ledger)
    cells = cells_of(shown)
    assert cells
    for cell in cells:
        assert cell.value is None or math.isfinite(cell.value)
        assert not re.search(r"\b(nan|inf)\b", cell.text), cell
        assert len(cell.text) < 40, cell
        assert cell.bar is None or math.isfinite(cell.bar)
    for gain in (shown.size, shown.speed):
        assert all(0 <= bar <= 100 for bar in (gain.theory_bar, gain.practice_bar, gain.realised_bar))
    for each in shown.accuracy.intervals:
        assert all(map(math.isfinite, (each.left, each.width, each.dot)))
    assert html.render(shown)
    assert markdown.render(shown)
    assert terminal.render(shown)
