"""Bars appear on a terminal, share one display, and are silent elsewhere."""

import io
import re
import sys

import pytest

from abridged import progress
from abridged.progress import bar, track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def use_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Called inside the test: pytest's own capture replaces stderr again between a fixture and its test."""
    stderr = Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm-256color")
    return stderr


def text(terminal: Terminal) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())


def test_a_bar_shows_label_count_and_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = use_terminal(monkeypatch)
    with bar("train", 2) as task:
        task.advance(loss=0.123456)
        task.advance(accuracy=0.98, epoch="[3/4]")
    shown = text(terminal)
    assert "train" in shown
    assert "2/2" in shown
    assert "accuracy 0.98  epoch [3/4]" in shown, "fields are text, never markup"


def test_nested_bars_share_one_display_and_only_the_outer_one_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    use_terminal(monkeypatch)
    with bar("outer", 2) as outer:
        display = progress._display
        for _ in track(range(3), "inner"):
            assert progress._display is display
            assert display is not None
            assert [task.description for task in display.tasks] == ["outer", "inner"]
        outer.advance()
        assert [task.description for task in display.tasks] == ["outer"]
    assert progress._display is None


def test_an_error_inside_ends_the_display(monkeypatch: pytest.MonkeyPatch) -> None:
    use_terminal(monkeypatch)
    with pytest.raises(ZeroDivisionError), bar("outer"), bar("inner"):
        raise ZeroDivisionError
    assert progress._display is None
    with bar("next") as task:
        task.advance()


def test_nothing_is_printed_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with bar("quiet", 3) as task:
        task.advance(loss=1.0)
    assert list(track(iter("abc"), "quiet")) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")


def test_a_bar_may_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = use_terminal(monkeypatch)
    with bar("hidden", 1, shown=False) as task:
        task.advance()
    assert terminal.getvalue() == ""


def test_lines_stand_above_a_bar(monkeypatch):
    terminal = use_terminal(monkeypatch)
    with bar("train", total=2) as task:
        progress.say("12 of [bold] weights")
        task.advance()
    progress.say("after")
    shown = text(terminal)
    assert "12 of [bold] weights" in shown
    assert shown.rstrip().endswith("after")
