"""Factorization methods: the law-suite of their table, and what each is known for."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from torch import nn

from abridged.errors import InputError, UnsupportedError
from abridged.factorization.allocate import Option, allocate, hull
from abridged.factorization.chain import KINDS, stored
from abridged.factorization.cp import als, from_factors
from abridged.factorization.decomposition import compose, leading, spectrum
from abridged.factorization.evbmf import evbmf
from abridged.factorization.factoring import factoring
from abridged.factorization.factorize import rebuild
from abridged.factorization.layers import Layer
from abridged.factorization.methods import METHODS
from abridged.factorization.tt import tt_svd
from abridged.factorization.tucker import hooi, hosvd

SHAPES = [(6, 5), (1, 1), (5, 7), (7, 3, 4), (6, 5, 3, 3), (4, 5, 3, 2), (1, 1, 3, 3), (5, 4, 2, 3, 2), (3, 1, 1, 1)]


def weight_of(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gram_of(weight, seed=1):
    n = weight[0].numel()
    x = weight_of((3 * n, n), seed)
    return x.T @ x


def decompositions(name):
    found = []
    for shape in SHAPES:
        weight = weight_of(shape)
        try:
            found.append((weight, METHODS[name](weight, gram_of(weight))))
        except UnsupportedError:
            with pytest.raises(UnsupportedError, match="needs a kernel"):
                METHODS[name](weight, None)
    assert len(found) >= 2, "the law-suite must test something"
    return found


def squared_error(weight, kernels, gram=None):
    rest = (weight - compose(kernels)).flatten(1)
    return float((rest.square() if gram is None else (rest @ gram) * rest).sum())


@pytest.mark.parametrize("name", METHODS)
def test_law_at_full_rank_a_chain_is_the_weight(name):
    for weight, parts in decompositions(name):
        whole = compose(parts.kernels(parts.limits))
        assert torch.allclose(whole, weight, rtol=0, atol=1e-11 * float(weight.norm())), weight.shape


@pytest.mark.parametrize("name", METHODS)
def test_law_shapes_are_as_promised(name):
    for weight, parts in decompositions(name):
        for ranks in (parts.limits, tuple((limit + 1) // 2 for limit in parts.limits), (1,) * len(parts.limits)):
            kernels = parts.kernels(ranks)
            assert tuple(tuple(kernel.shape) for kernel in kernels) == parts.shapes(ranks)
            assert compose(kernels).shape == weight.shape
            assert len(kernels) == len(parts.names)
            assert all(torch.isfinite(kernel).all() for kernel in kernels)


@pytest.mark.parametrize("name", METHODS)
def test_law_the_error_is_known_before_the_kernels_are_and_falls_with_rank(name):
    for weight, parts in decompositions(name):
        gram = gram_of(weight) if name == "whitened" else None
        before = float("inf")
        for share in (0.0, 0.3, 0.6, 1.0):
            ranks = tuple(max(1, round(share * limit)) for limit in parts.limits)
            error, floor = parts.error(ranks), 1e-9 * squared_error(weight, parts.kernels(parts.limits)) + 1e-7
            assert squared_error(weight, parts.kernels(ranks), gram) <= error * (1 + 1e-7) + floor
            assert error <= before * (1 + 1e-3) + floor
            before = error


@pytest.mark.parametrize("name", METHODS)
def test_law_zeros_have_factors_too(name):
    for weight, _ in decompositions(name):
        parts = METHODS[name](torch.zeros_like(weight), torch.zeros_like(gram_of(weight)))
        kernels = parts.kernels((1,) * len(parts.limits))
        assert torch.equal(compose(kernels), torch.zeros_like(weight))


def test_table_of_methods():
    assert set(METHODS) == {"svd", "whitened", "channel", "spatial", "tucker", "cp", "tt"}
    assert all(METHODS.summary(name) for name in METHODS)
    with pytest.raises(InputError, match="did you mean 'tucker'"):
        METHODS["tuckr"]
    with pytest.raises(UnsupportedError, match="needs the inputs"):
        METHODS["whitened"](weight_of((3, 3)), None)


# --- what each is known for ---------------------------------------------------------------------------------------------


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99), st.integers(1, 9))
@settings(deadline=None)
def test_svd_is_the_best_of_its_rank(rows, columns, seed, rank):
    """Eckart & Young 1936, against LAPACK's singular values and against random factors refined by least squares."""
    weight = weight_of((rows, columns), seed)
    parts = METHODS["svd"](weight, None)
    rank = min(rank, *parts.limits)
    best = float(torch.linalg.svdvals(weight)[rank:].square().sum())
    found = squared_error(weight, parts.kernels((rank,)))
    assert found == pytest.approx(best, abs=1e-12 * float(weight.square().sum()))
    rival = weight_of((rank, columns), seed + 1)
    fitted = torch.linalg.lstsq(rival.T, weight.T).solution.T @ rival
    assert found <= float((weight - fitted).square().sum()) + 1e-12


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
@settings(deadline=None)
def test_spectra_are_those_of_an_svd(rows, columns, seed):
    matrix = weight_of((rows, columns), seed)
    assert torch.allclose(
        spectrum(matrix), torch.linalg.svdvals(matrix).square(), rtol=0, atol=1e-12 * float(matrix.norm() ** 2 + 1)
    )
    basis = leading(matrix)
    assert torch.allclose(basis.T @ basis, torch.eye(basis.shape[1], dtype=basis.dtype), atol=1e-10)


