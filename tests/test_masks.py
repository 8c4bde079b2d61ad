"""Masks: zeros stay zero in anyone's training loop, schedules end where they should, and a resumed run is the same run."""

import copy
import io
import itertools
import json
import math
import pickle

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from abridged.errors import InputError
from abridged.pruning.masks import Masks
from abridged.pruning.prune import prune
from abridged.pruning.schedules import SCHEDULES
from abridged.weights import load_into, read, save

quick = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

OPTIMIZERS = {
    "sgd": lambda ps: torch.optim.SGD(ps, 0.1, momentum=0.9, weight_decay=0.05, nesterov=True),
    "adam": lambda ps: torch.optim.Adam(ps, 0.01, weight_decay=0.1, amsgrad=True),
    "adamw": lambda ps: torch.optim.AdamW(ps, 0.01, weight_decay=0.1),
    "adamw-fused": lambda ps: torch.optim.AdamW(ps, 0.01, fused=True),
    "rmsprop": lambda ps: torch.optim.RMSprop(ps, 0.01, momentum=0.5, weight_decay=0.1),
    "lbfgs": lambda ps: torch.optim.LBFGS(ps, 0.1, max_iter=3),
}
GRADUAL = [name for name in SCHEDULES if SCHEDULES[name](0.0) == 0]


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4))


def loss_of(model: nn.Module, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(8, 1, 6, 6, generator=generator)
    return nn.functional.cross_entropy(model(inputs), torch.randint(0, 4, (8,), generator=generator))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, accumulate: int = 1) -> None:
    for step in steps:

        def closure(step: int = step) -> torch.Tensor:
            optimizer.zero_grad()
            for part in range(accumulate):
                (loss := loss_of(model, step * accumulate + part)).backward()
            return loss

        optimizer.step(closure)


def assert_held(masks: Masks, model: nn.Module) -> None:
    for name, mask in masks.items():
        gone = model.get_parameter(name).detach()[~mask]
        assert (gone == 0).all(), name
        assert not torch.signbit(gone).any(), name


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(a: nn.Module, b: nn.Module) -> None:
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(x, y), name


# --- hold -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zeros_stay_zero_and_the_rest_learns(name, accumulate):
    model = net()
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, range(3))  # the optimizer's momenta are warm when the weights go
    masks = prune(model, 0.8)
    masks.hold(optimizer)
    before = state_of(model)
    train(model, optimizer, range(3, 9), accumulate)
    assert_held(masks, model)
    assert all(not torch.equal(model.get_parameter(n)[m], before[n][m]) for n, m in masks.items())
    assert sum(int((p == 0).sum()) for p in model.parameters() if p.dim() > 1) == 438 - round(0.2 * 438)


@quick
@given(st.floats(0.02, 1), st.sampled_from(["uniform", "global"]), st.sampled_from(list(OPTIMIZERS)))
def test_zeros_stay_zero_at_any_sparsity(sparsity, allocation, name):
    model = net()
    optimizer = OPTIMIZERS[name](model.parameters())
    masks = prune(model, sparsity, allocation=allocation)
    masks.hold(optimizer)
    train(model, optimizer, range(3))
    assert_held(masks, model)


def test_without_hold_zeros_come_back():
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    masks = prune(model, 0.8)
    handle = masks.hold(optimizer)
    handle.remove()
    train(model, optimizer, range(2))
    with pytest.raises(AssertionError):
        assert_held(masks, model)
    masks.apply()
    assert_held(masks, model)


def test_calling_hold_twice_does_not_step_twice():
    model = net()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    masks = prune(model, 0.8, schedule="linear", steps=10)
    masks.hold(optimizer)
    masks.hold(optimizer)
    train(model, optimizer, range(4))
    assert masks.state_dict()["step"] == 4
    other = OPTIMIZERS["sgd"](model.parameters())
    masks.hold(other)
    train(model, optimizer, range(2))
    assert masks.state_dict()["step"] == 4, "the latest hold is the one"
    train(model, other, range(2))
    assert masks.state_dict()["step"] == 6


def test_scaler_that_skips_a_step_does_not_advance():
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    masks = prune(model, 0.8, schedule="linear", steps=10)
    masks.hold(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for step in range(4):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, step)).backward()
        if step % 2:
            model[4].bias.grad[0] = float("inf")
        scaler.step(optimizer)
        scaler.update()
    assert masks.state_dict()["step"] == 2
    assert_held(masks, model)


