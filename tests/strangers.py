"""A stranger's project: a network with a residual and a concat, and data of its own. Nothing in it knows Abridged but `Data`."""

from pathlib import Path

NET = """\
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, classes=4):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.left = nn.Conv2d(8, 8, 3, padding=1)
        self.right = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(16, classes)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        y = x + torch.relu(self.left(x))
        z = torch.cat([y, self.right(y)], dim=1)
        return self.head(z.mean((2, 3)))


def bent():
    class Bent(Net):
        def forward(self, x):
            if x.sum() > 0:  # depends on the data
                return super().forward(x)
            return super().forward(-x)

    return Bent()


def poisoned():
    net = Net()
    net.stem.weight.data[0, 0, 0, 0] = float("nan")
    return net


def small():
    return Net(classes=2)


def number():
    return 3
"""

DATA = '''\
import torch

import abridged as ab


def points(count, seed):
    """Images whose class is the quadrant of a bright spot."""
    rng = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 4, (count,), generator=rng)
    x = 0.3 * torch.randn(count, 3, 8, 8, generator=rng)
    for i, label in enumerate(y.tolist()):
        row, column = 4 * (label // 2), 4 * (label % 2)
        x[i, label % 3, row : row + 4, column : column + 4] += 1 + label
    return x, y


def data():
    return ab.Data(train=points(256, 0), val=points(96, 1), test=points(96, 2), name="spots")


def wrong_shape():
    return ab.Data(train=(torch.randn(8, 5), torch.zeros(8, dtype=torch.long)), val=(torch.randn(8, 5), torch.zeros(8, dtype=torch.long)))


def empty():
    return ab.Data(train=(torch.zeros(0, 3, 8, 8), torch.zeros(0, dtype=torch.long)), val=points(8, 1))


def far_labels():
    x, y = points(32, 0)
    return ab.Data(train=(x, y + 5), val=(x, y))


def nan():
    x, y = points(32, 0)
    x[3] = float("nan")
    return ab.Data(train=(x, y), val=points(8, 1))


def number():
    return 3
'''

QUICK = """\
name: quick
steps:
  - train: {epochs: 5, lr: 0.01, batch_size: 16}
  - prune: {sparsity: 0.5, epochs: 2, lr: 0.005}
  - distill: {epochs: 1, lr: 0.002}
"""


def write(directory: Path) -> Path:
    """The project in a directory: `strangers_net.py`, `strangers_data.py`, `quick.yaml`."""
    (directory / "strangers_net.py").write_text(NET)
    (directory / "strangers_data.py").write_text(DATA)
    (directory / "quick.yaml").write_text(QUICK)
    return directory
