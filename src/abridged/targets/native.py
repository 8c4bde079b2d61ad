"""Target `native`: the network as C, compiled for this machine, run through ctypes by a thread pool of its own."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from abridged import files
from abridged.compiler import library, threads
from abridged.compiler.build import (
    build_library,
    compiler_version,
    cpu_name,
    find_compiler,
    machine_flags,
    machine_of,
    require_cpu_named,
)
from abridged.compiler.cpus import cpu_named
from abridged.compiler.emit import emit
from abridged.compiler.library import Library, LibraryError, require_cpu
from abridged.compiler.pipeline import plan
from abridged.compiler.plan import Plan
from abridged.compiler.tune import tune
from abridged.errors import InputError
from abridged.graph.graph import Graph
from abridged.graph.structure import flatten
from abridged.kernels import families, preamble
from abridged.targets import Target
from abridged.targets.artifact import Array, Engine, Manifest, Signature, random_inputs, refusing
from abridged.targets.c import CEngine


class NativeEngine:
    """The library, and which module path each of its steps belongs to."""

    stands_in = False

    def __init__(self, directory: Path, manifest: Manifest, count: int) -> None:
        self._outputs = [(port.shape, np.dtype(port.dtype)) for port in manifest.signature.outputs]
        self._paths = (directory / "steps.txt").read_text().splitlines()
        with refusing(directory):
            require_cpu(directory)
            self._library = Library(directory, count)

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        outputs = [np.empty(shape, dtype) for shape, dtype in self._outputs]
        self._library.run(inputs, outputs)
        return outputs

    def layer_times(self, directory: Path, inputs: Sequence[Array], runs: int) -> dict[str, float]:
        """Median milliseconds by module path; a fused layer's time is with the layer it was fused into."""
        outputs = [np.empty(shape, dtype) for shape, dtype in self._outputs]
        times = np.array([self._library.step_times(inputs, outputs) for _ in range(runs)])
        total: defaultdict[str, float] = defaultdict(float)
        for i, path in enumerate(self._paths):
            total[path] += float(np.median(times[:, i :: len(self._paths)].sum(axis=1)))  # of all parts of a batch
        return dict(total)

    def close(self) -> None:
        self._library.close()


def write(graph: Graph, directory: Path, options: Mapping[str, Any]) -> None:
    if cpu_named(options["cpu"]).bare:
        raise InputError(f"cpu '{options['cpu']}' has no system that loads a library; deploy to target 'c'")
    compiler = find_compiler(options["cc"], options["cpu"])
    flags = machine_flags(compiler, options["cpu"])
    needed = require_cpu_named(options["cpu"], compiler, flags)

    def build(plan: Plan, folder: Path, every: bool = False) -> None:
        sources = emit(plan, every)
        for name, content in sources.files.items():
            files.write_atomic(folder / name, content)
        files.write_atomic(folder / "threads.c", threads.source())
        parts = {"model.c": sources.parts, "threads.c": 1}
        build_library(parts, folder, folder / "model.so", compiler=compiler, flags=flags)

    chosen = plan(graph, machine=replace(machine_of(needed), threads=options["threads"]))
    if options["tune"] and options["cpu"] == "native":
        signature, count = Signature.of(graph), chosen.parts.count if chosen.parts else 1
        inputs = [x[: len(x) // count] if count > 1 else x for x in flatten(random_inputs(signature))[0]]
        outputs = [np.empty(port.shape, port.dtype) for port in signature.outputs]  # with room for a part
        kernels = hashlib.sha256((preamble() + repr(families())).encode()).hexdigest()
        machine = " ".join((cpu_name(), compiler_version(compiler), *flags, kernels))
        part = tune(replace(chosen, parts=None), build, machine, options["threads"], inputs, outputs)
        chosen = replace(part, parts=chosen.parts)
    build(chosen, directory)
    files.write_atomic(directory / "run.py", Path(library.__file__).read_bytes())
    files.write_atomic(directory / "cpu.txt", " ".join(needed).encode())


def rehearse(directory: Path, manifest: Manifest, count: int) -> Engine:
    """What was built for another machine is checked by its sources, compiled for this one."""
    try:
        require_cpu(directory)
    except LibraryError:
        return CEngine(directory, manifest, count)
    return NativeEngine(directory, manifest, count)


TARGET = Target(
    write=write,
    start=NativeEngine,
    packages=("torch",),
    options={"cc": None, "cpu": "native", "tune": True},
    rehearse=rehearse,
    usage="python {0}/run.py x.npy",
)
