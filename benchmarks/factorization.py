"""Low-rank factorization of trained networks: error and accuracy by method and by what is left of the MACs.

    python ../shared/data/unpack.py data cifar10 imagenet300 weights
    python benchmarks/factorization.py resnet56 --data data --images 2000 [--out factorization.json]
    python benchmarks/factorization.py squeezenet --data data
    python benchmarks/factorization.py resnet56 --latency        milliseconds of one cell on native and onnxruntime
    python benchmarks/factorization.py lstm                      milliseconds of an LSTM and of its factors
    python benchmarks/factorization.py resnet56 --table          what is measured so far, nothing else

Every cell is written to OUT as soon as it is measured, also by several processes, and a cell that is there is not
measured again. "fitted": last kernels fitted by least squares to 128 training images (SqueezeNet: 100 of the 300 images,
the other 200, of other classes, are for evaluation). "distilled": 40 updates of 64 images after that, by what the dense
network says alone and no labels. The error is ‖f̃(x) − f(x)‖² / ‖f(x)‖² of the logits.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
from cells import add, read
from networks import cifar, resnet, squeezenet, thirds
from torch import Tensor, nn

import abridged as ab
from abridged.graph.cost import cost
from abridged.timing import time_interleaved

RATIOS = (0.75, 0.5, 0.33)  # of the MACs
METHODS = ("svd", "channel", "spatial", "tucker", "tt", "cp")
ROWS = (
    *METHODS, *(f"{name}, fitted" for name in METHODS), "whitened", "whitened or spatial",
    "whitened, distilled", "spatial, distilled",
)  # fmt: skip
TARGETS = ("onnxruntime", "native")
UPDATES, BATCH = 40, 64

Cells = dict[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Case:
    """A trained network and its data; `rate`: at which it learns; `partner`: competes with methods that need kernels larger
    than 1."""

    model: nn.Module
    data: ab.Data
    example: Tensor
    samples: int
    rate: float
    partner: tuple[str, ...] = ()


def resnet56(options: argparse.Namespace) -> Case:
    data = cifar(options.data / "cifar10")
    inputs, labels = data.test
    data = dataclasses.replace(data, test=(inputs[: options.images], labels[: options.images]))
    return Case(resnet(56, options.data / "weights"), data, torch.zeros(1, 3, 32, 32), 128, 1e-4)


def squeeze(options: argparse.Namespace) -> Case:
    """Half of SqueezeNet's layers are 1 × 1: where a method has nothing to say about these, svd competes with it. Its inputs
    are pixels of up to 151, a hundred times what others see, and its rate a hundredth."""
    model, data = squeezenet(options.data / "weights"), thirds(options.data / "imagenet300")
    return Case(model, data, torch.zeros(1, 3, 224, 224), 100, 1e-6, ("svd",))


CASES: dict[str, Callable[[argparse.Namespace], Case]] = {"resnet56": resnet56, "squeezenet": squeeze}


def thin_of(case: Case, row: str, ratio: float) -> nn.Module:
    """The network of a row. Raises `InputError` where a ratio cannot be reached."""
    names, _, how = row.partition(", ")
    methods = tuple(names.split(" or "))
    if not {"svd", "whitened"} & set(methods):
        methods += case.partner
    seen = case.data if how or "whitened" in methods else None
    thin = ab.factorize(case.model, case.example, methods, ratio=ratio, of="macs", data=seen, samples=case.samples)
    if how == "distilled":
        inputs, labels = (part[: UPDATES * BATCH] for part in case.data.train)
        few = dataclasses.replace(case.data, train=(inputs, labels), val=(inputs[:BATCH], labels[:BATCH]))
        epochs = UPDATES // -(-len(inputs) // BATCH)
        ab.distill(
            thin, case.model, few, epochs=epochs, alpha=1.0, batch_size=BATCH, optimizer=partial(adamw, case.rate)
        )
    return thin.eval()


def adamw(rate: float, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=rate)


@torch.no_grad()
def judged(case: Case, thin: nn.Module, dense: Tensor) -> dict[str, Any]:
    """What a cell holds: accuracy, error of the logits, share of the parameters that is left."""
    logits = dense if thin is case.model else logits_of(case, thin)
    labels = torch.cat([y for _, y, *_ in case.data.batches("test", 200)])
    return {
        "accuracy": float((logits.argmax(1) == labels).double().mean()),
        "error": float((logits - dense).square().sum() / dense.square().sum()),
        "parameters": size(thin) / size(case.model),
    }


@torch.no_grad()
def logits_of(case: Case, model: nn.Module) -> Tensor:
    return torch.cat([model(x) for x, *_ in case.data.batches("test", 200)])


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def macs(model: nn.Module, example: Tensor) -> int:
    graph = ab.capture(model, example)
    return sum(cost(node, graph, {}).macs for node in graph)


def latency(case: Case, row: str, ratio: float, home: Path) -> dict[str, Any]:
    """Milliseconds of the dense network and of a row's on both targets, one thread, batch 1, interleaved.

    What was built stays in `home`, so that a second call on a quiet machine only measures."""
    thin, built = thin_of(case, row, ratio), {}
    for target, (kind, net) in product(TARGETS, (("dense", case.model), (f"{row} {ratio}", thin))):
        place = home / target / kind.replace(" ", "-").replace(",", "")
        if not place.exists():
            ab.deploy(net, case.example, target=target, out=place, threads=1).close()
        built[target, net is thin] = ab.load(place, threads=1)
    calls = {" ".join(map(str, key)): partial(artifact, case.example) for key, artifact in built.items()}
    times = time_interleaved(calls, seconds=1.0, repeat=5, pause=0.02)
    promised = macs(case.model, case.example) / macs(thin, case.example)
    found: dict[str, Any] = {"promised": promised}
    for target in TARGETS:
        dense, after = (times[f"{target} {thin}"].median for thin in (False, True))
        found[target] = {"dense": dense, "thin": after, "realised": dense / after / promised}
    return found


class Words(nn.Module):
    """An LSTM of 256 over 16 steps of 128 numbers; weights as they are drawn, since only times are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(128, 256, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:  # (N, 16, 128) → (N, 256)
        return self.rnn(x)[0][:, -1]


def lstm() -> Iterator[str]:
    """Milliseconds of one sample, dense and at two ranks, one thread, interleaved: PyTorch's modules and onnxruntime."""
    x = torch.randn(1, 16, 128)
    dense = Words().eval()
    nets = {"dense": dense} | {f"rank {rank}": ab.factorize(dense, x, rank=rank).eval() for rank in (64, 32)}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        calls: dict[str, Callable[[], Any]] = {f"PyTorch, {name}": partial(net, x) for name, net in nets.items()}
        for name, net in nets.items():
            artifact = ab.deploy(net, x, target="onnxruntime", out=Path(folder) / name, threads=1)
            calls[f"onnxruntime, {name}"] = partial(artifact, x)
        times = time_interleaved(calls, seconds=1.0, repeat=5, pause=0.02)
    for name, net in nets.items():
        yield f"{name}: {macs(net, x):,} MACs"
    for name, time in times.items():
        yield f"{name}: {time.median:.3f} ms"


def key(network: str, row: str, ratio: float | None = None) -> str:
    return f"{network}, {row}" + (f", {ratio:g}" if ratio else "")


def table(network: str, done: Cells) -> Iterator[str]:
    yield f"{network}: dense {told(done.get(key(network, 'dense')))}"
    yield ""
    yield "| method | " + " | ".join(f"{ratio:.0%} of the MACs" for ratio in RATIOS) + " |"
    yield "|---" * (1 + len(RATIOS)) + "|"
    for row in ROWS:
        yield f"| {row} | " + " | ".join(told(done.get(key(network, row, ratio))) for ratio in RATIOS) + " |"


def told(cell: dict[str, Any] | None) -> str:
    if cell is None or not {"accuracy", "refused"} & set(cell):
        return "not run"
    return cell.get("refused") or f"{cell['accuracy']:.2%} ({cell['error']:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=[*CASES, "lstm"])
    parser.add_argument("--data", type=Path, default=Path("data"), help="holds cifar10/, imagenet300/ and weights/")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--images", type=int, default=10_000, help="of CIFAR-10's test set, the first ones")
    parser.add_argument("--rows", nargs="+", default=ROWS, choices=ROWS, help="these alone")
    parser.add_argument("--ratios", nargs="+", type=float, default=RATIOS, choices=RATIOS, help="these alone")
    parser.add_argument("--cells", type=int, default=1000, help="measure at most so many that are missing")
    parser.add_argument("--latency", nargs=2, metavar=("ROW", "RATIO"), help="milliseconds of one cell, nothing else")
    parser.add_argument("--table", action="store_true", help="print what was measured, nothing else")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.network == "lstm":
        print("\n".join(lstm()))
        return
    if not options.table:
        case = CASES[options.network](options)
        jobs = fill(case, options) if options.latency is None else timed(case, options)
        for name, cell in islice(jobs, options.cells):
            add(options.out, name, cell)
            print(f"{name}: {cell}", flush=True)
    print("\n".join(table(options.network, read(options.out))))


def fill(case: Case, options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Measure what is missing: the name of each cell and what it holds."""
    dense, name = logits_of(case, case.model), key(options.network, "dense")
    if name not in read(options.out):
        yield name, judged(case, case.model, dense) | {"images": len(dense), "torch": torch.__version__}
    for ratio, row in product(options.ratios, options.rows):
        name = key(options.network, row, ratio)
        cell = read(options.out).get(name, {})
        if "accuracy" in cell or "refused" in cell:
            continue
        try:
            yield name, cell | judged(case, thin_of(case, row, ratio), dense)
        except ab.InputError as error:
            if "cannot be reached" not in str(error):
                raise
            yield name, {"refused": "out of reach"}


def timed(case: Case, options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    row, ratio = options.latency
    name = key(options.network, row, float(ratio))
    home = options.out.with_suffix("") / options.network
    yield name, read(options.out).get(name, {}) | {"latency": latency(case, row, float(ratio), home)}


if __name__ == "__main__":
    main()
