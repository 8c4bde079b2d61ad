"""Times that a device took of an artifact, as `make bench` prints them, into the ledger of the run that made it."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from abridged.errors import InputError
from abridged.ledger import Ledger
from abridged.measurement.records import Device
from abridged.targets.artifact import MANIFEST, read_manifest


def read(file: Path) -> tuple[Device, ...]:
    """The lines of a file, one measurement each; what make says of its own work is skipped.

    Raises `InputError` for what is no measurement, and for times of an emulator."""
    try:
        lines = list(enumerate(file.read_text(encoding="utf-8").splitlines(), start=1))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read: {error}") from None
    measured = [(number, line) for number, line in lines if line.lstrip().startswith("{")]
    if not measured:
        raise InputError(f"{file}: has no measurement; run `make bench` on the device and keep the line that it prints")
    return tuple(_device(file, number, line) for number, line in measured)


def _device(file: Path, number: int, line: str) -> Device:
    try:
        device = Device.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        why = ": ".join([*map(str, first["loc"]), first["msg"]])
        raise InputError(f"{file}, line {number}: not a line of `make bench`: {why}") from None
    if device.emulated and device.median_ms is not None:
        raise InputError(f"{file}, line {number}: has times of an emulator, which mean nothing; measure on the device")
    return device


def add(directory: Path, devices: tuple[Device, ...]) -> Path | None:
    """Append to the ledger of a run, given by its folder or its artifact's; None where there is no ledger.

    Raises `InputError` when the artifact has other weights than what was measured."""
    place = next((folder for folder in (directory, directory.parent) if (folder / "ledger.json").exists()), None)
    ledger = Ledger.load(place / "ledger.json") if place else None
    artifact = directory
    if place and ledger and ledger.artifact and not (directory / MANIFEST).exists():
        artifact = place / ledger.artifact
    weights = read_manifest(artifact).files.get("weights.bin")
    for device in devices:
        if weights is None or not weights.sha256.startswith(device.weights):
            raise InputError(f"{artifact}: is not what was measured on {device.machine}: its weights are others")
    if place is None or ledger is None:
        return None
    ledger.model_copy(update={"devices": (*ledger.devices, *devices)}).save(place / "ledger.json")
    return place


def describe(device: Device) -> str:
    """One line for people."""
    built = f"{device.compiler} {device.flags}".strip()
    if device.median_ms is None or device.p95_ms is None:
        return f"{device.machine}: emulated, so without times ({built})"
    return (
        f"{device.machine}: median {device.median_ms:.4g} ms, p95 {device.p95_ms:.4g} ms "
        f"({device.runs} runs, {device.threads} thread, {built})"
    )
