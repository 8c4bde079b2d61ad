"""Sparse from the start, or sparse at the end? LeNet-300-100 and LeNet-5 on MNIST, by every way of choosing weights.

    python benchmarks/mnist_sparse.py run MNIST_DIR [--network lenet-5] [--methods rigl,set] [--densities 0.01] [--seeds 0]
    python benchmarks/mnist_sparse.py table

Resumable: each cell (network, method, density, seed, epochs) is written to the results file the moment it is done, and a
cell that is there is not run again. The table marks cells that have not been run.

54,000 training images in batches of 100, SGD with Nesterov momentum 0.9, weight decay 0.0005, learning rate 0.1; accuracy on
the 10,000 test images after the last epoch. With `--epochs 100` the protocol is that of Dettmers & Zettlemoyer 2019: a tenth
of the learning rate after 25,000 steps and a hundredth after 50,000. Any other number of epochs, 20 unless it is given, has a
learning rate that rises over the first twentieth of the steps and falls to zero along a cosine, for all methods alike; sparse
momentum and SET exchange weights a hundred times in either, which is once an epoch in theirs.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from cells import add, read
from torch import Tensor, nn

import abridged as ab
from abridged.data.batches import Batch
from abridged.data.sets import get
from abridged.training import cosine

RESULTS = Path(__file__).with_suffix(".json")
DENSITIES = (0.01, 0.05, 0.02, 0.1)  # in the order in which they are run
SEEDS = (0, 1, 2)
TRAIN, BATCH = 54_000, 100
EPOCHS, THEIRS = 20, 100  # ours, and those of Dettmers & Zettlemoyer
FIRST = ("dense", "sparse-momentum", "set")  # methods with published figures: all seeds of these are run first
PUBLISHED = {  # test accuracy in %, LeNet-300-100, of the figure of Dettmers & Zettlemoyer 2019
    "dense": {1.0: 98.69},
    "sparse-momentum": {0.01: 97.53, 0.02: 98.20, 0.05: 98.53, 0.1: 98.67},
    "set": {0.01: 95.80, 0.02: 97.74, 0.05: 98.14, 0.1: 98.39},
}


def lenet_300_100() -> nn.Module:
    """266,200 weights (LeCun et al. 1998)."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )


def lenet_5() -> nn.Module:
    """430,500 weights: LeNet-5 as Caffe has it."""
    convolutions = (nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2), nn.ReLU())
    network = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10))
    return network.to(memory_format=torch.channels_last)  # a CPU trains it a third faster so


NETWORKS = {"lenet-300-100": lenet_300_100, "lenet-5": lenet_5}


# --- methods: (model, data, density, steps of the training, seed) → masks ---------------------------------------------------------

Method = Callable[[nn.Module, ab.Data, float, int, int], ab.Masks | None]


def dense(model: nn.Module, data: ab.Data, density: float, steps: int, seed: int) -> None:
    return None


def regrown(way: str, allocation: str, every: int = 0) -> Method:
    """Exchange weights after every so many steps, or (0) a hundred times."""

    def make(model: nn.Module, data: ab.Data, density: float, steps: int, seed: int) -> ab.Masks:
        options = {
            "allocation": allocation,
            "regrow": way,
            "steps": steps,
            "every": every or steps // THEIRS,
            "seed": seed,
        }
        return ab.prune(model, 1 - density, criterion="random", **options)

    return make


def before(criterion: str, allocation: str = "global") -> Method:
    def make(model: nn.Module, data: ab.Data, density: float, steps: int, seed: int) -> ab.Masks:
        return ab.prune(model, 1 - density, criterion=criterion, allocation=allocation, data=data, seed=seed)

    return make


def gradual(model: nn.Module, data: ab.Data, density: float, steps: int, seed: int) -> ab.Masks:
    return ab.prune(model, 1 - density, schedule="cubic", steps=round(0.7 * steps), every=100)


METHODS: dict[str, Method] = {
    "dense": dense,
    "sparse-momentum": regrown("sparse-momentum", "uniform"),
    "rigl": regrown("rigl", "erk", every=100),
    "gradual": gradual,
    "set": regrown("set", "erk"),
    "snip": before("snip"),
    "grasp": before("grasp"),
    "synflow": before("synflow"),
    "random": before("random", "erk"),
}


