"""`shrink`: remove for good the channels that are zero, or are known to be constant, whatever the input."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from abridged import progress
from abridged.errors import InputError, expect
from abridged.globs import some
from abridged.graph.capture import Example
from abridged.graph.graph import Node
from abridged.graph.structure import flatten
from abridged.progress import Say, tell
from abridged.pruning.coupled import coupled
from abridged.pruning.coupling.groups import Coupling, Ending, Group, Units
from abridged.pruning.coupling.labels import KERNEL
from abridged.pruning.known import known
from abridged.pruning.narrowed import narrowed
from abridged.pruning.surgery import Fold, Gone, channels_of, cut
from abridged.pruning.trials import Settled, Trial

PROBE = 16  # places of a channel that are looked at first


def shrink(model: nn.Module, example: Example, *, exact: bool = True, say: Say | None = progress.say) -> nn.Module:
    """A new module of the same classes without the channels that are zero: smaller weights, right attributes, same outputs.

    Channels go that nobody needs: coupled units whose value is known where they end, whatever the input. Usually they are
    zero (`ab.prune(model, 0.5, pattern="channel", example=x)` makes them so); a constant c ≠ 0, such as sigmoid(0), is added
    to the bias of the layers that read it, unless zero padding lies between. The input model stays as it was. What went,
    what stayed and why is said line by line to `say`.

    With `exact` the outputs are equal, so what a layer norm, a group norm or a mean over channels reads stays. Without it
    these are taken over the channels that are left, and the outputs are those of such a network. Every cut is tried:
    where the user's forward raises or answers otherwise (it holds a number that was a size), the group stays, with the reason.

    Raises `InputError` when the model cannot be captured, and when no channel is known to be constant.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> with torch.no_grad():
    ...     _ = model[0].weight[:3].zero_(), model[0].bias[:3].zero_()
    >>> small = shrink(model, torch.zeros(1, 4), say=None)
    >>> small
    Sequential(
      (0): Linear(in_features=4, out_features=5, bias=True)
      (1): ReLU()
      (2): Linear(in_features=5, out_features=2, bias=True)
    )
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"shrink takes an nn.Module, not {type(model).__name__}")
    expect(exact, bool, "exact must be True or False")
    coupling = coupled(model, example, exact=exact)
    constants = Constants(coupling)
    gone, kept = constants.gone(), constants.kept(silent(coupling))
    if not gone.any():
        raise InputError(f"nothing to shrink: {_why_nothing(coupling, kept)}")
    settled = settle(model, constants, example, gone)
    if not settled.gone.any():
        raise InputError(f"nothing can be cut: {settled.frozen[0].reason}")
    small = cut(model, coupling, settled.gone, constants.folds(settled.gone), left=settled.numbers)
    tell(report(model, small, coupling, replace(settled, frozen=(*settled.frozen, *kept))), say)
    return small


def settle(model: nn.Module, constants: Constants, example: Example, gone: Gone) -> Settled:
    """What can go of the units given: those that are known to be constant, and of them, by trial, what forward bears; see `trials`."""
    kept = constants.kept(gone)
    gone = gone.copy()
    for group in kept:
        gone[group.units] = False
    inputs = (example,) if isinstance(example, Tensor) else example

    def expected(whole: Sequence[Tensor], gone: Gone) -> Sequence[Tensor]:
        """What the cut network has to answer: what the whole one does, or (not exact) the whole Graph with narrower norms."""
        return whole if constants.coupling.exact else narrowed(constants.coupling, flatten(inputs)[0], gone)

    settled = Trial(model, constants.coupling, inputs, constants.folds, expected).settle(gone)
    return replace(settled, frozen=(*kept, *settled.frozen))


def silent(coupling: Coupling) -> Gone:
    """The units of which every parameter that makes them is zero."""
    made, alive = np.zeros(coupling.count, bool), np.zeros(coupling.count, bool)
    for axis in coupling.axes:
        tensor = coupling.graph.constants[axis.constant].tensor
        if isinstance(tensor, nn.Parameter) and not axis.ends:
            lines = tensor.detach().movedim(axis.axis, 0)[..., None].flatten(1).any(1).cpu().numpy()
            made[axis.units[axis.units >= 0]] = True
            alive[axis.units[lines & (axis.units >= 0)]] = True
    return made & ~alive


