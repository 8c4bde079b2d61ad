"""Recipe → steps → ledger. Every step ends in a directory that is whole or absent, so a killed run continues where it was.

OUT/run.json              what was asked; --resume continues only the same
OUT/steps/NN-kind/        model.safetensors, masks.safetensors (if any), row.json: written as one
OUT/work/                 training checkpoints and the artifacts that are only measured; gone at the end
OUT/artifact/             the compressed network for its target
OUT/model.safetensors     its weights, packed, for ab.load_into
OUT/recipe.yaml  ledger.json  report.html  report.md
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from abridged import recipe as recipes
from abridged import report, sources
from abridged.data import Data, check, content
from abridged.data.data import copied
from abridged.delivery import deliver
from abridged.distillation.arrange import arranged
from abridged.distillation.terms import terms
from abridged.errors import NOTHING, PATH, GateError, InputError, expect, nearest
from abridged.factorization.decomposition import AWARE
from abridged.factorization.factorize import factorize, smallest
from abridged.files import directory_atomic, write_atomic
from abridged.graph.capture import capture
from abridged.ledger import Check, Ledger, Row
from abridged.measurement.accuracy import accuracy
from abridged.measurement.environment import environment
from abridged.measurement.practice import positional, practice
from abridged.measurement.records import Deviation, Practice, Theory
from abridged.measurement.theory import theory
from abridged.progress import bar
from abridged.pruning.masks import Masks
from abridged.pruning.shrink import shrink
from abridged.recipe import Budget, Factorize, Prune, Recipe, Shrink, Step, Teaching, Training
from abridged.rundir import fingerprint, prepare
from abridged.steps import REBUILDERS, RUNNERS, Outcome, Work, clock, join, train, zeroed
from abridged.targets import TARGETS
from abridged.targets.artifact import Artifact
from abridged.training.surroundings import own_randomness
from abridged.weights import load_into, read, save

REHEARSED = 16  # samples on which a step is rehearsed


@dataclass(frozen=True)
class Compressed:
    """What `compress` gives back: the network, its artifact, and both books."""

    model: nn.Module
    artifact: Artifact
    ledger: Ledger
    out: Path

    @property
    def met(self) -> bool:
        """Whether every line of the budget was met."""
        return all(check.met for check in self.ledger.checks)

    @property
    def report(self) -> Path:
        return self.out / "report.html"


@dataclass(frozen=True)
class Plan:
    """Everything a run needs to know; it does not change while the run goes on."""

    recipe: Recipe
    model: str
    data: Data
    example: tuple[torch.Tensor, ...]
    seed: int
    out: Path

    @property
    def target(self) -> str:
        return self.recipe.deploy.target


def compress(
    model: nn.Module | str,
    data: Data | str,
    recipe: str | Path | Recipe | Mapping[str, Any] | list[Any] | None = None,
    budget: Budget | Mapping[str, Any] | None = None,
    target: str | None = None,
    out: str | Path = "abridged-run",
    *,
    weights: str | Path | None = None,
    seed: int = 0,
    threads: int | None = None,
    control: bool | None = None,
    resume: bool = False,
    force: bool = False,
) -> Compressed:
    """Compress a model by a recipe, deploy it, measure it beside the original, and write the report.

    `model`: a Module (left as it is) or what the command takes; `data`: an `ab.Data` or what the command takes. `recipe`:
    a name, a YAML file, a list of steps or a Recipe; "default" prunes 90 % gradually with the original as teacher, then
    distils. `budget`: what the result must keep; a missed line is in the ledger and makes `met` False. `out`: a new or empty
    directory, unless `resume` (continue the same run) or `force` (replace an earlier one). Two runs with one `seed` agree.

    Raises `InputError` for input that cannot be used, before anything is written, and `GateError` when the artifact
    does not compute what the model does."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            "compress runs in one process; under torchrun or accelerate use ab.prune, ab.fit and ab.distill"
        )
    expect(out, PATH, "out must be a directory")
    expect(weights, (*PATH, NOTHING), "weights must be a file")
    if not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise InputError(f"seed must be a whole number from 0 to 2^63 - 1, not {seed!r}")
    chosen = recipes.load(recipe).replaced(budget=budget, target=target, threads=threads, control=control)
    torch.manual_seed(seed)
    module = sources.load_model(model, weights, seed) if isinstance(model, str) else copied(model)
    if weights is not None and not isinstance(model, str):
        load_into(module, weights)
    held = sources.load_data(data) if isinstance(data, str) else data
    check(held, module)
    plan = Plan(
        recipe=chosen,
        model=model if isinstance(model, str) else type(model).__name__,
        data=held,
        example=positional(held.example_input()),
        seed=seed,
        out=Path(out),
    )
    _rehearse(plan, module)
    capture(module, plan.example)  # a model that cannot be exported is refused before anything is written
    with own_randomness(torch.device("cpu")):
        contents = content.fingerprint(held, ("train", "val", "test"))
    asked = {
        "model": plan.model,
        "data": contents,
        "recipe": chosen.plain(),
        "seed": seed,
        "weights": fingerprint(module),
    }
    prepare(plan.out, asked, resume=resume, force=force)
    return _run(plan, module)


