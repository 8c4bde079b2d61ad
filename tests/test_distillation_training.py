"""Distillation at work: layers by path, adapters, courses, several teachers, the cache, recurrent nets and transformers."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from abridged import recipe as recipes
from abridged.data import Batch, Data
from abridged.distillation import courses
from abridged.distillation.cache import Remembered, digests
from abridged.distillation.distill import distill, distill_fit
from abridged.distillation.losses import LOSSES
from abridged.distillation.table import Outputs, needs
from abridged.distillation.taps import pairs, tapped
from abridged.distillation.terms import Term, terms
from abridged.errors import InputError
from abridged.pruning.prune import prune
from abridged.run import compress
from abridged.training import Callback, Moment, fit
from abridged.training.zeros import ZerosWarning

X = torch.randn(48, 1, 8, 8, generator=torch.Generator().manual_seed(1))
Y = X.flatten(1)[:, :3].argmax(1)


def data(**changes: Any) -> Data:
    return Data(**{"train": (X[:32], Y[:32]), "val": (X[32:40], Y[32:40]), "test": (X[40:], Y[40:]), **changes})


class Net(nn.Module):
    """Two blocks and a linear layer; BatchNorm, so that a teacher in the wrong mode would show."""

    def __init__(self, width: int = 4, classes: int = 3, stride: int = 2, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer1 = nn.Sequential(nn.Conv2d(1, width, 3, stride, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.BatchNorm2d(2 * width), nn.ReLU())
        self.linear = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.layer2(self.layer1(x)).mean((2, 3)))


class Attending(nn.Module):
    """Self-attention that gives its matrices as the second output."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.inner(x, x, x, average_attn_weights=False)  # type: ignore[no-any-return]


class Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention, self.norm, self.mlp = Attending(width, heads), nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)[0]
        return x + torch.relu(self.mlp(self.norm(x)))


class Transformer(nn.Module):
    """Tokens (N, T) → {"logits": (N, T, 11)}, or of each sequence a class (N, 3)."""

    def __init__(self, width: int, depth: int, whole: bool = False, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed, self.whole = nn.Embedding(11, width), whole
        self.layers = nn.ModuleList(Layer(width, 2) for _ in range(depth))
        self.out = nn.Linear(width, 3 if whole else 11)

    def forward(self, tokens: Tensor) -> Any:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.out(x.mean(1)) if self.whole else {"logits": self.out(x)}


class Recurrent(nn.Module):
    def __init__(self, width: int, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.lstm, self.out = nn.LSTM(8, width, batch_first=True), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x[:, 0])[0][:, -1])


