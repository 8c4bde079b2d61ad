"""Criteria: how much each weight matters. A criterion is one pure function in `CRITERIA`, and says what it needs to know."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

from abridged.errors import UnsupportedError
from abridged.tables import Table

F = TypeVar("F", bound=Callable[..., Tensor])


@dataclass(frozen=True, eq=False)
class Stats:
    """What a criterion may know about a weight beside its values. Of the fields after `seed`, those that it needs are set.

    A weight and all that is of its shape is (g, O, I, T): groups, outputs and inputs of each group, kernel taps.
    """

    name: str  # of the parameter
    seed: int = 0
    positions: float | None = None  # multiply-accumulates per weight and sample
    gradient: Tensor | None = None  # (g, O, I, T) ∂L/∂w of the mean loss L
    gradient_squared: Tensor | None = None  # (g, O, I, T) mean over single samples of (∂L/∂w)²
    hessian_gradient: Tensor | None = None  # (g, O, I, T) H · ∂L/∂w
    hessian_diagonal: Tensor | None = None  # (g, O, I, T) an estimate of |∂²L/∂w²|
    flow: Tensor | None = None  # (g, O, I, T) ∂R/∂w of the synaptic flow R, up to a factor common to all layers
    movement: Tensor | None = None  # (g, O, I, T) Σ over optimizer steps of w · ∂L/∂w
    input_norm: Tensor | None = None  # (g, 1, I, T) root of the sum of squares over samples and positions
    input_gram: Tensor | None = None  # (g, I·T, I·T) Σ x xᵀ over samples and positions
    scale: Tensor | None = None  # (g, O) of the batch norm that follows, if one does
    active: Tensor | None = None  # (g, O) share of positions at which the output (of a norm that follows) is above zero
    activation: Tensor | None = None  # (g, O) mean of |output|, of a norm that follows if one does


NEEDS = frozenset(Stats.__dataclass_fields__) - {"name", "seed"}


@dataclass(frozen=True)
class Criterion:
    """A function with what it needs.

    `score(weight, stats)` gives terms of the weight's shape, floating-point, finite, in memory of their own; for
    `per` = "output" it gives (g, O). `combine` makes one score of the terms of a unit (…, members) → (…); the lowest go
    first. `rounds`: how often scores are taken anew on the way to the density when pruning at once."""

    score: Callable[[Tensor, Stats], Tensor]
    needs: frozenset[str] = frozenset()
    combine: Callable[[Tensor], Tensor] = lambda terms: total(terms)
    per: Literal["weight", "output"] = "weight"
    rounds: int = 1

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        return self.score.__doc__

    def __call__(self, weight: Tensor, stats: Stats) -> Tensor:
        """Scores of single weights, or of outputs."""
        terms = self.score(weight, stats)
        return terms if self.per == "output" else self.combine(terms[..., None])


def total(terms: Tensor) -> Tensor:
    """Σ over the members of a unit; single members are passed on without a copy."""
    return terms[..., 0] if terms.shape[-1] == 1 else terms.sum(-1)


def root(terms: Tensor) -> Tensor:
    """Euclidean norm of the members of a unit."""
    return terms[..., 0] if terms.shape[-1] == 1 else torch.linalg.vector_norm(terms, dim=-1)


def largest(terms: Tensor) -> Tensor:
    """Maximum of the members of a unit."""
    return terms[..., 0] if terms.shape[-1] == 1 else terms.amax(-1)


def squared_total(terms: Tensor) -> Tensor:
    """(Σ)² over the members of a unit."""
    return terms.sum(-1).square()


class Criteria(Table[Criterion]):
    """The table of criteria: a function is added with what it needs."""

    def entry(  # type: ignore[override]
        self,
        *names: str,
        needs: Iterable[str] = (),
        combine: Callable[[Tensor], Tensor] = total,
        per: Literal["weight", "output"] = "weight",
        rounds: int = 1,
    ) -> Callable[[F], F]:
        """Decorator; `needs` are names of fields of `Stats`. See `Criterion`."""
        if unknown := set(needs) - NEEDS:
            raise ValueError(f"{names}: Stats has no {sorted(unknown)}")

        def add(score: F) -> F:
            super(Criteria, self).entry(*names)(Criterion(score, frozenset(needs), combine, per, rounds))
            return score

        return add


CRITERIA = Criteria("criterion")


# --- of the weights alone -------------------------------------------------------------------------------------------


@CRITERIA.entry("magnitude", "l1")
def magnitude(weight: Tensor, stats: Stats) -> Tensor:
    """Absolute value: s = |w|, over a unit Σ |w| (Han et al. 2015; Li et al. 2017 for filters).

    >>> magnitude(torch.tensor([-0.5, 0.25]), Stats("w")).tolist()
    [0.5, 0.25]
    """
    return weight.abs()


@CRITERIA.entry("l2", combine=root)
def l2(weight: Tensor, stats: Stats) -> Tensor:
    """Euclidean norm: s = |w|, over a unit √Σ w² (Wen et al. 2016; He et al. 2018, "Soft Filter Pruning")."""
    return weight.abs()


@CRITERIA.entry("linf", combine=largest)
def linf(weight: Tensor, stats: Stats) -> Tensor:
    """Largest absolute value: s = |w|, over a unit max |w|: one strong weight keeps the unit (the L∞ form of Han et al. 2015)."""
    return weight.abs()


@CRITERIA.entry("random")
def random(weight: Tensor, stats: Stats) -> Tensor:
    """Uniform noise in [0, 1): the control that every criterion has to beat (Su et al. 2020, "Sanity-Checking Pruning Methods").

    The same on every device and at every step of a schedule, since it depends on seed, name and shape alone.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(f"{stats.seed} {stats.name}".encode()))
    return torch.rand(weight.shape, generator=generator).to(weight.device)


