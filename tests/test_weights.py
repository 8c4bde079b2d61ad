"""Weights on disk: bit-exact back, small where sparse, and every damaged file is one clear line."""

import io
import json
import os
import pickle
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from abridged.errors import InputError, UnsupportedError
from abridged.weights import ESCAPE, HEADER, load_into, packed_bytes, read, save

DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.bool,
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.complex64,
]  # fmt: skip
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def sparse(elements: int, density: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Random bit patterns (NaN payloads, infinities, -0.0 …), of which the share `density` stays."""
    width = dtype.itemsize
    rows = torch.randint(0, 2 if dtype == torch.bool else 256, (elements, width), dtype=torch.uint8)
    rows[torch.rand(elements) >= density] = 0
    return rows.reshape(-1).view(dtype)


def both_ways(state: dict[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    save(state, path)
    back = read(path)
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        assert back[name].dtype == tensor.dtype
        assert back[name].shape == tensor.shape
        assert raw(back[name]) == raw(tensor), name
    return back


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("density", [0.0, 0.002, 0.05, 0.3, 1.0])
def test_every_dtype_comes_back_bit_for_bit(dtype, density, tmp_path):
    state = {"w": sparse(5003, density, dtype), "e": torch.empty(0, 3, dtype=dtype), "s": sparse(1, 1.0, dtype)[0]}
    both_ways(state, tmp_path / "w.safetensors")


@quick
@given(st.integers(0, 3000), st.floats(0, 0.5), st.sampled_from(DTYPES), st.integers(0, 2**31))
def test_any_sparse_tensor_comes_back_bit_for_bit(tmp_path, elements, density, dtype, seed):
    torch.manual_seed(seed)
    tensor = sparse(elements, density, dtype)
    both_ways({"a.weight": tensor, "b": tensor.clone().reshape(-1, 1)}, tmp_path / "w.safetensors")


@quick
@given(st.lists(st.integers(0, 4 * ESCAPE), min_size=0, max_size=12), st.integers(0, 3 * ESCAPE))
def test_gaps_of_every_length_come_back(tmp_path, zeros, trailing):
    pieces = [torch.cat([torch.zeros(gap), torch.ones(1)]) for gap in zeros]
    both_ways({"w": torch.cat([*pieces, torch.zeros(trailing + 2 * HEADER)])}, tmp_path / "w.safetensors")


def test_negative_zero_and_nan_payloads_are_values(tmp_path):
    special = torch.tensor([-(2**31), 0x7FC00001, 0x7F800000, 0, 1], dtype=torch.int32).view(torch.float32)
    tensor = torch.zeros(1000)
    tensor[100:105] = special
    back = both_ways({"w": tensor}, tmp_path / "w.safetensors")["w"]
    assert torch.signbit(back[100])
    assert packed_bytes(tensor) == 4 * 4 + 4 + 3  # values, their gaps, three escapes at the end


@pytest.mark.parametrize(("density", "bound"), [(0.1, 0.13), (0.05, 0.07), (0.01, 0.02), (0.3, 0.34), (1.0, 1.0)])
def test_file_shrinks_with_density(density, bound, tmp_path):
    tensor = torch.randn(512, 512) * (torch.rand(512, 512) < density)
    save({"w": tensor + 0.0}, tmp_path / "w.safetensors")
    size = (tmp_path / "w.safetensors").stat().st_size
    assert size <= bound * tensor.numel() * 4 + 1000
    assert packed_bytes(tensor + 0.0) <= size <= packed_bytes(tensor + 0.0) + HEADER + 100


def test_what_packing_cannot_shrink_is_a_plain_file(tmp_path):
    state = {"w": torch.randn(50, 50), "b": torch.zeros(8)}
    save(state, tmp_path / "w.safetensors")
    assert packed_bytes(state["b"]) == 32  # its description would take more than its zeros
    plain = safetensors.torch.load_file(tmp_path / "w.safetensors")
    assert all(torch.equal(plain[name], tensor) for name, tensor in state.items())


def test_packed_file_is_legal_safetensors_and_equal_saves_give_equal_bytes(tmp_path):
    state = {"w": sparse(4000, 0.05), "v": sparse(4000, 0.4), "d": torch.randn(9)}
    save(state, tmp_path / "a")
    save(dict(reversed(state.items())), tmp_path / "b")
    parts = safetensors.torch.load_file(tmp_path / "a")
    assert set(parts) == {"w:values", "w:gaps", "v:values", "v:mask", "d"}
    save(state, tmp_path / "c")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "c").read_bytes()


def test_plain_safetensors_of_others_are_read(tmp_path):
    state = {"w": torch.randn(3, 3), "h": torch.randn(3).half()}
    safetensors.torch.save_file(state, tmp_path / "w.safetensors", {"format": "pt"})
    back = read(tmp_path / "w.safetensors")
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_tensor_whose_parts_would_clash_is_stored_dense(tmp_path):
    both_ways({"w": sparse(4000, 0.05), "w:values": torch.ones(2)}, tmp_path / "w.safetensors")


def test_views_and_strides_come_back(tmp_path):
    base = torch.randn(40, 30)
    both_ways({"t": base.t(), "row": base[3], "rows": base[2:9], "conj": base[::2, ::3]}, tmp_path / "w.safetensors")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 30)
        self.head = nn.Linear(30, 40, bias=False)
        self.head.weight = self.embed.weight


def test_tied_weights_are_stored_once_and_come_back_under_all_names(tmp_path):
    model, fresh = Tied(), Tied()
    save(model, tmp_path / "w.safetensors")
    assert (tmp_path / "w.safetensors").stat().st_size < 1.2 * 40 * 30 * 4
    back = read(tmp_path / "w.safetensors")
    assert back["embed.weight"] is back["head.weight"]
    load_into(fresh, tmp_path / "w.safetensors")
    assert torch.equal(fresh.head.weight, model.embed.weight)
    assert fresh.head.weight is fresh.embed.weight


def test_file_may_hold_one_of_two_tied_names_but_they_must_agree(tmp_path):
    model, fresh = Tied(), Tied()
    save({"head.weight": model.head.weight}, tmp_path / "one")
    load_into(fresh, tmp_path / "one")
    assert torch.equal(fresh.embed.weight, model.embed.weight)
    save({"head.weight": model.head.weight, "embed.weight": torch.zeros(40, 30)}, tmp_path / "two")
    with pytest.raises(InputError, match="are one tensor in the model but differ in the file"):
        load_into(fresh, tmp_path / "two")
    assert torch.equal(fresh.embed.weight, model.embed.weight)


def test_masks_are_applied_to_what_is_saved_and_not_to_the_model(tmp_path):
    model = Tied()
    before = model.embed.weight.detach().clone()
    mask = torch.rand(40, 30) < 0.5
    save(model, tmp_path / "w.safetensors", masks={"embed.weight": mask})
    assert torch.equal(model.embed.weight, before)
    back = read(tmp_path / "w.safetensors")
    assert torch.equal(back["head.weight"], before.masked_fill(~mask, 0))
    for wrong in ({"other": mask}, {"embed.weight": mask[:3]}, {"embed.weight": mask.float()}):
        with pytest.raises(InputError, match="fits no tensor"):
            save(model, tmp_path / "w2.safetensors", masks=wrong)
    assert not (tmp_path / "w2.safetensors").exists()


class Extra(nn.Linear):
    def get_extra_state(self):
        return {"not": "a tensor"}


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"n": 3}, "n is a int"),
        (Extra(2, 2), "_extra_state is a dict"),
        ({"m": torch.empty(3, device="meta")}, "m is torch.float32 in torch.strided on meta"),
        ({"s": torch.eye(3).to_sparse()}, "s is torch.float32 in torch.sparse_coo"),
        ({"c": torch.zeros(3, dtype=torch.complex128)}, "c is torch.complex128"),
        (nn.LazyLinear(3), "uninitialized"),
    ],
)
def test_what_has_no_plain_elements_is_refused(state, words, tmp_path):
    with pytest.raises(UnsupportedError, match=words):
        save(state, tmp_path / "w")
    assert not list(tmp_path.iterdir())


# --- load_into ------------------------------------------------------------------------------------------------------


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 3))


def test_model_comes_back_in_place(tmp_path):
    model, fresh = net(), net()
    parameters = list(fresh.parameters())
    save(model, tmp_path / "w.safetensors")
    load_into(fresh, tmp_path / "w.safetensors")
    assert all(a is b for a, b in zip(fresh.parameters(), parameters, strict=True))
    assert all(raw(a) == raw(b) for a, b in zip(fresh.state_dict().values(), model.state_dict().values(), strict=True))
    assert all(p.requires_grad for p in fresh.parameters())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("0.bias"), "missing 0.bias$"),
        (lambda s: s.update(extra=torch.ones(1)), "unexpected extra$"),
        (lambda s: s.update({"3.weight": torch.ones(3, 9)}), r"shape of 3.weight \(3, 9\), not \(3, 8\)$"),
        (lambda s: s.update({"3.weight": torch.ones(3, 8).int()}), "dtype of 3.weight int32, not float32$"),
        (lambda s: [s.pop(key) for key in list(s)[:5]], "missing 0.weight, 0.bias, 1.weight and 2 more$"),
    ],
)
def test_what_does_not_fit_is_named_and_changes_nothing(change, words, tmp_path):
    state = {name: torch.full_like(tensor, 7) for name, tensor in net().state_dict().items()}
    change(state)
    save(state, tmp_path / "w.safetensors")
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match=words):
        load_into(model, tmp_path / "w.safetensors")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_floating_point_is_cast_to_the_models_precision(tmp_path):
    model = nn.Linear(3, 2)
    save(model, tmp_path / "w")
    half = nn.Linear(3, 2).bfloat16()
    load_into(half, tmp_path / "w")
    assert torch.equal(half.weight, model.weight.bfloat16())


def test_prefix_of_distributed_training_is_dropped_only_when_all_fits(tmp_path):
    model, fresh = net(), net()
    save({f"module.{name}": tensor for name, tensor in model.state_dict().items()}, tmp_path / "w")
    load_into(fresh, tmp_path / "w")
    assert torch.equal(fresh[0].weight, model[0].weight)
    with pytest.raises(InputError, match=r"unexpected module\.0\."):
        load_into(nn.Linear(2, 2), tmp_path / "w")


# --- .pt ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_pt_files_are_read_as_data(wrapper, new, tmp_path):
    state = net().state_dict()
    whole = state if wrapper is None else {wrapper: state, "epoch": 3, "optimizer": {"lr": 0.1}}
    torch.save(whole, tmp_path / "w.pt", _use_new_zipfile_serialization=new)
    back = read(tmp_path / "w.pt")
    assert all(torch.equal(back[name], state[name]) for name in state)
    load_into(net(), tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("whole", "words"),
    [
        ({"state_dict": {"w": torch.ones(1)}, "model": {"w": torch.ones(1)}}, "several keys: state_dict, model"),
        ({"weights": {"w": torch.ones(1)}, "epoch": 1}, r"no state dict in it \(keys weights, epoch\)"),
        ({}, "no state dict"),
        ([torch.ones(1)], r"no state dict in it \(list\)"),
    ],
)
def test_ambiguous_pt_is_one_line(whole, words, tmp_path):
    torch.save(whole, tmp_path / "w.pt")
    with pytest.raises(InputError, match=words):
        read(tmp_path / "w.pt")


class Evil:
    def __reduce__(self):
        return os.mkdir, ("was-run",)


@pytest.mark.parametrize("write", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing))])
@pytest.mark.parametrize("thing", [Evil(), {"w": torch.ones(1), "x": Evil()}, nn.Linear(2, 2)])
def test_pickle_that_needs_code_is_refused_and_not_run(thing, write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(thing, tmp_path / "evil.pt")
    with pytest.raises(InputError) as caught:
        read(tmp_path / "evil.pt")
    assert "needs code to run" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "was-run").exists()


# --- attacks --------------------------------------------------------------------------------------------------------


def test_absent_empty_and_foreign_files_are_one_line(tmp_path):
    with pytest.raises(InputError, match="weights not found"):
        read(tmp_path / "absent.safetensors")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read(tmp_path)
    for name, content, words in [("empty", b"", "empty"), ("text", b"hello, world", "unknown first bytes")]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=words):
            read(tmp_path / name)


def reads_or_says_why(path: Path) -> bool:
    """True when the file is read; a refusal must be one line that names the file. Anything else fails the test."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tensors = read(path)
    except InputError as error:
        refusal = str(error)
    else:
        assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())
        return True
    assert str(path) in refusal
    assert "\n" not in refusal
    return False


