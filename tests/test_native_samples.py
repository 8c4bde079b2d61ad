"""A batch that runs part by part: what stays apart does, and whatever lets one sample see another is left whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from native_checks import agrees
from torch import Tensor, nn
from torch.nn import functional as F

import abridged as ab
from abridged.compiler import samples
from abridged.compiler.pipeline import compile_graph, plan
from abridged.compiler.plan import Parts
from abridged.compiler.samples import in_parts
from abridged.graph.capture import capture


class Function(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.register_buffer("one", torch.rand(1, 3, 1, 1))
        self.register_buffer("each", torch.rand(6, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        found = FUNCTIONS[self.name](self, x)
        assert isinstance(found, Tensor)
        return found


APART = {
    "flattened": lambda m, x: F.linear(x.flatten(1), torch.ones(2, 3 * 8 * 8)),
    "shared constant": lambda m, x: x * m.one + m.each[0],
    "split, moved, joined": lambda m, x: torch.cat(torch.split(x, [1, 2], 1)[::-1], 1).flip(2).roll(1, 3),
    "normed": lambda m, x: F.group_norm(F.layer_norm(x, (8, 8)), 3),
    "normed, one number each": lambda m, x: F.group_norm(x.mean((2, 3), keepdim=True), 3) + x,
    "gated": lambda m, x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)) + x.amax(1, keepdim=True),
    "shuffled": lambda m, x: x.view(6, 3, 4, 2, 8).transpose(2, 3).reshape(6, 3, 8, 8),
    "expanded": lambda m, x: x.mean(1, keepdim=True).expand(6, 5, 8, 8).repeat(1, 2, 1, 1),
    "padded": lambda m, x: F.pad(F.interpolate(x, scale_factor=2.0), (1, 2, 0, 1), mode="replicate"),
    "softmaxed": lambda m, x: F.softmax(x, 1).cumsum(3),
}
TOGETHER = {
    "over the batch": lambda m, x: x - x.mean(0, keepdim=True),
    "a constant for each": lambda m, x: x * m.each,
    "in another order": lambda m, x: x.flip(0),
    "next to each other": lambda m, x: x + x.roll(1, 0),
    "axes changed": lambda m, x: x.transpose(0, 1).contiguous().transpose(0, 1) * 2,
    "samples as channels": lambda m, x: x.reshape(1, 18, 8, 8) * 2,
    "samples as channels, and back": lambda m, x: (x.reshape(1, 18, 8, 8) * 2).reshape(6, 3, 8, 8),
    "samples as features": lambda m, x: F.linear(x.reshape(-1, 16), torch.ones(16, 16)).reshape(6, 3, 8, 8),
    "all in a row": lambda m, x: x.flatten().reshape(6, 3, 8, 8) * 2,
    "rolled": lambda m, x: x.roll(1) + 0,
    "not a batch": lambda m, x: F.max_pool2d(x[:, 0], 3, 1, 1),
    "twice": lambda m, x: torch.cat([x, x], 0),
    "some": lambda m, x: x[:3] + x[3:],
    "of another rank": lambda m, x: x[..., :6] + x.mean((1, 2, 3)),
    "softmax over samples": lambda m, x: F.softmax(x, 0),
}
FUNCTIONS = APART | TOGETHER


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "TOGETHER", 1)


@pytest.mark.usefixtures("one_by_one", "fast_builds")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_samples_run_one_by_one_where_they_stay_apart(name: str) -> None:
    module, x = Function(name).eval(), torch.randn(6, 3, 8, 8)
    _, parts = in_parts(capture(module, x))
    assert (parts is not None and parts.count == 6) == (name in APART)
    agrees(module, x)


@pytest.mark.usefixtures("one_by_one")
def test_inputs_and_outputs_of_any_number_and_type_are_cut(tmp_path: Path) -> None:
    class Several(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
            return {"most": x.flatten(1).argmax(1), "both": x.mean((2, 3)) + y, "large": y > 0}

    inputs = torch.randn(5, 4, 3, 3), torch.randn(5, 4)
    with ab.deploy(Several().eval(), inputs, target="native", out=tmp_path / "net", threads=2) as artifact:
        found, wanted = artifact(*inputs), Several()(*inputs)
        assert "i < 5" in (tmp_path / "net" / "model.c").read_text()
        assert sum(artifact._engine.layer_times(artifact.path, [x.numpy() for x in inputs], 3).values()) > 0
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value)


def test_an_output_that_is_nobodys_and_inputs_of_several_batches_stay_whole() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x * 2, torch.ones(6)

    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return x * 2, y * 2

    for graph in (
        capture(Constant(), torch.randn(6, 3)),
        capture(Two(), (torch.randn(6, 3), torch.randn(4, 3))),
        capture(Two(), (torch.tensor(1.0), torch.tensor(2.0))),
    ):
        assert in_parts(graph) == (graph, None)


def test_a_part_is_as_large_as_it_may_be_and_divides_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = capture(nn.Conv2d(3, 8, 3, padding=1).eval(), torch.randn(12, 3, 16, 16))
    largest = 4 * 8 * 16 * 16  # bytes of a sample's output
    for fitting, count in ((1, 12), (3, 4), (5, 3), (7, 2), (11, 2), (12, 1), (100, 1)):
        monkeypatch.setattr(samples, "TOGETHER", fitting * largest)
        _, parts = in_parts(graph)
        assert parts == (None if count == 1 else Parts(count, (12 // count * 3072,), (12 // count * 8192,)))
        assert plan(graph, without={"samples"}).parts is None


@pytest.mark.usefixtures("one_by_one")
def test_the_arena_has_room_for_one_part() -> None:
    graph = capture(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 3)).eval(), torch.randn(16, 3, 32, 32))
    assert 8 * plan(graph).arena < plan(graph, without={"samples"}).arena
    assert b"run_part" in compile_graph(graph).files["model.c"]
