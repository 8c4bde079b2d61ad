"""The network of `abridged demo`: a small CNN for scikit-learn's handwritten digits (8×8 grey images)."""

import torch
from torch import Tensor, nn


class DigitsNet(nn.Module):
    """Three convolutions and a linear layer, 57,000 weights, trained from scratch by the recipe `demo`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(64)
        self.conv3 = nn.Conv2d(64, 64, 3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(64)
        self.linear = nn.Linear(64 * 2 * 2, 10)

    def forward(self, x: Tensor) -> Tensor:  # (N, 1, 8, 8) → (N, 10)
        x = torch.relu(self.norm1(self.conv1(x)))
        x = nn.functional.max_pool2d(torch.relu(self.norm2(self.conv2(x))), 2)
        x = nn.functional.max_pool2d(torch.relu(self.norm3(self.conv3(x))), 2)
        scores: Tensor = self.linear(x.flatten(1))
        return scores
