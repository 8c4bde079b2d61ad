"""C sources to a shared library, with whatever C compiler is there."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from abridged.compiler.cpus import CPUS, KNOWN, cpu_named, flags_of, is_zig
from abridged.compiler.library import cpu_flags, cpu_line
from abridged.compiler.plan import Machine
from abridged.errors import AbridgedError, InputError, expect

FLAGS = (
    "-O3",
    "-std=gnu11",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
)


ZIG = (sys.executable, "-m", "ziglang", "cc")

# Instruction sets that a compiler may use on its own: its macro, without underscores around, and Linux's name.
_SETS = {
    **{
        name: name.lower()
        for name in ["SSSE3", "SSE4_1", "SSE4_2", "POPCNT", "MOVBE", "AVX", "AVX2", "FMA", "F16C", "BMI2", "AVX512F", "AVX512BW", "AVX512CD", "AVX512DQ", "AVX512VL", "AVX512VBMI", "AVX512IFMA"]
    },
    "BMI": "bmi1", "LZCNT": "abm", "AVX512VNNI": "avx512_vnni", "AVX512BF16": "avx512_bf16", "AVX512FP16": "avx512_fp16",
    "AVX512VBMI2": "avx512_vbmi2", "AVX512BITALG": "avx512_bitalg", "AVX512VPOPCNTDQ": "avx512_vpopcntdq",
    "AVXVNNI": "avx_vnni", "ARM_NEON": "asimd", "ARM_FEATURE_DOTPROD": "asimddp", "ARM_FEATURE_SVE": "sve",
    "ARM_FEATURE_SVE2": "sve2", "ARM_FEATURE_FP16_VECTOR_ARITHMETIC": "asimdhp", "riscv_vector": "v",
}  # fmt: skip
_MACHINE = {"riscv": "riscv64"}


class CompilerError(AbridgedError):
    """The C compiler refused our sources: the text has its first error and where they are."""


def find_compiler(cc: str | None = None, cpu: str = "native") -> tuple[str, ...]:
    """The command of a C compiler for a CPU: `cc`; for this kind of machine $CC, cc, gcc, clang; for another GNU's cross
    compiler; or the ziglang package, which builds for all of them. Raises `InputError` that says how to get one."""
    found = cpu_named(cpu)
    named = cc or ("" if found.foreign else os.environ.get("CC"))
    if named:
        command = command_of(named)
        if shutil.which(command[0]) is None:
            raise InputError(f"C compiler '{command[0]}' was not found; name one that is installed with --cc or $CC")
        return command
    for name in (f"{found.prefix}gcc",) if found.foreign else ("cc", "gcc", "clang"):
        if shutil.which(name):
            return (name,)
    if importlib.util.find_spec("ziglang"):
        return ZIG
    if found.foreign:
        raise InputError(
            f"cpu '{cpu}' needs a cross compiler and found none; install {found.prefix}gcc (Debian: {found.package}), "
            "`pip install 'abridged[zig]'`, or name one with --cc"
        )
    raise InputError("no C compiler was found; install gcc or clang, or `pip install 'abridged[zig]'`")


def command_of(text: str) -> tuple[str, ...]:
    """The words of a compiler's command, as a shell reads them. Raises `InputError` where there are none."""
    expect(text, str, "cc must be a command")
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise InputError(f"C compiler {text!r}: {error}; name one with --cc or $CC") from None
    if not words:
        raise InputError(f"C compiler {text!r}: is no command; name one with --cc or $CC")
    return words


def machine_flags(compiler: Sequence[str], cpu: str = "native") -> tuple[str, ...]:
    """Flags of this compiler for a CPU; `native` is this one, a name that we do not know is the compiler's own."""
    wide = cpu == "native" and "avx512f" in cpu_flags()
    return (*flags_of(compiler, cpu), *(("-mprefer-vector-width=512",) if wide else ()))


