"""Results of a resumable benchmark: named cells in a JSON file, each written the moment it is done."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

from abridged.files import write_atomic


def read(path: Path) -> dict[str, dict[str, Any]]:
    return json.loads(path.read_text()) if path.exists() else {}


def add(path: Path, name: str, result: dict[str, Any]) -> None:
    """Write one cell more; several processes may."""
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        results = {**read(path), name: result}
        write_atomic(path, json.dumps(dict(sorted(results.items())), indent=1).encode() + b"\n")
