"""Losses for language models: logits (N, T, V), the vocabulary last; targets (N, T), where `ignore` marks padding."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from abridged.data import Batch, forward
from abridged.data import logits as scores_of
from abridged.data.evaluate import judging
from abridged.data.validate import IGNORED
from abridged.distillation.logits import kl, mean
from abridged.distillation.table import Outputs, loss
from abridged.errors import InputError

MEND = "let its forward give the tensor (N, T, V), or {'logits': tensor}"
Direction = Literal["forward", "reverse", "js"]


@loss("token")
def token(
    student: Outputs,
    teacher: Outputs,
    batch: Batch,
    *,
    temperature: float = 1.0,
    direction: Direction = "forward",
    ignore: int = IGNORED,
) -> Tensor:
    """T²·KL of the next token's probabilities, the mean over tokens: word-level distillation (Kim & Rush, 2016).

    Logits (N, T, V); tokens whose target is `ignore` do not count; without targets all do. `direction` "reverse" is
    KL(student ‖ teacher), which seeks the teacher's modes (Gu et al., 2024), "js" the Jensen-Shannon divergence."""
    s, t = (_kept(outputs.logits, batch.y, ignore) / temperature for outputs in (student, teacher))
    return temperature**2 * mean(_diverging(s, t, direction))


def _diverging(s: Tensor, t: Tensor, direction: str) -> Tensor:
    if direction == "forward":
        return kl(s, t)
    if direction == "reverse":
        return kl(t, s)
    if direction == "js":
        middle = ((s.softmax(1) + t.softmax(1)) / 2).log()
        return (kl(middle, s) + kl(middle, t)) / 2
    raise InputError(f"loss 'token': direction must be forward, reverse or js, not {direction!r}")


@loss("sequence")
def sequence(student: Outputs, teacher: Outputs, batch: Batch, *, ignore: int = IGNORED) -> Tensor:
    """−log p_s of the teacher's most probable token, the mean over tokens (Kim & Rush, 2016, the mode for the whole).

    Logits (N, T, V), with the data's own tokens before each position. To learn whole sequences of the teacher's, let it
    write them with `transcripts` and train on them."""
    s, t = (_kept(outputs.logits, batch.y, ignore) for outputs in (student, teacher))
    return mean(F.cross_entropy(s, t.argmax(1), reduction="none"))


def _kept(logits: Tensor, targets: Tensor | None, ignore: int) -> Tensor:
    """(tokens, V): those that count."""
    if logits.ndim < 2 or logits.shape[-1] < 2:
        raise InputError(
            f"logits {tuple(logits.shape)} have no vocabulary in the last axis: for one logit take loss='kd'"
        )
    rows = logits.flatten(0, -2)
    if targets is None:
        return rows
    if not isinstance(targets, Tensor) or targets.shape != logits.shape[:-1]:
        shape = tuple(targets.shape) if isinstance(targets, Tensor) else type(targets).__name__
        raise InputError(f"logits {tuple(logits.shape)} have the vocabulary last, but the targets are {shape}")
    return rows[targets.flatten() != ignore]


def transcripts(teacher: nn.Module, prompts: Tensor, length: int) -> Tensor:
    """What a teacher writes after each prompt: (N, P) → (N, P + length), the most probable token each time.

    For sequence-level distillation (Kim & Rush, 2016): train the student on these in place of the data's own. The
    teacher takes tokens (N, T) and gives logits (N, T, V); it runs in eval mode, without gradients."""
    if length < 1 or prompts.ndim != 2:
        raise InputError(f"transcripts: length must be at least 1 and prompts (N, P), not {length}, {prompts.shape}")
    with judging(teacher) as device:
        tokens = prompts.to(device)
        for _ in range(length):
            scores = scores_of(forward(teacher, tokens), "the teacher", MEND)[:, -1]
            tokens = torch.cat([tokens, scores.argmax(-1, keepdim=True)], 1)
    return tokens.to(prompts.device)
