"""Capture: changes in place, known parts, provenance, names, structures, programs from files, and every refusal."""

from __future__ import annotations

import io
import json
import os
import pickle
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from abridged.errors import InputError, UnsupportedError
from abridged.graph import capture as module_of_capture
from abridged.graph.capture import capture, load_program
from abridged.graph.graph import Graph
from abridged.graph.interpret import interpret
from abridged.graph.verify import verify

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Written(nn.Module):
    """A module whose forward is a function of itself and the inputs."""

    def __init__(self, f: Callable[..., Any]) -> None:
        super().__init__()
        self.f = f
        self.linear = nn.Linear(3, 3)
        self.register_buffer("table", torch.arange(3.0))
        self.register_buffer("unsaved", torch.ones(3) * 2, persistent=False)

    def forward(self, *inputs: Any) -> Any:
        return self.f(self, *inputs)  # this line


def _equal(f: Callable[..., Any], *inputs: Tensor) -> Graph:
    """Capture, interpret, compare bit for bit."""
    model = Written(f)
    graph = capture(model, inputs)
    with torch.no_grad():
        expected = model.eval()(*(x.clone() for x in inputs))
    torch.testing.assert_close(interpret(graph, *inputs), expected, rtol=0, atol=0)
    return graph


@pytest.fixture
def rewrites(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Counts how often PyTorch's own functionalization was needed."""
    seen: list[object] = []
    own = module_of_capture._rewritten
    monkeypatch.setattr(module_of_capture, "_rewritten", lambda program: (seen.append(program), own(program))[1])
    return seen


# ---- changes in place ------------------------------------------------------------------------------------------------


def _column_zeroed(m, x):
    y = x.clone()
    y[:, 0] = 0
    return y


def _row_seen_after(m, x):
    y = x * 2
    row = y[1]
    y.add_(1)
    return y + row


def _views_of_views(m, x):
    y = x * 2
    y[1:3].mul_(3)
    flat = y.view(-1)
    flat[2:5] = 7.0
    return y.t() @ y


def _steps(m, x):
    y = x * 2
    y[::2] = x[::2] + 1
    y[:, 1] += 2
    return y


def _renamed(m, x):
    y = m.linear(x).relu_()
    y += x
    return y.clamp_(0, 1)


def _mask_with_data(m, x):
    mask = torch.zeros(4, 3)
    mask[1] = x[0]
    mask[:, 0] = 1
    return mask + x


def _known_mask_changed_after_use(m, x):
    mask = torch.zeros(4, 3)
    mask[1:, :2].fill_(3)
    a = mask + x
    mask[0] = 5
    return a * mask


def _part_of_a_buffer(m, x):
    y = m.table.clone()
    y[1:].zero_()
    return y + x


def _axes_moved(m, x):
    y = (x * 1).unsqueeze(0)
    y.squeeze(0).transpose(0, 1).permute(1, 0)[1].sub_(1)
    y.alias() if hasattr(y, "alias") else None
    y.detach()[0, 2].mul_(4)
    return y


@pytest.mark.parametrize(
    "f",
    [
        _column_zeroed,
        _row_seen_after,
        _views_of_views,
        _steps,
        _renamed,
        _mask_with_data,
        _known_mask_changed_after_use,
        _part_of_a_buffer,
        _axes_moved,
    ],
)
def test_changes_in_place_become_functional_where_they_stand(f, rewrites) -> None:
    _equal(f, X)
    assert not rewrites


def _reshape_may_share(m, x):
    y = x * 2
    z = y.reshape(-1)
    y.add_(1)
    return z


def _parts(m, x):
    y = x * 2
    a, b = y.chunk(2)
    a.add_(1)
    return y * torch.cat([b, a])


@pytest.mark.parametrize("f", [_reshape_may_share, _parts])
def test_where_memory_may_be_shared_pytorch_decides(f, rewrites) -> None:
    _equal(f, X)
    assert len(rewrites) == 1


def test_a_plain_inplace_activation_is_one_node() -> None:
    graph = capture(nn.Sequential(nn.Linear(3, 5), nn.ReLU(inplace=True), nn.Hardtanh(inplace=True)).eval(), X)
    assert [node.op for node in graph] == ["linear", "relu", "clamp"]


def test_inplace_addition_of_a_wider_dtype_keeps_the_narrower() -> None:
    _equal(lambda m, x: (x * 2).add_(torch.ones(3, dtype=torch.float64)), X)


STEPS: dict[str, Callable[[Tensor, Tensor], Tensor | None]] = {
    "y + 1": lambda y, z: y + 1,
    "y * z": lambda y, z: y * z if y.shape == z.shape else y * 2,
    "y.add_(1)": lambda y, z: y.add_(1),
    "y.mul_(z)": lambda y, z: y.mul_(z) if y.shape == z.shape else y.mul_(3),
    "y.relu_()": lambda y, z: y.relu_(),
    "y[0]": lambda y, z: y[0] if y.ndim > 1 else y,
    "y[:, 1:]": lambda y, z: y[:, 1:] if y.ndim > 1 and y.shape[1] > 1 else y,
    "y[::2]": lambda y, z: y[::2],
    "y.T": lambda y, z: y.t() if y.ndim == 2 else y,
    "y.view(-1)": lambda y, z: y.view(-1) if y.is_contiguous() else y.unsqueeze(0).squeeze(0),
    "y.reshape(-1)": lambda y, z: y.reshape(-1),
    "y.clone()": lambda y, z: y.clone(),
    "y[0] = 2": lambda y, z: y.select(0, 0).fill_(2),
    "y[-1:].zero_()": lambda y, z: y[-1:].zero_(),
    "y.copy_(z)": lambda y, z: y.copy_(z) if y.shape == z.shape else None,
}


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    st.lists(st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=7)
)
def test_random_programs_of_views_and_changes_in_place_equal_pytorch(steps: list[tuple[str, int, int]]) -> None:
    def program(m: nn.Module, x: Tensor) -> Any:
        pool = [x * 1, x + 2]
        for name, i, j in steps:
            result = STEPS[name](pool[i % len(pool)], pool[j % len(pool)])
            if result is not None and result.ndim > 0:
                pool.append(result)
        return tuple(pool)

    _equal(program, X)


