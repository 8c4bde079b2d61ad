"""The interactive plots, as Plotly figures in plain data; the page draws them when its text is already there."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from abridged.ledger import Curve, Ledger, Row
from abridged.measurement.records import LayerTheory
from abridged.report.cells import Cell, number, sentence

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
DENSE, COMPRESSED = "#8b95a5", "#2f80ed"
# Mid-tones: at least 3:1 on the light and on the dark background.
LINES = ("#2f80ed", "#c96a12", "#1b9075", "#b05cc6", "#d0475f", "#80858f")
DASHES = ("solid", "dash", "dot", "dashdot")
NAMED_LAYERS = 40  # above this, bars stand in network order without names

QUANTITIES = (
    ("Weights", ("parameters", "nonzeros"), "non-zero weights"),
    ("MACs", ("macs", "effective_macs"), "multiply-accumulates"),
    ("Bytes", ("bytes_dense", "bytes_packed"), "bytes of weights"),
    ("Milliseconds", ("milliseconds", "milliseconds"), "milliseconds"),
)


@dataclass(frozen=True, slots=True)
class Choice:
    """One face of a plot: a button's label and a Plotly figure."""

    label: str
    figure: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot with one or more faces."""

    name: str
    title: str
    caption: str
    height: int
    choices: tuple[Choice, ...]


def _layout(**more: Any) -> dict[str, Any]:
    axis = {"automargin": True, "zeroline": False, "ticks": "outside", "ticklen": 5, "tickcolor": "rgba(0,0,0,0)"}
    base = {
        "font": {"family": FONT, "size": 12},
        "margin": {"l": 8, "r": 12, "t": 28, "b": 36},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hoverlabel": {"bgcolor": "#1c2430", "bordercolor": "#5b6b82", "font": {"color": "#ffffff", "size": 12}},
        "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "bgcolor": "rgba(0,0,0,0)"},
        "showlegend": True,
    }
    return base | {key: axis | value if key in ("xaxis", "yaxis") else value for key, value in more.items()}


def _plain(text: str) -> str:
    """Plotly reads a small HTML in its texts: a module path is none."""
    return html.escape(text, quote=False)


def _short(path: str, width: int = 24) -> str:
    return path if len(path) <= width else "…" + path[1 - width :]


def layers(ledger: Ledger) -> tuple[Plot, ...]:
    """Where weights, MACs, bytes and milliseconds are; nothing where no layer has any."""
    sides = {
        "dense": {layer.path: layer for layer in ledger.dense.theory.layers} if ledger.dense else {},
        "compressed": {layer.path: layer for layer in ledger.final.theory.layers} if ledger.final else {},
    }
    counted = {label: _values(sides, fields) for label, fields, _ in QUANTITIES}
    every = dict.fromkeys(path for listed in sides.values() for path in listed)
    paths = [path for path in every if any(side.get(path) for values in counted.values() for side in values.values())]
    choices = tuple(
        Choice(label, _face(counted[label], paths, unit))
        for label, _, unit in QUANTITIES
        if any(value for side in counted[label].values() for value in side.values())
    )
    named = len(paths) <= NAMED_LAYERS
    plot = Plot(
        name="layers",
        title="Where weights, MACs and milliseconds are",
        caption="Every layer that has any, in network order"
        + ("." if named else "; touch or hover a bar for its name."),
        height=96 + 26 * len(paths) if named else 380,
        choices=choices,
    )
    return (plot,) if choices else ()


Values = dict[str, dict[str, float | None]]  # side → path → value


def _values(sides: Mapping[str, Mapping[str, LayerTheory]], fields: tuple[str, str]) -> Values:
    return {
        side: {path: getattr(layer, field) for path, layer in listed.items()}
        for (side, listed), field in zip(sides.items(), fields, strict=True)
    }


def _face(values: Values, paths: list[str], unit: str) -> dict[str, Any]:
    """Bars of one quantity, dense beside compressed: lying with names where there are few, else standing."""
    named = len(paths) <= NAMED_LAYERS
    colours = {"dense": DENSE, "compressed": COMPRESSED}
    along: dict[str, Any] = {"title": {"text": unit, "standoff": 8}, "rangemode": "tozero"}
    if unit != "milliseconds":
        along["tickformat"] = "~s"
    across: dict[str, Any] = {"title": {"text": "layer, in network order"}, "showgrid": False}
    if named:
        texts = [_plain(_short(path or "(the model itself)")) for path in paths]
        across = {"tickvals": list(range(len(paths))), "ticktext": texts, "autorange": "reversed", "showgrid": False}
    layout = _layout(
        xaxis=along if named else across,
        yaxis=across if named else along,
        barmode="group",
        bargap=0.3 if named else 0,
    )
    sides = [side for side in values if any(values[side].values())]
    return {"data": [_bars(side, paths, values[side], colours[side], unit, named) for side in sides], "layout": layout}


def _bars(
    side: str, paths: list[str], values: Mapping[str, float | None], colour: str, unit: str, named: bool
) -> dict[str, Any]:
    written = "ms" if unit == "milliseconds" else "count"
    cells = [number("", values[path], written) if path in values else Cell("no such layer") for path in paths]
    places, heights = list(range(len(paths))), [cell.value for cell in cells]
    return {
        "type": "bar",
        "name": side,
        "orientation": "h" if named else "v",
        "x": heights if named else places,
        "y": places if named else heights,
        "marker": {"color": colour},
        "customdata": [
            [_plain(path or "(the model itself)"), cell.text] for path, cell in zip(paths, cells, strict=True)
        ],
        "hovertemplate": f"%{{customdata[0]}}<br>{side}: %{{customdata[1]}}<extra></extra>",
    }


def curves(ledger: Ledger) -> tuple[Plot, ...]:
    """One panel per quantity, one line per step."""
    names = dict.fromkeys(curve.name for row in ledger.rows for curve in row.curves if curve.values)
    return tuple(_panel(index, name, ledger) for index, name in enumerate(names))


def _panel(index: int, name: str, ledger: Ledger) -> Plot:
    drawn = [
        (place, row, curve)
        for place, row in enumerate(ledger.rows)
        for curve in row.curves
        if curve.name == name and curve.values
    ]
    from_zero = {"rangemode": "tozero"} if "accuracy" not in name else {}
    layout = _layout(xaxis={"title": {"text": "epoch", "standoff": 8}}, yaxis=from_zero, hovermode="closest")
    figure = {"data": [_line(place, row, curve) for place, row, curve in drawn], "layout": layout}
    return Plot(f"curve-{index}", sentence(name), "Per epoch, one line for each step.", 300, (Choice(name, figure),))


def _line(place: int, row: Row, curve: Curve) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(curve.values) <= 30 else "lines",
        "name": _plain(_short(row.name)),
        "x": list(range(1, len(curve.values) + 1)),
        "y": [value if math.isfinite(value) else None for value in curve.values],
        "line": {"color": LINES[place % len(LINES)], "dash": DASHES[place // len(LINES) % len(DASHES)], "width": 2},
        "marker": {"size": 5},
        "hovertemplate": "%{fullData.name}<br>epoch %{x}: %{y:.4g}<extra></extra>",
    }
