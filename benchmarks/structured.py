"""Structured pruning: how many networks shrink, and what is left of a trained one.

    python benchmarks/structured.py coverage [torchvision|inexact|timm|huggingface …] [--names resnet18,vgg11]
    python benchmarks/structured.py cifar DIR [--depths 20,56]
    python benchmarks/structured.py speed DIR [--depths 20,56] [--ways "L2, uniform"]
    python benchmarks/structured.py table

`coverage`: ratio 0.5, one call, no hints, random weights: all networks of ../shared/networks.txt, those of them whose stream a
norm reads with `exact=False`, twenty of timm, six classes of Hugging Face. `cifar`: ResNet-20 and ResNet-56 at 0.7, 0.5 and
0.35 of the MACs; DIR is what `python ../shared/data/unpack.py DIR cifar10 weights` wrote. Where torch_pruning can be imported
(its own environment is best), `cifar` measures its ways and not ours: the same checkpoint, data and MACs.

Resumable: each cell is written to structured.json the moment it is done, and one that is there is not measured again. The
tables mark cells that have not been run.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from cells import add, read
from networks import cifar as cifar_data
from networks import resnet
from one_shot import timed
from torch import Tensor, nn

import abridged as ab
from abridged.graph.cost import cost
from abridged.graph.structure import flatten
from abridged.pruning.coupling.groups import couple
from abridged.pruning.narrowed import narrowed
from abridged.pruning.shrink import Constants
from abridged.pruning.trials import answer, close
from abridged.sources import import_torchvision

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).with_suffix(".json")
sys.path.insert(0, str(ROOT / "tests"))


def size(model: nn.Module, x: Any) -> dict[str, int]:
    """Parameters, MACs, and those of the convolutions alone."""
    graph = ab.capture(model, x)
    macs = [(node.op, cost(node, graph, {}).macs) for node in graph]
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "macs": sum(count for _, count in macs),
        "conv_macs": sum(count for op, count in macs if op == "conv"),
    }


def shares(small: dict[str, int], whole: dict[str, int]) -> dict[str, float | None]:
    return {what: small[what] / count if count else None for what, count in whole.items()}


# ---- coverage --------------------------------------------------------------------------------------------------------

STREAMS = ("convnext", "maxvit", "swin", "vit")
TIMM = [
    *("cspdarknet53", "deit_tiny_patch16_224", "dla34", "dpn68", "ese_vovnet19b_dw", "fastvit_t8", "ghostnet_100"),
    *("hrnet_w18_small", "inception_v4", "mixer_s32_224", "mobilenetv4_conv_small", "mobilevit_xxs", "poolformer_s12"),
    *("repvgg_a0", "res2net50_26w_4s", "resnest14d", "rexnet_100", "selecsls42b", "skresnet18", "xception41"),
]
CLASSES = ["BERT", "DistilBERT", "GPT-2", "Llama", "ViT", "Whisper"]


@dataclass(frozen=True)
class Family:
    """Networks of one table: their names, how one is made with an input of it, and whether outputs have to stay equal."""

    names: list[str]
    make: Callable[[str], tuple[nn.Module, tuple[Tensor, ...]]]
    exact: bool = True


def listed(*starts: str) -> list[str]:
    path = ROOT.parent / "shared" / "networks.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return [
        line.strip() for line in lines if line.strip() and not line.startswith("#") and line.startswith(starts or "")
    ]


def of_torchvision(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    from models import network, own_size

    return network(import_torchvision(), name), (torch.randn(1, 3, own_size(name), own_size(name)),)


def of_timm(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    import_torchvision()
    import timm
    from models import randomize

    model = randomize(timm.create_model(name, pretrained=False)).eval()
    return model, (torch.randn(1, *model.pretrained_cfg["input_size"]),)


def of_huggingface(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    import_torchvision()  # before transformers does
    import transformers as t
    from models import randomize

    words, small = torch.randint(0, 100, (1, 12)), {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    image = {"image_size": 32, "patch_size": 8, "intermediate_size": 128}
    sound = {
        "d_model": 64,
        "num_mel_bins": 16,
        "max_source_positions": 20,
        "pad_token_id": 0,
        "decoder_start_token_id": 1,
    }
    layers = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in
              (("layers", 2), ("attention_heads", 4), ("ffn_dim", 128))}  # fmt: skip
    kinds: dict[str, Callable[[], tuple[Any, tuple[Any, ...]]]] = {
        "BERT": lambda: (t.BertModel(t.BertConfig(vocab_size=100, intermediate_size=128, **small)), (words,)),
        "DistilBERT": lambda: (
            t.DistilBertModel(t.DistilBertConfig(vocab_size=100, dim=64, n_layers=2, n_heads=4, hidden_dim=128)),
            (words,),
        ),
        "GPT-2": lambda: (t.GPT2Model(t.GPT2Config(vocab_size=100, n_embd=64, n_layer=2, n_head=4)), (words,)),
        "Llama": lambda: (t.LlamaModel(t.LlamaConfig(vocab_size=100, intermediate_size=128, **small)), (words,)),
        "ViT": lambda: (t.ViTModel(t.ViTConfig(**small, **image)), (torch.randn(1, 3, 32, 32),)),
        "Whisper": lambda: (
            t.WhisperModel(t.WhisperConfig(vocab_size=100, **sound, **layers)),
            (torch.randn(1, 16, 40), None, words),
        ),
    }
    model, x = kinds[name]()
    model.config.use_cache = False
    return randomize(model).eval(), x


FAMILIES = {
    "torchvision": Family(listed(), of_torchvision),
    "inexact": Family(listed(*STREAMS), of_torchvision, exact=False),
    "timm": Family(TIMM, of_timm),
    "huggingface": Family(CLASSES, of_huggingface),
}


def covered(family: Family, name: str) -> dict[str, Any]:
    """Shares of parameters and convolutional MACs that are left, processor seconds, and whether outputs are what they have to be."""
    model, x = family.make(name)
    whole = size(model, x)
    start = time.process_time()
    ab.prune(model, 0.5, pattern="channel", example=x, exact=family.exact)
    middle = time.process_time()
    small = ab.shrink(model, x, exact=family.exact, say=lambda line: None)
    end = time.process_time()
    return {
        **shares(size(small, x), whole),
        "of": whole["parameters"],
        "prune_seconds": middle - start,
        "shrink_seconds": end - middle,
        "right": right(model, small, x, family.exact),
    }


def right(masked: nn.Module, small: nn.Module, x: tuple[Any, ...], exact: bool) -> bool:
    """The small network's answer in float64 is that of the masked one, or (not exact) of its Graph with narrower norms."""
    answers = answer(copy.deepcopy(small).double().eval(), x)
    if exact:
        wanted = answer(copy.deepcopy(masked).double().eval(), x)
    else:
        coupling = couple(ab.capture(masked, x), exact=False)
        wanted = narrowed(coupling, flatten(x)[0], Constants(coupling).gone())
    return len(answers) == len(wanted) and all(map(close, answers, wanted))


