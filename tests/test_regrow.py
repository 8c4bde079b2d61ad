"""Regrowth: the law-suites of its tables, the number of weights that never changes, and optimizers that forget what went."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from abridged.data.sets import get
from abridged.errors import InputError, UnsupportedError
from abridged.pruning.criteria import CRITERIA
from abridged.pruning.masks import Masks, momentum
from abridged.pruning.patterns import PATTERNS, Layout
from abridged.pruning.prune import prune
from abridged.pruning.regrow import (
    GROWTHS,
    REDISTRIBUTIONS,
    REGROWTHS,
    Evidence,
    Regrowth,
    apportion,
    exchange,
)
from abridged.training import fit
from abridged.weights import load_into, read, save

quick = settings(max_examples=25, deadline=None)
FREE = 4 * 6 * 9 + 5 * 96  # weights of the network below that are pruned

OPTIMIZERS = {
    "sgd": lambda ps: torch.optim.SGD(ps, 0.05, momentum=0.9, weight_decay=1e-3),
    "nesterov": lambda ps: torch.optim.SGD(ps, 0.05, momentum=0.9, nesterov=True),
    "adam": lambda ps: torch.optim.Adam(ps, 0.01, amsgrad=True),
    "adamw": lambda ps: torch.optim.AdamW(ps, 0.01, weight_decay=0.1),
    "adamw-fused": lambda ps: torch.optim.AdamW(ps, 0.01, fused=True),
}


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5), nn.LayerNorm(5)
    )


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, accumulate: int = 1) -> None:
    for step in steps:
        optimizer.zero_grad()
        for part in range(accumulate):
            generator = torch.Generator().manual_seed(step * accumulate + part)
            inputs, labels = (
                torch.randn(8, 4, 6, 6, generator=generator),
                torch.randint(0, 5, (8,), generator=generator),
            )
            nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()


def evidence(seed: int = 0, **changes: object) -> Evidence:
    generator = torch.Generator().manual_seed(seed)
    held = torch.rand(7, 11, generator=generator) < 0.3
    weight, gradient, moving = (torch.randn(7, 11, generator=generator) for _ in range(3))
    return replace(Evidence("fc.weight", weight * held, held, gradient, moving), **changes)


COLUMNS = Layout((7, 11, 1), sets=(1,), units=(0,), members=(2,))  # columns as sets, each of a fixed number of weights


def kept(masks: Masks) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in masks.items()}


# --- the tables -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GROWTHS)
def test_law_of_growths(name):
    given_ = evidence()
    before = [t.clone() for t in (given_.weight, given_.gradient, given_.momentum)]
    scores = GROWTHS[name](given_)
    assert scores.shape == (7, 11)
    assert scores.is_floating_point()
    assert (scores >= 0).all()
    assert torch.isfinite(scores).all()
    assert torch.equal(scores, GROWTHS[name](given_)), "the same again"
    assert all(
        torch.equal(a, b) for a, b in zip(before, (given_.weight, given_.gradient, given_.momentum), strict=True)
    )
    assert GROWTHS.summary(name)


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "cubic", "exponential"])
@given(a=st.floats(0, 1), b=st.floats(0, 1))
def test_law_of_decays(name, a, b):
    way = Regrowth(decay=name, fraction=0.5)
    early, late = way.part(min(a, b)), way.part(max(a, b))
    assert 0 <= late <= early <= 0.5
    assert way.part(0.0) == 0.5
    assert way.part(1.0) == (0.5 if name == "constant" else 0)


@pytest.mark.parametrize("name", REDISTRIBUTIONS)
@quick
@given(seed=st.integers(0, 1000), lost=st.integers(0, 20))
def test_law_of_redistributions(name, seed, lost):
    assert REDISTRIBUTIONS[name](evidence(seed), lost) >= 0
    empty = evidence(seed, held=torch.zeros(7, 11, dtype=torch.bool))
    assert REDISTRIBUTIONS[name](empty, 0) == 0, "a layer without weights has no claim"
    assert REDISTRIBUTIONS.summary(name)


def test_tables_hold_what_they_should():
    assert set(GROWTHS) == {"random", "gradient", "momentum"}
    assert set(REDISTRIBUTIONS) == {"none", "momentum", "gradient"}
    assert set(REGROWTHS) == {"set", "rigl", "sparse-momentum"}
    assert [str(way) for way in REGROWTHS.values()] == list(REGROWTHS)
    assert str(Regrowth(grow="random")) == "drop magnitude, grow random"


def test_formulas_by_hand():
    held = torch.tensor([[True, False, True, False]])
    layer = Evidence("w", torch.zeros(1, 4), held, torch.tensor([[-1.0, 2, 3, -4]]), torch.tensor([[4.0, -3, 2, 1]]))
    assert GROWTHS["gradient"](layer).tolist() == [[1, 2, 3, 4]]
    assert GROWTHS["momentum"](layer).tolist() == [[4, 3, 2, 1]]
    assert REDISTRIBUTIONS["momentum"](layer, 1) == 3
    assert REDISTRIBUTIONS["gradient"](layer, 1) == 2
    assert not torch.equal(GROWTHS["random"](layer), GROWTHS["random"](replace(layer, step=1)))
    way = Regrowth(decay="cosine", fraction=0.4, until=0.5)
    assert [round(way.part(t), 9) for t in (0, 0.25, 0.5, 0.9)] == [0.4, 0.2, 0, 0]
    assert [way.due(t) for t in (0.0, 0.49, 0.5, 1.0)] == [True, True, False, False]


def test_momentum_is_what_the_optimizer_steps_by():
    first, second = torch.tensor([0.3, -0.2]), torch.tensor([0.09, 0.01])
    assert momentum({"momentum_buffer": first}) is first
    assert torch.allclose(momentum({"exp_avg": first, "exp_avg_sq": second}), torch.tensor([1.0, -2.0]))
    assert momentum({"exp_avg": first}) is first  # Lion
    assert momentum({}) is None


@quick
@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 50), st.integers(1, 30)), min_size=1, max_size=8),
    st.floats(0, 1),
)
def test_apportioned_units_of_different_sizes_leave_less_than_one(layers, part):
    names = [str(i) for i in range(len(layers))]
    shares, room, sizes = (dict(zip(names, column, strict=True)) for column in zip(*layers, strict=True))
    total = round(part * sum(room[name] * sizes[name] for name in names))
    given_ = apportion(shares, room, total, sizes)
    open_ = [sizes[name] for name in names if given_[name] < room[name]]
    left = total - sum(given_[name] * sizes[name] for name in names)
    assert 0 <= left < min(open_, default=1)
    assert all(0 <= given_[name] <= room[name] for name in names)


@quick
@given(st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 50)), min_size=1, max_size=8), st.floats(0, 1))
def test_apportioned_units_are_exact_and_fit(layers, part):
    shares = {str(i): share for i, (share, _) in enumerate(layers)}
    room = {str(i): places for i, (_, places) in enumerate(layers)}
    total = round(part * sum(room.values()))
    given_ = apportion(shares, room, total)
    assert sum(given_.values()) == total
    assert given_.keys() == shares.keys()
    assert all(0 <= given_[name] <= room[name] for name in room)


def test_each_layer_gets_back_what_it_lost():
    lost = {"a": 3.0, "b": 7.0, "c": 1.0, "d": 0.0}
    assert apportion(lost, dict.fromkeys(lost, 100), 11) == {"a": 3, "b": 7, "c": 1, "d": 0}
    assert apportion(dict.fromkeys("abc", 0.0), {"a": 2, "b": 2, "c": 4}, 4) == {"a": 1, "b": 1, "c": 2}


# --- the exchange -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("way", REGROWTHS)
def test_number_of_weights_never_changes(way, optimizer, accumulate):
    model = net()
    masks = prune(model, 0.8, criterion="random", regrow=way, steps=12, every=2)
    assert sum(kept(masks).values()) == round(0.2 * FREE)
    start, layers = dict(masks), kept(masks)
    masks.hold(made := OPTIMIZERS[optimizer](model.parameters()))
    for step in range(14):
        before = dict(masks)
        train(model, made, range(step, step + 1), accumulate)
        assert sum(kept(masks).values()) == round(0.2 * FREE)
        if REGROWTHS[way].redistribute == "none":
            assert kept(masks) == layers
        for name, mask in masks.items():
            weight, came, went = model.get_parameter(name).detach(), mask & ~before[name], before[name] & ~mask
            assert not came.any() or ((step + 1) % 2 == 0 and (step + 1) / 12 < REGROWTHS[way].until)
            assert (weight[~mask] == 0).all()
            assert not torch.signbit(weight[~mask]).any()
            assert (weight[came] == 0).all(), "what comes starts from zero"
            for value in made.state[model.get_parameter(name)].values():
                if value.shape == mask.shape:
                    assert (value[came | went] == 0).all(), "and the optimizer knows nothing of it"
    assert any(not torch.equal(mask, start[name]) for name, mask in masks.items())
    assert all(int((mask & (model.get_parameter(name) != 0)).sum()) for name, mask in masks.items())


def test_rigl_by_hand():
    model = nn.Linear(6, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 0.0, 2.0, 0.0, 1.0, 0.0]]))
    masks = prune(model, 0.5, regrow=Regrowth(grow="gradient", fraction=0.34, decay="constant"), steps=10, every=1)
    assert masks["weight"].tolist() == [[True, False, True, False, True, False]]
    masks.hold(optimizer := torch.optim.SGD(model.parameters(), 0.0))
    (model(torch.tensor([[9.0, 0.3, 9.0, 0.2, 0.1, 0.1]]))).sum().backward()
    optimizer.step()
    assert masks["weight"].tolist() == [[True, True, True, False, False, False]]
    assert model.weight.tolist() == [[3.0, 0.0, 2.0, 0.0, 0.0, 0.0]]


def test_what_is_dropped_may_come_back_and_has_lost_nothing():
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 0.5, 0.0, 0.0]]))
    masks = prune(model, 0.5, regrow=Regrowth(grow="gradient", fraction=0.5), steps=10, every=1)
    masks.hold(optimizer := torch.optim.SGD(model.parameters(), 0.0, momentum=0.9))
    (model(torch.tensor([[0.0, 9.0, 1.0, 1.0]]))).sum().backward()
    optimizer.step()
    assert masks["weight"].tolist() == [[True, True, False, False]]
    assert model.weight.tolist() == [[3.0, 0.5, 0.0, 0.0]]
    assert optimizer.state[model.weight]["momentum_buffer"][0, 1] == 9


@quick
@given(st.sampled_from(["set", "rigl"]), st.integers(1, 6), st.integers(0, 99))
def test_groups_keep_their_number(way, number, seed):
    held = torch.zeros(7, 11, dtype=torch.bool)
    for column in range(11):
        held[torch.randperm(7, generator=torch.Generator().manual_seed(seed + column))[:number], column] = True
    layer = evidence(seed, held=held, weight=torch.randn(7, 11) * held)
    mask = exchange(REGROWTHS[way], {"w": COLUMNS}, {"w": layer}, 0.0)["w"]
    assert (mask.sum(0) == number).all()


@pytest.mark.parametrize("pattern", sorted({*PATTERNS} - {"kernel", "1:4"}))
@pytest.mark.parametrize("way", ["set", "rigl"])
def test_patterns_keep_their_shape(way, pattern):
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8))
    masks = prune(model, 0.5, pattern=pattern, allocation="uniform", regrow=way, steps=10, every=1)
    start, layers = dict(masks), kept(masks)
    masks.hold(optimizer := torch.optim.SGD(model.parameters(), 0.1))
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(8, 16)).square().sum().backward()
        optimizer.step()
    assert kept(masks) == layers
    assert any(not torch.equal(mask, start[name]) for name, mask in masks.items())
    with torch.no_grad():  # a model of ones where weights stay is pruned by the pattern to just these
        for name, mask in masks.items():
            model.get_parameter(name).copy_(mask)
    again = prune(model, 0.5, pattern=pattern, allocation="uniform")
    assert all(torch.equal(mask, again[name]) for name, mask in masks.items())


@pytest.mark.parametrize("pattern", ["row", "column", "kernel", "block 2x1"])
@pytest.mark.parametrize("way", REGROWTHS)
def test_number_of_weights_stays_where_units_differ_in_size(way, pattern):
    model = nn.Sequential(
        nn.Conv2d(2, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Conv2d(32, 8, 3), nn.Flatten()
    )
    masks = prune(model, 0.5, pattern=pattern, regrow=way, steps=40, every=2)
    layouts = [PATTERNS[pattern].layout((1, *mask.shape[:2], 9)) for mask in masks.values()]
    largest = max(
        mask.numel() // layout.alive(mask).numel() for mask, layout in zip(masks.values(), layouts, strict=True)
    )
    start, first = sum(kept(masks).values()), dict(masks)
    masks.hold(optimizer := torch.optim.SGD(model.parameters(), 0.05, momentum=0.9))
    for _ in range(40):
        optimizer.zero_grad()
        model(torch.randn(4, 2, 7, 7)).square().mean().backward()
        optimizer.step()
        assert start - largest < sum(kept(masks).values()) <= start
    assert any(not torch.equal(mask, first[name]) for name, mask in masks.items())


def test_layer_keeps_one_weight_at_least():
    model = nn.Sequential(nn.Linear(50, 40), nn.Linear(40, 2))
    masks = prune(model, 0.98, criterion="random", allocation="uniform", regrow="sparse-momentum", steps=40, every=1)
    masks.hold(optimizer := torch.optim.SGD(model.parameters(), 0.1, momentum=0.9))
    for _ in range(40):
        optimizer.zero_grad()
        model(torch.randn(8, 50)).square().sum().backward()
        optimizer.step()
        assert min(kept(masks).values()) >= 1
        assert sum(kept(masks).values()) == 40 + 2


def test_momentum_moves_weights_to_where_the_loss_falls():
    model = nn.Sequential(nn.Linear(20, 20, bias=False), nn.Linear(20, 20, bias=False))
    with torch.no_grad():
        model[0].weight.mul_(0.01)  # gradients of the first layer are large, those of the second small
        model[1].weight.mul_(100)
    masks = prune(model, 0.8, criterion="random", allocation="uniform", regrow="sparse-momentum", steps=9, every=1)
    before = kept(masks)
    masks.hold(optimizer := torch.optim.SGD(model.parameters(), 1e-6, momentum=0.9))
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(8, 20)).square().mean().backward()
        optimizer.step()
    assert kept(masks)["0.weight"] > before["0.weight"]


def test_layers_that_do_not_train_stay_as_they_are():
    model = net()
    model[0].requires_grad_(False)
    masks = prune(model, 0.8, regrow="set", steps=10, every=1)
    frozen, other = masks["0.weight"].clone(), masks["4.weight"].clone()
    masks.hold(optimizer := torch.optim.SGD(model.parameters(), 0.1))
    train(model, optimizer, range(3))
    assert torch.equal(masks["0.weight"], frozen)
    assert not torch.equal(masks["4.weight"], other)


@pytest.mark.parametrize("fused", [False, True])
def test_skipped_steps_do_not_count(fused):
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01, fused=fused)
    masks = prune(model, 0.8, regrow="rigl", steps=10, every=1)
    masks.hold(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for step in range(4):
        before = dict(masks)
        optimizer.zero_grad()
        scaler.scale(model(torch.randn(8, 4, 6, 6)).square().sum()).backward()
        if step % 2:
            model[4].weight.grad[0] = float("inf")
        scaler.step(optimizer)
        scaler.update()
        assert all(torch.equal(mask, before[name]) == bool(step % 2) for name, mask in masks.items())
    assert masks.state_dict()["step"] == 2


# --- resuming and training ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("way", REGROWTHS)
@pytest.mark.parametrize("stop", [0, 4, 7, 15])
def test_resumed_run_is_the_same_run(way, optimizer, stop, tmp_path):
    whole, resumed = net(), net()
    made = OPTIMIZERS[optimizer](whole.parameters())
    masks = prune(whole, 0.8, criterion="random", regrow=way, steps=14, every=3, seed=5)
    masks.hold(made)
    train(whole, made, range(stop))
    state = masks.state_dict()
    assert all(isinstance(value, torch.Tensor | int | float | str) for value in state.values())
    save(whole, tmp_path / "model")
    save({key: value for key, value in state.items() if isinstance(value, torch.Tensor)}, tmp_path / "masks")
    scalars = json.dumps({key: value for key, value in state.items() if not isinstance(value, torch.Tensor)})
    remembered = copy.deepcopy(made.state_dict())
    train(whole, made, range(stop, 16))

    again = prune(resumed, 0.1)  # whatever it was made by, the state decides
    load_into(resumed, tmp_path / "model")
    again.load_state_dict({**read(tmp_path / "masks"), **json.loads(scalars)})
    assert again.plan.regrow == REGROWTHS[way]
    other = OPTIMIZERS[optimizer](resumed.parameters())
    other.load_state_dict(remembered)
    again.hold(other)
    train(resumed, other, range(stop, 16))
    for (name, a), b in zip(resumed.state_dict().items(), whole.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert all(torch.equal(mask, masks[name]) for name, mask in again.items())


def test_states_of_unknown_ways_are_refused():
    masks = prune(net(), 0.8, regrow="set", steps=4)
    state = masks.state_dict()
    for change in ({"plan.regrow.grow": "rndom"}, {"plan.regrow.fraction": "many"}, {"plan.regrow.mystery": 1}):
        with pytest.raises(InputError, match=r"did you mean 'random'|its plan cannot be read"):
            masks.load_state_dict({**state, **change})


@pytest.mark.parametrize("way", REGROWTHS)
def test_trains_sparse_from_scratch_through_fit(way, tmp_path):
    data = get("digits")
    results = []
    for regrow in (way, None):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
        options = {"regrow": regrow, "steps": 12 * 18} if regrow else {}
        masks = prune(model, 0.97, criterion="random", allocation="uniform", **options)
        history = fit(
            model, data, epochs=12, masks=masks, optimizer=lambda ps: torch.optim.SGD(ps, 0.2, momentum=0.9),
            checkpoint=tmp_path / str(regrow),
        )  # fmt: skip
        assert set(history.density) == {masks.density}
        results.append(history.metric[-1])
    assert results[0] > results[1] + 0.02, "better than the same number of weights that stay where they are"


def test_summary_names_the_way():
    masks = prune(net(), 0.75, regrow="rigl", steps=8)
    assert str(masks).endswith("(75.00%; magnitude, unstructured, global; step 0 of 8, regrowth: rigl)")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"regrow": "riggl", "steps": 4}, "unknown regrowth 'riggl'; did you mean 'rigl'"),
        ({"regrow": 3, "steps": 4}, "regrow must be one of set, rigl, sparse-momentum"),
        ({"regrow": "rigl"}, "regrow needs steps"),
        ({"regrow": "rigl", "steps": 0}, "steps must be a whole number from 1"),
        ({"regrow": "rigl", "steps": 5, "schedule": "cubic"}, "leave schedule at 'one-shot'"),
    ],
)
def test_mistakes_are_one_line(options, words):
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match=words):
        prune(model, 0.5, **options)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"drop": "magnitud"}, "did you mean 'magnitude'"),
        ({"grow": "gradent"}, "did you mean 'gradient'"),
        ({"decay": "cosin"}, "did you mean 'cosine'"),
        ({"decay": "one-shot"}, "decay 'one-shot' leaves nothing to exchange"),
        ({"redistribute": "nun"}, "unknown redistribution 'nun'"),
        ({"fraction": 0}, r"fraction must be in \(0, 1\]"),
        ({"until": 1.5}, r"until must be in \(0, 1\]"),
        ({"until": True}, r"until must be in \(0, 1\]"),
    ],
)
def test_ways_that_are_none(options, words):
    with pytest.raises(InputError, match=words):
        Regrowth(**options)


def test_what_a_regrowth_cannot_do_without():
    masks = prune(model := net(), 0.5, regrow="sparse-momentum", steps=4, every=1)
    with pytest.raises(InputError, match="regrowth by momentum, but SGD has none"):
        masks.hold(torch.optim.SGD(model.parameters(), 0.1))
    with pytest.raises(InputError, match="needs the gradients of an optimizer step"):
        masks.step()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    with pytest.raises(InputError, match=r"keeps none of 0\.weight"):
        masks.step()


def test_layers_cannot_compete_where_the_pattern_fixes_their_density():
    layers = {"a": evidence(), "b": evidence()}
    with pytest.raises(UnsupportedError, match="fixes the density inside each group of 7"):
        exchange(REGROWTHS["sparse-momentum"], {"a": COLUMNS, "b": COLUMNS}, layers, 0.0)


def test_magnitude_is_the_drop_rule_of_all():
    assert {way.drop for way in REGROWTHS.values()} <= set(CRITERIA)
