"""One process or several: with `accelerate launch` or torchrun, each takes its samples of every batch.

Gradients are summed with each sample's own weight, so that the result is that of one process with the same batches. The
model is not wrapped, and unused parameters are allowed."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from abridged.errors import InputError, UnsupportedError


class Alone:
    """The only process: nothing to agree on."""

    rank, count = 0, 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def sum(self, value: Tensor) -> Tensor:
        return value

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        return None

    def same_start(self, model: nn.Module) -> None:
        return None

    def mean_buffers(self, model: nn.Module) -> None:
        return None

    def wait(self) -> None:
        return None


class Together:
    """One of several processes, through accelerate."""

    def __init__(self, device: torch.device | None) -> None:
        try:
            from accelerate import Accelerator
            from accelerate.utils import DistributedType
        except ModuleNotFoundError:
            raise InputError("several processes need accelerate: pip install 'abridged[distributed]'") from None
        # Without cpu=True on a machine that has no accelerator, accelerate lets every process train alone.
        cpu = not torch.accelerator.is_available() or (device is not None and device.type == "cpu")
        self._accelerator: Any = Accelerator(cpu=cpu, mixed_precision="no")
        kind = self._accelerator.distributed_type
        if kind in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
            raise UnsupportedError(f"{kind.value} divides the weights; only plain data parallelism is supported")
        self.device: torch.device = self._accelerator.device
        self.rank: int = self._accelerator.process_index
        self.count: int = self._accelerator.num_processes
        if self.count != launched():
            raise InputError(
                f"launched as {launched()} processes, but accelerate joined {self.count}: see `accelerate env`"
            )

    def sum(self, value: Tensor) -> Tensor:
        total: Tensor = self._accelerator.reduce(value.to(self.device), reduction="sum")
        return total.to(value.device)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by the sum over processes; a parameter without one anywhere keeps none."""
        held = list(parameters)
        has = self.sum(torch.tensor([float(parameter.grad is not None) for parameter in held], device=self.device))
        used = [parameter for parameter, processes in zip(held, has.tolist(), strict=True) if processes]
        if not used:
            return
        parts = [torch.zeros_like(p).view(-1) if p.grad is None else p.grad.reshape(-1) for p in used]
        total = self.sum(torch.cat(parts))
        for parameter, part in zip(used, torch.split(total, [p.numel() for p in used]), strict=True):
            parameter.grad = part.view_as(parameter).clone()

    def same_start(self, model: nn.Module) -> None:
        """Weights and buffers of the first process for all."""
        from accelerate.utils import broadcast

        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.copy_(broadcast(tensor.detach().clone().contiguous()))

    def mean_buffers(self, model: nn.Module) -> None:
        """Each process has seen its own samples: running statistics become the mean of the processes'."""
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.copy_(self.sum(buffer.detach()) / self.count)

    def wait(self) -> None:
        self._accelerator.wait_for_everyone()


Processes = Alone | Together


def launched() -> int:
    """How many processes this one was launched with: by torchrun and `accelerate launch`, or by MPI."""
    names = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
    return max(int(os.environ.get(name) or 1) for name in names)


def join(device: torch.device, asked: str | torch.device | None) -> Processes:
    """The processes that this one was launched with. `device`: where one process alone would train; `asked`: by the user."""
    return Together(torch.device(asked) if asked is not None else None) if launched() > 1 else Alone(device)