def whole_file(kind: str, tmp_path: Path) -> bytes:
    state = {"w": sparse(3000, 0.05), "v": sparse(3000, 0.3), "d": torch.ones(5)}
    state["same"] = state["d"]
    path = tmp_path / f"whole.{kind}"
    if kind == "pt":
        torch.save(state, path)
    elif kind == "legacy":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    else:
        save(state, path)
    return path.read_bytes()


@pytest.mark.parametrize("kind", ["safetensors", "pt", "legacy"])
def test_every_cut_is_refused(kind, tmp_path):
    content = whole_file(kind, tmp_path)
    for end in [*range(40), *range(40, len(content) - 1, 97), len(content) - 1]:
        (tmp_path / "cut").write_bytes(content[:end])
        assert not reads_or_says_why(tmp_path / "cut") or kind != "safetensors", end


@quick
@given(st.data(), st.sampled_from(["safetensors", "pt", "legacy"]))
def test_flipped_bytes_never_crash(tmp_path, data, kind):
    content = bytearray(whole_file(kind, tmp_path))
    head = min(len(content), 2000)
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, head - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "flipped").write_bytes(content)
    reads_or_says_why(tmp_path / "flipped")


def forge(path: Path, parts: dict[str, torch.Tensor], note: object) -> Path:
    text = note if isinstance(note, str) else json.dumps(note)
    path.write_bytes(safetensors.torch.save(parts, {"abridged": text}))
    return path


