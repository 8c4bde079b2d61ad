"""CPUs by name: what each asks of a compiler, and how a compiler that builds for it is found."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from abridged.errors import InputError, expect
from abridged.tables import Table

_MACHINES = {"AMD64": "x86_64", "arm64": "aarch64"}


@dataclass(frozen=True, slots=True)
class Cpu:
    """Flags of GCC and Clang, those of `zig cc`, and the prefix of GNU's cross compilers with Debian's package of them.

    `machine` is what `platform.machine()` says there; "" for whatever machine the compiler is at home on."""

    flags: tuple[str, ...]
    zig: tuple[str, ...]
    machine: str = ""
    prefix: str = ""
    package: str = ""

    @property
    def foreign(self) -> bool:
        """Whether this machine is of another kind."""
        return self.machine not in ("", this_machine())

    @property
    def bare(self) -> bool:
        """Whether no operating system is there that could load a library."""
        return self.machine == "arm"


CPUS: Table[Cpu] = Table("CPU")

CPUS.entry("native")(Cpu(("-march=native",), ("-mcpu=native",)))
CPUS.entry("generic")(Cpu((), ("-mcpu=baseline",)))
for _level in ("x86-64", "x86-64-v2", "x86-64-v3", "x86-64-v4"):
    _wide = ("-mprefer-vector-width=512",) if _level.endswith("v4") else ()
    _zig = ("-target", "x86_64-linux-gnu", f"-mcpu={_level.replace('-', '_')}")
    CPUS.entry(_level)(
        Cpu((f"-march={_level}", *_wide), (*_zig, *_wide), "x86_64", "x86_64-linux-gnu-", "gcc-x86-64-linux-gnu")
    )
CPUS.entry("aarch64")(
    Cpu(
        ("-march=armv8-a",),
        ("-target", "aarch64-linux-gnu", "-mcpu=generic"),
        "aarch64",
        "aarch64-linux-gnu-",
        "gcc-aarch64-linux-gnu",
    )
)
for _name, _march, _mcpu in (("riscv64", "rv64gc", ""), ("riscv64-v", "rv64gcv", "+v")):
    CPUS.entry(_name)(
        Cpu(
            (f"-march={_march}",),
            ("-target", "riscv64-linux-musl", f"-mcpu=generic_rv64+m+a+f+d+c{_mcpu}"),
            "riscv64",
            "riscv64-linux-gnu-",
            "gcc-riscv64-linux-gnu",
        )
    )
for _core, _fpu in {"m0": "", "m3": "", "m4": "fpv4-sp-d16", "m7": "fpv5-sp-d16", "m33": "fpv5-sp-d16"}.items():
    _float = ("-mfloat-abi=hard", f"-mfpu={_fpu}") if _fpu else ("-mfloat-abi=soft",)
    _zig_core = f"-mcpu=cortex_{_core}"
    CPUS.entry(f"cortex-{_core}")(
        Cpu(
            (f"-mcpu=cortex-{_core}", "-mthumb", *_float),
            ("-target", f"thumb-freestanding-eabi{'hf' if _fpu else ''}", _zig_core),
            "arm",
            "arm-none-eabi-",
            "gcc-arm-none-eabi",
        )
    )


KNOWN = f"name {', '.join(CPUS)}, or a CPU that the compiler knows"


def cpu_named(name: str) -> Cpu:
    """An entry of the table; any other name is the compiler's own for a CPU of this kind of machine ("znver3")."""
    expect(name, str, "cpu must be a name")
    if not name.strip():
        raise InputError(f"cpu '{name}': is no name; {KNOWN}")
    if name in CPUS:
        return CPUS[name]
    return Cpu((f"-march={name}",), (f"-mcpu={name.replace('-', '_')}",))


def this_machine() -> str:
    """The kind of machine that this is, as Linux calls it."""
    return _MACHINES.get(platform.machine(), platform.machine())


def is_zig(compiler: Sequence[str]) -> bool:
    """Whether a command is `zig cc`, whose names of CPUs are its own."""
    return "ziglang" in compiler or PurePath(compiler[0]).stem == "zig"


def flags_of(compiler: Sequence[str], cpu: str) -> tuple[str, ...]:
    """What this compiler has to be told to build for a CPU."""
    found = cpu_named(cpu)
    return found.zig if is_zig(compiler) else found.flags
