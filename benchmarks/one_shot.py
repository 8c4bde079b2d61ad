"""One-shot pruning without fine-tuning: CIFAR-10 test accuracy of pretrained ResNets, by method and sparsity.

    python benchmarks/one_shot.py run --data DATA [--networks 20 56] [--sparsities 0.8 0.9] [--methods OBS]
    python benchmarks/one_shot.py time --data DATA      # milliseconds of the networks that were kept, compiled
    python benchmarks/one_shot.py table

DATA holds `cifar10/` and `weights/`. Resumable: every cell is written to the results file as soon as it is measured, and a
cell that is there is not measured again; the table marks cells that were not run. Accuracy is on all 10,000 test images;
calibration sees 1,024 training images. A cell's network is kept, packed, in a folder beside the results, and `time`
compiles it (pruned again where it was not kept) with the target `native` for one thread and batch 1, and times it interleaved with
the dense network compiled the same way and with the dense network in ONNX Runtime.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from networks import cifar, resnet
from torch import nn

import abridged as ab

Method = Callable[[nn.Module, float, ab.Data], object]
Cells = dict[str, dict[str, Any]]
SPARSITIES = (0.8, 0.9, 0.7, 0.5, 0.6)  # in the order in which they are run
TIMED = (0.8, 0.9)


def by(criterion: str, allocation: str, **options: Any) -> Method:
    return lambda model, sparsity, data: ab.prune(
        model, sparsity, criterion=criterion, allocation=allocation, data=data, samples=1024, **options
    )


METHODS: dict[str, Method] = {
    "magnitude, uniform": by("magnitude", "uniform"),
    "magnitude, global": by("magnitude", "global"),
    "LAMP": by("lamp", "global"),
    "magnitude, ERK": by("magnitude", "erk"),
    "Wanda": by("wanda", "uniform"),
    "least squares, LAMP + BN": by("lamp", "global", solver="least-squares", reestimate=True),
    "OBS, LAMP + BN": by("lamp", "global", solver="obs", reestimate=True),
}


def key(depth: int, method: str, sparsity: float) -> str:
    return f"ResNet-{depth} {method} {sparsity}" if sparsity else f"ResNet-{depth} dense"


def kept(options: argparse.Namespace, name: str) -> Path:
    """Where the pruned network of a cell lies."""
    return Path(options.results.with_suffix("")) / (name.replace(" ", "_").replace(",", "") + ".safetensors")


def write(path: Path, cells: Cells) -> None:
    path.write_text(json.dumps(dict(sorted(cells.items())), indent=1) + "\n")


def run(options: argparse.Namespace, cells: Cells) -> None:
    """Prune and evaluate what is not there yet."""
    data = cifar(options.data / "cifar10")
    chosen = {name: method for name, method in METHODS.items() if any(part in name for part in options.methods)}
    jobs = [(depth, "", 0.0) for depth in options.networks]
    jobs += [(d, name, s) for s in options.sparsities for d in options.networks for name in chosen]
    for depth, method, sparsity in jobs:
        name = key(depth, method, sparsity)
        if name in cells:
            continue
        model, start = resnet(depth, options.data / "weights"), time.process_time()
        if sparsity:
            METHODS[method](model, sparsity, data)
        seconds = time.process_time() - start
        path = kept(options, name)
        path.parent.mkdir(exist_ok=True)
        ab.save(model, path)
        # Channels last: PyTorch's convolutions are a quarter faster so, and the arithmetic is the same.
        score = ab.evaluate(model.to(memory_format=torch.channels_last), data, "test", 250)
        cells[name] = {"accuracy": score.value, "prune_cpu_seconds": seconds}
        write(options.results, cells)
        print(f"{name}: {100 * score.value:.2f} % ({seconds:.1f} s of processor time to prune)", flush=True)


def clock(options: argparse.Namespace, cells: Cells) -> None:
    """Compile and time the networks that are not timed yet."""
    data = cifar(options.data / "cifar10")
    for depth in options.networks:
        dense = resnet(depth, options.data / "weights")
        for sparsity in TIMED:
            for method in METHODS:
                name = key(depth, method, sparsity)
                cell, path = cells.get(name), kept(options, name)
                if cell is None or "ms" in cell:
                    continue
                model = resnet(depth, options.data / "weights")
                if path.exists():
                    ab.load_into(model, path)
                else:
                    METHODS[method](model, sparsity, data)
                cells[name] = cell | timed(model, dense)
                write(options.results, cells)
                print(f"{name}: {cells[name]}", flush=True)


def timed(model: nn.Module, dense: nn.Module) -> dict[str, float]:
    """Milliseconds of a pruned network, compiled, beside the dense one, and how much of the promise became true."""
    with tempfile.TemporaryDirectory() as folder:
        artifact = ab.deploy(model, torch.zeros(1, 3, 32, 32), target="native", out=folder, threads=1)
        book = ab.measure(artifact, against=[dense, "native", "onnxruntime"], source=model, seconds=1.0)
    ours, _, native, runtime = book.contenders
    times = {"ms": ours, "dense_ms": native, "onnxruntime_ms": runtime}
    promise, real = book.promised(native.name), book.realised(native.name)
    return {
        **{name: each.practice.latency.median_ms for name, each in times.items() if each.practice.latency},
        **({"theory": promise[1], "realised": real[1]} if promise and real else {}),
    }


def table(options: argparse.Namespace, cells: Cells) -> None:
    """Accuracy by method and sparsity; for two sparsities also milliseconds and realised."""
    order = sorted(SPARSITIES)
    for depth in options.networks:
        dense = cells.get(key(depth, "", 0))
        title = f"ResNet-{depth} (dense {100 * dense['accuracy']:.2f} %)" if dense else f"ResNet-{depth}"
        times = [f"ms at {s:.0%} | realised" for s in TIMED]
        print("| " + " | ".join([title, *(f"{s:.0%}" for s in order), *times]) + " |")
        print("|---" * (1 + len(order) + 2 * len(TIMED)) + "|")
        for method in METHODS:
            row = {s: cells.get(key(depth, method, s)) for s in order}
            texts = [f"{100 * cell['accuracy']:.2f}" if cell else "not run" for cell in row.values()]
            for sparsity in TIMED:
                cell = row[sparsity]
                timed = cell is not None and "ms" in cell
                texts.append(f"{cell['ms']:.2f} | {cell['realised']:.0%}" if cell and timed else "not run | not run")
            print("| " + " | ".join([method, *texts]) + " |")
        print()


COMMANDS = {"run": run, "time": clock, "table": table}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--data", type=Path, default=Path("data"), help="holds cifar10/ and weights/")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--networks", type=int, nargs="+", default=[20, 56], choices=[20, 56])
    parser.add_argument("--sparsities", type=float, nargs="+", default=list(SPARSITIES))
    parser.add_argument("--methods", nargs="+", default=[""], help="parts of names of methods")
    options = parser.parse_args()
    torch.set_num_threads(1)
    COMMANDS[options.command](options, json.loads(options.results.read_text()) if options.results.exists() else {})


if __name__ == "__main__":
    main()
