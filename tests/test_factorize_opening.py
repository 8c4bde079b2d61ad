"""Recurrent layers, attention and other modules whose matrices become linear layers: same outputs, factors, targets."""

import copy
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import abridged as ab
from abridged.errors import InputError
from abridged.factorization.attention import attention
from abridged.factorization.factorize import rebuild, report
from abridged.factorization.opening import OPENINGS, opened
from abridged.factorization.recurrent import cell, recurrent
from abridged.graph.capture import capture
from abridged.graph.cost import cost

RNNS = {"LSTM": nn.LSTM, "GRU": nn.GRU, "tanh": nn.RNN, "relu": lambda *a, **k: nn.RNN(*a, nonlinearity="relu", **k)}


class Tagger(nn.Module):
    """Outputs and last state are both used."""

    def __init__(self, rnn: nn.Module, width: int) -> None:
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        y, state = self.rnn(x)
        h = state[0] if isinstance(state, tuple) else state
        return self.head(y).mean(1) + h.sum()


def close(a: object, b: object) -> bool:
    if isinstance(a, tuple):
        return len(a) == len(b) and all(close(*pair) for pair in zip(a, b, strict=True))
    if a is None:
        return b is None
    return a.shape == b.shape and bool(torch.allclose(a, b, atol=1e-10, rtol=0))


@given(
    name=st.sampled_from(list(RNNS)), layers=st.integers(1, 3), two=st.booleans(), first=st.booleans(),
    bias=st.booleans(), batched=st.booleans(), given_=st.booleans(), project=st.booleans(),
)  # fmt: skip
@settings(deadline=None, max_examples=40)
def test_an_open_rnn_is_the_rnn(name, layers, two, first, bias, batched, given_, project):
    proj = {"proj_size": 2} if project and name == "LSTM" else {}
    rnn = RNNS[name](3, 4, num_layers=layers, bidirectional=two, batch_first=first, bias=bias, **proj).double()
    x = torch.randn(2, 6, 3).double() if batched else torch.randn(6, 3).double()
    n = (2 if first else 6,) if batched else ()
    state = None
    if given_:
        h, c = (torch.randn(layers * (1 + two), *n, width).double() for width in (2 if proj else 4, 4))
        state = (h, c) if name == "LSTM" else h
    form = recurrent(rnn)
    assert close(form(x, state), rnn(x, state))
    assert form.hidden_size == rnn.hidden_size
    assert sum(p.numel() for p in form.parameters()) == sum(p.numel() for p in rnn.parameters())


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_an_open_cell_is_the_cell(kind):
    one = kind(3, 4).double()
    for shape in ((5, 3), (3,)):
        x, h = torch.randn(shape).double(), torch.randn(*shape[:-1], 4).double()
        state = (h, h + 1) if kind is nn.LSTMCell else h
        for form_state in (None, state):
            assert close(cell(one)(x, form_state), one(x, form_state))


@given(
    first=st.booleans(), batched=st.booleans(), weights=st.booleans(), mean=st.booleans(), bias=st.booleans(),
    other=st.booleans(), mask=st.sampled_from(["", "bool", "float", "heads"]), padding=st.booleans(),
)  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_open_attention_is_attention(first, batched, weights, mean, bias, other, mask, padding):
    sizes = {"kdim": 6, "vdim": 5} if other else {}
    mha = nn.MultiheadAttention(8, 2, bias=bias, batch_first=first, **sizes).double()
    n, length, source = 3, 4, 5 if other else 4
    q, k, v = (
        torch.randn(n, rows, width).double()
        for rows, width in ((length, 8), (source, sizes.get("kdim", 8)), (source, sizes.get("vdim", 8)))
    )
    if not batched:
        q, k, v = q[0], k[0], v[0]
    elif not first:
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    options = {"need_weights": weights, "average_attn_weights": mean}
    if mask:
        shape = (n * 2 if batched else 2, length, source) if mask == "heads" else (length, source)
        options["attn_mask"] = torch.randn(shape).double() if mask == "float" else torch.rand(shape) < 0.3
    if padding:
        options["key_padding_mask"] = torch.rand(*([n] if batched else []), source) < 0.3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected, found = mha(q, k, v, **options), attention(mha)(q, k, v, **options)
    assert all(
        torch.allclose(a, b, atol=1e-10, equal_nan=True) for a, b in zip(expected, found, strict=True) if a is not None
    )
    assert (expected[1] is None) == (found[1] is None)


def test_a_hint_of_causality_needs_its_mask():
    x = torch.randn(3, 4, 8)
    with pytest.raises(InputError, match="is_causal needs attn_mask"):
        attention(nn.MultiheadAttention(8, 2))(x, x, x, is_causal=True)


