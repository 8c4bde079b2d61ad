"""Where numbers were taken: the machine and the versions that made them, and nothing that names a person or a place."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import psutil

from abridged.measurement.records import Environment
from abridged.targets.artifact import thread_count

PACKAGES = ("torch", "numpy", "onnx", "onnxruntime", "openvino")
CPUINFO = Path("/proc/cpuinfo")


def environment(threads: int | None = None) -> Environment:
    """This machine, now. `threads`: how many the measured calls may use (all cores of this process by default)."""
    cores = thread_count(None)
    return Environment(
        cpu=cpu_name(),
        cores=cores,
        threads=threads or cores,
        memory=psutil.virtual_memory().total,
        platform=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        versions=versions(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def cpu_name() -> str:
    """The processor as it calls itself, or the architecture where it does not."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, [*named, platform.processor(), platform.machine()]), "unknown")


def versions() -> dict[str, str]:
    """Of Abridged and of every package that computes, where it is installed."""
    from abridged import __version__

    found = {"abridged": __version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
