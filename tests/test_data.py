"""Data: three forms of splits, one way to iterate; mistakes are told in one line; evaluation is restored and exact."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from abridged.data import LOSSES, METRICS, Batch, Data, Metric, check, evaluate, forward, logits
from abridged.data.batches import mix
from abridged.data.content import fingerprint
from abridged.data.evaluate import rebatch
from abridged.errors import InputError


class Numbers(Dataset[tuple[Tensor, int]]):
    """Sample i is the vector (i, i) with label i % 3."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return torch.full((2,), float(i)), i % 3


def pair(n: int) -> tuple[Tensor, Tensor]:
    return torch.arange(n).float()[:, None].repeat(1, 2), torch.arange(n) % 3


FORMS = {
    "tensors": pair,
    "arrays": lambda n: tuple(t.numpy() for t in pair(n)),
    "tensor dataset": lambda n: TensorDataset(*pair(n)),
    "dataset": Numbers,
    "loader": lambda n: DataLoader(Numbers(n), batch_size=4),
    "list": lambda n: [Batch(*(t[i : i + 4] for t in pair(n))) for i in range(0, n, 4)],
}


def firsts(batches: Any) -> list[list[float]]:
    return [batch.x[:, 0].tolist() for batch in batches]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_every_sample_once_and_again(form: str) -> None:
    data = Data(FORMS[form](10), FORMS[form](10), FORMS[form](10))
    batches = data.batches("train", 4)
    assert firsts(batches) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert firsts(batches) == firsts(batches)
    assert len(batches) == 3
    for x, y in batches:
        assert x.dtype == torch.float32
        assert torch.equal(y, x[:, 0].long() % 3)


@pytest.mark.parametrize("form", ["tensors", "dataset"])
def test_the_order_depends_on_seed_and_epoch_alone(form: str) -> None:
    data = Data(FORMS[form](50), pair(4))

    def order(seed: int, epoch: int) -> list[float]:
        return list(chain.from_iterable(firsts(data.batches("train", 8, shuffle=True, seed=seed, epoch=epoch))))

    state = torch.get_rng_state()
    orders = {(seed, epoch): order(seed, epoch) for seed in range(3) for epoch in range(3)}
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"
    assert all(sorted(o) == list(range(50)) for o in orders.values())
    assert len({tuple(o) for o in orders.values()}) == 9
    assert order(1, 2) == orders[1, 2]


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 40), size=st.integers(1, 12), world=st.integers(1, 3), shuffle=st.booleans())
def test_shards_are_a_partition_of_the_same_batches(n: int, size: int, world: int, shuffle: bool) -> None:
    for form in ("tensors", "dataset"):
        data = Data(FORMS[form](n), pair(4))
        whole = firsts(data.batches("train", size, shuffle=shuffle))
        assert sorted(chain.from_iterable(whole)) == list(range(n))
        if shuffle and size > 1 and n > 1:
            assert min(map(len, whole)) > 1, "batch norm cannot train on one sample"
        if shuffle and min(size, n) < world:
            with pytest.raises(InputError, match=f"cannot be divided among {world} processes"):
                list(data.batches("train", size, shuffle=True, shard=(0, world)))
            continue
        parts = [firsts(data.batches("train", size, shuffle=shuffle, shard=(rank, world))) for rank in range(world)]
        assert sorted(chain.from_iterable(chain.from_iterable(parts))) == list(range(n))
        assert not shuffle or len({len(part) for part in parts}) == 1, "as many steps in every process"


def test_shards_of_a_loader() -> None:
    data = Data(DataLoader(Numbers(9), batch_size=4), pair(4))
    assert firsts(data.batches("train", shard=(1, 2))) == [[1, 3], [5, 7]]
    assert firsts(data.batches("train", shard=(0, 2))) == [[0, 2], [4, 6], [8]]
    with pytest.raises(InputError, match="a batch of 1 cannot be divided among 2 processes"):
        list(data.batches("train", shard=(0, 2), shuffle=True))


