"""`prune`: check what was asked, find what can be pruned, choose, and write the zeros."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any, SupportsIndex

from torch import Tensor, nn

from abridged.data import Data
from abridged.errors import InputError, UnsupportedError
from abridged.pruning.channels import Goal, prune_channels, refuse
from abridged.pruning.collect import Collector
from abridged.pruning.layers import weights_of
from abridged.pruning.masks import Masks
from abridged.pruning.patterns import PATTERNS, STRUCTURED
from abridged.pruning.plan import Plan
from abridged.pruning.regrow import Regrowth, regrowth
from abridged.pruning.schedules import SCHEDULES
from abridged.pruning.select import glob, select
from abridged.pruning.sensitivity import Sensitivity, sensitivity
from abridged.pruning.solvers import SOLVERS, repair


def prune(
    model: nn.Module,
    sparsity: float | None = None,
    *,
    threshold: float | None = None,
    keep: int | None = None,
    criterion: str = "magnitude",
    pattern: str = "unstructured",
    allocation: str | Mapping[str, float] | Sensitivity | None = None,
    of: str = "weights",
    data: Data | None = None,
    example: Any = None,
    samples: int = 1024,
    schedule: str = "one-shot",
    regrow: str | Mapping[str, Any] | Regrowth | None = None,
    solver: str = "none",
    reestimate: bool = False,
    steps: int | None = None,
    every: int | None = None,
    seed: int = 0,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    macs: float | None = None,
    parameters: float | None = None,
    exact: bool = True,
    round_to: int = 1,
) -> Masks:
    """Set the least important weights of a model to zero, in place, and return the masks. Never trains.

    How much: exactly one of `sparsity` (the fraction removed, in [0, 1]), `keep` (how many weights stay, over all
    layers) and `threshold` (weights whose score is below it go; one that equals it stays). Counts are exact: of n
    weights ⌊(1 − sparsity) · n + ½⌋ stay, over all layers ("global") or in each ("uniform"). Of equal scores the later
    position goes first. Weights that are zero already count as removed first, so nothing comes back to life; if they
    are more than asked for, the rest of them is not held (a note says how many). `threshold=0` holds the zeros there are.

    What: the weights of Linear, Conv1d-3d, ConvTranspose1d-3d and MultiheadAttention, frozen ones too, shared ones
    once, under their first name. `include` and `exclude` are globs over parameter names and module paths ("layer4",
    "*.conv1"); exclude wins. A parameter of any other kind is pruned when `include` writes its name out in full.

    When: "one-shot" is now. Under any other schedule this call removes nothing yet: hold the masks to an optimizer,
    and they reach the whole sparsity after `steps` of its steps, choosing anew every `every` (default: steps / 100).
    With `regrow` ("set", "rigl", "sparse-momentum", or a `Regrowth` of your own, or its fields as a mapping) the whole sparsity is there at once, and
    every `every` of the `steps` to come exchanges weights for others that were zero; their number never changes.

    Repair: a `solver` ("mean", "least-squares", "obs", "sparse-gpt") lets the weights that stay make up for those that go,
    layer by layer on `samples` training samples of `data`; `reestimate` does so for the statistics of batch norms. "obs"
    and "sparse-gpt" choose anew within each layer which weights stay, as many as before, when the pattern is unstructured.
    Under a pattern of channels every layer that makes or reads one that goes is solved for what is left.
    Nothing but weights, the biases there are, and those statistics changes; what happens is done at once.

    Structured: the patterns "channel" (with heads) and "heads" follow the channels of the captured network from `example`, and
    zero whatever makes a coupled group's least important ones: weights, biases, scales and shifts. How much: `sparsity` of
    the channels (of each group, or over all with allocation "global"), or the share of `macs` or `parameters` that shall be
    left. `round_to` keeps a multiple of so many in each group. What forward does not bear to be cut is left, so that
    `shrink` removes all that went; with `exact=False` it narrows what norms read, too. These come at once.

    Where: `allocation` divides it among the layers ("global" unless the pattern says how much stays: then "uniform"). A mapping
    of globs to sparsities says it for each layer, the first glob that fits; other layers are left. "sensitivity", or the
    result of `ab.sensitivity`, keeps most where the measured loss rises most. With `of`="macs" the sparsity is a fraction
    of the multiply-accumulates.

    Criteria that look at more than weights measure it on `samples` training samples of `data`, or need an `example`
    input alone; they say so when it is missing. `seed` shuffles these samples, and is the random criterion's.

    Raises `InputError`, leaving the model as it was, for a number out of range, an unknown name, a glob that matches
    nothing, NaN or infinite weights, and a model without anything to prune.

    >>> import torch
    >>> model = nn.Linear(3, 3, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[0.2, 0, 0.6], [0.3, 0, 0.1], [0, 0.5, 0]]))
    >>> print(prune(model, threshold=0.3))
    1 of 1 linear layers: 6 of 9 weights removed (66.67%; magnitude, unstructured, threshold 0.3)
    >>> model.weight.tolist() == torch.tensor([[0, 0, 0.6], [0.3, 0, 0], [0, 0.5, 0]]).tolist()
    True
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"prune takes an nn.Module, not {type(model).__name__}")
    given: dict[str, Any]
    if pattern in STRUCTURED:
        given = {"threshold": threshold, "keep": keep, "regrow": regrow, "steps": steps, "every": every}
        given |= {"of": None if of == "weights" else of}
        refuse(pattern, {**given, "schedule": None if schedule == "one-shot" else schedule})
        SOLVERS[solver]

        def mend(whole: nn.Module, masks: Mapping[str, Tensor]) -> tuple[str, ...]:
            return repair(whole, masks, solver, data, norms=reestimate, samples=samples, seed=seed)[1]

        return prune_channels(
            model,
            Goal(sparsity, macs, parameters),
            example=example,
            collector=Collector(data, example, _whole("samples", samples, 1)),
            criterion=criterion,
            allocation=_name(allocation or "uniform"),
            exact=exact,
            heads=pattern == "heads",
            round_to=round_to,
            seed=seed,
            include=(include,) if isinstance(include, str) else include,
            exclude=(exclude,) if isinstance(exclude, str) else exclude,
            repair=mend if solver != "none" or reestimate else None,
        )
    given = {"macs": macs, "parameters": parameters, "round_to": None if round_to == 1 else round_to}
    refuse(f"'{pattern}' (only 'channel' and 'heads' do)", {**given, "exact": None if exact else exact})
    way = regrowth(regrow)
    fixed = PATTERNS[pattern].density
    allocation = allocation or ("global" if fixed is None else "uniform")
    if isinstance(allocation, Mapping):
        include = _globs(allocation, {"sparsity": sparsity, "threshold": threshold, "keep": keep}, include)
    else:
        sparsity = _fixed(pattern, sparsity, threshold, keep)
        _check_amount(sparsity, threshold, keep)
    if of not in ("weights", "macs"):
        raise InputError(f"of must be 'weights' or 'macs', not {of!r}: what the sparsity is a fraction of")
    length, interval = _length(schedule, steps, every, threshold, way)
    names, what, left = select(model, include, exclude)
    total = sum(model.get_parameter(name).numel() for name in names)
    collector = Collector(data, example, _whole("samples", samples, 1))
    layers: dict[str, float] | None = None
    if isinstance(allocation, Mapping):
        layers = {name: 1 - allocation[glob(model, name, tuple(allocation))] for name in names}
        density, label = None, "per layer"
    elif isinstance(allocation, Sensitivity) or allocation == "sensitivity":
        density, label = _density(sparsity, keep, "global", of, total), "sensitivity"
    else:
        density, label = _density(sparsity, keep, allocation, of, total), allocation
    bound = None if threshold is None else float(threshold)
    plan = Plan(density, bound, criterion, pattern, label, schedule, length, interval, seed, way, of)
    plan.check()
    collector.check(criterion, plan.needs)
    repaired = solver != "none" or reestimate
    if repaired and (plan.gradual or way):
        raise InputError("a solver repairs what is pruned at once: leave schedule at 'one-shot' and regrow out")
    if label == "sensitivity":
        options = {"criterion": criterion, "pattern": pattern, "samples": samples, "seed": seed}
        curves = allocation if isinstance(allocation, Sensitivity) else _curves(model, data, names, **options)
        layers = _by_curves(model, curves, density, names, plan, collector)
    if layers is not None:
        stay = sum(share * model.get_parameter(name).numel() for name, share in layers.items())
        plan = replace(plan, density=stay / total, layers=json.dumps(layers))
    chosen = plan.masks(model, names, {}, 0, collector)
    before = sum(int(model.get_parameter(name).count_nonzero()) for name in names)
    if repaired:
        free = pattern == "unstructured"
        chosen, said = repair(model, chosen, solver, data, free=free, norms=reestimate, samples=samples, seed=seed)
        left = (*left, *said)
    masks = Masks(model, chosen, plan, what=what, left=left, collector=collector)
    masks.apply()
    kept = sum(int(mask.count_nonzero()) for mask in masks.values())
    spare = kept - before
    if spare > 0 and not plan.gradual:
        masks.remark(f"{spare:,} weights were zero already and are not held, since fewer were to go")
    return masks


