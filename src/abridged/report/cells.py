"""Numbers as a person reads them, each beside the exact value and the place in the ledger where it came from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

NOT_MEASURED = "not measured"
UNDEFINED = "undefined"
MINUS = "−"


@dataclass(frozen=True, slots=True)
class Cell:
    """One shown value. `key` says where it came from ("dense.theory.macs"), `value` is exact, `text` is for people."""

    text: str
    key: str = ""
    value: float | None = None
    exact: str = ""  # the unrounded text, where rounding hid something
    note: str = ""  # a second, smaller line
    tone: str = ""  # "good" | "bad" | "muted"
    bar: float | None = None  # a share, in percent, drawn behind the text

    def noting(self, note: str) -> Cell:
        return replace(self, note=note)


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table of the report."""

    title: str
    numeric: bool = True
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """One row of a table of the report. `kind` colours it: "dense", "control", "step", "total" or nothing."""

    cells: tuple[Cell, ...]
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Sheet:
    """One table of the report; every format renders it from this."""

    name: str
    caption: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    empty: str = ""  # what to say where there are no lines


def divide(numerator: float | None, denominator: float | None) -> float | None:
    """Their ratio, or None where either is missing, not finite, or the ratio does not exist."""
    if numerator is None or not denominator:
        return None
    ratio = numerator / denominator
    return ratio if math.isfinite(ratio) else None


def significant(value: float, digits: int = 3) -> str:
    """Rounded to significant digits, with thousands separated.

    >>> [significant(v) for v in (0, 0.018249, 9.996, 12.34, 1234.5, 2e-7)]
    ['0', '0.0182', '10.0', '12.3', '1,234', '2.00e-07']
    """
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e15:
        return f"{value:.{digits - 1}e}"
    value = float(f"{value:.{digits - 1}e}") if abs(value) < 10 ** (digits - 1) else value
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}".replace("-", MINUS)


def _prefixed(value: float, suffix: str) -> str:
    rounded = float(f"{value:.2e}")
    for limit, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(rounded) >= limit:
            return f"{significant(value / limit)} {prefix}{suffix}"
    return f"{value:,.0f} {suffix}".strip()


def count_text(value: float) -> str:
    """
    >>> [count_text(v) for v in (0, 999, 61706, 999_999, 4_111_514_624)]
    ['0', '999', '61.7 k', '1.00 M', '4.11 G']
    """
    return _prefixed(value, "")


def bytes_text(value: float) -> str:
    """
    >>> [bytes_text(v) for v in (512, 30_512, 246_824, 102_203_000)]
    ['512 B', '30.5 kB', '247 kB', '102 MB']
    """
    return _prefixed(value, "B")


def ms_text(value: float) -> str:
    return f"{significant(value)} ms"


def ratio_text(value: float) -> str:
    """
    >>> [ratio_text(v) for v in (0.1234, 0.996, 1, 8.1234, 123.4)]
    ['0.12 ×', '1.0 ×', '1.0 ×', '8.1 ×', '123 ×']
    """
    if round(value, 2) < 1:
        return f"{significant(value, 2)} ×"
    if value >= 1e6:
        return f"{value:.1e} ×"
    return f"{value:.1f} ×" if round(value, 1) < 100 else f"{value:,.0f} ×"


NEARLY = 0.05  # ratios this close to 1 are called the same
OPPOSITE = {"smaller": "larger", "fewer": "more"}


def times(ratio: float, word: str) -> tuple[str, str]:
    """A ratio and its word; below 1 both say the opposite, never "0.5 × smaller".

    >>> times(8.1, "smaller"), times(0.5, "smaller"), times(0.5, "as fast"), times(1, "smaller")
    (('8.1 ×', 'smaller'), ('2.0 ×', 'larger'), ('0.50 ×', 'as fast'), ('1.0 ×', '(the same)'))
    """
    if word in OPPOSITE and abs(ratio - 1) < NEARLY:
        return ratio_text(ratio), "(the same)" if ratio == 1 else "(nearly the same)"
    if 0 < ratio < 1 and word in OPPOSITE:
        return ratio_text(1 / ratio), OPPOSITE[word]
    return ratio_text(ratio), word


