"""How a number changes in the course of a training: a constant, {"linear": [from, to]}, {"cosine": [from, to]}, or a callable.

t runs from 0 at the first step to (steps − 1) / steps at the last."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

from abridged.errors import InputError
from abridged.tables import Table

Course = float | Mapping[str, Any] | Callable[[float], float]
SHAPES = Table[Callable[[float], float]]("course")  # t in [0, 1] → the share of the way that is done, from 0 to 1
GRID = [i / 100 for i in range(101)]  # where a course is tried before the training


@SHAPES.entry("linear")
def linear(t: float) -> float:
    """t: the same step each time."""
    return t


@SHAPES.entry("cosine")
def cosine(t: float) -> float:
    """½·(1 − cos πt): slow at both ends (Loshchilov & Hutter, 2017)."""
    return 0.5 * (1 - math.cos(math.pi * t))


def course(value: Course, name: str) -> Callable[[float], float]:
    """The number at each t. Raises `InputError` for what is no course.

    >>> course({"linear": [1.0, 0.5]}, "alpha")(0.5), course(4.0, "temperature")(0.3)
    (0.75, 4.0)
    """
    if callable(value):
        return value
    if isinstance(value, Mapping):
        ((shape, ends),) = value.items() if len(value) == 1 else ((None, None),)
        if not isinstance(ends, (list, tuple)) or len(ends) != 2 or not all(map(is_number, ends)):
            raise InputError(f"{name} must be a number, or {{linear: [from, to]}} or cosine, not {dict(value)}")
        way, (start, end) = SHAPES[str(shape)], ends
        return lambda t: start + (end - start) * way(t)
    if not is_number(value):
        raise InputError(f"{name} must be a number, or {{linear: [from, to]}} or cosine, not {value!r}")
    return lambda t: value


def is_number(value: Any) -> bool:
    """Whether it is a real number, of Python or numpy, and no truth value."""
    return isinstance(value, Real) and not isinstance(value, bool)


def alpha(value: Course) -> Callable[[float], float]:
    """A course of the weight of the teacher's part. Raises `InputError` where it leaves [0, 1]."""

    def sound(number: float) -> bool:
        return 0 <= number <= 1

    return _checked(value, "alpha", sound, "alpha, the weight of the teacher's part, must be between 0 and 1")


def temperature(value: Course) -> Callable[[float], float]:
    """A course of the temperature. Raises `InputError` where it is not positive and finite."""

    def sound(number: float) -> bool:
        return 0 < number < math.inf

    return _checked(value, "temperature", sound, "temperature must be positive")


def _checked(value: Course, name: str, sound: Callable[[float], bool], rule: str) -> Callable[[float], float]:
    way = course(value, name)

    def at(t: float) -> float:
        number = way(t)
        if not is_number(number):
            raise InputError(f"{name} at t = {t:g} must be a number, not {number!r}")
        if not sound(number):
            raise InputError(f"{rule}, not {number}" + ("" if is_number(value) else f" (at t = {t:g})"))
        return number

    for t in GRID:
        at(t)
    return at


def told(value: Course) -> str:
    """A course in a few characters, for people.

    >>> told(4.0), told({"linear": [1, 0.5]})
    ('4', 'linear 1 → 0.5')
    """
    if isinstance(value, Mapping):
        return ", ".join(f"{shape} {ends[0]:g} → {ends[1]:g}" for shape, ends in value.items())
    return f"{value:g}" if is_number(value) else getattr(value, "__qualname__", type(value).__name__)


def identity(value: Course) -> str:
    """A course in a few characters, equal only where all its numbers are: of a callable those on the GRID, in six digits.

    >>> identity(4.0)
    '4'
    >>> identity(lambda t: 4.0) == identity(lambda t: 9.0 - t)
    False
    """
    if not callable(value):
        return told(value)
    numbers = [f"{float(value(t)):.6g}" for t in GRID]
    return f"{numbers[0]} … {numbers[-1]} ({hashlib.sha256(' '.join(numbers).encode()).hexdigest()[:8]})"
