"""The law-suite of the linear kernels: every family, tile and vector width against float64, around every edge of a tile."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from kernel_checks import MACHINES, Args, build, call, fenced, guarded, instance

from abridged.kernels import FORMATS, families, instantiate, preamble

LINEAR = ("conv", "linear")
TAPS = {1: (0,), 3: (-1, 0, 1), 9: (-9, -8, -7, -1, 0, 1, 7, 8, 9)}
REACH = 16  # positions before and after a row's own that taps read, rounded up to whole steps


@dataclass(frozen=True)
class Case:
    family: str
    tile: tuple[tuple[str, int], ...]
    groups: int
    outputs: int
    channels: int
    taps: int
    span: int
    zeros: str


def weight_of(case: Case, rng: np.random.Generator) -> np.ndarray:
    weight = rng.standard_normal((case.groups, case.outputs, case.channels, case.taps)).astype(np.float32)
    if case.zeros == "one":
        only = weight[0, -1, 0, -1]
        weight[:] = 0
        weight[0, -1, 0, -1] = only
    elif case.zeros == "rows":
        weight[rng.random(weight.shape) < 0.7] = 0
        weight[:, 0] = 0
    elif case.zeros == "channels":
        weight[:, :, ::2] = 0
    elif case.zeros == "all":
        weight[:] = 0
    if case.family == "rows_nm":
        tile = dict(case.tile)
        order = rng.permuted(np.tile(np.arange(tile["M"]), (weight.size // tile["M"], 1)), axis=1)
        weight[order.reshape(weight.shape) >= tile["N"]] = 0
    return weight


CHANNELS = {"depthwise": 1, "rows_csr_panels": 43, "rows_blocks": 8, "rows_nm": 8}  # several panels; whole blocks


def cases() -> list[Case]:
    """Outputs, positions and taps around each tile: 1, one less, all of it, one more, primes; and every kind of zeros."""
    found = []
    for name, family in families().items():
        if family.op != "conv" or family.strides:
            continue
        for tile in family.tiles:
            m, nv = tile.get("M", 4), tile["NV"] * 16
            for outputs, span, taps, zeros in [
                (1, 1, 1, "none"), (m - 1, nv - 1, 9, "rows"), (m, nv, 3, "one"), (m + 1, nv + 1, 1, "channels"),
                (13, 3 * nv + 5, 9, "all"), (17, 61, 9, "none"),
            ]:  # fmt: skip
                channels, band = CHANNELS.get(name, 5), tile.get("BR", 1)
                outputs = -(-outputs // band) * band
                found.append(Case(name, tuple(tile.items()), 2, outputs, channels, taps, span, zeros))
    return found


def macros_of(case: Case) -> dict[str, int | str]:
    row = -(-case.span // 16) * 16 + 16
    return {
        "STRIDED": 0, "G": case.groups, "O": case.outputs, "C": case.channels, "T": case.taps, "SPAN": case.span,
        "TAPS": "{" + ", ".join(map(str, TAPS[case.taps])) + "}", "XROW": row, "YROW": row, "RROW": row,
        "MASK": 1, "CLEAR": 16, "RESIDUAL": int(case.span % 2), "EPILOGUE(v, r)": "v_relu((v) + (r))", **dict(case.tile),
    }  # fmt: skip


def oracle(case: Case, weight: np.ndarray, x, r, b, mask) -> tuple[np.ndarray, np.ndarray]:
    """Outputs in float64 (rows, span), and the sum of magnitudes that bounds their rounding."""
    at = REACH + np.arange(case.span)
    reads = np.stack([x[:, at + tap] for tap in TAPS[case.taps]], 1).astype(np.float64)  # (G C, T, span)
    reads = reads.reshape(case.groups, case.channels, case.taps, -1)
    y = np.einsum("goct,gctp->gop", weight.astype(np.float64), reads).reshape(-1, case.span) + b[:, None]
    size = np.einsum("goct,gctp->gop", abs(weight.astype(np.float64)), abs(reads)).reshape(y.shape) + abs(b)[:, None]
    if case.span % 2:
        y, size = y + r, size + abs(r)
    return np.maximum(y, 0) * (mask[: case.span] < 0), size


@pytest.mark.parametrize("machine", MACHINES)
def test_rows_equal_float64_around_every_edge(machine: str, tmp_path: Path) -> None:
    every = cases()
    text = preamble() + "".join(
        instance(families()[case.family], f"k{i}", macros_of(case)) for i, case in enumerate(every)
    )
    library = build(text, tmp_path, MACHINES[machine])
    for i, case in enumerate(every):
        rng = np.random.default_rng(i)
        form, tile = FORMATS[families()[case.family].format], dict(case.tile)
        weight, row = weight_of(case, rng), int(macros_of(case)["XROW"])
        packed = form.pack(weight, tile)
        assert np.array_equal(form.unpack(packed, weight.shape, tile), weight)
        inputs, outputs = case.groups * case.channels, case.groups * case.outputs
        x = rng.standard_normal(REACH + inputs * row).astype(np.float32)
        x[REACH:].reshape(inputs, row)[:, case.span + 9 : -9] = np.nan  # beyond the taps' reach: must not show
        r = rng.standard_normal((outputs, row)).astype(np.float32)
        b = rng.standard_normal(outputs).astype(np.float32)
        mask = np.where(rng.random(row) < 0.9, -1, 0).astype(np.int32)
        mask[case.span :] = 0
        seen = np.lib.stride_tricks.as_strided(x, (inputs, row + REACH), (4 * row, 4))
        want, size = oracle(case, weight, seen, r[:, : case.span], b, mask)
        results = []
        for split, at_end in ((1, True), (3, False)):
            y = guarded(outputs * row, at_end)
            buffers = [fenced(content, at_end) for content in (x, r, packed, b, mask)]
            start = buffers[0][REACH:].ctypes.data
            args = Args(start, y.ctypes.data, *(buffer.ctypes.data for buffer in buffers[1:]))
            call(library, f"k{i}", args, split)
            results.append(y.reshape(outputs, row))
        assert np.array_equal(*results), f"{case}: the split of the work shows"
        bound = (case.channels * case.taps + 3) * np.finfo(np.float32).eps * size
        assert (abs(results[0][:, : case.span] - want) <= bound).all(), case
        assert not results[0][:, case.span :].any(), f"{case}: padding is not zero"


@pytest.mark.parametrize("family", [name for name, family in families().items() if family.op == "linear"])
@pytest.mark.parametrize("zeros", ["none", "rows", "one", "channels", "all"])
def test_matrix_vector_equals_float64(family: str, zeros: str, tmp_path: Path) -> None:
    kernel, every = families()[family], []
    for tile in kernel.tiles:
        for outputs, inputs in [(1, 1), (15, 7), (16, 16), (17, 33), (130, 67)]:
            every.append(Case(family, tuple(tile.items()), 1, outputs, inputs, 1, 1, zeros))
    epilogue: dict[str, int | str] = {"RESIDUAL": 1, "EPILOGUE(v, r)": "v_relu((v) + (r))"}
    text = preamble()
    for i, case in enumerate(every):
        text += instance(kernel, f"k{i}", {"O": case.outputs, "K": case.channels, **epilogue, **dict(case.tile)})
    library = build(text, tmp_path, MACHINES["native"])
    for i, case in enumerate(every):
        rng, outputs, tile = np.random.default_rng(i), case.outputs, dict(case.tile)
        weight, steps = weight_of(case, rng), -(-outputs // 16) * 16
        x, r, b = (rng.standard_normal(n).astype(np.float32) for n in (case.channels, outputs, steps))
        matrix = weight[0, :, :, 0].astype(np.float64)
        want = np.maximum(matrix @ x + b[:outputs] + r, 0)
        magnitude = abs(matrix) @ abs(x) + abs(b[:outputs]) + abs(r)
        packed = FORMATS[kernel.format].pack(weight, tile)
        assert np.array_equal(FORMATS[kernel.format].unpack(packed, weight.shape, tile), weight)
        for split, at_end in ((1, True), (2, False)):
            y = guarded(steps, at_end)
            buffers = [fenced(x, at_end, 0), fenced(r, at_end, 0), fenced(packed, at_end), fenced(b, at_end, 0)]
            x_, r_, w_, b_ = (buffer.ctypes.data for buffer in buffers)
            call(library, f"k{i}", Args(x_, y.ctypes.data, r_, w_, b_, None), split)
            error = abs(y[:outputs] - want)
            assert (error <= (case.channels + 3) * np.finfo(np.float32).eps * magnitude).all(), case


def test_a_missing_macro_is_named() -> None:
    with pytest.raises(ValueError, match=re.escape("needs O, C")):
        instantiate(families()["rows_dense"], "k", {})
