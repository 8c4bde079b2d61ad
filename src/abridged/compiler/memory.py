"""One arena for all buffers: those that live at the same time do not overlap, but for sums that are made in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from abridged.compiler.plan import SLACK, Mask, Plan, rounded


@dataclass(frozen=True, slots=True)
class _Life:
    buffer: str
    size: int
    first: int
    last: int


# In which order buffers find their place: none is best for every network, and all are tried.
_ORDERS: tuple[Callable[[_Life], tuple[int, ...]], ...] = (
    lambda life: (-life.size, life.first),
    lambda life: (-life.size * (1 + life.last - life.first),),
    lambda life: (life.first - life.last, -life.size),
    lambda life: (life.first, -life.size),
    lambda life: (-life.last, -life.size),
)


def plan_memory(plan: Plan, reuse: bool = True) -> Plan:
    """Give every buffer and mask its offset: each at the lowest that is free for its whole life, in the best order tried."""
    lives = {life.buffer: life for life in _lives(plan, reuse)}
    roots = _in_place(plan, lives) if reuse else {name: name for name in lives}
    merged = [
        _merged(root, [life for name, life in lives.items() if roots[name] == root])
        for root in dict.fromkeys(roots.values())
    ]
    places, end = min((_placed(sorted(merged, key=order)) for order in _ORDERS), key=lambda placed: placed[1])
    offsets = {name: places[root] for name, root in roots.items()}
    masks: dict[Mask, int] = {}
    for step in plan.steps:
        if step.mask is not None and step.mask not in masks:
            masks[step.mask] = end
            end += rounded(step.mask.span)
    return replace(plan, offsets=offsets, masks=masks, arena=end + SLACK)


def _placed(lives: Sequence[_Life]) -> tuple[dict[str, int], int]:
    """The offset of each buffer, in this order, and where the last ends."""
    placed: list[tuple[int, _Life]] = []
    for life in lives:
        start = 0
        for offset, other in sorted(placed, key=lambda entry: entry[0]):
            alive = other.first <= life.last and life.first <= other.last
            if alive and offset < start + life.size and start < offset + other.size:
                start = offset + other.size
        placed.append((start, life))
    return {life.buffer: start for start, life in placed}, max((at + life.size for at, life in placed), default=0)


def _lives(plan: Plan, reuse: bool) -> list[_Life]:
    """Each buffer from the first step that writes it to the last that reads it; what is never read dies as it is born."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for i, step in enumerate(plan.steps):
        first.setdefault(step.write.buffer, i)
        for layout in (step.write, *step.reads, *([step.residual] if step.residual else [])):
            last[layout.buffer] = i
    end = len(plan.steps)
    return [
        _Life(name, rounded(size) + SLACK, first[name] if reuse else 0, last[name] if reuse else end)
        for name, size in plan.sizes.items()
        if name in first
    ]


def _in_place(plan: Plan, lives: Mapping[str, _Life]) -> dict[str, str]:
    """Each buffer's root: the first of those that follow each other in one place, every next one written over the residual
    that it is the sum of. Each element of a residual is read just before it is written, and by nobody else."""
    roots = {name: name for name in lives}
    for i, step in enumerate(plan.steps):
        residual, write = step.residual, step.write
        if residual is None or not {residual.buffer, write.buffer} <= lives.keys():
            continue
        alike = replace(residual, buffer="", zero=False) == replace(write, buffer="", zero=False)
        alone = residual.buffer not in (layout.buffer for layout in step.reads)
        if alike and alone and lives[residual.buffer].last == i == lives[write.buffer].first:
            roots[write.buffer] = roots[residual.buffer]
    return roots


def _merged(root: str, lives: Sequence[_Life]) -> _Life:
    """One life for buffers in one place."""
    size, first, last = max(x.size for x in lives), min(x.first for x in lives), max(x.last for x in lives)
    return _Life(root, size, first, last)
