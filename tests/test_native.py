"""Target `native`: what it compiles equals the oracle, on any number of threads, and refuses what it should."""

import importlib
import threading as python_threads
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_checks import agrees, without_passes
from torch import Tensor, nn

from abridged import targets
from abridged.compiler.build import find_compiler
from abridged.errors import InputError, UnsupportedError
from abridged.graph.capture import capture
from abridged.graph.interpret import interpret


class Block(nn.Module):
    """A residual block with a cat, a split and a permuted linear layer: every way that values share rows."""

    def __init__(self, channels: int, kernel: int, activation: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)
        self.norm = nn.BatchNorm2d(channels)
        self.activation = activation
        self.second = nn.Conv2d(2 * channels, channels, 1)
        self.mix = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.norm(self.first(x)))
        z = self.second(torch.cat([x, y], 1)) + x
        first, rest = z.split([1, z.shape[1] - 1], 1)
        z = torch.cat([rest, first], 1)
        return self.mix(z.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) * y.mean((2, 3), keepdim=True)


ACTIVATIONS = [nn.ReLU(), nn.SiLU(), nn.Hardswish(), nn.GELU(), nn.ReLU6(), nn.Sigmoid(), nn.ELU(), nn.LeakyReLU(0.1)]


@settings(max_examples=10, deadline=None)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(2, 19),
    height=st.integers(1, 17),
    width=st.integers(1, 19),
    kernel=st.sampled_from([1, 3, 5]),
    activation=st.sampled_from(ACTIVATIONS),
)
def test_random_blocks(batch: int, channels: int, height: int, width: int, kernel: int, activation: nn.Module) -> None:
    agrees(Block(channels, kernel, activation), torch.randn(batch, channels, height, width))


@settings(max_examples=12, deadline=None)
@given(
    channels=st.tuples(st.integers(1, 9), st.integers(1, 17)),
    size=st.tuples(st.integers(5, 23), st.integers(5, 23)),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    density=st.sampled_from([0.0, 0.1, 1.0]),
)
def test_random_convolutions(
    channels: tuple[int, int],
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    density: float,
) -> None:
    conv = nn.Conv2d(*channels, kernel, stride, padding)
    with torch.no_grad():
        conv.weight *= torch.rand_like(conv.weight) < density
    agrees(nn.Sequential(conv, nn.ReLU()), torch.randn(1, channels[0], *size))


@pytest.mark.parametrize(
    "module",
    [
        nn.MaxPool2d(3, 2, 1),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.MaxPool2d(2, 1, dilation=2),
        nn.AvgPool2d(3, 2, 1),
        nn.AvgPool2d(3, 2, 1, ceil_mode=True),
        nn.AvgPool2d((3, 2), count_include_pad=False, padding=(1, 0)),
        nn.AdaptiveAvgPool2d(1),
        nn.AdaptiveAvgPool2d((2, 3)),
        nn.Conv2d(6, 12, 3, groups=3, dilation=2, padding=2),
        nn.Conv2d(6, 6, 3, groups=6, stride=2, padding=1),
        nn.Conv2d(6, 12, 5, groups=6, padding=2),
        nn.Sequential(nn.Flatten(), nn.Linear(6 * 12 * 15, 13), nn.Softmax(1)),
        nn.Sequential(nn.Flatten(2), nn.Conv1d(6, 5, 3, stride=2, padding=1), nn.LayerNorm(90)),
        nn.Sequential(nn.BatchNorm2d(6), nn.ReLU(), nn.ChannelShuffle(3)),
    ],
    ids=str,
)
def test_each_op(module: nn.Module) -> None:
    agrees(nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), module), torch.randn(2, 3, 12, 15))


@pytest.mark.parametrize(("features", "shape"), [(4, (1, 4, 9)), (6, (2, 4, 9)), (4, (3, 9))])
def test_a_batch_norm_is_along_its_own_axis(features: int, shape: tuple[int, ...], fast_builds: None) -> None:
    norm = nn.BatchNorm1d(4)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    agrees(nn.Sequential(nn.Linear(9, features), norm), torch.randn(shape))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 10)).eval()


def test_equal_bits_for_any_number_of_threads(network: nn.Module) -> None:
    x = torch.randn(1, 3, 33, 29)
    graph, answers = capture(network, x), []
    for count in (1, 2, 5):
        with targets.build(graph, "native", threads=count, tune=False) as artifact:
            answers += [artifact(x) for _ in range(20)]
    assert all(torch.equal(answer, answers[0]) for answer in answers)


def test_two_artifacts_in_two_python_threads(network: nn.Module) -> None:
    x = torch.randn(1, 3, 33, 29)
    graph = capture(network, x)
    with targets.build(graph, "native", threads=2) as a, targets.build(graph, "native", threads=2) as b:
        expected, wrong = a(x), []

        def call(artifact: targets.artifact.Artifact) -> None:
            wrong.extend(not torch.equal(artifact(x), expected) for _ in range(50))

        callers = [python_threads.Thread(target=call, args=(artifact,)) for artifact in (a, b, a)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert len(wrong) == 150
        assert not any(wrong)


def test_reloaded_and_closed(network: nn.Module, tmp_path: Path) -> None:
    x = torch.randn(1, 3, 33, 29)
    built = targets.build(capture(network, x), "native", tmp_path / "net", threads=1)
    with targets.load(tmp_path / "net", threads=2) as again:
        assert torch.equal(again(x), built(x))
        assert isinstance(again(x.numpy()), np.ndarray)
        times = again.layer_times((x.numpy(),), runs=2)
        assert times is not None
        assert "2" in times
    with pytest.raises(InputError, match="closed"):
        again(x)
    built.close()
    weights = tmp_path / "net" / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(InputError, match="bytes"):
        targets.load(tmp_path / "net")


@pytest.mark.parametrize(
    ("multiplier", "kernel", "stride", "padding", "height", "width"),
    [(1, 3, 2, 1, 17, 19), (2, 5, 2, 2, 16, 16), (1, 3, 3, 0, 20, 13), (1, 3, (1, 2), 1, 9, 40)],
)
def test_strided_depthwise(multiplier, kernel, stride, padding, height: int, width: int) -> None:
    depthwise = nn.Conv2d(5, 5 * multiplier, kernel, stride, padding, groups=5)
    after = nn.Conv2d(5 * multiplier, 7, 3, padding=1)  # reads zeros around what the depthwise layer writes
    net = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU6(), depthwise, nn.ReLU6(), after)
    agrees(net, torch.randn(2, 3, height, width))