def state(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


# -- every loss trains

TOKENS = torch.randint(0, 11, (24, 6), generator=torch.Generator().manual_seed(3))


def nll(outputs: Any, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs["logits"].flatten(0, 1), target.flatten())


def right(outputs: Any, target: Tensor) -> Tensor:
    return (outputs["logits"].argmax(-1) == target).double().mean(1)


def language(**changes: Any) -> Data:
    targets = TOKENS.roll(-1, 1)
    targets[:, -1] = -100
    splits = {"train": (TOKENS[:16], targets[:16]), "val": (TOKENS[16:20], targets[16:20])}
    return Data(**{**splits, "test": (TOKENS[20:], targets[20:]), "loss": nll, "metric": right, **changes})


def pair_for(name: str) -> tuple[nn.Module, nn.Module, Data, Any]:
    if name in ("token", "sequence"):
        return Transformer(4, 2), Transformer(8, 4, seed=1), language(), None
    if name in ("heads", "hidden"):
        return (
            Transformer(4, 2),
            Transformer(8, 4, seed=1),
            language(),
            "layers.*.attention:1" if name == "heads" else "layers.*",
        )
    layers = ["layer1", "layer2"] if needs(name).layers else None
    return Net(), Net(8, stride=1, seed=1), data(), layers


@pytest.mark.parametrize("name", LOSSES)
def test_law_every_loss_trains_and_leaves_no_trace(name: str) -> None:
    student, teacher, given, layers = pair_for(name)
    teacher.train()
    keys, parameters, before, taught = (
        list(student.state_dict()),
        list(student.parameters()),
        state(student),
        state(teacher),
    )
    kind = type(student)
    history = distill_fit(student, teacher, given, loss=name, layers=layers, epochs=2, batch_size=8)
    assert history.epochs == 2
    assert not same(before, state(student))
    assert list(student.state_dict()) == keys, "the student is what the user made"
    assert type(student) is kind
    assert all(a is b for a, b in zip(parameters, student.parameters(), strict=True))
    assert same(taught, state(teacher))
    assert all(module.training for module in teacher.modules())
    assert all(p.grad is None for p in teacher.parameters())
    assert hooks(student) == hooks(teacher) == 0


@pytest.mark.parametrize("name", ["hint", "attention", "rkd-distance", "crd", "similarity"])
def test_feature_losses_fall(name: str) -> None:
    history = distill_fit(
        Net(seed=2), Net(8, stride=1, seed=1), data(), loss=name, layers=["layer1", "layer2"], alpha=1.0,
        epochs=12, batch_size=16, optimizer=lambda p: torch.optim.Adam(p, 0.01),
    )  # fmt: skip
    assert history.loss[-1] < 0.9 * history.loss[0]


def test_recurrent_networks_learn_from_each_other() -> None:
    student, teacher = Recurrent(5), Recurrent(9, seed=1)
    for options in (
        {"loss": "kd"},
        {"loss": ["kd", "hint"], "layers": "lstm"},
        {"loss": "similarity", "layers": "lstm:0"},
    ):
        distill(student, teacher, data(), epochs=1, **options)
    distill(student, Net(), data(), loss={"kd": 1.0, "rkd-angle": 0.5}, layers={"lstm": "layer2"}, epochs=1)
    assert hooks(student) == hooks(teacher) == 0


def test_transformers_that_classify() -> None:
    labels = TOKENS[:, 0] % 3
    given = Data((TOKENS[:16], labels[:16]), (TOKENS[16:20], labels[16:20]), (TOKENS[20:], labels[20:]))
    distill(
        Transformer(4, 2, whole=True), Transformer(8, 4, whole=True, seed=1), given, epochs=1, batch_size=8,
        loss=["kd", {"name": "heads", "layers": "layers.*.attention:1"}, {"name": "hidden", "layers": ["embed", "layers.*"]}],
    )  # fmt: skip


class Patches(nn.Module):
    """A vision transformer: 16 patches and a class token, (N, 1, 8, 8) → tokens (N, 17, D) → (N, 3)."""

    def __init__(self, width: int = 8, depth: int = 2, seed: int = 1) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed, self.token = nn.Conv2d(1, width, 2, 2), nn.Parameter(torch.randn(1, 1, width))
        self.layers = nn.ModuleList(Layer(width, 2) for _ in range(depth))
        self.out = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x).flatten(2).transpose(1, 2)], 1)
        for layer in self.layers:
            x = layer(x)
        return self.out(x[:, 0])


@pytest.mark.parametrize(
    "name", ["hint", "hidden", "vid", "feature-norm", "crd", "similarity", "rkd-distance", "rkd-angle"]
)
@pytest.mark.parametrize("ways", ["convolutions from a transformer", "a transformer from convolutions"])
def test_other_families_meet_in_their_means_over_positions(name: str, ways: str) -> None:
    """Maps (N, C, H, W) and tokens (N, T, D) of other numbers of positions: no layer is refused, and the loss falls."""
    student, teacher, layers = Net(), Patches(), {"layer1": "layers.0", "layer2": "layers.1"}
    if ways.startswith("a transformer"):
        student, teacher, layers = Patches(), Net(seed=2), {value: key for key, value in layers.items()}
    history = distill_fit(
        student, teacher, data(), loss=name, layers=layers, alpha=1.0, epochs=6, batch_size=16,
        optimizer=lambda p: torch.optim.Adam(p, 0.01),
    )  # fmt: skip
    assert history.loss[-1] < history.loss[0]
    assert hooks(student) == hooks(teacher) == 0


def test_self_distillation_needs_no_teacher_and_born_again_is_kd() -> None:
    student = Net()
    distill(student, None, data(), loss="self", layers="layer1", epochs=1)
    again = distill(Net(seed=5), student, data(), epochs=1)
    assert isinstance(again, Net)
    with pytest.raises(InputError, match="loss 'kd' needs a teacher"):
        distill(student, None, data())


# -- bits: resume, hooks after an error, several teachers, masks


def test_adapters_are_in_the_checkpoint_and_a_resume_is_exact(tmp_path: Path) -> None:
    class Stop(Callback):
        def on_step(self, moment: Moment) -> None:
            if moment.step == 6:
                raise KeyboardInterrupt

    def run(**options: Any) -> nn.Module:
        return distill(
            Net(seed=2), Net(8, seed=1), data(), epochs=4, batch_size=8, loss={"kd": 1, "vid": 0.5, "hint": 0.1},
            layers=["layer1", "layer2"], alpha={"cosine": [1, 0.2]}, temperature={"linear": [8, 2]}, **options,
        )  # fmt: skip

    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=tmp_path / "c", cache=tmp_path / "kept", callbacks=[Stop()])
    resumed = run(checkpoint=tmp_path / "c", cache=tmp_path / "kept", callbacks=[Callback()])
    assert same(state(resumed), state(run(cache=tmp_path / "other", callbacks=[Callback()])))


