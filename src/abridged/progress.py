"""What is said on stderr: a line on what a call did, and bars for all that takes over a second (on a terminal alone).

>>> with bar("train", total=3) as task:
...     for loss in (0.3, 0.2, 0.1):
...         task.advance(loss=loss)
>>> sum(track([1, 2, 3], "sum"))
6
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

T = TypeVar("T")
Say = Callable[[str], None]  # takes one line on what was done; `say=None` in the calls that have one is silence

_display: Progress | None = None  # the one live display that nested bars share


def say(line: str) -> None:
    """Print one line on stderr, above a bar if one is shown."""
    if _display is None:
        print(line, file=sys.stderr)
    else:
        _display.console.print(line, markup=False, highlight=False, soft_wrap=True)


def tell(lines: Iterable[str], say: Say | None) -> None:
    """Say each line; None is silence."""
    if say is not None:
        for line in lines:
            say(line)


class Task:
    """One bar. `advance(n, loss=0.12)` moves it by n and shows the fields behind it."""

    def __init__(self, display: Progress | None, task: TaskID | None) -> None:
        self._display, self._task = display, task

    def advance(self, n: float = 1, **fields: object) -> None:
        if self._display is None or self._task is None:
            return
        if fields:
            self._display.update(self._task, advance=n, note=_note(fields))
        else:
            self._display.update(self._task, advance=n)


def _note(fields: dict[str, object]) -> str:
    """
    >>> _note({"loss": 0.123456, "epoch": 3, "val_accuracy": 0.98})
    'loss 0.1235  epoch 3  val accuracy 0.98'
    """
    shown = ((name.replace("_", " "), f"{v:.4g}" if isinstance(v, float) else str(v)) for name, v in fields.items())
    return "  ".join(f"{name} {value}" for name, value in shown)


@contextmanager
def bar(label: str, total: int | None = None, *, shown: bool = True) -> Iterator[Task]:
    """A progress bar for the block: `total` units, or a pulse when it is not known. A bar inside another disappears
    when it is done; the outermost stays on the screen."""
    global _display
    if not (shown and sys.stderr.isatty()):
        yield Task(None, None)
    elif _display is not None:
        task = _display.add_task(label, total=total, note="")
        try:
            yield Task(_display, task)
        finally:
            _display.remove_task(task)
    else:
        with _new_display() as _display:
            try:
                yield Task(_display, _display.add_task(label, total=total, note=""))
            finally:
                _display = None


def _new_display() -> Progress:
    from rich import progress
    from rich.console import Console

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(bar_width=24),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("{task.fields[note]}", style="dim", markup=False),
        console=Console(stderr=True),
    )


def track(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Iterate over `items` under a bar; the total is their `len` where they have one."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with bar(label, total) as task:
        for item in items:
            yield item
            task.advance()