@CRITERIA.entry("lamp")
def lamp(weight: Tensor, stats: Stats) -> Tensor:
    """Share of what is left: s_i = w_i² / Σ_{j: |w_j| ≥ |w_i|} w_j² (Lee et al. 2021, "Layer-adaptive Sparsity").

    Scores of different layers compare, and the strongest weight of every layer has 1, so with allocation "global" no
    layer collapses. Of equal weights the earlier one has the higher score.

    >>> lamp(torch.tensor([1.0, 2.0, 0.0, 1.0]), Stats("w")).tolist()
    [0.2, 1.0, 0.0, 0.1666...]
    """
    return left_share(weight.double().reshape(-1)).reshape(weight.shape)


def left_share(scores: Tensor) -> Tensor:
    """s_i² / Σ s_j² over the j that rank at or above i, in float64, of one row of finite scores."""
    squares, order = scores.double().square().sort(descending=True, stable=True)
    shares = squares / squares.cumsum(0).clamp_min(torch.finfo(squares.dtype).tiny)
    return torch.empty_like(shares).scatter_(0, order, shares)


# --- of gradients ---------------------------------------------------------------------------------------------------


@CRITERIA.entry("taylor", needs=("gradient",), combine=squared_total)
def taylor(weight: Tensor, stats: Stats) -> Tensor:
    """First-order change of the loss, squared: s = (Σ g · w)² over a unit (Molchanov et al. 2019)."""
    return weight.double() * _known(stats.gradient)


@CRITERIA.entry("snip", "gradient-weight", needs=("gradient",))
def snip(weight: Tensor, stats: Stats) -> Tensor:
    """Connection sensitivity: s = |g · w|, meant before training (Lee et al. 2019, "SNIP")."""
    return (weight.double() * _known(stats.gradient)).abs()


@CRITERIA.entry("fisher", needs=("gradient_squared",))
def fisher(weight: Tensor, stats: Stats) -> Tensor:
    """Diagonal of the empirical Fisher: s = ½ E[g²] · w², E over single samples (Theis et al. 2018)."""
    return weight.double().square() * _known(stats.gradient_squared) / 2


@CRITERIA.entry("obd", needs=("hessian_diagonal",))
def obd(weight: Tensor, stats: Stats) -> Tensor:
    """Second-order change of the loss: s = ½ |h_ii| · w_i² (LeCun et al. 1990, "Optimal Brain Damage")."""
    return weight.double().square() * _known(stats.hessian_diagonal) / 2


@CRITERIA.entry("grasp", needs=("hessian_gradient",))
def grasp(weight: Tensor, stats: Stats) -> Tensor:
    """What removing it costs in gradient flow ‖g‖²: s = w · (H g), meant before training (Wang et al. 2020, "GraSP").

    Without w_i, ‖g‖² changes by −2 w_i (H g)_i to first order; what lowers it most stays longest.
    """
    return weight.double() * _known(stats.hessian_gradient)


@CRITERIA.entry("synflow", needs=("flow",), rounds=100)
def synflow(weight: Tensor, stats: Stats) -> Tensor:
    """Synaptic flow: s = |w · ∂R/∂w|, R = the sum of the outputs of the network of |w| for an input of ones.

    Needs no data but the shape of an input. In 100 rounds on the way to the density no layer is emptied as long as one
    weight a layer can stay (Tanaka et al. 2020, "Pruning neural networks without any data").
    """
    return (weight.double() * _known(stats.flow)).abs()


