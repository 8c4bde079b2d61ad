"""What the numbers say, in plain words. Honest first: a promise that practice did not keep is named and explained."""

from __future__ import annotations

import json
from dataclasses import dataclass

from abridged.ledger import Ledger
from abridged.report.cells import NEARLY, UNDEFINED, ratio_text, times_text
from abridged.report.gains import DENSE_RUNTIMES, Comparison, Gain, practice_of


@dataclass(frozen=True, slots=True)
class Snippet:
    """Code to copy."""

    title: str
    code: str


@dataclass(frozen=True, slots=True)
class Status:
    """The verdict of all checks: "good", "bad", or "muted" where none was made."""

    tone: str
    text: str


def verdict(ledger: Ledger, size: Gain, speed: Gain, accuracy: Comparison) -> str:
    """One sentence: "8.1 × smaller, 1.0 × as fast, accuracy 98.9 % → 98.6 % (−0.3 points, within the noise …)"."""
    if ledger.final is None:
        return "Nothing is compressed yet: the ledger holds no compression step."
    text = f"{_size(size)}, {_speed(speed)}, {_accuracy(accuracy)}."
    return text[0].upper() + text[1:]


def _size(gain: Gain) -> str:
    practice, theory = gain.practice.value, gain.theory.value
    if practice is None:
        unknown = f"file size {gain.practice.text}"
        return f"{times_text(theory, 'smaller')} on paper ({unknown})" if theory else unknown
    return "the same size" if abs(practice - 1) < NEARLY else times_text(practice, "smaller")


def _speed(gain: Gain) -> str:
    practice, theory = gain.practice.value, gain.theory.value
    if practice is None:
        unknown = f"latency {gain.practice.text}"
        return f"{times_text(theory, 'fewer')} MACs on paper ({unknown})" if theory else unknown
    return times_text(practice, "as fast") + (" (slower)" if practice < 1 - NEARLY and not gain.noisy else "")


def _accuracy(found: Comparison) -> str:
    before, after, change = found.before, found.after, found.change
    if before.value is None and after.value is None:
        return "accuracy not measured"
    if change.value is None:
        return f"{found.metric} {before.text} → {after.text} (not comparable)"
    size = "within" if found.within_noise else "more than"
    return f"{found.metric} {before.text} → {after.text} ({change.text}, {size} the noise of {found.samples:,} samples)"


def status(ledger: Ledger) -> Status:
    """Budget checks and export gates together; what missed is said first."""
    deviations = [each.deviation for row in ledger.rows for each in row.practice if each.deviation]
    results = [check.met for check in ledger.checks] + [deviation.kept for deviation in deviations]
    missed = results.count(False)
    if not results:
        return Status("muted", "No check was made")
    if missed:
        return Status("bad", f"{missed} of {len(results)} checks missed")
    return Status("good", f"All {len(results)} checks met" if len(results) > 1 else "1 check met")


def missed(ledger: Ledger) -> tuple[str, ...]:
    """A line for each thing that was asked and not delivered."""
    lines = [f"{check.name}: asked {check.asked}, got {check.got}" for check in ledger.checks if not check.met]
    for row in ledger.rows:
        for practice in row.practice:
            deviation = practice.deviation
            if deviation and not deviation.kept:
                where = f", beginning at {deviation.layer}" if deviation.layer else ""
                lines.append(
                    f"{row.title or row.name} on {practice.target} differs from PyTorch by {deviation.largest:.2g}"
                    f" (bound {deviation.bound:.2g}){where}"
                )
    return tuple(lines)


def _no_practice(gain: Gain, what: str) -> str:
    if gain.practice.text == UNDEFINED:
        return f"The ledger says 0 for the {what}, so there is no ratio."
    return f"The {what} of the dense and the compressed model were not both measured on this target."


def explain_size(gain: Gain, *, zeros: bool) -> str:
    """Why the files are as large as they are. `zeros`: whether the promise rests on weights that are zero."""
    practice, theory, realised = gain.practice.value, gain.theory.value, gain.realised.value
    if practice is None:
        return _no_practice(gain, "files")
    if theory is None or realised is None:
        return "Theory gives no ratio to compare with."
    if theory < 1 + NEARLY:
        return "Theory promises no smaller file from this recipe."
    if realised > 1 + NEARLY:
        return "More than theory counted: it compares weights alone, and the files shrank by more than that."
    if realised >= 0.8:
        return "The files keep what theory promised."
    if practice < 1 + NEARLY and zeros:
        return "The format stores every zero, so the file is as large as before."
    beside = ", and zeros that its format cannot skip" if zeros else ", which is not smaller"
    return (
        f"The file keeps {'none' if practice < 1 + NEARLY else 'part'} of the promise: it also holds the graph{beside}."
    )


def explain_speed(gain: Gain, target: str, *, zeros: bool) -> str:
    """Why it is as fast as it is. `zeros`: whether the promise rests on weights that are zero."""
    practice, theory, realised = gain.practice.value, gain.theory.value, gain.realised.value
    if practice is None:
        return _no_practice(gain, "times")
    noise = " The difference is within the run-to-run spread." if gain.noisy else ""
    if theory is None or realised is None:
        return "Theory gives no ratio to compare with." + noise
    if theory < 1 + NEARLY:
        return "Theory promises no speed-up from this recipe." + noise
    if realised >= 0.8:
        return "The runtime keeps what theory promised." + noise
    if zeros and target in DENSE_RUNTIMES and practice < 1.3:
        return (
            f"{target} is a dense runtime: it multiplies the zeros like any other weight, so the {ratio_text(theory)} fewer"
            f" multiply-accumulates exist on paper only." + noise
        )
    return (
        f"{'None' if practice < 1 + NEARLY else 'Part'} of the promise arrives. The rest goes to what theory does not count: memory traffic, small layers, the"
        " operators between the multiplications." + noise
    )


