"""The rules of an output directory: what is there stays, unless the user says --resume or --force."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from abridged.errors import InputError
from abridged.files import write_atomic

ASKED = "run.json"
OURS = (
    ASKED,
    "steps",
    "work",
    "artifact",
    "model.safetensors",
    "recipe.yaml",
    "ledger.json",
    "report.html",
    "report.md",
)


def prepare(out: Path, asked: dict[str, Any], *, resume: bool, force: bool) -> None:
    """Make `out` ready for a run of `asked`. Nothing that we did not write is ever deleted.

    Raises `InputError` when it is not empty (without `resume` or `force`), or when `resume` finds another run there."""
    if resume and force:
        raise InputError("give --resume to continue the run or --force to replace it, not both")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; give a directory")
    content = [item.name for item in out.iterdir()] if out.exists() else []
    if content and ASKED not in content and not resume:
        raise InputError(f"{out}: the directory is not empty and holds no run; choose another")
    if force:
        for name in set(content) & set(OURS):
            _remove(out / name)
    elif resume and content:
        _compare(out, asked)
    elif content:
        raise InputError(
            f"{out}: holds a run already; choose another, or give --resume to continue or --force to replace it"
        )
    for leftover in out.glob("steps/.*"):  # of a step that was killed while it was written
        _remove(leftover)
    write_atomic(out / ASKED, json.dumps(asked, indent=1).encode())


def _compare(out: Path, asked: dict[str, Any]) -> None:
    try:
        before = json.loads((out / ASKED).read_bytes())
    except (OSError, ValueError):
        raise InputError(f"{out}: there is no run to resume here; choose another directory") from None
    changed = [key for key in asked if before.get(key) != json.loads(json.dumps(asked[key]))]
    if changed:
        raise InputError(
            f"{out}: cannot resume, the run there differs in {' and '.join(changed)};"
            " repeat the command that began it, or give --force to replace it"
        )


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def fingerprint(module: nn.Module) -> str:
    """SHA-256 of a module's state: names, shapes, dtypes and every byte."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        if isinstance(tensor, torch.Tensor):
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
