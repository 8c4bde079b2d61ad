"""Every distillation loss against a reference in plain loops and float64, its gradient against that reference's differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from abridged.data import Batch
from abridged.distillation.adapters import regressor
from abridged.distillation.features import alike
from abridged.distillation.language import transcripts
from abridged.distillation.logits import decoupled, kl, pearson
from abridged.distillation.losses import LOSSES, Outputs
from abridged.distillation.table import Adapted, Shapes, needs
from abridged.errors import InputError

Array = np.ndarray
N, C = 4, 5
LABELS = np.array([0, 3, 3, 1])
TOKENS = np.array([[1, -100, 4], [0, 2, -100]])
VARIANCE = np.array([0.5, 1.5, 3.0])


def draw(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).normal(size=shape)


# -- references: (student's logits, features), (teacher's …) → value, in loops


def softmax(row: Array) -> Array:
    powers = np.exp(row - row.max())
    return powers / powers.sum()


def divergence(t: Array, s: Array) -> float:
    p, q = softmax(t), softmax(s)
    return float(sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True)))


def ref_kd(s: Array, t: Array, *_: Any) -> float:
    return float(np.mean([16 * divergence(b / 4, a / 4) for a, b in zip(s, t, strict=True)]))


def ref_dkd(s: Array, t: Array, *_: Any) -> float:
    values = []
    for a, b, y in zip(s / 4, t / 4, LABELS, strict=True):
        p, q = softmax(a), softmax(b)
        sure = q[y] * math.log(q[y] / p[y]) + (1 - q[y]) * math.log((1 - q[y]) / (1 - p[y]))
        values.append(sure + 8 * divergence(np.delete(b, y), np.delete(a, y)))
    return 16 * float(np.mean(values))


def ref_standardized(s: Array, t: Array, *_: Any) -> float:
    s, t = ((z - z.mean(1, keepdims=True)) / z.std(1, keepdims=True) for z in (s, t))
    return ref_kd(s, t)


def ref_dist(s: Array, t: Array, *_: Any) -> float:
    p, q = (np.array([softmax(row / 4) for row in z]) for z in (s, t))
    inter = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    intra = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    return 16 * float(inter + intra)


def ref_mimic(s: Array, t: Array, *_: Any) -> float:
    return float(np.mean((s - t) ** 2))


def squares(scale: float) -> Callable[..., float]:
    return lambda s, t, fs, ft: scale * sum(float(np.mean((a - b) ** 2)) for a, b in zip(fs, ft, strict=True))


def ref_attention(s: Array, t: Array, fs: list[Array], ft: list[Array]) -> float:
    def looks(sample: Array) -> Array:
        energy = np.zeros(sample.shape[1:])
        for channel in sample:
            energy += channel**2
        return energy / math.sqrt((energy**2).sum())

    return 1000 * sum(
        float(np.mean([(looks(x) - looks(y)) ** 2 for x, y in zip(a, b, strict=True)]))
        for a, b in zip(fs, ft, strict=True)
    )


def ref_fsp(s: Array, t: Array, fs: list[Array], ft: list[Array]) -> float:
    flow = [np.einsum("nihw,njhw->nij", a, b) / (a.shape[2] * a.shape[3]) for a, b in (fs, ft)]
    return 50 * float(np.mean((flow[0] - flow[1]) ** 2))


def ref_vid(s: Array, t: Array, fs: list[Array], ft: list[Array]) -> float:
    total = 0.0
    for a, b in zip(fs, ft, strict=True):
        v = np.broadcast_to(VARIANCE[None, :, None, None], a.shape)
        total += float(np.mean(0.5 * (np.log(v) + (b - a) ** 2 / v)))
    return total


def ref_norm(s: Array, t: Array, fs: list[Array], ft: list[Array]) -> float:
    total = 0.0
    for a, b in zip(fs, ft, strict=True):
        a, b = a.mean((2, 3)), b.mean((2, 3))
        values = []
        for i in range(N):
            centre = b[LABELS[i] == LABELS].mean(0)
            longest = max(np.linalg.norm(a[i]), np.linalg.norm(b[i]))
            values.append(a[i] @ centre / np.linalg.norm(centre) / longest)
        total += 1 - float(np.mean(values))
    return total


def ref_similarity(s: Array, t: Array, fs: list[Array], ft: list[Array]) -> float:
    def gram(x: Array) -> Array:
        g = np.array([[float((u * v).sum()) for v in x] for u in x])
        return g / np.linalg.norm(g, axis=1, keepdims=True)

    return 3000 * sum(float(((gram(a) - gram(b)) ** 2).sum()) / N**2 for a, b in zip(fs, ft, strict=True))


def huber(x: float) -> float:
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def ref_distance(s: Array, t: Array, fs: list[Array], ft: list[Array]) -> float:
    def lengths(x: Array) -> Array:
        found = np.array([np.linalg.norm(x[i] - x[j]) for i, j in permutations(range(N), 2)])
        return found / found.mean()

    pairs = ((u, v) for a, b in zip(fs, ft, strict=True) for u, v in zip(lengths(a), lengths(b), strict=True))
    return 25 * sum(huber(u - v) for u, v in pairs) / (N * (N - 1))


def ref_angle(s: Array, t: Array, fs: list[Array], ft: list[Array]) -> float:
    def cosine(x: Array, i: int, j: int, k: int) -> float:
        u, v = (x[i] - x[j]).ravel(), (x[k] - x[j]).ravel()
        return float(u @ v / np.linalg.norm(u) / np.linalg.norm(v))

    triples = [(i, j, k) for j in range(N) for i in range(N) for k in range(N) if j not in (i, k)]
    return 50 * sum(
        float(np.mean([huber(cosine(a, *ijk) - cosine(b, *ijk)) for ijk in triples]))
        for a, b in zip(fs, ft, strict=True)
    )


def ref_crd(s: Array, t: Array, fs: list[Array], ft: list[Array]) -> float:
    total = 0.0
    for a, b in zip(fs, ft, strict=True):
        for i in range(N):
            others = [j for j in range(N) if LABELS[j] != LABELS[i]]
            h = {j: (e := math.exp(float(a[i] @ b[j]) / 0.07)) / (e + len(others) / N) for j in range(N)}
            total -= (math.log(h[i]) + sum(math.log(1 - h[j]) for j in others)) / N
    return 0.8 * total


def kept(z: Array) -> Array:
    return z[TOKENS != -100]


def ref_token(s: Array, t: Array, *_: Any) -> float:
    return float(np.mean([divergence(b, a) for a, b in zip(kept(s), kept(t), strict=True)]))


def ref_sequence(s: Array, t: Array, *_: Any) -> float:
    return float(np.mean([-math.log(softmax(a)[b.argmax()]) for a, b in zip(kept(s), kept(t), strict=True)]))


DEEP = draw(99, N, C)  # the student's own logits, for the loss whose target they are


def ref_self(s: Array, t: Array, fs: list[Array], ft: list[Array]) -> float:
    total = 0.0
    for head in fs:
        for h, z, y in zip(head, DEEP, LABELS, strict=True):
            total += (0.5 * -math.log(softmax(h)[y]) + 0.5 * 9 * divergence(z / 3, h / 3)) / N
    return total


MAPS, VECTORS, SCORES, NONE = (N, 3, 2, 2), (N, 6), (N, C), ()
CASES: dict[str, tuple[Callable[..., float], tuple[int, ...], tuple[int, ...]]] = {  # reference, logits, features
    "kd": (ref_kd, (N, C), NONE),
    "dkd": (ref_dkd, (N, C), NONE),
    "standardized": (ref_standardized, (N, C), NONE),
    "dist": (ref_dist, (N, C), NONE),
    "mimic": (ref_mimic, (N, C), NONE),
    "hint": (squares(100), (N, C), MAPS),
    "hidden": (squares(1), (N, C), (N, 3, 4)),
    "heads": (squares(1), (N, C), (N, 2, 3, 3)),
    "attention": (ref_attention, (N, C), MAPS),
    "fsp": (ref_fsp, (N, C), MAPS),
    "vid": (ref_vid, (N, C), MAPS),
    "feature-norm": (ref_norm, (N, C), MAPS),
    "similarity": (ref_similarity, (N, C), MAPS),
    "rkd-distance": (ref_distance, (N, C), MAPS),
    "rkd-angle": (ref_angle, (N, C), MAPS),
    "crd": (ref_crd, (N, C), VECTORS),
    "token": (ref_token, (2, 3, C), NONE),
    "sequence": (ref_sequence, (2, 3, C), NONE),
    "self": (ref_self, (N, C), SCORES),
}


def inputs(name: str, seed: int = 0) -> tuple[Array, Array, list[Array], list[Array]]:
    _, logits, feature = CASES[name]
    size = 0.2 if name == "crd" else 1.0
    features = [[size * draw(seed + 10 * i + j, *feature) for j in range(2)] if feature else [] for i in (1, 2)]
    return 3 * draw(seed + 1, *logits), 3 * draw(seed + 2, *logits), features[0], features[1]


def computed(name: str, s: Tensor, t: Tensor, fs: list[Tensor], ft: list[Tensor], **hyper: Any) -> Tensor:
    labels = torch.tensor(TOKENS if name in ("token", "sequence") else LABELS)
    variances = {str(i): torch.tensor(VARIANCE)[None, :, None, None] for i in range(2)} if name == "vid" else {}
    mine = Outputs(torch.tensor(DEEP) if name == "self" else s, {str(i): f for i, f in enumerate(fs)}, variances)
    taught = Outputs(t, {str(i): f for i, f in enumerate(ft)})
    return LOSSES[name](mine, taught, Batch(None, labels), **hyper)


def test_law_every_loss_has_a_reference_and_a_paper() -> None:
    assert set(CASES) == set(LOSSES)
    for name in LOSSES:
        assert LOSSES.summary(name)
        assert any(
            f"{year})" in (LOSSES[name].__doc__ or "") for year in range(2014, 2027)
        ) or "mode" in LOSSES.summary(name)


@pytest.mark.parametrize("name", LOSSES)
def test_law_value_and_gradient_equal_the_reference(name: str) -> None:
    reference = CASES[name][0]
    s, t, fs, ft = inputs(name)
    tensors = [torch.tensor(s), *(torch.tensor(f) for f in fs)]
    taught = [torch.tensor(t), *(torch.tensor(f) for f in ft)]
    before = [x.clone() for x in taught]
    varied = tensors[1:] if fs else tensors[:1]
    for x in varied:
        x.requires_grad_()
    loss = computed(name, tensors[0], taught[0], tensors[1:], taught[1:])
    assert loss.ndim == 0
    assert loss.item() == pytest.approx(reference(s, t, fs, ft), rel=1e-9)
    loss.backward()
    assert all(torch.equal(a, b) for a, b in zip(before, taught, strict=True)), "the teacher's outputs stay"
    for tensor, array in zip(varied, fs or [s], strict=True):
        assert tensor.grad is not None
        flat = array.reshape(-1)
        for index in range(0, flat.size, max(1, flat.size // 6)):
            here = flat[index]
            ends = []
            for step in (1e-5, -1e-5):
                flat[index] = here + step
                ends.append(reference(s, t, fs, ft))
            flat[index] = here
            slope = (ends[0] - ends[1]) / 2e-5
            assert tensor.grad.reshape(-1)[index].item() == pytest.approx(slope, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    "name", [name for name in LOSSES if name not in ("sequence", "crd", "self", "vid", "feature-norm")]
)
def test_law_a_student_that_is_its_teacher_has_nothing_to_learn(name: str) -> None:
    _, t, _, ft = inputs(name)
    same = [torch.tensor(t), *(torch.tensor(f) for f in ft)]
    assert computed(name, same[0], same[0], same[1:], same[1:]).item() == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("name", LOSSES)
def test_law_the_order_of_the_batch_does_not_matter(name: str) -> None:
    s, t, fs, ft = inputs(name)
    order = torch.randperm(len(s))
    labels = torch.tensor(TOKENS if s.ndim == 3 else LABELS)
    variances = {str(i): torch.tensor(VARIANCE)[None, :, None, None] for i in range(2)}

    def value(index: Tensor) -> float:
        mine = Outputs(torch.tensor(s)[index], {str(i): torch.tensor(f)[index] for i, f in enumerate(fs)}, variances)
        taught = Outputs(torch.tensor(t)[index], {str(i): torch.tensor(f)[index] for i, f in enumerate(ft)})
        return LOSSES[name](mine, taught, Batch(None, labels[index])).item()

    assert value(order) == pytest.approx(value(torch.arange(len(s))), rel=1e-10)


@pytest.mark.parametrize("name", [name for name in LOSSES if needs(name).layers])
def test_law_one_sample_and_features_of_zero_give_finite_gradients(name: str) -> None:
    """Pruning makes dead channels; a last batch may be small."""
    shape = CASES[name][2]
    for feature in (torch.zeros(1, *shape[1:]), torch.zeros(N, *shape[1:])):
        mine = feature.clone().requires_grad_()
        count = len(feature)
        variances = {str(i): torch.ones(1, 3, 1, 1) for i in range(2)}
        student = Outputs(torch.zeros(count, C), {"0": mine, "1": mine}, variances)
        teacher = Outputs(torch.zeros(count, C), {"0": feature, "1": feature})
        loss = LOSSES[name](student, teacher, Batch(None, torch.tensor(LABELS[:count])))
        loss.backward()
        assert loss.isfinite()
        assert mine.grad is not None
        assert mine.grad.isfinite().all()


# -- what each one promises

seeds = given(seed=st.integers(0, 10**6), temperature=st.floats(0.3, 20))


@settings(max_examples=40, deadline=None)
@seeds
def test_dkd_decomposes_kd(seed: int, temperature: float) -> None:
    """KD = TCKD + (1 − p)·NCKD, per sample (Zhao et al. 2022, equation 5)."""
    s, t = torch.tensor(draw(seed, 6, C)) / temperature, torch.tensor(draw(seed + 1, 6, C)) / temperature
    labels = torch.arange(6) % C
    sure, rest, p = decoupled(s, t, labels)
    assert torch.allclose(sure + (1 - p) * rest, kl(s, t), rtol=1e-9, atol=1e-14)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 10), shift=st.floats(-5, 5))
def test_relations_do_not_see_rotations_shifts_and_scales(seed: int, scale: float, shift: float) -> None:
    s, t = torch.tensor(draw(seed, 5, 4)), torch.tensor(draw(seed + 1, 5, 4))
    rotation = torch.linalg.qr(torch.tensor(draw(seed + 2, 4, 4)))[0]
    for name in ("rkd-distance", "rkd-angle"):
        taught = Outputs(t, {"0": t})
        plain = LOSSES[name](Outputs(s, {"0": s}), taught, Batch(None, None))
        moved = LOSSES[name](Outputs(s, {"0": scale * s @ rotation + shift}), taught, Batch(None, None))
        assert moved.item() == pytest.approx(plain.item(), rel=1e-7)
    rotated = LOSSES["similarity"](Outputs(s, {"0": scale * s @ rotation}), Outputs(t, {"0": t}), Batch(None, None))
    plain = LOSSES["similarity"](Outputs(s, {"0": s}), Outputs(t, {"0": t}), Batch(None, None))
    assert rotated.item() == pytest.approx(plain.item(), rel=1e-7)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 10), shift=st.floats(-5, 5))
def test_standardized_logits_have_no_size(seed: int, scale: float, shift: float) -> None:
    s, t = torch.tensor(draw(seed, 5, C)), torch.tensor(draw(seed + 1, 5, C))
    loss = LOSSES["standardized"]
    moved = loss(Outputs(scale * s + shift), Outputs(t), Batch(None, None))
    assert moved.item() == pytest.approx(loss(Outputs(s), Outputs(t), Batch(None, None)).item(), rel=1e-7)


def test_attention_sees_neither_scale_nor_the_number_of_channels() -> None:
    s, t = torch.tensor(draw(1, N, 3, 4, 4)), torch.tensor(draw(2, N, 3, 4, 4))
    loss = LOSSES["attention"]
    plain = loss(Outputs(s, {"0": s}), Outputs(t, {"0": t}), Batch(None, None))
    wide = loss(Outputs(s, {"0": 5 * s}), Outputs(t, {"0": torch.cat([t, -t], 1)}), Batch(None, None))
    assert wide.item() == pytest.approx(plain.item(), rel=1e-9)


def value(name: str, s: Tensor, t: Tensor, labels: Tensor | None = None, **hyper: Any) -> float:
    """Of one layer, or of logits, by what the loss reads."""
    one = [Outputs(torch.empty(0), {"0": x}) if needs(name).layers else Outputs(x) for x in (s, t)]
    return LOSSES[name](*one, Batch(None, labels), **hyper).item()


def rotation_of(width: int, seed: int) -> Tensor:
    return torch.linalg.qr(torch.tensor(draw(seed, width, width)))[0]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 10), shift=st.floats(-5, 5), dim=st.sampled_from([0, 1]))
def test_correlations_do_not_see_positive_affine_maps(seed: int, scale: float, shift: float, dim: int) -> None:
    """What DIST compares (Huang et al. 2022, equation 5); a negative scale turns the sign."""
    a, b = torch.tensor(draw(seed, 6, C)), torch.tensor(draw(seed + 1, 6, C))
    plain = pearson(a, b, dim)
    assert torch.allclose(pearson(scale * a + shift, b, dim), plain, rtol=1e-7)
    assert torch.allclose(pearson(a, -scale * b + shift, dim), -plain, rtol=1e-7)
    assert (plain.abs() <= 1 + 1e-12).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), temperature=st.floats(0.3, 20), shift=st.floats(-5, 5))
@pytest.mark.parametrize("name", ["kd", "dkd", "standardized", "dist", "token"])
def test_logits_have_no_zero_and_the_temperature_divides_them(
    name: str, seed: int, temperature: float, shift: float
) -> None:
    """A constant added to a sample's logits costs nothing; L(T·s, T·t; T) = T²·L(s, t; 1)."""
    s, t, labels = torch.tensor(draw(seed, 6, C)), torch.tensor(draw(seed + 1, 6, C)), torch.arange(6) % C
    labels = torch.zeros(0) if name == "token" else labels
    given = labels if labels.numel() else None
    plain = value(name, s, t, given, temperature=temperature)
    assert plain >= 0
    assert value(name, s + shift, t - shift, given, temperature=temperature) == pytest.approx(plain, rel=1e-6)
    if name == "standardized":  # its logits have no size that a temperature could undo
        return
    hot = value(name, temperature * s, temperature * t, given, temperature=temperature)
    assert hot == pytest.approx(temperature**2 * value(name, s, t, given, temperature=1.0), rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_turning_both_networks_features_together_changes_nothing(seed: int) -> None:
    """Scalar products and lengths are all that these losses read."""
    s, t, labels = torch.tensor(draw(seed, 6, 4)), torch.tensor(draw(seed + 1, 6, 4)), torch.arange(6) % 3
    turn = rotation_of(4, seed + 2)
    for name in ("crd", "feature-norm", "hint", "hidden"):
        assert value(name, s @ turn, t @ turn, labels) == pytest.approx(value(name, s, t, labels), rel=1e-7)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 10))
