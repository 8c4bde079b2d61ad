"""Statistics of layers: each equals its formula on the whole batch, however the rows arrive; nothing of a model changes."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from abridged import Data
from abridged.calibration.samples import Samples
from abridged.calibration.sites import TRANSPOSED, columns, sites
from abridged.calibration.stats import STATISTICS, collect, stream
from abridged.errors import InputError, UnsupportedError

LAYERS = [
    (nn.Linear(5, 3), (7, 5)),
    (nn.Linear(5, 3, bias=False), (2, 4, 5)),
    (nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (3, 4, 11)),
    (nn.Conv2d(3, 4, 3, padding=1), (2, 3, 5, 7)),
    (nn.Conv2d(3, 4, (3, 2), stride=(2, 1), dilation=(1, 2), padding=(0, 3)), (3, 3, 8, 6)),
    (nn.Conv2d(6, 6, 3, groups=6, padding="same", dilation=2), (2, 6, 5, 5)),
    (nn.Conv2d(4, 4, (2, 3), groups=2, padding="same"), (2, 4, 6, 5)),
    (nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 2, 5, 4)),
    (nn.Conv2d(2, 3, 3, padding=(1, 2), padding_mode="circular", bias=False), (1, 2, 5, 4)),
    (nn.Conv2d(2, 3, 3), (2, 5, 4)),  # without a batch axis
    (nn.Conv3d(2, 3, 2, padding=1), (2, 2, 3, 4, 3)),
    (nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), (3, 4, 5)),
    (nn.ConvTranspose2d(3, 4, (3, 2), stride=(2, 3), dilation=(2, 1), padding=(3, 0)), (2, 3, 4, 5)),
    (nn.ConvTranspose3d(2, 3, 2), (1, 2, 3, 2, 3)),
]  # fmt: skip
# torch says that "same" padding copies the input of an even kernel.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")
each_layer = pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda value: str(value))


def whole(layer: nn.Module, x: torch.Tensor, chunk: int = 1 << 30) -> torch.Tensor:
    return torch.cat(list(columns(layer, x, chunk)), 1)


@each_layer
def test_a_layer_is_its_columns_times_its_matrix(layer, shape):
    layer, x = copy.deepcopy(layer).double(), torch.randn(shape, dtype=torch.float64)
    site = sites(layer)["weight"]
    product = whole(layer, x) @ site.matrix(site.parameter).mT  # (g, rows, O/g)
    output = layer(x) if layer.bias is None else layer(x) - layer.bias.view(-1, *[1] * (len(layer.weight.shape) - 2))
    channels = output if isinstance(layer, nn.Linear) else output.movedim(len(shape) - layer.weight.dim() + 1, -1)
    assert torch.allclose(product.permute(1, 0, 2).reshape(-1, site.outputs), channels.reshape(-1, site.outputs))
    assert torch.equal(site.weight(site.matrix(layer.weight)), layer.weight)
    assert site.features == whole(layer, x).shape[2]
    spread = site.spread(torch.arange(site.groups * site.features).reshape(site.groups, -1))
    assert torch.equal(site.matrix(spread)[:, 0].flatten(), torch.arange(site.groups * site.features))


def test_a_convolutions_columns_are_im2col():
    layer, x = nn.Conv2d(3, 4, 3, stride=2, padding=1, dilation=2), torch.randn(2, 3, 9, 8)
    unfolded = F.unfold(x, 3, dilation=2, padding=1, stride=2)  # (N, K, positions)
    assert torch.equal(whole(layer, x)[0], unfolded.mT.reshape(-1, 27))


@each_layer
def test_columns_do_not_depend_on_the_chunk(layer, shape):
    x = torch.randn(shape)
    for chunk in (1, 37, 100, 1000):
        parts = list(columns(layer, x, chunk))
        assert torch.equal(torch.cat(parts, 1), whole(layer, x))
    assert len(list(columns(layer, x, 1))) > 1


ORACLES = {
    "count": lambda x, i, o: torch.tensor(float(x.shape[1]), dtype=torch.float64),
    "input_norm": lambda x, i, o: torch.linalg.vector_norm(x, dim=1),
    "input_mean": lambda x, i, o: x.mean(1),
    "gram": lambda x, i, o: torch.einsum("gri,grj->gij", x, x),
    "input_zeros": lambda x, i, o: (i == 0).double().mean(0),
    "output_mean": lambda x, i, o: o.mean(0),
    "output_variance": lambda x, i, o: o.var(0, correction=0),
    "input_min": lambda x, i, o: i.min(0).values,
    "input_max": lambda x, i, o: i.max(0).values,
    "output_min": lambda x, i, o: o.min(0).values,
    "output_max": lambda x, i, o: o.max(0).values,
}


def test_every_statistic_has_an_oracle():
    assert set(ORACLES) == set(STATISTICS)
    assert all(STATISTICS[name].says for name in STATISTICS)


@each_layer
def test_streamed_statistics_equal_those_of_the_whole_batch(layer, shape):
    layer, x = copy.deepcopy(layer).double(), torch.randn(shape, dtype=torch.float64).relu()
    if x.ndim < (2 if isinstance(layer, nn.Linear) else layer.weight.dim()):
        x = x[None]
    found = collect(layer, x, list(STATISTICS), batch_size=1, dtype=torch.float64)["weight"]
    place = -1 if isinstance(layer, nn.Linear) else 1
    channels, outputs = (t.detach().movedim(place, -1).flatten(0, -2) for t in (x, layer(x)))
    for name, oracle in ORACLES.items():
        expected = oracle(whole(layer, x), channels, outputs)
        assert found[name].shape == expected.shape, name
        assert torch.allclose(found[name], expected, rtol=1e-10, atol=1e-10), name


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 17), st.integers(1, 5), st.floats(-1e6, 1e6), st.integers(0, 2**31))
@pytest.mark.parametrize("name", list(STATISTICS))
def test_parts_merge_to_the_whole_in_any_division(name, rows, features, offset, seed):
    generator, statistic = torch.Generator().manual_seed(seed), STATISTICS[name]
    x = torch.randn(2, rows, features, generator=generator, dtype=torch.float64) + offset
    cuts = sorted(torch.randint(1, rows + 1, (3,), generator=generator).tolist())
    parts = [part for part in torch.tensor_split(x, cuts, 1) if part.shape[1]]
    state = statistic.part(parts[0])
    for part in parts[1:]:
        state = statistic.merge(state, statistic.part(part))
    scale = 1 + offset**2 * rows
    assert torch.allclose(statistic.finish(state), statistic.finish(statistic.part(x)), rtol=1e-9, atol=1e-12 * scale)


# --- a whole model --------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(input=self.drop(self.norm(self.conv(x)).relu().mean((2, 3))))


def test_nothing_of_the_model_changes():
    model, x = Net().train(), torch.randn(9, 1, 6, 6)
    model.drop.eval()
    before = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    collect(model, x, ["gram", "output_mean"])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == [True, True, True, False, True]
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_hooks_and_modes_are_restored_after_an_error():
    model = Net().train()
    with pytest.raises(InputError, match="the model does not run on the calibration data: Given groups=1"):
        collect(model, torch.randn(4, 2, 6, 6), ["gram"])
    assert model.training
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_a_bound_on_memory_takes_several_passes_and_gives_the_same():
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(5)))
    x, passes = torch.randn(6, 4), []
    model[0].register_forward_pre_hook(lambda *_: passes.append(1))
    once = collect(model, x, ["gram"])
    assert len(passes) == 1
    bounded = collect(model, x, ["gram"], memory=2 * 64)
    assert len(passes) == 1 + 3
    assert all(torch.equal(once[name]["gram"], bounded[name]["gram"]) for name in once)
    with pytest.raises(InputError, match=r"^0.weight: its statistics need 64 bytes, above memory=63$"):
        collect(model, x, ["gram"], memory=63)


def test_a_stream_lets_go_of_what_was_taken():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    taken = [name for name, found in stream(model, Samples(torch.randn(3, 4)), ["gram"], memory=64)]
    assert taken == ["0.weight", "1.weight"]


def test_layers_that_share_a_weight_share_their_rows():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    x = torch.randn(5, 3)
    found = collect(model, x, ["count", "gram"])
    assert list(found) == ["0.weight"]
    inner = model[0](x).relu()
    assert found["0.weight"]["count"] == 10
    assert torch.allclose(found["0.weight"]["gram"][0], x.T @ x + inner.T @ inner)


def test_half_precision_is_summed_in_single():
    layer = nn.Linear(2, 2).half()
    found = collect(layer, torch.full((100, 2), 300.0), ["gram", "input_norm"])["weight"]
    assert found["gram"].tolist() == [[[9e6] * 2] * 2]  # above float16's largest
    assert found["input_norm"].dtype == torch.float32


# --- samples --------------------------------------------------------------------------------------------------------


def sources():
    x, y = torch.arange(20.0).reshape(10, 2), torch.arange(10)
    yield "tensor", x
    yield "array", x.numpy()
    yield "pair", (x, y)
    yield "dataset", torch.utils.data.TensorDataset(x, y)
    yield "data", Data((x, y), (x, y))
    yield "loader", torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=4)
    yield "inputs alone", [x[:4], x[4:8], x[8:]]


@pytest.mark.parametrize("source", [pytest.param(source, id=name) for name, source in sources()])
@pytest.mark.parametrize("limit", [1, 3, 4, 10, 100])
def test_samples_are_bounded_and_repeatable(source, limit):
    samples = Samples(source, limit=limit, batch_size=3)
    first, second = (torch.cat(list(samples)) for _ in range(2))
    assert torch.equal(first, second)
    assert len(first) == min(limit, 10) == len(first.unique(dim=0))
    assert all(len(batch) <= 3 + (limit > 3) for batch in samples)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Samples(None), "no calibration data: give data="),
        (lambda: Samples(torch.ones(2, 2), limit=0), "samples must be a whole number from 1, not 0"),
        (lambda: Samples(torch.ones(2, 2), batch_size=True), "batch_size must be a whole number from 1, not True"),
        (lambda: Samples("digits"), "calibration data: str is no split"),
        (lambda: list(Samples([])), "calibration data is empty"),
        (lambda: list(Samples(torch.zeros(0, 3))), "calibration data: the split is empty"),
        (lambda: list(Samples([{"x": 1}])), "calibration data: a batch must be a pair"),
        (lambda: list(Samples(torch.tensor([[1.0, math.nan]]))), "calibration data holds NaN or infinity"),
        (lambda: collect(nn.Linear(2, 2), torch.ones(2, 2), ["grum"]), "unknown statistic 'grum'; did you mean 'gram'"),
        (lambda: collect(nn.Linear(2, 2), torch.ones(2, 2), [], names=["w"]), "the model has no parameter w"),
        (lambda: collect(Idle(), torch.ones(2, 2), ["gram"]), "idle.weight: the model never calls its layer"),
        (lambda: collect(broken(), torch.ones(2, 2), ["gram"]), "1.weight: NaN or infinity reaches its layer"),
    ],
)
def test_bad_input_is_named_in_one_line(make, message):
    with pytest.raises(InputError) as caught:
        make()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


class Idle(nn.Module):
    def __init__(self):
        super().__init__()
        self.busy, self.idle = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x):
        return self.busy(x)


def broken():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].weight.data.fill_(math.nan)
    return model


def test_weights_of_other_kinds_are_refused():
    with pytest.raises(UnsupportedError, match=r"^weight is not the weight of a Linear or convolution"):
        collect(nn.LayerNorm(2), torch.ones(2, 2), ["gram"], names=["weight"])


def test_transposed_kinds_are_tested():
    assert {type(layer) for layer, _ in LAYERS} >= set(TRANSPOSED)
