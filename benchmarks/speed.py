"""Latency of compiled networks beside their rivals: one command prints the whole table.

    python benchmarks/speed.py                                  # two threads, batch 1
    python benchmarks/speed.py --only resnet50 --threads 1      # or --batch 16, --cpu x86-64-v3
    python benchmarks/speed.py --deepsparse VENV/bin/python     # a Python that has deepsparse 1.8
    python benchmarks/speed.py --layers                         # each layer's share of the machine's peak
    python benchmarks/speed.py --break-even                     # single layers by their share of zeros

Every ratio is ONNX Runtime's median, on the dense fp32 network, over the other's median, from one interleaved run in one
process tree; before each turn the threads of the others have fallen asleep. Beside it, "fastest tenth" is the ratio of the
tenth percentiles: what is left when nobody else uses the machine's cores or caches. Weights are random: none of the
runtimes looks at values, only at zeros.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import abridged as ab
from abridged import kernels
from abridged.compiler import build
from abridged.measurement.environment import environment
from abridged.measurement.theory import theory
from abridged.sources import load_model
from abridged.timing import Samples, percentile, time_interleaved


@dataclass(frozen=True)
class Case:
    """A row: the network, the share of zeros and where they are, and the ratio that we set ourselves."""

    network: str
    zeros: float
    must: float
    aim: float
    pointwise: bool = False

    @property
    def name(self) -> str:
        where = "pointwise " if self.pointwise else ""
        return f"{self.network.partition(':')[2]} " + (f"{where}{self.zeros:.0%} zeros" if self.zeros else "dense")


RESNET50, RESNET18 = "torchvision:resnet50", "torchvision:resnet18"
V1, V2 = "timm:mobilenetv1_100", "torchvision:mobilenet_v2"
CASES = (
    Case(RESNET50, 0, 1.05, 1.2),
    Case(RESNET50, 0.8, 2.2, 2.5),
    Case(RESNET50, 0.9, 4.0, 5.0),
    Case(RESNET50, 0.95, 6.0, 8.0),
    Case(V1, 0.9, 3.8, 5.0, pointwise=True),
    Case(V2, 0, 1.4, 1.7),
    Case(V2, 0.9, 3.2, 4.5, pointwise=True),
    Case(RESNET18, 0.9, 3.5, 4.5),
)


def network(case: Case) -> nn.Module:
    """With its zeros: "everywhere" is every convolution and linear layer but the stem, "pointwise" the 1×1 convolutions."""
    torch.manual_seed(0)
    model = load_model(case.network).eval()
    if case.zeros:
        layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
        stem = next(iter(layers))
        chosen = [n for n, m in layers.items() if n != stem and (not case.pointwise or _is_pointwise(m))]
        ab.prune(model, case.zeros, allocation="uniform", include=chosen)
    return model


def _is_pointwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)


# --- runtimes: a name → something to call -----------------------------------------------------------------------------

DEEPSPARSE = """
import sys, numpy, deepsparse
engine = deepsparse.Engine(sys.argv[1], batch_size=int(sys.argv[2]), num_cores=int(sys.argv[3]))
x = [numpy.ascontiguousarray(numpy.load(sys.argv[4]))]
print('ready', flush=True)
import time
for line in sys.stdin:
    start = time.perf_counter_ns()
    engine.run(x)
    print(time.perf_counter_ns() - start, flush=True)
