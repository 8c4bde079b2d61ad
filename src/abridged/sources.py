"""Where a model and its data come from: `package.module:callable`, `torchvision:NAME`, `timm:NAME`, `.pt2`, built-in sets."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from abridged.errors import AbridgedError, InputError, nearest
from abridged.progress import say

if TYPE_CHECKING:
    import torch
    from torch import nn

    from abridged.data import Data

_fragments: list[Any] = []  # a library FRAGMENT lives as long as its object


def load_model(spec: str, weights: str | Path | None = None, seed: int = 0) -> nn.Module:
    """The module that MODEL names, with the weights of a safetensors or `.pt` file when given.

    Weights that it draws come from torch's global generator, which is seeded here: the same in every process. Raises `InputError`
    for a missing module or callable, for one that raises (naming the user's line), for one that returns no Module, and for
    weights that cannot be read or do not fit."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    scheme, _, name = spec.partition(":")
    zoo = scheme in _ZOOS and bool(name)
    if zoo:
        model = _ZOOS[scheme](name)
    elif spec.endswith(".pt2"):
        raise InputError(
            f"model '{spec}': an exported program cannot be trained; deploy and measure take it, compress does not"
        )
    else:
        model = call(spec, "model")
    if not isinstance(model, nn.Module):
        raise InputError(f"model '{spec}' must give a torch.nn.Module, not {type(model).__name__}")
    if weights is not None:
        from abridged.weights import load_into

        load_into(model, weights)
    elif zoo:
        say(f"{spec}: its weights are random (seed {seed}, the same in every process); give others with --weights FILE")
    return model


def load_rival(spec: str, weights: str | Path | None = None) -> nn.Module:
    """`load_model`, and also the program of a `.pt2` file as a module to run."""
    if not spec.endswith(".pt2"):
        return load_model(spec, weights)
    from abridged.graph.capture import load_program, runnable

    if weights:
        raise InputError(f"model '{spec}': an exported program brings its own weights; leave --weights out")
    return runnable(load_program(spec))


def load_data(spec: str) -> Data:
    """The data that DATA names: a built-in set (`digits`, `mnist`, `NAME:DIR`) or a callable that returns `ab.Data`."""
    from abridged.data import Data
    from abridged.data.sets import DATASETS, get

    if spec.partition(":")[0] in DATASETS:
        return get(spec)
    if ":" not in spec:
        raise InputError(f"unknown data '{spec}'{nearest(spec, DATASETS)}, or give package.module:callable")
    data = call(spec, "data")
    if not isinstance(data, Data):
        raise InputError(f"data '{spec}' must give an abridged.Data, not {type(data).__name__}")
    return data


def load_for_deploy(
    spec: str, weights: str | Path | None = None, shapes: list[str] | None = None, data: str | None = None
) -> tuple[Any, Any]:
    """The model (a Module, or the program of a `.pt2` file) and the example input that its artifact is built for.

    The example comes from `shapes` ("1x3x224x224", "1x128:int64"), else from `data`, else from what the zoo publishes."""
    if spec.endswith(".pt2"):
        from abridged.graph.capture import load_program

        if weights or shapes or data:
            raise InputError(
                f"model '{spec}': an exported program brings its own weights and input shapes; leave the options out"
            )
        return load_program(spec), None
    model = load_model(spec, weights)
    if shapes:
        return model, tuple(_example(shape) for shape in shapes)
    if data:
        return model, load_data(data).example_input()
    size = _published_size(spec, model)
    if size is None:
        raise InputError(
            f"model '{spec}': say what goes in: --input 1x3x32x32 (repeat it for several inputs), or --data DATA"
        )
    return model, (_example("x".join(map(str, (1, *size)))),)


def _published_size(spec: str, model: nn.Module) -> tuple[int, ...] | None:
    scheme, _, name = spec.partition(":")
    if scheme == "torchvision":
        return (3, 299, 299) if name.startswith("inception") else (3, 224, 224)
    if scheme == "timm":
        return tuple(getattr(model, "pretrained_cfg", {}).get("input_size", (3, 224, 224)))
    return None


def _example(text: str) -> torch.Tensor:
    """A tensor of the shape and dtype that the text names: normal floats, zero integers.

    >>> _example("1x3:int64").tolist()
    [[0, 0, 0]]
    """
    import torch

    shape, _, dtype_name = text.partition(":")
    dtype = getattr(torch, dtype_name or "float32", None)
    if not isinstance(dtype, torch.dtype) or not all(part.isdigit() and int(part) for part in shape.split("x")):
        raise InputError(f"input '{text}': give sizes and perhaps a dtype, such as 1x3x224x224 or 1x128:int64")
    sizes = [int(part) for part in shape.split("x")]
    try:
        if not dtype.is_floating_point:
            return torch.zeros(sizes, dtype=dtype)
        return torch.randn(sizes, generator=torch.Generator().manual_seed(0)).to(dtype)
    except RuntimeError:
        raise InputError(f"input '{text}': too large for this machine's memory") from None


def call(spec: str, noun: str) -> Any:
    """What `package.module:callable` gives: called without arguments; a ready object that is not a class is taken as it is."""
    module_name, separator, attribute = spec.partition(":")
    if not separator or not module_name or not attribute:
        known = ", ".join(f"{zoo}:NAME" for zoo in _ZOOS)
        raise InputError(f"{noun} '{spec}' must be package.module:callable" + (f", {known}" if noun == "model" else ""))
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    with _users_code(f"{noun} '{spec}'"):
        try:
            target = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name and module_name.split(".")[: len(error.name.split("."))] == error.name.split("."):
                raise InputError(
                    f"{noun} '{spec}': no module '{error.name}' in the current directory or the environment"
                ) from None
            raise
    for part in attribute.split("."):
        if not hasattr(target, part):
            public = [name for name in dir(target) if not name.startswith("_")]
            hint = nearest(part, public) if public else ""
            hint = hint if "did you mean" in hint else ""
            raise InputError(f"{noun} '{spec}': '{module_name}' has no '{part}'{hint}")
        target = getattr(target, part)
    if not callable(target) or _is_module(target):
        return target
    with _users_code(f"{noun} '{spec}'"):
        return target()


def _is_module(target: Any) -> bool:
    from torch import nn

    return isinstance(target, nn.Module)


@contextmanager
def _users_code(what: str) -> Iterator[None]:
    """An exception in the user's code becomes one line that names it and the user's own line."""
    try:
        yield
    except AbridgedError:
        raise
    except Exception as error:
        raise InputError(f"{what} raised {type(error).__name__}: {first_line(error)}{users_line(error)}") from error


def first_line(error: BaseException) -> str:
    """The first line of an exception's text."""
    return (str(error).strip().splitlines() or ["(no message)"])[0]


def users_line(error: BaseException) -> str:
    """` (file.py:12)`: the innermost frame of a traceback that is neither ours nor an installed package's."""
    frames = traceback.extract_tb(error.__traceback__)
    here = str(Path(__file__).parent)
    skipped = (here, "<frozen", "site-packages", "dist-packages", os.path.dirname(os.__file__))
    for frame in reversed(frames):
        if not any(part in frame.filename for part in skipped):
            return f" ({Path(frame.filename).name}:{frame.lineno})"
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({Path(error.filename).name}:{error.lineno})"
    return ""


def import_torchvision() -> ModuleType:
    """`torchvision.models`, also where torchvision's compiled operators do not load beside this build of torch.

    Importing torchvision registers fake kernels for `torchvision::nms`; without the operator that fails. The two
    missing operators are declared (never defined: no classification network calls them), in a FRAGMENT."""
    try:
        return _torchvision_models()
    except ModuleNotFoundError as error:
        raise InputError(
            f"torchvision:NAME needs torchvision: pip install --no-deps torchvision pillow ({error})"
        ) from None


def _torchvision_models() -> ModuleType:
    import torch

    try:
        return importlib.import_module("torchvision.models")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    library: Any = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _fragments.append(library)
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]  # half imported
    return importlib.import_module("torchvision.models")


def _torchvision(name: str) -> nn.Module:
    models = import_torchvision()
    if name not in models.list_models(module=models):
        raise InputError(
            f"torchvision has no classification model '{name}'{nearest(name, models.list_models(module=models))}"
        )
    auxiliary = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    return models.get_model(name, weights=None, **auxiliary)  # type: ignore[no-any-return]


def _timm(name: str) -> nn.Module:
    try:
        import_torchvision()  # timm imports it
        timm = importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise InputError(f"timm:NAME needs timm: pip install 'abridged[timm]' ({error})") from None
    if not timm.is_model(name):
        raise InputError(f"timm has no model '{name}'{nearest(name, timm.list_models())}")
    return timm.create_model(name, pretrained=False)  # type: ignore[no-any-return]


_ZOOS = {"torchvision": _torchvision, "timm": _timm}
