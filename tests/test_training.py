"""The training loop: what it promises about bits, zeros, curves, kills and mistakes."""

from __future__ import annotations

import copy
import json
import math
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from abridged.data import Batch, Data
from abridged.data.content import digest
from abridged.data.sets import get
from abridged.errors import InputError, UnsupportedError
from abridged.training import Callback, EarlyStop, History, Moment, TrainingError, adamw, constant, cosine, fit
from abridged.training import checkpoint as files
from abridged.training.checkpoint import pack, unpack
from abridged.training.zeros import ZerosWarning

X = torch.randn(90, 6, generator=torch.Generator().manual_seed(1))
Y = (X[:, :3].argmax(1)).long()


def data(**changes: Any) -> Data:
    return Data((X[:60], Y[:60]), (X[60:75], Y[60:75]), (X[75:], Y[75:]), **changes)


def network() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(a: nn.Module | dict[str, Tensor], b: nn.Module | dict[str, Tensor]) -> bool:
    a, b = (m.state_dict() if isinstance(m, nn.Module) else m for m in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def sgd(parameters: Iterable[nn.Parameter]) -> Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


class Halving:
    """Masks of the first layer whose density is halved every `every` steps, until `final`."""

    def __init__(self, model: nn.Module, every: int = 10, final: float = 0.25) -> None:
        self.weight = model[0].weight
        self.mask = torch.ones_like(self.weight, dtype=torch.bool)
        self.every, self.final, self.step = every, final, 0

    @property
    def density(self) -> float:
        return self.mask.double().mean().item()

    def hold(self, optimizer: Optimizer) -> Any:
        return optimizer.register_step_post_hook(lambda *_: self.advance())

    def advance(self) -> None:
        self.step += 1
        if self.step % self.every == 0 and self.density > self.final:
            keep = int(self.mask.sum()) // 2
            threshold = self.weight.abs().masked_fill(~self.mask, 0).flatten().topk(keep).values[-1]
            self.mask = self.mask & (self.weight.detach().abs() >= threshold)
        with torch.no_grad():
            self.weight.masked_fill_(~self.mask, 0)

    def state_dict(self) -> dict[str, Any]:
        return {"mask": self.mask, "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mask, self.step = state["mask"], state["step"]


# -- it learns, and tells


def test_it_learns_the_digits() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10))
    history = fit(model, get("digits"), epochs=12, optimizer=lambda p: torch.optim.AdamW(p, 0.01))
    assert history.metric[-1] > 0.95
    assert history.loss[-1] < history.loss[0] / 5
    assert history.seconds > 0


def test_curves_have_a_value_per_epoch() -> None:
    history = fit(network(), data(), epochs=3, batch_size=16)
    assert set(history.curves) == {"loss", "val accuracy", "density", "lr"}
    assert all(len(curve) == history.epochs == 3 for curve in history.curves.values())
    assert (history.steps, history.density, history.stopped, history.kept) == (12, (1, 1, 1), None, None)


def test_the_loss_is_the_mean_over_samples_and_the_step_is_the_textbook_one() -> None:
    model = nn.Linear(6, 3)
    by_hand = copy.deepcopy(model)
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1)
    losses = []
    for x, y in data().batches("train", 25, shuffle=True, seed=3, epoch=0):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(by_hand(x), y)
        loss.backward()
        optimizer.step()
        losses += [loss.item()] * len(x)
    history = fit(
        model, data(), epochs=1, batch_size=25, seed=3, optimizer=lambda p: torch.optim.SGD(p, 0.1), scheduler=constant
    )
    assert same(model, by_hand)
    assert history.loss[0] == pytest.approx(np.mean(losses), rel=1e-6)
    assert history.lr == (0.1,)


