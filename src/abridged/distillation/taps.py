"""Features of named layers: which module pairs with which, and hooks that are gone when the block ends, however it ends."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from abridged.errors import InputError, nearest

GLOB = re.compile(r"[*?\[]")


def pairs(
    layers: str | Sequence[str] | Mapping[str, str], student: nn.Module, teacher: nn.Module
) -> list[tuple[str, str]]:
    """(student's path, teacher's path) of each pair. A path may end in `:item` for one of several outputs of a module.

    Globs pair in order; `*` stands for one part of a path. Where the teacher has more, its layers are taken at equal
    distances, its last among them (Jiao et al., 2020): of 4 for 2, the second and the fourth.

    Raises `InputError` for paths that are not there, and for globs that cannot be paired.

    >>> deep, shallow = (nn.Sequential(*(nn.ReLU() for _ in range(n))) for n in (4, 2))
    >>> pairs("*", shallow, deep)
    [('0', '1'), ('1', '3')]
    """
    if isinstance(layers, str):
        layers = [layers]
    if not isinstance(layers, (list, tuple, Mapping)):
        raise InputError(f"layers must be a module path, a list of them or {{student's: teacher's}}, not {layers!r}")
    wanted = layers.items() if isinstance(layers, Mapping) else [(path, path) for path in layers]
    found: list[tuple[str, str]] = []
    for mine, taught in wanted:
        left, right = expanded(mine, student, "student"), expanded(taught, teacher, "teacher")
        if len(left) > len(right):
            raise InputError(
                f"layers: '{mine}' is {len(left)} layers of the student and '{taught}' {len(right)} of the teacher: "
                "the teacher must have as many or more"
            )
        found += [(path, right[-(-(i + 1) * len(right) // len(left)) - 1]) for i, path in enumerate(left)]
    names = [path for path, _ in found]
    for path in names:
        if names.count(path) > 1:
            raise InputError(f"layers: '{path}' is named twice: give it one layer of the teacher")
    return found


def expanded(spec: str, model: nn.Module, whose: str) -> list[str]:
    """The paths that a path or glob names, `:item` kept, in the model's order."""
    if not isinstance(spec, str):
        raise InputError(f"layers: a module path is a string, not {spec!r}")
    path, colon, item = spec.partition(":")
    known = [name for name, _ in model.named_modules()]
    if GLOB.search(path):
        like = _pattern(path)
        chosen = [name for name in known if name and like.fullmatch(name)]
    else:
        chosen = [path] if path in known else []
    if not chosen:
        raise InputError(f"layers: the {whose} has no module '{path}'{nearest(path, filter(None, known))}")
    return [name + colon + item for name in chosen]


def _pattern(glob: str) -> re.Pattern[str]:
    """`*` and `?` stop at dots, `[12]` is one of some characters."""
    parts = [re.escape(part) if i % 2 == 0 else part for i, part in enumerate(re.split(r"(\[[^\]]+\])", glob))]
    try:
        return re.compile("".join(parts).replace(r"\?", "[^.]").replace(r"\*", "[^.]*"))
    except re.error as error:
        raise InputError(f"layers: '{glob}' is no pattern of module paths: {error.msg}") from None


class Taps:
    """What chosen modules gave in the last forward pass, by their path.

    Copies, through which gradients flow: an activation in place, such as the ReLU(inplace=True) behind a BatchNorm, would
    turn the layer's own output into its own."""

    def __init__(self, whose: str, specs: Sequence[str] = ()) -> None:
        self.whose = whose
        self.items: dict[str, list[str]] = {}  # path → what is wanted of its outputs, "" for the tensor in them
        for path, _, item in (spec.partition(":") for spec in dict.fromkeys(specs)):
            self.items.setdefault(path, []).append(item)
        self._seen: dict[str, dict[str, Tensor]] = {}
        self._twice: set[str] = set()

    def clear(self, *_: Any) -> None:
        self._seen, self._twice = {}, set()

    def see(self, path: str, output: Any) -> None:
        if path in self._seen:
            self._twice.add(path)
        what = f"the {self.whose}'s module '{path}'"
        self._seen[path] = {item: _tensor(output, item, what).clone() for item in self.items[path]}

    def take(self, specs: Sequence[str], samples: int) -> dict[str, Tensor]:
        """The features of the pass that just ended, in float32 at least, and forget them. Raises `InputError` for a module
        that did not run, or ran more than once, and for what is no tensor with the batch first."""
        found = {}
        for spec in specs:
            path, _, item = spec.partition(":")
            if path not in self._seen:
                raise InputError(f"layers: the {self.whose}'s module '{path}' takes no part in the forward pass")
            if path in self._twice:
                raise InputError(
                    f"layers: the {self.whose}'s module '{path}' runs more than once in a pass: name one that runs once"
                )
            feature = self._seen[path][item]
            if not feature.ndim or len(feature) != samples:
                raise InputError(
                    f"layers: the {self.whose}'s module '{path}' gives shape {tuple(feature.shape)} for {samples} samples: "
                    "the batch must come first"
                )
            found[spec] = feature.float() if feature.dtype in (torch.float16, torch.bfloat16) else feature
        self.clear()
        return found


def _tensor(output: Any, item: str, what: str) -> Tensor:
    """The tensor in a module's output: the output itself, the first in a tuple or a dict, or the item asked for."""
    if item:
        try:
            output = output[int(item)] if item.isdecimal() else _named(output, item)
        except (IndexError, KeyError, TypeError, AttributeError):
            raise InputError(f"layers: {what} gives no ':{item}'") from None
    elif not isinstance(output, Tensor):
        inside = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
        output = next((part for part in inside if isinstance(part, Tensor)), output)
    if not isinstance(output, Tensor):
        raise InputError(f"layers: {what} gives {type(output).__name__}{f' as :{item}' if item else ''}, no tensor")
    return output


def _named(output: Any, item: str) -> Any:
    return output[item] if isinstance(output, Mapping) else getattr(output, item)


@contextmanager
def tapped(model: nn.Module, specs: Sequence[str], whose: str) -> Iterator[Taps]:
    """Hooks on the named modules for the block; afterwards, also after an error, none is left."""
    taps = Taps(whose, specs)
    handles = []
    try:
        if specs:
            handles.append(model.register_forward_pre_hook(taps.clear))
        for path in taps.items:
            module = model.get_submodule(path)
            handles.append(module.register_forward_hook(lambda _, __, output, path=path: taps.see(path, output)))
        yield taps
    finally:
        for handle in handles:
            handle.remove()
        taps.clear()
