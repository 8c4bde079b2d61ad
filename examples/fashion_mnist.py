"""LeNet-5 on Fashion-MNIST: train it, prune 90 % of the weights with distillation, deploy, report.

    abridged compress examples.fashion_mnist:LeNet5 --data fashion-mnist:data/fashion-mnist \\
        --recipe examples/fashion_mnist.yaml --out fashion-mnist

The data set in its published format (four .gz files) is read from data/fashion-mnist; when it is missing, the error says
how to download it.
"""

import torch
from torch import Tensor, nn


class LeNet5(nn.Module):
    """LeNet-5 in today's dress: ReLU, max pooling, batch normalization, three linear layers (LeCun et al. 1998)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5, padding=2)
        self.norm1 = nn.BatchNorm2d(20)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.norm2 = nn.BatchNorm2d(50)
        self.linear1 = nn.Linear(50 * 5 * 5, 256)
        self.linear2 = nn.Linear(256, 84)
        self.linear3 = nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:  # (N, 1, 28, 28) → (N, 10)
        x = nn.functional.max_pool2d(torch.relu(self.norm1(self.conv1(x))), 2)
        x = nn.functional.max_pool2d(torch.relu(self.norm2(self.conv2(x))), 2)
        x = torch.relu(self.linear1(x.flatten(1)))
        return self.linear3(torch.relu(self.linear2(x)))