def coverage(options: argparse.Namespace) -> None:
    for kind in options.families or FAMILIES:
        for name in options.names or FAMILIES[kind].names:
            key = f"coverage {kind} {name}"
            if "error" not in read(options.results).get(key, {"error": "not run"}):
                continue
            torch.manual_seed(0)
            try:
                found = covered(FAMILIES[kind], name)
            except Exception as error:  # a network that fails is a result
                found = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
            add(options.results, key, found)
            print(key, json.dumps(found), flush=True)


# ---- CIFAR-10 --------------------------------------------------------------------------------------------------------

SHARES = (0.7, 0.5, 0.35)  # of the MACs
SAMPLES = 1024  # training images that criteria, solvers and statistics look at

Way = Callable[
    [nn.Module, float, ab.Data, Tensor], nn.Module
]  # (dense model, share of the MACs, data, example) → small


def ours(criterion: str, allocation: str = "uniform", **options: Any) -> Way:
    def make(model: nn.Module, share: float, data: ab.Data, x: Tensor) -> nn.Module:
        ab.prune(
            model, macs=share, pattern="channel", criterion=criterion, allocation=allocation, data=data, example=x,
            samples=SAMPLES, **options,
        )  # fmt: skip
        return ab.shrink(model, x, say=lambda line: None)

    return make


