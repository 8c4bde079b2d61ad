"""The built-in sets: the published files give the published figures, and broken files one line with the mend."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from abridged.data import Data, check
from abridged.data.folder import read_image
from abridged.data.normalize import Normalize, stratified
from abridged.data.sets import CIFAR10_MEAN, CIFAR10_STD, DATASETS, CropFlip, get, read_idx
from abridged.errors import InputError

Shared = Callable[[str], Path]


def moments(data: Data, split: str = "train") -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel of a split as it comes out."""
    x = torch.cat([batch.x for batch in data.batches(split, 1024)])
    return x.mean((0, 2, 3)), x.std((0, 2, 3))


def sizes(data: Data) -> list[int | None]:
    return [data.samples(split) for split in ("train", "val", "test")]


def test_digits_are_there_without_a_download() -> None:
    data = get("digits")
    assert sizes(data) == [1197, 300, 300]
    check(data)
    mean, std = moments(data)
    assert abs(mean.item()) < 0.02
    assert abs(std.item() - 1) < 0.02
    assert data.example_input().shape == (1, 1, 8, 8)
    for split in (data.train, data.val, data.test):
        shares = split.y.bincount(minlength=10) / len(split.y)
        assert (shares - 0.1).abs().max() < 0.006, "every class has its share"
    rows = torch.cat([data.train.x, data.val.x, data.test.x]).flatten(1)
    assert len(rows) == 1797
    assert torch.equal(data.test.x, get("digits").test.x)
    with pytest.raises(InputError, match="have no directory: write 'digits'"):
        get("digits:somewhere")


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "labels", "test_labels", "mean", "std"),
    [
        ("mnist", [5, 0, 4, 1, 9], [7, 2, 1, 0, 4], 0.1307, 0.3081),
        ("fashion-mnist", [9, 0, 0, 3, 0], [9, 2, 1, 1, 6], 0.2860, 0.3530),
    ],
)
def test_idx_sets(
    shared: Shared, name: str, labels: list[int], test_labels: list[int], mean: float, std: float
) -> None:
    data = get(f"{name}:{shared(name)}")
    assert sizes(data) == [55000, 5000, 10000]
    assert data.train.y[:5].tolist() == labels
    assert data.test.y[:5].tolist() == test_labels
    whole = torch.cat([data.train.x, data.val.x]).float() / 255
    assert whole.mean().item() == pytest.approx(mean, abs=1e-4)
    assert whole.std().item() == pytest.approx(std, abs=1e-4)
    first = next(iter(data.batches("test", 256))).x
    assert (first.shape, first.dtype) == ((256, 1, 28, 28), torch.float32)
    assert get(f"{name}:{shared(name).parent}").samples("test") == 10000, "the folder above is found too"
    assert len(data.classes) == 10


@pytest.mark.slow
@pytest.mark.shared
def test_cifar10(shared: Shared) -> None:
    data = get(f"cifar10:{shared('cifar10')}")
    assert sizes(data) == [45000, 5000, 10000]
    assert [data.classes[i] for i in data.train.y[:4]] == ["frog", "truck", "truck", "deer"]
    assert [data.classes[i] for i in data.test.y[:4]] == ["cat", "ship", "ship", "airplane"]
    whole = torch.cat([data.train.x, data.val.x])
    assert torch.bincount(torch.cat([data.train.y, data.val.y])).tolist() == [5000] * 10
    for channel in range(3):
        counts = whole[:, channel].flatten().bincount(minlength=256).double()
        values = torch.arange(256).double() / 255
        mean = (counts @ values / counts.sum()).item()
        std = (counts @ (values - mean).square() / counts.sum()).sqrt().item()
        assert (mean, std) == pytest.approx((CIFAR10_MEAN[channel], CIFAR10_STD[channel]), abs=3e-4)
    mean, std = moments(data, "test")
    assert mean.abs().max() < 0.03
    assert (std - 1).abs().max() < 0.03
    below = get(f"cifar10:{shared('cifar10') / 'cifar-10-batches-bin'}")
    assert torch.equal(below.test.x, data.test.x)


@pytest.mark.shared
def test_imagefolder_of_real_photographs(shared: Shared) -> None:
    data = get(f"imagefolder:{shared('imagenet300')}")
    assert sizes(data) == [240, 30, 30]
    assert len(data.classes) == 300
    x, y = next(iter(data.batches("val", 4)))
    assert (x.shape, x.dtype, y.dtype) == ((4, 3, 224, 224), torch.float32, torch.int64)
    assert -2.2 < x.min() < x.max() < 2.7
    assert "divided once, seeded: 240 train, 30 val, 30 test" in data.notes[0]
    files = [path for split in (data.train, data.val, data.test) for path, _ in split.files]
    assert len(set(files)) == 300


