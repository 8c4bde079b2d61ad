"""Solvers: how the weights that stay make up for those that go. One function each in `SOLVERS`; none of them trains.

A network is repaired layer by layer: each layer is solved for the inputs that it gets from the layers repaired before
it, and towards the outputs that the dense network has there, so that errors do not pile up.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from abridged import progress
from abridged.calibration import solve
from abridged.calibration.samples import Samples
from abridged.calibration.sites import TRANSPOSED, Site, columns, sites
from abridged.calibration.stats import STATISTICS
from abridged.calibration.walk import MEMORY, Meetings, Route, together
from abridged.errors import InputError, UnsupportedError
from abridged.globs import some
from abridged.progress import Say, tell
from abridged.tables import Table

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
ROWS = 1 << 17  # rows of a layer's input that are looked at, a regular selection where there are more
BATCH = 128
TINY = 1e-12
NOISE = 1e-6


@dataclass(frozen=True, eq=False)
class Problem:
    """One layer to repair: shapes as in `calibration.sites`.

    Where the layer has a bias, or a batch norm re-estimated right behind it, that takes care of the mean, and `gram`
    and `cross` are of deviations from it."""

    matrix: Tensor  # dense weights (g, O/g, K)
    mask: Tensor  # of the same shape, True = stays
    gram: Tensor  # X̂ᵀX̂ of the inputs as they are now (g, K, K), float64
    cross: Tensor  # X̂ᵀX with those of the dense network (g, K, K)
    free: bool  # whether another weight may stay than the mask says, as long as their number is the same

    @property
    def alive(self) -> Tensor:
        """Where weights may stay: what is zero already does not come back to life."""
        return self.mask | (self.matrix != 0)


Solver = Callable[[Problem], tuple[Tensor, Tensor]]  # → weights and mask
SOLVERS: Table[Solver] = Table("solver")


@SOLVERS.entry("none")
def none(problem: Problem) -> tuple[Tensor, Tensor]:
    """Nothing is repaired: ŵ = w ⊙ m."""
    return problem.matrix * problem.mask, problem.mask


@SOLVERS.entry("mean", "bias")
def mean(problem: Problem) -> tuple[Tensor, Tensor]:
    """Bias correction, weights as they are: b̂ = b + W E[x] − Ŵ E[x̂] (Nagel et al. 2019, "Data-Free Quantization").

    The bias of every solver but "none" is set so; a layer without one relies on the batch norm behind it."""
    return problem.matrix * problem.mask, problem.mask


@SOLVERS.entry("least-squares")
def least_squares(problem: Problem) -> tuple[Tensor, Tensor]:
    """The best weights on the given mask: min ‖X̂ ŵ − X w‖² over ŵ = ŵ ⊙ m, row by row, damped (He et al. 2017)."""
    return solve.least_squares(problem.matrix, problem.mask, problem.gram, problem.cross), problem.mask


@SOLVERS.entry("obs")
def obs(problem: Problem) -> tuple[Tensor, Tensor]:
    """Optimal Brain Surgery in rounds: remove those of least w² / [H⁻¹]_jj, solve for the rest, again.

    Hassibi & Stork 1993; row by row as in Frantar & Alistarh 2022. Within a layer it chooses which weights stay, as many
    as the mask has, when the pattern is unstructured; under any other pattern the mask stays as the criterion chose it.
    """
    if not problem.free:
        return least_squares(problem)
    return solve.surgeon(problem.matrix, problem.alive, problem.gram, int(problem.mask.sum()), problem.cross)


@SOLVERS.entry("sparse-gpt")
def sparse_gpt(problem: Problem) -> tuple[Tensor, Tensor]:
    """Column by column, errors made up by the columns to the right (Frantar & Alistarh 2023, "SparseGPT").

    Starts from the dense solution for the inputs as they are now. Unstructured, it chooses which weights stay in blocks
    of 128 columns; under any other pattern, and with zeros to begin with, the mask stays as the criterion chose it."""
    start = solve.least_squares(problem.matrix, problem.alive, problem.gram, problem.cross)
    if not (problem.free and bool(problem.alive.all())):
        return solve.sparse_gpt(start, problem.gram, mask=problem.mask)
    return solve.sparse_gpt(start, problem.gram, keep=int(problem.mask.sum()))


def repair(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    solver: str,
    data: Any,
    *,
    free: bool = False,
    norms: bool = False,
    samples: int = 1024,
    seed: int = 0,
    memory: int = MEMORY,
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Prune dense weights by masks (by parameter name) and repair those that stay, in place: the masks, and remarks.

    `norms`: batch norms are re-estimated on the way. Raises, leaving the model as it was, `InputError` for unusable data
    and weights, `UnsupportedError` for a weight shared with a layer of another kind, or a layer that is called twice.
    """
    chosen, every = SOLVERS[solver], sites(model) if solver != "none" else {}
    known = {name: every[name] for name in masks if name in every}
    _check(known)
    batch_norms = _norms(model) if norms else {}
    if norms and not batch_norms:
        raise InputError("reestimate: the model has no batch norm with running statistics")
    source = Samples(data, samples, min(samples, BATCH), seed)
    paths = {name.rpartition(".")[0]: site for name, site in known.items()}
    route = Route(model, [*paths, *batch_norms], source)
    if paths and not paths.keys() & set(route.order):
        raise InputError("nothing to repair: the model calls none of the pruned layers on this data")
    dense = copy.deepcopy(model)
    work = _Repair(chosen, paths, batch_norms, route, dict(masks), free, samples)
    try:
        _apply(
            model, masks, [name for name in masks if name not in known or name.rpartition(".")[0] not in route.order]
        )
        together(dense, model, route, source, work.visit, memory)
    except BaseException:
        model.load_state_dict(dense.state_dict())
        raise
    return work.masks, work.remarks(solver)