def test_accumulating_batches_equals_one_large_batch() -> None:
    runs = []
    for batch_size, accumulate in ((25, 1), (5, 5)):
        model = nn.Linear(6, 3)
        torch.nn.init.zeros_(model.weight), torch.nn.init.zeros_(model.bias)
        history = fit(model, data(), epochs=2, batch_size=batch_size, accumulate=accumulate, optimizer=sgd)
        runs.append((model, history))
    assert runs[0][1].steps == runs[1][1].steps == 6
    assert torch.allclose(runs[0][0].weight, runs[1][0].weight, atol=1e-6)
    assert runs[0][1].loss == pytest.approx(runs[1][1].loss, rel=1e-5)


def test_clip_bounds_the_gradient() -> None:
    norms = []

    class Norms(Callback):
        def on_step(self, moment: Moment) -> None:
            norms.append(math.sqrt(sum(float(p.grad.square().sum()) for p in moment.model.parameters())))

    fit(network(), data(), epochs=2, clip=0.05, callbacks=[Norms()])
    assert norms
    assert max(norms) <= 0.05 * (1 + 1e-5)


def test_bf16_on_a_cpu_trains_close_to_fp32() -> None:
    curves = [
        fit(network(), data(), epochs=4, optimizer=sgd, precision=precision).loss for precision in ("fp32", "bf16")
    ]
    assert curves[0] != curves[1]
    assert curves[0] == pytest.approx(curves[1], rel=0.1)


@pytest.mark.parametrize("loss", ["mse", lambda outputs, target: (outputs - target).abs().mean()])
def test_a_loss_of_the_users_own(loss: Any) -> None:
    regression = Data((X[:60], X[:60, :3]), (X[60:], X[60:, :3]), loss="mse", metric="mse")
    history = fit(nn.Linear(6, 3), regression, epochs=15, loss=loss, optimizer=lambda p: torch.optim.Adam(p, 0.1))
    assert history.metric[-1] < 0.2 * history.metric[0]
    assert not history.higher_is_better


def test_an_objective_sees_the_batch_and_needs_no_labels() -> None:
    unlabelled = Data((X[:60], None), (X[60:75], None), (X[75:], None))
    target = nn.Linear(6, 3)

    def objective(outputs: Tensor, batch: Batch) -> Tensor:
        assert batch.y is None
        return (outputs - target(batch.x).detach()).square().mean()

    history = fit(nn.Linear(6, 3), unlabelled, epochs=10, objective=objective, optimizer=sgd)
    assert history.loss[-1] < 0.1 * history.loss[0]
    assert "val accuracy" not in history.curves


def test_schedulers() -> None:
    for make, first, last in ((cosine, 0.05, 0.0), (constant, 0.1, 0.1)):
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        scheduler = make(optimizer, 20)
        rates = []
        for _ in range(20):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        assert rates[0] == pytest.approx(first)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(last)
        assert max(rates) <= 0.1 + 1e-12
    history = fit(
        network(), data(), epochs=6, optimizer=sgd,
        scheduler=lambda optimizer, steps: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=10.0),
    )  # fmt: skip
    assert history.lr[-1] < history.lr[0]


def test_batches_of_the_users_own_of_unknown_number() -> None:
    class Stream:
        def __iter__(self) -> Any:
            return iter([(X[i : i + 20], Y[i : i + 20]) for i in range(0, 60, 20)])

    history = fit(network(), Data(Stream(), (X[60:], Y[60:])), epochs=2)
    assert history.steps == 6


# -- bits


def test_two_runs_agree_to_the_bit_and_seeds_differ() -> None:
    models = [network() for _ in range(3)]
    histories = [
        fit(model, data(), epochs=3, batch_size=16, seed=seed) for model, seed in zip(models, (5, 5, 6), strict=True)
    ]
    assert same(models[0], models[1])
    assert histories[0] == histories[1]
    assert not same(models[0], models[2])


