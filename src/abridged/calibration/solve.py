"""The algebra that repairs a layer: least squares on the weights that stay, and Optimal Brain Surgery.

Everything is stated for matrices W (g, O, K) of `sites` and a Gram matrix H = XᵀX (g, K, K) of the layer's inputs. The
layer's error is ‖X Ŵᵀ − X Wᵀ‖² = tr((Ŵ − W) H (Ŵ − W)ᵀ). All of it is done in float64.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from abridged.errors import InputError

DAMPING = 1e-3  # of the mean diagonal of H
ROUNDS = 4
ELEMENTS = 1 << 24  # of the systems that are solved at once: 128 MiB


def error(new: Tensor, old: Tensor, gram: Tensor) -> Tensor:
    """‖X (Ŵ − W)ᵀ‖², the squared error of a layer's outputs, ()."""
    gap = (new - old).double()
    return ((gap @ gram.double()) * gap).sum()


def damped(gram: Tensor, damping: float = DAMPING) -> tuple[Tensor, Tensor]:
    """H + λI in float64, and λ (g, 1, 1) = damping · mean diagonal; λ is 1 for inputs that are zero throughout.

    With λ > 0 every Gram matrix, of whatever rank, is positive definite."""
    whole = gram.double()
    mean = whole.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    strength = torch.where(mean > 0, damping * mean, torch.ones_like(mean))
    return whole + strength * torch.eye(gram.shape[-1], dtype=whole.dtype, device=whole.device), strength


def least_squares(
    matrix: Tensor, mask: Tensor, gram: Tensor, cross: Tensor | None = None, damping: float = DAMPING
) -> Tensor:
    """The weights on a mask that come nearest to the outputs of the dense ones, row by row, (g, O, K).

    Minimizes ‖X̂ ŵ − X w‖² + λ‖ŵ − w‖² over ŵ with support S: (H + λI)_SS ŵ_S = (C w + λ w)_S, where H = X̂ᵀX̂ is of
    the inputs as they are now and C = X̂ᵀX (`cross`; H where it is left out) is with those of the dense network. The
    damping pulls towards the given weights, so that inputs which say nothing change nothing.
    """
    return _fit(matrix, mask, gram, cross, damping, rank=False)[0]


def saliency(
    matrix: Tensor, mask: Tensor, gram: Tensor, cross: Tensor | None = None, damping: float = DAMPING
) -> Tensor:
    """What the error of the `least_squares` solution grows by when one more weight goes, (g, O, K); −∞ off the mask.

    ŵ_j² / [((H + λI)_SS)⁻¹]_jj, since the others of its row make up for it (Hassibi & Stork 1993, "Optimal Brain
    Surgeon"; row by row as in Frantar & Alistarh 2022, "Optimal Brain Compression").
    """
    return _fit(matrix, mask, gram, cross, damping, rank=True)[1]


def _fit(
    matrix: Tensor, mask: Tensor, gram: Tensor, cross: Tensor | None, damping: float, *, rank: bool
) -> tuple[Tensor, Tensor]:
    """The least-squares solution and, where `rank` asks for them, its saliencies, from one factorization."""
    whole, strength = damped(gram, damping)
    old = matrix.double()
    wanted = old @ (whole if cross is None else cross.double().mT + strength * _eye(whole))  # (C w)ᵀ, (g, O, K)
    new, scores = torch.zeros_like(old), torch.full_like(old, -torch.inf)
    for g, rows, index in _supports(mask):
        if rows is None:  # one support for all rows: one system
            factor = torch.linalg.cholesky(whole[g][index][:, index])
            new[g][:, index] = values = torch.cholesky_solve(wanted[g][:, index].mT, factor).mT
            if rank:
                scores[g][:, index] = values.square() / torch.cholesky_inverse(factor).diagonal()
        else:
            real = torch.gather(mask[g, rows], 1, index)
            factor = _factors(whole[g], index, real)
            target = torch.gather(wanted[g, rows], 1, index) * real
            values = torch.cholesky_solve(target[..., None], factor)[..., 0] * real
            new[g, rows] = new[g, rows].scatter(1, index, values)
            if rank:
                gains = values.square() / _diagonal(torch.cholesky_inverse(factor))
                scores[g, rows] = scores[g, rows].scatter(1, index, gains.masked_fill(~real, -torch.inf))
    return new, scores


