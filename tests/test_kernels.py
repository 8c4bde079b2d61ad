"""The law-suite of the kernels: every family, tile and vector width against float64, around every edge of a tile."""

import ctypes
import re
import subprocess
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest

from abridged.compiler.build import find_compiler
from abridged.errors import InputError
from abridged.kernels import FORMATS, families, instantiate, preamble

SLACK = 512  # floats before and after every buffer; those before and after the outputs must stay as they were
CONV = [name for name, family in families().items() if family.op == "conv" and "C" in family.macros]
TAPS = {1: (0,), 3: (-1, 0, 1), 9: (-9, -8, -7, -1, 0, 1, 7, 8, 9)}
FLAGS = {"native": ["-march=native"], "four lanes": ["-DLANES=4"], "scalar": ["-DLANES=1"]}
FLAGS["undefined behaviour traps"] = ["-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"]


class Args(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("x", "y", "r", "w", "b", "mask")]


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
    elif case.zeros == "all":
        weight[:] = 0
    if case.family == "rows_nm":
        tile = dict(case.tile)
        order = rng.permuted(np.tile(np.arange(tile["M"]), (weight.size // tile["M"], 1)), axis=1)
        weight[order.reshape(weight.shape) >= tile["N"]] = 0
    return weight


CHANNELS = {"depthwise": 1, "rows_csr_panels": 43, "rows_blocks": 8, "rows_nm": 8}  # several panels; whole blocks


def cases() -> list[Case]:
    found = []
    for name in [*CONV, "depthwise"]:
        for tile in families()[name].tiles:
            m, nv = tile.get("M", 4), tile["NV"] * 16
            for outputs, span, taps, zeros in [
                (1, 1, 1, "none"), (m - 1, nv - 1, 9, "rows"), (m, nv, 3, "one"), (m + 1, nv + 1, 1, "rows"),
                (13, 3 * nv + 5, 9, "all"), (17, 61, 9, "none"),
            ]:  # fmt: skip
                channels, band = CHANNELS.get(name, 5), tile.get("BR", 1)
                outputs = -(-outputs // band) * band
                found.append(Case(name, tuple(tile.items()), 2, outputs, channels, taps, span, zeros))
    return found


def macros_of(case: Case) -> dict[str, int | str]:
    row = -(-case.span // 16) * 16 + 16
    return {
        "G": case.groups, "O": case.outputs, "C": case.channels, "T": case.taps, "SPAN": case.span,
        "TAPS": "{" + ", ".join(map(str, TAPS[case.taps])) + "}", "XROW": row, "YROW": row, "RROW": row,
        "MASK": 1, "CLEAR": 16, "RESIDUAL": int(case.span % 2), "EPILOGUE(v, r)": "v_relu((v) + (r))", **dict(case.tile),
    }  # fmt: skip


def build(text: str, folder, flags: list[str]) -> ctypes.CDLL:
    (folder / "k.c").write_text(text)
    try:
        compiler = find_compiler()
    except InputError as absent:
        pytest.skip(str(absent))
    options = ["-O2", "-std=gnu11", "-Wall", "-Wextra", "-Wno-psabi", "-Wno-sign-compare", "-Wno-type-limits"]
    options += ["-ffp-contract=fast", "-fno-math-errno", "-shared", "-fPIC", "-DLOCAL=", *flags]
    subprocess.run([*compiler, *options, str(folder / "k.c"), "-o", str(folder / "k.so"), "-lm"], check=True)
    return ctypes.CDLL(str(folder / "k.so"))


def aligned(values: np.ndarray) -> np.ndarray:
    raw = np.empty(values.nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    out = raw[start : start + values.nbytes].view(values.dtype)
    out[:] = values.ravel()
    return out


def call(library: ctypes.CDLL, symbol: str, args: Args, tasks: int, split: int) -> None:
    function = getattr(library, symbol)
    function.argtypes = [ctypes.POINTER(Args), ctypes.c_long, ctypes.c_long]
    cuts = np.linspace(0, tasks, split + 1).astype(int)
    for begin, end in reversed(list(pairwise(cuts))):
        function(args, begin, end)


def oracle(case: Case, weight: np.ndarray, x, r, b, mask) -> tuple[np.ndarray, np.ndarray]:
    """Outputs in float64 (rows, span), and the sum of magnitudes that bounds their rounding."""
    at = SLACK + np.arange(case.span)
    reads = np.stack([x[:, at + tap] for tap in TAPS[case.taps]], 1).astype(np.float64)  # (G C, T, span)
    reads = reads.reshape(case.groups, case.channels, case.taps, -1)
    y = np.einsum("goct,gctp->gop", weight.astype(np.float64), reads).reshape(-1, case.span) + b[:, None]
    size = np.einsum("goct,gctp->gop", abs(weight.astype(np.float64)), abs(reads)).reshape(y.shape) + abs(b)[:, None]
    if case.span % 2:
        y, size = y + r, size + abs(r)
    return np.maximum(y, 0) * (mask[: case.span] < 0), size


def units(symbol: str) -> str:
    return f"long {symbol}_count(void) {{ return {symbol}_tasks; }}\n"


@pytest.mark.parametrize("machine", FLAGS)
def test_rows_equal_float64_around_every_edge(machine: str, tmp_path) -> None:
    every = cases()
    names = {case.family for case in every}
    assert names == {name for name, family in families().items() if family.op == "conv"}
    text = preamble()
    for i, case in enumerate(every):
        text += instantiate(families()[case.family], f"k{i}", macros_of(case)) + units(f"k{i}")
    library = build(text, tmp_path, FLAGS[machine])
    for i, case in enumerate(every):
        rng = np.random.default_rng(i)
        weight, row = weight_of(case, rng), int(macros_of(case)["XROW"])
        packed = FORMATS[families()[case.family].format].pack(weight, dict(case.tile))
        assert np.array_equal(
            FORMATS[families()[case.family].format].unpack(packed, weight.shape, dict(case.tile)), weight
        )
        inputs, outputs = case.groups * case.channels, case.groups * case.outputs
        flat = aligned(rng.standard_normal(inputs * row + 2 * SLACK).astype(np.float32))
        x = np.lib.stride_tricks.as_strided(flat, (inputs, row + SLACK + 16), (4 * row, 4))
        r = aligned(rng.standard_normal(outputs * row).astype(np.float32))
        b = rng.standard_normal(outputs).astype(np.float32)
        mask = np.where(rng.random(row) < 0.9, -1, 0).astype(np.int32)
        mask[case.span :] = 0
        w = aligned(np.frombuffer(packed, np.uint8))
        want, size = oracle(case, weight, x, r.reshape(outputs, row)[:, : case.span], b, mask)
        results = []
        for split in (1, 3):
            y = aligned(np.full(outputs * row + 2 * SLACK, np.nan, np.float32))
            args = Args(flat[SLACK:].ctypes.data, y[SLACK:].ctypes.data, r.ctypes.data, w.ctypes.data, b.ctypes.data, mask.ctypes.data)  # fmt: skip
            call(library, f"k{i}", args, getattr(library, f"k{i}_count")(), split)
            assert np.isnan(y[:SLACK]).all(), case
            assert np.isnan(y[-SLACK:]).all(), case
            results.append(y[SLACK:-SLACK].reshape(outputs, row))
        assert np.array_equal(*results), f"{case}: the split of the work shows"
        bound = (case.channels * case.taps + 3) * np.finfo(np.float32).eps * size
        assert (abs(results[0][:, : case.span] - want) <= bound).all(), case
        assert not results[0][:, case.span :].any(), f"{case}: padding is not zero"


@pytest.mark.parametrize("family", [name for name, family in families().items() if family.op == "linear"])
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 1), (15, 7), (16, 16), (17, 33), (130, 67)])
def test_matrix_vector_equals_float64(family: str, outputs: int, inputs: int, tmp_path) -> None:
    rng = np.random.default_rng(outputs)
    weight = rng.standard_normal((1, outputs, inputs, 1)).astype(np.float32) * (
        rng.random((1, outputs, inputs, 1)) < 0.5
    )
    x, r = aligned(rng.standard_normal(inputs).astype(np.float32)), rng.standard_normal(outputs).astype(np.float32)
    b, steps = rng.standard_normal(outputs).astype(np.float32), -(-outputs // 16) * 16
    want = np.maximum(weight[0, :, :, 0].astype(np.float64) @ x + b + r, 0)
    bound = (inputs + 3) * np.finfo(np.float32).eps * (abs(weight[0, :, :, 0]) @ abs(x) + abs(b) + abs(r))
    kernel, macros = (
        families()[family],
        {"O": outputs, "K": inputs, "RESIDUAL": 1, "EPILOGUE(v, r)": "v_relu((v) + (r))"},
    )
    text = preamble()
    for i, tile in enumerate(kernel.tiles):
        text += instantiate(kernel, f"k{i}", {**macros, **tile}) + units(f"k{i}")
    library = build(text, tmp_path, FLAGS["native"])
    for i, tile in enumerate(kernel.tiles):
        packed = FORMATS[kernel.format].pack(weight, tile)
        assert np.array_equal(FORMATS[kernel.format].unpack(packed, weight.shape, tile), weight)
        w, y = aligned(np.frombuffer(packed, np.uint8)), aligned(np.full(steps + 32, np.nan, np.float32))
        args = Args(x.ctypes.data, y.ctypes.data, r.ctypes.data, w.ctypes.data, b.ctypes.data, None)
        call(library, f"k{i}", args, getattr(library, f"k{i}_count")(), 2)
        assert (abs(y[:outputs] - want) <= bound).all(), tile
        assert np.isnan(y[steps:]).all(), tile


def test_a_missing_macro_is_named() -> None:
    with pytest.raises(ValueError, match=re.escape("needs O, C")):
        instantiate(families()["rows_dense"], "k", {})