def test_the_callers_generators_and_modes_go_on_as_if_nothing_had_been() -> None:
    model = network()
    model[1].eval()
    loader = DataLoader(TensorDataset(X[:60], Y[:60]), batch_size=16, shuffle=True)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    fit(model, Data(loader, (X[60:], Y[60:])), epochs=1)
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert model.training
    assert model[4].training
    assert not model[1].training


def test_frozen_parameters_stay() -> None:
    model = network()
    model[0].requires_grad_(False)
    before = state(model)
    fit(model, data(), epochs=1)
    assert torch.equal(model[0].weight, before["0.weight"])
    assert not torch.equal(model[4].weight, before["4.weight"])


# -- masks


def test_zeros_stay_zero_and_density_is_a_curve() -> None:
    model = network()
    masks = Halving(model)
    history = fit(model, data(), epochs=8, batch_size=16, masks=masks, optimizer=sgd)
    assert history.density == (1, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25)
    assert (model[0].weight[~masks.mask] == 0).all()
    weight = model[0].weight.detach().clone()
    with pytest.warns(ZerosWarning, match=r"weights are mostly zero \(0\.weight 75 %\) and no mask holds them"):
        fit(model, data(), epochs=1, optimizer=sgd)
    assert not torch.equal(model[0].weight[~masks.mask], weight[~masks.mask]), "the hook went with the run"


# -- selection


class Scripted(Callback):
    """Gives val the metric of a script: accuracy is read off the bias of the last layer."""

    def __init__(self, script: list[float]) -> None:
        self.script = script

    def on_step(self, moment: Moment) -> None:
        with torch.no_grad():
            moment.model[4].bias.fill_(self.script[moment.epoch - 1])


def scripted(script: list[float], **changes: Any) -> tuple[nn.Module, History]:
    model = network()
    metric = lambda outputs, target: torch.full((len(target),), model[4].bias[0].item())  # noqa: E731
    history = fit(model, data(metric=metric), epochs=len(script), callbacks=[Scripted(script)], **changes)
    return model, history


def test_keep_best_gives_back_the_best_epoch() -> None:
    model, history = scripted([0.1, 0.5, 0.3, 0.5], keep_best=True)
    assert history.kept == 2
    assert model[4].bias[0].item() == 0.5
    model, history = scripted([0.1, 0.5, 0.3, 0.25])
    assert history.kept is None
    assert model[4].bias[0].item() == 0.25


def test_early_stop_waits_patiently() -> None:
    model, history = scripted([0.1, 0.5, 0.5, 0.25, 0.4, 0.9], early_stop=EarlyStop(3))
    assert history.epochs == 5
    assert history.stopped == "val <lambda> did not improve for 3 epochs"
    assert history.kept == 2
    assert model[4].bias[0].item() == 0.5
    _, history = scripted([0.1, 0.5, 0.52, 0.54, 0.56], early_stop=EarlyStop(3, min_delta=0.1))
    assert history.kept == 2


def test_epochs_before_the_final_density_are_no_rivals() -> None:
    history = History("accuracy", metric=(0.9, 0.8, 0.6, 0.7, 0.65), loss=(1,) * 5, density=(1, 0.5, 0.1, 0.1, 0.1))
    assert history.best() == 3
    assert EarlyStop(2).reason(history) is None
    assert EarlyStop(1).reason(history) == "val accuracy did not improve for 1 epochs"
    assert History("error", False, metric=(0.9, 0.8, 0.85), loss=(1,) * 3, density=(1, 1, 1)).best() == 1
    assert History("accuracy", metric=(0.9, 0.8), loss=(2, 1), density=(1, 1)).best("loss") == 1


def test_keep_best_with_masks_keeps_masks_and_weights_together() -> None:
    model = network()
    masks = Halving(model)
    history = fit(model, data(), epochs=9, batch_size=16, masks=masks, optimizer=sgd, keep_best=True)
    assert masks.density == 0.25
    assert (model[0].weight[~masks.mask] == 0).all()
    assert history.kept is None or history.density[history.kept - 1] == 0.25