def test_hooks_go_after_an_error_too() -> None:
    class Broken(Callback):
        def on_step(self, moment: Moment) -> None:
            raise RuntimeError("of the user's own")

    student, teacher = Net(), Net(8, seed=1)
    teacher.eval()
    with pytest.raises(RuntimeError, match="of the user's own"):
        distill(student, teacher, data(), loss="hint", layers="layer1", callbacks=[Broken()])
    assert hooks(student) == hooks(teacher) == 0
    assert not any(module.training for module in teacher.modules())
    with pytest.raises(ZeroDivisionError), tapped(student, ["layer1"], "student"):
        raise ZeroDivisionError
    assert hooks(student) == 0


def test_the_teacher_leaves_no_graph_and_memory_does_not_grow() -> None:
    student, teacher = Net(), Net(8, seed=1)
    graphs, live = [], []
    for module in teacher.modules():
        module.register_forward_hook(lambda _, __, output: graphs.append(output.requires_grad))

    class Count(Callback):
        def on_step(self, moment: Moment) -> None:
            gc.collect()
            live.append(sum(issubclass(type(item), Tensor) for item in gc.get_objects()))

    distill(
        student, teacher, data(), loss={"kd": 1, "hint": 1, "crd": 1}, layers=["layer1", "layer2"],
        epochs=1, batch_size=4, callbacks=[Count()],
    )  # fmt: skip
    assert graphs
    assert not any(graphs)
    assert live[2] == live[-1], "tensors alive after the third step and after the last"


def test_the_random_generators_go_on_as_if_nothing_had_been() -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    student, teacher = Net(), Net(8, seed=1)
    torch.manual_seed(3)
    distill(student, teacher, data(), loss="hint", layers="layer1", epochs=1)
    assert torch.equal(torch.rand(3), expected)


def test_several_teachers_are_the_mean_of_their_probabilities() -> None:
    """Σ w·KL(p_k ‖ q) and KL(Σ w·p_k ‖ q) differ by what the student cannot change."""
    s = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    first, second = (torch.randn(6, 4, dtype=torch.float64) for _ in range(2))
    from abridged.data import Batch
    from abridged.distillation.losses import Outputs, kd

    def gradient(loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, s)[0]

    batch = Batch(None, None)
    apart = gradient(0.3 * kd(Outputs(s), Outputs(first), batch) + 0.7 * kd(Outputs(s), Outputs(second), batch))
    mean = (0.3 * (first / 4).softmax(1) + 0.7 * (second / 4).softmax(1)).log() * 4
    assert torch.allclose(apart, gradient(kd(Outputs(s), Outputs(mean), batch)), rtol=1e-10)

    one, two = Net(8, seed=1), Net(6, seed=2)
    both = state(distill(Net(), [one, two], data(), teacher_weights=[1, 0], epochs=2))
    assert same(both, state(distill(Net(), one, data(), epochs=2)))
    distill(Net(), [one, two], data(), loss=["kd", {"name": "hint", "layers": "layer1", "teacher": 1}], epochs=1)


def test_masks_keep_their_zeros_and_their_absence_is_told() -> None:
    student, teacher = Net(), Net(8, seed=1)
    masks = prune(student, 0.8)
    distill(student, teacher, data(), masks=masks, loss="hint", layers="layer2", epochs=2)
    assert all((student.get_parameter(name)[~mask] == 0).all() for name, mask in masks.items())
    with pytest.warns(ZerosWarning, match="no mask holds them: training fills the zeros; give masks="):
        distill(student, teacher, data(), epochs=1)
    assert masks.sparsity > 0.5
    empty = Net()
    nn.init.zeros_(empty.linear.weight)  # how some layers begin: no warning
    fit(empty, data(), epochs=1)


# -- courses


@pytest.mark.parametrize("name", ["kd", "standardized", "dist"])
def test_a_vocabulary_that_comes_last_is_not_taken_for_positions(name: str) -> None:
    s, t = (Outputs(torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(i))) for i in (0, 1))
    with pytest.raises(
        InputError, match=r"logits \(2, 5, 7\) with labels \(2, 5\) have the classes last: take loss='token'"
    ):
        LOSSES[name](s, t, Batch(None, torch.zeros(2, 5).long()))
    for labels in (None, torch.zeros(2, 7).long(), torch.zeros(2).long()):
        assert LOSSES[name](s, t, Batch(None, labels)).isfinite()
    square = Outputs(torch.randn(2, 5, 5))
    assert LOSSES[name](square, square, Batch(None, torch.zeros(2, 5).long())).isfinite()  # could be either


