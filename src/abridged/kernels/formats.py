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
    """`pack` is deterministic and names channels and taps, never positions; `unpack` is its exact inverse.

    `dense` formats store zeros as any other weight. `fits` says whether a weight has the form that the tile is for."""

    pack: Callable[[np.ndarray, Tile], bytes]
    unpack: Callable[[bytes, Shape, Tile], np.ndarray]
    dense: bool = False
    fits: Callable[[np.ndarray, Tile], bool] = lambda weight, tile: True


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


FORMATS.entry("dense")(Format(pack_dense, unpack_dense, dense=True))


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


def _panels(channels: int, taps: int, tile: Tile) -> list[slice]:
    """Channels in panels of at most K inputs; an input is one tap of one channel."""
    return cut(channels, tile["K"] // taps)


def pack_csr_panels(weight: np.ndarray, tile: Tile) -> bytes:
    """The channels cut into panels of at most K inputs; the non-zeros by group, panel and piece of ROWS rows, within a piece by
    row, the fullest rows first.

    Starts of every piece (uint32), values (float32), indices within the panel (uint8: channel · T + tap), and for each piece
    the count of every row (uint8) and which of the piece's rows it is (uint8)."""
    groups, outputs, channels, taps = weight.shape
    pieces = [slice(first, first + tile["ROWS"]) for first in range(0, outputs, tile["ROWS"])]
    panels = _panels(channels, taps, tile)
    units = [
        np.ascontiguousarray(weight[g, rows, inputs]).reshape(len(weight[g, rows]), -1)
        for g in range(groups)
        for inputs in panels
        for rows in pieces
    ]
    counts = [np.count_nonzero(unit, axis=1) for unit in units]
    orders = [np.argsort(-count, kind="stable") for count in counts]
    sorted_units = [unit[order] for unit, order in zip(units, orders, strict=True)]
    found = [np.nonzero(unit) for unit in sorted_units]
    starts = np.cumsum([0, *(len(rows) for rows, _ in found)]).astype(np.uint32)
    values = np.concatenate([unit[at] for unit, at in zip(sorted_units, found, strict=True)]).astype(np.float32)
    indices = np.concatenate([inputs for _, inputs in found]).astype(np.uint8)
    sizes = np.concatenate([count[order] for count, order in zip(counts, orders, strict=True)]).astype(np.uint8)
    return sections(starts, values, indices, sizes, np.concatenate(orders).astype(np.uint8))


def unpack_csr_panels(data: bytes, shape: Shape, tile: Tile) -> np.ndarray:
    """Inverse of `pack_csr_panels`."""
    groups, outputs, channels, taps = shape
    panels = _panels(channels, taps, tile)
    firsts = range(0, outputs, tile["ROWS"])
    rows = groups * len(panels) * outputs
    starts, at = _section(data, 0, np.uint32, groups * len(panels) * len(firsts) + 1)
    values, at = _section(data, at, np.float32, int(starts[-1]))
    indices, at = _section(data, at, np.uint8, int(starts[-1]))
    counts, at = _section(data, at, np.uint8, rows)
    orders, at = _section(data, at, np.uint8, rows)
    weight = np.zeros((groups, outputs, channels * taps), np.float32)
    units = np.split(orders.reshape(-1, outputs), firsts[1:], axis=1)  # of each piece, in every group and panel
    row = np.concatenate([unit + np.intp(first) for unit, first in zip(units, firsts, strict=True)], axis=1)
    unit, place = np.divmod(np.repeat(np.arange(rows), counts), outputs)
    group, panel = np.divmod(unit, len(panels))
    weight[group, row[unit, place], np.array([piece.start * taps for piece in panels])[panel] + indices] = values
    return weight.reshape(shape)


FORMATS.entry("csr_panels")(
    Format(pack_csr_panels, unpack_csr_panels, fits=lambda weight, tile: weight.shape[3] <= tile["K"])
)


FULL = 0.9  # share of the weights within kept blocks (or among N of M) that must not be zero for the form to pay


def _blocks(weight: np.ndarray, tile: Tile) -> np.ndarray:
    """(bands, blocks along the inputs, BC, BR): a weight of G · O rows and C · T inputs in blocks of BR rows and BC inputs."""
    groups, outputs, channels, taps = weight.shape
    rows, columns = groups * outputs // tile["BR"], channels * taps // tile["BC"]
    return weight.reshape(rows, tile["BR"], columns, tile["BC"]).transpose(0, 2, 3, 1)


def fits_blocks(weight: np.ndarray, tile: Tile) -> bool:
    """Whether whole blocks are zero or (nearly) full."""
    _, outputs, channels, taps = weight.shape
    if outputs % tile["BR"] or channels * taps % tile["BC"]:
        return False
    kept = int((_blocks(weight, tile) != 0).any(axis=(2, 3)).sum()) * tile["BR"] * tile["BC"]
    return kept > 0 and bool(np.count_nonzero(weight) >= FULL * kept)


def pack_blocks(weight: np.ndarray, tile: Tile) -> bytes:
    """Starts of the bands of BR rows (uint32), blocks (float32), first inputs / BC (uint16 where that fits)."""
    blocks = _blocks(weight, tile)
    band, column = np.nonzero((blocks != 0).any(axis=(2, 3)))
    starts = np.searchsorted(band, np.arange(len(blocks) + 1)).astype(np.uint32)
    indices = column.astype(_block_index(blocks.shape[1]))
    return sections(starts, blocks[band, column].astype(np.float32), indices)


def unpack_blocks(data: bytes, shape: Shape, tile: Tile) -> np.ndarray:
    """Inverse of `pack_blocks`."""
    groups, outputs, channels, taps = shape
    bands, columns = groups * outputs // tile["BR"], channels * taps // tile["BC"]
    starts, at = _section(data, 0, np.uint32, bands + 1)
    values, at = _section(data, at, np.float32, int(starts[-1]) * tile["BR"] * tile["BC"])
    indices, at = _section(data, at, _block_index(columns), int(starts[-1]))
    blocks = np.zeros((bands, columns, tile["BC"], tile["BR"]), np.float32)
    band = np.repeat(np.arange(bands), np.diff(starts))
    blocks[band, indices] = values.reshape(-1, tile["BC"], tile["BR"])
    return blocks.transpose(0, 3, 1, 2).reshape(shape)


def _block_index(columns: int) -> type[np.unsignedinteger[Any]]:
    return np.uint16 if columns <= 1 << 16 else np.uint32


FORMATS.entry("blocks")(Format(pack_blocks, unpack_blocks, fits=fits_blocks))


def fits_nm(weight: np.ndarray, tile: Tile) -> bool:
    """Whether at most (and nearly always) N of every M neighbouring inputs are not zero."""
    _, _, channels, taps = weight.shape
    if channels * taps % tile["M"]:
        return False
    counts = np.count_nonzero(weight.reshape(-1, tile["M"]), axis=1)
    return int(counts.max()) <= tile["N"] and int(counts.sum()) >= FULL * tile["N"] * len(counts)


def pack_nm(weight: np.ndarray, tile: Tile) -> bytes:
    """N values (float32) of every M inputs, in order, and which of the M they are (uint8)."""
    quads = weight.reshape(-1, tile["M"])
    which = np.sort(np.argsort(quads == 0, axis=1, kind="stable")[:, : tile["N"]], axis=1)
    values = np.take_along_axis(quads, which, axis=1)
    return sections(np.ascontiguousarray(values, np.float32), which.astype(np.uint8))


def unpack_nm(data: bytes, shape: Shape, tile: Tile) -> np.ndarray:
    """Inverse of `pack_nm`."""
    quads = int(np.prod(shape)) // tile["M"]
    values, at = _section(data, 0, np.float32, quads * tile["N"])
    which, at = _section(data, at, np.uint8, quads * tile["N"])
    weight = np.zeros((quads, tile["M"]), np.float32)
    np.put_along_axis(weight, which.reshape(quads, -1).astype(np.intp), values.reshape(quads, -1), axis=1)
    return weight.reshape(shape)


FORMATS.entry("nm")(Format(pack_nm, unpack_nm, fits=fits_nm))


def pack_columns(weight: np.ndarray, tile: Tile) -> bytes:
    """Outputs in panels of at most M sixteens (zeros fill the last), side by side for each tap of each channel."""
    groups, outputs, channels, taps = weight.shape
    rows = np.zeros((groups, -(-outputs // 16), 16, channels * taps), np.float32)
    rows.reshape(groups, -1, channels * taps)[:, :outputs] = weight.reshape(groups, outputs, -1)
    panels = [rows[g, piece].transpose(2, 0, 1) for g in range(groups) for piece in cut(rows.shape[1], tile["M"])]
    return sections(np.concatenate([panel.ravel() for panel in panels]))


def unpack_columns(data: bytes, shape: Shape, tile: Tile) -> np.ndarray:
    """Inverse of `pack_columns`."""
    groups, outputs, channels, taps = shape
    sixteens, inputs = -(-outputs // 16), channels * taps
    values = np.frombuffer(data, np.float32, groups * sixteens * 16 * inputs).reshape(groups, -1)
    panels = [values[:, 16 * inputs * piece.start : 16 * inputs * piece.stop] for piece in cut(sixteens, tile["M"])]
    rows = np.concatenate([panel.reshape(groups, inputs, -1) for panel in panels], axis=2)
    return rows.transpose(0, 2, 1)[:, :outputs].reshape(shape)


FORMATS.entry("columns")(Format(pack_columns, unpack_columns, dense=True))

FORMATS.entry("taps")(
    Format(
        lambda weight, tile: sections(np.ascontiguousarray(weight, np.float32)),
        lambda data, shape, tile: np.frombuffer(data, np.float32, int(np.prod(shape))).reshape(shape),
        dense=True,
    )
)
