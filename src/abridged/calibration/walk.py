"""Two networks walked layer by layer: the dense one and the one under repair meet at every layer before either goes on.

A forward pass runs in a thread of its own that halts before each layer of interest; only one of them ever runs. So a
layer can be changed once the inputs that it really gets are known, from the layers before it, which are repaired
already; and the dense network's inputs at the same layer are there beside them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from abridged.calibration.samples import Samples, run
from abridged.data import forward
from abridged.data.batches import each
from abridged.data.evaluate import judging
from abridged.errors import UnsupportedError

MEMORY = 4 << 30  # bytes of activations that walks may hold while they halt
LIVE = 4  # tensors of the largest layer's input that a forward pass keeps alive at a time, an estimate

_this = threading.local()  # the walk that a thread belongs to


class _Closed(BaseException):
    """Unwinds a forward pass that is not wanted any more."""


class Walk:
    """One forward pass that halts before layers: `at` is the layer's name and `x` its input; at the end both are None."""

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        self.at: str | None = None
        self.x: Tensor | None = None
        self._go, self._halted = threading.Semaphore(0), threading.Semaphore(0)
        self._closing = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(model, inputs), daemon=True)
        self._thread.start()

    def advance(self) -> None:
        """Go on to the next halt. Raises whatever the model's forward raises."""
        self._go.release()
        self._halted.acquire()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """End the pass, wherever it is."""
        self._closing = True
        self._go.release()
        self._thread.join()
        self.x = None

    def halt(self, name: str, x: Tensor) -> None:
        """Called in the walk's own thread: wait for `advance`."""
        self.at, self.x = name, x
        self._halted.release()
        self._go.acquire()
        self.x = None
        if self._closing:
            raise _Closed

    def _run(self, model: nn.Module, inputs: Any) -> None:
        self._go.acquire()
        _this.walk = self
        try:
            if not self._closing:
                with torch.no_grad():
                    forward(model, inputs)
        except _Closed:
            return
        except Exception as error:  # raised again where the walk is awaited
            self._error = error
        self.at = self.x = None
        self._halted.release()


@contextmanager
def _halting(model: nn.Module, layers: Mapping[str, nn.Module]) -> Iterator[None]:
    """Walks through this model halt before these layers."""

    def before(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        _this.walk.halt(name, args[0] if args else kwargs["input"])

    with ExitStack() as stack:
        for name, module in layers.items():
            stack.callback(module.register_forward_pre_hook(partial(before, name), with_kwargs=True).remove)
        yield


class Route:
    """In which order a forward pass reaches layers, which of them feed which directly, and how large their inputs are.

    Raises `UnsupportedError` for a layer that is called more than once."""

    def __init__(self, model: nn.Module, layers: Iterable[str], samples: Samples) -> None:
        self.order: list[str] = []
        self.fed: dict[str, str] = {}  # layer → the layer whose very output it gets
        self.bytes = 0  # of the largest input
        self._last: tuple[str, Any] = ("", None)
        with ExitStack() as stack, judging(model):
            for name in layers:
                module = model.get_submodule(name)
                stack.callback(module.register_forward_pre_hook(partial(self._enter, name), with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(partial(self._leave, name)).remove)
            run(model, each(next(samples.on(model)), lambda x: x[:1]))
        self._last = ("", None)
        for name in self.order:
            if self.order.count(name) > 1:
                raise UnsupportedError(f"{name} is called several times in one pass: it cannot be repaired; exclude it")

    def _enter(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        x = args[0] if args else kwargs["input"]
        self.order.append(name)
        self.bytes = max(self.bytes, x.numel() * x.element_size())
        if x is self._last[1]:
            self.fed[name] = self._last[0]

    def _leave(self, name: str, module: nn.Module, args: object, output: object) -> None:
        self._last = (name, output)


Meetings = Iterator[tuple[Tensor, Tensor]]  # inputs of one layer, batch by batch: the dense network's, the other's
Visit = Callable[[str, Meetings], None]


def together(
    dense: nn.Module, model: nn.Module, route: Route, samples: Samples, visit: Visit, memory: int = MEMORY
) -> None:
    """Call `visit(layer, meetings)` for every layer of a route, in its order.

    What a visit changes of the layer itself is seen by all that come after it. Where the activations of all samples fit
    in `memory` bytes (an estimate from one sample), both networks are run once, all batches at the same time; otherwise
    once again per layer, batch by batch. Raises `UnsupportedError` where the order is another on some of the data.
    """
    at_once = 2 * LIVE * route.bytes * samples.limit <= memory
    with ExitStack() as stack:
        for network in (dense, model):
            stack.enter_context(judging(network))
            stack.enter_context(_halting(network, {name: network.get_submodule(name) for name in route.order}))
        (_one_pass if at_once else _pass_each)((dense, model), route.order, samples, visit)


Networks = tuple[nn.Module, nn.Module]


def _one_pass(networks: Networks, order: list[str], samples: Samples, visit: Visit) -> None:
    pairs: list[list[Walk]] = []
    try:
        for x in samples.on(networks[1]):
            pairs.append([Walk(network, x) for network in networks])
        for name in order:
            for pair in pairs:
                _arrive(pair, name)
            visit(name, (_inputs(pair) for pair in pairs))
    finally:
        for pair in pairs:
            for walk in pair:
                walk.close()


def _pass_each(networks: Networks, order: list[str], samples: Samples, visit: Visit) -> None:
    def meetings(index: int) -> Meetings:
        for x in samples.on(networks[1]):
            pair = [Walk(network, x) for network in networks]
            try:
                for name in order[: index + 1]:
                    _arrive(pair, name)
                yield _inputs(pair)
            finally:
                for walk in pair:
                    walk.close()

    for index, name in enumerate(order):
        visit(name, meetings(index))


def _arrive(pair: list[Walk], name: str) -> None:
    for walk in pair:
        walk.advance()
        if walk.at != name:
            raise UnsupportedError(f"the forward pass reaches {walk.at or 'its end'} instead of {name} on some data")


def _inputs(pair: list[Walk]) -> tuple[Tensor, Tensor]:
    dense, model = (walk.x for walk in pair)
    assert dense is not None
    assert model is not None
    return dense, model
