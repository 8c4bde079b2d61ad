"""Which ranks each layer gets, and the reason where it stays dense."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from abridged.errors import InputError, UnsupportedError
from abridged.factorization.allocate import Option, allocate, worthwhile
from abridged.factorization.amount import Amount, Rank
from abridged.factorization.decomposition import Ranks
from abridged.factorization.factoring import Factoring
from abridged.factorization.seconds import Clock

ROUNDING = 1e-12  # an error below which everything is kept: float64 does not know better
ALMOST = 1e-9  # of the energy: what a layer keeps at least, as bounds of errors may be above 1
POINTS = 6  # ranks per layer that are timed, spread over the best by parameters

Factorings = Mapping[str, Sequence[Factoring]]  # by path; several where methods compete


@dataclass(frozen=True, eq=False)
class Choice:
    """A layer's factoring and its ranks."""

    factoring: Factoring
    ranks: Ranks


def choose(
    layers: Factorings, amount: Amount, total: float, clock: Clock | None
) -> tuple[dict[str, Choice], dict[str, str]]:
    """The choice for each layer that becomes smaller (and faster, with a clock), and the reason for each that does not.

    `total`: what the whole dense model counts of `amount.of`. Under a ratio, what layers that are not faster do not save
    is asked of the others, as far as they can. Raises `InputError` for a rank above what a layer can have and for a ratio
    that cannot be reached."""
    if amount.ratio is not None:
        chosen, left = _by_ratio(layers, amount, total, clock)
    elif amount.energy is not None:
        chosen, left = _by_energy(layers, amount.energy)
    else:
        chosen, left = _by_rank(layers, amount)
    chosen, slow = _gaining(chosen, clock)
    left |= slow
    while slow and amount.ratio is not None:
        layers = {path: factorings for path, factorings in layers.items() if path not in slow}
        try:
            again, kept = _by_ratio(layers, amount, total, clock)
        except InputError:  # out of reach for the others alone: the report has a line on what is missed
            break
        chosen, more = _gaining(again, clock)
        left = slow | kept | more
        if not more:
            break
        slow |= more
    return chosen, left


def _gaining(chosen: dict[str, Choice], clock: Clock | None) -> tuple[dict[str, Choice], dict[str, str]]:
    """The choices that make a layer smaller, with a clock faster too; and the reason for each other layer."""
    reasons = {path: reason for path, choice in chosen.items() if (reason := _no_gain(choice, clock))}
    return {path: choice for path, choice in chosen.items() if path not in reasons}, reasons


def _no_gain(choice: Choice, clock: Clock | None) -> str:
    """Why a layer is better off dense, or ''."""
    factoring, ranks = choice.factoring, choice.ranks
    after, before = factoring.parameters(ranks), factoring.layer.parameters
    if after >= before:
        return f"left dense: with {named(ranks)} the factors would not be smaller ({after:,} weights, not {before:,})"
    if clock is None:
        return ""
    slow, fast = clock.dense(factoring), clock.factors(factoring, ranks)
    return (
        ""
        if fast < slow
        else f"left dense: {named(ranks)} takes {1e3 * fast:.3g} ms, the dense layer {1e3 * slow:.3g} ms"
    )


def named(ranks: Ranks) -> str:
    """
    >>> named((3,)), named((4, 5))
    ('rank 3', 'ranks 4, 5')
    """
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


# --- rank, energy -------------------------------------------------------------------------------------------------------


def _by_rank(layers: Factorings, amount: Amount) -> tuple[dict[str, Choice], dict[str, str]]:
    chosen, left = {}, {}
    for path, (factoring, *_) in layers.items():
        rank = amount.rank_of(factoring.layer.weights)
        if rank is None:
            left[path] = "no rank was given for it"
            continue
        try:
            ranks = _ranks(factoring, rank)
        except UnsupportedError as error:
            left[path] = str(error)
            continue
        if min(ranks) < 1:
            left[path] = "left dense: evbmf finds nothing but noise"
        else:
            chosen[path] = Choice(factoring, ranks)
    return chosen, left


def _ranks(factoring: Factoring, rank: Rank) -> Ranks:
    """One whole number means the same for all ranks, or as much of it as each can have; above all of them it is refused
    for this layer alone, since it may be right for others."""
    path, limits = factoring.layer.path, factoring.limits
    shape = tuple(factoring.layer.module.weight.shape)
    if isinstance(rank, str):
        return factoring.evbmf()
    if isinstance(rank, Sequence):
        if len(rank) != len(limits):
            count = "one rank" if len(limits) == 1 else f"{len(limits)} ranks"
            raise InputError(f"{path}: {factoring.method} takes {count} here, not {tuple(rank)}")
        ranks = tuple(int(n) for n in rank)
        if any(n > limit for n, limit in zip(ranks, limits, strict=True)):
            raise InputError(f"{path}: ranks {ranks} are above {limits}, the largest of {factoring.method} for {shape}")
        return ranks
    if int(rank) > max(limits):
        raise UnsupportedError(
            f"left dense: rank {rank} is above {max(limits)}, the largest of {factoring.method} for {shape}"
        )
    return tuple(min(int(rank), limit) for limit in limits)


