"""LSTM, GRU and RNN with every matrix product a layer of its own, so that each can be replaced by factors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from abridged.errors import InputError

State = tuple[Tensor, ...]  # (h,), of an LSTM (h, c); each (N, …)
Step = Callable[[Tensor, Tensor, State], State]  # (W_ih x + b_ih, W_hh h + b_hh, state before) → state after


def _lstm(x: Tensor, h: Tensor, state: State) -> State:
    """i, f, g, o: c' = σ(f) c + σ(i) tanh(g), h' = σ(o) tanh(c') (Hochreiter & Schmidhuber 1997, with forget gates)."""
    i, f, g, o = (x + h).chunk(4, -1)
    c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _gru(x: Tensor, h: Tensor, state: State) -> State:
    """r, z, n: n = tanh(x_n + σ(r) h_n), h' = (1 − σ(z)) n + σ(z) h (Cho et al. 2014, as cuDNN and PyTorch have it)."""
    (xr, xz, xn), (hr, hz, hn) = x.chunk(3, -1), h.chunk(3, -1)
    n = torch.tanh(xn + torch.sigmoid(xr + hr) * hn)
    return ((state[0] - n) * torch.sigmoid(xz + hz) + n,)


STEPS: dict[str, Step] = {
    "LSTM": _lstm,
    "GRU": _gru,
    "RNN_TANH": lambda x, h, state: (torch.tanh(x + h),),
    "RNN_RELU": lambda x, h, state: (torch.relu(x + h),),
}


class Cell(nn.Module):
    """One time step of one layer in one direction: `input` x + `hidden` h, then the gates; `project`: of an LSTM with proj_size.

    `forward(x, state)` is that of nn.LSTMCell, GRUCell and RNNCell."""

    project: nn.Linear | None

    def __init__(self, mode: str, entering: nn.Linear, hidden: nn.Linear, project: nn.Linear | None = None) -> None:
        super().__init__()
        self.mode, self.input_size = mode, entering.in_features
        self.hidden_size = hidden.out_features // {"LSTM": 4, "GRU": 3}.get(mode, 1)
        self.state_size = hidden.in_features  # of h; that of c is hidden_size
        self.input, self.hidden, self.project = entering, hidden, project

    def step(self, x: Tensor, state: State) -> State:
        """`x`: already multiplied by `input`."""
        h, *rest = STEPS[self.mode](x, self.hidden(state[0]), state)
        return (h if self.project is None else self.project(h), *rest)

    def zeros(self, like: Tensor) -> State:
        """The state before the first step, for inputs (N, I) or (I,)."""
        sizes = (self.state_size, self.hidden_size) if self.mode == "LSTM" else (self.state_size,)
        return tuple(like.new_zeros(*like.shape[:-1], size) for size in sizes)

    def run(self, x: Tensor, state: State, *, backwards: bool) -> tuple[Tensor, State]:
        """Outputs (T, N, H) and the last state, for inputs (T, N, I)."""
        steps = self.input(x).unbind(0)
        outputs = []
        for step in reversed(steps) if backwards else steps:
            state = self.step(step, state)
            outputs.append(state[0])
        return torch.stack(outputs[::-1] if backwards else outputs), state

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        state = self.zeros(input) if hx is None else hx if self.mode == "LSTM" else (hx,)
        after = self.step(self.input(input), state)
        return after if self.mode == "LSTM" else after[0]


class Recurrent(nn.Module):
    """nn.LSTM, nn.GRU or nn.RNN of the same values: children `layer0`, `layer0_reverse`, `layer1` …, each a `Cell`.

    Inputs and outputs are those of the original, also its state; packed sequences are refused."""

    def __init__(self, original: nn.RNNBase, cells: dict[str, Cell]) -> None:
        super().__init__()
        self.mode, self.input_size, self.hidden_size = original.mode, original.input_size, original.hidden_size
        self.num_layers, self.bidirectional, self.bias = original.num_layers, original.bidirectional, original.bias
        self.batch_first, self.dropout, self.proj_size = original.batch_first, original.dropout, original.proj_size
        for name, cell in cells.items():
            self.add_module(name, cell)

    def flatten_parameters(self) -> None:
        """Nothing: there is no fused kernel to prepare for."""

    def forward(self, input: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        if isinstance(input, PackedSequence):
            raise InputError(f"a factorized {self.mode} takes padded tensors, no packed sequences: exclude it")
        batched = input.dim() == 3
        swapped = batched and self.batch_first
        x = input.transpose(0, 1) if swapped else input if batched else input.unsqueeze(1)  # (T, N, I)
        given = self._given(hx, batched)
        finals: list[State] = []
        for layer in range(self.num_layers):
            if layer and self.dropout and self.training:
                x = nn.functional.dropout(x, self.dropout)
            outputs = []
            for suffix in ("", "_reverse")[: 1 + self.bidirectional]:
                cell: Any = getattr(self, f"layer{layer}{suffix}")
                state = given[len(finals)] if given else cell.zeros(x[0])
                y, final = cell.run(x, state, backwards=bool(suffix))
                outputs.append(y)
                finals.append(final)
            x = torch.cat(outputs, -1)
        y = x.transpose(0, 1) if swapped else x if batched else x.squeeze(1)
        state = tuple(torch.stack(part) if batched else torch.cat(part) for part in zip(*finals, strict=True))
        return y, state if self.mode == "LSTM" else state[0]

    def _given(self, hx: Any, batched: bool) -> list[State]:
        """A given state, (layers · directions, N, H) each, as one per cell."""
        if hx is None:
            return []
        parts = [part if batched else part.unsqueeze(1) for part in (hx if self.mode == "LSTM" else (hx,))]
        return list(zip(*(part.unbind(0) for part in parts), strict=True))


def recurrent(rnn: nn.RNNBase) -> Recurrent:
    """A `Recurrent` that computes what nn.LSTM, nn.GRU or nn.RNN does, of its very parameters.

    >>> rnn, x = nn.LSTM(3, 4, bidirectional=True), torch.randn(5, 2, 3)
    >>> list(dict(recurrent(rnn).named_children()))
    ['layer0', 'layer0_reverse']
    >>> bool(torch.allclose(recurrent(rnn)(x)[0], rnn(x)[0], atol=1e-6))
    True
    """
    directions = ("", "_reverse")[: 1 + rnn.bidirectional]
    places = [(layer, direction) for layer in range(rnn.num_layers) for direction in directions]
    return Recurrent(rnn, {f"layer{n}{suffix}": _cell(rnn, rnn.mode, f"_l{n}{suffix}") for n, suffix in places})


def cell(original: Any) -> Cell:
    """A `Cell` that computes what nn.LSTMCell, nn.GRUCell or nn.RNNCell does, of its very parameters."""
    mode = type(original).__name__.removesuffix("Cell")
    return _cell(original, f"RNN_{original.nonlinearity.upper()}" if mode == "RNN" else mode, "")


def _cell(owner: Any, mode: str, suffix: str) -> Cell:
    project = f"weight_hr{suffix}"
    return Cell(
        mode,
        linear(getattr(owner, f"weight_ih{suffix}"), getattr(owner, f"bias_ih{suffix}", None)),
        linear(getattr(owner, f"weight_hh{suffix}"), getattr(owner, f"bias_hh{suffix}", None)),
        linear(getattr(owner, project), None) if hasattr(owner, project) else None,
    )


def linear(weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Linear:
    """A linear layer of these very parameters."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = weight
    layer.bias = bias  # type: ignore[assignment]
    return layer