def test_networks_without_values_are_refused() -> None:
    with pytest.raises(InputError, match=r"the teacher has no values \(meta device\)"):
        distill(Net(), Net(8).to("meta"), data(), epochs=1)
    with pytest.raises(InputError, match=r"the model has no values \(meta device\)"):
        distill(Net().to("meta"), Net(8), data(), epochs=1)


def test_numbers_of_numpy_are_numbers() -> None:
    assert courses.alpha(np.float32(0.5))(0.3) == 0.5
    assert courses.temperature({"linear": [np.float32(4), np.int64(2)]})(0.5) == 3
    assert terms({"kd": np.float32(0.5)})[0].weight == 0.5
    with pytest.raises(InputError, match="temperature must be positive"):
        courses.temperature(np.float32(0))


def test_courses_reach_their_ends() -> None:
    line, bow = (courses.course({shape: [1.0, 0.0]}, "alpha") for shape in ("linear", "cosine"))
    assert (line(0), line(0.25), line(1)) == (1, 0.75, 0)
    assert (bow(0), bow(0.5), bow(1)) == pytest.approx((1, 0.5, 0))
    assert bow(0.25) > line(0.25)
    for shape in courses.SHAPES:
        assert (courses.SHAPES[shape](0), courses.SHAPES[shape](1)) == pytest.approx((0, 1))


def test_alpha_follows_its_course_step_by_step() -> None:
    seen = []

    def alpha(t: float) -> float:
        seen.append(t)
        return 0.5

    student = Net()
    distill(student, Net(8, seed=1), data(), alpha=alpha, epochs=2, batch_size=8)
    assert seen[-8:] == [step / 8 for step in range(8)]
    assert same(state(student), state(distill(Net(), Net(8, seed=1), data(), alpha=0.5, epochs=2, batch_size=8)))


# -- the cache


def jitter(x: Tensor, generator: torch.Generator) -> Tensor:
    return x + torch.rand(x.shape[0], 1, 1, 1, generator=generator)


def counted(teacher: nn.Module) -> list[int]:
    rows: list[int] = []
    teacher.register_forward_pre_hook(lambda _, x: rows.append(len(x[0])))
    return rows


@pytest.mark.parametrize("augment", [None, jitter])
def test_a_replay_belongs_to_the_very_view_of_the_sample(tmp_path: Path, augment: Callable[..., Tensor] | None) -> None:
    options: dict[str, Any] = {"loss": {"kd": 1, "hint": 1}, "layers": "layer1", "epochs": 3, "batch_size": 8}
    given = data(augment=augment)
    first = state(distill(Net(), Net(8, seed=1), given, cache=tmp_path, **options))
    teacher = Net(8, seed=1)
    rows = counted(teacher)
    again = state(distill(Net(), teacher, given, cache=tmp_path, **options))
    assert sum(rows) <= 2 + 8, "two for the shapes, and the first batch to see whether the cache is right"
    assert same(first, again)
    plain = state(distill(Net(), Net(8, seed=1), given, **options))
    assert all(torch.allclose(plain[key].float(), first[key].float(), atol=1e-4) for key in plain)
    rows.clear()
    distill(Net(), teacher, given, cache=tmp_path, seed=7, **options)
    assert (sum(rows) > 90) == (augment is not None), "another augmentation is another view, and the teacher is asked"


def test_answers_to_sequences_of_any_length_are_kept(tmp_path: Path) -> None:
    batches = [
        (TOKENS[4 * i : 4 * i + 4, :length], TOKENS[4 * i : 4 * i + 4, :length]) for i, length in enumerate((5, 3, 5))
    ]
    given = language(train=batches)
    options: dict[str, Any] = {"loss": "token", "epochs": 2}
    first = state(distill(Transformer(4, 2), Transformer(8, 4, seed=1), given, cache=tmp_path, **options))
    assert len(list(tmp_path.glob("*/*.safetensors"))) == 2, "one of each length"
    teacher = Transformer(8, 4, seed=1)
    rows = counted(teacher)
    assert same(first, state(distill(Transformer(4, 2), teacher, given, cache=tmp_path, **options)))
    assert sum(rows) == 2 + 4, "two for the shapes, and the first batch to see whether the cache is right"
    plain = state(distill(Transformer(4, 2), Transformer(8, 4, seed=1), given, **options))
    assert all(torch.allclose(plain[key], first[key], atol=1e-4) for key in plain)


