"""Target `native`: the network as C, compiled for this machine, run through ctypes by a thread pool of its own."""

from __future__ import annotations

import ctypes
import mmap
import os
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from abridged import files
from abridged.compiler.build import build_library, find_compiler, machine_flags
from abridged.compiler.pipeline import compile_graph
from abridged.errors import InputError
from abridged.graph.graph import Graph
from abridged.targets import Target
from abridged.targets.artifact import Array, Manifest

LIBRARY = "model.so"
_THREADS_C = Path(__file__).parents[1] / "compiler" / "threads.c"
_Task = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long)


def aligned(size: int) -> Array:
    """Zero bytes that begin with a page, on huge pages where the system has them: rows are many pages apart."""
    memory = mmap.mmap(-1, max(size, 1))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)


class NativeEngine:
    """The library with its weights, arena and threads. One call runs at a time; the GIL is free while it does."""

    def __init__(self, directory: Path, manifest: Manifest, threads: int) -> None:
        self._library = ctypes.CDLL(str(directory / LIBRARY))
        self._library.pool_open.restype = ctypes.c_void_p
        self._weights = aligned((directory / "weights.bin").stat().st_size)
        self._weights[:] = np.fromfile(directory / "weights.bin", np.uint8)
        self._arena = aligned(int(self._library.model_arena_bytes()))
        self._library.model_prepare(self._pointer(self._arena))
        self._pool = ctypes.c_void_p(self._library.pool_open(threads))
        if not self._pool:
            raise InputError(f"{threads} threads could not be started; ask for fewer")
        self._outputs = [(port.shape, np.dtype(port.dtype)) for port in manifest.signature.outputs]
        self._lock, self._process = threading.Lock(), os.getpid()
        self._run_function = ctypes.cast(self._library.pool_run, ctypes.c_void_p)

    @staticmethod
    def _pointer(array: Array) -> ctypes.c_void_p:
        return ctypes.c_void_p(array.ctypes.data)

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        return self._call(inputs, self._run_function)

    def _call(self, inputs: Sequence[Array], parallel_for: Any) -> list[Array]:
        if os.getpid() != self._process:
            raise InputError("the artifact was loaded before this process was forked; load it again here")
        outputs = [np.empty(shape, dtype) for shape, dtype in self._outputs]
        with self._lock:
            if not self._pool:
                raise InputError("the artifact is closed; load it again with ab.load")
            self._library.model_run(
                (ctypes.c_void_p * len(inputs))(*(array.ctypes.data for array in inputs)),
                (ctypes.c_void_p * len(outputs))(*(array.ctypes.data for array in outputs)),
                self._pointer(self._weights),
                self._pointer(self._arena),
                parallel_for,
                self._pool,
            )
        return outputs

    def layer_times(self, directory: Path, inputs: Sequence[Array], runs: int) -> dict[str, float]:
        """Median milliseconds by module path: a clock around each step's parallel_for."""
        paths = (directory / "steps.txt").read_text().splitlines()
        times: list[list[float]] = [[] for _ in paths]
        step = 0

        def timed(pool: int, task: int, args: int, count: int) -> None:
            nonlocal step
            start = time.perf_counter()
            self._library.pool_run(*map(ctypes.c_void_p, (pool, task, args)), ctypes.c_long(count))
            times[step % len(paths)].append(1e3 * (time.perf_counter() - start))
            step += 1

        for _ in range(runs):
            self._call(inputs, _Task(timed))
        total: defaultdict[str, float] = defaultdict(float)
        for path, samples in zip(paths, times, strict=True):
            total[path] += statistics.median(samples)
        return dict(total)

    def close(self) -> None:
        with self._lock:
            pool, self._pool = self._pool, ctypes.c_void_p()
            if pool and os.getpid() == self._process:
                self._library.pool_close(pool)


def write(graph: Graph, directory: Path, options: Mapping[str, Any]) -> None:
    compiler = find_compiler(options["cc"])
    sources = compile_graph(graph)
    for name, content in sources.files.items():
        files.write_atomic(directory / name, content)
    files.write_atomic(directory / "threads.c", _THREADS_C.read_bytes())
    build_library(
        {"model.c": sources.parts, "threads.c": 1},
        directory,
        directory / LIBRARY,
        compiler=compiler,
        flags=machine_flags(options["cpu"]),
    )


TARGET = Target(
    write=write,
    start=NativeEngine,
    packages=("torch",),
    options={"cc": None, "cpu": "native", "tune": True},
)
