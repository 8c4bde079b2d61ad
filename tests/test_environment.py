"""Environment: what makes numbers comparable, and nothing that names a person or a place."""

import platform
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path

import pytest

from abridged.measurement import environment as module
from abridged.measurement.environment import cpu_name, environment, versions


def test_this_machine() -> None:
    here = environment(3)
    assert here.threads == 3
    assert 1 <= here.cores == environment().threads
    assert here.memory > 2**28
    assert here.python == platform.python_version()
    assert {"abridged", "torch", "numpy", "onnxruntime"} <= here.versions.keys()
    assert datetime.now(UTC) - datetime.fromisoformat(here.date) < timedelta(minutes=1)
    assert type(here).model_validate_json(here.model_dump_json()) == here


def test_nothing_private() -> None:
    assert str(Path.home()) not in environment().model_dump_json()
    assert environment().platform.split() == [platform.system(), platform.machine()]


@pytest.mark.parametrize(
    ("text", "name"),
    [("processor\t: 0\nmodel name\t: Fast CPU @ 3 GHz\n", "Fast CPU @ 3 GHz"), ("model name :\n", None), (None, None)],
)
def test_a_processor_that_does_not_say_its_name(
    tmp_path: Path, monkeypatch, text: str | None, name: str | None
) -> None:
    path = tmp_path / "cpuinfo"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(module, "CPUINFO", path)
    assert cpu_name() == (name or platform.processor() or platform.machine())


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "openvino":
            raise metadata.PackageNotFoundError(name)
        return "1.2"

    monkeypatch.setattr(module.metadata, "version", version)
    assert "openvino" not in versions()
    assert versions()["numpy"] == "1.2"