# ---- known parts -----------------------------------------------------------------------------------------------------


def test_what_depends_on_neither_inputs_nor_weights_is_a_literal() -> None:
    def f(m, x):
        mask = x.new_zeros((3, 3))
        for i, part in enumerate((slice(0, 1), slice(1, 3))):
            mask[part, part] = i + 1
        return x @ (mask.unsqueeze(0) - mask.unsqueeze(1)).ne(0).float().sum(0)

    graph = _equal(f, X)
    assert [node.op for node in graph] == ["matmul"]
    ((name, literal),) = graph.constants.items()
    assert literal.keys == ()
    assert name == "matmul_y"


def test_what_depends_on_weights_stays_in_the_graph() -> None:
    graph = _equal(lambda m, x: x * m.linear.weight.t().softmax(0)[0] + m.table.exp(), X)
    assert {"softmax", "exp"} <= {node.op for node in graph}
    assert sorted(key for c in graph.constants.values() for key in c.keys) == ["linear.weight", "table"]


def test_numbers_are_literals_with_their_exact_value() -> None:
    graph = _equal(lambda m, x: (x + 0.1) * 3, X)
    assert [(c.number, c.tensor.dtype) for c in graph.constants.values()] == [(0.1, torch.float32), (3, torch.float32)]


def test_dead_code_and_training_tricks_vanish() -> None:
    def f(m, x):
        torch.linalg.inv(torch.eye(3))
        x.exp().sum()
        return F.dropout(x, 0.5, m.training).contiguous().clone().to(torch.float32).detach()

    graph = _equal(f, X)
    assert graph.nodes == ()
    assert graph.outputs == graph.inputs


# ---- provenance ------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """A stem, a shared branch used twice, a tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.branch = nn.Conv2d(4, 4, 1)
        self.same = self.branch
        self.tied = nn.Conv2d(4, 4, 1)
        self.tied.weight = self.branch.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.branch(x) + self.same(x)
        return self.tied(x) * 0.5


def test_constants_are_the_modules_own_tensors_under_all_their_keys() -> None:
    model = Net()
    graph = capture(model, IMAGE)
    by_keys = {constant.keys: constant for constant in graph.constants.values()}
    shared = ("branch.weight", "same.weight", "tied.weight")
    assert by_keys[shared].tensor is model.branch.weight
    assert by_keys[("stem.1.running_mean",)].tensor is model.stem[1].running_mean
    assert sum(key == "same.weight" for keys in by_keys for key in keys) == 1
    model.branch.weight.data.zero_()  # the graph sees it: it holds no copy
    assert not by_keys[shared].tensor.any()