def theirs(importance: str, everywhere: bool) -> Way:
    """Torch-Pruning as its documentation shows it, the output layer left; its ratio is found by bisection."""

    def make(model: nn.Module, share: float, data: ab.Data, x: Tensor) -> nn.Module:
        import torch_pruning as tp

        def pruned(ratio: float) -> nn.Module:
            small = copy.deepcopy(model)
            tp.pruner.BasePruner(
                small,
                x,
                getattr(tp.importance, importance)(),
                global_pruning=everywhere,
                pruning_ratio=ratio,
                ignored_layers=[small.linear],
            ).step()
            return small

        low, high, whole = 0.0, 0.95, size(model, x)["macs"]
        for _ in range(7):
            middle = (low + high) / 2
            low, high = (low, middle) if size(pruned(middle), x)["macs"] <= share * whole else (middle, high)
        return pruned(high)

    return make


REPAIRED = {"solver": "least-squares", "reestimate": True}
PLAIN = (("L2", "l2", "uniform"), ("L2", "l2", "global"), ("Taylor", "taylor", "global"), ("FPGM", "fpgm", "global"))
OURS: dict[str, Way] = {
    **{f"{name}, {allocation}": ours(criterion, allocation) for name, criterion, allocation in PLAIN},
    **{
        f"{name}, {allocation}, least squares + BN": ours(criterion, allocation, **REPAIRED)
        for name, criterion, allocation in PLAIN
    },
}
THEIRS: dict[str, Way] = {
    "Torch-Pruning, magnitude, uniform": theirs("GroupMagnitudeImportance", False),
    "Torch-Pruning, magnitude, global": theirs("GroupMagnitudeImportance", True),
}


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.01, momentum=0.9, weight_decay=1e-4, nesterov=True)


