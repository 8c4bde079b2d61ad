"""One arena for all buffers: those that live at the same time do not overlap, but for sums that are made in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from abridged.compiler.plan import SLACK, Mask, Plan, Step, rounded


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
    lives, roots = _lives(plan, reuse)
    places, end = min((_placed(sorted(lives, key=order)) for order in _ORDERS), key=lambda placed: placed[1])
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


def _lives(plan: Plan, reuse: bool) -> tuple[list[_Life], dict[str, str]]:
    """Each buffer from the first step that writes it to the last that reads it (what is never read dies as it is born),
    and by what name: those that follow each other in place have one life."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for i, step in enumerate(plan.steps):
        first.setdefault(step.write.buffer, i)
        for layout in (step.write, *step.reads, *([step.residual] if step.residual else [])):
            last[layout.buffer] = i
    used = [name for name in plan.sizes if name in first]
    roots = {name: name for name in used}
    for i, step in enumerate(plan.steps if reuse else ()):
        under = _in_place(step, plan)
        if under is not None and first[step.write.buffer] == i == last[under]:
            roots[step.write.buffer] = roots[under]
    lives = []
    for root in dict.fromkeys(roots.values()):
        names = [name for name in used if roots[name] == root]
        start, end = min(first[name] for name in names), max(last[name] for name in names)
        size = rounded(max(plan.sizes[name] for name in names)) + SLACK
        lives.append(_Life(root, size, *((start, end) if reuse else (0, len(plan.steps)))))
    return lives, roots


def _in_place(step: Step, plan: Plan) -> str | None:
    """The residual's buffer if a step may write its sum over it: each element is read just before it is written."""
    residual, write = step.residual, step.write
    if residual is None or not {residual.buffer, write.buffer} <= plan.sizes.keys():
        return None
    read_otherwise = residual.buffer in (layout.buffer for layout in step.reads)
    alike = (residual.origin, residual.strides, residual.type) == (write.origin, write.strides, write.type)
    return residual.buffer if alike and not read_otherwise else None