@given(st.integers(0, 20))
@settings(deadline=None, max_examples=20)
def test_whitened_is_never_worse_than_svd_on_the_outputs(seed):
    weight = weight_of((8, 10), seed)
    inputs = weight_of((40, 10), seed + 1) @ weight_of((10, 10), seed + 2)  # of correlated features
    gram = inputs.T @ inputs
    for rank in range(1, 8):
        plain, aware = (METHODS[name](weight, gram).kernels((rank,)) for name in ("svd", "whitened"))
        assert squared_error(weight, aware, gram) <= squared_error(weight, plain, gram) * (1 + 1e-9)


@given(st.integers(2, 8), st.integers(2, 8), st.integers(1, 9), st.integers(0, 99))
@settings(deadline=None)
def test_hooi_is_never_worse_than_hosvd(outputs, inputs, taps, seed):
    tensor = weight_of((outputs, inputs, taps), seed)
    ranks = (1 + seed % outputs, 1 + seed % inputs)
    first = [basis[:, :rank] for basis, rank in zip(hosvd(tensor), ranks, strict=True)]
    if any(basis.shape[1] < rank for basis, rank in zip(first, ranks, strict=True)):
        return
    kept = [
        float(torch.einsum("oik,or,is->rsk", tensor, *bases).square().sum()) for bases in (first, hooi(tensor, *first))
    ]
    assert kept[1] >= kept[0] * (1 - 1e-12)