def _rehearse(plan: Plan, module: nn.Module) -> None:
    """Find now, on a copy, what would be refused after hours of training."""
    rehearsed, guessed, steps = module, False, plan.recipe.compression
    for at, step in enumerate(steps):
        try:
            if isinstance(step, Prune):
                rehearsed = _zeroed(rehearsed, plan.data, step)
            if isinstance(step, Shrink):
                rehearsed = shrink(rehearsed, plan.example, exact=step.exact, say=lambda line: None)
            if isinstance(step, Factorize):
                rehearsed = _thinned(rehearsed, plan.example, step, any(map(_looks_at_layers, steps[at + 1 :])))
            if isinstance(step, Teaching):
                _taught(rehearsed, module, plan.data, step)
        except InputError as error:
            if guessed:  # layers may turn out otherwise
                raise InputError(f"{error} (in a rehearsal, whose factors were chosen without data)") from None
            raise
        if isinstance(step, Factorize):
            guessed |= step.calibrate or step.measured or step.of == "seconds" or bool(set(AWARE) & set(step.methods))
        if isinstance(step, Training) and step.precision == "fp16" and not torch.cuda.is_available():
            raise InputError(f"{step.kind}: precision fp16 needs a GPU: use bf16 or fp32 on a CPU")
    for step in steps if plan.recipe.control else ():
        try:
            if isinstance(step, Teaching):
                _taught(module, module, plan.data, step)
        except InputError as error:
            raise InputError(
                f"control: the dense network is trained by the same steps: {error}; or control: false"
            ) from None
    options = TARGETS[plan.target]().options
    for name in plan.recipe.deploy.options.keys() - options.keys():
        raise InputError(f"deploy: target '{plan.target}' has no option '{name}'{nearest(name, options)}")


def _looks_at_layers(step: Step) -> bool:
    """Whether a step is told or counts layers."""
    return isinstance(step, Prune | Factorize) or (isinstance(step, Teaching) and bool(step.layers))


def _taught(student: nn.Module, teacher: nn.Module, data: Data, step: Teaching) -> None:
    """What a step that trains by a teacher would refuse."""
    if step.teacher == "dense" and step.epochs:
        arranged(
            copy.deepcopy(student), teacher, data, terms(step.loss, step.layers),
            alpha=step.alpha, temperature=step.temperature,
        )  # fmt: skip


def _zeroed(model: nn.Module, data: Data, step: Prune) -> nn.Module:
    """The model for the next step, pruned quickly: few samples, a solver that solves nothing, no measured sensitivity."""
    quick: dict[str, Any] = {} if step.solver == "none" else {"solver": "mean"}
    quick |= {"allocation": "global"} if step.allocation == "sensitivity" else {}
    pruned = copy.deepcopy(model)
    zeroed(pruned, data, step.model_copy(update=quick), samples=REHEARSED)
    return pruned if step.structured else model  # shrink needs the zeros, and nothing else does


def _thinned(model: nn.Module, example: Any, step: Factorize, closely: bool) -> nn.Module:
    """The model for the next step, factorized quickly: without data and time, and unless a later step looks at it `closely`
    at the smallest ranks."""
    chosen: dict[str, Any] = {"include": step.include, "exclude": step.exclude}
    forms = tuple(dict.fromkeys("svd" if name in AWARE else name for name in step.methods))  # of the same shapes
    if step.rank is not None and step.rank != "evbmf":
        return factorize(model, example, forms, rank=step.rank, **chosen, say=None)
    small = smallest(model, example, forms, ratio=step.ratio, of=step.of, **chosen)
    if not closely:
        return small
    amount: dict[str, Any] = {"rank": step.rank, "energy": step.energy, "ratio": step.ratio}
    of = "macs" if step.of == "seconds" else step.of
    try:
        return factorize(model, example, forms, **amount, of=of, **chosen, say=None)
    except InputError:  # the data, or what takes time, may give what the weights alone do not
        return small