def test_fsp_reads_pairs_of_channels_and_no_places(seed: int, scale: float) -> None:
    """The same shuffle of the places in both layers costs nothing; both layers c times as large give c⁴ times the loss."""
    (a, b), (c, d) = (
        [torch.tensor(draw(seed + i + j, N, width, 2, 3)) for j, width in enumerate((2, 3))] for i in (0, 10)
    )
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))

    def flow(*features: Tensor) -> Outputs:
        return Outputs(torch.empty(0), {str(i): x for i, x in enumerate(features)})

    def shuffled(x: Tensor) -> Tensor:
        return x.flatten(2)[:, :, order].view_as(x)

    fsp, batch = LOSSES["fsp"], Batch(None, None)
    plain = fsp(flow(a, b), flow(c, d), batch).item()
    assert fsp(flow(shuffled(a), shuffled(b)), flow(c, d), batch).item() == pytest.approx(plain, rel=1e-9)
    larger = [scale * x for x in (a, b, c, d)]
    assert fsp(flow(*larger[:2]), flow(*larger[2:]), batch).item() == pytest.approx(scale**4 * plain, rel=1e-7)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), factor=st.floats(0.2, 5).filter(lambda x: abs(x - 1) > 0.01))
def test_the_variance_of_vid_is_best_where_it_is_the_squared_error(seed: int, factor: float) -> None:
    s, t = torch.tensor(draw(seed, 50, 3)), torch.tensor(draw(seed + 1, 50, 3))
    best = (s - t).square().mean(0, keepdim=True)

    def with_variance(v: Tensor) -> float:
        mine = Outputs(torch.empty(0), {"0": s}, {"0": v})
        return LOSSES["vid"](mine, Outputs(torch.empty(0), {"0": t}), Batch(None, None)).item()

    assert with_variance(best) < with_variance(factor * best)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), length=st.floats(1.1, 20))