@pytest.mark.parametrize("name", DATASETS)
def test_law_a_missing_set_tells_how_to_get_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if name == "digits":
        return
    with pytest.raises(InputError) as error:
        get(name)
    assert "\n" not in str(error.value)
    assert f"data/{name}" in str(error.value)
    assert name == "imagefolder" or ("curl -fL" in str(error.value) and "https://" in str(error.value))
    assert DATASETS.summary(name).endswith(".") or name == "imagefolder"


def test_an_unknown_set_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'fashion-mnist'"):
        get("fashion_mnist")


def write_idx(path: Path, array: np.ndarray) -> None:
    head = struct.pack(">i", 0x800 + array.ndim) + struct.pack(f">{array.ndim}i", *array.shape)
    path.write_bytes(gzip.compress(head + array.astype(np.uint8).tobytes()))


def small_mnist(folder: Path) -> Path:
    for split, n in (("train", 20), ("t10k", 6)):
        write_idx(folder / f"{split}-images-idx3-ubyte.gz", np.arange(n * 784).reshape(n, 28, 28) % 251)
        write_idx(folder / f"{split}-labels-idx1-ubyte.gz", np.arange(n) % 10)
    return folder


def test_a_small_idx_set(tmp_path: Path) -> None:
    data = get(f"mnist:{small_mnist(tmp_path)}")
    assert sizes(data) == [10, 10, 6]
    x = next(iter(data.batches("test", 1))).x
    assert torch.allclose(x[0, 0, 0, :3], (torch.tensor([0, 1, 2]) / 255 - 0.1307) / 0.3081, atol=1e-6)


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-20]), "truncated or no gzip file"),
        (lambda path: path.write_bytes(b"not a gzip file"), "truncated or no gzip file"),
        (lambda path: path.write_bytes(gzip.compress(b"\0\0")), "is no idx file of bytes"),
        (lambda path: path.write_bytes(gzip.compress(b"\0\0\x0d\x01\0\0\0\x01\0")), "is no idx file of bytes"),
        (
            lambda path: path.write_bytes(gzip.compress(b"\0\0\x08\x01\0\0\0\x14" + b"\0" * 19)),
            r"19 bytes .* promises \(20,\)",
        ),
        (lambda path: write_idx(path, np.zeros(19)), "do not belong together"),
        (lambda path: path.unlink(), "is missing: mkdir -p"),
    ],
)
def test_broken_idx_files_are_one_line(tmp_path: Path, damage: Callable[[Path], None], line: str) -> None:
    damage(small_mnist(tmp_path) / "train-labels-idx1-ubyte.gz")
    with pytest.raises(InputError, match=line) as error:
        get(f"mnist:{tmp_path}")
    assert "\n" not in str(error.value)
    assert "curl" in str(error.value)


def test_read_idx_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="download it again"):
        read_idx(tmp_path / "no.gz")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"\0" * 3072, "is truncated: 3072 bytes"),
        (b"", "is truncated: 0 bytes"),
        (b"\x0a" * 3073, "label 10, of 10 classes"),
    ],
)
def test_broken_cifar_files_are_one_line(tmp_path: Path, content: bytes, line: str) -> None:
    for i in range(1, 6):
        (tmp_path / f"data_batch_{i}.bin").write_bytes(b"\x01" * 3073)
    with pytest.raises(InputError, match=r"test_batch\.bin is missing"):
        get(f"cifar10:{tmp_path}")
    (tmp_path / "test_batch.bin").write_bytes(content)
    with pytest.raises(InputError, match=line):
        get(f"cifar10:{tmp_path}")