def test_a_callback_may_stop_and_sees_where_it_is() -> None:
    seen: list[tuple[int, int]] = []

    class Stop(Callback):
        def on_step(self, moment: Moment) -> bool:
            seen.append((moment.epoch, moment.step))
            return moment.step == 6

    class Epochs(Callback):
        def on_epoch(self, moment: Moment) -> bool:
            return moment.history.epochs == 2

    history = fit(network(), data(), epochs=9, batch_size=16, callbacks=[Stop()])
    assert seen == [(1, 1), (1, 2), (1, 3), (1, 4), (2, 5), (2, 6)]
    assert history.stopped == "a callback stopped it in epoch 2"
    assert fit(network(), data(), epochs=9, callbacks=[Callback(), Epochs()]).epochs == 2


# -- breaking down


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_nan_loss_names_the_place_and_gives_the_model_back(value: float) -> None:
    model = network()
    masks = Halving(model, every=1)
    before, steps = state(model), []

    def loss(outputs: Tensor, target: Tensor) -> Tensor:
        steps.append(1)
        return outputs.square().mean() * (value if len(steps) == 6 else 1)

    with pytest.raises(
        TrainingError, match=rf"the loss is {value} in epoch 2, step 6 \(learning rate .*\): the learning"
    ) as e:
        fit(model, data(), epochs=3, batch_size=16, loss=loss, masks=masks)
    assert e.value.exit_status == 2
    assert "clip=1.0" in str(e.value)
    assert same(before, model)
    assert masks.density == 1
    assert model.training


def test_likely_causes() -> None:
    with pytest.raises(TrainingError, match=r"step 1 .* the loss function, the data or the weights are to blame"):
        fit(network(), data(), epochs=1, loss=lambda o, t: o.mean() * math.nan)
    with pytest.raises(TrainingError, match="learning rate is probably too high: try 1e"):
        fit(
            nn.Linear(6, 3),
            data(),
            epochs=9,
            optimizer=lambda p: torch.optim.SGD(p, 1e38),
            scheduler=constant,
            batch_size=8,
        )

    def steep(outputs: Tensor, target: Tensor) -> Tensor:
        return (outputs.sum() * 0).sqrt()  # the value is 0, its gradient not a number

    with pytest.raises(TrainingError, match="gradient norm is nan in epoch 1, step 1"):
        fit(network(), data(), epochs=1, loss=steep, clip=1.0)


def test_ctrl_c_passes_and_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    class Interrupt(Callback):
        def on_step(self, moment: Moment) -> None:
            if moment.step == 10:
                raise KeyboardInterrupt

    model = network()
    with pytest.raises(KeyboardInterrupt):
        fit(model, data(), epochs=4, batch_size=16, callbacks=[Interrupt()], checkpoint=tmp_path)
    assert model.training
    resumed, straight = network(), network()
    history = fit(resumed, data(), epochs=4, batch_size=16, callbacks=[Callback()], checkpoint=tmp_path)
    assert history == fit(straight, data(), epochs=4, batch_size=16)
    assert same(resumed, straight)


class Stubborn(torch.optim.SGD):
    pass


BAD: dict[str, dict[str, Any]] = {
    "epochs must be a whole number of at least 1, not 0": {"epochs": 0},
    "batch_size must be a whole number of at least 1": {"batch_size": 0},
    "accumulate must be a whole number of at least 1, not 1.5": {"accumulate": 1.5},
    "clip is the largest gradient norm and must be positive": {"clip": 0.0},
    "unknown precision 'fp8'; known: fp32, bf16, fp16": {"precision": "fp8"},
    "precision fp16 needs a GPU": {"precision": "fp16"},
    "device 'cuda:77' cannot be used": {"device": "cuda:77"},
    "device 'gpu' cannot be used": {"device": "gpu"},
    "optimizer must be a callable": {"optimizer": torch.optim.SGD([torch.zeros(1)], 0.1)},
    "optimizer gave LBFGS": {"optimizer": torch.optim.LBFGS},
    "optimizer gave NoneType": {"optimizer": lambda p: None},
    "unknown loss 'ce'": {"loss": "ce"},
    "loss must be a scalar tensor": {"loss": lambda outputs, target: outputs.detach().mean()},
}


