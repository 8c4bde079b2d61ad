"""A small student of Fashion-MNIST, alone and with each distillation loss: the same images, steps and seeds for all.

    python benchmarks/distillation.py data/fashion-mnist --out distillation-study [--seeds 3] [--only kd dkd]

Teacher: three convolutions of 32, 64 and 128 channels, trained on 55,000 images. Student: 16, 32 and 64 channels, 2,000
of these images, 12 epochs. One cell (a loss with a seed) is one file, written when it is done: a killed study goes on
where it was, and the table marks what has not been run."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import abridged as ab
from abridged.data.sets import get
from abridged.files import write_atomic

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


def place(out: Path, cell: str, seed: int) -> Path:
    return out / "cells" / f"{cell.replace(' ', '-')}-{seed}.json"


def table(out: Path, seeds: int) -> str:
    """Mean ± standard deviation per loss, and its gain over the student alone; cells that are missing are named."""
    results = {
        cell: [
            json.loads(place(out, cell, s).read_text())["accuracy"]
            for s in range(seeds)
            if place(out, cell, s).exists()
        ]
        for cell in CELLS
    }
    alone = statistics.mean(results["alone"]) if results["alone"] else None
    lines = ["| loss | test accuracy, % | gain, points | seeds |", "|---|---|---|---|"]
    for cell, values in results.items():
        if not values:
            lines.append(f"| {cell} | not run | – | 0 of {seeds} |")
            continue
        mean = statistics.mean(values)
        spread = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
        gain = "–" if cell == "alone" or alone is None else f"{100 * (mean - alone):+.2f}"
        lines.append(f"| {cell} | {100 * mean:.2f}{spread} | {gain} | {len(values)} of {seeds} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("distillation-study"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=CELLS, default=list(CELLS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = get(f"fashion-mnist:{args.data}")
    data = replace(data, val=data.val.rows(slice(0, 200)))
    teacher = teacher_of(data, args.out)
    fewer = replace(data, train=data.train.rows(slice(0, IMAGES)))
    for seed in range(args.seeds):
        for cell in args.only:
            if not place(args.out, cell, seed).exists():
                done = run(cell, seed, teacher, fewer, args.out / "cache")
                write_atomic(place(args.out, cell, seed), json.dumps(done).encode())
                print(f"{cell}, seed {seed}: {done['accuracy']:.4f}, {done['seconds']:.0f} s", flush=True)
    head = f"Teacher: {100 * ab.evaluate(teacher, data, 'test').value:.2f} %."
    write_atomic(args.out / "table.md", f"{head}\n\n{table(args.out, args.seeds)}\n".encode())
    print(head, table(args.out, args.seeds), sep="\n\n")


if __name__ == "__main__":
    main()