def described(shape: object, encoding: str = "gaps") -> dict:
    return {"version": 1, "tensors": {"w": {"encoding": encoding, "shape": shape}}}


def codes(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.uint8)


TWO = torch.ones(2)
ATTACKS = {
    "gaps past the end": ({"w:values": TWO, "w:gaps": codes(3, 9)}, described([10]), "reach element 14 of 10"),
    "gaps stop too early": ({"w:values": TWO, "w:gaps": codes(3, 9)}, described([1000]), "reach element 14 of 1000"),
    "vast tensor": ({"w:values": TWO, "w:gaps": codes(3, 9)}, described([2**47]), "reach element 14"),
    "escapes past the end": ({"w:values": TWO, "w:gaps": codes(1, 1, 255)}, described([9]), "reach element 259"),
    "fewer values": ({"w:values": torch.ones(1), "w:gaps": codes(3, 1)}, described([10]), "1 values for 2 places"),
    "more values": ({"w:values": torch.ones(3), "w:gaps": codes(3, 1)}, described([10]), "3 values for 2 places"),
    "no gaps": ({"w:values": TWO}, described([10]), "w lacks its part w:gaps"),
    "no values": ({"w:gaps": codes(1)}, described([10]), "w lacks its part w:values"),
    "signed gaps": ({"w:values": TWO, "w:gaps": codes(1, 1).char()}, described([4]), "must be flat uint8"),
    "deep gaps": ({"w:values": TWO, "w:gaps": codes(1, 1).reshape(1, 2)}, described([4]), "must be flat uint8"),
    "deep values": ({"w:values": torch.ones(1, 2), "w:gaps": codes(1, 1)}, described([4]), "must be flat uint8"),
    "short mask": ({"w:values": TWO, "w:mask": codes(3)}, described([9], "bitmask"), "mask has 1 bytes for 9"),
    "long mask": ({"w:values": TWO, "w:mask": codes(3, 0)}, described([8], "bitmask"), "mask has 2 bytes for 8"),
    "bits past the end": ({"w:values": TWO, "w:mask": codes(0x81)}, described([7], "bitmask"), "past the last"),
    "mask of one": ({"w:values": TWO, "w:mask": codes(1)}, described([7], "bitmask"), "2 values for 1 places"),
    "twice": ({"w": torch.zeros(2), "w:values": TWO, "w:gaps": codes(0, 0)}, described([2]), "w is there twice"),
    "negative shape": ({"w:values": TWO, "w:gaps": codes(0, 0)}, described([-1, -2]), "does not know"),
    "float shape": ({"w:values": TWO, "w:gaps": codes(0, 0)}, described([2.0]), "does not know"),
    "bool shape": ({"w:values": TWO, "w:gaps": codes(0, 0)}, described([2, True]), "does not know"),
    "huge sides": ({"w:values": TWO, "w:gaps": codes(0, 0)}, described([2**40] * 9), "does not know"),
    "huge and empty": ({"w:values": TWO[:0], "w:gaps": codes()}, described([0] + [2**47] * 3), "does not know"),
    "no shape": ({"w:values": TWO, "w:gaps": codes(0, 0)}, described("abc"), "does not know"),
    "unknown encoding": ({"w:values": TWO}, described([2], "zip"), "does not know"),
    "encoding of no name": ({"w:values": TWO}, {"version": 1, "tensors": {"w": {"encoding": [], "shape": [1]}}}, "not know"),
    "entry is no mapping": ({"d": TWO}, {"version": 1, "tensors": {"w": 3}}, "does not know"),
    "tensors is no mapping": ({"d": TWO}, {"version": 1, "tensors": [1]}, "has no tensors"),
    "no version": ({"d": TWO}, {"tensors": {}}, "format version None"),
    "newer": ({"d": TWO}, {"version": 2, "tensors": {}}, "format version 2"),
    "a list": ({"d": TWO}, [], "format version None"),
    "not JSON": ({"d": TWO}, "{", "Expecting"),
    "deep JSON": ({"d": TWO}, "[" * 100000, "not JSON"),
    "same as nothing": ({"d": TWO}, {"version": 1, "tensors": {"w": {"encoding": "same", "as": "x"}}}, "not there"),
    "same as itself": ({"d": TWO}, {"version": 1, "tensors": {"w": {"encoding": "same", "as": "w"}}}, "not there"),
    "same as a number": ({"d": TWO}, {"version": 1, "tensors": {"w": {"encoding": "same", "as": 1}}}, "does not know"),
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_forged_descriptions_are_refused(attack, tmp_path):
    parts, note, words = ATTACKS[attack]
    with pytest.raises(InputError, match=words):
        read(forge(tmp_path / "forged", parts, note))
    assert not reads_or_says_why(tmp_path / "forged")


@quick
@given(
    st.sampled_from(["gaps", "bitmask"]),
    st.lists(st.integers(0, 255), max_size=40),
    st.integers(0, 40),
    st.lists(st.integers(0, 60), max_size=3),
)
def test_random_parts_are_read_whole_or_refused(tmp_path, encoding, index, values, shape):
    part = {"gaps": "w:gaps", "bitmask": "w:mask"}[encoding]
    forge(tmp_path / "forged", {"w:values": torch.ones(values), part: codes(*index)}, described(shape, encoding))
    if reads_or_says_why(tmp_path / "forged"):
        tensor = read(tmp_path / "forged")["w"]
        assert list(tensor.shape) == shape
        assert int(tensor.count_nonzero()) == values


def test_forged_headers_are_refused(tmp_path):
    for header in (b"{}", b"{" + b"[" * 5000, b'{"a": 1}', b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,99]}}'):
        (tmp_path / "forged").write_bytes(struct.pack("<Q", len(header)) + header)
        reads_or_says_why(tmp_path / "forged")
    (tmp_path / "forged").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    assert not reads_or_says_why(tmp_path / "forged")