def reestimate(
    model: nn.Module,
    data: Any,
    *,
    samples: int = 1024,
    seed: int = 0,
    memory: int = MEMORY,
    say: Say | None = progress.say,
) -> int:
    """Set the running mean and variance of every batch norm to those of calibration data, in place; how many there are.

    What was touched, and what was left, is said to `say`. In the order of the forward pass, so that each sees the inputs that it gets once those before it are re-estimated.
    `data` is as for `prune`: `ab.Data`, a loader, or a tensor of inputs. Modes, weights and everything else stay. Raises
    `InputError` for a model without batch norms and for unusable data, leaving the model as it was.

    >>> model = nn.Sequential(nn.BatchNorm1d(1))
    >>> reestimate(model, torch.tensor([[1.0], [5.0]]), say=None), model[0].running_mean.item(), model[0].running_var.item()
    (1, 3.0, 8.0)
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"reestimate takes an nn.Module, not {type(model).__name__}")
    layers = _norms(model)
    if not layers:
        raise InputError("nothing to re-estimate: the model has no batch norm with running statistics")
    source = Samples(data, samples, min(samples, BATCH), seed)
    route, before = Route(model, layers, source), copy.deepcopy(model)

    def visit(name: str, meetings: Meetings) -> None:
        (count, mean, squares), _ = _moments(meetings)
        _write(layers[name], mean, squares / (count - 1).clamp(min=1))

    try:
        together(before, model, route, source, visit, memory)
    except BaseException:
        model.load_state_dict(before.state_dict())
        raise
    tell(_reestimated(layers, route.order), say)
    return len(route.order)


def _reestimated(layers: Mapping[str, nn.Module], reached: Collection[str]) -> list[str]:
    idle = [name for name in layers if name not in reached]
    lines = [f"{len(reached)} of {len(layers)} batch norms: running mean and variance re-estimated"]
    return lines + ([f"{some(idle)}: left, never called on this data"] if idle else [])


@dataclass(frozen=True, eq=False)
class _Repair:
    """The work on one model: visits its layers in their order."""

    solver: Solver
    paths: dict[str, Site]
    norms: dict[str, nn.Module]
    route: Route
    masks: dict[str, Tensor]
    free: bool
    samples: int

    def visit(self, path: str, meetings: Meetings) -> None:
        if path in self.norms:
            _shift(self.norms[path], *_moments(meetings))
        else:
            self._solve(path, self.paths[path], meetings)

    def _solve(self, path: str, site: Site, meetings: Meetings) -> None:
        bias: Tensor | None = site.modules[0].bias  # type: ignore[assignment]
        normed = any(self.route.fed.get(norm) == path for norm in self.norms)
        gram, cross, now, before = _products(site, meetings, bias is not None or normed, self.samples)
        old = site.matrix(site.parameter.detach()).double()
        mask = site.matrix(self.masks[site.name].to(old.device))
        try:
            new, kept = self.solver(Problem(old, mask, gram, cross, self.free))
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            raise InputError(
                f"{site.name}: its inputs hardly differ on this data, and do not say what to solve for: give more samples, or"
                " exclude it"
            ) from None
        new = new.to(site.parameter.dtype)
        if not bool(new.isfinite().all()):
            raise InputError(f"{site.name}: no finite solution; its weights or inputs are too large for its type")
        with torch.no_grad():
            site.parameter.copy_(site.weight(new))
            if bias is not None:
                shift = (old @ before[..., None] - new.double() @ now[..., None]).flatten()
                bias.copy_((bias.double() + shift).to(bias.dtype))
                if (alive := self.masks.get(f"{path}.bias".lstrip("."))) is not None:
                    bias.masked_fill_(~alive.to(bias.device), 0)
        self.masks[site.name] = site.weight(kept)

    def remarks(self, solver: str) -> tuple[str, ...]:
        """Lines on what was done, and what was not."""
        done = [site.name for path, site in self.paths.items() if path in self.route.order]
        weights = [name for name, mask in self.masks.items() if mask.ndim > 1]
        missed = [name for name in weights if name not in done]
        said = [f"repaired by {solver}: {len(done)} of {len(weights)} weights"] if self.paths else []
        if self.paths and missed:
            said.append(f"not repaired, since no layer is called with them on its own: {', '.join(missed)}")
        if self.norms:
            said.append(
                f"re-estimated: {len(self.norms.keys() & set(self.route.order))} of {len(self.norms)} batch norms"
            )
        return tuple(said)


def _products(site: Site, meetings: Meetings, centred: bool, samples: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """X̂ᵀX̂, X̂ᵀX, E[x̂] and E[x], in float64, of at most about `ROWS` rows."""
    module = site.modules[0]
    gram: Any = 0
    cross: Any = 0
    now: Any = 0
    before: Any = 0
    rows, middle = 0, (torch.zeros(()), torch.zeros(()))
    for turn, (dense, current) in enumerate(meetings):
        step = _step(module, current, samples)
        some = slice(turn % step, None, step)  # other lines in each batch, so that borders count as much as they should
        for pair in zip(*(columns(module, x, only=some) for x in (dense, current)), strict=True):
            old, new = (part.float() if part.element_size() < 4 else part for part in pair)
            if centred:  # near the mean first, or single precision loses the deviations from a large one
                middle = middle if rows else (old.mean(1, keepdim=True), new.mean(1, keepdim=True))
                old, new = old - middle[0], new - middle[1]
            gram, cross = gram + (new.mT @ new).double(), cross + (new.mT @ old).double()
            now, before = now + new.sum(1).double(), before + old.sum(1).double()
            rows += old.shape[1]
    if not bool(gram.isfinite().all() and cross.isfinite().all()):
        raise InputError(f"{site.name}: NaN or infinity reaches its layer; check the weights before it and the data")
    now, before = now / max(rows, 1), before / max(rows, 1)
    if centred:
        # What single precision leaves of a difference of two large numbers is no variance.
        noise = NOISE * gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(gram.shape[1]).to(gram)
        gram = gram - rows * now[:, :, None] * now[:, None, :]
        cross = cross - rows * now[:, :, None] * before[:, None, :]
        gram, cross = gram + noise, cross + noise
        before, now = (mean + near.double()[:, 0] for mean, near in zip((before, now), middle, strict=True))
    return gram, cross, now, before


def _step(module: nn.Module, x: Tensor, samples: int) -> int:
    """Every how many lines of positions (rows of a linear layer) are enough."""
    if isinstance(module, TRANSPOSED):
        return 1
    if isinstance(module, nn.Linear):
        return max(1, math.prod(x.shape[1:-1]) * samples // ROWS)
    stride: tuple[int, ...] = module.stride  # type: ignore[assignment]
    lines, *rest = (size // step for size, step in zip(x.shape[2:], stride, strict=True))
    return min(max(1, lines * math.prod(rest) * samples // ROWS), max(1, lines))


def _norms(model: nn.Module) -> dict[str, nn.Module]:
    """Batch norms with running statistics, by path."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, NORMS) and module.track_running_stats
    }