def test_a_buffer_that_is_not_saved_has_a_name_but_no_key() -> None:
    model = Written(lambda m, x: x * m.unsaved)
    graph = capture(model, X)
    assert graph.constants["unsaved"].keys == ()
    assert graph.constants["unsaved"].tensor.data_ptr() == model.unsaved.data_ptr()


def test_nodes_name_their_module_and_the_users_line() -> None:
    graph = capture(Net(), IMAGE)
    lines = Path(__file__).read_text().splitlines()
    shown = [(n.op, n.path, lines[int(n.source.rpartition(":")[2]) - 1].strip()) for n in graph]
    assert shown == [
        ("conv", "stem.0", "x = self.stem(x)"),
        ("batch_norm", "stem.1", "x = self.stem(x)"),
        ("relu", "stem.2", "x = self.stem(x)"),
        ("conv", "branch", "x = self.branch(x) + self.same(x)"),
        ("conv", "same", "x = self.branch(x) + self.same(x)"),
        ("add", "", "x = self.branch(x) + self.same(x)"),
        ("conv", "tied", "return self.tied(x) * 0.5"),
        ("mul", "", "return self.tied(x) * 0.5"),
    ]
    assert {n.source.rpartition(":")[0] for n in graph} <= {"test_capture.py", "tests/test_capture.py"}


def test_names_are_readable() -> None:
    graph = capture(Net(), IMAGE)
    nodes = ["stem_0", "stem_1", "stem_2", "branch", "same", "add", "tied", "mul"]
    assert [name for node in graph for name in node.outputs] == nodes
    assert {"x", "stem_0_weight", "branch_weight", "mul_y"} <= set(graph.values)


def test_names_that_other_languages_reserve_are_changed() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.switch = nn.Linear(3, 3)
            self.register_module("größe", nn.Linear(3, 3))

        def forward(self, double: Tensor) -> Tensor:
            return self.größe(self.switch(double))

    verify(capture(Odd(), X))
    graph = capture(nn.Sequential(nn.Linear(3, 3)), X)
    assert graph.nodes[0].outputs == ("m0",)


def test_training_modes_and_flags_stay_as_they_were() -> None:
    model = Net()
    model.stem[1].eval()
    before = {module: module.training for module in model.modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    capture(model, IMAGE)
    with pytest.raises(InputError):
        capture(model, X)
    assert {module: module.training for module in model.modules()} == before
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_a_deep_plain_network_is_captured_fast() -> None:
    model = nn.Sequential(
        *(layer for _ in range(60) for layer in (nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()))
    )
    start = time.process_time()
    assert len(capture(model, torch.zeros(1, 4, 8, 8)).nodes) == 180
    assert time.process_time() - start < 5


# ---- structures ------------------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    left: Tensor
    right: Tensor | None


def test_inputs_and_outputs_keep_their_nesting() -> None:
    def f(m, x, more, none):
        return {"b": more["z"] + x, "a": (more["a"][0], None, [x]), "p": Pair(x * 2, None)}

    model = Written(f)
    example = (X, {"z": X + 1, "a": [X + 2]}, None)
    graph = capture(model, example)
    assert graph.input_structure == {"tuple": [0, {"dict": {"z": 1, "a": {"list": [2]}}}, None]}
    outputs = interpret(graph, *example)
    assert torch.equal(outputs["b"], X + 1 + X)
    assert torch.equal(outputs["a"][0], X + 2)
    assert outputs["a"][1] is None
    assert outputs["p"][1] is None
    assert list(outputs) == ["b", "a", "p"]


def test_blocks_without_gradient_or_autocast_are_inlined() -> None:
    def f(m, x):
        with torch.enable_grad():
            y = m.linear(x)
        with torch.no_grad():
            y = y * 2
        with torch.autocast("cpu", enabled=False):
            return y + 1

    graph = _equal(f, X)
    assert [node.op for node in graph] == ["linear", "mul", "add"]


def test_multi_head_attention_and_an_encoder_layer() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.1)
    x = torch.randn(2, 5, 8)
    graph = capture(layer, x)
    torch.testing.assert_close(interpret(graph, x), layer.eval()(x).detach(), rtol=1e-5, atol=1e-5)
    assert "attention" in {node.op for node in graph}


