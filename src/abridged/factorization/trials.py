"""Trials: what a user's forward really bears. A layer whose weight it reads itself has to stay as it is."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import nn

from abridged.errors import InputError
from abridged.factorization.layers import Layer, failure, put
from abridged.factorization.opening import Before, inside

Item = TypeVar("Item")

MISSING, READ = re.compile(r"'\w+' object has no attribute '(\w+)'"), r"something else reads its \1"


def unbearable(model: nn.Module, before: Before, layers: Sequence[Layer], example: object) -> dict[str, str]:
    """By path, the layers and opened modules without which the model does not run, and why. `model` has all that can be
    opened in its open form, and is closed where no layer lies inside; layers are tried as `nn.Sequential`s.

    Raises `InputError` if the model does not run as it is."""
    forms = {paths: model.get_submodule(paths[0]) for paths in before}
    within = {paths: [layer for layer in layers if inside(layer.path, paths[0])] for paths in before}
    opened = [paths for paths, inner in within.items() if inner]
    alone = [layer for layer in layers if not any(layer in inner for inner in within.values())]

    def fails(items: Sequence[tuple[str, ...]]) -> str:
        """How the model fails when only these are opened, or taken apart; ''."""
        tried, replaced = model, [layer for layer in alone if layer.paths in items]
        for paths, module in before.items():
            if paths in items:
                replaced += within[paths]
            else:
                tried = put(tried, paths, module)
        for layer in replaced:
            tried = put(tried, layer.paths, nn.Sequential(layer.module))
        try:
            return failure(tried, example)
        finally:
            for layer in replaced:
                put(tried, layer.paths, layer.module)
            for paths, form in forms.items():
                put(tried, paths, form)

    items = [*opened, *(layer.paths for layer in alone)]
    found = culprits(items, fails)
    if found and (reason := fails([])):
        raise InputError(f"the model does not run on the example: {reason}")
    return {
        paths[0]: f"left dense: {MISSING.sub(READ, reason).removesuffix(': exclude it')}"
        for paths, reason in found.items()
    }


def culprits(items: Sequence[Item], fails: Callable[[Sequence[Item]], str]) -> dict[Item, str]:
    """The items for which `fails`, and how: by halves; all, where no half alone does.

    >>> culprits(range(8), lambda some: "odd" if {3, 6} & set(some) else "")
    {3: 'odd', 6: 'odd'}
    """
    reason = fails(items)
    if not reason or len(items) < 2:
        return dict.fromkeys(items, reason) if reason else {}
    middle = len(items) // 2
    return culprits(items[:middle], fails) | culprits(items[middle:], fails) or dict.fromkeys(items, reason)
