"""A small student of Fashion-MNIST, alone and with each distillation loss: the same images, steps and seeds for all.

    python benchmarks/distillation.py [--seeds 10] run data/fashion-mnist [--out distillation-study] [--only kd dkd]
    python benchmarks/distillation.py table

Teacher: three convolutions of 32, 64 and 128 channels, trained on 55,000 images. Student: 16, 32 and 64 channels, 2,000
of these images, 12 epochs. Resumable: each cell (a loss with a seed) is written to the results file the moment it is
done, and a cell that is there is not run again. The table marks what has not been run. OUT keeps the teacher and its
answers."""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from cells import add, read
from torch import Tensor, nn

import abridged as ab
from abridged.data.sets import get

RESULTS = Path(__file__).with_suffix(".json")
IMAGES, EPOCHS, TEACHER_EPOCHS = 2_000, 12, 5
ALL = ["layer1", "layer2", "layer3"]

# name → options of `distill`; None: on the labels alone
CELLS: dict[str, dict[str, Any] | None] = {
    "alone": None,
    "kd": {"loss": "kd"},
    "dkd": {"loss": [{"name": "dkd", "rest": 2.0}]},
    "standardized": {"loss": "standardized"},
    "dist": {"loss": "dist"},
    "mimic": {"loss": "mimic"},
    "hint": {"loss": "hint", "layers": "layer2", "alpha": 0.5},
    "hidden": {"loss": "hidden", "layers": ALL, "alpha": 0.5},
    "attention": {"loss": "attention", "layers": ALL, "alpha": 0.5},
    "fsp": {"loss": "fsp", "layers": ALL, "alpha": 0.5},
    "similarity": {"loss": "similarity", "layers": "layer3", "alpha": 0.5},
    "rkd-distance": {"loss": "rkd-distance", "layers": "layer3", "alpha": 0.5},
    "rkd-angle": {"loss": "rkd-angle", "layers": "layer3", "alpha": 0.5},
    "vid": {"loss": "vid", "layers": ALL, "alpha": 0.5},
    "crd": {"loss": "crd", "layers": "layer3", "alpha": 0.5},
    "feature-norm": {"loss": "feature-norm", "layers": "layer3", "alpha": 0.5},
    "self": {"loss": "self", "layers": ["layer1", "layer2"], "alpha": 0.5},
    "kd + attention": {"loss": {"kd": 1.0, "attention": 0.1}, "layers": ALL},
    "kd, alpha 0.9 → 0.5": {"loss": "kd", "alpha": {"linear": [0.9, 0.5]}},
}


class Small(nn.Module):
    """Three strided convolutions and a linear layer over all positions, or their mean: (N, 1, 28, 28) → (N, 10)."""

    def __init__(self, *widths: int, pooled: bool = False) -> None:
        super().__init__()
        self.pooled = pooled
        for number, (narrow, wide) in enumerate(zip((1, *widths), widths, strict=False), start=1):
            block = nn.Sequential(nn.Conv2d(narrow, wide, 3, 2, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU())
            setattr(self, f"layer{number}", block)
        self.linear = nn.Linear(widths[-1] * (1 if pooled else 16), 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.flatten(2).mean(2) if self.pooled else x.flatten(1))


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, 3e-3)


def teacher_of(data: ab.Data, out: Path) -> nn.Module:
    """Trained once, on all images; then read."""
    torch.manual_seed(100)
    teacher = Small(32, 64, 128, pooled=True)
    if not (out / "teacher.safetensors").exists():
        ab.fit(teacher, data, epochs=TEACHER_EPOCHS, optimizer=adam, batch_size=128, checkpoint=out / "checkpoint")
        ab.save(teacher, out / "teacher.safetensors")
    ab.load_into(teacher, out / "teacher.safetensors")
    return teacher


def run(cell: str, seed: int, teacher: nn.Module, data: ab.Data, cache: Path) -> dict[str, Any]:
    """Train one student; its accuracy on the test set, and the seconds that it took."""
    torch.manual_seed(seed)
    student, options, started = Small(16, 32, 64), CELLS[cell], time.perf_counter()
    common: dict[str, Any] = {"epochs": EPOCHS, "optimizer": adam, "seed": seed}
    if options is None:
        ab.fit(student, data, **common)
    else:
        asked = None if cell == "self" else teacher
        ab.distill(student, asked, data, cache=None if asked is None else cache, **options, **common)
    score = ab.evaluate(student, data, "test")
    return {"accuracy": score.value, "seconds": time.perf_counter() - started}


def cells(options: argparse.Namespace) -> None:
    """Run what is missing, seed by seed."""
    torch.set_num_threads(1)
    data = get(f"fashion-mnist:{options.data}")
    data = replace(data, val=data.val.rows(slice(0, 200)))
    teacher = teacher_of(data, options.out)
    add(options.results, "teacher", {"accuracy": ab.evaluate(teacher, data, "test").value})
    fewer = replace(data, train=data.train.rows(slice(0, IMAGES)))
    for seed in range(options.seeds):
        for cell in options.only:
            if f"{cell} {seed}" not in read(options.results):
                done = run(cell, seed, teacher, fewer, options.out / "cache")
                add(options.results, f"{cell} {seed}", done)
                print(f"{cell}, seed {seed}: {done['accuracy']:.4f}, {done['seconds']:.0f} s", flush=True)
    table(options)


def table(options: argparse.Namespace) -> None:
    """Mean ± standard deviation of each loss, and of its gain over the student alone with the same seed."""
    results = read(options.results)

    def of(cell: str) -> dict[int, float]:
        """Accuracy in % of the seeds that were run."""
        names = {seed: f"{cell} {seed}" for seed in range(options.seeds)}
        return {seed: 100 * results[name]["accuracy"] for seed, name in names.items() if name in results}

    alone = of("alone")
    print(f"Teacher: {100 * results['teacher']['accuracy']:.2f} %.\n" if "teacher" in results else "No teacher yet.\n")
    print("| loss | test accuracy, % | gain, points | seeds |", "|---|---|---|---|", sep="\n")
    for cell in CELLS:
        values = of(cell)
        gains = [] if cell == "alone" else [value - alone[seed] for seed, value in values.items() if seed in alone]
        print(f"| {cell} | {_spread(list(values.values()))} | {_spread(gains, '+')} | {len(values)} |")


def _spread(values: list[float], sign: str = "") -> str:
    if not values:
        return "–"
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{sign}.2f}{deviation}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--seeds", type=int, default=10)
    commands = parser.add_subparsers(required=True)
    running = commands.add_parser("run")
    running.add_argument("data", type=Path)
    running.add_argument("--out", type=Path, default=Path("distillation-study"))
    running.add_argument("--only", nargs="*", choices=CELLS, default=list(CELLS))
    running.set_defaults(do=cells)
    commands.add_parser("table").set_defaults(do=table)
    options = parser.parse_args()
    options.do(options)


if __name__ == "__main__":
    main()
