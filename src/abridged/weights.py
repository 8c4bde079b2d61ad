"""Weights on disk, where zeros cost (almost) nothing: `save`, `load_into`, `read`, `packed_bytes`.

The packed format, version 1, is a legal safetensors file; any safetensors reader opens it and sees the parts. Each
tensor is stored in the smallest of three encodings. Elements are compared as bits: only the pattern of all zero bits
(+0.0, 0, False) is left out, so -0.0, NaN payloads and every dtype come back bit for bit.

dense
    One safetensors tensor under its own name.
bitmask
    `NAME:values`, the non-zero elements in row-major order, in the tensor's own dtype, shape (nonzeros,); and
    `NAME:mask`, uint8 of ceil(elements / 8): bit i % 8 (least significant first) of byte i // 8 is 1 where element i
    is stored. Bits past the last element are 0.
gaps
    `NAME:values` as above, and `NAME:gaps`, uint8 codes read from left to right with a position that starts at 0: a
    code c < 255 skips c zeros, puts the next value there and moves one further; 255 skips 255 zeros and puts nothing.
    The codes reach to fewer than 255 elements before the end, so a small file cannot claim a vast tensor.
same
    Nothing: the tensor is shared (tied) with another name and comes back as that one tensor under both.

What is not dense is described in the safetensors metadata, under the one key `abridged`, as JSON:
`{"version": 1, "tensors": {NAME: {"encoding": "gaps", "shape": [64, 3, 3, 3]}, NAME: {"encoding": "same", "as": NAME}}}`.
A tensor is packed only where that saves more than `HEADER` bytes, about what its description takes, and where no other
key is called like one of its parts. A file in which everything is dense is plain safetensors without that key.
Bytes per element of size s at density d: bitmask d·s + 1/8, gaps about d·(s + 1); so gaps win below d = 1/8.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from abridged.errors import PATH, InputError, UnsupportedError, expect, first_line
from abridged.files import write_atomic

VERSION = 1
HEADER = 256  # bytes of header text that a packed tensor costs beyond a dense one
ESCAPE = 255  # the code that skips 255 zeros and stores nothing

Bits = NDArray[Any]  # a tensor's elements as integers, flat
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # of an element's size in bytes
WRAPPERS = ("state_dict", "model", "model_state_dict")  # keys under which training scripts keep the weights in a .pt


def save(
    model_or_state: nn.Module | Mapping[str, Tensor], path: str | Path, masks: Mapping[str, Tensor] | None = None
) -> None:
    """Write a model's (or a state dict's) tensors to one packed safetensors file, whole or not at all.

    With `masks` (a mapping of names to boolean tensors, True = keep), what they remove is written as zero, whatever
    the model holds; the model itself stays as it is. Raises `InputError` for a mask that fits no tensor and for a path
    that cannot be written, `UnsupportedError` for what has no plain elements (sparse layouts, the meta device).
    """
    expect(path, PATH, "weights are written to a file")
    state = _masked(_state_of(model_or_state), masks or {})
    described: dict[str, Any] = {}
    parts: dict[str, Tensor] = {}
    first: dict[object, str] = {}  # where each piece of memory was met first
    for name, tensor in state.items():
        owner = first.setdefault(_identity(tensor) or name, name)
        if owner != name:
            described[name] = {"encoding": "same", "as": owner}
            continue
        bits = _bits(tensor)
        encoding = cheapest(bits)[0]
        packed = {} if encoding == "dense" else {f"{name}:{part}": t for part, t in _encode(bits, encoding, tensor)}
        if packed and packed.keys().isdisjoint(state):
            described[name] = {"encoding": encoding, "shape": list(tensor.shape)}
            parts |= packed
        else:
            parts[name] = tensor
    # One key only: safetensors writes several in a random order, and two equal saves must give equal bytes.
    note = {"abridged": json.dumps({"version": VERSION, "tensors": described})} if described else {"format": "pt"}
    write_atomic(Path(path), safetensors.torch.save(_apart(parts), note))


def load_into(model: nn.Module, path: str | Path) -> None:
    """Copy the tensors of a weight file (see `read`) into a model, in place; on an error nothing has changed.

    Names and shapes must be the model's. A floating-point tensor is cast to the model's floating-point dtype; any other
    difference of dtype is an error. Of names that share one tensor in the model, the file may hold a part, and those
    it holds must agree. If every name in the file begins with "module." (written by DistributedDataParallel) and the
    rest is what the model calls its tensors, the prefix is dropped. Raises `InputError` naming the keys.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(nn.Linear(2, 1), f"{folder}/net.safetensors")
    ...     load_into(nn.Linear(3, 1), f"{folder}/net.safetensors")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    abridged.errors.InputError: ...net.safetensors does not fit the model: shape of weight (1, 2), not (1, 3)
    """
    own = _state_of(model)
    given = _without_prefix(read(path), own)
    tied: dict[object, list[str]] = {}
    for name, tensor in own.items():
        tied.setdefault(_identity(tensor) or name, []).append(name)
    held = {name: [n for n in names if n in given] for names in tied.values() for name in names}
    faults = [
        _list("missing", [name for name in own if not held[name]]),
        _list("unexpected", [name for name in given if name not in own]),
        _list("shape of", [_shapes(name, given[name], own[name]) for name in own if _differ(given, own, name)]),
        _list("dtype of", [_dtypes(name, given[name], own[name]) for name in own if _uncastable(given, own, name)]),
    ]
    if any(faults):
        factors = _factors(given, own)
        hint = (
            "; ab.load_factorized(model, path) reads factors into the model as it was before factorize"
            if factors
            else ""
        )
        raise InputError(f"{path} does not fit the model: {'; '.join(filter(None, faults))}{hint}")
    for names in held.values():
        for name in names[1:]:
            if not _equal_bits(given[names[0]], given[name]):
                raise InputError(f"{path}: {names[0]} and {name} are one tensor in the model but differ in the file")
    with torch.no_grad():
        for names in tied.values():
            own[names[0]].copy_(given[held[names[0]][0]])


def read(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a weight file, by name, on the CPU, in the dtype they were saved in.

    Reads our packed safetensors, plain safetensors, and `.pt`/`.pth` files as data only: a pickle that needs code is
    refused. A `.pt` may keep the tensors under exactly one of "state_dict", "model", "model_state_dict". What a file
    is, its first bytes say, not its name. Raises `InputError` for whatever is absent, cut short or inconsistent.
    """
    expect(path, PATH, "weights are read from a file")
    path = Path(path)
    try:
        with open(path, "rb") as file:
            head = file.read(9)
    except FileNotFoundError:
        raise InputError(f"{path}: weights not found") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    if head[8:] == b"{":
        return _read_safetensors(path)
    if head.startswith((b"PK", b"\x80")):
        return _read_pt(path)
    raise InputError(f"{path}: neither safetensors nor a .pt file ({'empty' if not head else 'unknown first bytes'})")