def test_seeds_do_not_add_up() -> None:
    assert len({mix(seed, epoch) for seed in range(20) for epoch in range(20)}) == 400


def test_several_inputs_and_a_target_that_is_a_dict() -> None:
    x = (torch.zeros(6, 2), torch.ones(6, 3))
    data = Data((x, torch.arange(6) % 2), (x, torch.arange(6) % 2))
    batch = next(iter(data.batches("train", 4)))
    assert [t.shape for t in batch.x] == [(4, 2), (4, 3)]
    assert forward(lambda a, b: (a.shape, b.shape), batch.x) == ((4, 2), (4, 3))
    assert [t.shape for t in data.example_input(2)] == [(2, 2), (2, 3)]
    loader = [([torch.zeros(3, 2), torch.zeros(3, 1)], {"box": torch.zeros(3, 4)})]
    batch = next(iter(Data(loader, pair(4)).batches("train")))
    assert isinstance(batch.x, tuple)
    assert batch.rows(slice(0, 2)).y["box"].shape == (2, 4)


def test_transform_on_every_split_augment_on_training_alone() -> None:
    def noise(x: Tensor, generator: torch.Generator) -> Tensor:
        return x + torch.rand(x.shape, generator=generator)

    data = Data(pair(6), pair(6), augment=noise, transform=lambda x: x * 10)
    plain = torch.cat([x for x, _ in data.batches("train", 4)])
    assert torch.equal(plain, pair(6)[0] * 10)
    epochs = [torch.cat([x for x, _ in data.batches("train", 4, augment=True, epoch=e)]) for e in (0, 0, 1)]
    assert torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[0], epochs[2])
    assert not torch.equal(epochs[0], plain)
    assert torch.equal(data.example_input(), pair(6)[0][:1] * 0 + 10 * data.val.x[:1])


@pytest.mark.parametrize("form", FORMS)
def test_without_a_test_set_val_is_divided_once(form: str) -> None:
    data, again = (Data(pair(4), FORMS[form](16)) for _ in range(2))
    val, test = (list(chain.from_iterable(firsts(data.batches(split)))) for split in ("val", "test"))
    assert sorted(val + test) == list(range(16))
    assert len(val) == len(test) == 8
    assert val == list(chain.from_iterable(firsts(again.batches("val"))))
    assert "no test set was given: val was divided once" in data.notes[-1]
    replaced = dataclasses.replace(data, name="other")
    assert replaced.notes == data.notes, "once"
    assert list(chain.from_iterable(firsts(replaced.batches("test")))) == test


def test_a_val_that_cannot_be_divided_leaves_no_test() -> None:
    class Stream:
        def __iter__(self) -> Iterator[Any]:
            yield pair(3)

    for val in (Stream(), pair(1), DataLoader(Numbers(4), batch_size=None)):
        data = Data(pair(4), val)
        assert "nothing is left to report on" in data.notes[-1]
        with pytest.raises(InputError, match=r"give Data\(test=…\)"):
            data.batches("test")
    assert len(Data(pair(4), Stream()).batches("val")) == 1
    assert Data(pair(4), Stream()).samples("val") is None


def generator() -> Iterator[Any]:
    yield pair(3)


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([])


class Unsized(Dataset[Any]):
    def __getitem__(self, i: int) -> Any:
        return i


BAD_SPLITS = {
    "can be used only once": generator(),
    "wrap it in a DataLoader": Endless(),
    "needs __len__": Unsized(),
    "Tensor is no split": torch.zeros(3),
    "str is no split": "digits",
    "int is no split": 3,
    "X and y differ in length: 3 and 4": (torch.zeros(3, 2), torch.zeros(4)),
    "holds no numbers": (np.array(["a"]), np.array([1])),
}


