"""What can go wrong, as two kinds: the input was wrong (exit status 2), or a promise was not kept (exit status 1)."""

import difflib
import os
from collections.abc import Iterable


class AbridgedError(Exception):
    """Base of every error that Abridged raises on purpose. Its text is one line: what, where, what to do."""

    exit_status = 1


class InputError(AbridgedError, ValueError):
    """The user's input cannot be used: the text names the input and the mend."""

    exit_status = 2


class UnsupportedError(AbridgedError):
    """The input is legal but we cannot do it yet: the text names the module path and the op."""

    exit_status = 2


class GateError(AbridgedError):
    """A check of ours was not met: a deviation above its bound, a budget missed."""


PATH = (str, os.PathLike)  # kinds for `expect`
NOTHING = type(None)
FEW = 60  # names that one line of an error may list


def first_line(error: BaseException) -> str:
    """What an error says, in one line: its name where it says nothing.

    >>> first_line(ValueError("so\\nand so")), first_line(KeyError())
    ('so', 'KeyError')
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def expect(value: object, kind: type | tuple[type, ...], what: str) -> None:
    """Raise `InputError`, "`what`, not TYPE", for a value of another type.

    >>> expect(3, str, "name must be a string")
    Traceback (most recent call last):
    abridged.errors.InputError: name must be a string, not int
    """
    if not isinstance(value, kind):
        raise InputError(f"{what}, not {'None' if value is None else type(value).__name__}")


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a misspelt name: `"; did you mean 'magnitude'?"`, or the known names when none is near and they are few.

    >>> nearest("magnitud", ["magnitude", "random"])
    "; did you mean 'magnitude'?"
    >>> nearest("xyz", ["a", "b"])
    '; known: a, b'
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1) or [known for known in names if name and known.startswith(name)]
    if close:
        return f"; did you mean '{close[0]}'?"
    return (
        f"; known: {', '.join(names) or 'none'}"
        if len(names) <= FEW
        else f"; none of the {len(names)} known is like it"
    )