class Constants:
    """What is known of the channels where they end, whatever the input."""

    def __init__(self, coupling: Coupling) -> None:
        self.coupling = coupling
        names = {name for ending in coupling.endings for name, _ in ending.operands}
        self.values = known(coupling.graph, dict.fromkeys(names))
        self.lines = [[self._line(name, axis) for name, axis in ending.operands] for ending in coupling.endings]

    def _line(self, name: str, axis: int) -> Tensor:
        """(n,): the one number that a channel is everywhere, or NaN."""
        value = self.values.get(name)
        if value is None or name not in self.coupling.graph.values:
            return torch.full((), torch.nan, dtype=torch.float64)
        rows = value.movedim(axis, 0).flatten(1) if value.ndim > 1 else value[:, None]
        alike = (rows[:, :PROBE] == rows[:, :1]).all(1)  # most rows differ early
        alike[alike.clone()] = (rows[alike] == rows[alike, :1]).all(1)
        return torch.where(alike, rows[:, 0].double(), torch.nan)

    @functools.cached_property
    def idle(self) -> Gone:
        """The units that are known wherever they end."""
        ends, needed = np.zeros(self.coupling.count, bool), np.zeros(self.coupling.count, bool)
        for ending, lines in zip(self.coupling.endings, self.lines, strict=True):
            units = ending.units
            ends[units[units >= 0]] = True
            dead = self._dead(ending, lines)
            needed[units[(units >= 0) & ~dead]] = True
        return ends & ~needed

    def gone(self) -> Gone:
        """The units that are known wherever they end; one of each group stays."""
        gone = self.idle.copy()
        for group in self.coupling.groups:
            if gone[group.units].all():
                gone[group.units[0]] = False
        return gone

    def kept(self, gone: Gone) -> tuple[Group, ...]:
        """The groups of which units that are to go are needed; their `reason` says for what."""
        needed = gone & ~self.idle
        groups = [(group, group.units[needed[group.units]]) for group in self.coupling.groups]
        return tuple(replace(group, reason=self._why(units)) for group, units in groups if len(units))

    def _why(self, units: Units) -> str:
        """Why units are needed: what is known of them at the first place where they are."""
        for ending, lines in zip(self.coupling.endings, self.lines, strict=True):
            here = np.isin(ending.units, units) & ~self._dead(ending, lines)
            if not here.any():
                continue
            reader = ending.node.path or f"a {ending.node.op}"
            if np.broadcast_to(lines[0].isnan().numpy(), here.shape)[here].any():
                return f"when all that makes them is zero they are not known to be constant for {reader}"
            if any(ending.node.attrs.get("padding", ())):  # type: ignore[arg-type]
                return f"when all that makes them is zero they are a constant for {reader} that is not 0, and its zero padding is"
            return (
                f"when all that makes them is zero they are a constant for {reader} that is not 0, and it has no bias of its"
                " own to add it to"
            )
        return "no layer reads them"

    def _dead(self, ending: Ending, lines: Sequence[Tensor]) -> Gone:
        size = len(ending.units)
        zero: Gone = np.zeros(size, bool)
        for line in lines:
            zero |= np.broadcast_to((line == 0).numpy(), size)
        if self._foldable(ending.node):
            zero = zero | ~np.broadcast_to(lines[0].isnan().numpy(), size)
        return zero

    def _foldable(self, node: Node) -> bool:
        """Can a constant that is summed here go into the layer's bias."""
        weight = node.inputs[1] if len(node.inputs) > 1 else None
        constant = self.coupling.graph.constants.get(str(weight))
        if node.op not in ("linear", "conv") or constant is None or len(constant.keys) != 1:
            return False
        readers = [other for other in self.coupling.graph if weight in other.inputs]
        bias = self.coupling.graph.constants.get(str(node.inputs[2]))
        return (
            len(readers) == 1
            and not any(node.attrs.get("padding", ()))  # type: ignore[arg-type]
            and (node.inputs[2] is None or (bias is not None and len(bias.keys) == 1))
            and constant.keys[0] == f"{node.path}.weight".lstrip(".")
        )

    def folds(self, gone: Gone) -> tuple[Fold, ...]:
        """What the channels that go still gave to each layer."""
        found = []
        for ending, lines in zip(self.coupling.endings, self.lines, strict=True):
            line = lines[0]
            going = torch.from_numpy(np.append(gone, False)[ending.units])
            if line.ndim and bool((going & (line != 0) & ~line.isnan()).any()) and self._foldable(ending.node):
                found.append(Fold(ending.node, self._shift(ending.node, torch.where(going, line, 0))))
        return tuple(found)

    def _shift(self, node: Node, values: Tensor) -> Tensor:
        """(O,): Σ over inputs and taps of weight · value."""
        weight = self.coupling.graph.constants[str(node.inputs[1])].tensor.detach().cpu().double()
        groups = int(node.attrs.get("groups", 1))  # type: ignore[arg-type]
        summed = weight.flatten(2).sum(2) if weight.ndim > 2 else weight  # (O, I)
        each = values.reshape(groups, 1, -1).expand(-1, len(weight) // groups, -1).flatten(0, 1)
        return (summed * each).sum(1)


# ---- what happened ---------------------------------------------------------------------------------------------------


def report(model: nn.Module, small: nn.Module, coupling: Coupling, settled: Settled) -> list[str]:
    """Lines on what went, and on what stayed and why."""
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, small))
    channels = channels_of(coupling)
    groups = [group for group in coupling.groups if settled.gone[group.units].any()]
    lines = [
        f"{channels[settled.gone].sum():,} of {channels.sum():,} channels removed in {len(groups)} of"
        f" {len(coupling.groups)} groups: {before:,} → {after:,} parameters ({after / before:.3f})"
    ]
    return lines + left(coupling, settled.frozen)


def left(coupling: Coupling, frozen: Sequence[Group]) -> list[str]:
    """A line per reason why channels stay: those that are needed or that a trial froze, and those that cannot go."""
    reasons: dict[str, list[str]] = {}
    for group in (*frozen, *coupling.held):
        for axis in group.axes:
            place = coupling.axes[axis]
            keys = coupling.graph.constants[place.constant].keys
            matrix = len(coupling.graph.values[place.constant].shape) > 1 and keys[0].endswith("weight")
            if matrix and not place.ends and group.reason != KERNEL:
                names = reasons.setdefault(group.reason, [])
                if keys[0] not in names:
                    names.append(keys[0])
    return [f"left, {why}: {some(names)}" for why, names in reasons.items()]


def _why_nothing(coupling: Coupling, kept: Sequence[Group]) -> str:
    if kept:
        return "; ".join(left(coupling, kept))
    if coupling.groups:
        return (
            "no channel is zero: one goes when all that makes it is, its weights, bias, and the scale and shift of its norm;"
            " ab.prune(model, 0.5, pattern='channel', example=example) makes them so, single zeros are left"
        )
    return "; ".join(left(coupling, ())) or "the model has no channels that could go"
