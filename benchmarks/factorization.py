"""Low-rank factorization without fine-tuning: CIFAR-10 test accuracy of the pretrained ResNet-56, by method and what is left.

    python ../shared/data/unpack.py data cifar10 weights
    python benchmarks/factorization.py --data data --out factorization.json [--images 2000] [--latency]

Every cell is written to OUT as soon as it is measured, and a cell that is there is not measured again. The last lines are
the tables in Markdown; cells not yet run are marked.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from networks import cifar, resnet
from torch import nn

import abridged as ab
from abridged.timing import time_interleaved

RATIOS = (0.8, 0.6, 0.4)  # of the parameters
METHODS = ("svd", "channel", "spatial", "tucker", "whitened")
SAMPLES = 512


def thin_of(model: nn.Module, data: ab.Data, method: str, ratio: float, refine: bool) -> nn.Module:
    calibration = data if refine or method == "whitened" else None
    return ab.factorize(model, torch.zeros(1, 3, 32, 32), method, ratio=ratio, data=calibration, samples=SAMPLES)


def rows() -> list[tuple[str, bool]]:
    return [(method, refine) for method in METHODS for refine in (False, True) if refine or method != "whitened"]


def name_of(method: str, refine: bool) -> str:
    return f"{method}, least squares" if refine and method != "whitened" else method


def table(cells: dict[str, dict[str, Any]], key: str, form: str) -> str:
    lines = ["| method | " + " | ".join(f"{ratio:.0%} of the parameters" for ratio in RATIOS) + " |", "|---" * 4 + "|"]
    for method, refine in rows():
        found = [cells.get(f"{name_of(method, refine)} {ratio}", {}).get(key) for ratio in RATIOS]
        cells_ = (form.format(value) if value is not None else "not run" for value in found)
        lines.append(f"| {name_of(method, refine)} | " + " | ".join(cells_) + " |")
    return "\n".join(lines)


def latency(model: nn.Module, thin: nn.Module) -> dict[str, list[float]]:
    """Milliseconds of the dense and of the thin network on both targets, one thread, batch 1, interleaved."""
    x = torch.randn(1, 3, 32, 32)
    with tempfile.TemporaryDirectory() as folder:
        artifacts = {
            (target, kind): ab.deploy(net, x, target=target, out=Path(folder) / f"{target}-{kind}", threads=1)
            for target in ("onnxruntime", "native")
            for kind, net in (("dense", model), ("thin", thin))
        }
        calls = {" ".join(key): partial(artifact, x) for key, artifact in artifacts.items()}
        times = time_interleaved(calls, seconds=2.0, repeat=5, pause=0.02)
        for artifact in artifacts.values():
            artifact.close()
    return {t: [times[f"{t} dense"].median, times[f"{t} thin"].median] for t in ("onnxruntime", "native")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="holds cifar10/ and weights/")
    parser.add_argument("--out", type=Path, default=Path("factorization.json"))
    parser.add_argument("--images", type=int, default=10_000, help="of the test set, the first ones")
    parser.add_argument("--latency", action="store_true", help="also milliseconds, on onnxruntime and native")
    options = parser.parse_args()
    data = cifar(options.data / "cifar10")
    inputs, labels = data.test
    data = dataclasses.replace(data, test=(inputs[: options.images], labels[: options.images]))
    cells: dict[str, dict[str, Any]] = json.loads(options.out.read_text()) if options.out.exists() else {}
    model = resnet(56, options.data / "weights")
    for ratio in RATIOS:
        for method, refine in rows():
            key = f"{name_of(method, refine)} {ratio}"
            cell = cells.setdefault(key, {})
            if "accuracy" in cell and ("native" in cell or not options.latency):
                continue
            thin = thin_of(model, data, method, ratio, refine).eval()
            if "accuracy" not in cell:
                cell["accuracy"] = ab.evaluate(thin, data, "test").value
            if options.latency:
                cell |= {target: dense / factors for target, (dense, factors) in latency(model, thin).items()}
            options.out.write_text(json.dumps(cells, indent=1))
            print(f"{key}: {cell}", flush=True)
    dense = cells.setdefault("dense", {"accuracy": ab.evaluate(model, data, "test").value})["accuracy"]
    options.out.write_text(json.dumps(cells, indent=1))
    print(f"\nResNet-56, dense {dense:.2%} on the first {options.images:,} test images; torch {torch.__version__}\n")
    print(table(cells, "accuracy", "{:.2%}"))
    for target in ("onnxruntime", "native") if options.latency else ():
        print(f"\nTimes as fast on {target}, one thread, batch 1\n\n" + table(cells, target, "{:.2f} ×"))


if __name__ == "__main__":
    main()