@given(st.integers(2, 8), st.integers(2, 8), st.integers(1, 3), st.integers(1, 3), st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_bases_and_cores_are_orthonormal(outputs, inputs, height, width, seed):
    """Tucker's factors of both channel axes, and all cores of a tensor train but the last (Oseledets 2011)."""
    weight = weight_of((outputs, inputs, height, width), seed)
    ranks = [min(n, 1 + seed % 4, other * height * width) for n, other in ((outputs, inputs), (inputs, outputs))]
    bases = hooi(weight.flatten(2), *(b[:, :r] for b, r in zip(hosvd(weight.flatten(2)), ranks, strict=True)))
    tensor = weight.movedim(0, -1)
    limits = METHODS["tt"](weight, None).limits if height * width > 1 else ()
    cores = tt_svd(tensor, tuple(max(1, limit // 2) for limit in limits))[:-1] if limits else []
    for basis in (*bases, *(core.flatten(0, 1) for core in cores)):
        gram = basis.T @ basis
        used = gram.diagonal() > 0.5  # a rank above what is left is filled up with zeros
        assert torch.allclose(gram, torch.diag(used.double()), atol=1e-9)


def test_cp_finds_a_sum_of_outer_products_again():
    factors = [weight_of((n, 3), n) for n in (8, 7, 3, 4)]
    tensor = from_factors(factors)
    found = from_factors(als(tensor, 3))
    assert float((found - tensor).norm() / tensor.norm()) < 1e-3


def test_cps_components_do_not_grow_and_cancel():
    """a⊗a⊗b + a⊗b⊗a + b⊗a⊗a has rank 3, but sums of two come as near as one likes, of ever larger norms (de Silva & Lim 2008)."""
    a, b = torch.linalg.qr(weight_of((6, 2))).Q.T
    tensor = sum(torch.einsum("i,j,k->ijk", *each) for each in ((a, a, b), (a, b, a), (b, a, a)))
    components = torch.stack([factor.norm(dim=0) for factor in als(tensor, 2)]).prod(0)
    assert components.max() < 5 * tensor.norm()
    assert float((from_factors(als(tensor, 3)) - tensor).norm() / tensor.norm()) < 1e-5


@pytest.mark.parametrize(("rows", "columns", "rank", "noise"), [(60, 100, 5, 1.0), (100, 60, 10, 0.5), (64, 576, 20, 1.0), (16, 144, 3, 0.1), (64, 64, 10, 1e-5), (50, 50, 0, 1.0), (64, 80, 10, 0.0), (7, 3, 1, 1e-3)])  # fmt: skip
def test_evbmf_recovers_a_planted_rank(rows, columns, rank, noise):
    planted = weight_of((rows, rank), 1) @ weight_of((rank, columns), 2)
    assert evbmf(planted + noise * weight_of((rows, columns), 3)) == rank


def reference_evbmf(matrix):
    """Nakajima et al. 2013 in NumPy and SciPy: theorem 2's threshold at the noise of least free energy, by Brent's method."""
    rows, columns = sorted(matrix.shape)
    alpha, s2 = rows / columns, np.linalg.svd(matrix.numpy(), compute_uv=False) ** 2
    tau_bar = 2.5129 * np.sqrt(alpha)
    x_bar = (1 + tau_bar) * (1 + alpha / tau_bar)

    def free_energy(log_noise):
        x = s2 / (columns * np.exp(log_noise))
        kept, noise = x[x > x_bar], x[x <= x_bar]
        tau = 0.5 * (kept - (1 + alpha) + np.sqrt((kept - (1 + alpha)) ** 2 - 4 * alpha))
        rest = np.sum(kept - tau) + np.sum(np.log((tau + 1) / kept)) + alpha * np.sum(np.log(tau / alpha + 1))
        return np.sum(noise - np.log(noise)) + rest

    most = min(int(np.ceil(rows / (1 + alpha))) - 1, rows - 1)
    low = max(s2[most] / (columns * x_bar), s2[most:].mean() / columns)
    high = s2.sum() / (rows * columns)
    starts = np.linspace(np.log(low), np.log(high), 60)
    at = int(np.argmin([free_energy(start) for start in starts]))
    bounds = starts[max(at - 1, 0)], starts[min(at + 1, len(starts) - 1)]
    noise = np.exp(minimize_scalar(free_energy, bounds=bounds, method="bounded").x)
    return int((s2 > columns * noise * x_bar).sum())


@given(
    st.integers(4, 30), st.integers(4, 30), st.integers(0, 6), st.sampled_from([0.1, 0.5, 1.0, 2.0]), st.integers(0, 99)
)
@settings(deadline=None, max_examples=25)
def test_evbmf_agrees_with_a_reference(rows, columns, rank, noise, seed):
    planted = weight_of((rows, rank), seed) @ weight_of((rank, columns), seed + 1)
    matrix = planted + noise * weight_of((rows, columns), seed + 2)
    assert evbmf(matrix) == reference_evbmf(matrix)


def test_evbmf_of_nothing():
    assert evbmf(torch.zeros(3, 4)) == 0
    assert evbmf(torch.ones(1, 1)) == 0


# --- layers -------------------------------------------------------------------------------------------------------------


LAYERS = {
    "linear": (nn.Linear(12, 9), (2, 5, 12)),
    "linear without bias": (nn.Linear(12, 9, bias=False), (2, 12)),
    "conv1d": (nn.Conv1d(6, 8, 5, stride=2, padding=3, dilation=2), (2, 6, 23)),
    "conv2d": (nn.Conv2d(6, 8, 3, padding=1), (2, 6, 7, 9)),
    "strided": (nn.Conv2d(6, 8, (3, 2), stride=(2, 3), padding=(2, 1)), (2, 6, 11, 13)),
    "dilated": (nn.Conv2d(6, 8, 3, dilation=(2, 3), bias=False), (1, 6, 11, 13)),
    "same": (nn.Conv2d(6, 8, 3, padding="same", dilation=2), (1, 6, 7, 9)),
    "reflect": (nn.Conv2d(6, 8, 3, padding=(2, 1), padding_mode="reflect"), (1, 6, 7, 9)),
    "circular": (nn.Conv2d(6, 8, 3, stride=2, padding=1, padding_mode="circular"), (1, 6, 7, 9)),
    "grouped": (nn.Conv2d(6, 9, 3, groups=3, padding=1, stride=2), (2, 6, 8, 8)),
    "depthwise": (nn.Conv2d(6, 12, 3, groups=6, padding=1), (2, 6, 8, 8)),
    "pointwise": (nn.Conv2d(6, 8, 1, stride=2, padding=1), (2, 6, 7, 7)),
    "conv3d": (nn.Conv3d(4, 5, (2, 3, 2), padding=(0, 1, 1), stride=(1, 2, 1)), (1, 4, 5, 6, 4)),
}


def factorings(layer):
    gram = torch.stack([gram_of(part) for part in stored(layer)])
    for name in METHODS:
        try:
            yield factoring(Layer(("layer",), layer), name, gram)
        except UnsupportedError:
            continue


def magnitudes(chain, x):
    """The chain with all values positive: Σ |terms| of every output."""
    for stage in chain:
        state = {name: value.abs() for name, value in stage.state_dict().items()}
        x = torch.func.functional_call(stage, state, (x,))
    return x


@pytest.mark.parametrize("name", LAYERS)
def test_at_full_rank_outputs_equal_the_layers(name):
    """|y − ỹ| ≤ (terms of all stages + 3 roundings) · eps · Σ |terms|, of the chain's own magnitudes."""
    layer, shape = LAYERS[name]
    x = torch.randn(shape)
    tested = 0
    with torch.no_grad():
        exact = torch.func.functional_call(layer.double(), layer.state_dict(), (x.double(),))
        layer.float()
        for parts in factorings(layer):
            chain = parts.module(parts.kernels(parts.limits))
            terms = sum(stage.weight[0].numel() for stage in chain) + layer.weight[0].numel()
            bound = (terms + 3 * len(chain)) * torch.finfo(torch.float32).eps * magnitudes(chain, x.abs()).double()
            assert ((chain(x) - exact).abs() <= bound + 1e-30).all(), (name, parts.method)
            tested += 1
    assert tested >= (2 if name in ("linear", "linear without bias", "pointwise") else 5)


@st.composite
def convolutions(draw):
    """A random convolution and an input that it takes, in float64."""
    axes = draw(st.integers(1, 3))
    each = st.lists(st.integers(1, 3), min_size=axes, max_size=axes).map(tuple)
    kernel, stride, dilation = draw(each), draw(each), draw(each)
    padding = draw(st.lists(st.integers(0, 2), min_size=axes, max_size=axes).map(tuple))
    groups = draw(st.integers(1, 3))
    inputs, outputs = (groups * draw(st.integers(1, 4)) for _ in range(2))
    kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[axes]
    layer = kind(inputs, outputs, kernel, stride, padding, dilation, groups, draw(st.booleans())).double()
    sizes = [d * (k - 1) + draw(st.integers(1, 4)) for k, d in zip(kernel, dilation, strict=True)]
    return layer, torch.randn(2, inputs, *sizes, dtype=torch.float64)


@given(convolutions())
@settings(deadline=None, max_examples=60)
def test_at_full_rank_any_convolution_is_itself(drawn):
    layer, x = drawn
    tested = 0
    with torch.no_grad():
        for parts in factorings(layer):
            found = parts.module(parts.kernels(parts.limits))(x)
            assert torch.allclose(found, layer(x), rtol=0, atol=1e-9), parts.method
            tested += 1
    assert tested >= 2


@pytest.mark.parametrize("name", LAYERS)
def test_a_chain_computes_what_its_composed_kernel_does(name):
    layer, shape = LAYERS[name]
    layer = layer.double()
    x = torch.randn(shape, dtype=torch.float64)
    for parts in factorings(layer):
        ranks = tuple((limit + 1) // 2 for limit in parts.limits)
        kernels = parts.kernels(ranks)
        whole = torch.stack([compose(group) for group in zip(*kernels, strict=True)])
        state = dict(layer.state_dict(), weight=whole.flatten(0, 1))
        with torch.no_grad():
            assert torch.allclose(parts.module(kernels)(x), torch.func.functional_call(layer, state, (x,)), atol=1e-10)
        assert sum(p.numel() for n, p in parts.module(kernels).named_parameters() if "weight" in n) == parts.parameters(
            ranks
        )
    layer.float()


@pytest.mark.parametrize("name", LAYERS)
def test_macs_agree_with_the_graphs(name):
    from abridged.graph.capture import capture
    from abridged.graph.cost import cost

    layer, shape = LAYERS[name]
    x = torch.randn(shape)
    if layer.__dict__.get("padding_mode") in ("circular", "reflect") or isinstance(getattr(layer, "padding", 0), str):
        return  # captured as a padding of its own
    for parts in factorings(layer):
        with torch.no_grad():
            parts.layer.calls.append((tuple(x.shape), tuple(layer(x).shape)))
        ranks = tuple((limit + 1) // 2 for limit in parts.limits)
        chain = parts.module(parts.kernels(ranks))
        for module, counted in ((chain, parts.macs(ranks)), (layer, parts.layer.macs)):
            graph = capture(module.eval(), x)
            assert sum(cost(node, graph).macs for node in graph) == counted, parts.method


def test_an_embedding_is_a_lookup_and_a_linear_layer():
    layer = nn.Embedding(20, 6, padding_idx=3)
    parts = factoring(Layer(("e",), layer), "svd")
    chain = parts.module(parts.kernels(parts.limits))
    ids = torch.tensor([[1, 3], [19, 0]])
    assert torch.allclose(chain(ids), layer(ids), atol=1e-6)
    assert [type(stage).__name__ for stage in chain] == ["Embedding", "Linear"]
    chain(ids).sum().backward()
    assert not chain[0].weight.grad[3].any()


def test_every_kind_of_layer_is_tested():
    tested = {type(layer).__name__ for layer, _ in LAYERS.values()} | {"Embedding"}
    assert tested == set(KINDS)


def test_rebuild_refuses_another_model():
    with pytest.raises(InputError, match="the model has no layer fcc"):
        rebuild(nn.Sequential(nn.Linear(3, 3)), {"fcc": {"reduce": [1, 1, 3], "expand": [1, 3, 1]}})


# --- the budget ---------------------------------------------------------------------------------------------------------


options = st.lists(st.tuples(st.integers(1, 20), st.integers(0, 30)), min_size=0, max_size=5)


@given(st.lists(options, min_size=1, max_size=3), st.integers(0, 70))
@settings(deadline=None, max_examples=200)
def test_the_budget_is_kept_and_on_the_hull_nothing_is_better(layers, budget):
    given_ = {
        f"l{i}": [Option(20, 0.0), *(Option(c, float(e), (1,)) for c, e in each)] for i, each in enumerate(layers)
    }
    best = allocate(given_, budget)
    combinations = [[]]
    for each in given_.values():
        combinations = [[*some, one] for some in combinations for one in each]
    within = [combo for combo in combinations if sum(option.cost for option in combo) <= budget]
    if best is None:
        assert not within
        return
    cost, error = sum(o.cost for o in best.values()), sum(o.error for o in best.values())
    assert cost <= budget
    # Lagrangian optimality: whoever costs no more than a solution of the walk makes no less error than the walk there.
    least = min(sum(o.error for o in combo) for combo in within)
    dense = sum(20 for _ in given_)
    steps = [
        error
        for each in given_.values()
        for a, b in zip(hull(each), hull(each)[1:], strict=False)
        for error in [b.error - a.error]
    ]
    assert least <= error + 1e-9
    assert error <= least + max(steps, default=0) + 1e-9, (
        "at most one step of the walk is lost to rounding to the budget"
    )
    if budget >= dense:
        assert error == 0
