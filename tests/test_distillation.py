"""Distillation: the loss against plain arithmetic, and a teacher of which not a bit changes."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from abridged.data import Batch, Data
from abridged.distillation.distill import distill, distill_fit
from abridged.distillation.losses import Outputs, kd
from abridged.errors import InputError
from abridged.training import Callback, Moment, TrainingError, fit

X = torch.randn(90, 6, generator=torch.Generator().manual_seed(1))
Y = X[:, :3].argmax(1)


def data(**changes: Any) -> Data:
    return Data((X[:60], Y[:60]), (X[60:75], Y[60:75]), (X[75:], Y[75:]), **changes)


def network(classes: int = 3, seed: int = 0, width: int = 8) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, classes)
    )


def fixed(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- the loss, by hand


def kd_by_hand(s: list[list[float]], t: list[list[float]], temperature: float) -> tuple[float, list[list[float]]]:
    """The value and its gradient with respect to s, in Python's own floats, from the formula alone."""

    def softmax(row: list[float], scale: float) -> list[float]:
        powers = [math.exp(v / scale) for v in row]
        return [p / sum(powers) for p in powers]

    n, value, gradient = len(s), 0.0, []
    for mine, taught in zip(s, t, strict=True):
        p, q = softmax(mine, temperature), softmax(taught, temperature)
        value += temperature**2 * sum(qc * (math.log(qc) - math.log(pc)) for qc, pc in zip(q, p, strict=True)) / n
        gradient.append([temperature * (p[c] - q[c]) / n for c in range(len(mine))])
    return value, gradient


@pytest.mark.parametrize("temperature", [4.0, 1.0, 20.0, 0.5])
def test_kd_equals_the_formula_in_value_and_gradient(temperature: float) -> None:
    s, t = 3 * fixed(1, 5, 4), 3 * fixed(2, 5, 4)
    value, gradient = kd_by_hand(s.tolist(), t.tolist(), temperature)
    s.requires_grad_()
    loss = kd(Outputs(s), Outputs(t), Batch(None, None), temperature=temperature)
    loss.backward()
    assert loss.item() == pytest.approx(value, rel=1e-12)
    assert s.grad is not None
    assert torch.allclose(s.grad, torch.tensor(gradient, dtype=torch.float64), rtol=1e-11, atol=1e-14)


def test_kd_golden_numbers() -> None:
    """Two classes, T = 2, worked out on paper: softmax((2, 0)/2) = (e, 1)/(e + 1), softmax((0, 0)/2) = (½, ½)."""
    s, t = torch.tensor([[0.0, 0.0]], dtype=torch.float64), torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    e = math.e
    kl = e / (e + 1) * math.log(2 * e / (e + 1)) + 1 / (e + 1) * math.log(2 / (e + 1))
    loss = kd(Outputs(s), Outputs(t), Batch(None, torch.tensor([1])), temperature=2.0)
    assert loss.item() == pytest.approx(4 * kl, rel=1e-14)
    assert loss.item() == pytest.approx(0.443776, abs=5e-7)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), temperature=st.floats(0.2, 20))
def test_kd_laws(seed: int, temperature: float) -> None:
    s, t = fixed(seed, 6, 5), fixed(seed + 1, 6, 5)

    def loss(s: Tensor, t: Tensor, temperature: float = temperature) -> float:
        return kd(Outputs(s), Outputs(t), Batch(None, None), temperature=temperature).item()

    assert loss(s, s) == 0
    assert loss(s, t) >= 0
    assert loss(s, t + 7.0) == pytest.approx(loss(s, t), rel=1e-9), "logits are defined up to a constant"
    scaled = loss(temperature * s, temperature * t)
    assert scaled == pytest.approx(temperature**2 * loss(s, t, temperature=1.0), rel=1e-9), "the scale T²"