def surgeon(
    matrix: Tensor,
    mask: Tensor,
    gram: Tensor,
    keep: int,
    cross: Tensor | None = None,
    rounds: int = ROUNDS,
    damping: float = DAMPING,
) -> tuple[Tensor, Tensor]:
    """Choose and repair in turns: (weights, mask). The mask shrinks to `keep` weights in geometric steps.

    Each round removes the weights of least `saliency` and solves `least_squares` for the rest. With one weight a round
    it is Optimal Brain Compression (Frantar & Alistarh 2022); with more a bolder, cheaper approximation of it.
    """
    count = int(mask.sum())
    for turn in range(1, rounds + 1):
        _, scores = _fit(matrix, mask, gram, cross, damping, rank=True)
        stay = round(count * (keep / max(count, 1)) ** (turn / rounds)) if turn < rounds else keep
        mask = _best(scores.flatten(), stay).reshape(mask.shape)
    return least_squares(matrix, mask, gram, cross, damping), mask


def sparse_gpt(
    matrix: Tensor,
    gram: Tensor,
    *,
    mask: Tensor | None = None,
    keep: int | None = None,
    group: tuple[int, int] | None = None,
    block: int = 128,
    damping: float = DAMPING,
) -> tuple[Tensor, Tensor]:
    """SparseGPT (Frantar & Alistarh 2023): (weights, mask). Columns from left to right, each error made up by the right.

    With H⁻¹ = UᵀU (U upper triangular), column i is cut to q and W[:, i:] −= ((w_i − q) / U_ii) U[i, i:]; columns right
    of the current block are updated once per block. The mask is given, or chosen by w² / U_ii²: of each block its
    share of the `keep` weights, over all rows, or of every m adjacent columns the n highest of `group` = (n, m) in each row.
    Raises `InputError` where K is no multiple of m, and unless exactly one of mask, keep and group is given.
    """
    if sum(given is not None for given in (mask, keep, group)) != 1:
        raise InputError("give exactly one of mask, keep and group")
    if group and (matrix.shape[-1] % group[1] or not 0 < group[0] <= group[1]):
        raise InputError(f"{group[0]}:{group[1]} does not fit {matrix.shape[-1]} input features")
    whole, _ = damped(gram, damping)
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(whole))).mT
    new, kept = matrix.double().clone(), torch.ones_like(matrix, dtype=torch.bool) if mask is None else mask.clone()
    columns = matrix.shape[-1]
    step = block if group is None else max(group[1], block // group[1] * group[1])
    for start in range(0, columns, step):
        stop = min(start + step, columns)
        if keep is not None:
            scores = new[..., start:stop].square() / _diagonal(upper)[:, None, start:stop].square()
            share = keep * stop // columns - keep * start // columns
            kept[..., start:stop] = _best(scores.flatten(), share).reshape(scores.shape)
        errors = torch.zeros_like(new[..., start:stop])
        for i in range(start, stop):
            if group is not None and (i - start) % group[1] == 0:
                scores = new[..., i : i + group[1]].square() / _diagonal(upper)[:, None, i : i + group[1]].square()
                kept[..., i : i + group[1]] = _best(scores, group[0])
            errors[..., i - start] = new[..., i] * ~kept[..., i] / upper[:, None, i, i]
            new[..., i:stop] -= errors[..., i - start, None] * upper[:, None, i, i:stop]
        new[..., stop:] -= errors @ upper[:, start:stop, stop:]
    return new * kept, kept


def _best(scores: Tensor, keep: int) -> Tensor:
    """True for the `keep` highest of each last axis; of equal ones the earlier."""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order[..., :keep], True)


def _diagonal(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=-2, dim2=-1)


def _eye(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)


def _supports(mask: Tensor) -> Iterator[tuple[int, Tensor | None, Tensor]]:
    """(group, rows, columns (rows, s)) that hold the rows' supports, filled up with columns off the mask; rows of like
    size together, as many as `ELEMENTS` allows. Where all rows of a group have one support: (group, None, columns)."""
    for g, whole in enumerate(mask):
        if bool((whole == whole[:1]).all()):
            yield g, None, whole[0].nonzero()[:, 0]
            continue
        sizes, order = whole.sum(1).sort(stable=True)
        start = 0
        while start < len(order):
            largest = int(sizes[-1])
            stop = min(len(order), start + max(1, ELEMENTS // max(1, largest) ** 2))
            rows, width = order[start:stop], int(sizes[stop - 1])
            yield g, rows, whole[rows].int().argsort(dim=1, descending=True, stable=True)[:, :width]
            start = stop


def _factors(gram: Tensor, index: Tensor, real: Tensor) -> Tensor:
    """Cholesky factors of each row's part of H (rows, s, s), with ones on the diagonal where a row is filled up."""
    system = gram[index[:, :, None], index[:, None, :]] * (real[:, :, None] & real[:, None, :])
    factors: Tensor = torch.linalg.cholesky(system + torch.diag_embed((~real).to(system.dtype)))
    return factors
