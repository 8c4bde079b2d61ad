"""One-shot pruning without fine-tuning: CIFAR-10 test accuracy of pretrained ResNets, by method and sparsity.

    python ../shared/data/unpack.py data cifar10 weights
    python benchmarks/one_shot.py --data data --out one_shot.json [--networks 20 56] [--sparsities 0.5 0.9] [--methods erk]

Every cell is written to OUT as soon as it is measured, and a cell that is there is not measured again. The last lines are
the table in Markdown; cells not yet run are marked.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from networks import cifar, resnet
from torch import nn

import abridged as ab

Method = Callable[[nn.Module, float, ab.Data], object]
SPARSITIES = (0.5, 0.6, 0.7, 0.8, 0.9)


def by(criterion: str, allocation: str, **options: Any) -> Method:
    return lambda model, sparsity, data: ab.prune(
        model, sparsity, criterion=criterion, allocation=allocation, data=data, samples=1024, **options
    )


METHODS: dict[str, Method] = {
    "magnitude, uniform": by("magnitude", "uniform"),
    "magnitude, global": by("magnitude", "global"),
    "magnitude, LAMP": by("lamp", "global"),
    "magnitude, ERK": by("magnitude", "erk"),
    "magnitude, global + BN": by("magnitude", "global", reestimate=True),
    "least squares, LAMP + BN": by("lamp", "global", solver="least-squares", reestimate=True),
    "SparseGPT, LAMP + BN": by("lamp", "global", solver="sparse-gpt", reestimate=True),
    "OBS, LAMP + BN": by("lamp", "global", solver="obs", reestimate=True),
    "OBS, ERK + BN": by("magnitude", "erk", solver="obs", reestimate=True),
}


def table(cells: dict[str, dict[str, float]], networks: list[int]) -> str:
    lines = []
    for depth in networks:
        dense = cells.get(f"ResNet-{depth} dense", {}).get("accuracy")
        title = f"ResNet-{depth} ({100 * dense:.2f} %)" if dense else f"ResNet-{depth}"
        lines += [f"| {title} | " + " | ".join(f"{100 * s:.0f} %" for s in SPARSITIES) + " |", "|---" * 6 + "|"]
        for name in METHODS:
            row = [cells.get(f"ResNet-{depth} {name} {s}") for s in SPARSITIES]
            lines.append(
                f"| {name} | " + " | ".join(f"{100 * c['accuracy']:.2f}" if c else "not run" for c in row) + " |"
            )
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="holds cifar10/ and weights/")
    parser.add_argument("--out", type=Path, default=Path("one_shot.json"))
    parser.add_argument("--networks", type=int, nargs="+", default=[20, 56], choices=[20, 56])
    parser.add_argument("--sparsities", type=float, nargs="+", default=list(SPARSITIES))
    parser.add_argument("--methods", nargs="+", default=[""], help="parts of names of methods")
    options = parser.parse_args()
    data = cifar(options.data / "cifar10")
    cells: dict[str, dict[str, float]] = json.loads(options.out.read_text()) if options.out.exists() else {}

    def measure(key: str, model: nn.Module, prune: Callable[[], object]) -> None:
        if key in cells:
            return
        start = time.perf_counter()
        prune()
        seconds = time.perf_counter() - start
        cells[key] = {"accuracy": ab.evaluate(model, data, "test").value, "seconds": seconds}
        options.out.write_text(json.dumps(cells, indent=1))
        print(f"{key}: {100 * cells[key]['accuracy']:.2f} % ({seconds:.1f} s to prune)", flush=True)

    for depth in options.networks:
        measure(f"ResNet-{depth} dense", resnet(depth, options.data / "weights"), lambda: None)
        for name, method in METHODS.items():
            if not any(part in name for part in options.methods):
                continue
            for sparsity in options.sparsities:
                model = resnet(depth, options.data / "weights")
                measure(f"ResNet-{depth} {name} {sparsity}", model, lambda m=model, s=sparsity, f=method: f(m, s, data))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n\n{table(cells, options.networks)}")


if __name__ == "__main__":
    main()
