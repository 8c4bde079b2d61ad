"""Networks for tests: torchvision's with every weight and statistic random, built without their slow initialization."""

from __future__ import annotations

import copy
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

# One network of every family, with the input size at which it is tested fast.
FAST = {
    "alexnet": 64,
    "convnext_tiny": 64,
    "densenet121": 64,
    "efficientnet_b0": 64,
    "efficientnet_v2_s": 64,
    "googlenet": 64,
    "inception_v3": 80,
    "maxvit_t": 224,
    "mnasnet0_5": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "regnet_x_400mf": 64,
    "regnet_y_400mf": 64,
    "resnet18": 64,
    "resnext50_32x4d": 64,
    "shufflenet_v2_x0_5": 64,
    "squeezenet1_1": 64,
    "swin_t": 64,
    "swin_v2_t": 64,
    "vgg11_bn": 64,
    "vit_b_32": 224,
    "wide_resnet50_2": 64,
}


def own_size(name: str) -> int:
    """The image size that a network of the list was made for."""
    return 299 if name == "inception_v3" else 224


def _without_initialization() -> Any:
    """Leaves weights as they lie in memory: `randomize` sets every one of them."""
    initializers = [name for name in dir(nn.init) if name.endswith("_") and not name.startswith("_")]
    return mock.patch.multiple(nn.init, **{name: lambda tensor, *_, **__: tensor for name in initializers})


def network(models: Any, name: str, seed: int = 0) -> nn.Module:
    """A torchvision network with training off and everything random, batch-norm statistics included."""
    build = getattr(models, name)
    auxiliary = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with _without_initialization():
        model: nn.Module = build(weights=None, **auxiliary)
    return randomize(model, seed).eval()


@torch.no_grad()
def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter and floating buffer random, such that outputs of deep networks stay finite."""
    generator = torch.Generator().manual_seed(seed)
    for key, tensor in model.state_dict().items():
        leaf = key.rpartition(".")[2]
        if not tensor.is_floating_point() or leaf == "relative_coords_table":
            continue
        if leaf == "running_var" or (leaf == "weight" and tensor.ndim == 1):
            tensor.uniform_(0.5, 1.5, generator=generator)
        else:
            fan_in = tensor[0].numel() if tensor.ndim > 1 else 100
            tensor.normal_(0, fan_in**-0.5, generator=generator)
    return model


def run64(model: nn.Module, *inputs: Tensor) -> Any:
    """A module's own answer in float64."""
    with torch.no_grad():
        return copy.deepcopy(model).double()(*(x.double() if x.is_floating_point() else x for x in inputs))


class Layers(nn.Module):
    """A network of the given layers by name, whose forward is `run(self, x)`."""

    def __init__(self, run, **layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)
