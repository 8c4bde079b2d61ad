"""How fast each kernel is alone: every family and tile, one thread, beside what this machine can do at most.

    python benchmarks/kernels.py                    # all
    python benchmarks/kernels.py --only rows_csr    # families whose name has this in it; or --cpu x86-64-v3

What to run comes from the front matter of the kernels: a family's op names the layers, its format the zeros that their
weights get, its tiles the variants. A layer is captured, lowered, packed and emitted as in any network, once for each
tile, and the tiles take turns. The layer's input comes from another layer, so that it lies as it would in a network; what is
timed is the layer's own step.

Kernels with weights: billions of multiply-accumulates a second, zeros not counted, against a loop that has everything in
registers. Others: bytes read and written a second, against a plain copy of as many bytes. Both are measured here, first.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from speed import peak_of_one_core
from torch import nn

import abridged as ab
from abridged import files, kernels
from abridged.compiler import build, threads
from abridged.compiler.emit import emit
from abridged.compiler.library import Library
from abridged.compiler.pipeline import plan
from abridged.compiler.plan import Machine, Plan, Step
from abridged.measurement.environment import environment
from abridged.timing import Samples


@dataclass(frozen=True)
class Layer:
    """One layer on maps of C × size²; size 0 is a vector of C numbers."""

    name: str
    channels: int
    size: int
    module: nn.Module


def layers(family: kernels.Family) -> list[Layer]:
    """Typical shapes of ResNet-50 and MobileNetV2 for the op of a family. Raises `KeyError` for a new op."""
    conv, pool = nn.Conv2d, nn.MaxPool2d
    op = "depthwise" if family.format == "taps" and family.op == "conv" else family.op
    strided = [Layer(f"{c} → {c}, 3×3, {n}², stride 2", c, n, conv(c, c, 3, 2, 1)) for c, n in ((128, 56), (512, 14))]
    return {
        "conv": [
            Layer("64 → 64, 3×3, 56²", 64, 56, conv(64, 64, 3, padding=1)),
            Layer("256 → 64, 1×1, 56²", 256, 56, conv(256, 64, 1)),
            Layer("1024 → 256, 1×1, 14²", 1024, 14, conv(1024, 256, 1)),
            Layer("512 → 512, 3×3, 7²", 512, 7, conv(512, 512, 3, padding=1)),
        ],
        "strided": strided,
        "depthwise": [Layer(f"{c}, 3×3, {n}²", c, n, conv(c, c, 3, padding=1, groups=c)) for c, n in ((32, 112), (384, 14))],
        "depthwise_strided": [
            Layer(f"{c}, 3×3, {n}², stride 2", c, n, conv(c, c, 3, 2, 1, groups=c)) for c, n in ((96, 112), (576, 14))
        ],
        "linear": [Layer(f"{i} → {o}", i, 0, nn.Linear(i, o)) for i, o in ((2048, 1000), (512, 512))],
        "pool": [
            Layer("max 3×3, 64 × 112², stride 2", 64, 112, pool(3, 2, 1)),
            Layer("average 2×2, 256 × 28², stride 2", 256, 28, nn.AvgPool2d(2)),
        ],
        "mean": [Layer("2048 × 7²", 2048, 7, nn.AdaptiveAvgPool2d(1))],
        "split": [Layer("128 × 56², phases of stride 2", 128, 56, conv(128, 8, 3, 2, 1))],
        "halo": [Layer("384 × 14² in two bands", 384, 14, conv(384, 384, 3, padding=1, groups=384))],
        "group_norm": [Layer("32 groups of 256 × 14²", 256, 14, nn.GroupNorm(32, 256))],
    }["strided" if family.strides == "only" else op] + (strided if family.strides == "too" else [])  # fmt: skip


def zeros(family: kernels.Family, tile: kernels.Tile) -> dict[str, Any] | None:
    """What `prune` does to the weights that a format is for; None where it stores zeros as any other weight."""
    if family.format == "blocks":
        return {"sparsity": 0.9, "pattern": f"block {tile['BR']}x{tile['BC']}"}
    if family.format == "nm":
        return {"sparsity": 1 - tile["N"] / tile["M"], "pattern": f"{tile['N']}:{tile['M']}"}
    dense = family.format == "none" or kernels.FORMATS[family.format].dense
    return None if dense else {"sparsity": 0.9}


@dataclass(frozen=True)
class Case:
    """A layer's plan, in which the step `at` has one choice of kernel."""

    layer: Layer
    plan: Plan
    at: int

    @property
    def step(self) -> Step:
        return self.plan.steps[self.at]

    @property
    def work(self) -> int:
        """Multiply-accumulates without zeros; bytes read and written where there are no weights."""
        macros = dict(self.step.choice.call.macros)
        if self.step.choice.call.family == "halo":  # each of two lines that meet is copied once
            return 4 * prod(int(macros[name]) for name in ("C", "YPITCH", "REACH")) * 4 * (int(macros["BANDS"]) - 1)
        shape = (1, self.layer.channels, *[self.layer.size] * 2)[: 4 if self.layer.size else 2]
        read, written = prod(shape), self.layer.module(torch.zeros(shape)).numel()
        if self.step.weight is None:
            return 4 * (read + (read if self.step.choice.call.family == "split" else written))
        return int(np.count_nonzero(self.step.weight)) * written // len(self.step.weight)