@pytest.mark.parametrize("line", BAD)
def test_mistakes_are_one_clear_line_and_change_nothing(line: str) -> None:
    model = network()
    before = state(model)
    with pytest.raises(InputError, match=line) as error:
        fit(model, data(), **{"epochs": 1, **BAD[line]})
    assert "\n" not in str(error.value)
    assert same(before, model)


def test_nothing_to_train_and_nothing_to_train_on() -> None:
    with pytest.raises(InputError, match="no parameter to train"):
        fit(network().requires_grad_(False), data(), epochs=1)
    with pytest.raises(InputError, match="train: the split is empty"):
        fit(network(), Data((X[:0], Y[:0]), (X, Y)), epochs=1)

    class Once:
        calls = 0

        def __iter__(self) -> Any:
            self.calls += 1
            return iter([(X, Y)] if self.calls < 4 else [])

    with pytest.raises(InputError, match="train: the split gave no batch"):
        fit(network(), Data(Once(), (X, Y)), epochs=3)
    for wrong in ({"patience": 0}, {"min_delta": -1.0}, {"on": "val"}):
        with pytest.raises(InputError, match="early stop"):
            EarlyStop(**wrong)  # type: ignore[arg-type]


# -- checkpoints


def test_pack_and_unpack_are_inverse() -> None:
    value = {
        "none": None, 3: True, "f": [0.1, math.inf, -0.0], "t": (1, ("a", Counter({5: 2}))),
        "tensor": [torch.tensor(3, dtype=torch.int16), torch.zeros(0, 2), torch.tensor([math.nan], dtype=torch.bfloat16)],
        "bool": {"mask": torch.tensor([True, False])}, "empty": {},
    }  # fmt: skip
    tensors: dict[str, Tensor] = {}
    back = unpack(json.loads(json.dumps(pack(value, "", tensors))), tensors)
    assert repr(back) == repr(value)
    assert isinstance(back["t"][1][1], Counter)
    with pytest.raises(UnsupportedError, match=r"/a/0 is a function: a checkpoint holds"):
        pack({"a": [len.__class__, print][1:] and [lambda: 0]}, "", {})


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": sgd,
    "adamw": adamw,
    "amsgrad": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True, foreach=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.001, centered=True),
    "adafactor": lambda p: torch.optim.Adafactor(p, 0.01),
    "rprop": torch.optim.Rprop,
}
SCHEDULERS: dict[str, Any] = {
    "cosine": cosine,
    "one cycle": lambda optimizer, steps: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=steps),
    "milestones": lambda optimizer, steps: torch.optim.lr_scheduler.MultiStepLR(optimizer, [steps // 2, steps - 2]),
    "restarts": lambda optimizer, steps: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 5),
    "plateau": lambda optimizer, steps: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0),
}


class KilledError(Exception):
    pass


class Quit(Callback):
    """Ends the process, as it were, in the middle of an epoch; counts steps over a resume."""

    def __init__(self, at: int) -> None:
        self.at, self.steps = at, 0

    def on_step(self, moment: Moment) -> None:
        self.steps += 1
        if moment.step == self.at:
            raise KilledError

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]


