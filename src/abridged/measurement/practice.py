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

import safetensors.torch
import torch
from torch import nn

from abridged.data import Data
from abridged.data.evaluate import judging
from abridged.errors import InputError
from abridged.graph.structure import flatten, unflatten
from abridged.measurement.accuracy import accuracy, batch_of
from abridged.measurement.fresh import Fresh, measure_fresh
from abridged.measurement.records import Accuracy, Deviation, Latency, Practice
from abridged.progress import bar, track
from abridged.targets.artifact import Artifact, thread_count
from abridged.timing import Samples, time_interleaved

Runs = nn.Module | Artifact

WEIGHTS = "weights.safetensors"
REPEAT = 5  # runs per turn
PAUSE = 0.02  # seconds between turns


def practice(
    contenders: Mapping[str, Runs],
    data: Data | None = None,
    *,
    example: Any = None,
    seconds: float = 2.0,
    min_runs: int = 20,
    threads: int | None = None,
    split: str = "test",
    fresh: bool = True,
    deviations: Mapping[str, Deviation] | None = None,
) -> dict[str, Practice]:
    """Measure artifacts, and modules as PyTorch runs them, side by side. `deviations` are what the gate found.

    `example`: a tensor or the tuple of positional inputs to time on; else samples of `data`, else random numbers, as
    for an artifact of other shapes. `seconds`: of timing for each contender, at least `min_runs` runs. `threads`: None for those of the
    artifacts, which must agree. `split` of `data`: where accuracy is taken. `fresh=False` leaves out what needs
    processes of its own. Raises `InputError` for threads that differ, a module that is not on the CPU, and a module
    without any inputs to run on."""
    count = common_threads(contenders, threads)
    calls = inputs_of(contenders, example, data)
    alone = _alone(contenders) if fresh else {}
    with torch_threads(count):
        timed = _time(contenders, calls, seconds, min_runs)
        scored = {name: _score(name, each, data, split) for name, each in contenders.items()}
    found = {}
    for name, contender in contenders.items():
        samples, files = timed[name], files_of(contender)
        found[name] = Practice(
            target=contender.target if isinstance(contender, Artifact) else "pytorch",
            bytes=sum(files.values()),
            files=files,
            latency=latency(samples, count),
            throughput=_batch(calls[name]) / samples.median * 1000 if samples.median else None,
            peak_memory=alone[name].peak_memory if name in alone else None,
            load_ms=alone[name].load_ms if name in alone else None,
            accuracy=scored[name],
            deviation=(deviations or {}).get(name),
        )
    return found


def latency(samples: Samples, threads: int) -> Latency:
    return Latency(
        median_ms=samples.median, p95_ms=samples.p95, spread=samples.spread, runs=samples.runs, threads=threads
    )


def common_threads(contenders: Mapping[str, Runs], threads: int | None) -> int:
    """The number of threads with which every contender runs. Raises `InputError` when artifacts were loaded otherwise."""
    loaded = {name: each.threads for name, each in contenders.items() if isinstance(each, Artifact)}
    count = thread_count(threads or next(iter(loaded.values()), None))
    for name, own in loaded.items():
        if own != count:
            raise InputError(
                f"'{name}' was loaded with {own} threads, to be compared with {count}: load it with threads={count}"
            )
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


def inputs_of(contenders: Mapping[str, Runs], example: Any, data: Data | None) -> dict[str, tuple[Any, ...]]:
    """Positional inputs for each contender: the same ones for all, but for an artifact of another shape.

    A module gets torch and an artifact numpy, so that nobody pays for a conversion. Raises `InputError` without any."""
    artifacts = [each for each in contenders.values() if isinstance(each, Artifact)]
    if artifacts:
        shared = call_of(artifacts[0], example, data)
    elif example is None and data is None:
        raise InputError("a module is timed on inputs: give example or data")
    else:
        shared = positional(data.example_input() if example is None and data else example)
    return {
        name: as_torch(shared)
        if isinstance(each, nn.Module)
        else as_numpy(shared if _fits(shared, each) else each.random_inputs())
        for name, each in contenders.items()
    }


