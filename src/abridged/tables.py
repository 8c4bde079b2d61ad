"""The one extension mechanism: a table of named functions, filled by a decorator.

>>> shapes = Table[Callable[[float], float]]("shape")
>>> @shapes.entry("square")
... def square(x):
...     '''Side times side.'''
...     return x * x
>>> shapes["square"](3.0)
9.0
>>> shapes["sqare"]
Traceback (most recent call last):
abridged.errors.InputError: unknown shape 'sqare'; did you mean 'square'?
"""

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from abridged.errors import InputError, nearest

T = TypeVar("T")
E = TypeVar("E")


class Table(Mapping[str, T]):
    """A mapping from a name to one entry. Duplicates raise at import, unknown names raise `InputError`."""

    def __init__(self, noun: str) -> None:
        self.noun = noun
        self._entries: dict[str, T] = {}

    def entry(self, *names: str) -> Callable[[E], E]:
        """Decorator that adds a function (or any object) under one or more names and returns it unchanged."""

        def add(value: E) -> E:
            for name in names:
                if name in self._entries:
                    raise ValueError(f"duplicate {self.noun} '{name}'")
                self._entries[name] = value  # type: ignore[assignment]
            return value

        return add

    def __getitem__(self, name: str) -> T:
        try:
            return self._entries[name]
        except KeyError:
            raise InputError(f"unknown {self.noun} '{name}'{nearest(str(name), self._entries)}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def summary(self, name: str) -> str:
        """The first line of an entry's docstring."""
        return ((self[name].__doc__ or "").strip().splitlines() or [""])[0]
