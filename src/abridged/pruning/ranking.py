"""Exact selection among many scores: how many stay, which are the best, where the cut lies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

SAMPLE = 1 << 15  # scores looked at to guess where the cut lies among many
PIECE = 1 << 14  # scores compared at once
SPAN = 1 << 22  # scores that one thread looks through


def count(density: float, units: int) -> int:
    """How many of `units` stay: the nearest whole number, ⌊density · units + ½⌋.

    >>> count(0.1, 1000), count(0.5, 3), count(0.0, 7)
    (100, 2, 0)
    """
    return math.floor(density * units + 0.5)


def top(units: Tensor, keep: int, guess: float | None = None) -> Tensor:
    """True for the `keep` highest scores of each row, exactly; of equal scores the earlier position stays.

    A `guess` at where the cut of one row lies saves the search for it, when it is right.

    >>> top(torch.tensor([[3.0, 1.0, 1.0, 2.0]]), 3).tolist()
    [[True, True, False, True]]
    """
    groups, size = units.shape
    if keep in (0, size):
        return torch.full((groups, size), keep > 0, device=units.device)
    if groups == 1 and guess is not None:
        kept = units > guess
        missing = keep - int(kept.count_nonzero())
        if missing == 0:
            return kept
        if missing > 0:
            ties = (units == guess).reshape(-1).nonzero().reshape(-1)
            if len(ties) >= missing:
                kept[0, ties[:missing]] = True
                return kept
    if groups == 1:
        cut = units.new_full((1, 1), kth_largest([units], keep))
    else:
        cut = units.kthvalue(size - keep + 1, dim=1, keepdim=True).values
    kept, ties = units > cut, units == cut
    wanted, tied = keep - _per_row(kept), _per_row(ties)
    if torch.equal(wanted, tied):
        return kept | ties
    row, column = ties.nonzero(as_tuple=True)
    rank = torch.arange(len(row), device=units.device) - (tied.cumsum(0) - tied)[row]
    taken = rank < wanted[row]
    kept[row[taken], column[taken]] = True
    return kept


def _per_row(flags: Tensor) -> Tensor:
    # Counting along a dimension is some thirty times slower than counting all, and the one long row is the usual case.
    return flags.count_nonzero().reshape(1) if len(flags) == 1 else flags.count_nonzero(1)


def kth_largest(scores: Sequence[Tensor], k: int) -> float:
    """The k-th largest (k ≥ 1) of all elements of several tensors of one dtype.

    Exact, and linear in time without a copy of everything: a sample brackets the value, one pass collects the few
    elements inside the bracket, and only these are searched (after Floyd & Rivest 1975, "SELECT").
    """
    total = sum(part.numel() for part in scores)
    if total > 8 * SAMPLE:
        flat = [part.reshape(-1) for part in scores]
        sample = torch.cat([part[:: total // SAMPLE].cpu() for part in flat]).sort(descending=True).values
        place, margin = round(k / total * len(sample)), 4 * math.isqrt(len(sample))
        high = sample[max(place - margin, 0)].item() if place > margin else math.inf
        low = sample[place + margin].item() if place + margin < len(sample) else -math.inf
        spans = [part[start : start + SPAN] for part in flat for start in range(0, len(part), SPAN)]
        with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:  # numpy lets go of the interpreter
            counted = list(pool.map(lambda span: _between(span, low, high), spans))
        above, inside = sum(n for n, _ in counted), torch.cat([scores for _, scores in counted])
        if 0 < k - above <= len(inside):
            return _kth_of(inside, k - above)
    return _kth_of(torch.cat([part.reshape(-1).cpu() for part in scores]), k)


def _between(scores: Tensor, low: float, high: float) -> tuple[int, Tensor]:
    """How many scores are above `high`, and those in [low, high], on the CPU."""
    if scores.device.type != "cpu":
        return int((scores > high).count_nonzero()), scores[(scores >= low) & (scores <= high)].cpu()
    # On the CPU numpy does this several times faster than torch, in pieces whose booleans stay in the cache.
    above, inside = 0, []
    for start in range(0, len(scores), PIECE):
        piece = scores[start : start + PIECE].numpy()
        over, reached = piece > high, piece >= low
        above += int(np.count_nonzero(over))
        inside.append(piece[np.logical_xor(over, reached, out=reached)])
    return above, torch.from_numpy(np.concatenate(inside) if inside else np.empty(0, scores.numpy().dtype))


def _kth_of(scores: Tensor, k: int) -> float:
    return float(scores.kthvalue(len(scores) - k + 1).values)