def test_a_cache_mends_itself_where_a_file_was_removed(tmp_path: Path) -> None:
    def run() -> int:
        teacher = Net(8, seed=1)
        rows = counted(teacher)
        distill(Net(), teacher, data(augment=jitter), cache=tmp_path, epochs=2, batch_size=8)
        return sum(rows)

    assert run() == 2 + 64
    first, second = sorted(tmp_path.glob("*/*.safetensors"))
    content = second.read_bytes()
    first.unlink()
    assert run() == 2 + 32 + 8, "what is gone, and the first batch that is not, to see whether the cache is right"
    assert second.read_bytes() == content
    assert run() == run() == 2 + 8, "complete, and it stays so"


def test_a_cache_that_cannot_be_written_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    student = Net()
    before = state(student)
    with pytest.raises(InputError, match=r"cache .*file cannot be written: Not a directory"):
        distill(student, Net(8, seed=1), data(), cache=tmp_path / "file", epochs=1)
    assert same(state(student), before)


def test_a_cache_of_another_network_is_refused(tmp_path: Path) -> None:
    class Twice(Net):
        double = 2.0

        def forward(self, x: Tensor) -> Tensor:
            return self.double * super().forward(x)

    distill(Net(), Twice(8, seed=1), data(), cache=tmp_path, epochs=1)
    other = Twice(8, seed=1)
    other.double = 3.0
    with pytest.raises(InputError, match="holds answers of another teacher"):
        distill(Net(), other, data(), cache=tmp_path, epochs=1)
    (file,) = tmp_path.glob("*/*.safetensors")
    file.write_bytes(b"no")
    with pytest.raises(InputError, match="cannot be read: remove it"):
        distill(Net(), Twice(8, seed=1), data(), cache=tmp_path, epochs=1)


def test_digests_tell_bits_shapes_and_inputs_apart() -> None:
    zero = torch.zeros(2, 3)
    assert len({*digests(zero), *digests(zero.half()), *digests(zero.view(2, 3, 1)), *digests(-zero)}) == 4
    assert digests((zero, zero)) != digests(zero)
    assert Remembered.__doc__


# -- layers and terms


def test_layers_pair_by_path_glob_and_depth() -> None:
    student, teacher = Transformer(4, 2), Transformer(8, 4)
    assert pairs("layers.*", student, teacher) == [("layers.0", "layers.1"), ("layers.1", "layers.3")]
    assert pairs({"layers.1.attention:1": "layers.3.attention:1"}, student, teacher)[0][0] == "layers.1.attention:1"
    assert pairs(["embed", "out"], student, teacher) == [("embed", "embed"), ("out", "out")]


def test_terms_come_in_every_form() -> None:
    assert terms("kd") == [Term("kd")]
    assert terms(["kd", {"hint": 0.5}], "layer1") == [Term("kd"), Term("hint", 0.5, "layer1")]
    both = terms([{"name": "dkd", "rest": 2.0, "weight": 0.3}])
    assert both == [Term("dkd", 0.3, options={"rest": 2.0})]
    assert both[0].hyper(5.0) == {"temperature": 5.0, "rest": 2.0}


def test_a_feature_is_the_layers_own_before_an_activation_in_place() -> None:
    """BatchNorm, then ReLU(inplace=True): features with negative values, and their gradient at the convolution."""

    def block(inplace: bool) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace), nn.Flatten(), nn.Linear(144, 3))

    def run(net: nn.Module) -> tuple[Tensor, Tensor]:
        with tapped(net, ["1"], "student") as taps:
            scores = net(X[:8])
            feature = taps.take(["1"], 8)["1"]
        (feature.square().sum() + scores.sum()).backward()
        return feature.detach(), net[0].weight.grad  # type: ignore[return-value]

    (mine, gradient), (wanted, slope) = run(block(True)), run(block(False))
    assert mine.min() < 0
    assert torch.equal(mine, wanted)
    assert torch.allclose(gradient, slope)


class Odd(Net):
    """A layer that never runs, one that runs twice, one without the batch first, one that gives None."""

    def __init__(self) -> None:
        super().__init__()
        self.unused, self.again, self.flat, self.none = nn.ReLU(), nn.ReLU(), nn.Flatten(0), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        self.flat(self.again(self.again(x)))
        self.none(None)
        return super().forward(x)


class Out(Net):
    """Class scores under a name of its own, as torchvision's networks for segmentation give them."""

    def forward(self, x: Tensor) -> Any:
        return {"out": super().forward(x)}


