"""Globs over the names of parameters and the paths of modules above them: "layer4", "*.conv1", "*.weight"."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from abridged.errors import InputError


def listed(globs: Sequence[str]) -> tuple[str, ...]:
    """One glob, or several, as several. Raises `InputError` for what is neither.

    >>> listed("fc")
    ('fc',)
    """
    several = (globs,) if isinstance(globs, str) else tuple(globs) if isinstance(globs, Iterable) else ()
    if not isinstance(globs, Iterable) or not all(isinstance(glob, str) for glob in several):
        raise InputError(f"include and exclude are globs such as 'layer4.*', or lists of them, not {globs!r}")
    return several


def above(name: str) -> list[str]:
    """A parameter's name and the module paths above it.

    >>> above("layer1.conv.weight")
    ['layer1', 'layer1.conv', 'layer1.conv.weight']
    """
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def matches(names: Iterable[str], globs: Sequence[str]) -> bool:
    """Whether a glob fits one of the parameters' names or a module path above it.

    >>> matches(["layer1.conv.weight"], ["layer1"]), matches(["fc.weight"], ["conv*"])
    (True, False)
    """
    return any(fnmatchcase(path, glob) for name in names for path in above(name) for glob in globs)


def check(names: Iterable[str], globs: Sequence[str], what: str) -> None:
    """Raises `InputError` for a glob that fits none of the parameters' names nor a path above one: "matches no `what`"."""
    known = list(dict.fromkeys(path for name in names for path in above(name)))
    for glob in globs if known else ():
        if not any(fnmatchcase(path, glob) for path in known):
            close = get_close_matches(glob, known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"there are {some(known)}"
            raise InputError(f"'{glob}' matches no {what}; {hint}")


def some(names: Sequence[str]) -> str:
    """The first of many names.

    >>> some(["a", "b", "c", "d", "e", "f"])
    'a, b, c, d and 2 more'
    """
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