def explain_accuracy(found: Comparison) -> str:
    """What the change of accuracy means, with its interval and the fair control."""
    if found.change.value is None:
        return "Accuracy of the dense and the compressed model was not measured on the same samples."
    size = "no more than chance would give" if found.within_noise else f"a real {found.direction}"
    text = f"The change is {found.change.text} (95 % interval {found.margin}): {size} on {found.samples:,} samples."
    if found.control.value is not None:
        text += f" The dense model trained equally long reaches {found.control.text}."
    return text


def snippets(ledger: Ledger) -> tuple[Snippet, ...]:
    """How to load the result: with Abridged, into the user's own module, and with the plain runtime."""
    own = _own(ledger)
    if ledger.artifact is None:
        return (own,)
    artifact = Snippet(
        "The artifact, with Abridged",
        "import abridged as ab\n\n"
        f"art = ab.load({_quoted(ledger.artifact)})\n"
        "y = art(x)  # numpy in, numpy out; torch in, torch out",
    )
    plain = _plain_onnxruntime(ledger)
    return (artifact, *((plain,) if plain else ()), own)


def _own(ledger: Ledger) -> Snippet:
    """The weights in PyTorch: steps that made other modules need more than a file of weights."""
    made = [
        kind for row in ledger.rows if row.kind == "step" for kind in ("shrink", "factorize") if kind in row.options
    ]
    title, architecture = "The weights in your own PyTorch model", f"the same architecture: {_one_line(ledger.model)}"
    if made not in ([], ["factorize"]):
        return Snippet(
            "The model in PyTorch, in its new form",
            "import abridged as ab\n\n"
            f"model, data = ...  # what the run was given: {_one_line(ledger.model)}\n"
            f'done = ab.compress(model, data, recipe="recipe.yaml", out=".", seed={ledger.seed}, resume=True)\n'
            "small = done.model  # as it was saved; nothing is trained again",
        )
    code = 'ab.load_into(model, "model.safetensors")'
    if made:
        code = 'thin = ab.load_factorized(model, "model.safetensors")'
    return Snippet(title, f"import abridged as ab\n\nmodel = ...  # {architecture}\n{code}")


def _plain_onnxruntime(ledger: Ledger) -> Snippet | None:
    practice = practice_of(ledger.final, "onnxruntime")
    if ledger.target != "onnxruntime" or ledger.artifact is None or practice is None:
        return None
    names = [name for name in practice.files if name.endswith(".onnx")]
    if not names:
        return None
    single = ledger.artifact.endswith(".onnx")
    path = ledger.artifact if single else f"{ledger.artifact.rstrip('/')}/{names[0]}"
    return Snippet(
        "The artifact, with ONNX Runtime alone",
        "import numpy as np\nimport onnxruntime as ort\n\n"
        f"session = ort.InferenceSession({_quoted(path)})\n"
        "first = session.get_inputs()[0]\n"
        "x = np.zeros(first.shape, dtype=np.float32)  # your input\n"
        "y = session.run(None, {first.name: x})",
    )


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _one_line(text: str) -> str:
    return " ".join(text.split())


METHOD: tuple[tuple[str, str], ...] = (
    (
        "Realised",
        "Practice gain / theory gain. For size: (dense file bytes / compressed file bytes) / (dense weight bytes / packed"
        " weight bytes). For speed: (dense median latency / compressed median latency) / (dense MACs / effective MACs)."
        " 100 % means that practice keeps the whole promise; no gain at all against a promise of 10 × reads 10 %.",
    ),
    (
        "Theory",
        "Counted from the captured graph: parameters, non-zero parameters, multiply-accumulates with all weights (MACs) and"
        " with the non-zero ones alone (effective MACs), bytes of the weights dense and packed. A shared weight counts once.",
    ),
    (
        "Latency",
        "Median of single calls after warm-up. The models run in turn (A B A B …) in one process tree, so that a busy moment"
        " of the machine meets all of them; a speed-up is a ratio from one such run. p95 is the 95th percentile; spread is"
        " the interquartile range divided by the median.",
    ),
    (
        "Accuracy",
        "On held-out samples, the same ones before and after; no step selected on the test split. The 95 % interval of a share"
        " is Wilson's score interval: (p + z²/2n ± z·√(p(1 − p)/n + z²/4n²)) / (1 + z²/n), z = 1.96; of any other mean it is"
        " mean ± z·s/√n. The interval of the change combines both (Newcombe, 1998) as if the samples were independent, so it"
        " is rather too wide; when it holds 0, the change is called noise.",
    ),
    (
        "Fair control",
        "The dense model, trained for as long as the compression steps trained. What it gains is owed to training, not to"
        " compression.",
    ),
    (
        "Export gate",
        "The largest difference between the artifact's outputs in its runtime and PyTorch's on reference inputs. Its bound is"
        " 8 times the error of PyTorch's own fp32 against float64.",
    ),
    ("Units", "1 kB = 1,000 bytes, 1 MB = 1,000 kB. One MAC is one multiplication and one addition."),
)