@pytest.mark.parametrize("name", RNNS)
def test_recurrent_weights_become_factors(name, tmp_path):
    torch.manual_seed(0)
    model = Tagger(RNNS[name](12, 16, bidirectional=True, batch_first=True), 32).eval()
    x = torch.randn(3, 3, 12)
    thin = ab.factorize(model, x, rank=4, exclude="head")
    done = report(thin)
    assert [line.path for line in done.lines] == [
        f"rnn.layer0{way}.{what}" for way in ("", "_reverse") for what in ("input", "hidden")
    ]
    assert type(thin.rnn.layer0.hidden.reduce) is nn.Linear
    assert isinstance(model.rnn, nn.RNNBase)
    counts = [sum(cost(node, graph).macs for node in graph) for graph in (capture(m, x) for m in (model, thin))]
    assert counts[0] - counts[1] == sum(line.macs[0] - line.macs[1] for line in done.lines) > 0
    thin.train()(x).sum().backward()
    assert all(p.grad is not None for p in thin.parameters())
    ab.save(thin, tmp_path / "thin.safetensors")
    again = rebuild(copy.deepcopy(model), done.structure)
    ab.load_into(again, tmp_path / "thin.safetensors")
    assert torch.equal(again.eval()(x), thin.eval()(x))
    assert torch.equal(ab.load_factorized(model, tmp_path / "thin.safetensors").eval()(x), thin(x))


def test_at_full_rank_a_recurrent_network_is_the_same():
    torch.manual_seed(0)
    rnn = nn.LSTM(12, 16, batch_first=True).double()
    with torch.no_grad():
        rnn.weight_hh_l0.copy_(torch.randn(64, 3) @ torch.randn(3, 16) / 4)
        rnn.weight_ih_l0.copy_(torch.randn(64, 3) @ torch.randn(3, 12) / 4)
    model, x = Tagger(rnn, 16).double().eval(), torch.randn(2, 7, 12).double()
    for data in (None, torch.randn(64, 7, 12).double()):
        thin = ab.factorize(model, x, rank=3, data=data, include="rnn")
        assert torch.allclose(thin(x), model(x), atol=1e-6 if data is not None else 1e-10)


def test_a_factorized_lstm_deploys(tmp_path):
    torch.manual_seed(0)
    model, x = Tagger(nn.LSTM(12, 16, batch_first=True), 16).eval(), torch.randn(1, 4, 12)
    thin = ab.factorize(model, x, energy=0.8)
    with ab.deploy(thin, x, target="onnxruntime", out=tmp_path / "net", threads=1) as artifact:
        assert torch.allclose(artifact(x), thin(x), atol=1e-5)


def test_an_rnn_without_factors_stays_as_it_was():
    model = Tagger(nn.LSTM(12, 16, batch_first=True), 16)
    thin = ab.factorize(model, torch.randn(1, 4, 12), rank={"head": 2})
    assert type(thin.rnn) is nn.LSTM
    assert set(thin.state_dict()) - set(model.state_dict()) == {
        "head.reduce.weight", "head.expand.weight", "head.expand.bias",
    }  # fmt: skip


def test_an_lstm_that_takes_packed_sequences_is_left_alone():
    class Packs(Tagger):
        def forward(self, x: Tensor) -> Tensor:
            packed = pack_padded_sequence(x, torch.tensor([4, 3]), batch_first=True)
            return self.head(self.rnn(packed)[1][0][-1])

    thin = ab.factorize(Packs(nn.LSTM(12, 16, batch_first=True), 16), torch.randn(2, 4, 12), rank=2)
    assert type(thin.rnn) is nn.LSTM
    assert report(thin).left["rnn"] == "left dense: a factorized LSTM takes padded tensors, no packed sequences"


def test_an_lstm_whose_weights_are_read_elsewhere_is_left_alone():
    class Reads(Tagger):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.to(self.rnn.weight_ih_l0.dtype))

    thin = ab.factorize(Reads(nn.LSTM(12, 16, batch_first=True), 16), torch.randn(2, 4, 12), rank=2)
    assert report(thin).left["rnn"] == "left dense: something else reads its weight_ih_l0"


def test_vit_keeps_what_it_reads_itself(torchvision_models):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
    )
    thin = ab.factorize(transformers.ViTModel(config), torch.randn(1, 3, 32, 32), rank=2)
    assert set(report(thin).left) == {"embeddings.patch_embeddings.projection"}


