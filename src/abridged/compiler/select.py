"""Which kernel runs a step: every family and tile that can, in the order that a cost model prefers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from abridged import kernels
from abridged.compiler.plan import Choice, Plan, Step

SPARSE = 0.6  # fraction of zeros from which walking the non-zeros is the faster way
UNDECIDED = 0.4, 0.8  # where both ways are worth a measurement


def select(plan: Plan, registers: int = 16, hosted: bool = False) -> Plan:
    """Give every step its choices for a machine of so many vector registers, the preferred one first. `hosted`: the code
    will run under an operating system, with a stack of its size."""
    return replace(plan, steps=tuple(replace(step, choices=choices(step, registers, hosted)) for step in plan.steps))


def _can(family: kernels.Family, step: Step) -> bool:
    """The step gives every macro that the family asks for; one weight per tap and output is the depthwise kernels' own."""
    given = {name.partition("(")[0] for name, _ in step.choice.call.macros} | set(family.tiles[0])
    depthwise = step.weight is not None and step.weight.shape[1] == 1 and family.op != "linear"
    return (family.format == "taps") == depthwise and {name.partition("(")[0] for name in family.macros} <= given


def choices(step: Step, registers: int = 16, hosted: bool = False) -> tuple[Choice, ...]:
    """All kernels that can run a step."""
    call = step.choice.call
    if not call.family:
        return step.choices
    zeros = 0.0 if step.weight is None else float(np.mean(step.weight == 0))
    able = [family for family in kernels.families().values() if family.op == call.family and _can(family, step)]
    able = [family for family in able if hosted or not family.hosted]
    able.sort(key=lambda family: (_is_dense(family) == (zeros >= SPARSE), -family.rank))
    if not UNDECIDED[0] < zeros < UNDECIDED[1]:
        able = [family for family in able if _is_dense(family) == _is_dense(able[0])]
    return tuple(
        Choice(
            replace(call, family=family.name, macros=(*call.macros, *tile.items())), family.format, tuple(tile.items())
        )
        for family in able
        for tile in (family.tiles or ({},))
        if _in_registers(tile, registers) and _fits(family, tile, step)
    )


def _in_registers(tile: kernels.Tile, registers: int) -> bool:
    """Whether a tile of several rows fills the machine's registers with its sums, and no more. M is rows, but beside N (N:M)."""
    rows = tile.get("M", tile.get("BR", 1)) if "NV" in tile and "N" not in tile else 1
    return rows == 1 or registers // 2 < rows * tile["NV"] + 2 <= registers


def _is_dense(family: kernels.Family) -> bool:
    return family.format == "none" or kernels.FORMATS[family.format].dense


def _fits(family: kernels.Family, tile: kernels.Tile, step: Step) -> bool:
    """Whether the weight has the form that the family's format is made for."""
    return step.weight is None or kernels.FORMATS[family.format].fits(step.grouped, tile)