# --- layer by layer -----------------------------------------------------------------------------------------------


def _globs(allocation: Mapping[str, Any], amounts: Mapping[str, object], include: Sequence[str]) -> tuple[str, ...]:
    """The globs of an allocation that says the sparsity of each layer itself, checked."""
    given = [name for name, value in amounts.items() if value is not None]
    if given or tuple(include) not in (("*",), ()):
        raise InputError(f"allocation says what to prune and how much: leave out {given[0] if given else 'include'}")
    for key, value in allocation.items():
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= 1:
            raise InputError(f"allocation['{key}'] must be a sparsity in [0, 1], not {value!r}")
    return tuple(allocation)


def _name(allocation: object) -> str:
    if not isinstance(allocation, str):
        raise UnsupportedError("patterns of channels take an allocation by name: 'uniform' or 'global'")
    return allocation


def _curves(model: nn.Module, data: Data | None, names: Sequence[str], **options: Any) -> Sensitivity:
    if data is None:
        raise InputError("allocation='sensitivity' measures the loss: give data=ab.Data(…)")
    return sensitivity(model, data, include=names, **options)


def _by_curves(
    model: nn.Module,
    curves: Sensitivity,
    density: float | None,
    names: Sequence[str],
    plan: Plan,
    collector: Collector,
) -> dict[str, float]:
    """The density of each layer from curves, under the count of weights or of MACs."""
    if density is None:
        raise InputError("a threshold leaves nothing to allocate: give sparsity with allocation='sensitivity'")
    if unlike := set(names) ^ set(curves.losses):
        raise InputError(f"the sensitivity curves are of other layers: {min(unlike)}; use the same include and exclude")
    weights = weights_of(model, names)
    costs = None
    if plan.of == "macs":
        stats = collector(model, weights, {}, frozenset({"positions"}))
        costs = {name: weight.values.numel() * (stats[name].positions or 0.0) for name, weight in weights.items()}
    return curves.allocate(density, costs)