@pytest.mark.parametrize("line", BAD_SPLITS)
def test_what_is_no_split_is_refused(line: str) -> None:
    with pytest.raises(InputError, match=line):
        Data(BAD_SPLITS[line], pair(4))


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'cross-entropy'"):
        Data(pair(4), pair(4), loss="cross-entropi")
    with pytest.raises(InputError, match="did you mean 'accuracy'"):
        Data(pair(4), pair(4), metric="acuracy")
    with pytest.raises(InputError, match="unknown split 'validation'; known: train, val, test"):
        Data(pair(4), pair(4)).batches("validation")
    with pytest.raises(InputError, match="batch_size must be at least 1"):
        Data(pair(4), pair(4)).batches("val", 0)


LINEAR = nn.Linear(2, 3)
X, Y = pair(4)
BAD_DATA: dict[str, tuple[Data, nn.Module | None]] = {
    "train: the split is empty": (Data((X[:0], Y[:0]), (X, Y)), None),
    "val: the split is empty": (Data((X, Y), [], (X, Y)), LINEAR),
    "train: sample 2 holds NaN or infinity": (
        Data((X.clone().index_fill_(0, torch.tensor(2), float("nan")), Y), (X, Y)),
        None,
    ),
    "train: sample 1 holds NaN": (Data((torch.tensor([0.0, np.inf]), Y[:2]), (X, Y)), None),
    r"targets are float32: cross-entropy wants class numbers, integers": (Data((X, Y.float()), (X, Y)), None),
    r"targets have shape \(4, 1\): class numbers are of shape \(N,\)": (Data((X, Y[:, None]), (X, Y)), None),
    "label -1 is negative": (Data((X, Y - 1), (X, Y)), None),
    "label 12 is out of range: the model has 3 outputs, classes 0 to 2": (Data((X, Y + 10), (X, Y)), LINEAR),
    r"there are no targets \(y is None\)": (Data((X, None), (X, Y)), None),
    "inputs are float64 and the model's weights float32": (Data((X, Y), (X.double(), Y)), LINEAR),
    r"inputs are uint8 and the model's weights float32: scale them, such as x / 255": (
        Data((X, Y), (X.byte(), Y)),
        LINEAR,
    ),
    r"the model refuses a batch of val, float32 \(2, 2\): mat1 and mat2": (Data((X, Y), (X, Y)), nn.Linear(5, 3)),
    "the model gives tuple, no tensor and nothing named logits": (Data((X, Y), (X, Y)), nn.LSTM(2, 3)),
    "the batch comes first": (Data((X, Y), (X, Y)), nn.Flatten(0)),
    r"two targets have shape \(2,\) and the model's outputs \(2, 3\)": (
        Data((X, Y), (X, Y.float()), loss="mse"),
        LINEAR,
    ),
    "a batch must be a pair .* not 3 values": (Data([(X, Y, Y)], (X, Y)), None),
    "a batch must be a pair .* not dict": (Data([{"x": X}], (X, Y)), None),
    "inputs must be a tensor or a tuple of tensors, not str": (Data([("x", Y)], (X, Y)), None),
    r"a batch of 4 inputs has a target of shape \(3,\)": (Data([(X, Y[:3])], (X, Y)), None),
}


@pytest.mark.parametrize("line", BAD_DATA)
def test_mistakes_are_one_clear_line(line: str) -> None:
    data, model = BAD_DATA[line]
    with pytest.raises(InputError, match=line) as error:
        check(data, model)
    assert "\n" not in str(error.value)


def test_nan_weights_are_named() -> None:
    model = nn.Linear(2, 3)
    with torch.no_grad():
        model.bias[1] = float("nan")
    with pytest.raises(InputError, match="the model's 'bias' holds NaN"):
        check(Data((X, Y), (X, Y)), model)