class Rolled(nn.Module):
    """A cat along an axis of positions, of parts that lie at the pitch of the whole; a padded convolution reads it."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.before, self.after = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.before(x)
        n = x.shape[self.axis]
        y = torch.cat([x.narrow(self.axis, 1, n - 1), x.narrow(self.axis, 0, 1)], self.axis)
        return self.after(y), y.permute(0, 2, 3, 1).sigmoid()


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (3, 3, 1, 16), (2, 3, 17, 2)])
def test_parts_of_a_cat_lie_between_one_another(axis: int, shape: tuple[int, ...], fast_builds: None) -> None:
    x = torch.randn(shape)
    if shape[axis] > 1:
        module = Rolled(axis).eval()
        graph = capture(module, x)
        for found, exact in zip(without_passes(graph, (), (x,)), interpret(graph, x, dtype=torch.float64), strict=True):
            assert np.abs(found - exact.detach().numpy()).max() < 1e-5


@pytest.mark.parametrize("which", ["input", "constant"])
def test_a_network_that_computes_nothing(which: str, fast_builds: None) -> None:
    class Nothing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if which == "input" else torch.arange(3.0)

    x = torch.randn(2, 3)
    with targets.build(capture(Nothing(), x), "native", tune=False) as artifact:
        assert torch.equal(artifact(x), Nothing()(x))


def test_names_that_are_no_identifiers(fast_builds: None) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleDict({"*/ #error\n": nn.Linear(4, 3), "/* ü": nn.Sigmoid()})

        def forward(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"*/": self.parts["/* ü"](self.parts["*/ #error\n"](x["*/\n"]))}

    net, x = Net().eval(), {"*/\n": torch.randn(1, 4)}
    for target in ("native", "c"):
        with targets.build(capture(net, (x,)), target) as artifact:
            assert torch.allclose(artifact(x)["*/"], net(x)["*/"], atol=1e-6)
            times = artifact.layer_times(runs=1)
            assert times is None or any(path.startswith("parts.*/ #error") for path in times)


def test_unsupported_op_names_its_module() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ x.mT

    graph = capture(nn.Sequential(nn.ReLU(), Odd()), torch.zeros(1, 2, 3, 3))
    with pytest.raises(UnsupportedError, match=r"module '1'.*matmul"):
        targets.build(graph, "native")


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="install gcc or clang"):
        find_compiler()
    with pytest.raises(InputError, match="'tinycc' was not found"):
        find_compiler("tinycc")


@pytest.mark.parametrize("target", ["native", "c"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cc": " "}, "C compiler ' ': is no command"),
        ({"cc": "'gcc"}, "No closing quotation"),
        ({"cc": 3}, "cc must be a command, not int"),
        ({"cpu": 3}, "cpu must be a name, not int"),
        ({"cpu": "z80", "cc": "true"}, "cpu 'z80': true is no C compiler"),
    ],
)
def test_what_is_no_compiler_or_cpu(target: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        targets.build(capture(nn.ReLU(), torch.zeros(3)), target, **options)


def test_a_cache_that_cannot_be_written_stops_nothing(
    network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast_builds: None
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    x = torch.zeros(1, 3, 33, 29)
    with targets.build(capture(network, x), "native", threads=1) as artifact:
        assert artifact(x).shape == (1, 10)


@pytest.mark.parametrize(
    "without", ["fold_constants", "fold_batch_norms", "drop_channels", "drop_dead", "fuse", "reuse"]
)
def test_every_pass_is_optional(without: str) -> None:
    x = torch.randn(2, 5, 7, 9)
    graph = capture(Block(5, 3, nn.SiLU()).eval(), x)
    (out,) = without_passes(graph, [without], (x,))
    assert np.abs(out - interpret(graph, x, dtype=torch.float64).detach().numpy()).max() < 1e-5


def test_it_is_tuned_for_the_threads_that_it_is_built_for(
    network: nn.Module, monkeypatch: pytest.MonkeyPatch, fast_builds: None
) -> None:
    asked = []
    native = importlib.import_module("abridged.targets.native")  # its name in the package is the table's entry
    monkeypatch.setattr(native, "tune", lambda plan, build, machine, threads, *_: (asked.append(threads), plan)[1])
    targets.build(capture(network, torch.zeros(1, 3, 33, 29)), "native", threads=3).close()
    assert asked == [3]


def test_tuning_is_remembered(network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    graph = capture(network, torch.zeros(1, 3, 33, 29))
    targets.build(graph, "native").close()
    monkeypatch.setattr("abridged.compiler.tune._measured", lambda *_: pytest.fail("measured again"))
    targets.build(graph, "native").close()
