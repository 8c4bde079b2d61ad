"""`abridged measure DIR --from FILE`: what a device printed stands in the ledger and in the report, and nothing else does."""

import json
from pathlib import Path

import pytest
import torch
from report_ledgers import plausible
from torch import nn
from typer.testing import CliRunner

from abridged import cli, devices, targets
from abridged.errors import InputError
from abridged.files import sha256
from abridged.graph.capture import capture
from abridged.ledger import Ledger


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of target c in a folder like that of a run."""
    out = tmp_path_factory.mktemp("run")
    network = nn.Sequential(nn.Linear(3, 2), nn.ReLU()).eval()
    targets.build(capture(network, torch.zeros(1, 3)), "c", out / "artifact").close()
    return out


@pytest.fixture
def run(made: Path) -> Path:
    plausible(artifact="artifact").save(made / "ledger.json")
    return made


def line(run: Path, **changes: object) -> str:
    found = {
        "weights": sha256(run / "artifact" / "weights.bin")[:16],
        "machine": "Cortex-A72, aarch64", "compiler": "GCC 12.2.0", "flags": "-O3", "weights_bytes": 1088,
        "arena_bytes": 2048, "threads": 1, "runs": 200, "emulated": False,
        "median_ms": 12.34, "p95_ms": 13.5, "spread": 0.01,
    }  # fmt: skip
    return json.dumps({k: v for k, v in {**found, **changes}.items() if v is not None})


def write(folder: Path, *lines: str) -> Path:
    (folder / "bench.json").write_text("\n".join(lines) + "\n")
    return folder / "bench.json"


EMULATED = {"emulated": True, "runs": 0, "median_ms": None, "p95_ms": None, "spread": None, "machine": "riscv64"}


@pytest.mark.parametrize("place", ["", "artifact"])
def test_the_devices_lines_go_to_the_ledger_and_the_report(run: Path, place: str, tmp_path: Path) -> None:
    file = write(tmp_path, "cc -O3 -o timing bench.c model.c -lm", line(run), line(run, **EMULATED))
    done = CliRunner().invoke(cli.app, ["measure", str(run / place), "--from", str(file)])
    assert done.exit_code == 0, done.output
    assert "Cortex-A72, aarch64: median 12.34 ms" in done.output
    assert "riscv64: emulated, so without times" in done.output
    ledger = Ledger.load(run / "ledger.json")
    assert [device.median_ms for device in ledger.devices] == [12.34, None]
    for name in ("report.html", "report.md"):
        text = (run / name).read_text()
        assert "Cortex-A72" in text
        assert "12.3 ms" in text
        assert "emulated: no times" in text
    assert ledger.model_copy(update={"devices": ()}) == plausible(artifact="artifact")


def test_without_a_run_nothing_is_added_and_that_is_said(run: Path, tmp_path: Path) -> None:
    lone = tmp_path / "elsewhere" / "net"
    lone.mkdir(parents=True)
    for file in (run / "artifact").iterdir():
        (lone / file.name).write_bytes(file.read_bytes())
    done = CliRunner().invoke(cli.app, ["measure", str(lone), "--from", str(write(tmp_path, line(run)))])
    assert done.exit_code == 0
    assert "belongs to no run" in done.output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": "0" * 16}, "is not what was measured"),
        ({"emulated": True}, "times of an emulator"),
        ({"median_ms": "fast"}, "line 1: not a line of `make bench`"),
        ({"name": "x"}, "line 1: not a line of `make bench`"),
    ],
)
def test_what_cannot_be_true_is_refused(run: Path, changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        devices.add(run, devices.read(write(tmp_path, line(run, **changes))))


def test_files_that_are_none(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        devices.read(tmp_path / "absent")
    for nothing in ("", "cc -o timing bench.c"):
        with pytest.raises(InputError, match="has no measurement"):
            devices.read(write(tmp_path, nothing))
    with pytest.raises(InputError, match=r"line 2: not a line of `make bench`: Invalid JSON: [^;]+$"):
        devices.read(write(tmp_path, "make: Entering directory", '{"weights": '))
    done = CliRunner().invoke(cli.app, ["measure", str(run), "--from", "x", "--data", "digits"])
    assert isinstance(done.exception, InputError)
