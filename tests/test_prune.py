"""prune: exact counts, thresholds, what is selected, and every mistake in one line that leaves the model as it was."""

import itertools
import math
import re
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from abridged.data import Data
from abridged.errors import AbridgedError, InputError, UnsupportedError
from abridged.pruning.allocation import ALLOCATIONS
from abridged.pruning.criteria import CRITERIA
from abridged.pruning.layers import weights_of
from abridged.pruning.masks import Masks
from abridged.pruning.patterns import PATTERNS
from abridged.pruning.prune import prune
from abridged.pruning.schedules import SCHEDULES

SPARSITIES = st.floats(0.02, 1)  # so little as removes nothing is an error
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3, groups=1), nn.Flatten(), nn.Linear(20, 3)
    )


def zeros(model: nn.Module) -> int:
    return sum(int((w == 0).sum()) for n, w in model.named_parameters() if n in ("0.weight", "3.weight", "5.weight"))


ALONE = [name for name, criterion in CRITERIA.items() if not criterion.needs and criterion.per == "weight"]
TOTAL = 6 * 9 + 5 * 6 * 9 + 60


def fitting() -> nn.Sequential:
    """A network whose layers fit most patterns."""
    return nn.Sequential(
        nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.Flatten(), nn.Linear(32, 4)
    )


def trained(masks: Masks, model: nn.Module, data: Data, steps: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    masks.hold(optimizer)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data.train.x), data.train.y).backward()
        optimizer.step()


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_combination_is_right_or_refused_with_a_reason(criterion, pattern, monkeypatch):
    monkeypatch.setitem(
        CRITERIA._entries, criterion, replace(CRITERIA[criterion], rounds=min(3, CRITERIA[criterion].rounds))
    )
    x, y = torch.randn(4, 4, 6, 6), torch.randint(0, 4, (4,))
    data = Data((x, y), (x, y))
    exclude, reasons = ["5"] if pattern == "kernel" else [], []
    for allocation, schedule, of in itertools.product(sorted({*ALLOCATIONS} - {"er"}), SCHEDULES, ("weights", "macs")):
        if of == "macs" and schedule not in ("one-shot", "cubic"):
            continue  # a budget of MACs does not know of schedules: two of them are enough
        gradual = SCHEDULES[schedule](0.0) == 0
        model = fitting()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        options = {"criterion": criterion, "pattern": pattern, "allocation": allocation, "schedule": schedule, "of": of}
        times = {"steps": 2, "every": 1} if gradual else {}
        sparsity = None if PATTERNS[pattern].density else 0.5
        try:
            masks = prune(model, sparsity, **options, **times, data=data, samples=4, exclude=exclude)
        except AbridgedError as error:
            reasons.append(str(error))
            assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
            continue
        if gradual:
            trained(masks, model, data, 2)
        layouts = {n: PATTERNS[pattern].layout(tuple(w.canonical.shape)) for n, w in weights_of(model, masks).items()}
        unit = max(math.prod(layout.split[a] for a in layout.members) for layout in layouts.values())
        total = sum(mask.numel() for mask in masks.values())
        if of == "weights":
            slack = unit if allocation in ("global", "lamp") else unit * len(masks) / 2
            wanted = total * (1 - (PATTERNS[pattern].density or 0.5))
            assert abs(masks.sparsity * total - wanted) <= slack + 1e-6, options
        assert all((model.get_parameter(name)[~mask] == 0).all() for name, mask in masks.items())
        for name, weight in weights_of(model, masks).items():
            mask = weight.form.canonical(masks[name])
            assert torch.equal(layouts[name].expand(layouts[name].alive(mask), mask.shape), mask), "units whole"
    assert all("\n" not in reason and len(reason) > 30 for reason in reasons), "refused with a reason, in one line"


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_is_valid_somewhere(criterion):
    x, y = torch.randn(10, 4, 6, 6), torch.randint(0, 4, (10,))
    if CRITERIA[criterion].needs & {"scale", "active", "activation"}:
        with pytest.raises(AbridgedError, match="it needs pattern='channel'"):
            prune(fitting(), 0.5, criterion=criterion, pattern="row", data=Data((x, y), (x, y)))
        return
    pattern = "row" if CRITERIA[criterion].per == "output" else "unstructured"
    options = {"schedule": "cubic", "steps": 2} if criterion == "movement" else {}
    assert prune(fitting(), 0.5, criterion=criterion, pattern=pattern, data=Data((x, y), (x, y)), **options)


