"""A ledger as a reader sees it: every derived number and sentence, computed once for HTML, Markdown and terminal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from abridged.ledger import Ledger, Row
from abridged.report import plots, sheets, wording
from abridged.report.cells import NEARLY, Sheet, bytes_text, seconds_text, sentence
from abridged.report.gains import Comparison, Gain, compare, size_gain, speed_gain
from abridged.report.plots import Plot
from abridged.report.wording import Snippet, Status

MANY_LAYERS = 40  # above this the table of layers is folded


@dataclass(frozen=True, slots=True)
class StepNotes:
    """What a step was told and what it had to say."""

    title: str
    options: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class View:
    """All that a report shows. Templates lay it out and compute nothing."""

    title: str
    facts: tuple[tuple[str, str], ...]  # model, data, target, seed, date
    verdict: str
    status: Status
    missed: tuple[str, ...]
    warnings: tuple[str, ...]
    compressed: bool  # whether there is a compression step at all
    target: str
    size: Gain
    speed: Gain
    accuracy: Comparison
    accuracy_title: str
    size_words: str
    speed_words: str
    accuracy_words: str
    glance: Sheet
    checks: Sheet
    steps: Sheet
    practice: Sheet
    devices: Sheet
    gate: Sheet
    layers: Sheet
    layers_folded: bool
    layers_untimed: bool
    step_notes: tuple[StepNotes, ...]
    layer_plots: tuple[Plot, ...]
    curves: tuple[Plot, ...]
    snippets: tuple[Snippet, ...]
    recipe: str  # YAML
    environment: tuple[tuple[str, str], ...]
    method: tuple[tuple[str, str], ...]

    @property
    def plots(self) -> tuple[Plot, ...]:
        return self.layer_plots + self.curves


def view(ledger: Ledger) -> View:
    """Everything a report says about a ledger; a pure function of it."""
    size, speed, accuracy = size_gain(ledger), speed_gain(ledger), compare(ledger)
    layers = sheets.layers(ledger)
    zeros = ledger.final is not None and ledger.final.theory.sparsity > NEARLY
    return View(
        title=ledger.title or ledger.model,
        facts=_facts(ledger),
        verdict=wording.verdict(ledger, size, speed, accuracy),
        status=wording.status(ledger),
        missed=wording.missed(ledger),
        warnings=ledger.warnings,
        compressed=ledger.final is not None,
        target=ledger.target,
        size=size,
        speed=speed,
        accuracy=accuracy,
        accuracy_title=sentence(accuracy.metric),
        size_words=wording.explain_size(size, zeros=zeros),
        speed_words=wording.explain_speed(speed, ledger.target, zeros=zeros),
        accuracy_words=wording.explain_accuracy(accuracy),
        glance=sheets.glance(ledger, size, speed, accuracy),
        checks=sheets.checks(ledger),
        steps=sheets.steps(ledger),
        practice=sheets.practices(ledger),
        devices=sheets.devices(ledger),
        gate=sheets.gates(ledger),
        layers=layers,
        layers_folded=len(layers.lines) > MANY_LAYERS,
        layers_untimed=bool(layers.lines) and not sheets.timed(ledger),
        step_notes=tuple(notes for row in ledger.rows if (notes := _step_notes(row))),
        layer_plots=plots.layers(ledger),
        curves=plots.curves(ledger),
        snippets=wording.snippets(ledger),
        recipe=_yaml(ledger.model_dump(mode="json")["recipe"]),
        environment=_environment(ledger),
        method=wording.METHOD,
    )


def _facts(ledger: Ledger) -> tuple[tuple[str, str], ...]:
    spent = sum(row.seconds for row in ledger.rows)
    facts = (
        ("Model", ledger.model),
        ("Data", ledger.data),
        ("Target", ledger.target),
        ("Recipe", _recipe_name(ledger)),
        ("Seed", str(ledger.seed)),
        ("Took", seconds_text(spent) if spent else ""),
        ("Date", ledger.environment.date[:16].replace("T", " ")),
    )
    return tuple((name, value) for name, value in facts if value)


def _recipe_name(ledger: Ledger) -> str:
    name = ledger.recipe.get("name")
    return (
        name
        if isinstance(name, str)
        else " → ".join(row.title or row.name for row in ledger.rows if row.kind == "step")
    )


def _step_notes(row: Row) -> StepNotes | None:
    options = tuple((name, _option(value)) for name, value in row.options.items() if value is not None)
    if not options and not row.notes:
        return None
    return StepNotes(row.title or row.name, options, row.notes)


def _option(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _yaml(recipe: Any) -> str:
    import yaml

    return str(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)) if recipe else ""


def _environment(ledger: Ledger) -> tuple[tuple[str, str], ...]:
    place = ledger.environment
    facts = (
        ("CPU", place.cpu),
        ("Cores", str(place.cores)),
        ("Threads", str(place.threads)),
        ("Memory", bytes_text(place.memory)),
        ("Platform", place.platform),
        ("Python", place.python),
        *((name, version) for name, version in place.versions.items()),
        ("Date", place.date),
    )
    return tuple(facts)
