"""`prune`: check what was asked, find what can be pruned, choose, and write the zeros."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from abridged import progress
from abridged.data import Data
from abridged.errors import InputError
from abridged.globs import listed
from abridged.progress import Say, tell
from abridged.pruning.agent import Search, search_sparsities
from abridged.pruning.agents import AGENTS
from abridged.pruning.asked import Allocation, Amount, Asked, kinds, whole
from abridged.pruning.channels import Goal, Repair, prune_channels
from abridged.pruning.collect import Collector
from abridged.pruning.layers import weights_of
from abridged.pruning.masks import Masks
from abridged.pruning.plan import Plan
from abridged.pruning.ranking import count
from abridged.pruning.regrow import Regrowth
from abridged.pruning.select import by_glob, select
from abridged.pruning.sensitivity import Sensitivity, sensitivity
from abridged.pruning.solvers import repair


def prune(
    model: nn.Module,
    sparsity: float | None = None,
    *,
    threshold: float | None = None,
    keep: int | None = None,
    criterion: str = "magnitude",
    pattern: str = "unstructured",
    allocation: Allocation = None,
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
    say: Say | None = progress.say,
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
    of globs to sparsities says it for each layer, the first glob that fits (one that never applies is refused); other layers
    are left. "sensitivity", or the result of `ab.sensitivity`, keeps most where the measured loss rises most. "ddpg", "td3" and "sac" search with that agent
    (`ab.search_sparsities`, at its defaults). With `of`="macs" the sparsity is a fraction of the multiply-accumulates.

    What was touched, what was not and why is said line by line to `say`, and stays in the masks' `summary`.

    Criteria that look at more than weights measure it on `samples` training samples of `data`, or need an `example`
    input alone; they say so when it is missing. `seed` shuffles these samples, and is the random criterion's.

    Raises `InputError`, leaving the model as it was, for what removes nothing, a number out of range, an unknown name, a glob
    that matches nothing, NaN or infinite weights, and a model without anything to prune.

    >>> import torch
    >>> model = nn.Linear(3, 3, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[0.2, 0, 0.6], [0.3, 0, 0.1], [0, 0.5, 0]]))
    >>> masks = prune(model, threshold=0.3, say=print)
    1 of 1 linear layers: 6 of 9 weights removed (66.67%; magnitude, unstructured, threshold 0.3)
    >>> model.weight.tolist() == torch.tensor([[0, 0, 0.6], [0.3, 0, 0], [0, 0.5, 0]]).tolist()
    True
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"prune takes an nn.Module, not {type(model).__name__}")
    kinds(allocation, seed, exact, reestimate, say)
    collector = Collector(data, example, whole("samples", samples, 1))
    which: dict[str, Any] = {"include": listed(include), "exclude": listed(exclude)}
    asked = Asked(
        sparsity=sparsity, threshold=threshold, keep=keep, macs=macs, parameters=parameters, of=of, criterion=criterion,
        pattern=pattern, allocation=allocation, schedule=schedule, regrow=regrow, steps=steps, every=every, solver=solver,
        reestimate=reestimate, exact=exact, round_to=round_to, include=which["include"],
    )  # fmt: skip
    if isinstance(allocation, Mapping):
        which["include"] = tuple(allocation)
    asked.check()
    if data is None and (solver != "none" or reestimate):
        raise InputError(f"{'reestimate' if solver == 'none' else 'a solver'} measures on data: give data=ab.Data(…)")
    if asked.structured:
        goal = asked.goal()

        def mend(whole: nn.Module, masks: Mapping[str, Tensor]) -> tuple[str, ...]:
            return repair(whole, masks, solver, data, norms=reestimate, samples=samples, seed=seed)[1]

        which |= {"criterion": criterion, "exact": exact, "round_to": round_to, "seed": seed}
        which |= {"mend": mend if solver != "none" or reestimate else None}
        masks = _prune_channels(model, goal, allocation, pattern, data, example, collector, **which)
    else:
        plan = replace(asked.plan(), seed=seed)
        which |= {"solver": solver, "reestimate": reestimate, "samples": samples}
        masks = _prune_weights(model, asked.amount(), allocation, plan, data, example, collector, **which)
    tell(masks.summary, say)
    return masks


def _prune_weights(
    model: nn.Module,
    amount: Amount,
    allocation: Allocation,
    plan: Plan,
    data: Data | None,
    example: Any,
    collector: Collector,
    *,
    include: Sequence[str],
    exclude: Sequence[str],
    solver: str,
    reestimate: bool,
    samples: int,
) -> Masks:
    """Choose single weights, or units inside a layer, and write the zeros. `plan` says all but how much."""
    names, what, left = select(model, include, exclude)
    plan = replace(plan, density=amount.density(sum(model.get_parameter(name).numel() for name in names)))
    collector.check(plan.criterion, plan.needs)
    repaired = solver != "none" or reestimate
    layers = _layers(plan, model, names, allocation, data, example, collector, samples)
    if layers is not None:
        stay = sum(share * model.get_parameter(name).numel() for name, share in layers.items())
        total = sum(model.get_parameter(name).numel() for name in names)
        plan = replace(plan, density=stay / total, layers=json.dumps(layers))
    chosen = plan.masks(model, names, {}, 0, collector)
    _check_removes(plan, chosen, amount, allocation)
    before = sum(int(model.get_parameter(name).count_nonzero()) for name in names)
    if repaired:
        free = plan.pattern == "unstructured"
        chosen, said = repair(
            model, chosen, solver, data, free=free, norms=reestimate, samples=samples, seed=plan.seed
        )  # fmt: skip
        left = (*left, *said)
    if plan.regrow:
        plan = replace(plan, kept=sum(int(mask.count_nonzero()) for mask in chosen.values()))
    masks = Masks(model, chosen, plan, what=what, left=left, collector=collector)
    masks.apply()
    spare = sum(int(mask.count_nonzero()) for mask in masks.values()) - before
    if spare > 0 and not plan.gradual:
        masks.remark(f"{spare:,} weights were zero already and are not held, since fewer were to go")
    return masks


def _check_removes(plan: Plan, chosen: Mapping[str, Tensor], amount: Amount, allocation: Allocation) -> None:
    """Raises `InputError` where something was asked to go, and nothing does."""
    total = sum(mask.numel() for mask in chosen.values())
    if plan.gradual:
        none = plan.density is not None and count(plan.density, total) == total
    else:
        none = all(bool(mask.all()) for mask in chosen.values())
    if not none:
        return
    if amount.threshold is not None:
        why = f"no {plan.criterion} score is below it" if amount.threshold else "no weight is zero"
        raise InputError(f"threshold={amount.threshold} removes nothing: {why}; ask for more")
    asked = f"sparsity={amount.sparsity}" if amount.keep is None else f"keep={amount.keep}"
    asked = f"sparsity={max(allocation.values())}" if isinstance(allocation, Mapping) else asked
    raise InputError(
        f"{asked} removes nothing: of {total:,} weights ({plan.pattern}, {plan.allocation}) it comes to less"
        " than half of the least that can go; ask for more"
    )


def _prune_channels(
    model: nn.Module,
    goal: Goal,
    allocation: Allocation,
    pattern: str,
    data: Data | None,
    example: Any,
    collector: Collector,
    mend: Repair | None,
    **options: Any,
) -> Masks:
    """Choose coupled channels, and write the zeros."""
    if isinstance(allocation, str) and allocation in AGENTS:
        assert goal.macs is not None
        found = _search(model, data, example, goal.macs, allocation, pattern=pattern, **options)
        goal, allocation = Goal(), found.sparsities
        options |= {"include": tuple(allocation), "exclude": ()}
    assert not isinstance(allocation, Sensitivity)
    return prune_channels(
        model, goal, example=example, collector=collector, heads=pattern == "heads",
        allocation=allocation or "uniform", repair=mend, **options,
    )  # fmt: skip


# --- layer by layer -----------------------------------------------------------------------------------------------


def _layers(
    plan: Plan,
    model: nn.Module,
    names: Sequence[str],
    allocation: Allocation,
    data: Data | None,
    example: Any,
    collector: Collector,
    samples: int,
) -> dict[str, float] | None:
    """The density of each layer, where the allocation says it layer by layer."""
    options: dict[str, Any] = {"criterion": plan.criterion, "pattern": plan.pattern, "seed": plan.seed}
    if isinstance(allocation, Mapping):
        return {name: 1 - allocation[glob] for name, glob in by_glob(model, names, tuple(allocation)).items()}
    if isinstance(allocation, Sensitivity) or allocation == "sensitivity":
        curves = allocation
        if not isinstance(curves, Sensitivity):
            curves = _curves(model, data, names, samples=samples, **options)
        return _by_curves(model, curves, plan.density, names, plan, collector)
    if allocation is not None and allocation in AGENTS:
        assert plan.density is not None
        found = _search(model, data, example, plan.density, allocation, include=names, **options)
        return {name: 1 - sparsity for name, sparsity in found.sparsities.items()}
    return None


def _search(model: nn.Module, data: Data | None, example: Any, macs: float, agent: str, **options: Any) -> Search:
    if data is None:
        raise InputError(f"allocation='{agent}' judges on data: give data=ab.Data(…)")
    return search_sparsities(model, data, macs=macs, agent=agent, example=example, say=None, **options)


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
    assert density is not None
    if unlike := set(names) ^ set(curves.losses):
        raise InputError(f"the sensitivity curves are of other layers: {min(unlike)}; use the same include and exclude")
    weights = weights_of(model, names)
    costs = None
    if plan.of == "macs":
        stats = collector(model, weights, {}, frozenset({"positions"}))
        costs = {name: weight.values.numel() * (stats[name].positions or 0.0) for name, weight in weights.items()}
    return curves.allocate(density, costs)