def test_rows_of_different_sizes_compete_by_weight():
    model = nn.Sequential(nn.Linear(100, 4), nn.Linear(4, 10))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[1].weight.fill_(2.0)
    masks = prune(model, 0.5, pattern="row")
    assert masks["1.weight"].all(), "smaller sums, but larger weights"
    assert abs(masks.sparsity * 440 - 220) <= 50


def test_macs_are_what_is_counted():
    model = fitting()
    masks = prune(model, 0.7, of="macs", example=torch.randn(1, 4, 6, 6))
    places = {"0.weight": 16, "3.weight": 4, "5.weight": 1}
    kept = sum(int(masks[name].sum()) * n for name, n in places.items())
    assert kept / sum(masks[name].numel() * n for name, n in places.items()) == pytest.approx(0.3, abs=0.005)
    assert "global of MACs" in masks.summary[0]


@quick
@given(SPARSITIES, st.sampled_from(["global", "uniform"]), st.sampled_from(["magnitude", "random"]))
def test_counts_are_exact_and_zeros_are_plus_zero(sparsity, allocation, criterion):
    model = cnn()
    masks = prune(model, sparsity, allocation=allocation, criterion=criterion)
    sizes = [mask.numel() for mask in masks.values()]
    parts = [sum(sizes)] if allocation == "global" else sizes
    assert sum(int(m.sum()) for m in masks.values()) == sum(math.floor((1 - sparsity) * n + 0.5) for n in parts)
    for name, mask in masks.items():
        gone = model.get_parameter(name)[~mask]
        assert (gone == 0).all()
        assert not torch.signbit(gone).any()


@quick
@given(SPARSITIES, SPARSITIES, st.sampled_from(["global", "uniform"]), st.sampled_from(ALONE))
def test_higher_sparsity_removes_a_superset(a, b, allocation, criterion):
    few, many = (
        prune((torch.manual_seed(0), cnn())[1], s, allocation=allocation, criterion=criterion) for s in sorted((a, b))
    )
    assert all(not (many[name] & ~few[name]).any() for name in few)


@quick
@given(st.integers(0, TOTAL - 1))
def test_keep_is_a_count_over_everything(keep):
    model = cnn()
    masks = prune(model, keep=keep)
    assert sum(int(mask.sum()) for mask in masks.values()) == keep
    assert zeros(model) == TOTAL - keep


def test_keep_takes_the_largest_weights_of_all_layers():
    model = cnn()
    weights = torch.cat([w.detach().abs().flatten() for n, w in model.named_parameters() if n in ("0.weight", "3.weight", "5.weight")])  # fmt: skip
    prune(model, keep=17)
    left = torch.cat([w.detach().abs().flatten() for n, w in model.named_parameters() if n in ("0.weight", "3.weight", "5.weight")])  # fmt: skip
    assert torch.equal(left[left > 0].sort().values, weights.sort().values[-17:])


# --- thresholds -----------------------------------------------------------------------------------------------------


def linear_of(rows: list[list[float]], dtype: torch.dtype = torch.float32) -> nn.Linear:
    model = nn.Linear(len(rows[0]), len(rows), bias=False, dtype=dtype)
    with torch.no_grad():
        model.weight.copy_(torch.tensor(rows, dtype=dtype))
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_threshold_of_the_issue(dtype):
    model = linear_of([[0.2, 0, 0.6], [0.3, 0, 0.1], [0, 0.5, 0]], dtype)
    prune(model, threshold=0.3)
    assert torch.equal(model.weight, torch.tensor([[0, 0, 0.6], [0.3, 0, 0], [0, 0.5, 0]], dtype=dtype))


