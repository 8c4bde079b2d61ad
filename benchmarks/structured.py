"""Structured pruning: how many networks shrink, and what is left of a trained one.

    python benchmarks/structured.py coverage [NAMES…]      all networks of ../shared/networks.txt at ratio 0.5
    python benchmarks/structured.py cifar DIR              ResNet-20 and ResNet-56 at 0.7, 0.5 and 0.35 of the MACs

DIR is what `python ../shared/data/unpack.py DIR cifar10 weights` wrote. Where torch_pruning can be imported (its own
environment is best), `cifar` adds its rows: the same checkpoint, data, MACs and no fine-tuning.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

import abridged as ab
from abridged.graph.cost import cost
from abridged.sources import import_torchvision

ROOT = Path(__file__).resolve().parents[1]
SHARES = (0.7, 0.5, 0.35)
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def macs(model: nn.Module, x: Tensor, *ops: str) -> int:
    graph = ab.capture(model, x)
    return sum(cost(node, graph, {}).macs for node in graph if not ops or node.op in ops)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# ---- coverage --------------------------------------------------------------------------------------------------------


def coverage(names: list[str]) -> None:
    """One line per network: shares of parameters and convolutional MACs left, seconds of processor time, and whether outputs are equal."""
    sys.path.insert(0, str(ROOT / "tests"))
    from models import network, own_size

    from abridged.pruning.trials import answer, close

    if not names:
        lines = (ROOT.parent / "shared" / "networks.txt").read_text().splitlines()
        names = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    print("network                 parameters  conv MACs  prune s  shrink s  outputs")
    for name in names:
        model = network(import_torchvision(), name)
        x = torch.randn(1, 3, own_size(name), own_size(name))
        start = time.process_time()
        ab.prune(model, 0.5, pattern="channel", example=x)
        middle = time.process_time()
        small = ab.shrink(model, x, say=lambda line: None)
        end = time.process_time()
        shares = parameters(small) / parameters(model), macs(small, x, "conv") / macs(model, x, "conv")
        with torch.no_grad():
            answers = [answer(copy.deepcopy(m).double().eval(), (x,)) for m in (model, small)]
        same = all(close(*pair) for pair in zip(*answers, strict=True))
        times = f"{middle - start:7.1f}  {end - middle:8.1f}"
        print(f"{name:22s}  {shares[0]:10.3f}  {shares[1]:9.3f}  {times}  {'equal' if same else 'DIFFER'}", flush=True)


# ---- CIFAR-10 --------------------------------------------------------------------------------------------------------


class Shortcut(nn.Module):
    """Option A of He et al. (2016): every other position, zeros for the channels that are new."""

    def __init__(self, more: int) -> None:
        super().__init__()
        self.more = more

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.more, self.more))


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = outputs // inputs
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if stride == 1 else Shortcut(inputs // 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        widths = [16, *(width for width in (16, 32, 64) for _ in range((depth - 2) // 6))]
        blocks = [Block(a, b) for a, b in pairwise(widths)]
        third = len(blocks) // 3
        self.layer1, self.layer2, self.layer3 = (nn.Sequential(*blocks[i * third : (i + 1) * third]) for i in range(3))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(y.mean((2, 3)))


def trained(home: Path, depth: int) -> nn.Module:
    model = ResNet(depth)
    model.load_state_dict(load_file(home / "weights" / f"cifar10_resnet{depth}.safetensors"))
    return model.eval()


def images(home: Path, file: str) -> tuple[Tensor, Tensor]:
    raw = torch.from_file(str(home / "cifar10/cifar-10-batches-bin" / file), size=10000 * 3073, dtype=torch.uint8)
    rows = raw.reshape(-1, 3073)
    pixels = rows[:, 1:].reshape(-1, 3, 32, 32).float() / 255
    return (pixels - MEAN[:, None, None]) / STD[:, None, None], rows[:, 0].long()


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    right = sum(int((model.eval()(a).argmax(1) == b).sum()) for a, b in zip(x.split(500), y.split(500), strict=True))
    return 100 * right / len(y)


@torch.no_grad()
def estimated(model: nn.Module, x: Tensor) -> nn.Module:
    """A copy whose batch-norm statistics are those of these images."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    for part in x.split(500):
        model.train()(part)
    return model.eval()


def ours(home: Path, depth: int, x: Tensor) -> Iterator[tuple[str, nn.Module]]:
    for allocation in ("uniform", "global"):
        for share in SHARES:
            model = trained(home, depth)
            ab.prune(model, macs=share, pattern="channel", criterion="l2", allocation=allocation, example=x)
            yield f"abridged, {allocation}", ab.shrink(model, x, say=lambda line: None)


def rival(home: Path, depth: int, x: Tensor) -> Iterator[tuple[str, nn.Module]]:
    """Torch-Pruning with its group magnitude, uniform and global; the ratio is found by bisection."""
    import torch_pruning as tp

    def pruned(ratio: float, everywhere: bool) -> nn.Module:
        model = trained(home, depth)
        tp.pruner.MagnitudePruner(
            model,
            x,
            tp.importance.GroupMagnitudeImportance(p=2),
            global_pruning=everywhere,
            pruning_ratio=ratio,
            ignored_layers=[model.linear],
        ).step()
        return model

    for everywhere in (False, True):
        whole = macs(trained(home, depth), x)
        for share in SHARES:
            low, high = 0.0, 0.95
            for _ in range(7):
                middle = (low + high) / 2
                low, high = (low, middle) if macs(pruned(middle, everywhere), x) <= share * whole else (middle, high)
            yield f"Torch-Pruning {tp.__version__}, {'global' if everywhere else 'uniform'}", pruned(high, everywhere)


def cifar(home: Path, depths: list[int]) -> None:
    x, y = images(home, "test_batch.bin")
    calibration = images(home, "data_batch_1.bin")[0][:2000]
    for depth in depths:
        model = trained(home, depth)
        whole = macs(model, x[:1])
        print(f"ResNet-{depth}: {accuracy(model, x, y):.2f} % on 10,000 test images, {whole / 1e6:.1f} M MACs")
        print("way                             MACs  parameters  accuracy  with batch norm re-estimated")
        for way in (ours, rival) if importlib.util.find_spec("torch_pruning") else (ours,):
            for name, small in way(home, depth, x[:1]):
                left = macs(small, x[:1]) / whole, parameters(small) / parameters(model)
                found = accuracy(small, x, y), accuracy(estimated(small, calibration), x, y)
                print(f"{name:28s}  {left[0]:6.3f}  {left[1]:10.3f}  {found[0]:8.2f}  {found[1]:8.2f}", flush=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    match sys.argv[1:]:
        case ["coverage", *names]:
            coverage(names)
        case ["cifar", home, *depths]:
            cifar(Path(home), [int(depth) for depth in depths] or [20, 56])
        case _:
            sys.exit(__doc__)
