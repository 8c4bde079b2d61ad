"""How nested arguments and outputs are made of flat tensors, as JSON that outlives the process.

>>> leaves, structure = flatten((1.5, {"a": 2.5, "b": [None, 3.5]}))
>>> leaves
[1.5, 2.5, 3.5]
>>> structure
{'tuple': [0, {'dict': {'a': 1, 'b': {'list': [None, 2]}}}]}
>>> unflatten(structure, leaves)
(1.5, {'a': 2.5, 'b': [None, 3.5]})
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from abridged.errors import InputError
from abridged.graph.graph import Structure

Leaf = Any


def flatten(obj: Any) -> tuple[list[Leaf], Structure]:
    """The leaves of nested tuples, lists, dicts and dataclasses from left to right, and how they are nested.

    A named tuple counts as a tuple, a dataclass or any other mapping (a Hugging Face ModelOutput) as a dict."""
    leaves: list[Leaf] = []
    return leaves, _structure(obj, leaves)


def _structure(obj: Any, leaves: list[Leaf]) -> Structure:
    if obj is None:
        return None
    if isinstance(obj, tuple):
        return {"tuple": [_structure(item, leaves) for item in obj]}
    if isinstance(obj, list):
        return {"list": [_structure(item, leaves) for item in obj]}
    if isinstance(obj, Mapping):
        return {"dict": {str(key): _structure(item, leaves) for key, item in obj.items()}}
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return {"dict": {f.name: _structure(getattr(obj, f.name), leaves) for f in dataclasses.fields(obj)}}
    leaves.append(obj)
    return len(leaves) - 1


def unflatten(structure: Structure, leaves: Sequence[Leaf]) -> Any:
    """The nested object of a structure, with leaf i where it says i. Raises `InputError` if it is not a structure of these leaves."""
    if structure is None:
        return None
    if isinstance(structure, int) and 0 <= structure < len(leaves):
        return leaves[structure]
    match structure:
        case {"tuple": [*items], **rest} if not rest:
            return tuple(unflatten(item, leaves) for item in items)
        case {"list": [*items], **rest} if not rest:
            return [unflatten(item, leaves) for item in items]
        case {"dict": dict(items), **rest} if not rest:
            return {key: unflatten(item, leaves) for key, item in items.items()}
    raise InputError(f"not a structure of {len(leaves)} tensors: {structure!r}")


def indices(structure: Structure) -> Iterator[int]:
    """The leaf numbers that a structure names, from left to right."""
    if isinstance(structure, int):
        yield structure
    elif structure is not None:
        (items,) = structure.values()
        for item in items.values() if isinstance(items, dict) else items:
            yield from indices(item)