def test_good_data_pass_and_nothing_changes() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    model[1].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for data in (
        Data((X, Y), (X, Y)),
        Data((X, Y.int()), Numbers(6)),
        Data((X, Y.masked_fill(Y == 0, -100)), (X, Y)),
        Data((X, torch.eye(3)[Y]), (X, torch.eye(3)[Y])),
        Data((X, torch.eye(3)[Y]), (X, torch.eye(3)[Y]), loss="mse", metric="mse"),
        Data((X, Y), (X, Y), loss=lambda outputs, target: outputs.sum()),
    ):
        check(data, model)
    check(Data((X, None), (X, Y)), labels=False)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert model.training
    assert not model[1].training
    embedding = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 3))
    check(Data((X.long(), Y), (X.long(), Y)), embedding)


def test_a_users_own_error_of_ours_passes_through() -> None:
    class Refuses(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise InputError("no")

    with pytest.raises(InputError, match=r"^no$"):
        check(Data((X, Y), (X, Y)), Refuses())


def test_evaluate_counts_and_restores() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.9), nn.BatchNorm1d(3))
    model[1].eval()
    data = Data(pair(4), pair(4), pair(23))
    score = evaluate(model, data, "test", 5)
    assert model.training
    assert not model[1].training
    with torch.no_grad():
        expected = (model.eval()(pair(23)[0]).argmax(1) == pair(23)[1]).double()
    assert score.correct == expected.sum()
    assert (score.metric, score.n, score.split) == ("accuracy", 23, "test")
    assert score.value == pytest.approx(expected.mean().item())
    assert score.std == pytest.approx(expected.std().item(), rel=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [1, 3, 4, 7, 10, 16])
