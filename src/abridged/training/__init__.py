"""The one training loop: fine-tuning, distillation and gradual sparsity all use it."""

from abridged.training.history import Callback, EarlyStop, History, Moment, TrainingError
from abridged.training.loop import fit, train_device
from abridged.training.options import HeldMasks, Objective, adamw, constant, cosine

__all__ = [
    "Callback",
    "EarlyStop",
    "HeldMasks",
    "History",
    "Moment",
    "Objective",
    "TrainingError",
    "adamw",
    "constant",
    "cosine",
    "fit",
    "train_device",
]
