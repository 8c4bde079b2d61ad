"""`factorize`: check what was asked, take every layer apart, choose the ranks, and put the factors in its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from abridged import progress
from abridged.calibration.stats import collect
from abridged.data.data import copied
from abridged.errors import InputError, UnsupportedError, expect, nearest
from abridged.factorization.amount import Amount, Cost, Rank
from abridged.factorization.chain import KINDS
from abridged.factorization.choose import Choice, Factorings, choose, dense_parameters, least
from abridged.factorization.decomposition import AWARE
from abridged.factorization.factoring import factoring
from abridged.factorization.layers import Layer, failure, find, put, unfused, watch
from abridged.factorization.methods import chosen as chosen_methods
from abridged.factorization.opening import Before, closed, inside, opened
from abridged.factorization.report import Line, Report, Structure
from abridged.factorization.seconds import Clock, on_cpu
from abridged.factorization.trials import unbearable
from abridged.globs import check, listed, some
from abridged.graph.cost import cost as theory_of
from abridged.graph.cost import known
from abridged.progress import Say, tell

ZEROS = 0.1  # share of zeros in a weight above which it was pruned, and the loss of its zeros is worth a line

_REPORTS: WeakKeyDictionary[nn.Module, Report] = WeakKeyDictionary()


def factorize(
    model: nn.Module,
    example: Tensor | tuple[Any, ...],
    method: str | Sequence[str] = "svd",
    *,
    rank: Rank | Mapping[str, Rank] | None = None,
    energy: float | None = None,
    ratio: float | None = None,
    of: str = "parameters",
    cost: Cost | None = None,
    data: object = None,
    samples: int = 1024,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    say: Say | None = progress.say,
) -> nn.Module:
    """A new model with layers replaced by products of smaller ones; the model that was given stays as it was.

    `method`: a name of `METHODS`, or several that compete for each layer. How far, exactly one of: `rank` (a whole number,
    a tuple for methods of several ranks, "evbmf", or a mapping from globs over layer paths to these), `energy` (the share
    of ‖W‖² that each layer keeps, in (0, 1]), `ratio` (what is left of the whole model's `of`: "parameters", "macs" or
    "seconds", in (0, 1); the ranks of all layers together make the product of what they keep, 1 − error, greatest).

    `cost(graph) → seconds` measures on the target; with it a layer whose factors are not faster stays dense. Layers whose
    factors are not smaller always do. What was done, what was not and why is said line by line to `say`. The factors are
    `nn.Sequential`s of plain layers with the original's bias on the last, and train like any other.

    With calibration `data` (an `ab.Data`, a loader or a tensor; `samples` of it are looked at) the last factor of each
    layer is fitted by least squares to the outputs for what the layer really sees, and errors, by which ranks are chosen
    too, are those of the outputs; the method "whitened" needs it.

    Linear, Embedding and Conv1d-3d are taken apart, grouped ones by group. So are LSTM, GRU and RNN (also their cells),
    nn.MultiheadAttention and GPT-2's Conv1D: where a matrix of theirs becomes factors, they become modules with a linear
    layer per matrix (`rnn.layer0.hidden`, `attention.q_proj`), the same to call. `include` and `exclude` are globs over
    layer paths; exclude wins.

    Raises `InputError`, before anything is made, for an amount or a name that cannot be, a rank above what any layer
    can have, a ratio that cannot be reached, a glob that matches nothing, weights that are not finite, and when nothing
    would be factorized.

    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    >>> thin = factorize(model, torch.zeros(1, 64), rank=8, say=print)
    svd, rank 8: 2 of 2 layers, 4,810 → 1,690 parameters
    >>> print(report(thin))
    svd, rank 8: 2 of 2 layers, 4,810 → 1,690 parameters
    0: svd rank 8, 4,096 → 1,024 weights, 4,096 → 1,024 MACs, relative error 0.793
    2: svd rank 8, 640 → 592 weights, 640 → 592 MACs, relative error 0.342
    >>> thin[0]
    Sequential(
      (reduce): Linear(in_features=64, out_features=8, bias=False)
      (expand): Linear(in_features=8, out_features=64, bias=True)
    )
    """
    if say is not None and not callable(say):
        raise InputError(f"say must be a function that takes a line, or None, not {say!r}")
    amount = Amount(rank, energy, ratio, of, cost)
    methods = chosen_methods(method, amount)
    apart = _apart(model, example, methods, amount, include, exclude, data, samples)
    total = _total(model, example, amount)
    chosen, kept = choose(apart.parts, amount, total, None if cost is None else Clock(cost))
    thin, lines, structure = _assembled(apart, chosen, apart.left | kept, example)
    done = _REPORTS[thin] = Report(
        f"{', '.join(methods)}, {amount.text}",
        lines,
        apart.left | kept,
        (dense_parameters(model), dense_parameters(thin)),
        structure,
        _missed(chosen, amount, total) + _lost_zeros(chosen) + apart.remarks,
    )
    tell(done.summary, say)
    return thin


def smallest(
    model: nn.Module,
    example: Tensor | tuple[Any, ...],
    method: str | Sequence[str] = "svd",
    *,
    ratio: float | None = None,
    of: str = "parameters",
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
) -> nn.Module:
    """A new model with every layer in the smallest factors it can have: a quick rehearsal of `factorize`, without data.

    Raises `InputError` as `factorize` does, also for a ratio of parameters or MACs that even these factors miss."""
    # whitened has svd's kernels; seconds are not measured
    forms = tuple(
        dict.fromkeys("svd" if name in AWARE else name for name in ([method] if isinstance(method, str) else method))
    )
    amount = Amount(ratio=ratio, of=of) if ratio is not None and of != "seconds" else Amount(rank=1)
    apart = _apart(model, example, forms, amount, include, exclude)
    few, kept = least(apart.parts, amount, _total(model, example, amount))
    return _assembled(apart, few, apart.left | kept, example)[0]


def report(model: nn.Module) -> Report:
    """What `factorize` did to the model that it returned. Raises `InputError` for any other model."""
    if model not in _REPORTS:
        raise InputError("this is no model that factorize returned (a copy of one has no report)")
    return _REPORTS[model]


def rebuild(model: nn.Module, structure: Structure) -> nn.Module:
    """A new model of the form that a report's `structure` tells, for weights that were saved: its own factors are zero.

    Raises `InputError` where the model has no such layer."""
    thin, before, _ = opened(copied(model))
    layers = {layer.path: layer for layer in find(thin, ("*",), ())[0]}
    for path, kernels in structure.items():
        if path not in layers:
            raise InputError(f"the model has no layer {path} that can be factorized{nearest(path, layers)}")
        layer = layers[path]
        kind = KINDS[type(layer.module).__name__]
        thin = put(
            thin, layer.paths, kind.build(layer.module, list(kernels), tuple(map(torch.zeros, kernels.values())))
        )
    return closed(thin, before, structure)


@dataclass(frozen=True)
class _Apart:
    """A copy of a model, opened where that helps, the factorings of its layers, why others are left, and what to say of the
    data."""

    model: nn.Module
    before: Before
    parts: Factorings
    left: dict[str, str]
    remarks: tuple[str, ...]


def _apart(
    model: nn.Module,
    example: Any,
    methods: tuple[str, ...],
    amount: Amount,
    include: Sequence[str],
    exclude: Sequence[str],
    data: object = None,
    samples: int = 1,
) -> _Apart:
    expect(model, nn.Module, "factorize takes an nn.Module")
    thin, before, left = opened(copied(model))
    layers, unchosen = find(thin, listed(include), listed(exclude))
    left |= unchosen
    if not layers:
        raise InputError(f"nothing to factorize: {_why(left)}")
    check((name for layer in layers for name in layer.weights), amount.globs, "layer that can be factorized")
    if set(methods) & set(AWARE) and data is None:
        raise InputError("whitened looks at what the layers see: give calibration data=")
    kept = unbearable(thin, before, layers, example)
    layers = [layer for layer in layers if not any(inside(layer.path, path) for path in kept)]
    thin = closed(thin, before, [path for layer in layers for path in layer.paths])
    layers, idle = watch(thin, layers, example)
    seen = _seen(thin, layers, data, samples)
    parts, unfit = _take_apart(layers, methods, {path: gram for path, (gram, _) in seen.items()})
    left |= kept | idle | unfit
    if not parts:
        raise InputError(f"nothing to factorize: {_why(left)}")
    return _Apart(thin, before, parts, left, _few(methods, seen))


def _assembled(
    apart: _Apart, chosen: Mapping[str, Choice], left: Mapping[str, str], example: Any
) -> tuple[nn.Module, tuple[Line, ...], Structure]:
    """The model with the factors in place, a line for each, and their shapes."""
    if not chosen:
        raise InputError(f"nothing was factorized: {_why(left)}")
    thin, lines, structure = apart.model, [], {}
    for path, choice in chosen.items():
        parts = choice.factoring
        kernels = parts.kernels(choice.ranks)
        lines.append(_line(choice, parts.achieved(kernels)))
        structure[path] = {name: list(kernel.shape) for name, kernel in zip(parts.names, kernels, strict=True)}
        thin = put(thin, parts.layer.paths, parts.module(kernels))
    thin = closed(thin, apart.before, chosen)
    if reason := failure(thin, example):
        raise InputError(f"the model does not run with factors in place of {some(list(chosen))}: {reason}")
    return thin, tuple(lines), structure


def _seen(model: nn.Module, layers: Sequence[Layer], data: object, samples: int) -> dict[str, tuple[Tensor, float]]:
    """XᵀX of what each layer sees and how many rows X has, by path; nothing for embeddings, whose inputs are words."""
    names = {layer.weights[0]: layer.path for layer in layers if not isinstance(layer.module, nn.Embedding)}
    if data is None or not names:
        return {}
    with unfused(model):
        found = collect(model, data, ["gram", "count"], names=names, samples=samples)
    return {path: (found[n]["gram"].to("cpu", torch.float64), float(found[n]["count"])) for n, path in names.items()}


def _few(methods: Sequence[str], seen: Mapping[str, tuple[Tensor, float]]) -> tuple[str, ...]:
    """A line on layers of which the data show too little for a method that goes by the data alone."""
    if not set(methods) & set(AWARE):
        return ()
    few = [path for path, (gram, rows) in seen.items() if rows < gram.shape[-1]]
    return (
        (
            f"whitened: {some(few)} saw fewer inputs than a row has numbers; what they did not see is lost: give more data",
        )
        if few
        else ()
    )


def _take_apart(
    layers: Sequence[Layer], methods: Sequence[str], grams: Mapping[str, Tensor]
) -> tuple[Factorings, dict[str, str]]:
    """Each layer's factorings, and the reason where no method applies."""
    parts: dict[str, list[Any]] = {}
    unfit: dict[str, str] = {}
    for layer in layers:
        for method in methods:
            try:
                parts.setdefault(layer.path, []).append(factoring(layer, method, grams.get(layer.path)))
            except UnsupportedError as error:
                unfit[layer.path] = str(error)
    return {path: found for path, found in parts.items() if found}, {
        p: why for p, why in unfit.items() if not parts.get(p)
    }