@CRITERIA.entry("movement", needs=("movement",))
def movement(weight: Tensor, stats: Stats) -> Tensor:
    """How far training moved it away from zero: s = −Σ_t w · g (Sanh et al. 2020, "Movement Pruning").

    Learnt while training: it needs a schedule over steps, and the masks held to the optimizer.
    """
    return -_known(stats.movement).double()


# --- of what comes in -----------------------------------------------------------------------------------------------


@CRITERIA.entry("wanda", needs=("input_norm",))
def wanda(weight: Tensor, stats: Stats) -> Tensor:
    """Weight times the norm of its input, ranked within each output: |w_ij| · ‖x_j‖₂ (Sun et al. 2024, "Wanda").

    The score is the rank among the weights of the same output, in (0, 1], so every output keeps the same share.
    """
    return rank_within_outputs(weight.abs() * _known(stats.input_norm))


@CRITERIA.entry("wanda-layer", needs=("input_norm",))
def wanda_layer(weight: Tensor, stats: Stats) -> Tensor:
    """Weight times the norm of its input, compared freely: s = |w_ij| · ‖x_j‖₂ (Sun et al. 2024, per layer)."""
    return weight.abs() * _known(stats.input_norm)


@CRITERIA.entry("obs", needs=("input_gram",))
def obs(weight: Tensor, stats: Stats) -> Tensor:
    """Output error after the best repair: s = w_j² / [H⁻¹]_jj, H = X Xᵀ + λ I (Hassibi & Stork 1993; Frantar & Alistarh 2023).

    λ is a hundredth of the mean of the diagonal, so that dead inputs do not make H singular.
    """
    gram = _known(stats.input_gram).double()  # (g, K, K)
    diagonal = gram.diagonal(dim1=1, dim2=2)
    damping = 0.01 * diagonal.mean(1, keepdim=True) + torch.finfo(torch.float64).tiny
    factor = torch.linalg.cholesky(gram + torch.diag_embed(damping.expand_as(diagonal)))
    inverse = torch.cholesky_inverse(factor).diagonal(dim1=1, dim2=2)  # (g, K)
    return weight.double().square() / inverse.reshape(weight.shape[0], 1, *weight.shape[2:])


def rank_within_outputs(scores: Tensor) -> Tensor:
    """Rank from 1 (the lowest) of each weight among those of its output, as a share of their number, in float64."""
    groups, outputs = scores.shape[:2]
    rows = scores.reshape(groups * outputs, -1).flip(1)  # of equal ones the later position has the lower rank
    order = torch.sort(rows, dim=1, stable=True).indices
    places = torch.arange(1, rows.shape[1] + 1, dtype=torch.float64, device=rows.device)
    ranks = torch.empty_like(rows, dtype=torch.float64).scatter_(1, order, places.expand_as(order)).flip(1)
    return (ranks / rows.shape[1]).reshape(scores.shape)


# --- of output channels ---------------------------------------------------------------------------------------------


@CRITERIA.entry("fpgm", per="output")
def fpgm(weight: Tensor, stats: Stats) -> Tensor:
    """Distance to the geometric median: s_i = Σ_j ‖W_i − W_j‖₂ over filters (He et al. 2019, "FPGM").

    What lies amid the others is replaceable by them.
    """
    filters = weight.reshape(weight.shape[0], weight.shape[1], -1).double()
    return torch.cdist(filters, filters).sum(2)


@CRITERIA.entry("bn-scale", needs=("scale",), per="output")
def bn_scale(weight: Tensor, stats: Stats) -> Tensor:
    """Scale of the batch norm that follows: s = |γ| (Liu et al. 2017, "Network Slimming")."""
    if stats.scale is None:
        raise UnsupportedError(
            f"{stats.name}: no batch norm follows it, and 'bn-scale' judges by its scale; exclude it"
        )
    return stats.scale.abs().double()


@CRITERIA.entry("apoz", needs=("active",), per="output")
def apoz(weight: Tensor, stats: Stats) -> Tensor:
    """One minus the average percentage of zeros: s = P(output > 0) (Hu et al. 2016, "Network Trimming")."""
    return _known(stats.active).double().clone()


@CRITERIA.entry("activation", needs=("activation",), per="output")
def activation(weight: Tensor, stats: Stats) -> Tensor:
    """Mean activation: s = E|output| over samples and positions (Molchanov et al. 2017)."""
    return _known(stats.activation).double().clone()


def _known(value: Tensor | None) -> Tensor:
    assert value is not None, "the collector sets what a criterion says it needs"
    return value
