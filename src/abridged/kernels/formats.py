"""Weight formats: how a weight (groups, outputs per group, channels, taps) is laid out for a kernel, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from abridged.tables import Table

Shape = tuple[int, int, int, int]  # (G, O, C, T)
Tile = Mapping[str, int]


@dataclass(frozen=True)
class Format:
    """`pack` is deterministic and names channels and taps, never positions; `unpack` is its exact inverse."""

    pack: Callable[[np.ndarray, Tile], bytes]
    unpack: Callable[[bytes, Shape, Tile], np.ndarray]


FORMATS = Table[Format]("weight format")


def cut(length: int, most: int) -> list[slice]:
    """Nearly equal pieces of at most `most`, the longer ones first.

    >>> cut(7, 3)
    [slice(0, 3, None), slice(3, 5, None), slice(5, 7, None)]
    """
    pieces = -(-length // most)
    sizes = [length // pieces + (i < length % pieces) for i in range(pieces)]
    ends = np.cumsum([0, *sizes]).tolist()
    return [slice(start, end) for start, end in pairwise(ends)]


def sections(*arrays: np.ndarray) -> bytes:
    """The arrays one after the other, each at a multiple of 64 bytes."""
    return b"".join(array.tobytes().ljust(-(-array.nbytes // 64) * 64, b"\0") for array in arrays)


def _section(data: bytes, start: int, dtype: Any, count: int) -> tuple[np.ndarray, int]:
    array: np.ndarray = np.frombuffer(data, dtype, count, start)
    return array, start + -(-array.nbytes // 64) * 64


def tap_bits(taps: int) -> int:
    """How many low bits of an index name the tap.

    >>> [tap_bits(taps) for taps in (1, 2, 9, 25, 49, 121)]
    [0, 1, 4, 5, 6, 12]
    """
    bits = (taps - 1).bit_length()
    return bits if bits <= 6 else 12


def _index_type(channels: int, taps: int) -> Any:
    return np.uint16 if channels << tap_bits(taps) <= 65536 else np.uint32


def pack_dense(weight: np.ndarray, tile: Tile) -> bytes:
    """Panels of at most M outputs; within a panel channel by channel, tap by tap, the outputs side by side."""
    groups, outputs, channels, taps = weight.shape
    rows = weight.reshape(groups, outputs, channels * taps)
    panels = [rows[g, piece].T for g in range(groups) for piece in cut(outputs, tile["M"])]
    return sections(np.concatenate([np.ascontiguousarray(panel, np.float32).ravel() for panel in panels]))


def unpack_dense(data: bytes, shape: Shape, tile: Tile) -> np.ndarray:
    """Inverse of `pack_dense`."""
    groups, outputs, channels, taps = shape
    values = np.frombuffer(data, np.float32, groups * outputs * channels * taps).reshape(groups, -1)
    weight = np.empty((groups, outputs, channels * taps), np.float32)
    for piece in cut(outputs, tile["M"]):
        panel = values[:, piece.start * channels * taps : piece.stop * channels * taps]
        weight[:, piece] = panel.reshape(groups, channels * taps, -1).transpose(0, 2, 1)
    return weight.reshape(shape)


FORMATS.entry("dense")(Format(pack_dense, unpack_dense))


def pack_csr(weight: np.ndarray, tile: Tile) -> bytes:
    """Starts of the rows (uint32), values (float32), indices channel << tap_bits | tap (uint16 where that fits)."""
    groups, outputs, channels, taps = weight.shape
    rows = weight.reshape(groups * outputs, channels, taps)
    row, channel, tap = np.nonzero(rows)
    starts = np.searchsorted(row, np.arange(groups * outputs + 1)).astype(np.uint32)
    indices = (channel << tap_bits(taps) | tap).astype(_index_type(channels, taps))
    return sections(starts, rows[row, channel, tap].astype(np.float32), indices)


def unpack_csr(data: bytes, shape: Shape, tile: Tile) -> np.ndarray:
    """Inverse of `pack_csr`."""
    groups, outputs, channels, taps = shape
    starts, at = _section(data, 0, np.uint32, groups * outputs + 1)
    values, at = _section(data, at, np.float32, int(starts[-1]))
    indices, at = _section(data, at, _index_type(channels, taps), int(starts[-1]))
    weight = np.zeros((groups * outputs, channels, taps), np.float32)
    row = np.repeat(np.arange(groups * outputs), np.diff(starts))
    weight[row, indices >> tap_bits(taps), indices & (1 << tap_bits(taps)) - 1] = values
    return weight.reshape(shape)


FORMATS.entry("csr")(Format(pack_csr, unpack_csr))


def pack_columns(weight: np.ndarray, tile: Tile) -> bytes:
    """For one position: outputs in panels of at most M sixteens (zeros fill the last), side by side for each input."""
    outputs, inputs = weight.shape[1], weight.shape[2]
    rows = np.zeros((-(-outputs // 16), 16, inputs), np.float32)
    rows.reshape(-1, inputs)[:outputs] = weight.reshape(outputs, inputs)
    return sections(np.concatenate([rows[piece].transpose(2, 0, 1).ravel() for piece in cut(len(rows), tile["M"])]))


def unpack_columns(data: bytes, shape: Shape, tile: Tile) -> np.ndarray:
    """Inverse of `pack_columns`."""
    outputs, inputs = shape[1], shape[2]
    sixteens = -(-outputs // 16)
    values = np.frombuffer(data, np.float32, sixteens * 16 * inputs)
    panels = [values[16 * inputs * piece.start : 16 * inputs * piece.stop] for piece in cut(sixteens, tile["M"])]
    return np.concatenate([panel.reshape(inputs, -1).T for panel in panels])[:outputs].reshape(shape)


FORMATS.entry("columns")(Format(pack_columns, unpack_columns))

FORMATS.entry("taps")(
    Format(
        lambda weight, tile: sections(np.ascontiguousarray(weight, np.float32)),
        lambda data, shape, tile: np.frombuffer(data, np.float32, int(np.prod(shape))).reshape(shape),
    )
)
