"""A .pt2 file read as data alone: torch.export.load would also unpickle what its maker put there, so we hand it a copy without."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from abridged.errors import InputError

# Everything that torch.export.save writes for a program of tensors; all of it below one directory.
_DATA = re.compile(
    r"[^/]+/(archive_format|archive_version|byteorder|\.data/(version|serialization_id|alignment)|models/model\.json"
    r"|data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|data/sample_inputs/model\.pt)"
)


def data_alone(path: Path) -> io.BytesIO:
    """The archive at `path`, rewritten without its example (a pickle). Raises `InputError` if anything else in it may run code."""
    copy = io.BytesIO()
    try:
        with zipfile.ZipFile(path) as archive, zipfile.ZipFile(copy, "w") as clean:
            for name in archive.namelist():
                content = archive.read(name)
                _check_member(path, name, content)
                clean.writestr(name, b"" if name.endswith(".pt") else content)
    except (OSError, zipfile.BadZipFile, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a program saved by torch.export.save: {error}") from error
    copy.seek(0)
    return copy


def _check_member(path: Path, name: str, content: bytes) -> None:
    if not _DATA.fullmatch(name):
        raise InputError(f"{path}: holds '{name}', which is not data: save the program again with torch.export.save")
    keys = set(_true_keys(json.loads(content))) if name.endswith(".json") else set()
    if "use_pickle" in keys:
        raise InputError(f"{path}: '{name}' asks for unpickling, which may run code: refused")
    if "expr_str" in keys:
        raise InputError(f"{path}: has dynamic shapes: export it with fixed ones")


def _true_keys(tree: Any) -> Iterator[str]:
    """Every key of a JSON tree whose item is not empty or false."""
    if isinstance(tree, dict):
        yield from (key for key, item in tree.items() if item)
        tree = list(tree.values())
    if isinstance(tree, list):
        for item in tree:
            yield from _true_keys(item)
