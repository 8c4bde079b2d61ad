"""Fixtures that every test may use: the real data beside the checkout, torchvision, small networks."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_configure(config: pytest.Config) -> None:
    # Two cores and several test processes: one thread each is fastest, and makes sums reproducible.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory):
    """A function NAME → directory of that published data set, unpacked once. Skips where ../shared is absent."""
    if not (SHARED / "data" / "unpack.py").exists():
        pytest.skip("needs the real data in ../shared/data")
    cache = Path(tmp_path_factory.getbasetemp()).parent / "abridged-shared-data"

    def unpack(name: str) -> Path:
        done = cache / f".{name}.done"
        if not done.exists():
            cache.mkdir(parents=True, exist_ok=True)
            subprocess.run([sys.executable, SHARED / "data" / "unpack.py", str(cache), name], check=True)
            done.touch()
        return cache / name

    return unpack


@pytest.fixture(scope="session")
def torchvision_models():
    """torchvision.models, whose operators do not load beside every build of torch: the missing ones are declared."""
    pytest.importorskip("torch")
    from abridged.sources import import_torchvision

    return import_torchvision()


@pytest.fixture(scope="module")
def fast_builds():
    """Emitted C is compiled fast: for tests that ask whether it is right, of many small networks."""
    from abridged.compiler import build

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "FLAGS", ("-O1", *build.FLAGS[1:]))
        yield
