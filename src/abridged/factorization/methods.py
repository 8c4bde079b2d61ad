"""All factorization methods: importing this fills the table."""

from __future__ import annotations

from collections.abc import Sequence

from abridged.errors import InputError, expect
from abridged.factorization import cp, spatial, svd, tt, tucker
from abridged.factorization.amount import Amount
from abridged.factorization.decomposition import METHODS

__all__ = ["METHODS", "chosen", "cp", "spatial", "svd", "tt", "tucker"]


def chosen(method: str | Sequence[str], amount: Amount) -> tuple[str, ...]:
    """One method, or several that compete. Raises `InputError` for an unknown one, none, and several under a rank."""
    expect(method, (str, Sequence), "method must be the name of a method, or a list of names")
    names = (method,) if isinstance(method, str) else tuple(dict.fromkeys(method))
    for name in names:
        METHODS[name]
    if not names:
        raise InputError("method is empty: give the name of a method, or several")
    if len(names) > 1 and amount.rank is not None:
        raise InputError("several methods compete under ratio or energy; with rank give one method")
    return names
