"""C sources to a shared library, with whatever C compiler is there."""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from abridged.errors import AbridgedError, InputError

FLAGS = (
    "-O3",
    "-std=gnu11",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
)


class CompilerError(AbridgedError):
    """The C compiler refused our sources: the text has its first error and where they are."""


def find_compiler(cc: str | None = None) -> tuple[str, ...]:
    """The command of a C compiler: `cc`, $CC, cc, gcc, clang, or the ziglang package. Raises `InputError`."""
    named = cc or os.environ.get("CC")
    if named:
        command = tuple(shlex.split(named))
        if shutil.which(command[0]) is None:
            raise InputError(f"C compiler '{command[0]}' was not found; name one that is installed with --cc or $CC")
        return command
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return (name,)
    if importlib.util.find_spec("ziglang"):
        return (sys.executable, "-m", "ziglang", "cc")
    raise InputError(
        "target 'native' needs a C compiler and found none; install gcc or clang, or `pip install 'abridged[zig]'`"
    )


def machine_flags(cpu: str = "native") -> tuple[str, ...]:
    """Compiler flags for a CPU; `native` is this one, any other name is the compiler's own."""
    wide = "avx512f" in cpu_flags() if cpu == "native" else cpu == "x86-64-v4"
    return (f"-march={cpu}", *(("-mprefer-vector-width=512",) if wide else ()))


def vector_registers(cpu: str = "native") -> int:
    """How many vector registers a kernel's sums may fill: x86 before AVX-512 has 16, everything else 32."""
    wide = "avx512f" in cpu_flags() if cpu == "native" else cpu == "x86-64-v4"
    x86 = platform.machine() in ("x86_64", "AMD64", "i686") if cpu == "native" else cpu.startswith("x86")
    return 16 if x86 and not wide else 32


def cpu_flags() -> frozenset[str]:
    """Instruction sets of this CPU as Linux names them; none where the system does not say."""
    return frozenset(_cpu_line("flags").split())


def needed_flags(cpu: str) -> frozenset[str]:
    """What a CPU must have to run code built for `cpu`; a name of the compiler's own is taken on trust."""
    vector = frozenset({"avx", "avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512dq", "bmi2"})
    return cpu_flags() & vector if cpu == "native" else frozenset()


def cpu_name() -> str:
    """This CPU's model name, or its architecture where the system does not say."""
    return _cpu_line("model name") or platform.machine()


def _cpu_line(label: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(label)), "")


def compiler_version(compiler: Sequence[str]) -> str:
    """The first line of what the compiler says of itself."""
    return run([*compiler, "--version"]).partition("\n")[0]


def build_library(
    sources: Mapping[str, int], directory: Path, out: Path, *, compiler: Sequence[str], flags: Sequence[str]
) -> None:
    """Compile each source of a directory, in its number of parts, side by side; link them into `out`.

    Raises `CompilerError` with the compiler's first error."""
    with tempfile.TemporaryDirectory(prefix="abridged-build-") as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [(name, part, parts) for name, parts in sources.items() for part in range(parts)]

        def compile_one(job: tuple[str, int, int]) -> str:
            name, part, parts = job
            target = str(Path(folder) / f"{name}.{part}.o")
            split = (f"-DPART={part}", "-DLOCAL=") if parts > 1 else ()
            run([*compiler, *FLAGS, *flags, *split, "-c", str(directory / name), "-o", target])
            return target

        objects = list(pool.map(compile_one, jobs))
        run([*compiler, "-shared", "-o", str(out), *objects, "-lm", "-lpthread"])


def run(command: Sequence[str]) -> str:
    """What a command prints. Raises `CompilerError` when it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.splitlines()
        first = next((line for line in lines if "error" in line), lines[0] if lines else "no message")
        raise CompilerError(f"the C compiler failed: {first.strip()}  [{' '.join(command)}]")
    return done.stdout
