"""What is pruned: the parameters of a model that globs choose, what is left, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from abridged.errors import InputError
from abridged.globs import check, listed, matches, some
from abridged.pruning.layers import CONVOLUTIONS, PROJECTIONS, TRANSPOSED


@dataclass(frozen=True, eq=False)
class _Weight:
    """One parameter of the model, under all its names, and whether a mask fits it."""

    names: tuple[str, ...]
    parameter: nn.Parameter
    kind: str  # "convolutions" …, or "" where this kind is not pruned unless it is named


def _kind(module: nn.Module, attribute: str) -> str:
    if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)) and attribute == "weight":
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


def select(
    model: nn.Module, include: Sequence[str], exclude: Sequence[str]
) -> tuple[tuple[str, ...], str, tuple[str, ...]]:
    """The names of the parameters to prune, a phrase on what they are, and lines on what is left and why.

    Raises `InputError` for a glob that matches nothing, for weights without values, and when nothing is left to prune."""
    include, exclude = listed(include), listed(exclude)
    weights = _weights(model)
    names = (name for weight in weights for name in weight.names)
    check(names, (*include, *exclude), "parameter and no module that has one")
    candidates = [weight for weight in weights if weight.kind or any(name in include for name in weight.names)]
    chosen = [w for w in candidates if matches(w.names, include) and not matches(w.names, exclude) and not _is_empty(w)]
    if not chosen:
        shared = [w for w in weights if w not in candidates and matches(w.names, include) and _is_shared(w)]
        raise InputError(f"nothing to prune: {_why_shared(shared[0], include) if shared else _why_nothing(candidates)}")
    for weight in chosen:
        _check_prunable(weight)
    every, done = (Counter(weight.kind or "parameters by name" for weight in list_) for list_ in (candidates, chosen))
    what = ", ".join(f"{done[kind]} of {total} {kind}" for kind, total in every.items())
    return tuple(weight.names[0] for weight in chosen), what, _left(weights, candidates, chosen)


def _left(weights: list[_Weight], candidates: list[_Weight], chosen: list[_Weight]) -> tuple[str, ...]:
    left = [weight for weight in candidates if weight not in chosen]
    reasons = {
        "left by include and exclude": [weight for weight in left if not _is_empty(weight)],
        "left, without elements": [weight for weight in left if _is_empty(weight)],
        # A bias or a scale that is left is no news; a matrix, such as an embedding, is.
        "left, of a kind that is pruned only by its full name": [
            weight for weight in weights if weight not in candidates and _rank(weight) > 1
        ],
        "frozen, and pruned all the same": [weight for weight in chosen if not weight.parameter.requires_grad],
    }
    return tuple(f"{why}: {some([_told(weight) for weight in them])}" for why, them in reasons.items() if them)


def _told(weight: _Weight) -> str:
    """Its name, and its other names where layers of several kinds share it."""
    name, *others = weight.names
    return f"{name} (shared: {', '.join(others)})" if others and _is_shared(weight) else name


def _is_shared(weight: _Weight) -> bool:
    """Whether layers of several kinds share it, so that it is of none."""
    return len(weight.names) > 1 and not weight.kind


def _why_shared(weight: _Weight, include: Sequence[str]) -> str:
    name = next(name for name in weight.names if matches((name,), include))
    others = ", ".join(other for other in weight.names if other != name)
    return (
        f"{name} is shared with a layer of another kind, as {others}; include=['{name}'], in full, prunes it for both"
    )


def _why_nothing(candidates: list[_Weight]) -> str:
    names = some([weight.names[0] for weight in candidates])
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


def by_glob(model: nn.Module, names: Sequence[str], globs: Sequence[str]) -> dict[str, str]:
    """For each of these selected parameters the first of the globs that fits it, under any of its names.

    Raises `InputError` for a glob that never applies, since earlier ones fit all that it fits."""
    every = {weight.names[0]: weight.names for weight in _weights(model)}
    fitting = {name: [glob for glob in globs if matches(every[name], (glob,))] for name in names}
    first = {name: fit[0] for name, fit in fitting.items()}
    for name, fit in fitting.items():
        for glob in fit:
            if glob not in first.values():
                raise InputError(
                    f"allocation['{glob}'] never applies: the first glob that fits counts, and of {name} that is"
                    f" '{first[name]}'; put '{glob}' before it"
                )
    return first