def machine_of(needed: Sequence[str]) -> Machine:
    """A machine with an operating system and such instructions, with vectors as `simd.h` takes them; of RISC-V's, the shortest."""
    machine, *sets = needed
    if machine == "x86_64":
        return Machine(32, 16, True) if "avx512f" in sets else Machine(16, 8 if "avx" in sets else 4, True)
    return Machine(32, 1 if machine == "riscv64" and "v" not in sets else 4, True)


def needed_cpu(compiler: Sequence[str], flags: Sequence[str]) -> list[str]:
    """What a machine must be and have to run what is built so, by the macros that the compiler defines: "x86_64", "avx2" …

    Raises `CompilerError` for a command that defines none."""
    defined = set(re.findall(r"#define __(\w+?)(?:__)? ", run([*compiler, *flags, "-dM", "-E", "-x", "c", os.devnull])))
    if not defined:
        raise CompilerError(f"{compiler[0]} is no C compiler: it defines no macros")
    machine = next((machine for machine in ("x86_64", "aarch64", "riscv", "arm") if machine in defined), "")
    return [_MACHINE.get(machine, machine), *sorted({flag for macro, flag in _SETS.items() if macro in defined})]


def require_cpu_named(cpu: str, compiler: Sequence[str], flags: Sequence[str]) -> list[str]:
    """`needed_cpu`, which raises `InputError` where the compiler does not know this CPU: with the names that are ours, unless it
    is one of them."""
    known = "name a compiler for it with --cc" if cpu in CPUS else KNOWN
    if shutil.which(compiler[0]) is None:
        raise InputError(
            f"cpu '{cpu}' is not one of ours, and '{compiler[0]}', which might know it, is not here; {known}"
        )
    try:
        return needed_cpu(compiler, flags)
    except CompilerError as error:
        raise InputError(f"cpu '{cpu}': {error}; {known}") from None


def cpu_name() -> str:
    """This CPU's model name, or its architecture where the system does not say."""
    return cpu_line("model name") or platform.machine()


def compiler_version(compiler: Sequence[str]) -> str:
    """The first line of what the compiler says of itself."""
    return run([*compiler, "--version"]).partition("\n")[0]


def build_library(
    sources: Mapping[str, int], directory: Path, out: Path, *, compiler: Sequence[str], flags: Sequence[str]
) -> None:
    """Compile each source of a directory, in its number of parts, side by side; link them into `out`.

    Raises `CompilerError` with the compiler's first error and where the sources are kept."""
    try:
        _compile(sources, directory, out, compiler, flags)
    except CompilerError as error:
        kept = tempfile.mkdtemp(prefix="abridged-sources-")
        shutil.copytree(directory, kept, dirs_exist_ok=True)
        raise CompilerError(f"{error}; the sources are in {kept}".replace(str(directory), kept)) from None


def _compile(
    sources: Mapping[str, int], directory: Path, out: Path, compiler: Sequence[str], flags: Sequence[str]
) -> None:
    with tempfile.TemporaryDirectory(prefix="abridged-build-") as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [(name, part, parts) for name, parts in sources.items() for part in range(parts)]

        def compile_one(job: tuple[str, int, int]) -> str:
            name, part, parts = job
            target = str(Path(folder) / f"{name}.{part}.o")
            split = (f"-DPART={part}", "-DLOCAL=") if parts > 1 else ()
            run([*compiler, *FLAGS, *flags, *split, "-c", str(directory / name), "-o", target])
            return target

        objects = list(pool.map(compile_one, jobs))
        run([*compiler, *flags, "-shared", "-o", str(out), *objects, "-lm", "-lpthread"])


def run(command: Sequence[str]) -> str:
    """What a command prints. Raises `CompilerError` when it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.splitlines()
        told = (line for line in lines if "error" in line and not line.startswith("collect2"))  # which only sums up ld
        first = next(told, lines[0] if lines else "no message")
        name = "zig cc" if is_zig(command) else command[0]
        raise CompilerError(f"{name} failed: {first.strip()}")
    return done.stdout