def falling(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


def accuracy(model: nn.Module, data: ab.Data) -> float:
    """In % of the 10,000 test images."""
    again = copy.deepcopy(model).to(memory_format=torch.channels_last)  # convolutions on a CPU are faster so
    return 100 * ab.evaluate(again, data, "test", 250).value


def cifar(options: argparse.Namespace) -> None:
    """Every way at every share: accuracy at once, with batch norms re-estimated, and (with `--epoch`) after an epoch."""
    data, x = cifar_data(options.directory / "cifar10"), torch.randn(1, 3, 32, 32)
    ways = THEIRS if importlib.util.find_spec("torch_pruning") else OURS
    for depth in options.depths:
        model = resnet(depth, options.directory / "weights")
        once(options, f"cifar {depth} dense", dense, model, x, data)
        for share in options.shares:
            for way in options.ways or ways:
                key = f"cifar {depth} {share} {way}"
                if key in read(options.results) and not options.epoch:
                    continue
                small = ways[way](copy.deepcopy(model), share, data, x)
                once(options, key, found, small, model, x, data, way.endswith("BN"))
                if options.epoch:
                    once(options, f"{key}, one epoch", trained, small, data)


def once(options: argparse.Namespace, key: str, measure: Callable[..., dict[str, Any]], *inputs: Any) -> None:
    """Measure a cell that is not there yet."""
    if key not in read(options.results):
        add(options.results, key, result := measure(*inputs))
        print(key, json.dumps(result), flush=True)


def dense(model: nn.Module, x: Tensor, data: ab.Data) -> dict[str, Any]:
    return {**size(model, x), "accuracy": accuracy(model, data)}


def found(small: nn.Module, model: nn.Module, x: Tensor, data: ab.Data, done: bool) -> dict[str, Any]:
    """`done`: the batch norms are re-estimated already."""
    now, again = accuracy(small, data), copy.deepcopy(small)
    count = {**shares(size(small, x), size(model, x)), "accuracy": now}
    if done:
        return {**count, "reestimated": now}
    ab.reestimate(again, data, samples=SAMPLES)
    return {**count, "reestimated": accuracy(again, data)}


def trained(small: nn.Module, data: ab.Data) -> dict[str, Any]:
    """The accuracy after one epoch over 45,000 images: SGD, learning rate 0.01 falling by a cosine, batches of 128, seed 0."""
    again = copy.deepcopy(small)
    ab.fit(again, data, epochs=1, optimizer=sgd, scheduler=falling, batch_size=128, seed=0)
    return {"accuracy": accuracy(again, data)}


def speed(options: argparse.Namespace) -> None:
    """Milliseconds of a way's network, compiled for one thread, beside the dense one's, one image; and how much of the promise that is."""
    data, x = cifar_data(options.directory / "cifar10"), torch.randn(1, 3, 32, 32)
    ways = THEIRS if importlib.util.find_spec("torch_pruning") else OURS
    for depth in options.depths:
        model = resnet(depth, options.directory / "weights")
        for share in options.shares:
            for way in options.ways or ways:
                key = f"cifar {depth} {share} {way}, speed"
                if key not in read(options.results):
                    once(options, key, timed, ways[way](copy.deepcopy(model), share, data, x), model)


# ---- tables ----------------------------------------------------------------------------------------------------------


def table(options: argparse.Namespace) -> None:
    cells = read(options.results)
    for kind, family in FAMILIES.items():
        print(
            f"\n{kind}\n\n| network | million parameters | parameters left | conv MACs left | MACs left | prune s | shrink s | outputs |"
        )
        print("|---" * 8 + "|")
        for name in family.names:
            print(f"| {name} | {coverage_row(cells.get(f'coverage {kind} {name}'))} |")
    for depth in (20, 56):
        whole = cells.get(f"cifar {depth} dense")
        print(f"\nResNet-{depth}" + (f": {whole['accuracy']:.2f} %, {whole['macs'] / 1e6:.1f} M MACs" if whole else ""))
        print(
            "\n| way | MACs | parameters | accuracy | batch norm re-estimated | after one epoch | ms (dense) | realised |\n"
            + "|---" * 8
            + "|"
        )
        for share in SHARES:
            for way in (*OURS, *THEIRS):
                print(f"| {way} | {cifar_row(cells, f'cifar {depth} {share} {way}')} |")


def coverage_row(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return " | ".join(["not run"] * 7)
    if "error" in cell:
        return f"{cell['error']}" + " |" * 6
    left = ("–" if cell[what] is None else f"{cell[what]:.3f}" for what in ("parameters", "conv_macs", "macs"))
    seconds = (f"{cell[what]:.1f}" for what in ("prune_seconds", "shrink_seconds"))
    return " | ".join([f"{cell['of'] / 1e6:.1f}", *left, *seconds, "right" if cell["right"] else "WRONG"])


def cifar_row(cells: dict[str, Any], key: str) -> str:
    cell, after, fast = cells.get(key), cells.get(f"{key}, one epoch"), cells.get(f"{key}, speed")
    numbers = [f"{cell[what]:.3f}" for what in ("macs", "parameters")] if cell else ["not run"] * 2
    numbers += [f"{cell[what]:.2f}" for what in ("accuracy", "reestimated")] if cell else ["not run"] * 2
    numbers.append(f"{after['accuracy']:.2f}" if after else "not run")
    numbers += [f"{fast['ms']:.2f} ({fast['dense_ms']:.2f})", f"{fast['realised']:.0%}"] if fast else ["not run"] * 2
    return " | ".join(numbers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("coverage")
    command.add_argument("families", nargs="*", metavar="family", help=", ".join(FAMILIES))
    command.add_argument("--names", type=lambda text: text.split(","))
    command.set_defaults(run=coverage)
    for name, run in (("cifar", cifar), ("speed", speed)):
        command = commands.add_parser(name)
        command.add_argument("directory", type=Path)
        command.add_argument("--depths", type=lambda text: [int(part) for part in text.split(",")], default=[20, 56])
        command.add_argument("--shares", type=lambda text: [float(part) for part in text.split(",")], default=SHARES)
        command.set_defaults(run=run)
        command.add_argument("--ways", type=lambda text: text.split(";"), help=f"of {', '.join(OURS)}")
        if name == "cifar":
            command.add_argument("--epoch", action="store_true", help="one epoch of training, too")
    commands.add_parser("table").set_defaults(run=table)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.run(options)


if __name__ == "__main__":
    main()
