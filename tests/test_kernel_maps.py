"""The law-suite of the kernels that see maps line by line: pools, means, splits, group norms, strided depthwise layers."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kernel_checks import MACHINES, Args, build, call, fenced, guarded, instance
from test_kernels import LINEAR
from torch import Tensor

from abridged.compiler.plan import LANES, rounded
from abridged.graph.graph import Node
from abridged.graph.ops import apply
from abridged.kernels import FORMATS, families, preamble

EPS = float(np.finfo(np.float32).eps)
WIDTHS = (1, 2, 3, 4, 5, 7, 8, 9, 13, 15, 16, 17, 31, 33)  # 1, and around vectors of 4, 8 and 16; primes


@dataclass(frozen=True)
class Strides:
    """Where maps (N, C, H, W) lie in a buffer: as rows with gaps, or interleaved where `step` is not 1."""

    row: int  # of channels
    stack: int  # of images
    pitch: int  # of lines
    step: int = 1

    def of(self, buffer: np.ndarray, shape: tuple[int, int, int, int], origin: int = 0) -> np.ndarray:
        """The maps in the buffer, as an array."""
        bytes_ = (4 * self.stack, 4 * self.row, 4 * self.pitch, 4 * self.step)
        return np.lib.stride_tricks.as_strided(buffer[origin:], shape, bytes_)

    def end(self, shape: tuple[int, int, int, int]) -> int:
        """How many floats there are up to the last element."""
        batch, channels, height, width = (n - 1 for n in shape)
        return 1 + batch * self.stack + channels * self.row + height * self.pitch + width * self.step


def loose(shape: tuple[int, int, int, int], gap: int, step: int = 1) -> Strides:
    """Lines with room between them, rows of whole steps of 16 floats, as the compiler lays them."""
    batch, _, height, width = shape
    pitch = step * width + gap
    stack = pitch * (height + (gap > 0))
    return Strides(rounded(batch * stack) + LANES, stack, pitch, step)


def padded(shape: tuple[int, int, int, int], padding: tuple[int, int], stride: tuple[int, int]) -> Strides:
    """Maps with the zeros around them that a strided window reads; lines of zeros between the images where it is padded."""
    batch, _, height, _ = shape
    lies = loose(shape, padding[1] + stride[1])
    if not padding[0]:
        return lies
    stack = lies.pitch * (height + padding[0] + stride[0])
    return Strides(rounded(batch * stack) + LANES, stack, lies.pitch)


@dataclass(frozen=True)
class Case:
    """One call: the family's macros, what it reads, and what its op says that must stand in y."""

    family: str
    macros: dict[str, int | str]
    x: Tensor
    lies: Strides
    writes: Strides
    want: Tensor  # float64
    bound: float
    weight: np.ndarray | None = None
    bias: np.ndarray | None = None
    residual: bool = False
    padding: tuple[int, int] = (0, 0)  # zeros around every map of x, which the kernel reads
    gaps_are_zero: bool = False
    tight: bool = False  # nothing may be read behind the last element of x

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return tuple(self.x.shape)  # type: ignore[return-value]


def meaning(op: str, *inputs: Tensor | None, **attrs: Any) -> Tensor:
    """What the op table says, in float64."""
    return apply(Node(op, (), (), attrs), tuple(None if x is None else x.double() for x in inputs))[0]


def _maps(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))


def _strides(lies: Strides, letter: str) -> dict[str, int | str]:
    found: dict[str, int | str] = {f"{letter}ROW": lies.row, f"{letter}STACK": lies.stack, f"{letter}PITCH": lies.pitch}
    return found | ({"XAT(line, band)": f"((line) * {lies.pitch})"} if letter == "X" else {})


def _window(x: Tensor, y: Tensor, kernel, stride, padding, dilation) -> dict[str, int | str]:
    names = ("KH", "KW"), ("SY", "SX"), ("PY", "PX"), ("DY", "DX"), ("H", "W"), ("OH", "OW")
    numbers = kernel, stride, padding, dilation, x.shape[2:], y.shape[2:]
    return {name: n for pair, two in zip(names, numbers, strict=True) for name, n in zip(pair, two, strict=True)}


