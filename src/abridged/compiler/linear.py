"""Linear operators to kernel calls: convolutions, strided or not, and linear layers, of many positions or of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from math import prod
from operator import mul

import numpy as np

from abridged.compiler.fuse import Group
from abridged.compiler.geometry import Window, positions
from abridged.compiler.lower import LOWER, Lowering, Macros
from abridged.compiler.plan import Call, Choice, Layout, Mask, Step, Weights, rounded
from abridged.compiler.select import used_taps
from abridged.graph.graph import Node, Value


@LOWER.entry("conv")
def _conv(low: Lowering, group: Group) -> None:
    node, y = group.anchor, group.output
    x, weight, bias = _linear_inputs(low, node)
    window = Window(low.graph, node, y)
    groups = node.integer("groups")
    flat = weight.reshape(*weight.shape[:2], -1)  # (O, C, T)
    taps = list(product(*map(range, window.kernel)))
    if prod(positions(low.shape(x), 1)) == prod(positions(low.shape(y), 1)) == 1 and groups == 1:
        centre = [
            i
            for i, tap in enumerate(taps)
            if all(t * d == p for t, d, p in zip(tap, window.dilation, window.padding, strict=True))
        ]
        matvec(low, group, x, flat[:, :, centre[0]] if centre else flat[:, :, 0] * 0, bias)
        return
    in_place = window.strided and low.geometry.in_place(node)
    if in_place and flat.shape[1] == 1:
        depthwise_strided(low, group, x, flat, bias, window)
        return
    target, stride = low.place(y), None
    if window.strided and not in_place:
        source, offsets = split_phases(low, node, x, y, window, taps)
    else:
        stride = (1, *window.stride) if in_place else None
        source = _seen(low, node, x, y, window)
        offsets = [
            sum(
                (t * d - p) * s
                for t, d, p, s in zip(tap, window.dilation, window.padding, source.strides[2:], strict=True)
            )
            for tap in taps
        ]
    rows(low, group, source, target, 1, flat, bias, groups, offsets, stride)


def _seen(low: Lowering, node: Node, x: str, y: str, window: Window) -> Layout:
    """The rows of x with all that a window reads beside them."""
    source = low.rows(node, x, f"{y}.x")
    if window.reach:
        low.meet(node, source, low.shape(x), low.geometry.reach(f"{y}.x"))
    return source


def depthwise_strided(low: Lowering, group: Group, x: str, weight: Weights, bias: Weights, window: Window) -> None:
    """A strided convolution of single channels: so little is computed that moving x into phases would take longest."""
    node, y = group.anchor, group.output
    source, target = _seen(low, node, x, y, window), low.place(y)
    residual = _like(low, node, group.operands[0], y, target, 1) if group.operands else None
    macros = macros_of_window(low, node, window, x, y, source, target) | {
        "O": weight.shape[0] // low.shape(x)[1],
        "G": low.shape(x)[1],
        "RROW": residual.strides[1] if residual else 0,
        "XAT(line, band)": line_at(source, low.shape(y), target, window.stride[0] if len(window.stride) > 1 else 1),
        **_epilogue(group),
    }
    choice = Choice(Call("depthwise_strided", tuple(macros.items())))
    low.add(Step(node, (choice,), (source,), target, residual, weight, bias, by_line=True))


def _linear_inputs(low: Lowering, node: Node) -> tuple[str, Weights, Weights]:
    """x, weight and bias of a convolution or linear layer; a bias that is absent is zero."""
    x, weight, bias = node.inputs
    for name in (weight, bias):
        if name is not None and name not in low.graph.constants:
            raise low.refuse(node, "whose weights are computed")
    assert x is not None
    assert weight is not None
    w = low.constant(weight)
    return x, w, np.zeros(len(w), np.float32) if bias is None else low.constant(bias)


@LOWER.entry("linear")
def _linear(low: Lowering, group: Group) -> None:
    node, y = group.anchor, group.output
    x, weight, bias = _linear_inputs(low, node)
    if prod(low.shape(x)[:-1]) == 1:
        matvec(low, group, x, weight, bias)
        return
    channel = len(low.shape(x)) - 1
    target, source = low.place(y), low.rows(node, x, f"{y}.x")
    rows(low, group, source, target, channel, weight[:, :, None], bias, 1, [0])


def matvec(low: Lowering, group: Group, x: str, weight: Weights, bias: Weights) -> None:
    """y = W · x with one position."""
    node = group.anchor
    macros: Macros = {"O": weight.shape[0], "K": weight.shape[1], **_epilogue(group)}
    residual = low.vector(node, group.operands[0]) if group.operands else None
    source = low.vector(node, x)
    low.add(
        Step(
            node,
            (Choice(Call("linear", tuple(macros.items()))),),
            (source,),
            low.place(group.output),
            residual,
            weight[:, :, None],
            bias,
        )
    )


def rows(
    low: Lowering,
    group: Group,
    source: Layout,
    target: Layout,
    channel: int,
    weight: Weights,
    bias: Weights,
    groups: int,
    offsets: Sequence[int],
    stride: tuple[int, ...] | None = None,
) -> None:
    """y[o, p] = act(Σ W[o, c, t] · x[c, offsets[t] + p] + b[o], r[o, p]) over the positions p of a row.

    Taps that no output has a weight for are left out. With a `stride` x is read at positions of its own."""
    node, shape = group.anchor, low.shape(group.output)
    used = used_taps(weight)
    weight, offsets = weight[:, :, used], [offsets[t] for t in used]
    mask = mask_of(shape, channel, target)
    row = target.strides[channel]
    banded = stride is not None and bool(target.bands or source.bands)
    residual = None
    if group.operands:
        key = group.output if low.geometry.is_rows(group.output) else group.operands[0]
        residual = _like(low, node, group.operands[0], key, target, channel)
    macros: Macros = {
        "O": weight.shape[0] // groups,
        "C": weight.shape[1],
        "G": groups,
        "T": len(offsets),
        "TAPS": "{" + ", ".join(map(str, offsets)) + "}",
        "XROW": source.strides[channel],
        "YROW": row,
        "RROW": residual.strides[channel] if residual else 0,
        "SPAN": mask.span,
        **_lines(mask, source.strides, channel, stride, one_by_one=banded),
        "XAT(line, band)": line_at(source, shape, target, stride[1]) if stride and banded else "((line) * XLINE)",
        "EVEN": int(not stride or _even(source, target, shape, stride[1])),
        "STRIDED": int(stride is not None),
        "MASK": int(target.zero),
        "CLEAR": row - rounded(mask.span) if target.zero else 0,
        **_epilogue(group),
    }
    choice = Choice(Call("conv", tuple(macros.items())))
    zeros, by_line = mask if target.zero else None, stride is not None
    low.add(Step(node, (choice,), (source,), target, residual, weight, bias, zeros, by_line=by_line))


def _even(source: Layout, target: Layout, shape: tuple[int, ...], stride: int) -> bool:
    """Whether in a band of y, of this shape, each next line's input is so much further in x: no line is missing from the last band, and
    where x has bands too they begin with those of y."""
    full = not target.bands or shape[2] % target.bands.lines == 0
    return full and (source.bands is None or source.cut == target.cut * stride)


def line_at(source: Layout, shape: tuple[int, ...], target: Layout, stride: int) -> str:
    """C for how far the input of `line` of a `band` of y, of this shape, is from the first: every `stride`-th line of x, wherever it lies.
    Behind the last line of y is no other; behind that of x are the zeros of its last band."""
    line = "(long)(line)"
    if target.bands:
        line = f"MIN({line} + (band) * {target.bands.lines}, {shape[2] - 1})"
    return map_line(source, line, stride)


def map_line(source: Layout, line: str = "(long)(line)", stride: int = 1) -> str:
    """C for how far every `stride`-th `line` of a map is from the first."""
    pitch = source.strides[2] if len(source.strides) > 3 else 0
    if source.bands is None:
        return f"({line} * {stride * pitch})"
    count, lines, apart = source.bands.count, source.bands.lines, source.bands.apart
    return f"({line} * {stride * pitch} + MIN({line} * {stride} / {lines}, {count - 1}) * {apart - lines * pitch})"


def _lines(
    mask: Mask, x: tuple[int, ...], channel: int, stride: tuple[int, ...] | None, one_by_one: bool = False
) -> Macros:
    """Positions as N stacks of OH lines of OW, and how far apart those are in x and y; nothing where there are more axes. Axes of which
    one goes on where the other ends are one, unless lines are wanted one by one."""
    reads = positions(x, channel)
    axes: list[tuple[int, int, int]] = []
    for n, at_y, at_x in zip(mask.shape, mask.strides, map(mul, reads, stride or (1,) * len(reads)), strict=True):
        if axes and not one_by_one and axes[-1][1:] == (n * at_y, n * at_x):
            axes[-1] = axes[-1][0] * n, at_y, at_x
        elif n > 1 or (one_by_one and axes):
            axes.append((n, at_y, at_x))
    if not axes or axes[-1][1] != 1:  # lines of one position
        axes.append((1, 1, 1))
    if len(axes) > 3:
        return {}
    (n, y_stack, x_stack), (height, y_pitch, x_line), (width, _, step) = [(1, 0, 0)] * (3 - len(axes)) + axes
    return {
        "N": n, "OH": height, "OW": width, "YSTACK": y_stack, "YPITCH": y_pitch, "XSTACK": x_stack, "XLINE": x_line, "SX": step,
    }  # fmt: skip


def _like(low: Lowering, node: Node, name: str, key: str, target: Layout, channel: int) -> Layout:
    """A residual at the target's pitch: as it lies, where room is behind it, or a copy."""
    found = low.layout(name)
    axes = [axis for axis, n in enumerate(low.shape(name)) if n > 1 and axis != channel]
    alike = all(found.strides[axis] == target.strides[axis] for axis in axes) and found.cut == target.cut
    if found.buffer in low.sizes and alike:
        return found
    own = replace(low.value(key), name=key)
    return low.copy(node, own, found, low.buffer(own, f"{key}.r"))


