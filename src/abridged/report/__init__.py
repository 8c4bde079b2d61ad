"""The report: a ledger in, one HTML page and one Markdown file out. It only reads; every number is the ledger's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from abridged.ledger import Ledger
from abridged.report.view import View, view

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["View", "summary", "view", "write"]


def write(ledger: Ledger, out: Path) -> Path:
    """Write `report.html` and `report.md` into a directory, each whole or not at all, and return the page's path.

    The page is one file that opens offline. Raises InputError where the directory cannot be written."""
    from abridged.files import write_atomic
    from abridged.report import html, markdown

    shown = view(ledger)
    page = Path(out) / "report.html"
    write_atomic(page.with_suffix(".md"), markdown.render(shown).encode())
    write_atomic(page, html.render(shown).encode())
    return page


def summary(ledger: Ledger) -> RenderableType:
    """A table for the terminal: dense, control and compressed; theory, practice, realised."""
    from abridged.report import terminal

    return terminal.render(view(ledger))
