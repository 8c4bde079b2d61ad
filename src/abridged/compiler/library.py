"""A built network in this process: the shared library with its weights, arena and threads, through ctypes.

This file needs numpy alone. Every artifact carries it as run.py, which runs the network where nothing else is installed:
`python run.py x.npy` writes output0.npy …; from Python, `Network("folder")(x)` gives the list of outputs."""

from __future__ import annotations

import _ctypes
import ctypes
import hashlib
import json
import mmap
import os
import platform
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_Task = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long)


class LibraryError(RuntimeError):
    """The network cannot run here or now: the text says why, in one line."""


def cpu_line(label: str) -> str:
    """What Linux says of this CPU under a label of /proc/cpuinfo; "" where it does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == label), "")


def cpu_flags() -> frozenset[str]:
    """Instruction sets of this CPU as Linux names them; none where the system does not say."""
    letters = cpu_line("isa").partition("_")[0].removeprefix("rv64")  # RISC-V: one letter each
    return frozenset([*(cpu_line("flags") or cpu_line("Features")).split(), *letters])


def require_cpu(directory: Path) -> None:
    """Raises `LibraryError` on a machine that lacks what the library was built for: it would die of an illegal instruction."""
    machine, *needed = (directory / "cpu.txt").read_text().split()
    here, flags = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine()), cpu_flags()
    if machine != here:
        raise LibraryError(f"was built for {machine}, and this is {here}; build it again here, or run it there")
    if flags and (missing := [flag for flag in needed if flag not in flags]):
        raise LibraryError(f"was built for a CPU that has {missing[0]}, which this one lacks; build it again here")


HUGE = 2 << 20  # bytes of a huge page


def aligned(size: int) -> Array:
    """Zero bytes that begin with a page, on huge pages where the system has them: rows are many pages apart."""
    whole = -(-size // HUGE) * HUGE if size >= HUGE // 2 else max(size, 1)
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    memory = mmap.mmap(-1, whole + HUGE if whole >= HUGE else whole, **private)  # shared memory gets no huge pages
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    found = np.frombuffer(memory, np.uint8)
    start = -found.ctypes.data % HUGE if whole >= HUGE else 0
    return found[start : start + size]


_versions: dict[Path, list[tuple[int, ...]]] = {}  # of each file that was loaded here, in order


def _load(file: Path) -> ctypes.CDLL:
    """The library in a file as it is now.

    The system's loader knows what it has loaded by the name, and would give the old library where another was built in
    its place: each version of a file gets a spelling of its own ("net/././model.so")."""
    status, seen = file.stat(), _versions.setdefault(file, [])
    version = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
    if version not in seen:
        seen.append(version)
    try:
        return ctypes.CDLL(f"{file.parent}/{'./' * seen.index(version)}{file.name}")
    except OSError as error:
        raise LibraryError(f"cannot be loaded: {error}") from None


class Library:
    """One call runs at a time; the GIL is free while it does. Threads end and code goes with `close`, or with the object."""

    def __init__(self, directory: Path, threads: int) -> None:
        self._pool = ctypes.c_void_p()
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._library = _load(directory.resolve() / "model.so")
        self._library.model_arena_bytes.restype = ctypes.c_long
        self._library.pool_open.restype = ctypes.c_void_p
        self._weights = _read(directory / "weights.bin")
        self._arena = aligned(self._library.model_arena_bytes())
        self._library.model_prepare(_pointer(self._arena))
        self._parallel_for = ctypes.cast(self._library.pool_run, ctypes.c_void_p)
        self._pool = ctypes.c_void_p(self._library.pool_open(threads))
        if not self._pool:
            raise LibraryError(f"{threads} threads could not be started; ask for fewer")

    def run(self, inputs: Sequence[Array], outputs: Sequence[Array], parallel_for: Any = None) -> None:
        """Raises `LibraryError` when it is closed, and in a process that was forked since it was loaded: threads stay behind."""
        if os.getpid() != self._process:
            raise LibraryError("was loaded before this process was forked; load it again here")
        with self._lock:
            if not self._pool:
                raise LibraryError("is closed; load it again")
            self._library.model_run(
                (ctypes.c_void_p * len(inputs))(*(array.ctypes.data for array in inputs)),
                (ctypes.c_void_p * len(outputs))(*(array.ctypes.data for array in outputs)),
                _pointer(self._weights),
                _pointer(self._arena),
                parallel_for or self._parallel_for,
                self._pool,
            )

    def choose(self, choices: Sequence[int]) -> None:
        """Which of its choices each step takes from now on, in a library that was built with all of them."""
        (ctypes.c_int * len(choices)).in_dll(self._library, "model_choices")[:] = list(choices)

    def step_times(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> list[float]:
        """Milliseconds of each step of one run, by a clock around each parallel_for."""
        times: list[float] = []

        def timed(pool: int, task: int, args: int, count: int) -> None:
            start = time.perf_counter()
            self._library.pool_run(*map(ctypes.c_void_p, (pool, task, args)), ctypes.c_long(count))
            times.append(1e3 * (time.perf_counter() - start))

        self.run(inputs, outputs, _Task(timed))
        return times

    def close(self) -> None:
        """End the threads; a forked process never had them. A second close does nothing."""
        if os.getpid() != self._process:
            return
        with self._lock:
            pool, self._pool = self._pool, ctypes.c_void_p()
            if pool:
                self._library.pool_close(pool)
                _ctypes.dlclose(self._library._handle)

    def __del__(self) -> None:
        with suppress(Exception):  # of an object that was never whole, or while Python ends
            self.close()


class Network:
    """An artifact folder as a function of its flat inputs, by default on all cores that this process may use.

    Raises `LibraryError` for what is no such folder, for altered files and on another machine."""

    def __init__(self, directory: str | os.PathLike[str], threads: int | None = None) -> None:
        if threads is not None and (type(threads) is not int or threads < 1):
            raise ValueError(f"threads must be a whole number of at least 1, not {threads!r}")
        directory = Path(directory)
        manifest = _manifest(directory / "abridged.json")
        if manifest["target"] != "native":
            raise LibraryError(f"{directory}: is an artifact of target {manifest['target']}; this runs target native")
        for name in ("cpu.txt", "model.so", "weights.bin"):
            with open(directory / name, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != manifest["files"][name]["sha256"]:
                    raise _altered(directory / name)
        require_cpu(directory)
        self._inputs, self._outputs = manifest["signature"]["inputs"], manifest["signature"]["outputs"]
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._library = Library(directory, threads or cores)

    def __call__(self, *inputs: Array) -> list[Array]:
        """Raises `ValueError` for a wrong count, shape or dtype."""
        given, wanted = (
            [(list(np.shape(x)), str(getattr(x, "dtype", type(x).__name__))) for x in inputs],
            [(p["shape"], p["dtype"]) for p in self._inputs],
        )
        if given != wanted:
            raise ValueError(f"the network takes {wanted}, not {given}")
        outputs = [np.empty(port["shape"], port["dtype"]) for port in self._outputs]
        self._library.run([np.ascontiguousarray(x) for x in inputs], outputs)
        return outputs

    def close(self) -> None:
        self._library.close()


def _manifest(file: Path) -> Any:
    """abridged.json, if its checksum is that of all the rest: shapes say how far C writes."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise LibraryError(f"{file.parent}: is no artifact of Abridged: {file.name}: {error.strerror}") from None
    try:
        manifest = json.loads(content)
        checksum = manifest.pop("checksum")
    except (ValueError, AttributeError, KeyError):
        raise _altered(file) from None
    rest = json.dumps(manifest, separators=(",", ":"), ensure_ascii=False)
    if hashlib.sha256(rest.encode()).hexdigest() != checksum:
        raise _altered(file)
    return manifest


def _altered(file: Path) -> LibraryError:
    return LibraryError(f"{file}: is not the file that was built; build or copy the artifact again")


def _read(file: Path) -> Array:
    """A file's bytes, on pages of their own."""
    content = aligned(file.stat().st_size)
    with open(file, "rb", buffering=0) as stream:
        view, filled = content.data, 0
        while count := stream.readinto(view[filled:]):
            filled += count
    return content


def _pointer(array: Array) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _main(files: Sequence[str]) -> None:
    if not files or {"-h", "--help"} & {*files}:
        print(
            f"usage: python {sys.argv[0]} INPUT.npy ..., which writes output0.npy ...",
            file=None if files else sys.stderr,
        )
        sys.exit(0 if files else 2)
    for i, output in enumerate(Network(Path(__file__).parent)(*map(np.load, files))):
        np.save(f"output{i}.npy", output)
        print(f"output{i}.npy: {output.dtype}{list(output.shape)}")


if __name__ == "__main__":
    try:
        _main(sys.argv[1:])
    except (LibraryError, OSError, ValueError, EOFError) as error:
        sys.exit(f"run.py: {error}")
