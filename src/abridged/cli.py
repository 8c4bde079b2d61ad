"""The command: demo · compress · deploy · measure · report · list. It mirrors the public door, and says one line per mistake."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from abridged import __version__
from abridged.errors import AbridgedError, InputError, nearest

if TYPE_CHECKING:
    from abridged.run import Compressed

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Neural networks, abridged: compress a PyTorch model, run it for real, and see theory beside practice.",
    epilog="Exit status: 0 done; 1 a budget or a check was not met; 2 bad input.",
)

Model = Annotated[str, typer.Argument(help="package.module:callable, torchvision:NAME or timm:NAME", metavar="MODEL")]
Weights = Annotated[Path | None, typer.Option(help="weights to load into MODEL: safetensors, or .pt without code")]
Target = Annotated[str | None, typer.Option(help="runtime of the artifact; `abridged list targets`")]
Out = Annotated[Path, typer.Option(help="directory for everything that is written")]
Seed = Annotated[int, typer.Option(help="two runs with the same seed agree")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="threads of the runtime; default: all cores; target c has one")
]
Force = Annotated[bool, typer.Option("--force", help="replace what an earlier run wrote to --out")]
Resume = Annotated[bool, typer.Option("--resume", help="continue an interrupted run in --out")]


@app.command()
def demo(
    out: Out = Path("abridged-demo"),
    seed: Seed = 0,
    target: Target = None,
    threads: Threads = None,
    resume: Resume = False,
    force: Force = False,
) -> None:
    """Train a small CNN on real handwritten digits, prune 90 % of it, deploy it, and report what came of it."""
    import torch

    from abridged.run import compress

    target = target or _demo_target()
    torch.set_num_threads(1)  # more gain nothing on 8×8 images, and with one every machine adds up in the same order
    with _resumable():
        done = compress(
            "abridged.demo:DigitsNet", "digits", recipe="demo", target=target, out=out,
            seed=seed, threads=threads, resume=resume, force=force,
        )  # fmt: skip
    _finish(done)


@app.command()
def compress(
    model: Model,
    data: Annotated[
        str, typer.Option(help="a built-in set (digits, mnist:DIR …) or package.module:callable → ab.Data")
    ],
    recipe: Annotated[str, typer.Option(help="a named recipe (`abridged list recipes`) or a YAML file")] = "default",
    target: Target = None,
    out: Out = Path("abridged-run"),
    weights: Weights = None,
    seed: Seed = 0,
    threads: Threads = None,
    latency_ratio: Annotated[
        float | None, typer.Option(help="budget: at most this fraction of the dense latency")
    ] = None,
    latency_ms: Annotated[float | None, typer.Option(help="budget: at most this many milliseconds")] = None,
    max_bytes: Annotated[
        int | None, typer.Option(help="budget: at most this many bytes for all files of the artifact")
    ] = None,
    accuracy_drop: Annotated[float | None, typer.Option(help="budget: lose at most this; 0.01 is one point")] = None,
    control: Annotated[
        bool | None,
        typer.Option("--control/--no-control", help="also train the dense model equally long, for a fair comparison"),
    ] = None,
    resume: Resume = False,
    force: Force = False,
) -> None:
    """Compress MODEL on DATA by a recipe, deploy it, measure it beside the original, and write a report."""
    from abridged.run import compress as run

    asked = {
        "latency_ratio": latency_ratio,
        "latency_ms": latency_ms,
        "bytes": max_bytes,
        "accuracy_drop": accuracy_drop,
    }
    budget = {key: value for key, value in asked.items() if value is not None}
    with _resumable():
        done = run(
            model, data, recipe=recipe, budget=budget or None, target=target, out=out, weights=weights, seed=seed,
            threads=threads, control=control, resume=resume, force=force,
        )  # fmt: skip
    _finish(done)


@app.command()
def deploy(
    model: Annotated[
        str, typer.Argument(help="package.module:callable, torchvision:NAME, timm:NAME or FILE.pt2", metavar="MODEL")
    ],
    out: Out,
    target: Annotated[str, typer.Option(help="runtime of the artifact; `abridged list targets`")] = "onnxruntime",
    weights: Weights = None,
    shape: Annotated[
        list[str] | None, typer.Option("--input", help="shape of each input, such as 1x3x224x224 or 1x128:int64")
    ] = None,
    data: Annotated[str | None, typer.Option(help="take the example input from this data instead")] = None,
    threads: Threads = None,
    cpu: Annotated[
        str | None,
        typer.Option(help="of targets native and c: native, x86-64-v3, aarch64, riscv64, cortex-m4, generic …"),
    ] = None,
    cc: Annotated[str | None, typer.Option(help="of targets native and c: the C compiler, such as 'zig cc'")] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="another option of the target, such as vector=0; repeat for several")
    ] = None,
    force: Force = False,
) -> None:
    """Build the artifact of MODEL for one target, run it there and compare it with PyTorch."""
    from abridged.delivery import deliver
    from abridged.report.terminal import deployed
    from abridged.sources import load_for_deploy

    module, example = load_for_deploy(model, weights, shape, data)
    options = {name: value for name, value in (("cpu", cpu), ("cc", cc)) if value is not None} | _options(option or ())
    artifact, deviation = deliver(module, example, target, out, threads=threads, force=force, **options)
    with artifact:
        typer.echo(deployed(artifact, deviation, out, model, weights))


@app.command()
def measure(
    artifact: Annotated[Path, typer.Argument(help="directory of an artifact", metavar="ARTIFACT")],
    against: Annotated[
        list[str] | None,
        typer.Option(help="another artifact, or a MODEL; repeat for several; a target's name: the first MODEL on it"),
    ] = None,
    data: Annotated[str | None, typer.Option(help="also measure accuracy on this data")] = None,
    weights: Annotated[Path | None, typer.Option(help="weights of the MODEL given with --against")] = None,
    threads: Threads = None,
    json: Annotated[Path | None, typer.Option(help="write the measurement to this file as well")] = None,
    taken: Annotated[
        Path | None,
        typer.Option(
            "--from", help="what `make bench` printed on a device: add it to the ledger, measure nothing here"
        ),
    ] = None,
) -> None:
    """Measure an artifact in its runtime, interleaved with what it is compared against."""
    if taken is not None:
        if against or data or weights or threads or json:
            raise InputError("--from only adds what a device measured; leave the other options away")
        _add(artifact, taken)
        return
    from abridged.delivery import load
    from abridged.files import write_atomic
    from abridged.measurement.measure import measure as run
    from abridged.sources import load_data, load_rival
    from abridged.targets import TARGETS

    def contender(name: str) -> Any:
        if name in TARGETS:
            return name
        return load(Path(name), threads=threads) if Path(name).is_dir() else load_rival(name, weights)

    with load(artifact, threads=threads) as loaded:
        book = run(loaded, against=[contender(name) for name in against or ()], data=load_data(data) if data else None)
    typer.echo(str(book))
    if json:
        write_atomic(json, book.to_json().encode())


def _demo_target() -> str | None:
    """The recipe's own, compiled; without a C compiler another, and that is said."""
    from abridged.compiler.build import find_compiler

    try:
        find_compiler()
    except InputError as error:
        typer.echo(f"abridged: {error}. Until then the demo runs on onnxruntime, which multiplies the zeros.", err=True)
        return "onnxruntime"
    return None


