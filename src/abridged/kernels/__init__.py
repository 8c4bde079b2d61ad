"""Kernels: plain C with compiler vector extensions, one file per family, instantiated once per shape.

A family's file opens with a front matter that names its op, weight format, tiles and macros; `simd.h` is all that it
needs. What it computes is checked against numpy in float64 by one law-suite, which reads the same front matter.
"""

from abridged.kernels.families import Family, Tile, families, instantiate, preamble
from abridged.kernels.formats import FORMATS, Format

__all__ = ["FORMATS", "Family", "Format", "Tile", "families", "instantiate", "preamble"]