def pools() -> Iterator[Case]:
    """Every kind of window at every width, padded, dilated and hanging over the edge."""
    rng = np.random.default_rng(0)
    for i, (width, average, kernel) in enumerate(product(WIDTHS, (False, True), (1, 2, 3, 5))):
        height, batch, channels = int(rng.choice([1, 4, 7])), 1 + i % 2, 1 + i % 3
        size = (min(kernel, height), min(kernel, width))
        stride = int(rng.integers(1, 4)), int(rng.integers(1, 4))
        padding = int(rng.integers(size[0] // 2 + 1)), int(rng.integers(size[1] // 2 + 1))
        reach = tuple((n + 2 * p - 1) // max(k - 1, 1) for n, p, k in zip((height, width), padding, size, strict=True))
        dilation = (1, 1) if average else tuple(int(rng.integers(1, max(1, min(r, 3)) + 1)) for r in reach)
        ceil, count_pad = bool(rng.integers(2)), bool(rng.integers(2))
        x = _maps(rng, batch, channels, height, width)
        if i % 5 == 0:
            x[:, 0] = 0  # a channel that is gone
        if i % 7 == 0:
            x[0, -1, -1, -1] = np.nan if i % 2 else np.inf
        attrs: dict[str, Any] = {"kernel": size, "stride": stride, "padding": padding, "ceil_mode": ceil}
        attrs |= {"count_include_pad": count_pad} if average else {"dilation": dilation}
        y = meaning("avg_pool" if average else "max_pool", x, **attrs)
        lies, writes = loose(x.shape, i % 3, 1 + i % 4 // 3), loose(y.shape, (i + 1) % 3)
        row_end = rounded(writes.end((y.shape[0], 1, *y.shape[2:])))
        macros = _window(x, y, size, stride, padding, dilation) | _strides(lies, "X") | _strides(writes, "Y")
        macros |= {"C": channels, "N": batch, "XSTEP": lies.step, "AVERAGE": int(average), "COUNT_PAD": int(count_pad)}
        macros |= {"MASK": i % 2, "CLEAR": writes.row - row_end}
        bound = (kernel**2 + 3) * EPS if average else 0.0
        yield Case("pool", macros, x, lies, writes, y, bound, gaps_are_zero=bool(i % 2), tight=True)


def means() -> Iterator[Case]:
    rng = np.random.default_rng(1)
    for i, width in enumerate(WIDTHS):
        x = _maps(rng, 1 + i % 2, 1 + i % 3, (1, 5)[i % 2], width)
        x[0, 0] = 0
        y = meaning("mean", x, axes=(2, 3), keepdim=True)
        lies, writes = loose(x.shape, i % 3), Strides(1, x.shape[1], 1)  # one number per map
        macros = _strides(lies, "X") | {"C": x.shape[1], "N": x.shape[0], "H": x.shape[2], "W": width}
        macros |= {"YROW": writes.row, "YSTACK": writes.stack}
        yield Case("mean", macros, x, lies, writes, y, (x[0, 0].numel() + 3) * EPS, tight=True)


def splits() -> Iterator[Case]:
    """Phase (a, b) of a stride holds at (i, j) what stands at padded coordinates (SY i + a, SX j + b)."""
    rng = np.random.default_rng(2)
    for i, width in enumerate(WIDTHS):
        height, batch, channels = int(rng.choice([1, 2, 6, 7])), 1 + i % 2, 1 + i % 3
        stride, padding = (1 + i % 3, int(rng.integers(1, 4))), (i % 2, int(rng.integers(4)))
        phases = [(a, b) for a in range(stride[0]) for b in range(stride[1])][i % 2 :]
        phases = phases or [(0, 0)]
        lines, columns = height // stride[0] + 1 + i % 3, width // stride[1] + 1 + i % 2
        x = _maps(rng, batch, channels, height, width)
        wide = torch.zeros(batch, channels, (lines + 1) * stride[0] + height, (columns + 1) * stride[1] + width)
        wide[:, :, padding[0] : padding[0] + height, padding[1] : padding[1] + width] = x
        parts = [wide[:, :, a :: stride[0], b :: stride[1]][:, :, :lines, :columns] for a, b in phases]
        y = torch.stack(parts, 2).flatten(1, 2).double()  # (N, C · phases, lines, columns)
        lies, writes = loose(x.shape, i % 3, 1 + i % 4 // 3), loose(y.shape, 0)
        macros = _strides(lies, "X") | _strides(writes, "Y") | {"YROW": writes.row * len(phases), "SUB": writes.row}
        macros |= {"C": channels, "N": batch, "P": len(phases), "HS": lines, "WS": columns, "H": height, "W": width}
        macros |= {"XSTEP": lies.step, "SY": stride[0], "SX": stride[1], "PY": padding[0], "PX": padding[1]}
        macros["PHASES"] = "{" + ", ".join(f"{{{a}, {b}}}" for a, b in phases) + "}"
        yield Case("split", macros, x, lies, writes, y, 0.0, tight=True)


def group_norms() -> Iterator[Case]:
    rng = np.random.default_rng(3)
    for i, width in enumerate(WIDTHS):
        groups, size = 1 + i % 3, (1, 2, 5)[i % 3]
        x = _maps(rng, 2 - i % 2, groups * size, (1, 4)[i % 2], width) + 1
        x[:, :size] = 0  # a group of channels that are gone: its deviation is 0
        scale, shift = _maps(rng, x.shape[1]), _maps(rng, x.shape[1])
        y = meaning("group_norm", x, scale, shift, groups=groups, eps=1e-5)
        lies, writes = loose(x.shape, i % 3), loose(x.shape, (i + 1) % 3)
        macros = _strides(lies, "X") | _strides(writes, "Y") | {"XPLANE": 0, "YPLANE": 0, "D": 1, "EPS": "1e-5f"}
        macros |= {"C": x.shape[1], "CG": size, "N": x.shape[0], "H": x.shape[2], "W": width}
        bias = np.concatenate([np.pad(scale, (0, rounded(x.shape[1]) - x.shape[1])), shift.numpy()])
        # Where a group has one number, that is its mean, and what is left of it is rounding times 1 / √eps.
        bound = (
            40
            * EPS
            * float(y.abs().max() + x.abs().max() * scale.abs().max() * (300 if x[0, :size].numel() < 3 else 1))
        )
        yield Case("group_norm", macros, x, lies, writes, y, bound, bias=bias.astype(np.float32), tight=True)


def strided_depthwise() -> Iterator[Case]:
    rng = np.random.default_rng(4)
    for i, (width, kernel) in enumerate(product(WIDTHS, (1, 3, 5))):
        height, batch, channels, multiplier = int(rng.choice([1, 4, 7])), 1 + i % 2, 1 + i % 3, 1 + i % 2
        stride, dilation = (int(rng.integers(1, 4)), int(rng.integers(1, 4))), (1, 1 + i % 2)
        size, padding = (kernel, kernel), (kernel // 2, dilation[1] * (kernel // 2))
        x, weight = _maps(rng, batch, channels, height, width), _maps(rng, channels * multiplier, 1, *size)
        weight[torch.from_numpy(rng.random(weight.shape)) < (0, 0.7, 1)[i % 3]] = 0
        bias = _maps(rng, channels * multiplier)
        attrs = {"stride": stride, "padding": padding, "dilation": dilation, "groups": channels}
        y = meaning("conv", x, weight, bias, **attrs)
        lies, writes = padded(x.shape, padding, stride), loose(y.shape, 1 + i % 2)
        row_end = rounded(writes.end((batch, 1, *y.shape[2:])))
        macros = _window(x, y, size, stride, padding, dilation) | _strides(lies, "X") | _strides(writes, "Y")
        macros |= {"N": batch, "O": multiplier, "G": channels, "RROW": writes.row, "MASK": 1}
        macros["XAT(line, band)"] = f"((line) * {stride[0] * lies.pitch})"
        macros |= {"CLEAR": writes.row - row_end, "RESIDUAL": i % 2, "EPILOGUE(v, r)": "v_relu((v) + (r))"}
        flat = weight.numpy().reshape(channels, multiplier, 1, -1)
        bound = (kernel**2 + 3) * EPS * float(meaning("conv", x.abs(), weight.abs(), bias.abs(), **attrs).max() + 3)
        yield Case(
            "depthwise_strided", macros, x, lies, writes, y, bound, flat, bias.numpy(), bool(i % 2), padding, True
        )  # fmt: skip


def with_strides(family: str) -> Iterator[Case]:
    """Outputs around sixteens, in groups, of lines of every width and of several lines at once."""
    rng = np.random.default_rng(6)
    for i, (width, kernel) in enumerate(product(WIDTHS, (1, 3))):
        height, batch, groups = (1, 4, 9)[i % 3], 1 + i % 2, 1 + i % 3 // 2
        channels, outputs = (1, 2, 5, 7)[i % 4] + 1, (1, 15, 16, 17, 33, 50)[i % 6]
        stride, dilation = (1 + i % 2, 1 + i % 4), (1, 1 + i % 2)
        size, padding = (kernel, kernel), (kernel // 2, dilation[1] * (kernel // 2))
        x, weight = _maps(rng, batch, groups * channels, height, width), _maps(rng, groups * outputs, channels, *size)
        weight[:, 0] = 0
        if family != "columns_dense":
            weight[torch.from_numpy(rng.random(weight.shape)) < (0.5, 0.9, 1)[i % 3]] = 0
        bias = _maps(rng, groups * outputs)
        attrs = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        y = meaning("conv", x, weight, bias, **attrs)
        lies, writes = padded(x.shape, padding, stride), loose(y.shape, (0, 1, 90)[i % 3])
        row_end = rounded(writes.end((batch, 1, *y.shape[2:])))
        offsets = [
            (a - padding[0]) * lies.pitch + b * dilation[1] - padding[1] for a in range(kernel) for b in range(kernel)
        ]
        macros: dict[str, int | str] = {
            "STRIDED": 1, "O": outputs, "C": channels, "G": groups, "T": kernel**2, "TAPS": "{" + ", ".join(map(str, offsets)) + "}",
            "XROW": lies.row, "XSTACK": lies.stack, "XLINE": stride[0] * lies.pitch * (y.shape[2] > 1), "SX": stride[1],
            "XAT(line, band)": "((line) * XLINE)", "EVEN": i % 2,
            "SPAN": writes.end((batch, 1, *y.shape[2:])), "N": batch, "OH": y.shape[2], "OW": y.shape[3], "YROW": writes.row, "YSTACK": writes.stack, "YPITCH": writes.pitch,
            "RROW": writes.row, "MASK": 1, "CLEAR": writes.row - row_end, "RESIDUAL": i % 2,
            "EPILOGUE(v, r)": "v_relu((v) + (r))",
        }  # fmt: skip
        flat = weight.numpy().reshape(groups, outputs, channels, -1)
        bound = (
            (channels * kernel**2 + 3)
            * EPS
            * float(meaning("conv", x.abs(), weight.abs(), bias.abs(), **attrs).max() + 3)
        )
        yield Case(family, macros, x, lies, writes, y, bound, flat, bias.numpy(), bool(i % 2), padding, True)


LAWS: dict[str, Callable[[], Iterator[Case]]] = {
    "pool": pools,
    "mean": means,
    "split": splits,
    "group_norm": group_norms,
    "depthwise_strided": strided_depthwise,
    # Those that take strides; the others have a law-suite of their own.
    **{name: partial(with_strides, name) for name, family in families().items() if family.strides},
}


def test_no_family_is_left_out() -> None:
    """A new family of an op that has a law is tested by it; one of another op needs a law of its own."""
    strided = {name for name, family in families().items() if family.strides}  # each has a law of its own
    assert {family.op for family in families().values()} | strided == {*LINEAR, *LAWS, "halo"}
    assert all(family.macros and family.doc and family.tiles for family in families().values())


def run(
    case: Case, tile: dict[str, int], call_it: Callable[[Args], None], at_end: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The case's y, and all of the buffer that it is in, which was NaN everywhere."""
    before = rounded(case.padding[0] * case.lies.pitch + case.padding[1])
    x = np.full(before + case.lies.row * case.shape[1], np.nan, np.float32)
    if any(case.padding):
        x[:] = 0
    case.lies.of(x, case.shape, before)[:] = case.x
    if case.tight:
        x = x[: before + case.lies.end(case.shape)]
    x = fenced(x, at_end, 0) if case.tight else fenced(x, at_end)
    rng = np.random.default_rng(5)
    whole = tuple(case.want.shape)
    y = guarded(max(case.writes.row * whole[1], case.writes.end(whole)), at_end)  # type: ignore[arg-type]
    others: list[Any] = [None, None, None, None]
    if case.weight is not None:
        mask = np.zeros(case.writes.row, np.int32)
        case.writes.of(mask, (whole[0], 1, *whole[2:]))[:] = -1  # type: ignore[arg-type]
        others[3] = fenced(mask, at_end)
    if case.residual:
        others[0] = fenced(rng.standard_normal(len(y)).astype(np.float32), at_end)
    if case.weight is not None:
        form = FORMATS[families()[case.family].format]
        packed = form.pack(case.weight, tile)
        assert np.array_equal(form.unpack(packed, case.weight.shape, tile), case.weight)
        others[1] = fenced(packed, at_end)
    if case.bias is not None:
        others[2] = fenced(case.bias, at_end, 0)
    pointers = [None if buffer is None else buffer.ctypes.data for buffer in others]
    call_it(Args(x[before:].ctypes.data, y.ctypes.data, *pointers))
    wanted = case.want.numpy()
    if case.residual:
        wanted = wanted + case.writes.of(others[0], wanted.shape)
    return np.maximum(wanted, 0) if case.weight is not None else wanted, y


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("op", LAWS)
def test_maps_equal_their_meaning_around_every_edge(op: str, machine: str, tmp_path: Path) -> None:
    every = [
        (case, dict(tile))
        for case in LAWS[op]()
        for family in families().values()
        if op in (family.op, family.name) and case.family == family.name
        for tile in family.tiles
    ]
    text = preamble()
    for i, (case, tile) in enumerate(every):
        text += instance(families()[case.family], f"k{i}", case.macros | tile)
    library: ctypes.CDLL = build(text, tmp_path, MACHINES[machine])
    for i, (case, tile) in enumerate(every):
        for split, at_end in ((1, True), (3, False)):
            wanted, buffer = run(case, tile, lambda args: call(library, f"k{i}", args, split), at_end)  # noqa: B023
            found = case.writes.of(buffer, wanted.shape)
            same = (found == wanted) | (np.isnan(found) & np.isnan(wanted))
            with np.errstate(invalid="ignore"):
                assert (same | (abs(found - wanted) <= case.bound)).all(), f"{i}: {case.macros}"
            untouched = np.ones(len(buffer), bool)
            flat = np.arange(len(buffer), dtype=np.float32)
            untouched[case.writes.of(flat, wanted.shape).astype(int).ravel()] = False
            rest = buffer[untouched]
            assert not rest.any() if case.gaps_are_zero else np.isnan(rest).all(), f"{i}: between the maps"


@pytest.mark.parametrize("machine", MACHINES)
def test_bands_meet(machine: str, tmp_path: Path) -> None:
    """Beside each band stand its neighbours' lines, and zeros behind the last of the map; nothing else changes."""
    text, cases = preamble(), []
    for height, lines, reach in product((2, 3, 5, 7, 14), (1, 2, 3, 4, 7), (1, 2, 3)):
        bands, channels, pitch = -(-height // lines), 3, 5
        if reach <= lines < height:
            row = (lines + 2 * reach) * pitch + 4
            apart = channels * row + 9
            macros = {"C": channels, "H": height, "YROW": row, "YPITCH": pitch, "LINES": lines, "REACH": reach}
            cases.append((macros | {"BANDS": bands, "APART": apart}, height, lines, reach, bands))
            text += instance(families()["halo"], f"k{len(cases) - 1}", cases[-1][0])
    library = build(text, tmp_path, MACHINES[machine])
    for i, (macros, height, lines, reach, bands) in enumerate(cases):
        row, pitch, apart = (int(macros[name]) for name in ("YROW", "YPITCH", "APART"))
        rng = np.random.default_rng(i)
        maps = rng.standard_normal((3, height, pitch)).astype(np.float32)
        y = guarded(bands * apart, at_end=True)  # NaN
        want = y.copy()
        for k, c, line in product(range(bands), range(3), range(-reach, lines + reach)):
            at, h = k * apart + c * row + (reach + line) * pitch, k * lines + line
            inside, own = 0 <= h < height, 0 <= line < lines
            if inside and own:
                y[at : at + pitch] = maps[c, h]
            if inside or line >= 0:  # above the first band is what was there
                want[at : at + pitch] = maps[c, h] if inside else 0.0
            if not inside and line >= lines and k == bands - 1:
                want[at : at + pitch] = np.nan  # below the last one too
        args = Args(None, y[reach * pitch :].ctypes.data, None, None, None, None)
        call(library, f"k{i}", args, 3)
        assert np.array_equal(y, want, equal_nan=True), macros