def test_what_cannot_be_opened_is_left_with_the_reason():
    class Own(nn.GRU):
        pass

    parts = {
        "own": Own(4, 4), "hooked": nn.LSTM(4, 4), "tied": nn.RNN(4, 4), "twin": nn.RNN(4, 4),
        "extra": nn.MultiheadAttention(4, 2, add_bias_kv=True), "free": nn.Linear(64, 64),
    }  # fmt: skip
    parts["hooked"].register_forward_hook(lambda *_: None)
    parts["twin"].weight_hh_l0 = parts["tied"].weight_hh_l0

    class Model(nn.ModuleDict):
        def forward(self, x: Tensor) -> Tensor:
            return self["free"](x)

    model = Model(parts)
    left = report(ab.factorize(model, torch.zeros(1, 64), rank=2)).left
    assert left["own"] == "Own, a GRU that may compute something else"
    assert left["hooked"] == "hooks, which would be lost"
    assert left["tied"] == left["twin"] == "weight shared with another layer"
    assert left["extra"].startswith("MultiheadAttention with bias_kv")


# --- transformers ---------------------------------------------------------------------------------------------------------


def encoder(layers: int = 2) -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), layers).eval()


@pytest.mark.parametrize("include", ["*", "*.self_attn", "*.linear1"])
def test_an_encoder_of_torch_takes_no_fused_kernel_past_its_factors(include, tmp_path):
    model, x = encoder(), torch.randn(2, 5, 16)
    thin = ab.factorize(model, x, rank=3, include=include)
    mask = torch.tensor([[False] * 5, [False, False, False, True, True]])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert thin(x, src_key_padding_mask=mask).shape == x.shape
        slow = thin.train().requires_grad_(True)
        for module in slow.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            elif hasattr(module, "dropout") and isinstance(module.dropout, float):
                module.dropout = 0.0
        assert torch.allclose(slow(x), thin.eval()(x), atol=1e-5)
    with ab.deploy(thin, x, target="onnxruntime", out=tmp_path / "net", threads=1) as artifact:
        assert torch.allclose(artifact(x), thin(x), atol=1e-5)


def test_attention_projections_become_factors():
    done = report(ab.factorize(encoder(1), torch.randn(2, 5, 16), rank=3))
    found = {line.path.removeprefix("layers.0.") for line in done.lines}
    assert found == {"linear1", "linear2", *(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out"))}


def test_swin_keeps_what_it_reads_itself(torchvision_models):
    block = torchvision_models.swin_transformer.SwinTransformerBlock(16, 2, [2, 2], [0, 0]).eval()
    done = report(ab.factorize(block, torch.randn(1, 4, 4, 16), rank=3))
    assert {line.path for line in done.lines} == {"mlp.0", "mlp.3"}
    assert done.left["attn.qkv"] == "left dense: something else reads its weight"


def test_gpt2s_linear_layers_become_factors():
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    model, x = nn.Sequential(conv1d(30, 20), nn.GELU(), conv1d(20, 30)), torch.randn(2, 5, 20)
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.copy_(torch.randn(len(layer.weight), 4) @ torch.randn(4, layer.nf))
    thin = ab.factorize(model, x, rank=4)
    assert [type(stage) for stage in thin[0]] == [nn.Linear, nn.Linear]
    assert torch.allclose(thin(x), model(x), rtol=1e-4, atol=1e-4)


def test_every_opening_is_tested():
    cells = {"LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell", "MultiheadAttention"}
    assert set(OPENINGS) == {f"torch.nn.{name}" for name in cells} | {"transformers.pytorch_utils.Conv1D"}
    assert opened(nn.Linear(2, 2))[1:] == ({}, {})


@pytest.mark.parametrize("include", ["layers.*.linear1", "layers.1.linear2", "layers.0.self_attn.q_proj"])
def test_one_part_of_an_encoder_layer_is_enough(include):
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2).eval()
    kinds = [layer.activation_relu_or_gelu for layer in encoder.layers]
    x = torch.randn(2, 5, 16)
    thin = ab.factorize(encoder, x, rank=3, include=include)
    assert report(thin).lines
    assert [layer.activation_relu_or_gelu for layer in encoder.layers] == kinds
    assert report(ab.factorize(encoder, x, "whitened", rank=3, include=include, data=torch.randn(64, 5, 16))).lines
    with_gradients = thin(x)
    with torch.no_grad():  # where untouched layers take torch's fused kernel
        assert torch.allclose(thin(x), with_gradients, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8)).cuda()
    data = torch.randn(64, 32)
    thin = ab.factorize(
        model, data[:1], ("svd", "whitened"), ratio=0.6, of="macs", data=data, cost=lambda graph: 1 / len(graph.nodes)
    )
    assert thin(data.cuda()).device.type == "cuda"