def test_soft_gradients_keep_their_size_as_the_temperature_grows() -> None:
    """For T → ∞ the gradient tends to (s − t) / (N C) for logits of zero mean (Hinton et al. 2015, equation 4)."""
    s, t = (z - z.mean(1, keepdim=True) for z in (fixed(3, 4, 5), fixed(4, 4, 5)))
    s.requires_grad_()
    kd(Outputs(s), Outputs(t), Batch(None, None), temperature=1e4).backward()
    assert torch.allclose(s.grad, (s - t).detach() / 20, atol=1e-4)  # type: ignore[arg-type]


# -- training


def state(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_not_a_bit_of_the_teacher_changes() -> None:
    teacher, student = network(seed=1), network(seed=2)
    teacher.train()
    teacher[2].eval()
    teacher[0].weight.requires_grad_(False)
    before, pointers = state(teacher), [p.data_ptr() for p in teacher.parameters()]
    modes = [module.training for module in teacher.modules()]
    seen = []

    class Look(Callback):
        def on_step(self, moment: Moment) -> None:
            seen.append([module.training for module in teacher.modules()])

    given = student[0].weight
    assert distill(student, teacher, data(), epochs=3, callbacks=[Look()]) is student
    assert student[0].weight is given, "parameter objects stay"
    assert same(before, state(teacher))
    assert [module.training for module in teacher.modules()] == modes
    assert not any(any(look) for look in seen)
    assert [p.requires_grad for p in teacher.parameters()] == [False] + [True] * 5
    assert all(p.grad is None for p in teacher.parameters())
    assert [p.data_ptr() for p in teacher.parameters()] == pointers
    assert not teacher._forward_hooks


def test_alpha_0_is_training_on_the_labels_to_the_bit() -> None:
    taught, alone = network(seed=2), network(seed=2)
    history = distill_fit(taught, network(seed=1), data(), alpha=0.0, epochs=3)
    assert history == fit(alone, data(), epochs=3)
    assert same(state(taught), state(alone))


def test_a_student_learns_the_teacher_without_labels() -> None:
    teacher = network(seed=1, width=32)
    fit(teacher, data(), epochs=60, optimizer=lambda p: torch.optim.Adam(p, 0.02))
    unlabelled = Data((X[:60], None), (X[60:75], Y[60:75]), (X[75:], Y[75:]))
    student = network(seed=2)
    history = distill_fit(
        student, teacher, unlabelled, alpha=1.0, epochs=60, optimizer=lambda p: torch.optim.Adam(p, 0.02)
    )
    agree = (student.eval()(X).argmax(1) == teacher.eval()(X).argmax(1)).double().mean()
    assert agree > 0.85
    assert history.loss[-1] < 0.3 * history.loss[0]
    assert history.metric[-1] > 0.5


def binary() -> Data:
    def bce(outputs: Tensor, target: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(outputs[:, 0], target.float())

    def right(outputs: Tensor, target: Tensor) -> Tensor:
        return ((outputs[:, 0] > 0) == (target > 0)).double()

    y = (X[:, 0] > X[:, 1]).long()
    return Data((X[:60], y[:60]), (X[60:75], y[60:75]), (X[75:], y[75:]), loss=bce, metric=right)


def test_a_network_of_one_logit_learns_its_teacher() -> None:
    teacher, student = network(1, seed=1, width=32), network(1, seed=2)
    options: dict[str, Any] = {"epochs": 60, "optimizer": lambda p: torch.optim.Adam(p, 0.02)}
    fit(teacher, binary(), **options)
    history = distill_fit(student, teacher, binary(), alpha=1.0, **options)
    assert history.loss[-1] < 0.3 * history.loss[0]
    agree = (student.eval()(X) > 0) == (teacher.eval()(X) > 0)
    assert agree.double().mean() > 0.85
    for loss in ("standardized", "dist", "dkd"):
        with pytest.raises(InputError, match=f"'{loss}' needs two classes or more: for one logit take loss='kd'"):
            distill(network(1), network(1, seed=1), binary(), loss=loss)


def test_it_resumes_exactly_and_only_with_the_same_teacher(tmp_path: Any) -> None:
    class Stop(Callback):
        def on_step(self, moment: Moment) -> None:
            if moment.step == 5:
                raise KeyboardInterrupt

    teacher = network(seed=1)

    def run(**options: Any) -> nn.Module:
        return distill(
            network(seed=2), **{"teacher": teacher, "data": data(), "epochs": 4, "batch_size": 20, **options}
        )

    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=tmp_path, callbacks=[Stop()])
    assert teacher.training
    with pytest.raises(InputError, match="other teacher"):
        run(checkpoint=tmp_path, callbacks=[Callback()], teacher=network(seed=3))
    for changed in ({"temperature": 3.0}, {"temperature": lambda t: 4.0 + t}, {"alpha": lambda t: 0.7 - t / 9}):
        with pytest.raises(InputError, match="other distillation"):
            run(checkpoint=tmp_path, callbacks=[Callback()], **changed)
    assert same(state(run(checkpoint=tmp_path, callbacks=[Callback()])), state(run()))


def test_a_resume_knows_a_schedule_by_its_numbers(tmp_path: Any) -> None:
    def run(temperature: Any, alpha: Any) -> nn.Module:
        return distill(
            network(seed=2),
            network(seed=1),
            data(),
            temperature=temperature,
            alpha=alpha,
            epochs=2,
            checkpoint=tmp_path,
        )

    done = run(lambda t: 4.0, lambda t: 0.5)
    assert same(state(run(lambda t: 8.0 / 2, lambda u: 0.5)), state(done)), "another function of the same numbers"
    for temperature, alpha in ((lambda t: 9.0 - t, lambda t: 0.5), (lambda t: 4.0, lambda t: 0.5 * t)):
        with pytest.raises(InputError, match="other distillation"):
            run(temperature, alpha)


# -- mistakes


class Silent(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, :3], x


BAD: dict[str, dict[str, Any]] = {
    "temperature must be positive, not 0": {"temperature": 0},
    "temperature must be positive, not -1": {"temperature": -1},
    "temperature must be positive, not nan": {"temperature": math.nan},
    "temperature must be positive, not inf": {"temperature": math.inf},
    r"alpha, .* between 0 and 1, not 1\.5": {"alpha": 1.5},
    r"alpha, .* between 0 and 1, not -0\.1": {"alpha": -0.1},
    "alpha, .* not nan": {"alpha": math.nan},
    "the teacher has 5 classes and the student 3": {"teacher": network(5)},
    "the teacher gives tuple, no tensor": {"teacher": Silent()},
    "unknown distillation loss 'hinton'": {"loss": "hinton"},
    "distillation of class scores is for classification": {
        "data": Data((X, X[:, :3]), (X, X[:, :3]), loss="mse", metric="mse")
    },
    "label 5 is out of range": {"data": Data((X, Y + 3), (X, Y))},
    r"there are no targets \(y is None\)": {"data": Data((X, None), (X, None))},
    "epochs must be a whole number": {"epochs": 0},
}


@pytest.mark.parametrize("line", BAD)
def test_mistakes_are_one_clear_line_and_change_nothing(line: str) -> None:
    student, teacher = network(seed=2), network(seed=1)
    before = state(student)
    with pytest.raises(InputError, match=line) as error:
        distill(student, **{"teacher": teacher, "data": data(), "epochs": 1, **BAD[line]})
    assert "\n" not in str(error.value)
    assert same(before, state(student))


def test_a_teacher_that_is_the_student() -> None:
    model = network()
    with pytest.raises(InputError, match=r"the teacher is the student: give a copy, copy\.deepcopy"):
        distill(model, model, data())
    other = network(seed=1)
    other[0] = model[0]
    with pytest.raises(InputError, match="the teacher shares parameters with the student"):
        distill(model, other, data())
    distill(model, copy.deepcopy(model), data(), epochs=1)


def test_nan_in_teacher_or_training() -> None:
    teacher = network(seed=1)
    with torch.no_grad():
        teacher[4].bias[0] = math.nan
    with pytest.raises(InputError, match="the teacher gives NaN or infinity"):
        distill(network(), teacher, data())
    with pytest.raises(TrainingError, match="learning rate is probably too high"):
        distill(
            network(), network(seed=1), data(), optimizer=lambda p: torch.optim.SGD(p, 1e38), epochs=3, batch_size=8
        )
