"""Data that a network is trained and judged on: splits, checks, evaluation, and the built-in sets."""

from abridged.data.batches import Batch, Batches, Split
from abridged.data.data import LOSSES, METRICS, Data, Metric, forward, logits
from abridged.data.evaluate import Score, evaluate
from abridged.data.validate import check

__all__ = [
    "LOSSES",
    "METRICS",
    "Batch",
    "Batches",
    "Data",
    "Metric",
    "Score",
    "Split",
    "check",
    "evaluate",
    "forward",
    "logits",
]
