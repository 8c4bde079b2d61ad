"""The built-in sets, each read from a local directory in its published format; nothing is downloaded.

`get("mnist")` reads ./data/mnist, `get("mnist:DIR")` reads DIR. Images are (N, C, H, W) float32 when they come out of
`data.batches`, normalized with the mean and standard deviation named below; large sets stay uint8 in memory."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from abridged.data.batches import Batch
from abridged.data.data import Data
from abridged.data.folder import imagefolder
from abridged.data.normalize import Normalize, stratified
from abridged.errors import InputError
from abridged.tables import Table

DATASETS = Table[Callable[[Path | None], Data]]("data set")  # directory, or None for the default → Data

DIGITS_MEAN, DIGITS_STD = 0.305, 0.376  # of scikit-learn's digits / 16
MNIST_MEAN, MNIST_STD = (0.1307,), (0.3081,)
FASHION_MEAN, FASHION_STD = (0.2860,), (0.3530,)
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FASHION_CLASSES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
VAL = 5000  # the last samples of the published training set are set aside to select on
SPLIT_SEED = 0


def get(spec: str) -> Data:
    """The data set that "NAME" or "NAME:DIR" names. Raises `InputError` naming the download command where it is missing."""
    name, _, directory = spec.partition(":")
    return DATASETS[name](Path(directory).expanduser() if directory else None)


@DATASETS.entry("digits")
def digits(directory: Path | None = None) -> Data:
    """scikit-learn's 1,797 handwritten digits, 8×8 grey, 10 classes; part of scikit-learn, no download.

    Divided by class, seeded, into 1197 / 300 / 300. (Alpaydin & Kaynak, 1998; UCI.)"""
    from sklearn.datasets import load_digits

    if directory is not None:
        raise InputError(
            f"digits come with scikit-learn and have no directory: write 'digits', not 'digits:{directory}'"
        )
    bunch = load_digits()
    x = torch.from_numpy(bunch.images).float()[:, None] / 16
    x = (x - DIGITS_MEAN) / DIGITS_STD
    y = torch.from_numpy(bunch.target).long()
    test, val, train = (torch.tensor(part) for part in stratified(bunch.target.tolist(), (300, 300), SPLIT_SEED))
    return Data((x[train], y[train]), (x[val], y[val]), (x[test], y[test]), name="digits", classes=tuple("0123456789"))


@DATASETS.entry("mnist")
def mnist(directory: Path | None = None) -> Data:
    """Handwritten digits, 28×28 grey, 10 classes: 55,000 / 5,000 / 10,000 (LeCun, Bottou, Bengio & Haffner, 1998)."""
    url = "https://ossci-datasets.s3.amazonaws.com/mnist"
    return _idx("mnist", directory, url, MNIST_MEAN, MNIST_STD, tuple("0123456789"))


@DATASETS.entry("fashion-mnist")
def fashion_mnist(directory: Path | None = None) -> Data:
    """Articles of clothing, 28×28 grey, 10 classes: 55,000 / 5,000 / 10,000 (Xiao, Rasul & Vollgraf, 2017)."""
    url = "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion"
    return _idx("fashion-mnist", directory, url, FASHION_MEAN, FASHION_STD, FASHION_CLASSES)


@DATASETS.entry("cifar10")
def cifar10(directory: Path | None = None) -> Data:
    """Small photographs, 32×32 RGB, 10 classes: 45,000 / 5,000 / 10,000 (Krizhevsky, 2009).

    Training batches are shifted by up to 4 pixels and mirrored at random (He et al., 2016)."""
    home = directory or Path("data/cifar10")
    mend = f"mkdir -p {home} && curl -fL https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz | tar xz -C {home}"
    folder = _holding(
        home, "data_batch_1.bin", ("cifar-10-batches-bin", "cifar10/cifar-10-batches-bin"), "cifar10", mend
    )
    parts = [_cifar_batch(folder / f"data_batch_{i}.bin", mend) for i in range(1, 6)]
    x, y = torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts])
    test = _cifar_batch(folder / "test_batch.bin", mend)
    train, val = _set_aside(x, y)
    return Data(
        train,
        val,
        test,
        name="cifar10",
        classes=CIFAR10_CLASSES,
        augment=CropFlip(4),
        transform=Normalize(CIFAR10_MEAN, CIFAR10_STD),
    )


DATASETS.entry("imagefolder")(imagefolder)


@dataclass(frozen=True)
class CropFlip:
    """Augmentation of (N, C, H, W): each image is shifted by up to `pad` pixels, zeros coming in, and half are mirrored."""

    pad: int = 4
    flip: bool = True

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        n, _, height, width = x.shape
        top, left = torch.randint(0, 2 * self.pad + 1, (2, n), generator=generator)
        rows = top[:, None] + torch.arange(height)  # (N, H)
        columns = left[:, None] + torch.arange(width)  # (N, W)
        if self.flip:
            mirrored = torch.rand(n, generator=generator) < 0.5
            columns = torch.where(mirrored[:, None], columns.flip(1), columns)
        padded = F.pad(x, (self.pad,) * 4).permute(0, 2, 3, 1)  # (N, H + 2 pad, W + 2 pad, C)
        moved = padded[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]  # (N, H, W, C)
        return moved.permute(0, 3, 1, 2).contiguous()


def _idx(
    name: str,
    directory: Path | None,
    url: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    classes: tuple[str, ...],
) -> Data:
    home = directory or Path("data") / name
    files = [f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    mend = f'mkdir -p {home} && cd {home} && curl -fL --remote-name-all "{url}/{{{",".join(files)}}}.gz"'
    folder = _holding(home, "train-images-idx3-ubyte.gz", (name,), name, mend)
    x, y, x_test, y_test = (read_idx(folder / f"{file}.gz", mend) for file in files)
    for images, labels in ((x, y), (x_test, y_test)):
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            shapes = f"{tuple(images.shape)} and {tuple(labels.shape)}"
            raise InputError(f"{folder}: images and labels of shapes {shapes} do not belong together: {mend}")
    train, val = _set_aside(x[:, None], y.long())  # (N, 1, 28, 28)
    return Data(
        train,
        val,
        (x_test[:, None], y_test.long()),
        name=name,
        classes=classes,
        transform=Normalize(mean, std),
    )


def _set_aside(x: Tensor, y: Tensor) -> tuple[Batch, Batch]:
    """Train and val: the last samples of the published training set, at most half of it."""
    val = min(VAL, len(x) // 2)
    return Batch(x[:-val], y[:-val]), Batch(x[-val:], y[-val:])


def read_idx(path: Path, mend: str = "download it again") -> Tensor:
    """A gzipped idx file of unsigned bytes: magic 0x000008dd with dd dimensions, their sizes big-endian, the bytes."""
    try:
        content = gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path} is missing: {mend}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} is truncated or no gzip file ({error}): {mend}") from None
    if len(content) < 4 or content[:3] != b"\0\0\x08" or len(content) < 4 + 4 * content[3]:
        raise InputError(f"{path} is no idx file of bytes: {mend}")
    shape = tuple(np.frombuffer(content, ">i4", content[3], offset=4).tolist())
    body = np.frombuffer(content, np.uint8, offset=4 + 4 * content[3])
    if body.size != int(np.prod(shape)):
        raise InputError(f"{path} holds {body.size} bytes and its header promises {shape}: {mend}")
    return torch.from_numpy(body.reshape(shape).copy())


def _cifar_batch(path: Path, mend: str) -> Batch:
    """A CIFAR-10 binary batch: rows of one label byte and 3 · 32 · 32 bytes, channel-major."""
    if not path.exists():
        raise InputError(f"{path} is missing: {mend}")
    content = np.fromfile(path, np.uint8)
    if not content.size or content.size % 3073:
        raise InputError(f"{path} is truncated: {content.size} bytes are no multiple of 3073: {mend}")
    rows = content.reshape(-1, 3073)
    if rows[:, 0].max() > 9:
        raise InputError(f"{path} is corrupt: it has label {rows[:, 0].max()}, of 10 classes: {mend}")
    return Batch(
        torch.from_numpy(rows[:, 1:].reshape(-1, 3, 32, 32).copy()), torch.from_numpy(rows[:, 0].copy()).long()
    )


def _holding(home: Path, file: str, below: tuple[str, ...], name: str, mend: str) -> Path:
    """`home`, or the folder below it, that holds `file`."""
    for folder in (home, *(home / part for part in below)):
        if (folder / file).exists():
            return folder
    raise InputError(f"{name} is not in {home}/ ({file} is missing); to download it: {mend}")
