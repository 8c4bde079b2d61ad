"""Which kernel runs a step: every family and tile that can, in the order that a cost model prefers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod

import numpy as np

from abridged import kernels
from abridged.compiler.plan import Choice, Machine, Plan, Step, Weights, rounded

SPARSE = 0.6  # fraction of zeros from which walking the non-zeros is the faster way
INPUTS = 64  # from so many of an output on, turning lanes around is a small part of the work
FULL = 0.75  # how full lanes must be of outputs for a stride to be read in place
CLEARLY = 1.1  # how much fuller lanes must be to be worth turning what they hold
UNDECIDED = 0.4, 0.8  # where both ways are worth a measurement


def select(plan: Plan, machine: Machine) -> Plan:
    """Give every step its choices for such a machine, the preferred one first."""
    return replace(plan, steps=tuple(replace(step, choices=choices(step, machine)) for step in plan.steps))


def _can(family: kernels.Family, step: Step) -> bool:
    """The step gives every macro that the family asks for; one weight per tap and output is the depthwise kernels' own. Outputs go in
    the lanes where lanes of positions would compute more in vain."""
    macros = {name.partition("(")[0]: value for name, value in step.choice.call.macros}
    depthwise = step.weight is not None and step.weight.shape[1] == 1 and family.op != "linear"
    if (family.format == "taps") != depthwise or not set(family.macros) <= {*macros, *family.tiles[0]}:
        return False
    strided = bool(macros.get("STRIDED"))
    if strided not in {"": (False,), "too": (False, True), "only": (True,)}[family.strides]:
        return False
    return strided or family.format != "columns" or "SPAN" not in macros or _fuller(macros)


def _fuller(macros: Mapping[str, int | str]) -> bool:
    """Whether sixteens of outputs are clearly fuller than sixteens of positions."""
    outputs, span, *sizes = (int(macros[name]) for name in ("O", "SPAN", "N", "OH", "OW"))
    return CLEARLY * prod(sizes) / rounded(span) < outputs / rounded(outputs)


def used_taps(weight: Weights) -> list[int]:
    """The taps of a weight (O, C, T) that any output has a weight for; one of them where none has."""
    return [t for t in range(weight.shape[2]) if weight[:, :, t].any()] or [0]


def in_place(weight: Weights, groups: int, machine: Machine) -> bool:
    """Whether a convolution of this weight (O, C, T) reads its input with a stride as it lies, as depthwise ones do. So do dense
    ones, where outputs fill the lanes and have inputs enough to be worth turning lanes at the end, and sparse ones of no pattern. Of
    one tap, the one phase that it reads is quickly moved."""
    if weight.shape[1] == 1:
        return True
    weight, outputs = weight[:, :, used_taps(weight)], len(weight) // groups
    if weight.shape[2] == 1:
        return False
    if float(np.mean(weight == 0)) < SPARSE:
        able = any(_in_registers(tile, machine) for tile in kernels.families()["columns_dense"].tiles)
        return able and prod(weight.shape[1:]) >= INPUTS and outputs >= FULL * rounded(outputs)
    grouped = weight.reshape(groups, outputs, *weight.shape[1:])

    def fits(name: str) -> bool:
        family = kernels.families()[name]
        return any(kernels.FORMATS[family.format].fits(grouped, tile) for tile in family.tiles)

    return machine.hosted and fits("rows_csr_strided") and not fits("rows_blocks") and not fits("rows_nm")


def choices(step: Step, machine: Machine) -> tuple[Choice, ...]:
    """All kernels that can run a step."""
    call = step.choice.call
    if not call.family:
        return step.choices
    zeros = 0.0 if step.weight is None else float(np.mean(step.weight == 0))
    able = [family for family in kernels.families().values() if family.op == call.family and _can(family, step)]
    able = [family for family in able if machine.hosted or not family.hosted]
    able.sort(key=lambda family: (_is_dense(family) == (zeros >= SPARSE), -family.rank))
    if not UNDECIDED[0] < zeros < UNDECIDED[1]:
        able = [family for family in able if _is_dense(family) == _is_dense(able[0])]
    found = tuple(
        Choice(
            replace(call, family=family.name, macros=(*call.macros, *tile.items())), family.format, tuple(tile.items())
        )
        for family in able
        for tile in (family.tiles or ({},))
        if _in_registers(tile, machine) and _fits(family, tile, step)
    )
    if not found:
        raise AssertionError(f"no kernel for {step.node.path} {step.node.op}")
    return found


def _in_registers(tile: kernels.Tile, machine: Machine) -> bool:
    """Whether a tile of several rows fills the machine's registers with its sums, and no more. M is rows, but beside N (N:M); beside
    P, it is sixteens of outputs."""
    if "P" in tile:
        sixteens = tile["M"] * (16 // machine.lanes)
        return machine.hold(sixteens * tile["P"] + sixteens + 1)
    rows = tile.get("M", tile.get("BR", 1)) if "NV" in tile and "N" not in tile else 1
    return rows == 1 or machine.hold(rows * tile["NV"] + 2)


def _is_dense(family: kernels.Family) -> bool:
    return family.format == "none" or kernels.FORMATS[family.format].dense


def _fits(family: kernels.Family, tile: kernels.Tile, step: Step) -> bool:
    """Whether the weight has the form that the family's format is made for."""
    return step.weight is None or kernels.FORMATS[family.format].fits(step.grouped, tile)
