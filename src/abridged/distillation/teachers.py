"""What is asked of a network in a lesson: its class scores and some features, from a pass or from a file of earlier ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from abridged.data import Batch, forward, logits
from abridged.distillation.table import Outputs
from abridged.distillation.taps import Taps, tapped
from abridged.errors import AbridgedError, InputError, first_line

MEND = "a loss on logits needs its forward to give the tensor, or {'logits': tensor}; one on layers, such as 'hint', does not"


class Teacher(Protocol):
    """Answers without gradients; what it is does not change."""

    def answer(self, x: Any) -> Outputs: ...


class Present:
    """A network that is asked each time."""

    def __init__(self, model: nn.Module, taps: Taps, specs: Sequence[str], reads_logits: bool) -> None:
        self.model, self.taps, self.specs, self.reads_logits = model, taps, specs, reads_logits

    def answer(self, x: Any) -> Outputs:
        with torch.no_grad():
            return heard(forward(self.model, x), Batch(x, None).size, self.taps, self.specs, self.reads_logits)


def heard(outputs: Any, samples: int, taps: Taps, specs: Sequence[str], reads_logits: bool) -> Outputs:
    """What a pass that just ended gave: class scores where a loss reads them, in float32 at least, and features."""
    scores = logits(outputs, f"the {taps.whose}", MEND) if reads_logits else torch.empty(0)
    scores = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
    return Outputs(scores, taps.take(specs, samples))


@contextmanager
def present(model: nn.Module, specs: Sequence[str], reads_logits: bool) -> Iterator[Present]:
    """The teacher with its taps for the block."""
    with tapped(model, specs, "teacher") as taps:
        yield Present(model, taps, specs, reads_logits)


def tried(model: nn.Module, x: Any, specs: Sequence[str], reads_logits: bool, whose: str) -> Outputs:
    """One pass for a look at the shapes, on the CPU. Raises `InputError` for a network that refuses its input."""
    with tapped(model, specs, whose) as taps:
        try:
            outputs = forward(model, x)
        except AbridgedError:
            raise
        except Exception as error:
            line = first_line(error)
            raise InputError(f"the {whose} refuses a batch of train: {line}") from error
        found = heard(outputs, Batch(x, None).size, taps, specs, reads_logits)
    return Outputs(found.logits.cpu(), {path: feature.cpu() for path, feature in found.features.items()})