def test_schedulers_that_wrap_step_change_nothing():
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    masks = prune(model, 0.8)
    masks.hold(optimizer)
    train(model, optimizer, range(2))
    scheduler.step()
    assert_held(masks, model)


def test_wrapped_optimizers_are_held_by_what_steps():
    class Wrapper:
        def __init__(self, optimizer):
            self.optimizer = optimizer

    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    masks = prune(model, 0.8)
    masks.hold(Wrapper(optimizer))
    train(model, optimizer, range(2))
    assert_held(masks, model)


def test_optimizer_of_another_model_is_refused():
    model = net()
    masks = prune(model, 0.8)
    with pytest.raises(InputError, match=r"the optimizer does not train 0\.weight"):
        masks.hold(OPTIMIZERS["sgd"](net().parameters()))
    with pytest.raises(InputError, match=r"the optimizer does not train 0\.weight"):
        masks.hold(OPTIMIZERS["sgd"](model[4].parameters()))
    model[0].requires_grad_(False)
    masks.hold(OPTIMIZERS["sgd"](model[4].parameters()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_what_stays_keeps_every_bit(dtype):
    model = nn.Linear(3, 1, bias=False).to(dtype)
    mask = torch.tensor([[True, True, False]])
    masks = Masks.rebuild(model, {"weight": mask})
    model.weight.data.copy_(torch.tensor([[-0.0, math.nan, -math.inf]]))
    masks.apply()
    assert torch.signbit(model.weight[0, 0])
    assert model.weight[0, 1].isnan()
    assert_held(masks, model)


@pytest.mark.parametrize("inference", [False, True])
def test_model_is_converted_while_its_masks_are_held(inference):
    model = nn.Linear(6, 4)
    with torch.inference_mode(inference):
        mask = torch.rand(4, 6) < 0.5
    masks = Masks.rebuild(model, {"weight": mask})
    masks.hold(torch.optim.SGD(model.parameters(), 0.1))
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        model.to(dtype)
        model.weight.data.fill_(1.0)
        masks.step()
        assert torch.equal(model.weight != 0, mask)


def test_a_mask_that_is_written_to_is_obeyed_from_then_on():
    model = nn.Linear(2, 1, bias=False)
    masks = prune(model, 0.5)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    masks.hold(optimizer)
    for kept in ([[True, True]], [[False, True]], [[False, False]]):
        masks["weight"].copy_(torch.tensor(kept))
        model.weight.data.fill_(1.0)
        optimizer.step()
        assert (model.weight != 0).tolist() == kept


def test_infinite_values_under_a_mask_are_cleared():
    model = net()
    masks = prune(model, 0.8)
    with torch.no_grad():
        model[4].weight.masked_fill_(~masks["4.weight"], float("nan"))
    masks.apply()
    assert_held(masks, model)
    assert torch.isfinite(model[4].weight).all()


# --- schedules ------------------------------------------------------------------------------------------------------


@quick
@given(st.sampled_from(GRADUAL), st.integers(1, 40), st.one_of(st.none(), st.integers(1, 50)), st.floats(0.02, 1))
def test_schedule_ends_exactly_at_its_target_and_never_looks_back(schedule, steps, every, sparsity):
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    masks = prune(model, sparsity, schedule=schedule, steps=steps, every=every)
    assert masks.density == 1.0
    masks.hold(optimizer)
    before = dict(masks)
    for step in range(steps + 3):
        train(model, optimizer, range(step, step + 1))
        assert all(not (mask & ~before[name]).any() for name, mask in masks.items()), "what is gone stays gone"
        assert_held(masks, model)
        before = dict(masks)
    one_shot = prune(net(), sparsity)
    assert masks.density == one_shot.density


def test_schedule_follows_its_formula():
    masks = prune(net(), 0.8, schedule="cubic", steps=20, every=5)
    densities = []
    for _ in range(22):
        masks.step()
        densities.append(round(masks.density * 438))
    expected = {t: round(438 * (1 - 0.8 * (1 - (1 - t / 20) ** 3))) for t in (5, 10, 15, 20)}
    assert densities[:4] == [438] * 4
    assert densities[4:9] == [expected[5]] * 5
    assert densities[9:14] == [expected[10]] * 5
    assert densities[14:19] == [expected[15]] * 5
    assert densities[19:] == [expected[20]] * 3
    assert masks.plan.every == 5
    assert prune(net(), 0.8, schedule="cubic", steps=1000).plan.every == 10
    assert prune(net(), 0.8, schedule="cubic", steps=30).plan.every == 1


def test_keep_is_exact_at_the_end_of_a_schedule():
    masks = prune(net(), keep=17, schedule="gradual", steps=7)
    for _ in range(7):
        masks.step()
    assert sum(int(mask.sum()) for mask in masks.values()) == 17


def test_masked_goes_before_what_is_merely_zero():
    model = nn.Linear(8, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[5.0, 6.0, 7.0, 8.0, 1.0, 2.0, 3.0, 4.0]]))
    masks = prune(model, 0.5, schedule="linear", steps=4, every=2)
    masks.step(), masks.step()
    assert (~masks["weight"]).nonzero()[:, 1].tolist() == [4, 5]
    with torch.no_grad():
        model.weight[0, :2] = 0.0  # earlier in position, zero, and not removed so far
        model.weight[0, 4:6] = 9.0  # a foreign hand brings removed weights back
    masks.step(), masks.step()
    assert (~masks["weight"]).nonzero()[:, 1].tolist() == [0, 1, 4, 5]
    assert_held(masks, model)