def test_a_small_cifar_set(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        rows = np.full((2, 3073), 40 * i, np.uint8)
        rows[:, 0] = i
        rows.tofile(folder / f"{name}.bin")
    data = get(f"cifar10:{tmp_path}")
    assert sizes(data) == [5, 5, 2]
    assert torch.cat([data.train.y, data.val.y, data.test.y]).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    x = next(iter(data.batches("test"))).x
    expected = (200 / 255 - torch.tensor(CIFAR10_MEAN)) / torch.tensor(CIFAR10_STD)
    assert torch.allclose(x[0, :, 0, 0], expected, atol=1e-6)
    augmented = next(iter(data.batches("train", 8, shuffle=True, augment=True))).x
    assert augmented.shape == (5, 3, 32, 32)


# -- imagefolder


def image(path: Path, size: tuple[int, int] = (300, 260), color: tuple[int, int, int] = (255, 0, 0)) -> None:
    pil = pytest.importorskip("PIL.Image")
    path.parent.mkdir(parents=True, exist_ok=True)
    pil.new("RGB", size, color).save(path)


def folders(home: Path, counts: dict[str, int]) -> Path:
    for where, count in counts.items():
        for i in range(count):
            image(home / where / f"{i}.{'png' if i % 2 else 'JPG'}")
    return home


def test_images_are_resized_and_cropped(tmp_path: Path) -> None:
    pil = pytest.importorskip("PIL.Image")
    for width, height in ((300, 260), (224, 224), (1000, 100), (50, 40), (224, 600)):
        image(tmp_path / "a.png", (width, height))
        assert read_image(tmp_path / "a.png").shape == (3, 224, 224)
    gradient = np.broadcast_to(np.arange(512, dtype=np.uint8)[None, :, None] // 2, (256, 512, 3))
    pil.fromarray(np.ascontiguousarray(gradient)).save(tmp_path / "b.png")
    cut = read_image(tmp_path / "b.png")
    assert cut[0, 0].tolist() == gradient[0, 144:368, 0].tolist(), "the middle of an image with shorter side 256"


def test_train_val_and_test_folders_are_used(tmp_path: Path) -> None:
    home = folders(tmp_path, {"train/a": 3, "train/b": 2, "val/a": 2, "val/b": 2, "test/b": 1, ".git/x": 1})
    data = get(f"imagefolder:{home}")
    assert (sizes(data), data.classes, data.notes) == ([5, 4, 1], ("a", "b"), ())
    assert data.test.files[0][1] == 1


def test_what_is_not_given_is_set_aside(tmp_path: Path) -> None:
    home = folders(tmp_path, {"train/a": 20, "val/a": 4})
    data = get(f"imagefolder:{home}")
    assert sizes(data) == [20, 2, 2]
    assert "val was divided once" in data.notes[0]
    home = folders(tmp_path / "second", {"train/a": 20, "test/a": 3})
    data = get(f"imagefolder:{home}")
    assert sizes(data) == [18, 2, 3]
    assert "18 train, 2 val" in data.notes[0]


def test_broken_folders_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="has no folders of classes; expected DIR/CLASS"):
        get(f"imagefolder:{tmp_path / 'empty'}")
    (tmp_path / "empty" / "a").mkdir()
    with pytest.raises(InputError, match=r"holds no \.jpg or \.png images"):
        get(f"imagefolder:{tmp_path / 'empty'}")
    with pytest.raises(InputError, match="holds 2 images, too few"):
        get(f"imagefolder:{folders(tmp_path / 'few', {'a': 2})}")
    with pytest.raises(InputError, match="has class 'c', which the training folder lacks"):
        get(f"imagefolder:{folders(tmp_path / 'other', {'train/a': 2, 'val/c': 2})}")
    home = folders(tmp_path / "broken", {"a": 4})
    for file in home.glob("a/*"):
        file.write_bytes(file.read_bytes()[:300] if file.suffix == ".JPG" else b"text")
    with pytest.raises(InputError, match="cannot be read as an image"):
        check(get(f"imagefolder:{home}"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="needs pillow: pip install"):
        get("imagefolder")


# -- normalization, augmentation, division


def test_crop_flip_moves_whole_images() -> None:
    x = torch.arange(1, 2 * 3 * 8 * 6 + 1).view(2, 3, 8, 6).repeat(50, 1, 1, 1).to(torch.int32)
    moved = CropFlip(2)(x, torch.Generator().manual_seed(0))
    assert (moved.shape, moved.dtype) == (x.shape, x.dtype)
    padded = torch.nn.functional.pad(x, (2,) * 4)
    every = [p for i in range(5) for j in range(5) for p in (padded[..., i : i + 8, j : j + 6],)]
    every += [p.flip(3) for p in every]
    seen = {next(k for k, p in enumerate(every) if torch.equal(p[n], moved[n])) for n in range(100)}
    assert len(seen) > 25, "many shifts, mirrored and not"
    assert torch.equal(moved, CropFlip(2)(x, torch.Generator().manual_seed(0)))
    assert torch.equal(CropFlip(0, flip=False)(x, torch.Generator()), x)


def test_normalize_by_hand() -> None:
    x = torch.tensor([[[[0]], [[255]]]], dtype=torch.uint8)
    assert Normalize((0.5, 0.25), (0.5, 0.25))(x).flatten().tolist() == [-1, 3]


@pytest.mark.parametrize("n", [2, 3, 10, 101])
def test_stratified_is_a_partition(n: int) -> None:
    labels = torch.randint(3, (n,)).tolist()
    sizes = (n // 3, n // 4)
    parts = stratified(labels, sizes, seed=5)
    assert [len(part) for part in parts] == [*sizes, n - sum(sizes)]
    assert sorted(sum(parts, [])) == list(range(n))  # noqa: RUF017 (three lists)
    for part in parts:
        for label in set(labels):
            share = labels.count(label) * len(part) / n
            assert abs(sum(labels[i] == label for i in part) - share) < 2
