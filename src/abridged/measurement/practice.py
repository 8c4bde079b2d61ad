"""What networks deliver on this machine: bytes, latency, throughput, memory, load time, accuracy in the runtime itself.

- *Latency* is timed on all contenders in turn (`timing.py`): whole calls on the same inputs with the same number of
  threads, in this process. Between two contenders' turns is a pause, because the threads of one runtime go on waiting
  in a loop for some milliseconds and would take a core from the next.
- *Load time* and *peak memory* come from one fresh process each, and only where there are files to load: a module
  that lives in this process has neither.
- *Bytes* are those of every file the target needs; for a module, of its state dict as plain safetensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import nn

from abridged.data import Data
from abridged.data.evaluate import device_of, judging
from abridged.errors import InputError
from abridged.graph.structure import flatten, unflatten
from abridged.measurement.accuracy import accuracy
from abridged.measurement.fresh import measure_fresh
from abridged.measurement.records import Accuracy, Latency, Practice
from abridged.progress import bar
from abridged.targets.artifact import Artifact, thread_count
from abridged.timing import Samples, time_interleaved

Runnable = nn.Module | Artifact

WEIGHTS = "weights.safetensors"
REPEAT = 5  # runs per turn
PAUSE = 0.02  # seconds between turns


def practice(
    contenders: Mapping[str, Runnable],
    data: Data | None = None,
    *,
    example: Any = None,
    seconds: float = 2.0,
    min_runs: int = 20,
    threads: int | None = None,
    split: str = "test",
    fresh: bool = True,
) -> dict[str, Practice]:
    """Measure artifacts, and modules as PyTorch runs them, side by side. Deviations are the gate's to add.

    `example`: a tensor or the tuple of positional inputs; else a sample of `data`, else random numbers of the right
    shapes. `seconds`: of timing for each contender, at least `min_runs` runs. `threads`: None for those of the
    artifacts, which must agree. `split` of `data`: where accuracy is taken. `fresh=False` leaves out what needs
    processes of its own. Raises `InputError` for threads that differ, a module that is not on the CPU, and a module
    without any inputs to run on."""
    count = common_threads(contenders, threads)
    inputs = {name: inputs_of(name, contender, contenders, example, data) for name, contender in contenders.items()}
    found = {name: measure_fresh(each) for name, each in _artifacts(contenders, "Load in fresh processes", fresh)}
    with torch_threads(count):
        timed = _time(contenders, inputs, seconds, min_runs)
        scored = {name: _score(name, each, data, split) for name, each in contenders.items()}
    results = {}
    for name, contender in contenders.items():
        samples, alone = timed[name], found.get(name)
        files = contender.files if isinstance(contender, Artifact) else {WEIGHTS: weight_bytes(contender)}
        results[name] = Practice(
            target=contender.target if isinstance(contender, Artifact) else "pytorch",
            bytes=sum(files.values()),
            files=files,
            latency=latency(samples, count),
            throughput=_batch(inputs[name]) / samples.median * 1000 if samples.median else None,
            peak_memory=alone.peak_memory if alone else None,
            load_ms=alone.load_ms if alone else None,
            accuracy=scored[name],
        )
    return results


def latency(samples: Samples, threads: int) -> Latency:
    return Latency(
        median_ms=samples.median, p95_ms=samples.p95, spread=samples.spread, runs=samples.runs, threads=threads
    )


def common_threads(contenders: Mapping[str, Runnable], threads: int | None) -> int:
    """The number of threads with which every contender runs. Raises `InputError` when artifacts were loaded otherwise."""
    loaded = {name: each.threads for name, each in contenders.items() if isinstance(each, Artifact)}
    count = thread_count(threads or next(iter(loaded.values()), None))
    for name, own in loaded.items():
        if own != count:
            raise InputError(f"'{name}' was loaded with {own} threads, to be compared with {count}: load it with threads={count}")
    return count


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """PyTorch with this many threads, for the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def inputs_of(
    name: str, contender: Runnable, contenders: Mapping[str, Runnable], example: Any, data: Data | None
) -> tuple[Any, ...]:
    """Positional inputs for a contender: torch for a module, numpy for an artifact, so that nobody pays a conversion."""
    artifacts = [each for each in (contender, *contenders.values()) if isinstance(each, Artifact)]
    if example is None and data is not None:
        ports = artifacts[0].signature.inputs if artifacts else ()
        example = data.example_input(ports[0].shape[0] if ports and ports[0].shape else 1)
    if example is not None:
        call = example if isinstance(example, tuple) else (example,)
        if not artifacts or contender is not artifacts[0] or _fits(call, artifacts[0]):
            return _as(np.ndarray if isinstance(contender, Artifact) else torch.Tensor, call)
    if not artifacts:
        raise InputError(f"'{name}': a module is timed on inputs: give example or data")
    return _as(np.ndarray if isinstance(contender, Artifact) else torch.Tensor, artifacts[0].random_inputs())