# --- one cell -------------------------------------------------------------------------------------------------------------


def mnist(directory: Path) -> ab.Data:
    """Floats in memory, so that a batch is nothing but a gather: 54,000 to train, 6,000 to watch, 10,000 to report."""
    data = get(f"mnist:{directory}")

    def floats(*splits: Batch) -> tuple[Tensor, Tensor]:
        x, y = (torch.cat(parts) for parts in zip(*splits, strict=True))
        return data.transform(x) if data.transform else x, y

    x, y = floats(data.train, data.val)
    return replace(
        data, train=(x[:TRAIN], y[:TRAIN]), val=(x[TRAIN:], y[TRAIN:]), test=floats(data.test), transform=None
    )


def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True, fused=True)


def steps_down(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """A tenth of the learning rate after 25,000 and after 50,000 of 54,000 steps."""
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, [round(steps * 25 / 54), round(steps * 50 / 54)], 0.1)


def cell(data: ab.Data, network: str, method: str, density: float, seed: int, epochs: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = NETWORKS[network]()
    masks = METHODS[method](model, data, density, epochs * TRAIN // BATCH, seed)
    started = time.process_time()
    ab.fit(
        model, data, epochs=epochs, optimizer=sgd, scheduler=steps_down if epochs == THEIRS else cosine, masks=masks,
        batch_size=BATCH, seed=seed, label=f"{method} {density:.0%}",
    )  # fmt: skip
    score = ab.evaluate(model, data, "test", 1000)
    weights = sum(int(p.count_nonzero()) for p in model.parameters() if p.ndim > 1)
    return {"accuracy": score.value, "weights": weights, "cpu_seconds": time.process_time() - started}


def key(network: str, method: str, density: float, seed: int, epochs: int) -> str:
    return f"{network} {method} {density:g}, seed {seed}, {epochs} epochs"


def run(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    # Units that lost all their weights have gradients of zero, and momenta that fade to denormal numbers, which are slow.
    torch.set_flush_denormal(True)
    data = mnist(options.directory)
    groups = [[name for name in options.methods if (name in FIRST) == first] for first in (True, False)]
    for methods, seed, density in itertools.product(groups, options.seeds, options.densities):
        for method in methods:
            of = 1.0 if method == "dense" else density
            name = key(options.network, method, of, seed, options.epochs)
            if name in read(options.results):
                continue
            result = cell(data, options.network, method, of, seed, options.epochs)
            add(options.results, name, result)
            print(f"{name}: {result['accuracy']:.2%}, {result['cpu_seconds']:.0f} s of processor time", flush=True)


# --- the table --------------------------------------------------------------------------------------------------------------


def table(options: argparse.Namespace) -> None:
    results = read(options.results)
    for network in NETWORKS:
        for epochs in sorted({EPOCHS, *(int(name.split()[-2]) for name in results if name.startswith(f"{network} "))}):
            print(f"\n{network}, {epochs} epochs: test accuracy in %, mean ± standard deviation (seeds); – not run\n")
            print("| density | " + " | ".join(METHODS) + " |")
            print("|---" * (len(METHODS) + 1) + "|")
            for density in sorted(DENSITIES):
                print(
                    f"| {density:.0%} | "
                    + " | ".join(_text(results, network, m, density, epochs) for m in METHODS)
                    + " |"
                )


def _text(results: dict[str, Any], network: str, method: str, density: float, epochs: int) -> str:
    density = 1.0 if method == "dense" else density
    names = [key(network, method, density, seed, epochs) for seed in SEEDS]
    values = [100 * results[name]["accuracy"] for name in names if name in results]
    published = PUBLISHED.get(method, {}).get(density) if network == "lenet-300-100" else None
    against = f" [{published:.2f}]" if published else ""
    if not values:
        return f"–{against}"
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread} ({len(values)}){against}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument(
        "directory", type=Path, nargs="?", default=Path("data/mnist"), help="of the published MNIST files"
    )
    parser.add_argument("--network", choices=NETWORKS, default="lenet-300-100")
    parser.add_argument("--methods", type=lambda text: text.split(","), default=list(METHODS))
    parser.add_argument("--densities", type=lambda text: [float(part) for part in text.split(",")], default=DENSITIES)
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=SEEDS)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    (run if options.command == "run" else table)(options)


if __name__ == "__main__":
    main()
