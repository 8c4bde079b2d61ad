"""Kernel families: C files with a front matter, and their instances for one shape."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

Tile = Mapping[str, int]

_FRONT = re.compile(r"/\* ---\n(.*?)--- \*/\n", re.DOTALL)
_DEFINED = re.compile(r"^#define (\w+)", re.MULTILINE)


@dataclass(frozen=True)
class Family:
    """One C file: what it computes, from which weight format, for which macros; the first tile is the default."""

    name: str
    op: str
    format: str
    dtype: str
    doc: str
    macros: tuple[str, ...]
    tiles: tuple[Tile, ...]
    source: str
    rank: int = 0  # of the families that can, the highest is tried first
    strides: str = ""  # "too" or "only": reads inputs at strides of their own
    hosted: bool = False  # takes some 100 kB of stack, which threads of a system have and small devices have not


def _text(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def read(text: str) -> Family:
    """A family from the text of its file. The front matter is YAML; `with` names files that go before it."""
    match = _FRONT.search(text)
    if match is None:
        raise ValueError("a kernel file starts with its front matter: /* --- ... --- */")
    front: dict[str, Any] = yaml.safe_load(match.group(1))
    name = front.pop("family")
    shared = "".join(map(_text, front.pop("with", "").split()))
    macros, tiles = tuple(front.pop("macros").split()), tuple(front.pop("tiles", [{}]))
    return Family(name=name, macros=macros, tiles=tiles, source=shared + text[match.end() :], **front)


@cache
def families() -> Mapping[str, Family]:
    """Every family of this folder by name."""
    found = [read(_text(entry.name)) for entry in files(__package__).iterdir() if entry.name.endswith(".c")]
    return {family.name: family for family in sorted(found, key=lambda family: family.name)}


def preamble() -> str:
    """`simd.h`, which an emitted file includes once, before every instance."""
    return _text("simd.h")


def instantiate(family: Family, symbol: str, macros: Mapping[str, int | str]) -> str:
    """C text that defines the function `symbol` and the constant `symbol_tasks` for one shape.

    Macros that the tile names default to the family's first tile; those that the family does not name are left out. A key may
    carry parameters: "EPILOGUE(v, r)".
    """
    given = {re.split(r"\W", key)[0]: (key, value) for key, value in {**family.tiles[0], **macros}.items()}
    if missing := [name for name in family.macros if name not in given]:
        raise ValueError(f"kernel family {family.name} needs {', '.join(missing)}")
    used = {name: given[name] for name in given if name in family.macros or name in family.tiles[0]}
    used["SYMBOL"] = "SYMBOL", symbol
    before = "".join(f"#define {key} {value}\n" for key, value in used.values())
    after = "".join(f"#undef {name}\n" for name in sorted({*_DEFINED.findall(family.source), *used}))
    return before + family.source + after
