"""Sparsities that an agent found against uniform ones at equal MACs: CIFAR-10 ResNet-20, no fine-tuning.

    python ../shared/data/unpack.py data cifar10 weights
    python benchmarks/agent.py run data [--cells …]    each cell is written to agent.json when it is done, and not run again
    python benchmarks/agent.py table                   the table in Markdown; cells not run say so

The search sees 128 images of the validation split (part of the network's training set) and lowers the loss there for single
weights, where few of them are answered wrongly, else the share of wrong answers; accuracy is of all 10,000 test images. A cell is named PATTERN BUDGET AGENT SEED, such as "channel 0.5 ddpg 0", or "latency 0.8 ddpg 0" for a budget of that
share of the dense milliseconds on target native; --cells takes parts of names.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from cells import add, read
from networks import cifar, resnet

import abridged as ab
from abridged.graph.graph import Graph

SEEDS = (0, 1, 2)
BUDGETS = {"channel": (0.7, 0.5), "unstructured": (0.5, 0.3)}
OTHERS = (("unstructured", 0.3, "td3", 0), ("unstructured", 0.3, "sac", 0), ("latency", 0.8, "ddpg", 0))
CELLS = [(p, b, "ddpg", s) for s in SEEDS for p, budgets in BUDGETS.items() for b in budgets] + list(OTHERS)


def seconds(graph: Graph) -> float:
    """Seconds of a graph on target native, one thread."""
    import tempfile

    from abridged.targets import build

    with tempfile.TemporaryDirectory() as home, build(graph, "native", out=Path(home) / "net", threads=1) as built:
        return built.latency(0.2).median / 1e3


def run(home: Path, out: Path, asked: list[str], episodes: int, samples: int) -> None:
    data = cifar(home / "cifar10")
    example = data.example_input()
    for cell in CELLS:
        name = " ".join(map(str, cell))
        if name in read(out) or not any(part in name for part in asked):
            continue
        pattern, budget, agent, seed = cell
        pruning = "channel" if pattern == "latency" else pattern
        model = resnet(20, home / "weights")
        options: dict[str, Any] = {"macs": budget}
        if pattern == "latency":
            dense = seconds(ab.capture(model, example))
            options = {"seconds": budget * dense, "cost": seconds}
        start = time.process_time()
        found = ab.search_sparsities(
            model, data, **options, agent=agent, pattern=pruning, episodes=episodes, samples=samples, seed=seed,
            error="loss" if pruning == "unstructured" else "metric",
        )  # fmt: skip
        result: dict[str, Any] = {
            "episodes": episodes,
            "samples": samples,
            "processor_seconds": time.process_time() - start,
            "sparsities": dict(found.sparsities),
        }
        for which, episode in (("uniform", found.uniform), ("found", found.best)):
            model = resnet(20, home / "weights")
            allocation = dict(zip(found.sparsities, episode.sparsities, strict=True))
            ab.prune(model, allocation=allocation, pattern=pruning, example=example if pruning == "channel" else None)
            small = ab.shrink(model, example) if pruning == "channel" else model
            score = ab.evaluate(small.to(memory_format=torch.channels_last), data, "test", batch_size=250)
            result[which] = {
                "test": score.value,
                "search": episode.value,
                "macs": episode.macs,
                "seconds": episode.seconds,
            }
        result["rewards"] = [round(episode.reward, 4) for episode in found.history]
        if pattern == "latency":
            result["dense_seconds"] = dense
        add(out, name, result)
        print(
            f"{name}: uniform {100 * result['uniform']['test']:.2f} %, found {100 * result['found']['test']:.2f} %",
            flush=True,
        )


def table(out: Path) -> str:
    """One row per pattern, budget and agent: mean ± deviation over the seeds that were run."""
    cells = read(out)
    rows = ["| pattern, budget | agent | seeds | uniform | found | better by |", "|---|---|---|---|---|---|"]
    for pattern, budget, agent in dict.fromkeys((p, b, a) for p, b, a, _ in CELLS):
        names = [" ".join(map(str, c)) for c in CELLS if c[:3] == (pattern, budget, agent)]
        done = [cells[name] for name in names if name in cells]
        what = "of the dense latency" if pattern == "latency" else "of MACs"
        cols = ["not run"] * 3
        if done:
            pairs = [(100 * c["uniform"]["test"], 100 * c["found"]["test"]) for c in done]
            cols = [told(column) for column in (*zip(*pairs, strict=True), [b - a for a, b in pairs])]
        head = f"{'channel' if pattern == 'latency' else pattern}, {100 * budget:.0f} % {what}"
        rows.append(f"| {head} | {agent} | {len(done)} of {len(names)} | {' | '.join(cols)} |")
    return "\n".join(rows)


def told(values: Any) -> str:
    values = list(values)
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 and stdev(values) else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("home", type=Path)
    running.add_argument("--cells", nargs="+", default=[""])
    running.add_argument("--episodes", type=int, default=100)
    running.add_argument("--samples", type=int, default=128)
    for command in (running, commands.add_parser("table")):
        command.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if options.command == "run":
        run(options.home, options.out, options.cells, options.episodes, options.samples)
    print(table(options.out))


if __name__ == "__main__":
    main()