def test_weights_that_became_nan_stop_the_schedule():
    model = net()
    masks = prune(model, 0.8, schedule="linear", steps=4)
    with torch.no_grad():
        model[0].weight[0] = float("nan")
    with pytest.raises(InputError, match=r"0\.weight holds NaN or infinity"):
        masks.step()


def test_summary_tells_where_a_schedule_stands():
    masks = prune(net(), 0.75, schedule="cubic", steps=2)
    assert masks.summary == (
        "1 of 1 convolutions, 1 of 1 linear layers: 0 of 438 weights removed"
        " (0.00%; magnitude, unstructured, global; step 0 of 2, cubic)",
    )
    masks.step(), masks.step()
    assert repr(masks) == (
        "1 of 1 convolutions, 1 of 1 linear layers: 328 of 438 weights removed (74.89%; magnitude, unstructured, global)"
    )
    masks.remark("a word more")
    assert masks.notes == ("a word more",)


def test_collapsed_layer_is_reported():
    model = net()
    with torch.no_grad():
        model[0].weight.mul_(1e-6)
    masks = prune(model, 0.9)
    assert masks.notes == ("no weight is left in 0.weight: nothing passes there",)
    assert prune(net(), 1.0).notes == ("no weight is left in 0.weight, 4.weight: nothing passes there",)


# --- mapping, other modules, devices --------------------------------------------------------------------------------


def test_masks_are_a_mapping_of_booleans():
    model = net()
    masks = prune(model, 0.8)
    assert dict(masks).keys() == {"0.weight", "4.weight"}
    assert len(masks) == 2
    assert all(mask.dtype == torch.bool and mask.shape == model.get_parameter(n).shape for n, mask in masks.items())
    assert masks.sparsity == 1 - masks.density
    assert masks.density == sum(int(mask.sum()) for mask in masks.values()) / 438


def test_to_binds_to_another_module():
    model, other = net(), net()
    masks = prune(model, 0.8)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    masks.hold(optimizer)
    assert masks.to(other) is masks
    assert_held(masks, other)
    train(model, optimizer, range(2))
    with pytest.raises(AssertionError):
        assert_held(masks, model)
    masks.hold(again := OPTIMIZERS["adam"](other.parameters()))
    train(other, again, range(2))
    assert_held(masks, other)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda: nn.Sequential(nn.Conv2d(1, 6, 3)), "the module has no parameter 4.weight; did you mean '0.weight'"),
        (
            lambda: nn.Sequential(nn.Conv2d(1, 6, 3), *[nn.Flatten()] * 3, nn.Linear(95, 4)),
            r"4.weight has shape \(4, 96",
        ),
    ],
)
def test_to_a_module_that_does_not_fit_changes_nothing(other, words):
    model, module = net(), other()
    masks = prune(model, 0.8)
    before = state_of(module)
    with pytest.raises(InputError, match=words):
        masks.to(module)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    masks.apply()


