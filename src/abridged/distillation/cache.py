"""A teacher's answers on disk. Each is kept under a digest of the very input that it answers, so that an answer always
belongs to that view of the sample: another augmentation is another input, and the teacher is asked anew.

DIR/DIGEST OF THE TEACHER/RANK-N.safetensors: "keys" (n, 16) bytes, "logits" (n, C, …), "feature.PATH" (n, …). Answers of other
shapes, such as those to longer sequences, are in files of their own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from abridged.data.batches import Batch, each
from abridged.data.content import digest
from abridged.distillation.table import Outputs
from abridged.distillation.teachers import Present
from abridged.errors import InputError
from abridged.files import write_atomic
from abridged.training import Callback, Moment

SHARD = 4096  # answers per file
KEY = 16  # bytes of a digest


class Remembered(Callback):
    """A teacher whose answers are kept. Equal to asking it each time, up to the rounding of batches put together anew.

    As a callback it writes at the end of each epoch, before the training's checkpoint, so that a resume is exact.
    Raises `InputError` for a directory whose answers this teacher would not give."""

    def __init__(self, teacher: Present, directory: Path, precision: str, rank: int = 0) -> None:
        self.teacher = teacher
        self.rank = rank
        self.directory = directory / _identity(teacher, precision)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:  # now, not after an epoch
            raise InputError(f"cache {directory} cannot be written: {error.strerror}") from None
        self._files: list[dict[str, Tensor]] = []
        self._place: dict[bytes, tuple[int, int]] = {}  # key → (file, row)
        self._new: dict[bytes, dict[str, Tensor]] = {}
        for path in sorted(self.directory.glob("*.safetensors")):
            self._add(_read(path))
        self._trusted = not self._files

    def answer(self, x: Any) -> Outputs:
        keys = digests(x)
        missing = [i for i, key in enumerate(keys) if key not in self._place and key not in self._new]
        if not missing and self._trusted:
            return self._recalled(keys, x)
        if not self._trusted and len(missing) < len(keys):
            self._verify(keys, x)
        if missing:
            self._learn([keys[i] for i in missing], each(x, lambda part: part[missing]))
        return self._recalled(keys, x)

    def _learn(self, keys: Sequence[bytes], x: Any) -> None:
        named = {name: tensor.cpu() for name, tensor in _tensors(self.teacher.answer(x)).items()}
        for row, key in enumerate(keys):
            self._new[key] = {name: tensor[row] for name, tensor in named.items()}
        if len(self._new) >= SHARD:
            self.flush()

    def _recalled(self, keys: Sequence[bytes], x: Any) -> Outputs:
        rows = [self._row(key) for key in keys]
        device = (x[0] if isinstance(x, tuple) else x).device
        stacked = {name: torch.stack([row[name] for row in rows]).to(device) for name in rows[0]}
        scores = stacked.pop("logits", torch.empty(0))
        return Outputs(scores, {name.removeprefix("feature."): tensor for name, tensor in stacked.items()})

    def _row(self, key: bytes) -> Mapping[str, Tensor]:
        if key in self._new:
            return self._new[key]
        file, row = self._place[key]
        return {name: tensor[row] for name, tensor in self._files[file].items()}

    def _verify(self, keys: Sequence[bytes], x: Any) -> None:
        """The first answers found are compared with the teacher's own: weights alone do not make a network."""
        known = [i for i, key in enumerate(keys) if key in self._place]
        fresh = _tensors(self.teacher.answer(each(x, lambda part: part[known])))
        kept = _tensors(self._recalled([keys[i] for i in known], x))
        for name, tensor in fresh.items():
            there = kept.get(name)
            scale = float(tensor.abs().max())
            if there is None or there.shape != tensor.shape or float((there - tensor).abs().max()) > 1e-3 * scale:
                raise InputError(f"cache {self.directory} holds answers of another teacher: remove it")
        self._trusted = True

    # -- the files

    def flush(self) -> None:
        """Write what is new; a reader sees whole files alone."""
        alike: dict[Any, list[bytes]] = {}
        for key, row in self._new.items():
            alike.setdefault(tuple((name, tensor.shape) for name, tensor in row.items()), []).append(key)
        for keys in alike.values():
            self._write(keys)
        self._new = {}

    def _write(self, keys: Sequence[bytes]) -> None:
        """One file of answers of equal shapes."""
        rows = [self._new[key] for key in keys]
        tensors = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        tensors["keys"] = torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).view(-1, KEY)
        path = self._free()
        write_atomic(path, to_bytes(tensors))
        self._add(_read(path))  # mapped from the file, not held in memory

    def _free(self) -> Path:
        """A name that no file has, also where some were removed."""
        paths = (self.directory / f"{self.rank}-{n:06d}.safetensors" for n in count(len(self._files)))
        return next(path for path in paths if not path.exists())

    def _add(self, tensors: dict[str, Tensor]) -> None:
        for row, key in enumerate(tensors.pop("keys").numpy()):
            self._place[key.tobytes()] = (len(self._files), row)
        self._files.append(tensors)

    def on_epoch(self, moment: Moment) -> None:
        self.flush()


def digests(x: Any) -> list[bytes]:
    """Of each sample's bits, over all of the model's inputs."""
    parts = [part.detach().cpu().contiguous() for part in (x if isinstance(x, tuple) else (x,))]
    kind = " ".join(f"{part.dtype}{tuple(part.shape[1:])}" for part in parts).encode()
    rows = [part.reshape(len(part), -1).contiguous().view(torch.uint8).numpy() for part in parts]
    return [
        hashlib.blake2b(b"".join([kind, *(part[i].tobytes() for part in rows)]), digest_size=KEY).digest()
        for i in range(Batch(x, None).size)
    ]


def _tensors(outputs: Outputs) -> dict[str, Tensor]:
    named = {f"feature.{path}": feature for path, feature in outputs.features.items()}
    return {**({"logits": outputs.logits} if outputs.logits.numel() else {}), **named}


def _identity(teacher: Present, precision: str) -> str:
    state = digest(teacher.model.state_dict().values())
    asked = f"{state} {teacher.model!r} {sorted(teacher.specs)} {teacher.reads_logits} {precision}"
    return hashlib.sha256(asked.encode()).hexdigest()[:16]


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cache {path} cannot be read: remove it ({str(error).splitlines()[0]})") from None