def test_zip_that_is_no_checkpoint_is_refused(tmp_path):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("readme.txt", "nothing")
    (tmp_path / "w.pt").write_bytes(content.getvalue())
    with pytest.raises(InputError, match="not a whole"):
        read(tmp_path / "w.pt")


def test_unwritable_path_is_one_line_and_leaves_nothing(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        save(nn.Linear(2, 2), tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_packed_bytes_agrees_with_a_count_by_hand():
    # Positions 0, 300, 301 of 2,000 elements: gaps 0, 299 = 255 + 44, 0, and 1,698 trailing zeros = 6 · 255 + 168.
    tensor = torch.zeros(2000, dtype=torch.float64)
    tensor[[0, 300, 301]] = 1.0
    assert packed_bytes(tensor) == 3 * 8 + 3 + 1 + 6
    half = torch.from_numpy(np.tile(np.array([1.0, 0.0], np.float32), 1000))
    assert packed_bytes(half) == 1000 * 4 + 2000 // 8


@pytest.mark.slow
def test_25_million_parameters_save_and_load_in_about_a_second(tmp_path):
    import time

    model = nn.Sequential(*[nn.Linear(1582, 1582) for _ in range(10)])
    save(model, tmp_path / "dense")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.masked_fill_(torch.rand_like(parameter) < 0.9, 0)
    start, busy = time.perf_counter(), time.process_time()
    save(model, tmp_path / "packed")
    saved = time.perf_counter()
    load_into(model, tmp_path / "packed")
    loaded = time.perf_counter()
    ratio = (tmp_path / "packed").stat().st_size / (tmp_path / "dense").stat().st_size
    print(f"25 M parameters: save {saved - start:.2f} s, load {loaded - saved:.2f} s, {ratio:.3f} of dense")
    assert ratio < 0.13
    assert time.process_time() - busy < 4  # not the wall clock: other work on the machine must not fail this test