def out() -> dict[str, Any]:
    """Data whose loss and metric read them."""

    def loss(outputs: Any, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs["out"], target)

    def right(outputs: Any, target: Tensor) -> Tensor:
        return (outputs["out"].argmax(1) == target).double()

    return {"student": Out(), "teacher": Out(), "data": data(loss=loss, metric=right)}


def misfits() -> dict[str, Any]:
    """Features (N, 4, 6) and (N, 3, 8): positions and channels differ, and which axis is which is not said."""

    class Third(nn.Module):
        def __init__(self, *shape: int) -> None:
            super().__init__()
            self.layer1 = nn.Sequential(nn.Flatten(), nn.LazyLinear(24), nn.Unflatten(1, shape))
            self.linear = nn.Linear(24, 3)
            self(X[:2])

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.layer1(x).flatten(1)[:, :24])

    return {"student": Third(4, 6), "teacher": Third(3, 8)}


BAD: dict[str, dict[str, Any]] = {
    "loss 'hint' reads features of layers: name them": {"loss": "hint"},
    r"the student has no module 'layer9'; did you mean 'layer[12]'\?": {"loss": "hint", "layers": "layer9"},
    r"the teacher has no module 'laier1'; did you mean 'layer1'\?": {"loss": "hint", "layers": {"layer1": "laier1"}},
    "'unused' takes no part in the forward pass": {"loss": "hint", "layers": {"unused": "layer1"}, "student": Odd()},
    "'again' runs more than once": {"loss": "hint", "layers": {"again": "layer1"}, "student": Odd()},
    "the batch must come first": {"loss": "hint", "layers": {"flat": "layer1"}, "student": Odd()},
    "'none' gives NoneType, no tensor": {"loss": "hint", "layers": {"none": "layer1"}, "student": Odd()},
    "gives no ':7'": {"loss": "hint", "layers": "layer1:7"},
    "no adapter fits between them": {"loss": "hint", "layers": "layer1", **misfits()},
    "layers must be a module path": {"loss": "hint", "layers": 3},
    r"the student has no module '\['": {"loss": "hint", "layers": "["},
    r"layers: '\[z-a\]' is no pattern of module paths: bad character range": {"loss": "hint", "layers": "[z-a]"},
    "2 layers of the student and 'layer1' 1 of the teacher": {"loss": "hint", "layers": {"layer?": "layer1"}},
    "'layer1' is named twice": {"loss": "hint", "layers": ["layer1", "layer1"]},
    "loss 'kd' reads none": {"layers": "layer1"},
    "loss 'kd' reads no layers": {"loss": [{"name": "kd", "layers": "layer1"}]},
    "unknown distillation loss 'hintt'; did you mean 'hint'": {"loss": {"hintt": 1}},
    "loss 'dkd' has no option 'beta'": {"loss": [{"name": "dkd", "beta": 1}]},
    "target must be a number": {"loss": [{"name": "dkd", "target": "x"}]},
    "'kd': its weight must be positive, not 0": {"loss": {"kd": 0}},
    "'kd': its weight must be positive, not nan": {"loss": {"kd": float("nan")}},
    "'kd': temperature must be positive, not -1": {"loss": [{"name": "kd", "temperature": -1}]},
    "an empty list names no loss": {"loss": []},
    "loss must be a name": {"loss": 3},
    "alpha, .* between 0 and 1, not 1": {"alpha": {"linear": [0.5, 1.2]}},
    "temperature must be positive, not 0": {"temperature": lambda t: 1 - t},
    "unknown course 'cosin'; did you mean 'cosine'": {"alpha": {"cosin": [0.5, 1]}},
    "alpha must be a number, or": {"alpha": "half"},
    "temperature must be a number, or": {"temperature": {"linear": [1]}},
    "teacher_weights must be a list of one number, .* not 'half'": {"teacher_weights": "half"},
    "teacher_weights must be a list of one number, .* not 3": {"teacher_weights": 3},
    r"teacher_weights must be a list of one number, .* not \[0.5, 0.5\]": {"teacher_weights": [0.5, 0.5]},
    r"teacher_weights must be a list of one number, .* not \['a'\]": {"teacher_weights": ["a"]},
    r"teacher_weights must be a list of one number, .* not \[-1\]": {"teacher_weights": [-1]},
    r"data must be an ab.Data\(.*\), not None": {"data": None},
    r"data must be an ab.Data\(.*\), not tuple": {"data": (X, Y)},
    "masks must be what ab.prune returned, not int": {"masks": 3},
    "callbacks must be a list of Callback, not int": {"callbacks": [3]},
    "callbacks must be a list of Callback, not None": {"callbacks": None},
    "scheduler must be a callable": {"scheduler": 0.1},
    "checkpoint must be a directory, not int": {"checkpoint": 3},
    "cache must be a directory, not bool": {"cache": True},
    "early_stop must be an EarlyStop": {"early_stop": 3},
    "clip is the largest gradient norm and must be positive, not 'a'": {"clip": "a"},
    "seed must be a whole number, not 'a'": {"seed": "a"},
    "distill has no option 'epoch'; did you mean 'epochs'": {"epoch": 3},
    "distill has no option 'temprature'; did you mean 'temperature'": {"temprature": 3},
    "distill has no option 'layer'; did you mean 'layers'": {"layer": "layer1"},
    "distill has no option 'Q'; known: accumulate, alpha, .* cache, .* loss, .* teacher_weights, temperature": {"Q": 1},
    "distill has no option 'objective'": {"objective": nll},
    "alpha at t = 0 must be a number, not 'a'": {"alpha": lambda t: "a"},
    "temperature at t = 0 must be a number, not None": {"temperature": lambda t: None},
    "'crd': tau must be positive, not 0": {"loss": [{"name": "crd", "tau": 0}], "layers": "layer1"},
    "'hint': scale must be at least 0, not -1": {"loss": [{"name": "hint", "scale": -1}], "layers": "layer1"},
    "'self': labels, .* between 0 and 1, not 5": {
        "loss": [{"name": "self", "labels": 5}],
        "layers": "layer1",
        "teacher": None,
    },
    r"the teacher is read by no loss: leave it out \(None for no teacher\), or add": {
        "loss": "self",
        "layers": "layer1",
    },
    "teacher 1, counted from 0, is read by no loss: leave it out": {
        "loss": {"name": "kd", "teacher": 0},
        "teacher": [Net(8, seed=1), Net(8, seed=2)],
    },
    "the student gives dict, .* nothing named logits: a loss on logits needs its forward to give": out(),
    "the teacher gives dict, .* nothing named logits: a loss on logits needs its forward to give": {"teacher": Out()},
    "there is no teacher 2": {"loss": [{"name": "kd", "teacher": 2}]},
    "there is no teacher -1": {"loss": [{"name": "kd", "teacher": -1}]},
    "'kd': teacher is the number of one, from 0, not 0.0": {"loss": {"name": "kd", "teacher": 0.0}},
    "'kd': teacher is the number of one, from 0, not False": {"loss": {"name": "kd", "teacher": False}},
    r"a loss is named by a string, not \['kd'\]": {"loss": {"name": ["kd"]}},
    "an option's name is a string, not 3": {"loss": {"name": "kd", 3: 5}},
    "unknown distillation loss '3'": {"loss": {3: 5}},
    "the teacher must be an nn.Module": {"teacher": "resnet"},
    "the teacher refuses a batch of train": {"teacher": nn.Sequential(nn.Flatten(), nn.Linear(3, 3))},
    "the teacher has 4 classes and the student 3": {"teacher": [Net(), Net(classes=4)]},
    "outputs of shape .* they must be equal": {"teacher": Net(classes=4), "loss": "mimic"},
    "the device|device 'mars' cannot be used": {"device": "mars"},
}


