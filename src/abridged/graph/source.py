"""Which line of the user's code something comes from, as "net.py:12"."""

from __future__ import annotations

import inspect
import re
import sysconfig
import traceback
from pathlib import Path

import torch
from torch import nn

# Frames below these directories are nobody's own code: torch, Python's library, and the tracing here.
_NOT_THEIRS = tuple(
    str(path) for path in (Path(torch.__file__).parent, sysconfig.get_path("stdlib"), Path(__file__).parent)
)


def line_of(stack: str) -> str:
    """The innermost line of the user's own code in a stack trace of torch.export; empty if there is none.

    >>> line_of('File "/home/ada/net.py", line 12, in forward')
    'net.py:12'
    """
    frames = re.findall(r'File "([^"]+)", line (\d+)', stack)
    return next((_short(file, line) for file, line in reversed(frames) if _theirs(file)), "")


def blame(error: BaseException, model: nn.Module) -> str:
    """The innermost line of the user's own code that raised; the model's forward if none did."""
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        if _theirs(frame.filename):
            return _short(frame.filename, frame.lineno or 0)
    try:
        file, (_, line) = inspect.getfile(type(model)), inspect.getsourcelines(type(model).forward)
    except (OSError, TypeError):
        return type(model).__name__
    return _short(file, line)


def _theirs(file: str) -> bool:
    """Is this file the user's: site-packages other than torch are, what is not on disk is not."""
    inside = any(file.startswith(place + "/") for place in _NOT_THEIRS)
    return not file.startswith("<") and (
        not inside or ("site-packages" in file and not file.startswith(_NOT_THEIRS[0]))
    )


def _short(file: str, line: int | str) -> str:
    """Relative to the current directory where it is below it, else the bare name: never a path of this machine."""
    path = Path(file)
    try:
        relative = path.relative_to(Path.cwd())
    except ValueError:
        relative = Path(path.name)
    shown = path.name if "site-packages" in path.parts else relative.as_posix()
    return f"{shown}:{line}"
