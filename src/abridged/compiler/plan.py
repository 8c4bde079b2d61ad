"""What the compiler decides, as frozen data: where every value lies, and which kernel runs when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from abridged.graph.graph import Node

LANES = 16  # floats by which rows are rounded, whatever the machine's vectors are: one layout serves them all
SLACK = 16 * LANES  # floats behind a buffer that kernels may read, and never use

Weights = NDArray[np.float32]

# How C names the elements of a value; values of other types are refused.
C_TYPES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.int64: "int64_t",
    torch.int32: "int32_t",
    torch.int16: "int16_t",
    torch.int8: "int8_t",
    torch.uint8: "uint8_t",
    torch.bool: "uint8_t",
}


@dataclass(frozen=True, slots=True)
class Machine:
    """What kernels are chosen for: how many vector registers their sums may fill, of how many floats, whether an operating
    system is there, with a stack of its size, and how many threads share the work."""

    registers: int = 16
    lanes: int = 1
    hosted: bool = False
    threads: int = 1

    def hold(self, sums: int) -> bool:
        """Whether so many vectors fill the registers, and no more than that."""
        return self.registers // 2 < sums <= self.registers


ANY_MACHINE = Machine()  # the plainest


def rounded(n: int) -> int:
    """n, up to a multiple of LANES."""
    return -(-n // LANES) * LANES


@dataclass(frozen=True, slots=True)
class Bands:
    """Maps cut into bands of so many `lines` each, of which the last may have fewer; a band of all channels lies by itself, `apart`
    elements from the next. A thread that has one shares no memory with the others but the lines where bands meet."""

    count: int
    lines: int
    apart: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Element [i, j, …] of a value is at buffer[origin + i·strides[0] + j·strides[1] + …], in elements of C type `type`.

    `zero`: what lies between and around the elements is zero, as far as the layout was asked for. With `bands`, (1, C, H, W) lies
    in bands of lines: line h is at h % lines of band h // lines."""

    buffer: str
    origin: int
    strides: tuple[int, ...]
    zero: bool = False
    type: str = "float"
    bands: Bands | None = None

    def at(self, offset: int, strides: tuple[int, ...] | None = None) -> Layout:
        """The same buffer, seen from another element, perhaps along other axes."""
        return replace(self, origin=self.origin + offset, strides=self.strides if strides is None else strides)

    def bare(self, strides: tuple[int, ...]) -> Layout:
        """The same elements along other axes, nothing known of what lies between them."""
        return replace(self, strides=strides, zero=False)

    def band(self, index: int) -> Layout:
        """The lines of one band."""
        return self if self.bands is None else replace(self.at(index * self.bands.apart), bands=None)

    def of_band(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of one band of a value of this shape."""
        return (*shape[:2], self.bands.lines, *shape[3:]) if self.bands else shape

    @property
    def each(self) -> tuple[Layout, ...]:
        """All bands."""
        return tuple(map(self.band, range(self.bands.count if self.bands else 1)))

    def line(self, index: int) -> Layout:
        """The lines of a band from this one of the map on."""
        lines = self.bands.lines if self.bands else index + 1
        return self.band(index // lines).at(index % lines * self.strides[2])

    @property
    def cut(self) -> int:
        """The lines of a band; 0 where there are none."""
        return self.bands.lines if self.bands else 0

    @property
    def apart(self) -> int:
        """From one band to the next."""
        return self.bands.apart if self.bands else 0


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of row-major order."""
    return tuple(prod(shape[i + 1 :]) for i in range(len(shape)))


def plain(buffer: str, shape: tuple[int, ...], dtype: torch.dtype) -> Layout:
    """All of a buffer, in row-major order."""
    return Layout(buffer, 0, contiguous(shape), type=C_TYPES.get(dtype, "float"))


def floats(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """The room that a contiguous value takes, in floats."""
    return -(-prod(shape) * dtype.itemsize // 4)


@dataclass(frozen=True, slots=True)
class Mask:
    """All ones at the positions Σ index·stride of `shape`, zero between them, up to `rounded(span)`."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def span(self) -> int:
        return 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))


@dataclass(frozen=True, slots=True)
class Call:
    """One instance of a kernel family, or (family "") a C function of the compiler's own whose text names itself `NAME`.

    Two equal calls share one function."""

    family: str
    macros: tuple[tuple[str, int | str], ...] = ()
    text: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to run a step: the kernel, and the format of its packed weights with the tile they are packed for."""

    call: Call
    format: str = ""
    tile: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, eq=False)
class Step:
    """One kernel call of the emitted function. `weight` (O, C, T) is packed for the choice; `bias` has O numbers.

    The kernel computes one band of what is written, and is called for each of its bands. It reads the same band of what has bands; or,
    `by_line`, finds each line of the map wherever that lies."""

    node: Node
    choices: tuple[Choice, ...]
    reads: tuple[Layout, ...]
    write: Layout
    residual: Layout | None = None
    weight: Weights | None = None
    bias: Weights | None = None
    mask: Mask | None = None
    clears: tuple[tuple[Layout, int], ...] = ()  # floats to set to zero before the call
    by_line: bool = False

    @property
    def bands(self) -> int:
        return len(self.write.each)

    @property
    def choice(self) -> Choice:
        return self.choices[0]

    @property
    def grouped(self) -> Weights:
        """The weight as formats pack it: (groups, outputs of one, channels, taps)."""
        assert self.weight is not None
        groups = int(dict(self.choice.call.macros).get("G", 1))
        return self.weight.reshape(groups, -1, *self.weight.shape[1:])


@dataclass(frozen=True, slots=True)
class Parts:
    """A batch of which so many parts run one after the other; `inputs` and `outputs`: bytes of a part of each."""

    count: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """Steps in order; `sizes` of the buffers in floats; inputs, outputs and constants are buffers too. With `parts`, the steps are
    those of one part of the batch."""

    steps: tuple[Step, ...]
    sizes: Mapping[str, int]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, NDArray[Any]]
    offsets: Mapping[str, int] = field(default_factory=dict)  # of each arena buffer, in floats
    masks: Mapping[Mask, int] = field(default_factory=dict)
    arena: int = 0  # floats
    parts: Parts | None = None