def packed_bytes(tensor: Tensor) -> int:
    """Bytes that `save` writes for a tensor, without its line in the file's header.

    >>> weight = torch.zeros(1000)
    >>> weight[::10] = 1.0
    >>> packed_bytes(weight), packed_bytes(torch.ones(1000))  # 100 values of 4 bytes and 100 gaps
    (500, 4000)
    """
    return cheapest(_bits(tensor))[1]


# --- encodings ------------------------------------------------------------------------------------------------------


def cheapest(bits: Bits) -> tuple[str, int]:
    """The smallest encoding of flat elements and the bytes of its parts."""
    values = int(np.count_nonzero(bits)) * bits.itemsize
    sizes = {"bitmask": values + (bits.size + 7) // 8}
    if values * 8 < bits.nbytes:  # only there can gaps win, and to count them takes longer
        sizes["gaps"] = values + _gaps(bits).size
    best = min(sizes, key=lambda encoding: sizes[encoding])
    return (best, sizes[best]) if sizes[best] + HEADER < bits.nbytes else ("dense", bits.nbytes)


def _encode(bits: Bits, encoding: str, like: Tensor) -> list[tuple[str, Tensor]]:
    index = _gaps(bits) if encoding == "gaps" else np.packbits(bits != 0, bitorder="little")
    values = torch.from_numpy(bits[bits != 0]).view(like.dtype)
    return [("values", values), (PARTS[encoding], torch.from_numpy(index))]


def _gaps(bits: Bits) -> NDArray[np.uint8]:
    """Codes of the zeros before each non-zero element, and of those at the end."""
    where = np.flatnonzero(bits)
    zeros = np.diff(where, prepend=-1) - 1
    trailing = bits.size - (int(where[-1]) + 1 if where.size else 0)
    ends = np.cumsum(zeros // ESCAPE + 1) - 1  # the code that places each value comes after its escapes
    codes = np.full((int(ends[-1]) + 1 if where.size else 0) + trailing // ESCAPE, ESCAPE, np.uint8)
    codes[ends] = zeros % ESCAPE
    return codes


def _places_of_gaps(codes: NDArray[np.uint8], elements: int) -> NDArray[np.int64]:
    stores = codes != ESCAPE
    reached = np.cumsum(codes + stores.astype(np.int64))
    last = int(reached[-1]) if reached.size else 0
    if not last <= elements < last + ESCAPE:
        raise ValueError(f"its gaps reach element {last} of {elements}")
    places: NDArray[np.int64] = reached[stores] - 1
    return places


def _places_of_mask(mask: NDArray[np.uint8], elements: int) -> NDArray[np.int64]:
    if mask.size != (elements + 7) // 8:
        raise ValueError(f"its mask has {mask.size} bytes for {elements} elements")
    places = np.flatnonzero(np.unpackbits(mask, bitorder="little"))
    if places.size and places[-1] >= elements:
        raise ValueError("its mask has bits past the last element")
    return places


PARTS = {"bitmask": "mask", "gaps": "gaps"}  # encoding → name of the part that says where the values are
PLACES: dict[str, Callable[[NDArray[np.uint8], int], NDArray[np.int64]]] = {
    "bitmask": _places_of_mask,
    "gaps": _places_of_gaps,
}


def _decode(encoding: str, shape: list[int], values: Tensor, index: Tensor) -> Tensor:
    """The dense tensor. Raises ValueError, before anything of its size exists, when the parts disagree."""
    if values.dim() != 1 or index.dim() != 1 or index.dtype != torch.uint8:
        raise ValueError(f"its {PARTS[encoding]} must be flat uint8 and its values flat")
    elements = math.prod(shape)
    places = PLACES[encoding](index.numpy(), elements)
    if len(places) != len(values):
        raise ValueError(f"it has {len(values)} values for {len(places)} places")
    bits = torch.zeros(elements, dtype=INTEGERS[values.element_size()])
    bits.numpy()[places] = values.view(bits.dtype).numpy()
    return bits.view(values.dtype).reshape(shape)


def _bits(tensor: Tensor) -> Bits:
    """A tensor's elements as flat integers of the same size; no copy when it is contiguous and on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    bits: Bits = flat.view(INTEGERS[flat.element_size()]).numpy()
    return bits


def _equal_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and np.array_equal(_bits(a), _bits(b))


# --- what is saved --------------------------------------------------------------------------------------------------


def _state_of(model_or_state: nn.Module | Mapping[str, Any]) -> dict[str, Tensor]:
    """Names and tensors, each of which can be stored."""
    expect(model_or_state, (nn.Module, Mapping), "weights are those of an nn.Module or a state dict")
    whole = model_or_state.state_dict() if isinstance(model_or_state, nn.Module) else model_or_state
    for name, tensor in whole.items():
        if not isinstance(tensor, Tensor):
            raise UnsupportedError(f"{name} is a {type(tensor).__name__}: only tensors can be stored as safetensors")
        plain = tensor.layout == torch.strided and tensor.device.type != "meta" and not tensor.is_quantized
        if not plain or nn.parameter.is_lazy(tensor) or tensor.element_size() not in INTEGERS:
            kind = "an uninitialized (lazy) tensor" if nn.parameter.is_lazy(tensor) else f"{tensor.dtype}"
            where = f"{tensor.layout} on {tensor.device.type}"
            raise UnsupportedError(f"{name} is {kind} in {where}: it has no plain elements to store")
    return {name: tensor.detach() for name, tensor in whole.items()}


def _masked(state: dict[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for name, mask in masks.items():
        if name not in state or mask.shape != state[name].shape or mask.dtype != torch.bool:
            raise InputError(f"masks: {name} fits no tensor that is saved; masks are boolean, of their tensor's shape")
    kept = {name: state[name].masked_fill(~mask.to(state[name].device), 0) for name, mask in masks.items()}
    # Tied names share the memory of one masked copy, as they shared the original's.
    by_memory = {_identity(state[name]) or name: tensor for name, tensor in kept.items()}
    return {name: by_memory.get(_identity(tensor) or name, tensor) for name, tensor in state.items()}


def _identity(tensor: Tensor) -> object:
    """Equal for two tensors that are the same view of the same memory; None for an empty one, which shares nothing."""
    if tensor.numel() == 0:
        return None
    return tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _apart(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors, each in memory of its own: safetensors refuses different views of one storage."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in parts.items():
        own = tensor.cpu().contiguous()
        where = own.untyped_storage().data_ptr()
        apart[name] = own.clone() if where in seen else own
        seen.add(where)
    return apart


# --- what is read ---------------------------------------------------------------------------------------------------


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            note = file.metadata() or {}
            # A copy: what safetensors gives is mapped memory, which a later change of the file would reach.
            parts = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError, AttributeError, KeyError) as error:
        raise InputError(f"{path}: not a whole safetensors file: {first_line(error)}") from None
    if "abridged" not in note:
        return parts
    try:
        return _unpack(parts, json.loads(note["abridged"]))
    except RecursionError:
        raise InputError(f"{path}: its description is not JSON of ours") from None
    except ValueError as error:
        raise InputError(f"{path}: {first_line(error)}") from None


def _unpack(parts: dict[str, Tensor], note: Any) -> dict[str, Tensor]:
    """The tensors that the parts and their description make. Raises ValueError wherever these disagree."""
    described = _described(note)
    whole: dict[str, Tensor] = {}
    for name, entry in described.items():
        if name in parts:
            raise ValueError(f"{name} is there twice, dense and packed")
        encoding = entry["encoding"]
        if encoding == "same":
            continue
        names = (f"{name}:values", f"{name}:{PARTS[encoding]}")
        if absent := [part for part in names if part not in parts]:
            raise ValueError(f"{name} lacks its part {absent[0]}")
        try:
            whole[name] = _decode(encoding, entry["shape"], *(parts.pop(part) for part in names))
        except ValueError as error:
            raise ValueError(f"{name} is corrupt: {error}") from None
    whole |= parts
    for name, entry in described.items():
        if entry["encoding"] == "same":
            if entry["as"] not in whole or described.get(entry["as"], {}).get("encoding") == "same":
                raise ValueError(f"{name} is the same as {entry['as']}, which is not there")
            whole[name] = whole[entry["as"]]
    return whole


def _described(note: Any) -> dict[str, dict[str, Any]]:
    """The entries of the metadata, each of a legal form."""
    version = note.get("version") if isinstance(note, dict) else None
    if version != VERSION:
        raise ValueError(f"packed in format version {version}; this Abridged reads version {VERSION}")
    tensors = note.get("tensors")
    if not isinstance(tensors, dict):
        raise ValueError("its description has no tensors")
    for name, entry in tensors.items():
        legal = isinstance(entry, dict) and (
            (entry.get("encoding") == "same" and isinstance(entry.get("as"), str))
            or (entry.get("encoding") in list(PARTS) and _is_shape(entry.get("shape")))
        )
        if not legal:
            raise ValueError(f"{name} is described in a way that this Abridged does not know")
    return tensors


def _is_shape(shape: object) -> bool:
    """Whether torch can make a tensor of this shape: its strides must fit 64 bits even where it is empty."""
    sizes = isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)
    return sizes and math.prod(max(size, 1) for size in shape) < 2**60  # type: ignore[attr-defined]


def _read_pt(path: Path) -> dict[str, Tensor]:
    try:
        whole = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a malformed pickle may raise anything at all
        if "weights_only" in str(error) or "Unsupported" in str(error):
            raise InputError(
                f"{path}: refused, because this pickle needs code to run; save model.state_dict() instead, or use"
                " abridged.save"
            ) from None
        raise InputError(f"{path}: not a whole .pt file: {first_line(error)}") from None
    if _is_state(whole):
        return dict(whole)
    wrapped = [key for key in WRAPPERS if isinstance(whole, Mapping) and _is_state(whole.get(key))]
    if len(wrapped) == 1:
        return dict(whole[wrapped[0]])
    found = f"keys {', '.join(map(str, list(whole)[:5]))}" if isinstance(whole, Mapping) else type(whole).__name__
    why = f"weights under several keys: {', '.join(wrapped)}" if wrapped else f"no state dict in it ({found})"
    raise InputError(f"{path}: {why}; save model.state_dict() alone")


def _is_state(candidate: object) -> bool:
    return (
        isinstance(candidate, Mapping)
        and bool(candidate)
        and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in candidate.items())
    )


# --- how a file fits a model ----------------------------------------------------------------------------------------


def _without_prefix(given: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    bare = {name.removeprefix("module."): tensor for name, tensor in given.items()}
    wrapped = all(name.startswith("module.") for name in given)
    return bare if wrapped and bare.keys() == own.keys() else given


def _factors(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    """Whether the file has parts inside of what is one layer in the model."""
    absent = tuple(name.rpartition(".")[0] + "." for name in own if name not in given and "." in name)
    return any(name not in own and name.startswith(absent) for name in given)


def _differ(given: Mapping[str, Tensor], own: Mapping[str, Tensor], name: str) -> bool:
    return name in given and given[name].shape != own[name].shape


def _uncastable(given: Mapping[str, Tensor], own: Mapping[str, Tensor], name: str) -> bool:
    if name not in given or given[name].dtype == own[name].dtype:
        return False
    return not (given[name].is_floating_point() and own[name].is_floating_point())


def _shapes(name: str, given: Tensor, own: Tensor) -> str:
    return f"{name} {tuple(given.shape)}, not {tuple(own.shape)}"


def _dtypes(name: str, given: Tensor, own: Tensor) -> str:
    return f"{name} {given.dtype}, not {own.dtype}".replace("torch.", "")


def _list(what: str, names: Iterable[str]) -> str:
    """'missing a.weight, b.weight, c.weight and 12 more', or '' when there are none."""
    every = list(names)
    more = f" and {len(every) - 3} more" if len(every) > 3 else ""
    return f"{what} {', '.join(every[:3])}{more}" if every else ""