def resumed_equals_straight(directory: Path, **options: Any) -> None:
    def run(at: int, where: Path | None) -> tuple[nn.Module, History, Quit, Halving]:
        model, callback = network(), Quit(at)
        masks = Halving(model)
        given = options.get("data", data)()
        arguments = {"epochs": 5, "batch_size": 16, **{k: v for k, v in options.items() if k != "data"}}
        history = fit(model, given, masks=masks, callbacks=[callback], checkpoint=where, **arguments)
        return model, history, callback, masks

    with pytest.raises(KilledError):
        run(7, directory)
    model, history, callback, masks = run(-1, directory)
    straight, expected, counted, expected_masks = run(-1, None)
    assert same(model, straight)
    assert history == expected
    assert callback.steps == counted.steps
    assert torch.equal(masks.mask, expected_masks.mask)
    again, history, *_ = run(-1, directory)
    assert same(again, straight), "a finished training is taken as it is"
    assert history == expected


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_resumes_exactly(tmp_path: Path, optimizer: str) -> None:
    resumed_equals_straight(tmp_path / "new", optimizer=OPTIMIZERS[optimizer])


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_resumes_exactly(tmp_path: Path, scheduler: str) -> None:
    resumed_equals_straight(tmp_path, scheduler=SCHEDULERS[scheduler], optimizer=sgd)


def loader() -> Data:
    generator = torch.Generator().manual_seed(4)
    train = DataLoader(TensorDataset(X[:60], Y[:60]), batch_size=16, shuffle=True, generator=generator)
    return Data(train, (X[60:75], Y[60:75]), (X[75:], Y[75:]))


def loader_without_generator() -> Data:
    return Data(DataLoader(TensorDataset(X[:60], Y[:60]), batch_size=16, shuffle=True), (X[60:], Y[60:]))


def augmented() -> Data:
    return data(augment=lambda x, generator: x + 0.1 * torch.randn(x.shape, generator=generator))


@pytest.mark.parametrize("options", [
    {"data": loader}, {"data": loader_without_generator}, {"data": augmented}, {"keep_best": True}, {"accumulate": 2},
    {"precision": "bf16"}, {"clip": 0.5}, {"early_stop": EarlyStop(2)},
])  # fmt: skip
def test_everything_resumes_exactly(tmp_path: Path, options: dict[str, Any]) -> None:
    resumed_equals_straight(tmp_path, **options)