def test_long_features_in_the_right_direction_cost_nothing(seed: int, length: float) -> None:
    """ND: a student at least as long as the teacher, in its direction, has a loss of 0; shorter ones pay the ratio."""
    t = torch.tensor(draw(seed, 5, 4))
    alone = torch.arange(5)  # each sample its own class
    assert value("feature-norm", length * t, t, alone) == pytest.approx(0, abs=1e-9)
    assert value("feature-norm", t / length, t, alone) == pytest.approx(1 - 1 / length, rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_crd_recognizes_its_own(seed: int) -> None:
    """Embeddings that are the teacher's own cost less than the same ones dealt to other samples."""
    t = torch.nn.functional.normalize(torch.tensor(draw(seed, 6, 8)), dim=1)
    assert value("crd", t, t) < value("crd", t.roll(1, 0), t)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_laws_of_the_losses_on_tokens(seed: int) -> None:
    """Token by token they are kd at T = 1; reverse exchanges the two, js is symmetric and at most log 2; sequence is the
    cross-entropy of the teacher's choice; `self` without labels is kd from one's own logits."""
    s, t = torch.tensor(draw(seed, 2, 3, C)), torch.tensor(draw(seed + 1, 2, 3, C))
    rows = [x.flatten(0, 1) for x in (s, t)]
    assert value("token", s, t) == pytest.approx(value("kd", *rows, temperature=1.0), rel=1e-9)
    assert value("token", s, t, direction="reverse") == pytest.approx(value("token", t, s), rel=1e-9)
    js = value("token", s, t, direction="js")
    assert 0 <= js <= math.log(2)
    assert js == pytest.approx(value("token", t, s, direction="js"), rel=1e-9)
    chosen = torch.nn.functional.cross_entropy(rows[0], rows[1].argmax(1)).item()
    assert value("sequence", s, t) == pytest.approx(chosen, rel=1e-9)
    own = LOSSES["self"](Outputs(rows[1], {"0": rows[0]}), Outputs(rows[1]), Batch(None, None), temperature=2.0)
    assert own.item() == pytest.approx(value("kd", *rows, temperature=2.0), rel=1e-9)


@pytest.mark.parametrize("direction", ["reverse", "js"])
def test_other_directions_between_tokens(direction: str) -> None:
    s, t = torch.tensor(draw(1, 2, 3, C)), torch.tensor(draw(2, 2, 3, C))
    value = LOSSES["token"](Outputs(s), Outputs(t), Batch(None, torch.tensor(TOKENS)), direction=direction).item()
    rows = list(zip(kept(s.numpy()), kept(t.numpy()), strict=True))
    if direction == "reverse":
        wanted = np.mean([divergence(a, b) for a, b in rows])
    else:
        wanted = np.mean([
            sum(
                0.5 * p * math.log(2 * p / (p + q)) + 0.5 * q * math.log(2 * q / (p + q))
                for p, q in zip(softmax(a), softmax(b), strict=True)
            )
            for a, b in rows
        ])  # fmt: skip
    assert value == pytest.approx(wanted, rel=1e-9)


def test_mistakes_of_a_loss_are_one_clear_line() -> None:
    z, batch = torch.zeros(N, C), Batch(None, None)
    with pytest.raises(InputError, match="'dkd' needs logits"):
        LOSSES["dkd"](Outputs(z), Outputs(z), batch)
    with pytest.raises(InputError, match="the targets are"):
        LOSSES["token"](Outputs(z[None]), Outputs(z[None]), Batch(None, torch.zeros(3)))
    with pytest.raises(InputError, match="direction must be forward, reverse or js"):
        LOSSES["token"](Outputs(z), Outputs(z), batch, direction="back")
    with pytest.raises(InputError, match="two layers or more"):
        LOSSES["fsp"](Outputs(z, {"0": torch.zeros(N, 2, 3, 3)}), Outputs(z), batch)
    with pytest.raises(InputError, match="two maps"):
        LOSSES["attention"](Outputs(z, {"0": z}), Outputs(z, {"0": z}), batch)
    with pytest.raises(InputError, match="same number of heads"):
        LOSSES["heads"](Outputs(z, {"0": torch.zeros(N, 2, 3, 3)}), Outputs(z, {"0": torch.zeros(N, 4, 3, 3)}), batch)


@settings(max_examples=30, deadline=None)
@seeds
def test_one_logit_is_two_classes(seed: int, temperature: float) -> None:
    """kd of z is kd of (0, z): T²·Σ KL of two Bernoullis, by hand, and T·(σ(s / T) − σ(t / T)) / N its gradient."""
    s, t = 3 * draw(seed, N, 1), 3 * draw(seed + 1, N, 1)
    (p, no), (q, nay) = ([1 / (1 + np.exp(sign * z / temperature)) for sign in (-1, 1)] for z in (s, t))
    wanted = temperature**2 * np.mean(q * np.log(q / p) + nay * np.log(nay / no))
    for shape in ((N, 1), (N,)):
        mine, taught = (torch.tensor(z).view(shape) for z in (s, t))
        mine.requires_grad_()
        loss = LOSSES["kd"](Outputs(mine), Outputs(taught), Batch(None, None), temperature=temperature)
        loss.backward()
        assert loss.item() == pytest.approx(wanted, rel=1e-9, abs=1e-12)
        assert mine.grad is not None
        assert np.allclose(mine.grad.view(N, 1), temperature * (p - q) / N, rtol=1e-8, atol=1e-12)
    maps = [torch.tensor(draw(seed + i, N, 1, 2, 3)) for i in (2, 3)]
    both = [torch.cat([torch.zeros_like(z), z], 1) for z in maps]
    assert value("kd", *maps) == pytest.approx(value("kd", *both), rel=1e-12)


@pytest.mark.parametrize("name", ["standardized", "dist", "dkd", "token", "sequence"])
@pytest.mark.parametrize("shape", [(N, 1), (N,)])
def test_one_logit_is_refused_where_nothing_could_be_learned(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="for one logit take loss='kd'"):
        value(name, torch.randn(shape), torch.randn(shape), torch.tensor(LABELS) % 2)


def test_self_distillation_of_one_logit() -> None:
    z, h, labels = torch.tensor(draw(1, N, 1)), torch.tensor(draw(2, N, 1)), torch.tensor([0, 1, 1, 0])

    def of(z: Tensor, h: Tensor, labels: Tensor) -> float:
        return LOSSES["self"](Outputs(z, {"0": h}), Outputs(z), Batch(None, labels)).item()

    both = [torch.cat([torch.zeros_like(x), x], 1) for x in (z, h)]
    assert of(z, h, labels.float()) == pytest.approx(of(both[0], both[1], labels), rel=1e-12)


@pytest.mark.parametrize("name", ["dkd", "self"])
def test_samples_without_a_label_are_left_out_of_what_labels_say(name: str) -> None:
    s, t, fs, _ = inputs(name)
    labels = torch.tensor([0, -100, 3, -100])

    def of(rows: list[int], given: Tensor, **hyper: Any) -> Tensor:
        features = {"0": torch.tensor(fs[0])[rows].requires_grad_()} if fs else {}
        mine, taught = torch.tensor(s)[rows].requires_grad_(), torch.tensor(t)[rows]
        loss = LOSSES[name](Outputs(mine, features), Outputs(taught), Batch(None, given), **hyper)
        loss.backward()
        assert all(x.grad is None or x.grad.isfinite().all() for x in (mine, *features.values()))
        return loss

    hyper = {"labels": 1.0} if name == "self" else {}
    some, alone = of([0, 1, 2, 3], labels, **hyper), of([0, 2], labels[[0, 2]], **hyper)
    assert some.item() == pytest.approx(alone.item(), rel=1e-12)
    assert of([1, 3], labels[[1, 3]], **hyper).item() == 0, "none has a label"
    with pytest.raises(InputError, match=f"loss '{name}': labels from -1 to 3, but the networks give 5 classes"):
        of([0, 2], torch.tensor([-1, 3]))
    with pytest.raises(InputError, match=f"loss '{name}': labels from 3 to 5, but the networks give 5 classes"):
        of([0, 2], torch.tensor([5, 3]))


def test_samples_without_a_label_are_of_no_class() -> None:
    labels = torch.tensor([0, -100, 0, -100])
    assert (alike(labels, torch.zeros(N, 2)) == torch.eye(N).bool() | (labels[:, None] + labels == 0)).all()
    assert torch.equal(alike(None, torch.zeros(N, 2)), torch.eye(N).bool())


@pytest.mark.parametrize("shape", [(2, 5, 3, 3), (2, 4, 7)])
def test_self_distillation_of_positions_is_refused(shape: tuple[int, ...]) -> None:
    z = torch.zeros(shape)
    with pytest.raises(InputError, match=r"loss 'self' needs logits \(N, C\), one answer per sample, not \(2, "):
        LOSSES["self"](Outputs(z, {"0": torch.zeros(2, 5)}), Outputs(z), Batch(None, torch.zeros(2)))


def test_transcripts_are_what_the_teacher_says_next() -> None:
    class Successor(torch.nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:  # (N, T) → (N, T, 7)
            return torch.nn.functional.one_hot((tokens + 1) % 7, 7).float()

    assert transcripts(Successor(), torch.tensor([[1, 2], [5, 6]]), 3).tolist() == [[1, 2, 3, 4, 5], [5, 6, 0, 1, 2]]
    with pytest.raises(InputError, match="length must be at least 1"):
        transcripts(Successor(), torch.tensor([[1]]), 0)
    with pytest.raises(InputError, match=r"the teacher gives tuple, .* nothing named logits: let its forward give"):
        transcripts(torch.nn.LSTM(2, 3), torch.zeros(1, 2), 1)


def test_an_adapter_along_an_axis_that_varies_says_so() -> None:
    """Lengths 4 and 8, later 3 and 6: the adapter made of the first cannot map the second."""
    adapter = regressor(Shapes("layer", (N, 4, 5), (N, 8, 5), C))
    with pytest.raises(
        InputError, match=r"layer 'layer' gives shape \(4, 3, 5\), and its adapter takes 4 along axis 1"
    ):
        adapter(torch.zeros(N, 3, 5), torch.zeros(N, 6, 5))
    same = regressor(Shapes("layer", (N, 4, 5), (N, 4, 6), C))
    assert same(torch.zeros(N, 3, 5), torch.zeros(N, 3, 6)).student.shape == (N, 3, 6)


@pytest.mark.parametrize("name", [name for name in LOSSES if needs(name).layers and name != "heads"])
def test_law_any_axes_of_positions_are_positions(name: str) -> None:
    """Maps (N, C, D, H, W), with positions in two axes or one, and as sequences (N, T, C): one value and one gradient.
    Only fsp does not take sequences."""
    shapes = [(N, c, 2, 3, 5) for c in (3, 6, 5, 7)]
    features = [torch.tensor(draw(i, *shape)) for i, shape in enumerate(shapes)]

    def of(view: Callable[[Tensor], Tensor]) -> tuple[float, Tensor]:
        torch.manual_seed(0)
        leaves = [x.clone().requires_grad_() for x in features]
        mine: dict[str, Tensor] = {}
        taught, variances = dict(mine), dict(mine)
        make = needs(name).adapter
        for i in (0, 1):
            s, t = view(leaves[i]), view(leaves[i + 2].detach())
            pair = Adapted(s, t)
            if make is not None:
                pair = make(Shapes("layer", tuple(s.shape), tuple(t.shape), C)).double()(s, t)
            mine[str(i)], taught[str(i)] = pair.student, pair.teacher
            variances |= {str(i): pair.variance} if pair.variance is not None else {}
        z = torch.tensor(draw(9, N, C))
        loss = LOSSES[name](Outputs(z, mine, variances), Outputs(z, taught), Batch(None, torch.tensor(LABELS)))
        loss.backward()
        assert leaves[0].grad is not None
        return loss.item(), leaves[0].grad

    wanted, slope = of(lambda x: x)
    views: list[Callable[[Tensor], Tensor]] = [lambda x: x.flatten(3), lambda x: x.flatten(2)[..., None]]
    if name == "fsp":
        with pytest.raises(InputError, match=r"loss 'fsp' compares maps \(N, C, H, W\), not"):
            of(lambda x: x.flatten(2).transpose(1, 2))
    else:
        views.append(lambda x: x.flatten(2).transpose(1, 2))
    for view in views:
        found, gradient = of(view)
        assert found == pytest.approx(wanted, rel=1e-9)
        assert torch.allclose(gradient, slope, rtol=1e-8, atol=1e-10)