def _run(plan: Plan, module: nn.Module) -> Compressed:
    started_from = copy.deepcopy(module)
    stages = _stages(plan)
    models: dict[str, nn.Module] = {}
    rows: list[Row] = []
    deploy = plan.recipe.deploy
    cost = clock(deploy.target, deploy.threads, deploy.options)
    work = Work(module, started_from, plan.data, plan.seed, cost=cost)
    with bar(f"Compress {plan.model}", total=len(stages) + 1) as task:
        for name, kind, title, options, act in stages:
            if kind == "control":  # starts again from the dense model
                work = Work(copy.deepcopy(work.teacher), work.teacher, plan.data, plan.seed)
            rows.append(_stage(plan, name, kind, title, options, work, act))
            models[name] = copy.deepcopy(work.model)
            if kind == "dense":
                work.teacher = models[name]
            task.advance()
        ledger, artifact = _deliver(plan, rows, models)
        task.advance()
    return _finish(plan, models[_delivered(rows).name], ledger, artifact)


Act = Callable[[Work, Path], Outcome]
Stage = tuple[str, Any, str, dict[str, Any], Act]  # name, kind, title, options, what to do


def _stages(plan: Plan) -> list[Stage]:
    """The dense model (trained first, where the recipe says so), the steps, and the control."""

    def act(step: Step) -> Act:
        return lambda work, checkpoint: RUNNERS[step.kind](work, step, checkpoint)

    first = plan.recipe.train
    dense = act(first) if first else lambda work, checkpoint: Outcome()
    stages: list[Stage] = [
        ("0-dense", "dense", first.title if first else "The model as it came", _options(first), dense)
    ]
    for index, step in enumerate(plan.recipe.compression, start=1):
        stages.append((f"{index}-{step.kind}", "step", step.title, _options(step), act(step)))
    training = [step for step in plan.recipe.compression if isinstance(step, Training) and step.epochs]
    if plan.recipe.control and training:
        epochs = sum(step.epochs for step in training)

        def equally_long(work: Work, checkpoint: Path) -> Outcome:
            return join([train(work, step, checkpoint / str(index)) for index, step in enumerate(training)])

        stages.append(
            ("control", "control", f"The dense model trained equally long ({epochs} epochs)", {}, equally_long)
        )
    return stages


def _options(step: Step | None) -> dict[str, Any]:
    return {} if step is None else {step.kind: step.model_dump(mode="json", exclude_none=True)}


def _stage(plan: Plan, name: str, kind: Any, title: str, options: dict[str, Any], work: Work, act: Act) -> Row:
    """Do a stage, or take up what an earlier run did: then the model and the masks are as that run left them."""
    done, scratch = plan.out / "steps" / name, plan.out / "work" / name
    if done.exists():
        if (done / "structure.json").exists():
            structure = json.loads((done / "structure.json").read_text())
            work.model, work.masks = REBUILDERS[name.partition("-")[2]](work, structure), None
        load_into(work.model, done / "model.safetensors")
        if (done / "masks.safetensors").exists():
            work.masks = Masks.rebuild(work.model, read(done / "masks.safetensors"))
        return Row.model_validate_json((done / "row.json").read_bytes())
    started = time.monotonic()
    outcome = act(work, scratch)
    row = Row(
        name=name,
        kind=kind,
        title=title,
        options=options,
        seconds=time.monotonic() - started,
        theory=theory(capture(work.model, plan.example)),
        accuracy=accuracy(work.model, plan.data, "val"),
        test_accuracy=accuracy(work.model, plan.data, "test"),
        curves=outcome.curves,
        notes=outcome.notes,
    )
    with directory_atomic(done) as fresh:
        save(work.model, fresh / "model.safetensors")
        if outcome.structure is not None:
            write_atomic(fresh / "structure.json", json.dumps(outcome.structure).encode())
        if work.masks is not None:
            save(dict(work.masks), fresh / "masks.safetensors")
        write_atomic(fresh / "row.json", row.model_dump_json(indent=1).encode())
    shutil.rmtree(scratch, ignore_errors=True)
    return row


def _delivered(rows: list[Row]) -> Row:
    return next(row for row in reversed(rows) if row.kind == "step")