# ---- programs from files ---------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = Net().eval()
    torch.export.save(torch.export.export(model, (IMAGE,)), tmp_path / "net.pt2")
    return tmp_path / "net.pt2"


def _altered(path: Path, change: Callable[[str, bytes], bytes | None], **more: bytes) -> Path:
    """The archive with every member passed through `change`, and some added."""
    out = path.with_name("altered.pt2")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            content = change(name, old.read(name))
            if content is not None:
                new.writestr(name, content)
        for name, content in more.items():
            new.writestr(f"net/{name}", content)
    return out


@pytest.mark.filterwarnings("ignore:`isinstance:FutureWarning")
def test_a_program_from_a_file_is_the_same_graph(saved: Path) -> None:
    program = load_program(saved)
    graph = capture(program)
    assert torch.equal(interpret(graph, IMAGE), program.module()(IMAGE))
    assert ("branch.weight", "same.weight", "tied.weight") in {c.keys for c in graph.constants.values()}
    assert graph.nodes[0].source.startswith("t")
    assert graph.nodes[0].path == "stem.0"


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("pwned",))


def test_nothing_in_a_program_file_is_unpickled(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    poison = io.BytesIO()
    torch.save({"x": Evil()}, poison)
    sample = _altered(saved, lambda name, content: poison.getvalue() if name.endswith("model.pt") else content)
    assert load_program(sample).graph_signature is not None  # the example is not read at all
    with pytest.raises(InputError, match="holds 'net/data/constants/opaque_obj_0', which is not data"):
        load_program(
            _altered(saved, lambda _, content: content, **{"data/constants/opaque_obj_0": pickle.dumps(Evil())})
        )

    def asks(name: str, content: bytes) -> bytes:
        return (
            content.replace(b'"use_pickle": false', b'"use_pickle": true') if name.endswith("config.json") else content
        )

    with pytest.raises(InputError, match="asks for unpickling"):
        load_program(_altered(saved, asks))

    def computes(name: str, content: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return content
        return json.dumps({**json.loads(content), "extra": [{"expr_str": "__import__('os').mkdir('pwned')"}]}).encode()

    with pytest.raises(InputError, match="dynamic shapes"):
        load_program(_altered(saved, computes))
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("keep", [0, 100, -40])
def test_what_is_no_program_is_refused(saved: Path, keep: int) -> None:
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"net\.pt2: (not a program|holds 'archive/data.pkl')"):
        load_program(saved)
    with pytest.raises(InputError, match=r"absent\.pt2: not a program"):
        load_program(saved.with_name("absent.pt2"))


def test_a_program_that_lacks_a_part_is_refused(saved: Path) -> None:
    with pytest.raises(InputError, match=r"altered\.pt2: not a program") as error:
        load_program(_altered(saved, lambda name, content: None if name.endswith("weight_0") else content))
    assert "\n" not in str(error.value)


def test_a_program_of_keyword_arguments_is_refused() -> None:
    program = torch.export.export(nn.Linear(3, 3), (), {"input": X})
    with pytest.raises(UnsupportedError, match="keyword arguments"):
        capture(program)


def test_a_program_with_a_number_among_its_inputs_is_refused() -> None:
    program = torch.export.export(Written(lambda m, x, n: x * n), (X, 2))
    with pytest.raises(UnsupportedError, match="an input of forward is a int"):
        capture(program)


# ---- refusals --------------------------------------------------------------------------------------------------------


def _branches_on_values(m, x):
    if x.sum() > 0:  # this line
        return x
    return -x


def _shape_of_values(m, x):
    return x[x > 0]  # this line


def _size_of_values(m, x):
    return x[:, : int(x.sum().item())]  # this line


def _leaves_torch(m, x):
    return torch.from_numpy(x.numpy() + 1)  # this line


def _does_not_fit(m, x):
    return x @ x  # this line


def _raises(m, x):
    raise ValueError("only squares\nand more")  # this line


@pytest.mark.parametrize(
    ("f", "words"),
    [
        (_branches_on_values, "torch.export cannot trace this line: .*depends on the values"),
        (_shape_of_values, "depends on the values in a tensor"),
        (_size_of_values, "torch.export cannot trace this line: .*depends on the values"),
        (_leaves_torch, "torch.export cannot trace this line: RuntimeError"),
        (_does_not_fit, "forward does not accept the example: RuntimeError"),
        (_raises, "forward does not accept the example: ValueError: only squares"),
    ],
)
def test_what_cannot_be_traced_names_the_users_line(f, words: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=words) as error:
        capture(Written(f), X)
    message = str(error.value)
    assert "\n" not in message
    file, line = message.split(": ")[0].split(":")
    assert file in ("test_capture.py", "tests/test_capture.py")
    assert Path(__file__).read_text().splitlines()[int(line) - 1].endswith("# this line")
    assert capfd.readouterr() == ("", "")


def test_an_example_of_the_wrong_shape_names_the_line_of_forward() -> None:
    with pytest.raises(InputError, match=r"test_capture\.py:\d+: forward does not accept the example: RuntimeError"):
        capture(Net(), torch.zeros(2, 5, 8, 8))
    with pytest.raises(InputError, match="forward does not accept the example: TypeError"):
        capture(Net(), (IMAGE, IMAGE))
    with pytest.raises(InputError, match="forward does not accept the example"):
        capture(nn.Linear(3, 3), torch.zeros(2, 5))


@pytest.mark.parametrize(
    ("model", "example", "words"),
    [
        (lambda x: x, X, "must be a torch.nn.Module, not function"),
        (nn.Identity(), None, "not NoneType"),
        (nn.Identity(), [X], "not list"),
        (nn.Identity(), "x", "not str"),
        (nn.Identity(), (X, 3), "holds a int"),
        (nn.Identity(), ({"x": "y"},), "holds a str"),
    ],
)
def test_what_is_no_model_or_no_example_is_refused(model: Any, example: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        capture(model, example)


def _changes_its_buffer(m, x):
    m.table.add_(1)
    return x * m.table


def _changes_its_input(m, x):
    x.add_(1)
    return x * 2


def _with_autocast(m, x):
    with torch.autocast("cpu", torch.bfloat16):
        return m.linear(x)


@pytest.mark.parametrize(
    ("f", "words"),
    [
        (_changes_its_buffer, "forward changes 'table' in place"),
        (_changes_its_input, "forward changes 'inputs_0' in place"),
        (_with_autocast, "wrap_with_autocast is not in the op set"),
        (lambda m, x: (x, 3), "an output of forward is a int"),
        (lambda m, x: torch.cond(x.sum() > 0, lambda x: x.sin(), lambda x: x.cos(), (x,)), "cond is not in the op set"),
    ],
)
def test_what_the_graph_has_no_words_for_is_refused(f, words: str) -> None:
    with pytest.raises(UnsupportedError, match=words) as error:
        capture(Written(f), X)
    assert "\n" not in str(error.value)


def test_an_unknown_op_names_module_line_and_op_and_no_other() -> None:
    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cummax(x, 0)[0]

    model = nn.Sequential(nn.Linear(3, 3), Inner())
    with pytest.raises(
        UnsupportedError,
        match=r"test_capture\.py:\d+: module '1': aten\.cummax\.default is not in the op set$",
    ):
        capture(model, X)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_program_of_dynamic_shapes_is_refused() -> None:
    model = Written(lambda m, x: m.linear(x))
    program = torch.export.export(model, (X,), dynamic_shapes=(({0: torch.export.Dim("n")},),))
    with pytest.raises(InputError, match="is dynamic; use fixed sizes"):
        capture(program)


def test_a_size_that_is_computed_is_refused() -> None:
    class Counted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.repeat_interleave(x[0].long().abs(), 1)

    with pytest.raises(InputError, match=r"test_capture\.py:\d+: a shape depends on the values"):
        capture(Counted(), X)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (lambda b, x: b.reshape(x, (5, 2)), r"this form of aten.tanh.default is not in the op set"),
        (
            lambda b, x: b("cast", x, dtype=torch.float64),
            r"the rule makes torch.float64 \(4, 3\), PyTorch torch.float32 \(4, 3\)",
        ),
    ],
)
def test_a_wrong_rule_is_caught_where_it_acts(rule, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_of_capture, "rule_of", lambda op: lambda b, op, args: rule(b, args["self"]))
    with pytest.raises(UnsupportedError, match=words):
        capture(Written(lambda m, x: x.tanh()), X)


def test_a_model_without_source_is_named_by_its_class() -> None:
    space: dict[str, Any] = {"nn": nn}
    exec("class Typed(nn.Module):\n    def forward(self, x):\n        return x.missing", space)
    with pytest.raises(InputError, match=r"^Typed: forward does not accept the example: AttributeError"):
        capture(space["Typed"](), X)
