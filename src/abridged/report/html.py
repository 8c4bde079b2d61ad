"""The report as one HTML file that needs nothing else: style, script, plots and their library are inside."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from abridged.report.plots import Plot
from abridged.report.view import View


def render(view: View) -> str:
    """The whole page. Every text of the ledger is escaped, and the page's own policy runs no script but ours."""
    library = _library() if view.plots else None
    script = _asset("page.js")
    return (
        environment()
        .get_template("report.html")
        .render(
            view=view,
            style=_asset("style.css"),
            script=script,
            plots=_json([_figures(plot) for plot in view.plots]),
            library=library,
            policy=_policy([_hash(script), *([library.hash] if library else [])]),
        )
    )


def environment() -> Environment:
    """The templates' environment; an unknown name in a template is an error."""
    place = Environment(
        loader=PackageLoader("abridged.report"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    place.filters |= {"unbroken": unbroken, "breakable": breakable}
    return place


def breakable(path: str) -> Markup:
    """Let a module path break after its dots, so that a narrow screen shows it whole.

    >>> breakable("layer1.0<b>")
    Markup('layer1.<wbr>0&lt;b&gt;')
    """
    return Markup(".<wbr>").join(path.split("."))


def unbroken(text: str) -> str:
    r"""Keep a number and its unit on one line.

    >>> unbroken("99.2 % of 8 × 3 kB")
    '99.2\xa0% of 8\xa0× 3\xa0kB'
    """
    return re.sub(r"(?<=\d) (?=%|×|points\b|ms\b|[kMGT]?B\b)", "\u00a0", text)


def _asset(name: str) -> str:
    return files("abridged.report").joinpath("templates", name).read_text("utf-8")


def _figures(plot: Plot) -> dict[str, object]:
    return {"name": plot.name, "choices": [choice.figure for choice in plot.choices]}


def _json(value: object) -> str:
    """JSON that can stand inside <script>: no character of it can end the element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


@dataclass(frozen=True, slots=True)
class Library:
    """Plotly's script, compressed: the browser unpacks it after the text is shown. 4.8 MB become 2.0 MB."""

    packed: str  # base64 of gzip
    banner: str  # its copyright, which stays readable
    hash: str  # what the page's policy allows to run


@cache
def _library() -> Library:
    from plotly.offline import get_plotlyjs

    read: Callable[[], str] = get_plotlyjs
    source = read()
    packed = gzip.compress(source.encode(), compresslevel=9, mtime=0)
    lines = source[: source.index("*/")].splitlines()
    banner = " · ".join(line.strip("/* ") for line in lines if line.strip("/* "))
    return Library(base64.b64encode(packed).decode(), banner, _hash(source))


def _hash(script: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() + "'"


def _policy(scripts: list[str]) -> str:
    """Content-Security-Policy: no request to anywhere, no script but those whose hash is here."""
    sources = {
        "default-src": "'none'",
        "script-src": " ".join(scripts),
        "style-src": "'unsafe-inline'",
        "img-src": "data: blob:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in sources.items())