def call_of(artifact: Artifact, example: Any = None, data: Data | None = None) -> tuple[Any, ...]:
    """Positional inputs that an artifact takes: the example, else samples of the data that fit, else random numbers.

    Raises `InputError` for an example that does not fit."""
    if example is not None:
        call = positional(example)
        if not _fits(call, artifact):
            raise InputError(f"example: does not fit {artifact.path.name}, which takes {artifact.signature}")
        return call
    call = () if data is None else positional(data.example_input(batch_of(artifact)))
    return call if _fits(call, artifact) else artifact.random_inputs()


def positional(inputs: Any) -> tuple[Any, ...]:
    """Inputs as the tuple of positional arguments."""
    return inputs if isinstance(inputs, tuple) else (inputs,)


def _fits(call: tuple[Any, ...], artifact: Artifact) -> bool:
    """Whether an artifact takes these inputs."""
    leaves, structure = flatten(call)
    ports = [(port.shape, port.dtype) for port in artifact.signature.inputs]
    given = [(tuple(leaf.shape), str(leaf.dtype).removeprefix("torch.")) for leaf in map(torch.as_tensor, leaves)]
    return structure == artifact.signature.input_structure and ports == given


def as_torch(call: tuple[Any, ...]) -> tuple[Any, ...]:
    """Positional inputs with every array a torch tensor on the CPU."""
    leaves, structure = flatten(call)
    made: tuple[Any, ...] = unflatten(structure, [torch.as_tensor(leaf).detach().cpu() for leaf in leaves])
    return made


def as_numpy(call: tuple[Any, ...]) -> tuple[Any, ...]:
    leaves, structure = flatten(as_torch(call))
    made: tuple[Any, ...] = unflatten(structure, [leaf.numpy() for leaf in leaves])
    return made


def _batch(call: tuple[Any, ...]) -> int:
    """The samples of one call: the first axis of the first input."""
    first = next(iter(flatten(call)[0]), None)
    return first.shape[0] if first is not None and first.ndim else 1


def _alone(contenders: Mapping[str, Runs]) -> dict[str, Fresh]:
    artifacts = {name: each for name, each in contenders.items() if isinstance(each, Artifact)}
    items = track(artifacts.items(), "Load in a fresh process", len(artifacts))
    return {name: measure_fresh(artifact) for name, artifact in items}


def _time(
    contenders: Mapping[str, Runs], calls: Mapping[str, tuple[Any, ...]], seconds: float, min_runs: int
) -> dict[str, Samples]:
    """Interleaved, each in turns of a few runs; modules in eval mode, which is put back afterwards."""
    several = len(contenders) > 1
    with ExitStack() as stack, bar("Time", total=100) as task:
        for each in contenders.values():
            if isinstance(each, nn.Module):
                _refuse_device(each, stack.enter_context(judging(each)))
        told = 0.0

        def progress(done: float) -> None:
            nonlocal told
            if (step := int(100 * done) - told) > 0:
                told += step
                task.advance(step)

        return time_interleaved(
            {name: _caller(each, calls[name]) for name, each in contenders.items()},
            seconds=seconds * len(contenders),
            min_runs=min_runs,
            repeat=REPEAT if several else 1,
            pause=PAUSE if several else 0.0,
            progress=progress,
        )


def _refuse_device(module: nn.Module, device: torch.device) -> None:
    if device.type != "cpu":
        raise InputError(f"{type(module).__name__} is on {device}: artifacts run on the CPU, compare with model.cpu()")


def _caller(contender: Runs, call: tuple[Any, ...]) -> Callable[[], object]:
    def in_torch() -> object:
        with torch.inference_mode():
            return contender(*call)

    return in_torch if isinstance(contender, nn.Module) else lambda: contender(*call)


def _score(name: str, contender: Runs, data: Data | None, split: str) -> Accuracy | None:
    return None if data is None else accuracy(contender, data, split, label=f"Accuracy of {name}")


def files_of(contender: Runs) -> dict[str, int]:
    """Bytes of every file that a contender needs. A module's are its state dict's, each tensor once, as safetensors."""
    if isinstance(contender, Artifact):
        return dict(contender.files)
    kept = contender.state_dict().keys()
    tensors = {**dict(contender.named_parameters()), **dict(contender.named_buffers())}  # each once
    state = {name: tensor.detach().clone() for name, tensor in tensors.items() if name in kept}
    return {WEIGHTS: len(safetensors.torch.save(state))}
