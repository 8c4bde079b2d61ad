"""What the terminal says at the end: of a run, and of an artifact that was deployed."""

from __future__ import annotations

import shlex
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from abridged.measurement.environment import cpu_name
from abridged.measurement.records import Deviation
from abridged.report.cells import Cell, Sheet, bytes_text, ms_text
from abridged.report.gains import Gain
from abridged.report.view import View
from abridged.targets import TARGETS
from abridged.targets.artifact import Artifact

STYLES = {"good": "green", "bad": "bold red", "muted": "dim", "": ""}
BAR = 12  # characters


def render(view: View) -> RenderableType:
    """What a person reads at a glance, within 80 columns."""
    parts: list[RenderableType] = [Text(view.title, style="bold"), _glance(view.glance), Text()]
    if view.compressed:
        parts += [_gains(view), Text(view.speed_words, style="dim"), Text()]
    parts.append(Text(view.verdict, style="bold"))
    parts.append(Text(_mark(view.status.tone) + view.status.text, style=STYLES[view.status.tone]))
    parts += [Text(f"  missed: {line}", style=STYLES["bad"]) for line in view.missed]
    parts += [Text(f"  warning: {line}", style="yellow") for line in view.warnings]
    return Group(*parts)


def _mark(tone: str) -> str:
    return {"good": "✓ ", "bad": "✗ "}.get(tone, "– ")


def _shown(cell: Cell) -> Text:
    text = Text(cell.text, style=STYLES[cell.tone])
    return text.append(f"\n{cell.note}", style="dim") if cell.note else text


def _glance(sheet: Sheet) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in sheet.columns:
        table.add_column(column.title, justify="right" if column.numeric else "left")
    for line in sheet.lines:
        table.add_row(*map(_shown, line.cells))
    return table


def _gains(view: View) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("")
    for title in ("Theory", "Practice", "Realised"):
        table.add_column(title, justify="right")
    table.add_column("")
    for label, gain in (("Smaller", view.size), ("Faster", view.speed)):
        table.add_row(label, _shown(gain.theory), _shown(gain.practice), _shown(gain.realised), _bar(gain))
    return table


def _bar(gain: Gain) -> Text:
    full = round(BAR * gain.realised_bar / 100)
    return Text("█" * full, style="blue").append("░" * (BAR - full), style="dim")


def deployed(artifact: Artifact, deviation: Deviation, folder: Path, model: str, weights: Path | None) -> str:
    """What a person asks of a fresh artifact of MODEL with --weights: how large, how equal, how fast, what to type next."""
    files = sorted(artifact.files.items(), key=lambda file: -file[1])
    name, size = files[0]
    lines = [
        f"{folder}: {bytes_text(artifact.bytes)} for target {artifact.target}, {bytes_text(size)} of them {name}",
        f"Equals PyTorch: off by {deviation.largest:.1e} at most, where {deviation.bound:.1e} is allowed",
    ]
    if artifact.stands_in:
        lines.append("Its sources were compiled for this machine to compare them; times come from the device alone")
    else:
        samples = artifact.latency(0.5)
        threads = f"{artifact.threads} thread{'s' * (artifact.threads > 1)}"
        lines.append(
            f"{ms_text(samples.median)} a call on {threads} of {cpu_name()} (median of {samples.runs} runs, spread "
            f"{samples.spread:.0%})"
        )
    typed = shlex.quote(str(folder))
    after = [TARGETS[artifact.target]().usage.format(typed)]
    if not artifact.stands_in:
        given = f" --weights {shlex.quote(str(weights))}" if weights else ""
        after += [
            f"abridged measure {typed} --against {shlex.quote(model)}{given}",
            f'ab.load("{folder}")(x) in Python',
        ]
    return "\n".join([*lines, "Next: " + "\n      ".join(filter(None, after))])
