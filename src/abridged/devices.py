"""Times that a device took of an artifact, as `make bench` prints them, into the ledger of the run that made it."""

from __future__ import annotations

from pathlib import Path

from abridged.errors import InputError
from abridged.ledger import Ledger
from abridged.measurement.records import Device
from abridged.targets.artifact import MANIFEST, read_manifest


def read(file: Path) -> tuple[Device, ...]:
    """The lines of a file, one measurement each. Raises `InputError` for what is none, and for times of an emulator."""
    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read: {error}") from None
    if not lines:
        raise InputError(f"{file}: is empty; run `make bench` on the device and keep the line that it prints")
    return tuple(_device(file, number, line) for number, line in enumerate(lines, start=1))


def _device(file: Path, number: int, line: str) -> Device:
    try:
        device = Device.model_validate_json(line)
    except ValueError as error:
        why = "; ".join(str(error).splitlines()[1:3])
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
