"""The end of a run in the terminal: dense, control and compressed at a glance, theory beside practice."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from abridged.report.cells import Cell, Sheet
from abridged.report.gains import Gain
from abridged.report.view import View

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