def _add(directory: Path, taken: Path) -> None:
    """A device's lines go to the ledger beside the artifact, and into the report."""
    from abridged import devices
    from abridged.ledger import Ledger
    from abridged.report import write

    found = devices.read(taken)
    place = devices.add(directory, found)
    for device in found:
        typer.echo(devices.describe(device))
    if place is None:
        typer.echo(f"{directory}: belongs to no run, so there is no ledger that this could be added to", err=True)
    else:
        typer.echo(f"Added to {place / 'ledger.json'}; report: {write(Ledger.load(place / 'ledger.json'), place)}")


@app.command()
def report(directory: Annotated[Path, typer.Argument(help="directory of a run", metavar="DIR")]) -> None:
    """Write the report of a run again, from its ledger."""
    from abridged.ledger import Ledger
    from abridged.report import write

    path = directory / "ledger.json"
    if not path.exists():
        raise InputError(f"{directory}: no ledger.json here; give the --out directory of a finished run")
    typer.echo(write(Ledger.load(path), directory))


@app.command(name="list")
def list_(
    table: Annotated[
        str | None, typer.Argument(help="name of a table; without it, all tables", metavar="TABLE")
    ] = None,
) -> None:
    """List the entries of a table: what can stand in a recipe."""
    from abridged.catalogue import TABLES, entries

    if table is None:
        for name in TABLES:
            typer.echo(f"{name:15}{', '.join(key for key, _ in entries(name))}")
        return
    if table not in TABLES:
        raise InputError(f"unknown table '{table}'{nearest(table, TABLES)}")
    rows = entries(table)
    width = max((len(name) for name, _ in rows), default=0) + 2
    for name, line in rows:
        typer.echo(f"{name:{width}}{line}")


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="print the version and exit", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"abridged {__version__}")
        raise typer.Exit


def _options(given: Iterable[str]) -> dict[str, Any]:
    """Options by name of "name=value" each; a value is read as in a recipe. Raises `InputError`."""
    import yaml

    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise InputError(f"--option '{text}': expected NAME=VALUE, such as vector=0")
        found[name] = yaml.safe_load(value)
    return found


@contextmanager
def _resumable() -> Iterator[None]:
    """Ctrl-C says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("abridged: interrupted; continue with the same command and --resume", err=True)
        raise typer.Exit(130) from None


def _finish(done: Compressed) -> None:
    """The summary at a glance, the path of the report, and status 1 when a check was not met."""
    from rich.console import Console

    from abridged.report import summary

    done.artifact.close()
    Console().print(summary(done.ledger))
    typer.echo(f"Report: {done.report}")
    if not done.met:
        raise typer.Exit(1)


def main() -> None:
    """Run the command: an error of ours is one line on stderr and its own exit status, never a stack trace."""
    try:
        app()
    except KeyboardInterrupt:
        typer.echo("abridged: interrupted", err=True)
        sys.exit(130)
    except AbridgedError as error:
        typer.echo(f"abridged: {error}", err=True)
        sys.exit(error.exit_status)