def times_text(ratio: float | None, word: str) -> str:
    """
    >>> [times_text(v, "smaller") for v in (8.1, 1.02, 1, None)]
    ['8.1 × smaller', 'nearly the same', 'the same', '']
    """
    if ratio is None:
        return ""
    number, said = times(ratio, word)
    return said.strip("()") if said.startswith("(") else f"{number} {said}"


def percent_text(value: float) -> str:
    """A fraction in percent. More decimals where one would read as all or nothing.

    >>> [percent_text(v) for v in (0, 0.9861, 0.99987, 1)]
    ['0 %', '98.6 %', '99.99 %', '100 %']
    """
    if value in (0, 1):
        return f"{value:.0%}".replace("%", " %")
    texts = [f"{100 * value:.{decimals}f}" for decimals in (1, 2, 3, 4)]
    telling = [text for text in texts if float(text) not in (0, 100)]
    return f"{(telling or texts)[0]} %".replace("-", MINUS)


def points_text(value: float) -> str:
    """A difference of two fractions in percentage points.

    >>> [points_text(v) for v in (-0.0028, 0.0001, 0.012)]
    ['−0.3 points', '±0.0 points', '+1.2 points']
    """
    text = f"{100 * value:+.1f}"
    return f"{'±0.0' if float(text) == 0 else text.replace('-', MINUS)} points"


def change_text(value: float) -> str:
    return ("+" if value > 0 else "") + significant(value, 2)


def small_text(value: float) -> str:
    """
    >>> [small_text(v) for v in (0, 2.384e-07, 0.0125)]
    ['0', '2.4e-07', '0.0125']
    """
    return significant(value) if value == 0 or abs(value) >= 1e-3 else f"{value:.1e}"


def _realised_text(value: float) -> str:
    return f"{100 * value:.0f} %" if value < 100 else ratio_text(value)


def _rate_text(value: float) -> str:
    return f"{count_text(value)} /s".replace("  ", " ")


def seconds_text(value: float) -> str:
    """
    >>> [seconds_text(v) for v in (3.21, 75, 7384)]
    ['3.2 s', '1 min 15 s', '2 h 3 min']
    """
    if value < 60:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, rest = divmod(minutes, 60)
    return f"{hours:,} h {rest} min" if hours else f"{minutes} min {seconds} s"


UNITS: dict[str, Callable[[float], str]] = {
    "count": count_text,
    "bytes": bytes_text,
    "ms": ms_text,
    "ratio": ratio_text,
    "percent": percent_text,
    "points": points_text,
    "change": change_text,
    "small": small_text,
    "plain": significant,
    "realised": _realised_text,
    "rate": _rate_text,
    "seconds": seconds_text,
}


def number(
    key: str, value: float | None, unit: str, *, note: str = "", tone: str = "", bar: float | None = None
) -> Cell:
    """The cell of a value of the ledger: what is missing reads "not measured", never 0."""
    if value is None:
        return Cell(NOT_MEASURED, key=key, tone="muted")
    if not math.isfinite(value):
        return Cell("not finite", key=key, tone="bad")
    exact = f"{value:,}" if unit in ("count", "bytes") and abs(value) >= 1000 else ""
    return Cell(UNITS[unit](value), key=key, value=value, exact=exact, note=note, tone=tone, bar=bar)


def derived(key: str, value: float | None, unit: str, *inputs: float | None, note: str = "") -> Cell:
    """As `number`, for a value computed from others: undefined where they are known and it does not exist."""
    if value is None and None not in inputs:
        return Cell(UNDEFINED, key=key, tone="muted")
    return number(key, value, unit, note=note)


def words(text: str, *, note: str = "", tone: str = "") -> Cell:
    return Cell(text, note=note, tone=tone)


def sentence(text: str) -> str:
    """The text with a capital first letter and the rest as it is."""
    return text[:1].upper() + text[1:]