def test_exact_batches_give_the_same_score(form: str, size: int) -> None:
    data = Data(pair(4), pair(4), FORMS[form](10))
    sizes = []

    def predict(x: Tensor) -> dict[str, Tensor]:
        sizes.append(len(x))
        return {"logits": torch.eye(3)[(x[:, 0] * 7).long() % 3]}

    assert evaluate(predict, data, "test", size, exact=True) == evaluate(predict, data, "test", 4)
    assert set(sizes[: -(-10 // size)]) == {size}


def test_rebatch_joins_and_cuts() -> None:
    batches = [Batch((torch.arange(a, b), torch.arange(a, b)), None) for a, b in ((0, 1), (1, 6), (6, 7))]
    with pytest.raises(TypeError):
        list(rebatch(batches, 3))
    labelled = [Batch(batch.x, batch.x[0]) for batch in batches]
    assert [batch.x[1].tolist() for batch in rebatch(labelled, 3)] == [[0, 1, 2], [3, 4, 5], [6]]


def test_metrics_by_hand() -> None:
    scores = torch.tensor([[5.0, 4, 3, 2, 1, 0], [0, 1, 2, 3, 4, 5]])
    assert METRICS["accuracy"].compute(scores, torch.tensor([0, 0])).tolist() == [1, 0]
    assert METRICS["top-5 accuracy"].compute(scores, torch.tensor([4, 0])).tolist() == [1, 0]
    assert METRICS["mse"].compute(torch.tensor([[1.0, 3], [0, 0]]), torch.zeros(2, 2)).tolist() == [5, 0]
    pixels = torch.tensor([[[1.0, 0]], [[0.0, 1]]]).permute(1, 0, 2)  # (1, 2, 2)
    assert METRICS["accuracy"].compute(pixels, torch.tensor([[0, 0]])).tolist() == [0.5]


@pytest.mark.parametrize("name", METRICS)
def test_law_every_metric_gives_one_value_per_sample_and_prefers_the_truth(name: str) -> None:
    scores, target = torch.randn(6, 12), torch.randint(12, (6,))
    truth = 10 * torch.eye(12)[target]
    target = truth if name == "mse" else target
    metric = METRICS[name]
    assert metric.compute(scores, target).shape == (6,)
    good, bad = (metric.compute(out, target).mean() for out in (truth, -truth))
    assert good > bad if metric.higher_is_better else good < bad


@pytest.mark.parametrize("name", LOSSES)
def test_law_every_loss_is_a_differentiable_scalar_that_prefers_the_truth(name: str) -> None:
    target = torch.randint(4, (6,))
    truth = (20 * torch.eye(4)[target]).requires_grad_()
    target = truth.detach() if name == "mse" else target
    loss = LOSSES[name](truth, target)
    assert loss.ndim == 0
    assert 0 <= loss < 1e-6 < LOSSES[name](-truth, target)
    loss.backward()
    assert truth.grad is not None


def test_labels_out_of_range_that_check_has_not_seen() -> None:
    with pytest.raises(InputError, match="labels from 1 to 12, but the model has 3 outputs"):
        LOSSES["cross-entropy"](torch.zeros(2, 3), torch.tensor([1, 12], dtype=torch.uint8))


def test_a_metric_of_the_users_own() -> None:
    def error(outputs: Tensor, target: Tensor) -> Tensor:
        return (outputs.argmax(1) - target).abs().double() / 2

    error.higher_is_better = False  # type: ignore[attr-defined]
    data = Data((X, Y), (X, Y), (X, Y), metric=error)
    score = evaluate(lambda x: torch.eye(3)[[0, 0, 0, 0]], data, "test")
    assert (score.metric, score.value, score.correct, score.higher_is_better) == ("error", 0.375, None, False)
    named = dataclasses.replace(data, metric=Metric("mine", error, False))
    assert evaluate(lambda x: torch.eye(3)[[0, 0, 0, 0]], named, "test").metric == "mine"
    with pytest.raises(InputError, match=r"must give one value per sample, \(4,\), not shape \(\)"):
        evaluate(lambda x: torch.zeros(4, 3), dataclasses.replace(data, metric=lambda o, t: o.mean()), "test")
    with pytest.raises(InputError, match="not float"):
        evaluate(lambda x: torch.zeros(4, 3), dataclasses.replace(data, metric=lambda o, t: 0.5), "test")


def test_nothing_to_evaluate() -> None:
    with pytest.raises(InputError, match="test: the split is empty"):
        evaluate(LINEAR, Data((X, Y), (X, Y), (X[:0], Y[:0])), "test")
    with pytest.raises(InputError, match="there are no labels to judge by"):
        evaluate(LINEAR, Data((X, Y), (X, Y), (X, None)), "test")
    with pytest.raises(InputError, match="val: the split is empty"):
        Data((X, Y), (X[:0], Y[:0]), (X, Y)).example_input()


def test_logits_are_found_in_the_usual_places() -> None:
    class Wrapped:
        logits = X

    assert logits(X) is logits({"logits": X}) is logits(Wrapped()) is X
    assert Data((X, Y), (X, Y), example=X).example_input() is X


# -- what data hold


class Listed(Dataset[Any]):
    """Samples at random with `noise`, as augmentation gives them."""

    def __init__(self, offset: float = 0.0, noise: float = 0.0) -> None:
        self.offset, self.noise = offset, noise

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((3,), index + self.offset) + self.noise * torch.rand(3), index


def test_a_fingerprint_is_of_the_values() -> None:
    x, y = torch.arange(12.0).view(4, 3), torch.arange(4)

    def of(x: Any = x, y: Any = y, **more: Any) -> str:
        return fingerprint(Data((x, y), (x, y), (x, y), **more))

    assert of() == of(x.clone())
    others = {
        of(x + 1),
        of(y=y + 1),
        of(x.double()),
        of(name="mine"),
        of(transform=lambda x: 2 * x),
        of((x, x)),
        of(y=None),
    }
    assert len(others | {of()}) == 8


def test_a_fingerprint_of_samples_that_are_drawn_anew_leaves_them_out() -> None:
    def of(train: Any) -> str:
        return fingerprint(Data(train, [(torch.zeros(2, 3), torch.zeros(2))], Listed()))

    assert of(Listed()) == of(Listed())
    assert of(Listed()) != of(Listed(1.0))
    assert of(Listed(noise=1.0)) == of(Listed(1.0, noise=1.0))
