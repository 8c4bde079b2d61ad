"""What a training borrows and gives back: the device and modes of a module, and the global random generators."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from abridged.data.batches import mix
from abridged.data.evaluate import device_of
from abridged.errors import InputError


def target_device(model: nn.Module, asked: str | torch.device | None) -> torch.device:
    """The device that was asked for, else the model's. Raises `InputError` where there is none such."""
    if asked is None:
        return device_of(model)
    try:
        device = torch.device(asked)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device '{asked}' cannot be used: {str(error).splitlines()[0]}") from None
    return device


@contextmanager
def borrowed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The module on `device` for the block; afterwards it is where it was, each submodule in the mode in which it was."""
    home, modes = device_of(model), {module: module.training for module in model.modules()}
    model.to(device)
    try:
        yield
    finally:
        model.to(home)
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """The caller's global generators (Python, numpy, torch, GPU) go on after the block as if it had not been; within it,
    cuDNN takes deterministic algorithms alone."""
    state: list[Any] = [random.getstate(), np.random.get_state(), torch.get_rng_state()]
    gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    cudnn = torch.backends.cudnn
    choice = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = choice
        random.setstate(state[0])
        np.random.set_state(state[1])
        torch.set_rng_state(state[2])
        if gpu is not None:
            torch.cuda.set_rng_state(gpu, device)


def seed_all(seed: int, epoch: int) -> None:
    """Seed every global generator from (seed, epoch): an epoch is the same whether or not others ran before it."""
    number = mix(seed, epoch)
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.manual_seed(number)  # every device's


def loader_generators(*splits: Any) -> list[torch.Generator]:
    """The generators that the user's own DataLoaders hold: their state is part of an exact resume."""
    found: list[torch.Generator] = []
    for split in splits:
        samplers = [getattr(split, "sampler", None), getattr(split, "batch_sampler", None)]
        samplers.append(getattr(samplers[1], "sampler", None))
        for holder in (split, *samplers):
            generator = getattr(holder, "generator", None)
            if isinstance(generator, torch.Generator) and generator not in found:
                found.append(generator)
    return found
