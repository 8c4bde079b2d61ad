"""How a kernel is called outside of a network: its own library, buffers between pages that may not be touched, poison."""

from __future__ import annotations

import ctypes
import mmap
import subprocess
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from abridged.compiler.build import find_compiler
from abridged.compiler.plan import SLACK
from abridged.errors import InputError
from abridged.kernels import Family, instantiate

MACHINES = {
    "native": ["-O2", "-march=native"],
    "four lanes": ["-O2", "-DLANES=4"],
    "two lanes": ["-O2", "-DLANES=2"],
    "scalar": ["-O2", "-DLANES=1"],
}
MACHINES["eight lanes, undefined behaviour traps"] = [
    "-O1",
    "-DLANES=8",
    "-fsanitize=undefined",
    "-fsanitize-undefined-trap-on-error",
]
WARNINGS = ["-Wall", "-Wextra", "-Wno-psabi", "-Wno-sign-compare", "-Wno-type-limits"]
PAGE = mmap.PAGESIZE
LIBC = ctypes.CDLL(None, use_errno=True)


class Args(ctypes.Structure):
    """`struct args` of simd.h."""

    _fields_ = [*((name, ctypes.c_void_p) for name in ("x", "y", "r", "w", "b", "mask")), ("band", ctypes.c_long)]


def guarded(floats: int, at_end: bool) -> np.ndarray:
    """So many floats, all NaN, that end where a page begins which nobody may touch; or that begin where such a page ends."""
    room = -(-4 * floats // PAGE) * PAGE
    memory = np.frombuffer(mmap.mmap(-1, room + 2 * PAGE), np.uint8)
    for page in (0, PAGE + room):
        assert LIBC.mprotect(ctypes.c_void_p(memory.ctypes.data + page), ctypes.c_size_t(PAGE), 0) == 0
    start = PAGE + (room - 4 * floats if at_end else 0)
    found = memory[start : start + 4 * floats].view(np.float32)
    found[:] = np.nan
    return found


def fenced(content: np.ndarray | bytes, at_end: bool, slack: int = SLACK) -> np.ndarray:
    """A guarded copy, and behind it the floats that a kernel may read but never use: they are NaN."""
    values = np.frombuffer(
        np.ascontiguousarray(content).tobytes() if isinstance(content, np.ndarray) else content, np.float32
    )
    found = guarded(len(values) + slack, at_end)
    found[: len(values)] = values
    return found


def instance(family: Family, symbol: str, macros: dict[str, int | str]) -> str:
    """The C text of one kernel, and of a function that says how many units of work it has."""
    return instantiate(family, symbol, macros) + f"long {symbol}_count(void) {{ return {symbol}_tasks; }}\n"


def build(text: str, folder: Path, flags: list[str]) -> ctypes.CDLL:
    """Without a warning."""
    (folder / "k.c").write_text(text)
    try:
        compiler = find_compiler()
    except InputError as absent:
        pytest.skip(str(absent))
    options = ["-std=gnu11", *WARNINGS, "-ffp-contract=fast", "-fno-math-errno", "-shared", "-fPIC", "-DLOCAL=", *flags]
    command = [*compiler, *options, str(folder / "k.c"), "-o", str(folder / "k.so"), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return ctypes.CDLL(str(folder / "k.so"))


def call(library: ctypes.CDLL, symbol: str, args: ctypes.Structure, split: int) -> None:
    """All units of work, in so many parts, the last one first."""
    function = getattr(library, symbol)
    function.argtypes = [ctypes.POINTER(type(args)), ctypes.c_long, ctypes.c_long]
    cuts = np.linspace(0, getattr(library, f"{symbol}_count")(), split + 1).astype(int)
    for begin, end in reversed(list(pairwise(cuts))):
        function(args, begin, end)