def _deliver(plan: Plan, rows: list[Row], models: dict[str, nn.Module]) -> tuple[Ledger, Artifact]:
    """Build every row's artifact, pass each through the export gate, and measure them all in one interleaved run."""
    final = _delivered(rows).name
    deploy = plan.recipe.deploy
    artifacts: dict[str, Artifact] = {}
    deviations: dict[str, Deviation] = {}
    beside = [(row, target) for row in rows for target in deploy.beside if target != deploy.target]
    with bar("Build and check the artifacts", total=len(rows) + len(beside)) as task:
        for row in rows:
            place = plan.out / ("artifact" if row.name == final else f"work/artifacts/{row.name}")
            artifacts[row.name], deviations[row.name] = deliver(
                models[row.name], plan.example, deploy.target, place, data=plan.data,
                threads=deploy.threads, force=True, **deploy.options,
            )  # fmt: skip
            task.advance()
        for row, target in beside:
            name = f"{row.name} on {target}"
            artifacts[name], deviations[name] = deliver(
                models[row.name], plan.example, target, plan.out / "work/artifacts" / name, data=plan.data,
                threads=deploy.threads, force=True,
            )  # fmt: skip
            task.advance()
    threads = artifacts[final].threads
    measured = practice(
        {**artifacts, "pytorch": models["0-dense"]}, plan.data,
        example=plan.example, threads=threads, deviations=deviations,
    )  # fmt: skip
    complete = []
    for row in rows:
        _same_accuracy(row, measured[row.name])
        others = [measured[f"{row.name} on {target}"] for each, target in beside if each is row]
        others += [measured["pytorch"]] if row.kind == "dense" else []
        timed = with_times(row.theory, artifacts[row.name].layer_times())
        complete.append(row.model_copy(update={"practice": (measured[row.name], *others), "theory": timed}))
    for name, artifact in artifacts.items():
        if name != final:
            artifact.close()
    ledger = Ledger(
        title=f"{plan.model} on {plan.data.name}",
        model=plan.model,
        data=plan.data.name,
        recipe=plan.recipe.plain(),
        seed=plan.seed,
        target=plan.target,
        artifact="artifact",
        rows=tuple(complete),
        environment=environment(threads),
    )
    checks = budget_checks(plan.recipe.budget, ledger)
    return ledger.model_copy(update={"checks": checks, "warnings": warnings(plan.data.notes, ledger)}), artifacts[final]


def with_times(theory: Theory, times: Mapping[str, float] | None) -> Theory:
    """The layers with the milliseconds that the runtime's own profiler gave them, where it has one."""
    layers = tuple(layer.model_copy(update={"milliseconds": (times or {}).get(layer.path)}) for layer in theory.layers)
    return theory.model_copy(update={"layers": layers})


def _same_accuracy(row: Row, delivered: Practice) -> None:
    """The second half of the export gate: the artifact scores as the PyTorch model does, near-ties aside."""
    here, there = row.test_accuracy, delivered.accuracy
    if here is None or there is None:
        return
    allowed = max(2 / here.samples, 0.001) * max(1.0, abs(here.value))
    if abs(here.value - there.value) > allowed:
        raise GateError(
            f"{row.title}: {here.metric} is {here.value:.4f} in PyTorch but {there.value:.4f} on {delivered.target},"
            f" more than {allowed:.4f} apart on the same {here.samples} samples"
        )


def budget_checks(budget: Budget, ledger: Ledger) -> tuple[Check, ...]:
    """Every line of the budget: what was asked, what came, whether it was met."""
    dense, final = ledger.dense, ledger.final
    if dense is None or final is None:
        return ()
    before, after = dense.practice[0], final.practice[0]
    checks = []
    if budget.bytes is not None:
        checks.append(_at_most("bytes", after.bytes, budget.bytes, "{:,.0f}"))
    if after.latency and before.latency:
        ratio = after.latency.median_ms / before.latency.median_ms
        if budget.latency_ms is not None:
            checks.append(_at_most("latency", after.latency.median_ms, budget.latency_ms, "{:.3f} ms"))
        if budget.latency_ratio is not None:
            checks.append(_at_most("latency, of the dense model's", ratio, budget.latency_ratio, "{:.3f}"))
    if budget.accuracy_drop is not None and after.accuracy and before.accuracy:
        drop = before.accuracy.value - after.accuracy.value
        checks.append(_at_most(f"{after.accuracy.metric} lost", drop, budget.accuracy_drop, "{:.4f}"))
    return tuple(checks)


def _at_most(name: str, got: float, asked: float, form: str) -> Check:
    return Check(name=name, asked=f"≤ {form.format(asked)}", got=form.format(got), met=got <= asked)


def warnings(notes: tuple[str, ...], ledger: Ledger) -> tuple[str, ...]:
    """What a reader must know before trusting a number."""
    found = list(notes)
    noisy = [
        f"{row.name} on {practice.target} ({100 * practice.latency.spread:.0f} %)"
        for row in ledger.rows
        for practice in row.practice
        if practice.latency and practice.latency.spread > 0.2
    ]
    if noisy:
        found.append(f"The machine was noisy: the spread of the latency is above 20 % for {', '.join(noisy)}.")
    return tuple(found)


def _finish(plan: Plan, model: nn.Module, ledger: Ledger, artifact: Artifact) -> Compressed:
    save(model, plan.out / "model.safetensors")
    write_atomic(plan.out / "recipe.yaml", yaml.safe_dump(plan.recipe.plain(), sort_keys=False).encode())
    shutil.rmtree(plan.out / "work", ignore_errors=True)
    ledger.save(plan.out / "ledger.json")
    report.write(ledger, plan.out)
    return Compressed(model, artifact, ledger, plan.out)
