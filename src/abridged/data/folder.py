"""`imagefolder`: photographs in folders named by class, decoded when they are needed."""

from __future__ import annotations

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from abridged.data.data import Data
from abridged.data.normalize import IMAGENET_MEAN, IMAGENET_STD, Normalize, stratified
from abridged.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

Files = list[tuple[Path, int]]  # and labels

SUFFIXES = {".jpg", ".jpeg", ".png"}
RESIZE, CROP = 256, 224
SPLIT_SEED = 0
LAYOUT = "expected DIR/CLASS/*.jpg or *.png, or DIR/train/CLASS/… and DIR/val/CLASS/… (and DIR/test/CLASS/…)"


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """Image files and their labels: samples are uint8 (3, 224, 224) and a class number."""

    def __init__(self, files: Files) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.files[index]
        return read_image(path), label

    def __getitems__(
        self, indices: list[int]
    ) -> list[tuple[Tensor, int]]:  # a DataLoader asks for batches by this name
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # the decoder lets other threads run
            return list(pool.map(self.__getitem__, indices))


def read_image(path: Path) -> Tensor:
    """Decode as RGB, the shorter side to 256, the middle 224×224: uint8 (3, 224, 224). An image of 224×224 is kept as it is."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            pixels = np.array(_square(image.convert("RGB")))
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise InputError(f"{path} cannot be read as an image ({error}): repair or remove it") from None
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _square(image: Image.Image) -> Image.Image:
    if image.size == (CROP, CROP):
        return image
    scale = RESIZE / min(image.size)
    width, height = (max(CROP, round(side * scale)) for side in image.size)
    left, top = (width - CROP) // 2, (height - CROP) // 2
    return image.resize((width, height), resample=2).crop(
        (left, top, left + CROP, top + CROP)
    )  # 2: bilinear, antialiased


def imagefolder(directory: Path | None = None) -> Data:
    """Your own photographs: DIR/CLASS/*.jpg or *.png, or train, val (and test) folders of such; 224×224 RGB, ImageNet's mean and std.

    Without such folders every class is divided, seeded, into 80 / 10 / 10 %. Classes are the folders' names in order."""
    if importlib.util.find_spec("PIL") is None:
        raise InputError("imagefolder needs pillow: pip install 'abridged[images]'")
    home = directory or Path("data/imagefolder")
    if not home.is_dir():
        raise InputError(f"imagefolder: there is no directory {home}: write 'imagefolder:DIR'; {LAYOUT}")
    divided = (home / "train").is_dir()
    source = home / "train" if divided else home
    classes = _classes(source)
    train = _files(source, classes)
    given = {name: _files(home / name, classes) for name in ("val", "test") if divided and (home / name).is_dir()}
    notes: tuple[str, ...] = ()
    if "val" not in given:
        carved = [name for name in ("test", "val") if name not in given]
        train, given = _carve(train, carved, home, given)
        sizes = ", ".join(f"{len(given[name])} {name}" for name in reversed(carved))
        notes = (f"{source} was divided once, seeded: {len(train)} train, {sizes}",)
    return Data(
        ImageFiles(train),
        ImageFiles(given["val"]),
        ImageFiles(given["test"]) if "test" in given else None,
        name=home.name,
        notes=notes,
        classes=classes,
        transform=Normalize(IMAGENET_MEAN, IMAGENET_STD),
    )


def _carve(files: Files, names: list[str], home: Path, given: dict[str, Files]) -> tuple[Files, dict[str, Files]]:
    """Set a tenth of the files aside for each name."""
    if len(files) <= len(names):
        raise InputError(f"imagefolder: {home} holds {len(files)} images, too few to divide into train, val and test")
    tenth = max(1, len(files) // 10)
    *parts, train = stratified([label for _, label in files], [tenth] * len(names), SPLIT_SEED)
    chosen = {name: [files[i] for i in part] for name, part in zip(names, parts, strict=True)}
    return [files[i] for i in train], {**given, **chosen}


def _classes(folder: Path) -> tuple[str, ...]:
    classes = tuple(
        sorted(child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    )
    if not classes:
        raise InputError(f"imagefolder: {folder} has no folders of classes; {LAYOUT}")
    return classes


def _files(folder: Path, classes: tuple[str, ...]) -> Files:
    unknown = sorted(set(_classes(folder)) - set(classes))
    if unknown:
        raise InputError(f"imagefolder: {folder} has class '{unknown[0]}', which the training folder lacks")
    found = [
        (file, label)
        for label, name in enumerate(classes)
        for file in sorted((folder / name).glob("**/*"))
        if file.suffix.lower() in SUFFIXES
    ]
    if not found:
        raise InputError(f"imagefolder: {folder} holds no .jpg or .png images; {LAYOUT}")
    return found
