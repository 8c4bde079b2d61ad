"""Things of another type, where a module, data, an artifact or a path belongs: one line each, by every public function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import abridged as ab


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    x, y = torch.rand(12, 1, 8, 8), torch.arange(12) % 10
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    out = tmp_path_factory.mktemp("artifact") / "net"
    with ab.deploy(net, x[:1], out=out) as artifact:
        yield {"net": net, "x": x[:1], "data": ab.Data((x, y), (x, y), (x, y)), "artifact": artifact, "out": out}


CALLS: dict[str, Callable[..., Any]] = {
    "measure takes an artifact, .*, not None": lambda of: ab.measure(None),
    "measure takes an artifact, .*, not Sequential": lambda of: ab.measure(of["net"]),
    "measure takes an artifact, .*, not str": lambda of: ab.measure(str(of["out"])),
    "against must be a list of modules.*, not None": lambda of: ab.measure(of["artifact"], None),
    "against must be a list of modules.*, not Sequential": lambda of: ab.measure(of["artifact"], of["net"]),
    "seconds must be a number, not str": lambda of: ab.measure(of["artifact"], seconds="1"),
    "data must be an ab.Data, not str": lambda of: ab.measure(of["artifact"], data="digits"),
    "threads: expected at least 1 .*, got 'all'": lambda of: ab.load(of["out"], threads="all"),
    "an artifact is loaded from a directory, not None": lambda of: ab.load(None),
    "out must be a directory, not int": lambda of: ab.deploy(of["net"], of["x"], out=3),
    "the model must be a torch.nn.Module, not None": lambda of: ab.deploy(None, of["x"]),
    "forward does not accept the example: linear of int64 and float32": lambda of: ab.deploy(of["net"], of["x"].long()),
    "forward does not accept the example: linear of float64 and": lambda of: ab.capture(of["net"], of["x"].double()),
    "weights are those of an nn.Module or a state dict, not None": lambda of: ab.save(None, "net.safetensors"),
    "weights are written to a file, not int": lambda of: ab.save(of["net"], 3),
    "weights are read from a file, not int": lambda of: ab.load_into(of["net"], 3),
    "evaluate takes a module, .*, not NoneType": lambda of: ab.evaluate(None, of["data"]),
    "data must be an ab.Data, not None": lambda of: ab.evaluate(of["net"], None),
    "sensitivity takes an nn.Module, not None": lambda of: ab.sensitivity(None, of["data"]),
    "find_ticket takes an nn.Module, not None": lambda of: ab.find_ticket(None, of["data"], 0.5),
    "data must be an ab.Data, not int": lambda of: ab.find_ticket(of["net"], 3, 0.5),
    "budget must be an ab.Budget, not int": lambda of: ab.compress(of["net"], of["data"], budget=3),
    "method must be the name of a method, or a list of names, not None": lambda of: ab.factorize(
        of["net"], of["x"], None, rank=1
    ),
    "rank by layer is {glob: rank}, .*: 0 is no glob": lambda of: ab.factorize(of["net"], of["x"], rank={0: 1}),
    "include and exclude are globs .*, not 3": lambda of: ab.factorize(of["net"], of["x"], rank=1, include=3),
    "include and exclude are globs .*, not None": lambda of: ab.prune(of["net"], 0.5, exclude=None),
    r"the model does not run on the calibration data: mat1": lambda of: ab.factorize(
        of["net"], of["x"], "whitened", rank=1, data=torch.zeros(4, 63)
    ),
    "the model must be the nn.Module that was factorized, not None": lambda of: ab.load_factorized(None, "net.pt"),
    "Budget: bytes: input should be a valid integer.*, not 'a'": lambda of: ab.Budget(bytes="a"),
    "Budget: unknown key 'byte'; did you mean 'bytes'": lambda of: ab.Budget(byte=3),
    "Recipe: steps: field required": lambda of: ab.Recipe(),
    "out must be a directory, not float": lambda of: ab.compress(of["net"], of["data"], out=3.0),
    "weights must be a file, not int": lambda of: ab.compress(of["net"], of["data"], weights=3),
    r"data must be an ab.Data\(.*\), not None": lambda of: ab.compress(of["net"], None),
}


@pytest.mark.parametrize("line", CALLS)
def test_another_type_is_named_in_one_line(line: str, given: dict[str, Any], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ab.InputError, match=line) as error:
        CALLS[line](given)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
