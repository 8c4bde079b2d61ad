"""`prune`: check what was asked, find what can be pruned, choose, and write the zeros."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from numbers import Real
from typing import Any, SupportsIndex

from torch import Tensor, nn

from abridged.errors import InputError
from abridged.pruning.masks import Masks
from abridged.pruning.plan import Plan
from abridged.pruning.regrow import Regrowth, regrowth
from abridged.pruning.schedules import SCHEDULES

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def prune(
    model: nn.Module,
    sparsity: float | None = None,
    *,
    threshold: float | None = None,
    keep: int | None = None,
    criterion: str = "magnitude",
    pattern: str = "unstructured",
    allocation: str = "global",
    data: object = None,
    example: object = None,
    schedule: str = "one-shot",
    regrow: str | Regrowth | None = None,
    steps: int | None = None,
    every: int | None = None,
    seed: int = 0,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
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
    With `regrow` ("set", "rigl", "sparse-momentum", or a `Regrowth` of your own) the whole sparsity is there at once, and
    every `every` of the `steps` to come exchanges weights for others that were zero; their number never changes.

    Of `data` and `example` none of the present criteria makes use; `seed` is the random criterion's.

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
    way = regrowth(regrow)
    _check_amount(sparsity, threshold, keep)
    length, interval = _length(schedule, steps, every, threshold, way)
    chosen, what, left = _select(model, _globs(include), _globs(exclude))
    density = _density(sparsity, keep, allocation, chosen)
    bound = None if threshold is None else float(threshold)
    plan = Plan(density, bound, criterion, pattern, allocation, schedule, length, interval, seed, way)
    masks = Masks(model, plan.masks(chosen, {}, 0), plan, what=what, left=left)
    masks.apply()
    kept = sum(int(mask.count_nonzero()) for mask in masks.values())
    spare = kept - sum(int(weight.count_nonzero()) for weight in chosen.values())
    if spare and SCHEDULES[schedule](0.0) == 1:
        masks.remark(f"{spare:,} weights were zero already and are not held, since fewer were to go")
    return masks


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


def _density(sparsity: float | None, keep: int | None, allocation: str, chosen: dict[str, Tensor]) -> float | None:
    """The density to reach; None where a threshold decides."""
    if keep is None:
        return None if sparsity is None else 1 - float(sparsity)
    total = sum(weight.numel() for weight in chosen.values())
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


# --- what -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Weight:
    """One parameter of the model, under all its names, and whether a mask fits it."""

    names: tuple[str, ...]
    parameter: nn.Parameter
    kind: str  # "convolutions" …, or "" where this kind is not pruned unless it is named


def _kind(module: nn.Module, attribute: str) -> str:
    if isinstance(module, CONVOLUTIONS) and attribute == "weight":
        return "convolutions"
    if isinstance(module, nn.Linear) and attribute == "weight":
        return "linear layers"
    return "attention projections" if isinstance(module, nn.MultiheadAttention) and attribute in PROJECTIONS else ""


def _weights(model: nn.Module) -> list[_Weight]:
    """Every parameter once. One that a layer of another kind shares (an embedding) is of no kind."""
    found: dict[int, _Weight] = {}
    for path, module in model.named_modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            name, kind = f"{path}.{attribute}".lstrip("."), _kind(module, attribute)
            before = found.get(id(parameter))
            names = (*before.names, name) if before else (name,)
            found[id(parameter)] = _Weight(names, parameter, kind if not before or before.kind else "")
    return list(found.values())


def _select(
    model: nn.Module, include: tuple[str, ...], exclude: tuple[str, ...]
) -> tuple[dict[str, Tensor], str, tuple[str, ...]]:
    """The weights to prune by name, a phrase on what they are, and lines on what is left and why."""
    weights = _weights(model)
    _check_globs(weights, (*include, *exclude))
    candidates = [weight for weight in weights if weight.kind or any(name in include for name in weight.names)]
    chosen = [w for w in candidates if _matches(w, include) and not _matches(w, exclude) and not _is_empty(w)]
    if not chosen:
        raise InputError(f"nothing to prune: {_why_nothing(candidates)}")
    for weight in chosen:
        _check_prunable(weight)
    every, done = (Counter(weight.kind or "parameters by name" for weight in list_) for list_ in (candidates, chosen))
    what = ", ".join(f"{done[kind]} of {total} {kind}" for kind, total in every.items())
    return {weight.names[0]: weight.parameter.detach() for weight in chosen}, what, _left(weights, candidates, chosen)


def _left(weights: list[_Weight], candidates: list[_Weight], chosen: list[_Weight]) -> tuple[str, ...]:
    left = [weight for weight in candidates if weight not in chosen]
    reasons = {
        "left by include and exclude": [weight for weight in left if not _is_empty(weight)],
        "left, without elements": [weight for weight in left if _is_empty(weight)],
        # A bias or a scale that is left is no news; a matrix, such as an embedding, is.
        "left, of a kind that is pruned only by its full name": [
            weight for weight in weights if weight not in candidates and _rank(weight) > 1
        ],
    }
    return tuple(f"{why}: {_some([weight.names[0] for weight in them])}" for why, them in reasons.items() if them)


def _why_nothing(candidates: list[_Weight]) -> str:
    names = _some([weight.names[0] for weight in candidates])
    if candidates:
        empty = all(_is_empty(weight) for weight in candidates)
        return f"{names} has no elements" if empty else f"include and exclude leave none of {names}"
    return "the model has no Linear, convolution or attention with a weight; name a parameter in full in include"


def _is_empty(weight: _Weight) -> bool:
    return not nn.parameter.is_lazy(weight.parameter) and weight.parameter.numel() == 0


def _rank(weight: _Weight) -> int:
    return 0 if nn.parameter.is_lazy(weight.parameter) else weight.parameter.dim()


def _check_prunable(weight: _Weight) -> None:
    name, parameter = weight.names[0], weight.parameter
    if nn.parameter.is_lazy(parameter):
        raise InputError(f"{name} has no values yet (lazy module): run the model once before pruning")
    if parameter.is_meta:
        raise InputError(f"{name} has no values (meta device): load the weights before pruning")
    if not parameter.is_floating_point():
        raise InputError(f"{name} is {parameter.dtype}: only floating-point weights are pruned; exclude it")


def _globs(given: Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _matches(weight: _Weight, globs: tuple[str, ...]) -> bool:
    """Whether a glob fits one of the parameter's names or a module path above it."""
    return any(fnmatchcase(path, glob) for name in weight.names for path in _paths(name) for glob in globs)


def _paths(name: str) -> list[str]:
    """
    >>> _paths("layer1.conv.weight")
    ['layer1', 'layer1.conv', 'layer1.conv.weight']
    """
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _check_globs(weights: list[_Weight], globs: tuple[str, ...]) -> None:
    known = list(dict.fromkeys(path for weight in weights for name in weight.names for path in _paths(name)))
    for glob in globs if known else ():
        if not any(fnmatchcase(path, glob) for path in known):
            close = get_close_matches(glob, known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"there are {_some(known)}"
            raise InputError(f"'{glob}' matches no parameter and no module that has one; {hint}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
