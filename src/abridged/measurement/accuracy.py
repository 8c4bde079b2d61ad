"""A metric on held-out samples, and how far chance alone could have moved it: the 95 % confidence interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import nn

from abridged.data import Data, Score, evaluate
from abridged.errors import InputError
from abridged.measurement.records import Accuracy
from abridged.targets.artifact import Artifact

Z = 1.959963984540054  # the 97.5 % quantile of the standard normal distribution
BATCH = 256


def accuracy(
    predict: nn.Module | Artifact | Callable[..., Any],
    data: Data,
    split: str = "test",
    batch_size: int | None = None,
    *,
    label: str | None = None,
) -> Accuracy:
    """The metric of `data` over all samples of a split, with its interval.

    An artifact is run in its own runtime and batch size; the last batch is filled up with copies, which do not count.
    A module is run in eval mode without gradients, and its modes are restored. `label` shows a progress bar. Raises
    `InputError` for a split that is empty or has no labels.

    >>> import torch
    >>> data = Data((torch.eye(4), torch.arange(4)), (torch.eye(4), torch.arange(4)), (torch.eye(4), torch.arange(4)))
    >>> found = accuracy(lambda x: x, data)
    >>> found.value, round(found.low, 2), found.high
    (1.0, 0.51, 1.0)
    """
    exact = isinstance(predict, Artifact)
    size = batch_of(predict) if isinstance(predict, Artifact) else batch_size or BATCH
    return interval(evaluate(predict, data, split, size, exact=exact, label=label))


def interval(score: Score) -> Accuracy:
    """A score with its interval: Wilson's for a fraction, the normal approximation for any other mean."""
    low, high = mean_interval(score) if score.correct is None else wilson(score.correct, score.n)
    return Accuracy(metric=score.metric, value=score.value, low=low, high=high, samples=score.n, split=score.split)


def wilson(successes: int, n: int) -> tuple[float, float]:
    """95 % interval of a fraction: p ± z √(p (1 − p) / n + z² / 4n²) around (p + z² / 2n), over 1 + z² / n (Wilson 1927).

    Unlike the normal approximation it stays in [0, 1], and says something when all or none succeed.

    >>> [round(bound, 4) for bound in wilson(90, 100)]
    [0.8256, 0.9448]
    """
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"expected 0 <= successes <= n and n > 0, got {successes} of {n}")
    p = successes / n
    scale = 1 + Z**2 / n
    centre = (p + Z**2 / (2 * n)) / scale
    half = Z / scale * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    # The ends are exact there; rounding must not put the value outside its own interval.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def mean_interval(score: Score) -> tuple[float, float]:
    """95 % interval of a mean of independent values: mean ± z · std / √n; of a single value, everything."""
    half = Z * score.std / math.sqrt(score.n) if score.n > 1 else math.inf
    return score.value - half, score.value + half


def batch_of(artifact: Artifact) -> int:
    """The samples that an artifact takes at a call: the first axis of its first input. Raises `InputError`."""
    ports = artifact.signature.inputs
    if not ports or not ports[0].shape:
        raise InputError(f"{artifact.path}: the first input has no batch axis, so data cannot be run through it")
    return ports[0].shape[0]