def _moments(meetings: Meetings) -> tuple[Tensor, Tensor]:
    """(count, mean, squared deviations) per channel, (3, C) in float64, of the dense network's inputs and the other's."""
    statistic = STATISTICS["output_mean"]
    states: list[Tensor] = []
    for pair in meetings:
        parts = [statistic.part(x.double().movedim(1, -1).flatten(0, -2)[None])[:, 0] for x in pair]
        states = [statistic.merge(*both) for both in zip(states, parts, strict=True)] if states else parts
    return states[1], states[0]


def _shift(norm: nn.Module, now: Tensor, before: Tensor) -> None:
    """Running statistics follow what pruning changed: μ̂ = E[x̂] + (μ − E[x]) · √r and v̂ = v · r with r = Var[x̂] / Var[x].

    Relative to the dense network's, because its own statistics are of other samples, augmented ones, and many more: what
    they are off by, in standard deviations, stays. Of a channel that has become constant the answer is the norm's shift."""
    old = [statistic.double() for statistic in _running(norm)]
    ratio = torch.where(before[2] > TINY, now[2] / before[2].clamp(min=TINY), torch.ones_like(now[2]))
    _write(norm, now[1] + (old[0] - before[1]) * ratio.sqrt(), old[1] * ratio)


def _write(norm: nn.Module, mean: Tensor, variance: Tensor) -> None:
    if not bool(mean.isfinite().all() and variance.isfinite().all()):
        raise InputError("NaN or infinity reaches a batch norm; check the weights before it and the data")
    for statistic, new in zip(_running(norm), (mean, variance), strict=True):
        statistic.copy_(new)


def _running(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """The buffers of the running mean and variance."""
    return norm.get_buffer("running_mean"), norm.get_buffer("running_var")


def _check(known: Mapping[str, Site]) -> None:
    for name, site in known.items():
        if site.strangers or len(site.modules) > 1:
            others = ", ".join(site.strangers) or f"{len(site.modules)} layers"
            raise UnsupportedError(f"{name} is shared ({others}): a repair for one would spoil the other; exclude it")


def _apply(model: nn.Module, masks: Mapping[str, Tensor], names: list[str]) -> None:
    with torch.no_grad():
        for name in names:
            model.get_parameter(name).masked_fill_(~masks[name], 0)
