"""Networks and data that benchmarks share: the CIFAR-10 ResNets and SqueezeNet 1.1, from files beside the checkout."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import abridged as ab
from abridged.data.folder import read_image
from abridged.data.normalize import IMAGENET_MEAN, IMAGENET_STD, Normalize
from abridged.data.sets import cifar10
from abridged.sources import import_torchvision


class Block(nn.Module):
    """Two 3×3 convolutions and a shortcut without parameters (option A of He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.pad = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if self.pad:
            x = nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return torch.relu(out + x)


class ResNet(nn.Module):
    """ResNet-(6n + 2) for 32×32 images, 10 classes."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        for index, (inputs, outputs) in enumerate(((16, 16), (16, 32), (32, 64)), start=1):
            blocks = [Block(inputs if i == 0 else outputs, outputs, 2 if i == 0 and index > 1 else 1) for i in range(n)]
            setattr(self, f"layer{index}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, 32, 32) → (N, 10)
        x = self.layer3(self.layer2(self.layer1(torch.relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean((2, 3)))


def resnet(depth: int, weights: Path) -> ResNet:
    """The trained network of 20 or 56 layers, in eval mode."""
    model = ResNet((depth - 2) // 6)
    lost = model.load_state_dict(load_file(weights / f"cifar10_resnet{depth}.safetensors"), strict=False)
    assert not lost.unexpected_keys
    assert all(key.endswith("num_batches_tracked") for key in lost.missing_keys)
    return model.eval()


def cifar(directory: Path) -> ab.Data:
    """CIFAR-10 normalized as the networks expect it: 45,000 images to calibrate on, 10,000 to report on."""
    return dataclasses.replace(cifar10(directory), transform=Normalize(IMAGENET_MEAN, IMAGENET_STD))


def squeezenet(weights: Path) -> nn.Module:
    """SqueezeNet 1.1 trained on ImageNet, in eval mode; its input is what `caffe` gives."""
    model: nn.Module = import_torchvision().squeezenet1_1(weights=None)
    given = load_file(weights / "squeezenet1_1_imagenet.safetensors")
    places = {"conv1": "features.0", "conv10": "classifier.1"}
    places |= {f"fire{at}": f"features.{place}" for at, place in enumerate((3, 4, 6, 7, 9, 10, 11, 12), start=2)}
    for name, tensor in given.items():
        layer, _, rest = name.partition(".")
        key = f"{places[layer]}.{rest.replace('squeeze1x1', 'squeeze')}"
        model.get_parameter(key).data.copy_(tensor)
    return model.eval()


def caffe(images: Tensor) -> Tensor:
    """uint8 RGB (N, 3, H, W) → BGR minus (104, 117, 123)."""
    return images.flip(1).float() - torch.tensor([104.0, 117.0, 123.0])[:, None, None]


def thirds(directory: Path) -> ab.Data:
    """300 photographs of 300 classes: every third to calibrate on, the other 200 to report on."""
    files = sorted(directory.glob("*/*.jpg"))
    images, labels = (
        torch.stack([read_image(file) for file in files]),
        torch.tensor([int(f.parent.name) for f in files]),
    )
    seen = torch.arange(len(files)) % 3 == 0
    known, held = ((images[part], labels[part]) for part in (seen, ~seen))
    return ab.Data(known, known, held, transform=caffe, name="imagenet300")