def _by_energy(layers: Factorings, energy: float) -> tuple[dict[str, Choice], dict[str, str]]:
    """The fewest parameters that keep the energy: error ≤ 1 − energy."""
    chosen, left = {}, {}
    for path, factorings in layers.items():
        enough = [
            (factoring.parameters(ranks), factoring.error(ranks), at, ranks)
            for at, factoring in enumerate(factorings)
            for ranks in factoring.candidates()
            if factoring.error(ranks) <= max(1 - energy, ROUNDING)
        ]
        if enough:
            *_, at, ranks = min(enough)
            chosen[path] = Choice(factorings[at], ranks)
        else:
            left[path] = f"left dense: factors that keep {energy:.10g} of the energy would not be smaller"
    return chosen, left


# --- a budget over all layers ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Offer(Option):
    """An option that knows which of the competing factorings it is of."""

    at: int = 0


def _by_ratio(
    layers: Factorings, amount: Amount, total: float, clock: Clock | None
) -> tuple[dict[str, Choice], dict[str, str]]:
    assert amount.ratio is not None
    offers = {path: _offers(factorings, amount.of, clock) for path, factorings in layers.items()}
    rest = total - sum(options[0].cost for options in offers.values())  # of what is not factorized
    best = allocate(offers, amount.ratio * total - rest)
    if best is None:
        costs = (min(option.cost for option in options) for options in offers.values())
        raise _unreachable(amount, (rest + sum(costs)) / total)
    chosen, left = {}, {}
    for path, option in best.items():
        if option.ranks is not None:
            chosen[path] = Choice(layers[path][getattr(option, "at", 0)], option.ranks)
        else:
            left[path] = (
                f"left dense: the same {amount.unit} are saved elsewhere at less error"
                if len(offers[path]) > 1
                else "left dense: no ranks make factors " + ("faster" if amount.of == "seconds" else "smaller")
            )
    return chosen, left


def _unreachable(amount: Amount, share: float) -> InputError:
    least = math.ceil(1000 * share) / 1000
    return InputError(
        f"ratio {amount.ratio:g} cannot be reached: with the smallest factors everywhere {least:.3f} of the {amount.unit} are left"
    )


def least(layers: Factorings, amount: Amount, total: float) -> tuple[dict[str, Choice], dict[str, str]]:
    """The smallest factors of each layer, where they are smaller than it, and the reason where they are not. Raises
    `InputError` for a ratio of `total` that even these do not reach."""
    chosen, left, cost = {}, {}, total
    for path, factorings in layers.items():
        each = [Choice(factoring, (1,) * len(factoring.limits)) for factoring in factorings]
        best = min(each, key=lambda choice: _cost(choice.factoring, choice.ranks, amount.of, None))
        if reason := _no_gain(best, None):
            left[path] = reason
        else:
            chosen[path] = best
            cost -= _dense(best.factoring, amount.of, None) - _cost(best.factoring, best.ranks, amount.of, None)
    if amount.ratio is not None and cost > amount.ratio * total:
        raise _unreachable(amount, cost / total)
    return chosen, left


def _offers(factorings: Sequence[Factoring], of: str, clock: Clock | None) -> list[Option]:
    """The dense layer first, then everything cheaper."""
    dense = Option(_dense(factorings[0], of, clock), 0.0)
    offers: list[Option] = []
    for at, factoring in enumerate(factorings):
        candidates = factoring.candidates()
        if of == "seconds":
            sized = [Option(factoring.parameters(ranks), factoring.error(ranks), ranks) for ranks in candidates]
            candidates = worthwhile(sized, POINTS)
        offers += [
            _Offer(_cost(factoring, ranks, of, clock), _loss(factoring.error(ranks)), ranks, at) for ranks in candidates
        ]
    return [dense, *(offer for offer in offers if offer.cost < dense.cost)]


def _loss(error: float) -> float:
    """−ln of the share of the energy that a layer keeps: what all layers keep is the product (Zhang et al. 2016, section
    3.2), and no layer can be given up for the others, as it could where errors were added."""
    return -math.log1p(-min(error, 1 - ALMOST))


def _dense(factoring: Factoring, of: str, clock: Clock | None) -> float:
    if of == "parameters":
        return factoring.layer.parameters
    return factoring.layer.macs if of == "macs" or clock is None else clock.dense(factoring)


def _cost(factoring: Factoring, ranks: Ranks, of: str, clock: Clock | None) -> float:
    if of == "parameters":
        return factoring.parameters(ranks)
    return factoring.macs(ranks) if of == "macs" or clock is None else clock.factors(factoring, ranks)


def dense_parameters(model: nn.Module) -> int:
    """Elements of all parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