@given(
    st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=30),
    st.floats(0, 2.5, width=32),
)
@settings(deadline=None)
def test_threshold_removes_what_is_below_it_and_nothing_else(values, threshold):
    model = linear_of([values])
    before = model.weight.detach().clone()
    if bool((before.abs() >= threshold).all() and before.all()):
        why = "no magnitude score is below it" if threshold else "no weight is zero"
        with pytest.raises(InputError, match=f"removes nothing: {why}"):
            prune(model, threshold=threshold)
        return
    masks = prune(model, threshold=threshold)
    assert torch.equal(model.weight, torch.where(before.abs() < threshold, 0.0, before))
    assert torch.equal(masks["weight"], (before.abs() >= threshold) & (before != 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_weight_that_equals_the_threshold_in_its_own_precision_stays(dtype):
    model = linear_of([[0.7, -0.7, 0.69, 0.1]], dtype)
    assert prune(model, threshold=0.7)["weight"].tolist() == [[True, True, False, False]]


@pytest.mark.parametrize("pattern", ["unstructured", "row", "column", "kernel", "block 1x2", "block 2x1"])
@pytest.mark.parametrize("groups", [1, 2])
def test_threshold_in_any_layer_is_the_sum_over_each_unit(groups, pattern):
    plain, turned = nn.Conv2d(8, 4, 3, groups=groups), nn.ConvTranspose2d(8, 4, 3, groups=groups)
    canonical = plain.weight.detach().reshape(groups, 4 // groups, 8 // groups, 9)
    turned.weight.data = canonical.transpose(1, 2).reshape(turned.weight.shape).clone()
    layout = PATTERNS[pattern].layout(tuple(canonical.shape))
    scores = layout.score(canonical.abs())
    threshold = float(scores.mean())
    wanted = layout.expand(scores >= threshold, canonical.shape)
    ours, theirs = (prune(model, threshold=threshold, pattern=pattern)["weight"] for model in (plain, turned))
    assert torch.equal(ours.reshape(canonical.shape), wanted)
    assert torch.equal(theirs.reshape(groups, 8 // groups, 4 // groups, 9).transpose(1, 2), wanted)
    assert 0 < int(wanted.sum()) < wanted.numel()


def test_threshold_zero_holds_the_zeros_there_are():
    model = linear_of([[0.0, 1.0], [-0.0, 1e-30]])
    assert prune(model, threshold=0)["weight"].tolist() == [[False, True], [False, True]]


# --- zeros that are there already -----------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", ALONE)
def test_pruning_again_brings_nothing_back(criterion):
    model = cnn()
    prune(model, 0.8, criterion=criterion, seed=1)
    gone = {name: weight == 0 for name, weight in model.named_parameters()}
    count = zeros(model)
    masks = prune(model, 0.5, criterion=criterion, seed=2)
    assert zeros(model) == count
    assert all((model.get_parameter(name)[gone[name]] == 0).all() for name in masks)
    assert masks.notes == ("115 weights were zero already and are not held, since fewer were to go",)
    masks = prune(model, 0.9, criterion=criterion, seed=2)
    assert zeros(model) == TOTAL - 38, "what is zero already goes first, whatever the criterion"
    assert all(not (masks[name] & gone[name]).any() for name in masks)


def test_ties_go_from_the_end():
    model = linear_of([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    assert prune(model, 0.5)["weight"].tolist() == [[True] * 3, [False] * 3]


# --- what is selected -----------------------------------------------------------------------------------------------


class Many(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.conv = nn.ModuleList([nn.Conv1d(8, 8, 3), nn.ConvTranspose1d(8, 8, 3), nn.Conv3d(1, 2, 2)])
        self.attention = nn.MultiheadAttention(8, 2, kdim=6)
        self.norm = nn.LayerNorm(8)
        self.free = nn.Parameter(torch.randn(5, 5))
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight


def test_default_selection_and_what_it_says():
    masks = prune(Many(), 0.5)
    assert list(masks) == [
        "conv.0.weight", "conv.1.weight", "conv.2.weight", "attention.q_proj_weight", "attention.k_proj_weight",
        "attention.v_proj_weight", "attention.out_proj.weight", "first.weight",
    ]  # fmt: skip
    assert masks.summary == (
        "3 of 3 convolutions, 3 of 3 attention projections, 2 of 2 linear layers:"
        " 352 of 704 weights removed (50.00%; magnitude, unstructured, global)",
        "left, of a kind that is pruned only by its full name: free, embed.weight (shared: head.weight)",
    )
    assert str(masks) == "\n".join(masks.summary)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"include": ["conv.*"]}, ["conv.0.weight", "conv.1.weight", "conv.2.weight"]),
        ({"include": "conv"}, ["conv.0.weight", "conv.1.weight", "conv.2.weight"]),
        ({"include": ["conv"], "exclude": ("conv.1",)}, ["conv.0.weight", "conv.2.weight"]),
        ({"include": ["second"]}, ["first.weight"]),
        ({"exclude": ["conv*", "attention", "second.weight"], "include": ["*", "free"]}, ["free"]),
        ({"include": ["head.weight"]}, ["embed.weight"]),
        ({"include": ["conv.[02].weight"]}, ["conv.0.weight", "conv.2.weight"]),
    ],
)
def test_globs(options, names):
    assert list(prune(Many(), 0.5, **options)) == names


def test_shared_weight_is_masked_once():
    model = Many()
    prune(model, 0.5, include=["first"])
    assert model.second.weight is model.first.weight
    assert int((model.second.weight == 0).sum()) == 32


def test_shared_with_another_kind_is_pruned_by_its_full_name_and_says_so():
    words = r"head.weight is shared with a layer of another kind, as embed.weight; include=\['head.weight'\], in full"
    with pytest.raises(InputError, match=words):
        prune(Many(), 0.5, include=["head"])


def test_a_glob_that_never_applies_is_refused():
    words = r"allocation\['5'\] never applies: the first glob that fits counts, and of 5.weight that is '\*'; put '5' before"
    with pytest.raises(InputError, match=words):
        prune(cnn(), allocation={"*": 0.5, "5": 0.9})
    assert prune(cnn(), allocation={"5": 0.9, "*": 0.5})["5.weight"].sum() == 6
    assert prune(cnn(), allocation={"5": 0.9, "0": 0.5, "1": 0.2}, exclude=["0"])


@pytest.mark.parametrize("options", [{"criterion": "synflow"}, {"of": "macs"}], ids=str)
def test_an_example_of_the_wrong_shape_is_one_line(options):
    with pytest.raises(InputError, match="the model does not run on the example") as caught:
        prune(nn.Linear(4, 4), 0.5, example=torch.ones(2, 5), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_left_layers_are_named_with_their_reason():
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(7)], nn.Linear(4, 0))
    with torch.no_grad():
        model[6].weight.zero_()
    masks = prune(model, 0.5, include=["0", "6", "7"])
    assert masks.notes == (
        "left by include and exclude: 1.weight, 2.weight, 3.weight, 4.weight and 1 more",
        "left, without elements: 7.weight",
        "no weight is left in 6.weight: nothing passes there",
    )
    assert masks.summary[0].startswith("2 of 8 linear layers: 16 of 32 weights removed (50.00%")


def test_frozen_weights_are_pruned_and_parameters_stay_the_same_objects():
    model = cnn().requires_grad_(False)
    before = list(model.parameters())
    keys = list(model.state_dict())
    biases = {n: p.clone() for n, p in model.named_parameters() if "bias" in n or n.startswith("1.")}
    model[5].weight.requires_grad_(True)
    masks = prune(model, 0.9)
    assert masks.notes[0] == "frozen, and pruned all the same: 0.weight, 3.weight"
    assert all(a is b for a, b in zip(model.parameters(), before, strict=True))
    assert list(model.state_dict()) == keys
    assert all(torch.equal(model.get_parameter(name), value) for name, value in biases.items())


def test_mixed_precisions_compete_exactly():
    model = nn.Sequential(linear_of([[0.5, 0.25, 0.1]], torch.float64), linear_of([[0.5, 0.3]], torch.bfloat16))
    with torch.no_grad():
        model[0].weight[0, 2] = 0.1 + 1e-12  # a step that float32 does not see
        model[0].weight[0, 1] = 0.1
    masks = prune(model, keep=3)
    assert masks["0.weight"].tolist() == [[True, False, False]]
    assert masks["1.weight"].tolist() == [[True, True]]
    assert prune(model, keep=3).density == 0.6


# --- patterns ---------------------------------------------------------------------------------------------------------


def test_pattern_that_does_not_fit_says_what_to_exclude():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3, groups=8))
    words = r"pattern '2:4' does not fit 0.weight \(nor 1 more\): 3 input channels are no multiple of 4; add exclude="
    with pytest.raises(InputError, match=words) as caught:
        prune(model, pattern="2:4")
    assert str(caught.value).endswith("add exclude=['0.weight', '2.weight']")
    masks = prune(model, pattern="2:4", exclude=["0.weight", "2.weight"])
    assert masks.sparsity == 0.5


def test_n_of_m_says_how_much_itself():
    model = nn.Linear(8, 6)
    masks = prune(model, pattern="2:4")
    assert (masks["weight"].reshape(-1, 4).sum(1) == 2).all()
    assert masks.plan.allocation == "uniform"
    assert prune(nn.Linear(8, 6), 0.75, pattern="1:4").sparsity == 0.75
    with pytest.raises(InputError, match=r"pattern '2:4' removes 0\.5 of the weights: leave the amount out"):
        prune(nn.Linear(8, 6), 0.75, pattern="2:4")
    with pytest.raises(InputError, match=r"removes 0\.5 of the weights"):
        prune(nn.Linear(8, 6), keep=24, pattern="2:4")
    with pytest.raises(UnsupportedError, match="fixes the density inside each group"):
        prune(nn.Linear(8, 6), 0.5, pattern="2:4", allocation="global")
    with pytest.raises(UnsupportedError, match="a threshold cannot keep a pattern of groups"):
        prune(nn.Linear(8, 6), threshold=0.1, pattern="2:4")


# --- mistakes -------------------------------------------------------------------------------------------------------

nan = float("nan")
MISTAKES = {
    "nothing asked": ({}, "exactly one of sparsity, threshold and keep, not none"),
    "two asked": ({"sparsity": 0.5, "keep": 3}, "not sparsity and keep"),
    "too much": ({"sparsity": 1.01}, r"sparsity must be in \[0, 1\], not 1.01"),
    "per cent": ({"sparsity": 90}, r"sparsity must be in \[0, 1\], not 90"),
    "negative": ({"sparsity": -0.1}, r"sparsity must be in \[0, 1\]"),
    "too little": ({"sparsity": 0.001}, r"sparsity=0.001 removes nothing: of 384 weights \(unstructured, global\)"),
    "too little of each": ({"sparsity": 0.001, "allocation": "uniform"}, r"removes nothing: of 384 weights \(unstruc"),
    "too little by name": ({"allocation": {"0": 0.001}}, r"sparsity=0.001 removes nothing: of \d+ weights \(.*per layer"),
    "too few rows": ({"sparsity": 0.001, "pattern": "row"}, r"removes nothing: of 384 weights \(row, global\)"),
    "too little in time": ({"sparsity": 0.001, "schedule": "linear", "steps": 9}, "sparsity=0.001 removes nothing"),
    "low threshold": ({"threshold": 1e-30}, "threshold=1e-30 removes nothing: no magnitude score is below it"),
    "nothing of it": ({"sparsity": 0.0}, "sparsity=0 removes nothing: ask for more"),
    "nothing in time": ({"sparsity": 0, "schedule": "cubic", "steps": 9}, "sparsity=0 removes nothing"),
    "nothing to exchange": ({"sparsity": 0, "regrow": "rigl", "steps": 9}, "sparsity=0 removes nothing"),
    "nothing by name": ({"allocation": {"0": 0.0, "3": 0}}, "allocation removes nothing, since every sparsity in it is 0"),
    "all kept": ({"keep": 384}, "keep=384 removes nothing, these are all the weights: ask for more"),
    "no zeros": ({"threshold": 0}, "threshold=0 removes nothing: no weight is zero; ask for more"),
    "NaN": ({"sparsity": nan}, r"sparsity must be in \[0, 1\], not nan"),
    "bool": ({"sparsity": True}, "sparsity must be a number, not True"),
    "text": ({"sparsity": "0.9"}, "sparsity must be a number, not '0.9'"),
    "negative threshold": ({"threshold": -1}, "threshold must be finite and not negative"),
    "infinite threshold": ({"threshold": math.inf}, "threshold must be finite"),
    "NaN threshold": ({"threshold": nan}, "threshold must be finite"),
    "bool threshold": ({"threshold": False}, "threshold must be a number"),
    "negative keep": ({"keep": -1}, "keep must be a whole number from 0, not -1"),
    "float keep": ({"keep": 3.0}, "keep must be a whole number"),
    "bool keep": ({"keep": True}, "keep must be a whole number"),
    "of": ({"sparsity": 0.5, "of": "flops"}, "of must be 'weights' or 'macs'"),
    "macs of what": ({"sparsity": 0.5, "of": "macs"}, "of='macs' needs to know what goes in"),
    "keep of macs": ({"keep": 5, "of": "macs"}, "keep counts weights"),
    "samples": ({"sparsity": 0.5, "samples": 0}, "samples must be a whole number from 1"),
    "kernel": ({"sparsity": 0.5, "pattern": "kernel"}, r"does not fit 5.weight: it has no kernel"),
    "channels alone": ({"sparsity": 0.5, "criterion": "fpgm"}, "judges whole output channels: it needs pattern='row'"),
    "keep too many": ({"keep": 385}, "keep=385 is more than the 384 weights"),
    "keep per layer": ({"keep": 5, "allocation": "uniform"}, "keep counts over all layers"),
    "criterion": ({"sparsity": 0.5, "criterion": "magnitud"}, "did you mean 'magnitude'"),
    "pattern": ({"sparsity": 0.5, "pattern": "unstruct"}, "unknown pattern"),
    "allocation": ({"sparsity": 0.5, "allocation": "globl"}, "did you mean 'global'"),
    "schedule": ({"sparsity": 0.5, "schedule": "cubics"}, "did you mean 'cubic'"),
    "steps missing": ({"sparsity": 0.5, "schedule": "cubic"}, "schedule 'cubic' needs steps"),
    "steps too many": ({"sparsity": 0.5, "steps": 10}, "schedule 'one-shot' is done at once"),
    "every too many": ({"sparsity": 0.5, "every": 10}, "schedule 'one-shot' is done at once"),
    "steps zero": ({"sparsity": 0.5, "schedule": "linear", "steps": 0}, "steps must be a whole number from 1, not 0"),
    "steps float": ({"sparsity": 0.5, "schedule": "linear", "steps": 1.5}, "steps must be a whole number"),
    "every zero": ({"sparsity": 0.5, "schedule": "linear", "steps": 9, "every": 0}, "every must be a whole number"),
    "gradual threshold": ({"threshold": 0.5, "schedule": "linear", "steps": 9}, "a threshold has no course in time"),
    "include": ({"sparsity": 0.5, "include": ["conv*"]}, "'conv[*]' matches no parameter and no module that has one"),
    "exclude": ({"sparsity": 0.5, "exclude": ["3.wieght"]}, "did you mean '3.weight'"),
    "nothing left": ({"sparsity": 0.5, "exclude": ["*"]}, "nothing to prune: include and exclude leave none of 0.wei"),
    "only norms": ({"sparsity": 0.5, "include": ["1"]}, "nothing to prune"),
    "regrow": ({"sparsity": 0.5, "regrow": "rigl"}, "regrow needs steps"),
    "allocation of another kind": ({"sparsity": 0.5, "allocation": [0.5]}, "allocation must be a name, a mapping of globs"),
    "seed": ({"sparsity": 0.5, "seed": "x"}, "seed must be a whole number from 0, not 'x'"),
    "reestimate": ({"sparsity": 0.5, "reestimate": "yes"}, "reestimate must be True or False, not str"),
    "momentum in groups": (
        {"pattern": "2:4", "regrow": "sparse-momentum", "steps": 9}, "layers cannot compete for the weights that grow",
    ),
    "exact": ({"sparsity": 0.5, "exact": "no"}, "exact must be True or False"),
    "say": ({"sparsity": 0.5, "say": 3}, "say must be a function of a line, or None for silence, not 3"),
    "agent of weights": ({"sparsity": 0.5, "allocation": "ddpg"}, "give sparsity and of='macs'"),
    "agent without data": (
        {"sparsity": 0.5, "of": "macs", "allocation": "ddpg", "example": torch.zeros(1, 3, 8, 8)}, "judges on data",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_one_line_and_leaves_the_model(mistake):
    options, words = MISTAKES[mistake]
    model = cnn()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(AbridgedError, match=words) as caught:
        prune(model, **options)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 2
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("bad", [nan, math.inf, -math.inf])
@pytest.mark.parametrize("criterion", ALONE)
def test_weights_that_are_not_finite_are_named(bad, criterion):
    model = cnn()
    with torch.no_grad():
        model[3].weight[1, 2, 0, 0] = bad
    before = model[0].weight.detach().clone()
    with pytest.raises(InputError, match=re.escape("3.weight holds NaN or infinity")):
        prune(model, 0.5, criterion=criterion)
    assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: nn.Sequential(nn.ReLU()), "nothing to prune: the model has no Linear"),
        (lambda: nn.BatchNorm2d(3), "nothing to prune: the model has no Linear"),
        (lambda: nn.Linear(3, 0, bias=False), "nothing to prune: weight has no elements"),
        (lambda: nn.LazyLinear(3), "weight has no values yet"),
        (lambda: nn.Linear(3, 3, device="meta"), "weight has no values .meta device"),
        (lambda: nn.Linear, "prune takes an nn.Module, not type"),
    ],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_models_without_anything_to_prune(build, words):
    with pytest.raises(InputError, match=words):
        prune(build(), 0.5)


def test_weights_of_integers_are_refused():
    model = nn.Linear(3, 3)
    model.weight = nn.Parameter(torch.ones(3, 3, dtype=torch.int8), requires_grad=False)
    with pytest.raises(InputError, match=r"weight is torch\.int8: only floating-point"):
        prune(model, 0.5)


def test_numbers_of_numpy_are_numbers():
    assert prune(cnn(), np.float32(0.5)).sparsity == 0.5
    assert prune(cnn(), keep=np.int64(96)).sparsity == 0.75


@pytest.mark.slow
def test_masks_of_100_million_parameters_in_two_seconds():
    torch.set_num_threads(2)
    try:
        model = nn.Sequential(*[nn.Linear(3163, 3163, bias=False) for _ in range(10)])
        start, busy = time.perf_counter(), time.process_time()
        masks = prune(model, 0.9)
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
    finally:
        torch.set_num_threads(1)
    print(
        f"masks of {sum(mask.numel() for mask in masks.values()):,} weights: {seconds:.2f} s, {busy:.2f} s of processor time"
    )
    assert abs(masks.sparsity - 0.9) < 1e-8
    assert busy < 8  # not the wall clock: other work on the machine must not fail this test


def test_every_call_says_what_it_touched_and_what_it_did_not(capsys):
    prune(cnn(), 0.5, exclude=["0"])
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0].startswith("1 of 2 convolutions, 1 of 1 linear layers: ")
    assert "left by include and exclude: 0.weight" in err
    lines = []
    masks = prune(cnn(), 0.5, say=lines.append)
    assert tuple(lines) == masks.summary
    prune(cnn(), 0.5, say=None)
    assert capsys.readouterr() == ("", "")