def cases(family: kernels.Family, layer: Layer, machine: Machine) -> list[Case]:
    """Every tile of a family that such a machine would consider for a layer."""
    found = []
    machine = replace(machine, threads=2) if family.op == "halo" else machine  # which would otherwise meet no other
    for tile in family.tiles:
        planned = _planned(layer, zeros(family, tile), machine)
        for at, step in enumerate(planned.steps):
            for choice in step.choices if step.node.path == "1" else ():
                if choice.call.family == family.name and dict(choice.tile) == dict(tile):
                    steps = list(planned.steps)
                    steps[at] = replace(step, choices=(choice,))
                    found.append(Case(layer, replace(planned, steps=tuple(steps)), at))
    return found


def _planned(layer: Layer, how: dict[str, Any] | None, machine: Machine) -> Plan:
    torch.manual_seed(0)
    first = nn.Conv2d(3, layer.channels, 1) if layer.size else nn.Linear(3, layer.channels)
    network = nn.Sequential(first, copy.deepcopy(layer.module)).eval()
    if how is not None:
        ab.prune(network, include=["1"], **how)
    x = torch.zeros(1, 3, *[layer.size] * 2) if layer.size else torch.zeros(1, 3)
    return plan(ab.capture(network, x), machine=machine)


def timed(every: Sequence[Case], flags: Sequence[str], seconds: float) -> list[Samples]:
    """Milliseconds of each case's step on one thread; the cases take turns, each in a library of its own."""
    compiler = build.find_compiler()
    with ExitStack() as stack:
        libraries = []
        for case in every:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            sources = emit(case.plan)
            for file, content in {**sources.files, "threads.c": threads.source()}.items():
                files.write_atomic(folder / file, content)
            parts = {"model.c": sources.parts, "threads.c": 1}
            build.build_library(parts, folder, folder / "model.so", compiler=compiler, flags=flags)
            libraries.append(Library(folder, 1))
            stack.callback(libraries[-1].close)
        size = every[0].layer.size
        given = np.random.default_rng(0).standard_normal(3 * max(1, size) ** 2).astype(np.float32)
        output = np.empty(max(case.plan.arena for case in every), np.float32)  # larger than any
        rounds, end = [], time.perf_counter() + seconds * len(every)
        while len(rounds) < 23 or time.perf_counter() < end:
            steps = (library.step_times([given], [output]) for library in libraries)
            rounds.append([times[case.at] for times, case in zip(steps, every, strict=True)])
    return [Samples(times) for times in zip(*rounds[3:], strict=True)]


def copied(size: int) -> float:
    """Bytes a second, read and written, of plain copies of so many in all; the fastest of many."""
    source, target, best = np.ones(size // 2, np.uint8), np.zeros(size // 2, np.uint8), float("inf")
    for _ in range(50):
        start = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - start)
    return 2 * (size // 2) / best


def row(family: kernels.Family, case: Case, samples: Samples, peak: float) -> str:
    rate = case.work / (samples.median * 1e-3)
    tile = " ".join(f"{name} {n}" for name, n in case.step.choice.tile) or "–"
    unit, most = ("GB/s", copied(case.work)) if case.step.weight is None else ("GMAC/s", peak)
    share = "–" if case.step.weight is None else f"{np.mean(case.step.weight == 0):.0%}"
    cells = (
        family.name, tile, case.layer.name, share, f"{1e3 * samples.median:.1f}", f"{samples.spread:.0%}",
        f"{rate / 1e9:.1f} {unit}", f"{rate / most:.0%}",
    )  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="families whose name has this in it")
    parser.add_argument("--cpu", default="native")
    parser.add_argument("--seconds", type=float, default=0.3, help="of timing for each row")
    options = parser.parse_args()
    torch.set_num_threads(1)
    compiler = build.find_compiler()
    flags = build.machine_flags(compiler, options.cpu)
    machine = build.machine_of(build.needed_cpu(compiler, flags))
    peak = peak_of_one_core(options.cpu)
    print(f"Peak of one core: {peak / 1e9:.1f} GMAC/s\n")
    print(
        "| kernel | tile | layer | zeros | µs | spread | rate | of peak |\n|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    for family in kernels.families().values():
        for layer in layers(family) if options.only in family.name else ():
            if every := cases(family, layer, machine):
                for case, samples in zip(every, timed(every, flags, options.seconds), strict=True):
                    print(row(family, case, samples, peak), flush=True)
    print("\n" + json.dumps(environment(1).model_dump()))


if __name__ == "__main__":
    main()