def _total(model: nn.Module, example: Any, amount: Amount) -> float:
    """What a ratio is a ratio of."""
    if amount.ratio is None or amount.of == "parameters":
        return dense_parameters(model)
    graph = on_cpu(model, example)
    if amount.of == "seconds":
        assert amount.cost is not None
        return amount.cost(graph)
    weights = known(graph)
    return sum(theory_of(node, graph, weights).macs for node in graph)


def _line(choice: Choice, error: float) -> Line:
    parts, layer = choice.factoring, choice.factoring.layer
    return Line(
        layer.path, type(layer.module).__name__, parts.method, choice.ranks,
        (layer.parameters, parts.parameters(choice.ranks)), (layer.macs, parts.macs(choice.ranks)), error,
    )  # fmt: skip


def _missed(chosen: Mapping[str, Choice], amount: Amount, total: float) -> tuple[str, ...]:
    """A line where layers that are not faster as factors stayed dense, and more is left than was asked."""
    if amount.ratio is None or amount.of == "seconds":
        return ()
    saved = 0
    for choice in chosen.values():
        parts, layer = choice.factoring, choice.factoring.layer
        saved += (
            layer.parameters - parts.parameters(choice.ranks)
            if amount.of == "parameters"
            else layer.macs - parts.macs(choice.ranks)
        )
    left = 1 - saved / total
    if left <= amount.ratio:
        return ()
    return (f"{left:.3g} of the {amount.unit} are left, not {amount.ratio:g}: factors of the rest would not be faster",)


def _lost_zeros(chosen: Mapping[str, Choice]) -> tuple[str, ...]:
    """A line on layers that were pruned: the factors of a matrix with zeros have none."""
    pruned = [path for path, choice in chosen.items() if float((choice.factoring.weight == 0).double().mean()) > ZEROS]
    return (f"the zeros of {some(pruned)} are lost: factors are dense; factorize first, then prune",) if pruned else ()


def _why(left: Mapping[str, str]) -> str:
    """One line on why nothing was done: the first reasons."""
    if not left:
        return "the model has no Linear, Embedding, Conv1d, Conv2d or Conv3d"
    reasons: dict[str, list[str]] = {}
    for path, reason in left.items():
        reasons.setdefault(reason, []).append(path or "the model")
    if len(reasons) > 1:  # what the user left out is no news
        reasons.pop("left by include and exclude", None)
    lines = [f"{some(paths)}: {reason}" for reason, paths in reasons.items()]
    return "; ".join(lines[:3]) + (f"; and {len(lines) - 3} more reasons" if len(lines) > 3 else "")
