"""One arena for all buffers: those that live at the same time do not overlap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    lives = _lives(plan, reuse)
    offsets, end = min((_placed(sorted(lives, key=order)) for order in _ORDERS), key=lambda placed: placed[1])
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