def test_model_is_copied_saved_and_exported_as_before(tmp_path):
    model = net().eval()
    keys = list(model.state_dict())
    masks = prune(model, 0.8)
    masks.hold(OPTIMIZERS["sgd"](model.parameters()))
    assert list(model.state_dict()) == keys
    assert_same(copy.deepcopy(model), model)
    example = torch.randn(2, 1, 6, 6)
    assert torch.equal(torch.export.export(model, (example,)).module()(example), model(example))
    torch.save(model, io.BytesIO())
    save(model, tmp_path / "net.safetensors")
    load_into(fresh := net(), tmp_path / "net.safetensors")
    assert_same(fresh, model)


@pytest.mark.parametrize("criterion", ["magnitude", "movement"])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_copy_of_model_masks_and_optimizer_is_held_as_they_are(order, criterion):
    def train(model, optimizer, steps):  # without a closure, before which gradients would be those of the former step
        for step in steps:
            optimizer.zero_grad()
            loss_of(model, step).backward()
            optimizer.step()

    model = net()
    masks = prune(model, 0.8, criterion=criterion, schedule="cubic", steps=8, every=2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    masks.hold(optimizer)
    train(model, optimizer, range(3))
    together = (model, masks, optimizer)
    copies = copy.deepcopy(tuple(together[place] for place in order))
    other, held, steps = (copies[order.index(place)] for place in range(3))
    assert held.held
    train(other, steps, range(3, 12))
    assert_held(held, other)
    assert held.sparsity == pytest.approx(0.8, abs=0.01)
    assert masks.sparsity < 0.5, "the original has not moved"
    train(model, optimizer, range(3, 12))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_pickled_masks_are_not_held_until_they_are_again():
    model = net()
    masks = prune(model, 0.8)
    assert not masks.held
    handle = masks.hold(optimizer := torch.optim.AdamW(model.parameters()))
    assert masks.held
    other, again = pickle.loads(pickle.dumps((model, masks)))
    assert (masks.held, again.held, copy.copy(masks).held) == (True, False, False)
    again.hold(fresh := torch.optim.AdamW(other.parameters()))
    train(other, fresh, range(3))
    assert_held(again, other)
    train(model, optimizer, range(3))
    assert_held(masks, model)
    handle.remove()
    assert not masks.held
    assert not copy.deepcopy(masks).held


@pytest.mark.parametrize("optimizer", [None, "sgd", nn.Linear(2, 2)], ids=str)
def test_what_is_no_optimizer_cannot_hold(optimizer):
    with pytest.raises(InputError, match="hold takes the optimizer that trains the model, not"):
        prune(net(), 0.8).hold(optimizer)


def test_conversion_of_the_model_keeps_the_masks():
    model = net()
    masks = prune(model, 0.8)
    model.to(torch.float64)
    with torch.no_grad():
        model[0].weight.fill_(1)
    masks.apply()
    assert_held(masks, model)
    assert model[0].weight.dtype == torch.float64


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_masks_follow_the_model_to_the_gpu_and_choose_the_same_there():
    model = nn.Sequential(nn.Linear(1500, 1500), nn.Linear(1500, 1500))
    twin = copy.deepcopy(model).cuda()
    for criterion in ("magnitude", "random"):
        masks, there = (prune(m, 0.7, criterion=criterion, schedule="cubic", steps=4) for m in (model, twin))
        for _ in range(4):
            masks.step(), there.step()
        assert all(torch.equal(mask, there[name].cpu()) for name, mask in masks.items())
    masks.hold(optimizer := torch.optim.SGD(model.cuda().parameters(), 0.1))
    model(torch.randn(2, 1500, device="cuda")).sum().backward()
    optimizer.step()
    assert_held(masks, model)
    assert all(mask.is_cuda for mask in masks.values())


# --- resuming -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", GRADUAL)
@pytest.mark.parametrize("criterion", ["magnitude", "random"])
@pytest.mark.parametrize("stop", [0, 5, 9, 12])
def test_resumed_run_is_the_same_run(schedule, criterion, stop, tmp_path):
    options = {"schedule": schedule, "steps": 10, "every": 3, "criterion": criterion, "seed": 3}
    whole, resumed = net(), net()
    resumed.load_state_dict(whole.state_dict())
    optimizer = OPTIMIZERS["adamw"](whole.parameters())
    masks = prune(whole, 0.8, **options)
    masks.hold(optimizer)
    train(whole, optimizer, range(stop))
    state = masks.state_dict()
    save(whole, tmp_path / "model")
    save({key: value for key, value in state.items() if isinstance(value, torch.Tensor)}, tmp_path / "masks")
    scalars = json.dumps({key: value for key, value in state.items() if not isinstance(value, torch.Tensor)})
    optimizer_state = copy.deepcopy(optimizer.state_dict())
    train(whole, optimizer, range(stop, 15))

    again = prune(resumed, 0.1)  # whatever it was made by, the state decides
    load_into(resumed, tmp_path / "model")
    again.load_state_dict({**read(tmp_path / "masks"), **json.loads(scalars)})
    assert again.plan == prune(net(), 0.8, **options).plan
    optimizer = OPTIMIZERS["adamw"](resumed.parameters())
    optimizer.load_state_dict(optimizer_state)
    again.hold(optimizer)
    train(resumed, optimizer, range(stop, 15))
    assert_same(resumed, whole)
    assert all(torch.equal(mask, masks[name]) for name, mask in again.items())


def test_state_round_trip_is_bit_equal():
    masks = prune(net(), threshold=0.1)
    state = masks.state_dict()
    assert all(isinstance(value, torch.Tensor | int | float | str) for value in state.values())
    other = prune(net(), 0.1)
    other.load_state_dict(state)
    back = other.state_dict()
    assert back.keys() == state.keys()
    for key, value in state.items():
        assert torch.equal(back[key], value) if isinstance(value, torch.Tensor) else back[key] == value


def without(key):
    return lambda state: {k: v for k, v in state.items() if k != key}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: {}, "holds no masks"),
        (lambda s: {**s, "mask.9.weight": s["mask.0.weight"]}, r"has no parameter 9\.weight; did you mean"),
        (lambda s: {**s, "mask.0.weight": s["mask.4.weight"]}, r"0\.weight has shape \(4, 96\)"),
        (lambda s: {**s, "mask.0.weight": s["mask.0.weight"].float()}, r"0\.weight is no boolean tensor"),
        (lambda s: {**s, "mask.0.weight": 3}, r"0\.weight is no boolean tensor"),
        (without("step"), "its plan cannot be read"),
        (without("plan.density"), "its plan cannot be read"),
        (lambda s: {**s, "plan.threshold": 0.5}, "its plan cannot be read"),
        (lambda s: {**s, "step": 1.5}, "its plan cannot be read"),
        (lambda s: {**s, "plan.steps": "many"}, "its plan cannot be read"),
        (lambda s: {**s, "plan.every": 0}, "its plan cannot be read"),
        (lambda s: {**s, "plan.mystery": 1}, "its plan cannot be read"),
        (lambda s: {**s, "plan.criterion": "magnitud"}, "did you mean 'magnitude'"),
    ],
)
def test_states_that_do_not_fit_change_nothing(change, words):
    model = net()
    masks = prune(model, 0.5)
    before, weights = masks.state_dict(), state_of(model)
    changed = change(prune(net(), 0.9, schedule="cubic", steps=4).state_dict())
    with pytest.raises(InputError, match=words):
        masks.load_state_dict(changed)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    for key, value in masks.state_dict().items():
        assert value is before[key] if isinstance(value, torch.Tensor) else value == before[key]


def test_rebuilt_masks_are_final(tmp_path):
    model = net()
    save(dict(prune(model, 0.8)), tmp_path / "masks")
    fresh = net()
    masks = Masks.rebuild(fresh, read(tmp_path / "masks"))
    assert_held(masks, fresh)
    before = dict(masks)
    optimizer = OPTIMIZERS["adamw"](fresh.parameters())
    masks.hold(optimizer)
    train(fresh, optimizer, range(3))
    assert all(torch.equal(mask, before[name]) for name, mask in masks.items())
    assert_held(masks, fresh)
    assert masks.summary == ("2 parameters: 350 of 438 weights removed (79.91%; magnitude, unstructured, global)",)
    masks.load_state_dict(masks.state_dict())
    with pytest.raises(InputError, match="has no parameter"):
        Masks.rebuild(nn.Linear(2, 2), before)


def test_orders_of_parameters_do_not_matter():
    model = net()
    for order in itertools.permutations(["0.weight", "4.weight"]):
        first = prune(copy.deepcopy(model), 0.5, include=list(order))
        assert list(first) == ["0.weight", "4.weight"]
