"""Load time and peak memory of an artifact in a process that has done nothing else: `python -m abridged.measurement.fresh`.

A process that measured before has its caches filled and its memory high. The child imports the runtime, notes its
memory, loads the artifact, calls it a few times, and prints one JSON line."""

from __future__ import annotations

import gc
import importlib
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter_ns

from pydantic import BaseModel, ConfigDict

from abridged.errors import GateError
from abridged.targets import TARGETS, load
from abridged.targets.artifact import Artifact, random_inputs, read_manifest

CALLS = 5
LIMIT = 600  # seconds until a child is given up


class Fresh(BaseModel):
    """What one fresh process found. `peak_memory` is in bytes above the idle process, None where the system (any but
    Linux) cannot say."""

    model_config = ConfigDict(frozen=True)

    load_ms: float
    peak_memory: int | None


def measure_fresh(artifact: Artifact) -> Fresh:
    """Load and run an artifact's folder in a new process. Raises `GateError` when it does not run there."""
    command = [sys.executable, "-m", __name__, str(Path(artifact.path).resolve()), str(artifact.threads)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=True, env=_environment())
    except subprocess.CalledProcessError as error:
        why = (error.stderr.strip().splitlines() or [f"exit status {error.returncode}"])[-1]
        raise GateError(f"{artifact.path}: does not run in a fresh process: {why}") from None
    except subprocess.TimeoutExpired:
        raise GateError(f"{artifact.path}: did not load and run within {LIMIT} s in a fresh process") from None
    return Fresh.model_validate_json(done.stdout.splitlines()[-1])


def _environment() -> dict[str, str]:
    """This process's, with this very package first: the child must not find another version of it."""
    package = str(Path(__file__).parents[2])
    rest = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([package, rest] if rest else [package])}


def observe(path: Path, threads: int) -> Fresh:
    """Load and run an artifact in this process, which should be a fresh one.

    Everything that is not the artifact's happens before the idle memory is noted: imports, and the inputs."""
    manifest = read_manifest(path)
    for package in TARGETS[manifest.target]().packages:
        if find_spec(package):
            importlib.import_module(package)
    inputs = random_inputs(manifest.signature)
    gc.collect()
    counts = _reset_peak()
    idle = _status("VmRSS") if counts else 0
    start = perf_counter_ns()
    artifact = load(path, threads)
    load_ms = (perf_counter_ns() - start) / 1e6
    for _ in range(CALLS):
        artifact(*inputs)
    peak = max(0, _status("VmHWM") - idle) if counts else None
    artifact.close()
    return Fresh(load_ms=load_ms, peak_memory=peak)


def _reset_peak() -> bool:
    """Let the highest memory use count from now; False where the system cannot. (`getrusage` will not do: its peak is
    the parent's where the parent was larger.)"""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status(key: str) -> int:
    """A size of this process in bytes, from Linux's own accounting."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


if __name__ == "__main__":
    print(json.dumps(observe(Path(sys.argv[1]), int(sys.argv[2])).model_dump()))
