"""The report as Markdown, for a pull request or a message."""

from __future__ import annotations

import re

from abridged.report.cells import Cell, Sheet
from abridged.report.view import View

MOST_LAYERS = 20


def render(view: View) -> str:
    """The same numbers and sentences as the page, without plots."""
    from abridged.report.html import environment

    place = environment()
    place.filters |= {"md": escape, "fence": fence}
    return place.get_template("report.md").render(view=view, table=table, largest=largest, most=MOST_LAYERS)


def escape(text: str) -> str:
    r"""Text that Markdown shows as it is, on one line.

    >>> print(escape("a|b *c* <script>"))
    a\|b \*c\* &lt;script&gt;
    """
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~!])", r"\\\1", text)


def fence(text: str, language: str) -> str:
    """A block of code that its own content cannot close."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    ticks = "`" * max(3, longest + 1)
    return f"{ticks}{language}\n{text.rstrip()}\n{ticks}"


def table(sheet: Sheet) -> str:
    """A table of pipes, numbers to the right."""
    if not sheet.lines:
        return escape(sheet.empty)
    heads = "| " + " | ".join(escape(column.title) for column in sheet.columns) + " |"
    rule = "|" + "|".join("---:" if column.numeric else "---" for column in sheet.columns) + "|"
    lines = ("| " + " | ".join(map(_cell, line.cells)) + " |" for line in sheet.lines)
    return "\n".join((heads, rule, *lines))


def _cell(cell: Cell) -> str:
    text = escape(cell.text)
    if cell.tone == "bad":
        text = f"**{text}**"
    return f"{text} ({escape(cell.note)})" if cell.note else text


def largest(sheet: Sheet) -> Sheet:
    """The layers with the most MACs (column 6), in network order; all of them where there are few."""
    ranked = sorted(sheet.lines, key=lambda line: -(line.cells[6].value or 0.0))[:MOST_LAYERS]
    kept = {id(line) for line in ranked}
    return Sheet(
        sheet.name, sheet.caption, sheet.columns, tuple(line for line in sheet.lines if id(line) in kept), sheet.empty
    )