# --- how much, and when ---------------------------------------------------------------------------------------------


def _check_amount(sparsity: object, threshold: object, keep: object) -> None:
    given = {"sparsity": sparsity, "threshold": threshold, "keep": keep}
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1:
        raise InputError(f"give exactly one of sparsity, threshold and keep, not {' and '.join(named) or 'none'}")
    for name, value, high in (("sparsity", sparsity, 1.0), ("threshold", threshold, math.inf)):
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, Real):
            raise InputError(f"{name} must be a number, not {value!r}")
        if not 0 <= float(value) <= high or math.isinf(value):
            raise InputError(f"{name} must be {'in [0, 1]' if high == 1 else 'finite and not negative'}, not {value!r}")
    if keep is not None:
        _whole("keep", keep, 0)


def _whole(name: str, value: Any, low: int) -> int:
    if isinstance(value, bool) or not isinstance(value, SupportsIndex) or int(value) < low:
        raise InputError(f"{name} must be a whole number from {low}, not {value!r}")
    return int(value)


def _fixed(pattern: str, sparsity: Any, threshold: float | None, keep: int | None) -> Any:
    """The sparsity asked for, or that of a pattern which fixes it."""
    density = PATTERNS[pattern].density
    if density is None:
        return sparsity
    if keep is not None or (isinstance(sparsity, Real) and not math.isclose(float(sparsity), 1 - density)):
        raise InputError(
            f"pattern '{pattern}' removes {1 - density:.4g} of the weights: leave the amount out, or say so"
        )
    return 1 - density if sparsity is None and threshold is None else sparsity


def _density(sparsity: float | None, keep: int | None, allocation: str, of: str, total: int) -> float | None:
    """The density to reach; None where a threshold decides."""
    if keep is None:
        return None if sparsity is None else 1 - float(sparsity)
    if of != "weights":
        raise InputError("keep counts weights: give sparsity with of='macs'")
    if keep > total:
        raise InputError(f"keep={keep} is more than the {total} weights that can be pruned")
    if allocation != "global":
        raise InputError(f"keep counts over all layers: use allocation='global', or sparsity with '{allocation}'")
    return int(keep) / total


def _length(
    schedule: str, steps: int | None, every: int | None, threshold: float | None, way: Regrowth | None
) -> tuple[int, int]:
    """Optimizer steps until the end and between two choices."""
    at_once = SCHEDULES[schedule](0.0) == 1
    if way and not at_once:
        raise InputError(f"regrow keeps the sparsity constant: leave schedule at 'one-shot', not '{schedule}'")
    if way and steps is None:
        raise InputError("regrow needs steps: how many optimizer steps the training takes")
    if at_once and not way:
        if steps is not None or every is not None:
            raise InputError(f"schedule '{schedule}' is done at once: leave out steps and every, or choose 'cubic'")
        return 0, 1
    if steps is None:
        raise InputError(f"schedule '{schedule}' needs steps: how many optimizer steps until the whole sparsity")
    if threshold is not None and not way:
        raise InputError(f"a threshold has no course in time: give sparsity or keep with schedule '{schedule}'")
    length = _whole("steps", steps, 1)
    return length, max(1, length // 100) if every is None else _whole("every", every, 1)