def test_a_student_that_is_no_network() -> None:
    for student in (None, "resnet", Net):
        with pytest.raises(InputError, match=r"the student must be an nn\.Module, not"):
            distill(student, Net(), data())  # type: ignore[arg-type]
        with pytest.raises(InputError, match=r"the model must be an nn\.Module, not"):
            fit(student, data(), epochs=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("line", BAD)
def test_mistakes_are_one_clear_line_and_change_nothing(line: str) -> None:
    options = {"student": Net(), "teacher": Net(8, seed=1), "data": data(), "epochs": 1, **BAD[line]}
    before = state(options["student"])
    with pytest.raises(InputError, match=line) as error:
        distill(**options)
    assert "\n" not in str(error.value)
    assert same(before, state(options["student"]))
    assert hooks(options["student"]) == 0


def test_what_no_loss_reads_is_neither_run_nor_asked_for() -> None:
    """A second teacher, and the logits of networks that learn features alone."""
    unread = Net(8, seed=2)
    rows = counted(unread)
    term = {"name": "kd", "teacher": 0}
    both = distill_fit(Net(), [Net(8, seed=1), unread], data(), loss=term, epochs=1)
    assert both == distill_fit(Net(), Net(8, seed=1), data(), loss=term, epochs=1)
    distill_fit(Net(), unread, data(), loss="self", layers="layer1", epochs=1)
    assert not rows
    distill(**out(), loss="hint", layers="layer1", epochs=1)
    mixed = [term, {"name": "hint", "teacher": 1, "layers": "layer1"}]
    distill(Net(), [Net(8, seed=1), Out(8, seed=2)], data(), loss=mixed, epochs=1)


def test_nan_in_a_feature_is_found_before_training() -> None:
    class Shy(Net):
        def forward(self, x: Tensor) -> Tensor:
            self.layer2(self.layer1(x))
            return x.flatten(1)[:, :3]

    teacher = Shy(8)
    nn.init.constant_(teacher.layer1[0].bias, float("inf"))
    with pytest.raises(InputError, match="gives NaN or infinity in 'layer1'"):
        distill(Net(), teacher, data(), loss="hint", layers="layer1")


def test_regression_and_teachers_of_other_classes() -> None:
    """Features alone do not ask for the same classes; values are learned by `mimic`."""
    distill(Net(), Net(8, classes=7), data(), loss="attention", layers="layer1", epochs=1)
    target = X.flatten(1)[:, :3]
    given = Data((X[:32], target[:32]), (X[32:40], target[32:40]), (X[40:], target[40:]), loss="mse", metric="mse")
    distill(Net(), Net(8, seed=1), given, loss="mimic", epochs=1)
    unlabelled = Data((X[:32], None), (X[32:40], None), (X[40:], None))
    distill(Net(), Net(8, seed=1), unlabelled, loss={"kd": 1, "crd": 1}, layers="layer1", alpha=1.0, epochs=1)


def test_losses_are_computed_in_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of squares of features overflow float16, so that autocast ends before the losses begin."""
    seen = []

    def look(student: Any, teacher: Any, batch: Any) -> Tensor:
        gram = student.features["layer1"].flatten(1) @ teacher.features["layer1"].flatten(1).T
        seen.append((torch.is_autocast_enabled("cpu"), gram.dtype, student.logits.dtype))
        return gram.square().mean()

    monkeypatch.setattr("abridged.distillation.lesson.LOSSES", {"similarity": look})
    distill(Net(), Net(seed=1), data(), loss="similarity", layers="layer1", epochs=1, precision="bf16")
    assert set(seen[1:]) == {(False, torch.float32, torch.float32)}


def test_half_precision_and_accumulation() -> None:
    distill(
        Net(), Net(8, seed=1), data(), loss={"kd": 1, "rkd-distance": 1}, layers="layer1", epochs=1, precision="bf16"
    )
    distill(Net(), Net(8, seed=1), data(), epochs=1, accumulate=2, batch_size=8)


# -- recipes


def test_a_recipe_takes_losses_layers_and_courses() -> None:
    step = {
        "distill": {"loss": {"kd": 0.7, "hint": 0.3}, "layers": {"layer1": "layer1"}, "alpha": {"linear": [1, 0.5]}}
    }
    recipe = recipes.load([step])
    assert recipes.load(recipe.plain()) == recipe
    for options, line in {
        "loss: {kdd: 1}": "unknown distillation loss 'kdd'; did you mean 'kd'",
        "loss: hint": "loss 'hint' reads features of layers",
        "temperature: 0": "temperature must be positive, not 0$",
        "alpha: 1.5": "alpha, .* must be between 0 and 1, not 1.5$",
        "alpha: {linear: [0, 2]}": "must be between 0 and 1",
    }.items():
        with pytest.raises(InputError, match=line) as error:
            recipes.from_yaml(f"steps:\n - distill: {{{options}}}", "mine.yaml")
        assert str(error.value).startswith("mine.yaml, line 2: ")


def test_the_uncompressed_network_teaches_by_default() -> None:
    prune_step, distill_step = recipes.load("default").compression
    assert prune_step.kind == "prune"
    assert distill_step.kind == "distill"
    assert prune_step.teacher == distill_step.teacher == "dense"  # type: ignore[attr-defined]


def test_compress_refuses_a_layer_that_is_not_there_before_anything_is_written(tmp_path: Path) -> None:
    step = {"distill": {"loss": "hint", "layers": "layer7", "epochs": 1}}
    with pytest.raises(InputError, match="the student has no module 'layer7'"):
        compress(Net(), data(), recipe=[step], out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", LOSSES)
def test_on_a_gpu(name: str, tmp_path: Path) -> None:
    student, teacher, given, layers = pair_for(name)
    distill(
        student.cuda(),
        copy.deepcopy(teacher) if needs(name).teacher else None,
        given,
        loss=name,
        layers=layers,
        epochs=1,
        cache=tmp_path,
    )
    assert next(student.parameters()).device.type == "cuda"
    assert next(teacher.parameters()).device.type == "cpu"