def mask_of(shape: tuple[int, ...], channel: int, layout: Layout) -> Mask:
    """Where the elements of a row are; of a band's, all of its lines."""
    return Mask(positions(layout.of_band(shape), channel), positions(layout.strides, channel))


def _epilogue(group: Group) -> Macros:
    return {"RESIDUAL": len(group.operands), "EPILOGUE(v, r)": group.text.format("r")}


def split_phases(
    low: Lowering, node: Node, x: str, y: str, window: Window, taps: Sequence[tuple[int, ...]]
) -> tuple[Layout, list[int]]:
    """x rearranged so that a strided window reads consecutive positions: per channel one row of each phase that a tap reads.

    Output o reads padded coordinate stride·o + dilation·tap, which is line o + (dilation·tap) // stride of a phase."""
    low.geometry.channel[f"{y}.x"] = 1
    sizes = window.phase_sizes
    like, _ = low.geometry.layout(Value(f"{y}.x", (sizes[0], 1, *sizes[1:]), low.value(x).dtype), f"{y}.x")
    pitches = like.strides[2:]
    sub = rounded(mask_of((sizes[0], 1, *sizes[1:]), 1, like).span)
    places = [
        [(t * d % s, t * d // s) for t, d, s in zip(tap, window.dilation, window.stride, strict=True)] for tap in taps
    ]
    phases = sorted({tuple(phase for phase, _ in place) for place in places})
    offsets = [
        phases.index(tuple(phase for phase, _ in place)) * sub
        + sum(line * pitch for (_, line), pitch in zip(place, pitches, strict=True))
        for place in places
    ]
    batch, channels, *spatial = low.shape(x)
    source, row = low.layout(x), len(phases) * sub
    bands = replace(like.bands, apart=channels * row) if like.bands else None
    target = Layout(f"{y}.x", 0, (like.strides[0], row, *pitches), bands=bands)
    low.sizes[target.buffer] = channels * row * len(target.each)
    macros = _two_axes(low, node, window, spatial, source.strides) | {
        "C": channels,
        "XROW": source.strides[1],
        "YROW": row,
        "N": batch,
        "XSTACK": source.strides[0],
        "YSTACK": like.strides[0],
        "PHASES": "{" + ", ".join("{" + ", ".join(map(str, (0,) * (2 - len(p)) + p)) + "}" for p in phases) + "}",
        "P": len(phases),
        "SUB": sub,
        "HS": like.cut or (sizes[1] if len(sizes) > 2 else 1),
        "XAT(line, band)": map_line(source),
        "WS": sizes[-1],
        "YPITCH": pitches[0] if len(pitches) > 1 else 0,
    }
    low.add(Step(node, (Choice(Call("split", tuple(macros.items()))),), (source,), target, by_line=True))
    return target, offsets


def _two_axes(low: Lowering, node: Node, window: Window, spatial: Sequence[int], strides: tuple[int, ...]) -> Macros:
    """Macros of a window over one or two spatial axes, as over two."""
    if len(spatial) > 2:
        raise low.refuse(node, f"over {len(spatial)} spatial axes")

    def two(numbers: Sequence[int], default: int) -> tuple[int, int]:
        return (default, numbers[0]) if len(numbers) == 1 else (numbers[0], numbers[1])

    pairs = {
        ("SY", "SX"): two(window.stride, 1),
        ("PY", "PX"): two(window.padding, 0),
        ("DY", "DX"): two(window.dilation, 1),
        ("KH", "KW"): two(window.kernel, 1),
        ("H", "W"): two(spatial, 1),
        ("OH", "OW"): two(window.y_shape[2:], 1),
        ("XPITCH", "XSTEP"): two(strides[2:], 0),
    }
    return {name: n for names, numbers in pairs.items() for name, n in zip(names, numbers, strict=True)}


def macros_of_window(
    low: Lowering, node: Node, window: Window, x: str, y: str, source: Layout, target: Layout
) -> Macros:
    mask = mask_of(low.shape(y), 1, target)
    batch, _, *spatial = low.shape(x)
    macros = _two_axes(low, node, window, spatial, source.strides)
    return macros | {
        "OH": target.cut or macros["OH"],
        "XROW": source.strides[1],
        "YROW": target.strides[1],
        "N": batch,
        "XSTACK": source.strides[0],
        "YSTACK": target.strides[0],
        "YPITCH": target.strides[2] if len(spatial) > 1 else 0,
        "SPAN": mask.span,
        "MASK": int(target.zero),
        "CLEAR": target.strides[1] - rounded(mask.span) if target.zero else 0,
    }