"""


class DeepSparse:
    """An engine in another Python, asked through a pipe; the pipe's own time (some 20 µs) counts as the engine's.

    Its threads never sleep, so that the process is stopped while others are timed."""

    def __init__(self, python: str, file: Path, x: np.ndarray, threads: int) -> None:
        np.save(file.with_suffix(".npy"), x)
        command = [python, "-c", DEEPSPARSE, str(file), str(len(x)), str(threads), str(file.with_suffix(".npy"))]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        while (line := self._read()) != "ready":
            if not line:
                raise RuntimeError("deepsparse did not start; run it by hand to see why")
        self.park(True)

    def _read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def park(self, parked: bool) -> None:
        self.process.send_signal(signal.SIGSTOP if parked else signal.SIGCONT)

    def __call__(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self._read()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def _while_parked(rival: DeepSparse, call: Callable[[], object]) -> None:
    rival.park(True)
    call()


def _awake(rival: DeepSparse) -> None:
    rival.park(False)
    rival()


def artifact(model: nn.Module, x: torch.Tensor, out: Path, target: str, options: argparse.Namespace) -> Any:
    """Built once, then loaded."""
    if not (out / "abridged.json").exists():
        extra = {"cpu": options.cpu} if target == "native" else {}
        ab.deploy(model, x, target=target, out=out, threads=options.threads, **extra).close()
    return ab.load(out, threads=options.threads)


def measure(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    x = torch.randn(options.batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    folder = options.out / f"{case.name} batch {options.batch} threads {options.threads} {options.cpu}".replace(
        " ", "-"
    )
    model, dense = network(case), network(Case(case.network, 0, 0, 0))
    engines = {
        "native": artifact(model, x, folder / "native", "native", options),
        "ONNX Runtime": artifact(dense, x, folder / "onnxruntime", "onnxruntime", options),
    }
    if find_spec("openvino") and not case.zeros:
        engines["OpenVINO"] = artifact(dense, x, folder / "openvino", "openvino", options)
    given = x.numpy()
    calls: dict[str, Callable[[], object]] = {name: partial(engine, given) for name, engine in engines.items()}
    closing = list(engines.values())
    if options.deepsparse:
        # The sparse network as a plain ONNX file: DeepSparse finds the zeros itself.
        file = folder / "model.onnx"
        torch.onnx.export(model, (x,), str(file), dynamo=False, input_names=["x"], opset_version=13)
        rival = DeepSparse(options.deepsparse, file, given, options.threads)
        calls = {name: partial(_while_parked, rival, call) for name, call in calls.items()} | {
            "DeepSparse": partial(_awake, rival)
        }
        closing.append(rival)
    times = time_interleaved(calls, seconds=options.seconds, min_runs=30, repeat=5, pause=0.1)
    layers = engines["native"].layer_times((given,), runs=20) if options.layers else None
    for engine in closing:
        engine.close()
    return {"case": case, "times": times, "layers": layers, "model": model, "x": x}


# --- tables -----------------------------------------------------------------------------------------------------------


def row(case: Case, times: dict[str, Samples]) -> str:
    base = times["ONNX Runtime"].median
    ratio = base / times["native"].median
    verdict = "✓ aim" if ratio >= case.aim else "✓" if ratio >= case.must else "missed"
    rivals = ", ".join(
        f"{name} {base / times[name].median:.2f} ×" for name in times if name not in ("native", "ONNX Runtime")
    )
    spread = max(samples.spread for samples in times.values())
    quiet = {name: percentile(samples.ms, 0.1) for name, samples in times.items()}
    cells = (
        case.name, f"{times['native'].median:.2f}", f"{base:.2f}", f"**{ratio:.2f} ×**",
        f"{quiet['ONNX Runtime'] / quiet['native']:.2f} ×", f"{case.must} ×", f"{case.aim} ×", verdict, rivals or "–",
        f"{spread:.0%}",
    )  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def layer_table(result: dict[str, Any], peak: float) -> str:
    """Milliseconds of every layer, its multiply-accumulates without zeros, and the share of the peak that it reaches."""
    graph = ab.capture(result["model"], result["x"])
    counted = {layer.path: layer for layer in theory(graph).layers}
    lines = ["| layer | ms | effective MMAC | share of peak |", "|---|---|---|---|"]
    for path, ms in result["layers"].items():
        macs = counted[path].effective_macs if path in counted else 0
        lines.append(f"| {path} | {ms:.3f} | {macs / 1e6:.2f} | {macs / (ms * 1e-3) / peak:.0%} |")
    return "\n".join(lines)


LAYERS = (
    (64, 64, 56, 3),
    (256, 64, 56, 1),
    (128, 128, 28, 3),
    (1024, 256, 14, 1),
    (512, 512, 7, 3),
)  # I, O, size, kernel


def break_even(options: argparse.Namespace) -> None:
    """Single layers of ResNet-50 by their share of zeros: how many times faster than the same layer dense."""
    shares = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
    print(
        "| layer | " + " | ".join(f"{share:.0%} zeros" for share in shares) + " |\n" + "|---" * (len(shares) + 1) + "|"
    )
    for channels, outputs, size, kernel in LAYERS:
        x = torch.randn(1, channels, size, size)
        folder = options.out / f"layer-{channels}-{outputs}-{size}-{kernel}-threads-{options.threads}"
        engines = {}
        for share in (0.0, *shares):
            torch.manual_seed(0)
            layer = nn.Sequential(nn.Conv2d(channels, outputs, kernel, padding=kernel // 2), nn.ReLU()).eval()
            if share:
                ab.prune(layer, share)
            engines[share] = artifact(layer, x, folder / f"{share:.0%}", "native", options)
        given = x.numpy()
        calls = {str(share): partial(engine, given) for share, engine in engines.items()}
        times = time_interleaved(calls, seconds=options.seconds, min_runs=50, repeat=10, pause=0.01)
        for engine in engines.values():
            engine.close()
        cells = [f"{times['0.0'].median / times[str(share)].median:.2f} ×" for share in shares]
        print(f"| {channels} → {outputs}, {kernel}×{kernel}, {size}² | " + " | ".join(cells) + " |", flush=True)


PEAK = """
#include <stdio.h>
#include <time.h>
int main(void) {
  V sum[12], w = v_set(0.5f), x = v_set(1.0f);
  struct timespec a, b;
  double best = 0;
  for (int round = 0; round < 50; round++) {
    for (int i = 0; i < 12; i++) sum[i] = v_set((float)i);
    clock_gettime(CLOCK_MONOTONIC, &a);
    for (long n = 0; n < 1000000; n++)
      for (int i = 0; i < 12; i++) { sum[i] = sum[i] * w + x; __asm__ volatile("" : "+x"(sum[i])); }
    clock_gettime(CLOCK_MONOTONIC, &b);
    double seconds = (b.tv_sec - a.tv_sec) + 1e-9 * (b.tv_nsec - a.tv_nsec), rate = 12e6 * LANES / seconds;
    if (rate > best) best = rate;
  }
  printf("%g", best);
}
"""


def peak_of_one_core(cpu: str) -> float:
    """Multiply-accumulates per second that one thread reaches with everything in registers."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "peak.c"
        source.write_text(kernels.preamble() + PEAK)
        compiler = build.find_compiler()
        flags = ("-O3", *build.machine_flags(compiler, cpu))
        build.run([*compiler, *flags, str(source), "-o", f"{folder}/peak", "-lm"])
        return float(build.run([f"{folder}/peak"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--cpu", default="native")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--deepsparse", metavar="PYTHON")
    parser.add_argument("--layers", action="store_true")
    parser.add_argument("--break-even", action="store_true", help="single layers by their share of zeros, instead")
    parser.add_argument("--out", type=Path, default=Path("run/speed"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.break_even:
        break_even(options)
        return
    print("| network | native ms | ONNX Runtime ms | ratio | fastest tenth | must | aim | | rivals | spread |")
    print("|---" * 10 + "|", flush=True)
    results = []
    for case in CASES:
        if options.only in case.name:
            results.append(measure(case, options))
            print(row(case, results[-1]["times"]), flush=True)
    for result in results if options.layers else ():
        print(f"\n{result['case'].name}\n\n" + layer_table(result, options.threads * peak_of_one_core(options.cpu)))
    machine = environment(options.threads).model_dump()
    print("\n" + json.dumps(machine))


if __name__ == "__main__":
    sys.exit(main())
