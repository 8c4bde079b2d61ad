"""Factors from a weight file: which layers are factors there, and of which form, its names and shapes say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from abridged.data.data import copied
from abridged.errors import InputError, expect
from abridged.factorization.factorize import rebuild
from abridged.factorization.layers import find
from abridged.factorization.opening import opened
from abridged.factorization.report import Structure
from abridged.weights import load_into, read

# Names of the stages of all chains, from the input to the output.
STAGES = ("reduce", "core", "deep", "vertical", "horizontal", "along", "expand")


def load_factorized(model: nn.Module, path: str | Path) -> nn.Module:
    """A new model with the factors and weights of a file that `ab.save` wrote of a factorized one (or a `.pt` of its
    state dict). `model`: the network as it was before `factorize`, whatever its weights are; it stays as it is.

    Raises `InputError` for a file that holds no factors of this model, and as `load_into` does.

    >>> import tempfile, torch, abridged as ab
    >>> thin = ab.factorize(nn.Sequential(nn.Linear(64, 64)), torch.zeros(1, 64), rank=8, say=None)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     ab.save(thin, f"{folder}/thin.safetensors")
    ...     again = load_factorized(nn.Sequential(nn.Linear(64, 64)), f"{folder}/thin.safetensors")
    >>> torch.equal(again(torch.ones(1, 64)), thin(torch.ones(1, 64)))
    True
    """
    expect(model, nn.Module, "the model must be the nn.Module that was factorized")
    structure = _structure(model, read(path))
    if not structure:
        raise InputError(f"{path} holds no factors of this model's layers: is it the file of a factorized model?")
    thin = rebuild(model, structure)
    load_into(thin, path)
    return thin


def _structure(model: nn.Module, given: Mapping[str, Tensor]) -> Structure:
    """Path → name of each stage → the shape of its kernel, (1, O, I, *k), of the layers that are factors in the file."""
    form, _, _ = opened(copied(model))
    found = {}
    for layer in find(form, ("*",), ())[0]:
        weights = {stage: given.get(f"{layer.path}.{stage}.weight".lstrip(".")) for stage in STAGES}
        kernels = {stage: weight for stage, weight in weights.items() if weight is not None}
        if len(kernels) > 1:
            found[layer.path] = {stage: _shape(layer.module, stage, weight) for stage, weight in kernels.items()}
    return found


def _shape(layer: nn.Module, stage: str, weight: Tensor) -> Sequence[int]:
    table = isinstance(layer, nn.Embedding) and stage == STAGES[0]  # stored as (tokens, R)
    return [1, *(reversed(weight.shape) if table else weight.shape)]
