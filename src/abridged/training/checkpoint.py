"""Exact checkpoints of a training: one safetensors file, its structure as JSON in the header. Nothing is pickled."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from abridged.errors import InputError, UnsupportedError
from abridged.files import write_atomic

FILE = "training.safetensors"
FORMAT = "1"


def pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Nested dicts, lists, tuples, tensors and plain values as JSON; each tensor goes to `tensors` under its path.

    Raises `UnsupportedError` naming the path of anything else.

    >>> import torch
    >>> tensors = {}
    >>> pack({"lr": 0.1, 0: (torch.zeros(2), None)}, "optimizer", tensors), sorted(tensors)
    ({'dict': [['lr', 0.1], [0, {'tuple': [{'tensor': 'optimizer/0/0'}, None]}]]}, ['optimizer/0/0'])
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        tensors[path] = value.detach().cpu().contiguous().clone()
        return {"tensor": path}
    if isinstance(value, Mapping) and all(isinstance(key, (int, str)) for key in value):
        kind = "counter" if isinstance(value, Counter) else "dict"
        return {kind: [[key, pack(item, f"{path}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [pack(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]}
    raise UnsupportedError(f"{path} is a {type(value).__name__}: a checkpoint holds numbers, strings and tensors alone")


def unpack(packed: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `pack` was given."""
    if not isinstance(packed, dict):
        return packed
    ((kind, content),) = packed.items()
    if kind == "tensor":
        return tensors[content]
    if kind in ("dict", "counter"):
        items = {key: unpack(item, tensors) for key, item in content}
        return Counter(items) if kind == "counter" else items
    return (list if kind == "list" else tuple)(unpack(item, tensors) for item in content)


def save(directory: Path, identity: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write a checkpoint: whole or, after a kill at any moment, the one before it."""
    tensors: dict[str, Tensor] = {}
    header = {"format": FORMAT, "identity": dict(identity), "state": pack(state, "", tensors)}
    write_atomic(directory / FILE, to_bytes(tensors, {"abridged": json.dumps(header)}))


def load(directory: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """The state of the last checkpoint, None where there is none.

    Raises `InputError` when it was made with other arguments (naming them), or cannot be read."""
    path = directory / FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {})["abridged"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError, ValueError, KeyError):
        raise InputError(f"{path} cannot be read as a checkpoint: remove it to train from the start") from None
    if header["format"] != FORMAT:
        raise InputError(f"{path} is of another version's format: remove it to train from the start")
    _same(header["identity"], json.loads(json.dumps(dict(identity))), directory)
    state: dict[str, Any] = unpack(header["state"], tensors)
    return state


def _same(then: Mapping[str, Any], now: Mapping[str, Any], directory: Path) -> None:
    changed = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    if not changed:
        return
    told = [f"{key} ({_brief(then.get(key))}, now {_brief(now.get(key))})" for key in changed]
    raise InputError(
        f"{directory} holds the checkpoint of a training with other {', '.join(told)}: "
        "give the same arguments to resume it, or another directory"
    )


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "…"


def sweep(directory: Path) -> None:
    """Remove what a kill in the middle of writing left behind."""
    for part in directory.glob(f".{FILE}.*"):
        part.unlink(missing_ok=True)