def test_a_checkpoint_is_plain_safetensors(tmp_path: Path) -> None:
    fit(network(), data(), epochs=1, checkpoint=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [files.FILE]


def test_other_arguments_are_refused_by_name(tmp_path: Path) -> None:
    fit(network(), data(), epochs=1, checkpoint=tmp_path)
    other = network()
    torch.nn.init.zeros_(other[0].weight)
    changes: dict[str, tuple[nn.Module, Data, dict[str, Any]]] = {
        r"other epochs \(1, now 2\)": (network(), data(), {"epochs": 2}),
        r"other seed \(0, now 3\), loss \(cross-entropy, now mse\)": (network(), data(), {"seed": 3, "loss": "mse"}),
        "other initial weights": (other, data(), {}),
        "other data": (network(), Data((X[:50], Y[:50]), (X, Y)), {}),
        "other optimizer": (network(), data(), {"optimizer": sgd}),
        "other scheduler|other teacher": (network(), data(), {"identity": {"teacher": "x"}}),
        "other masks": (network(), data(), {"masks": Halving(network())}),
    }
    before = (tmp_path / files.FILE).read_bytes()
    for line, (model, given, options) in changes.items():
        with pytest.raises(InputError, match=line) as error:
            fit(model, given, **{"epochs": 1, "checkpoint": tmp_path, **options})
        assert "\n" not in str(error.value)
        assert "another directory" in str(error.value)
    assert (tmp_path / files.FILE).read_bytes() == before


def test_unreadable_checkpoints_are_one_line(tmp_path: Path) -> None:
    fit(network(), data(), epochs=1, checkpoint=tmp_path)
    path = tmp_path / files.FILE
    whole = path.read_bytes()
    for content in (whole[:-5], whole[:100], b"", b"x" * 50):
        path.write_bytes(content)
        with pytest.raises(InputError, match="cannot be read as a checkpoint: remove it"):
            fit(network(), data(), epochs=1, checkpoint=tmp_path)
    save_file({"a": X}, path)
    with pytest.raises(InputError, match="cannot be read as a checkpoint"):
        fit(network(), data(), epochs=1, checkpoint=tmp_path)
    save_file({"a": X}, path, {"abridged": '{"format": "0"}'})
    with pytest.raises(InputError, match="another version's format"):
        fit(network(), data(), epochs=1, checkpoint=tmp_path)


def test_digest_sees_every_bit() -> None:
    zero = torch.zeros(3)
    assert digest([zero]) == digest([zero.clone()])
    different = [torch.tensor([0.0, -0.0, 0.0]), torch.zeros(3, dtype=torch.int32), torch.zeros(3, 1), torch.zeros(0)]
    assert len({digest([t]) for t in [zero, *different]}) == 5
    assert digest([torch.tensor(True)]) != digest([torch.tensor(False)])


# -- killed by SIGKILL, in a process of its own

KILLED = '''
import os, random, signal, sys, time
from pathlib import Path
import torch
from torch import nn
from abridged.data import Data
from abridged.pruning.prune import prune
from abridged.training import fit
from abridged.data.content import digest

torch.set_num_threads(1)
x, y = torch.randn(400, 1, 8, 8), torch.arange(400) % 10
data = Data((x[:320], y[:320]), (x[320:], y[320:]))
home, seed = Path(sys.argv[1]), int(sys.argv[2])
torch.optim.AdamW([torch.zeros(1)]).step()  # the first step imports much: here, and not in every child

def train(where):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.1), nn.Flatten(), nn.Linear(216, 10))
    masks = prune(model, 0.8, schedule="cubic", steps=20)
    history = fit(model, data, epochs=5, masks=masks, checkpoint=where, keep_best=True)
    return digest([*model.state_dict().values(), *masks.values(), torch.tensor(history.loss)])

def child(where, prepare=lambda: None):
    """Train in a forked process; it writes its digest at the end."""
    process = os.fork()
    if process == 0:
        prepare()
        (home / "digest").write_text(train(where))
        os._exit(0)
    return process

def finish(process):
    return os.WIFSIGNALED(os.waitpid(process, 0)[1])

def at_call(function, number):
    """SIGKILL right before the n-th call of an os function."""
    def prepare():
        original, calls = getattr(os, function), []
        def counted(*arguments, **options):
            calls.append(1)
            if len(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **options)
        setattr(os, function, counted)
    return prepare

def killed_at(where, delay):
    process = child(where)
    time.sleep(delay)
    os.kill(process, signal.SIGKILL)
    return finish(process)

started = time.perf_counter()
assert not finish(child(None))
seconds, expected = time.perf_counter() - started, (home / "digest").read_text()
kills, chance = 0, random.Random(seed)

for number, (function, call) in enumerate([("fsync", 1), ("replace", 1), ("fsync", 3), ("replace", 3), ("replace", 5)]):
    assert finish(child(home / f"call{number}", at_call(function, call))), (function, call)
    kills += 1
    assert not finish(child(home / f"call{number}"))
    assert (home / "digest").read_text() == expected, (function, call)
    assert len(list((home / f"call{number}").iterdir())) == 1, "what the kill left was swept"

for attempt in range(40):
    kills += killed_at(home / "random", chance.uniform(0, 0.7 * seconds))
    if kills >= 9:
        break
assert not finish(child(home / "random"))
assert (home / "digest").read_text() == expected, f"seed {seed}"
print(f"{kills} kills, seed {seed}")
assert kills >= 8, kills
'''


def test_killed_at_any_moment_it_goes_on_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(10**6)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), str(seed)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    print(done.stdout, f"seed {seed}")
    assert done.returncode == 0, done.stderr[-2000:]
