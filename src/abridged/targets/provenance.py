"""Which module a runtime's node belongs to, though the runtime fused and renamed it: for times layer by layer."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Made:
    """A node as we wrote it; its name begins with its module path and a slash."""

    op: str
    reads: tuple[str, ...]  # names of the nodes whose results it takes


@dataclass(frozen=True, slots=True)
class Ran:
    """A node as the runtime ran it."""

    names: tuple[str, ...]  # of the nodes of ours that it says it was made of, as far as it says
    base: str | None  # the op that multiplies in it, to whose layer the time belongs; None for other ops
    milliseconds: float


def attribute(ran: Iterable[Ran], made: Mapping[str, Made]) -> dict[str, float]:
    """Milliseconds by module path, "" for what belongs to no submodule.

    A convolution that took in what followed it often has the last one's name alone. It is searched backwards from
    there, after the others found theirs, so that a sum of two convolutions gives each its own."""
    times: defaultdict[str, float] = defaultdict(float)
    taken: set[str] = set()
    fused = []
    for node in ran:
        known = [name for name in node.names if name in made]
        direct = [name for name in known if node.base in (None, made[name].op)]
        if known and not direct:
            fused.append((known[-1], node))
        else:
            times[path(direct[0]) if direct else ""] += node.milliseconds
            taken |= set(direct)
    for last, node in fused:
        first = _behind(last, node.base, made, taken) or last
        times[path(first)] += node.milliseconds
        taken.add(first)
    return dict(times)


def path(name: str) -> str:
    return name.split("/")[0] if "/" in name else ""


def _behind(last: str, op: str | None, made: Mapping[str, Made], taken: set[str]) -> str | None:
    """The nearest node of an op that `last` was computed from and that no other took."""
    queue, seen = deque([last]), {last}
    while queue:
        name = queue.popleft()
        if made[name].op == op and name not in taken:
            return name
        for source in made[name].reads:
            if source in made and source not in seen:
                seen.add(source)
                queue.append(source)
    return None
