"""The main job on a stranger's model and data, in one process; and what it refuses."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import strangers
import torch
from torch import nn

import abridged as ab
from abridged import recipe as recipes
from abridged import run as running
from abridged.ledger import Ledger
from abridged.recipe import Budget
from abridged.steps import RUNNERS, Work
from abridged.weights import read

MODEL, DATA = "strangers_net:Net", "strangers_data:data"


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(strangers.write(tmp_path))
    before = list(sys.path)
    yield tmp_path
    sys.path[:] = before
    for name in [name for name in sys.modules if name.startswith("strangers_")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """One uninterrupted run, made once: (project directory, run directory)."""
    home = strangers.write(tmp_path_factory.mktemp("stranger"))
    cli(home, "compress", MODEL, "--data", DATA, "--recipe", "quick.yaml", "--out", "run")
    return home, home / "run"


def cli(home, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", "abridged", *arguments],
        cwd=home, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def test_a_strangers_model_and_data_compress_with_one_command(done):
    _home, run = done
    ledger = Ledger.load(run / "ledger.json")
    assert [row.name for row in ledger.rows] == ["0-dense", "1-prune", "2-distill", "control"]
    assert ledger.final.theory.sparsity > 0.4
    weights = sum(1 for layer in ledger.final.theory.layers if layer.macs)
    assert weights == 4
    assert ledger.dense.accuracy.value > 0.9
    assert ledger.final.test_accuracy.value > 0.9
    for row in ledger.rows:
        assert row.practice[0].target == "onnxruntime"
        assert row.practice[0].deviation.kept
        assert row.practice[0].accuracy.value == pytest.approx(row.test_accuracy.value, abs=0.03)
        assert row.practice[0].latency.median_ms > 0
    assert sorted(item.name for item in run.iterdir()) == [
        "artifact", "ledger.json", "model.safetensors", "recipe.yaml", "report.html", "report.md", "run.json", "steps",
    ]  # fmt: skip
    assert ledger.row("2-distill").practice[0].files == {
        item.name: item.stat().st_size for item in (run / "artifact").iterdir()
    }


def test_the_result_loads_as_the_report_says(done, monkeypatch):
    home, run = done
    monkeypatch.syspath_prepend(str(home))
    import strangers_data
    import strangers_net

    x = strangers_data.points(1, 3)[0]
    net = strangers_net.Net().eval()
    ab.load_into(net, run / "model.safetensors")
    with ab.load(run / "artifact") as artifact, torch.no_grad():
        torch.testing.assert_close(artifact(x), net(x))
    for name in ("strangers_net", "strangers_data"):
        del sys.modules[name]


def test_the_control_is_dense_and_trained_equally_long(done):
    rows = {row.name: row for row in Ledger.load(done[1] / "ledger.json").rows}
    assert rows["control"].theory.nonzeros == rows["control"].theory.parameters
    loss = {name: next(c for c in row.curves if c.name == "loss") for name, row in rows.items()}
    assert len(loss["control"].values) == len(loss["1-prune"].values) + len(loss["2-distill"].values)


def weights_and_scores(run):
    ledger = Ledger.load(run / "ledger.json")
    scores = [(row.accuracy.value, row.test_accuracy.value, row.theory.nonzeros) for row in ledger.rows]
    return read(run / "model.safetensors"), scores


def assert_agree(run, other):
    (weights, scores), (weights2, scores2) = weights_and_scores(run), weights_and_scores(other)
    assert scores == scores2
    assert all(torch.equal(weights[name], weights2[name]) for name in weights | weights2)


def test_two_runs_agree(done):
    home, run = done
    cli(home, "compress", MODEL, "--data", DATA, "--recipe", "quick.yaml", "--out", "again")
    assert_agree(run, home / "again")


@pytest.mark.parametrize("attempt", range(2))
def test_a_run_killed_at_any_moment_continues_to_the_same_result(done, attempt):
    home, run = done
    out = f"killed-{attempt}"
    command = [
        sys.executable,
        "-m",
        "abridged",
        "compress",
        MODEL,
        "--data",
        DATA,
        "--recipe",
        "quick.yaml",
        "--out",
        out,
        "--resume",
    ]
    seed = random.randrange(2**32)
    moments = random.Random(seed)
    print("seed", seed)
    for _ in range(2):
        process = subprocess.Popen(
            command, cwd=home, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE
        )
        deadline = time.monotonic() + 60
        while not (home / out / "run.json").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 3))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    cli(home, *command[3:])
    assert_agree(run, home / out)
    assert not (home / out / "work").exists()


def test_a_module_and_data_of_ones_own_and_a_missed_budget(project, capsys):
    sys.path.insert(0, str(project))
    import strangers_data
    import strangers_net

    net = strangers_net.Net()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with_budget = ab.compress(
        net, strangers_data.data(), recipe=[{"prune": {"sparsity": 0.9, "schedule": "one-shot", "epochs": 0}}],
        budget=Budget(bytes=10, latency_ms=1000, latency_ratio=1000, accuracy_drop=1), out=project / "out",
    )  # fmt: skip
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert [(check.name, check.met) for check in with_budget.ledger.checks] == [
        ("bytes", False), ("latency", True), ("latency, of the dense model's", True), ("accuracy lost", True),
    ]  # fmt: skip
    assert not with_budget.met
    assert with_budget.report.exists()
    assert with_budget.ledger.row("control") is None
    with_budget.artifact.close()


def small_net():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip


def test_channels_are_pruned_removed_and_taught_on_digits(tmp_path):
    steps = [
        {"train": {"epochs": 3, "lr": 0.01}},
        {"prune": {"pattern": "channel", "macs": 0.5, "round_to": 2, "epochs": 0}},
        "shrink",
        {"distill": {"epochs": 3, "lr": 0.01}},
        {"deploy": {"threads": 1}},
    ]
    done = ab.compress(small_net(), "digits", recipe=steps, out=tmp_path / "run", control=False)
    dense, pruned, small, taught = done.ledger.rows
    assert pruned.theory.parameters == dense.theory.parameters
    assert small.theory.parameters < 0.7 * dense.theory.parameters
    assert small.theory.macs <= 0.5 * dense.theory.macs
    assert small.accuracy == pruned.accuracy  # what was removed had no say
    assert any("→" in note for note in small.notes)
    assert taught.theory.macs == small.theory.macs
    assert dense.accuracy.value > 0.8
    assert taught.accuracy.value > dense.accuracy.value - 0.1
    assert done.model[0].out_channels < 8
    assert done.model[0].out_channels % 2 == 0
    done.artifact.close()
    again = ab.compress(small_net(), "digits", recipe=steps, out=tmp_path / "run", control=False, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), done.model.parameters(), strict=True))
    again.artifact.close()


def test_prune_factorize_distil_deploy_from_yaml(tmp_path):
    """Each step has both books; the factors have no zeros, and their teacher is the network before all steps."""
    file = tmp_path / "mine.yaml"
    file.write_text(
        "control: false\nsteps:\n"
        " - train: {epochs: 3, lr: 0.01}\n"
        " - prune: {sparsity: 0.5, epochs: 1, lr: 0.01}\n"
        " - factorize: {energy: 0.9, include: '4', lose_zeros: true}\n"
        " - distill: {epochs: 3, lr: 0.01, loss: {kd: 0.7, hint: 0.01}, layers: {'4.expand': '4'}, alpha: {linear: [1, 0.5]}}\n"
        " - deploy: {target: onnxruntime, threads: 1}\n"
    )
    with ab.compress(small_net(), "digits", recipe=file, out=tmp_path / "run").artifact as artifact:
        assert artifact(torch.rand(1, 1, 8, 8)).shape == (1, 10)
    ledger = Ledger.load(tmp_path / "run" / "ledger.json")
    dense, pruned, thin, taught = ledger.rows
    for row in ledger.rows:
        assert row.theory.bytes_packed > 0
        assert row.practice[0].bytes > 0
        assert row.practice[0].accuracy.samples == row.test_accuracy.samples
    assert pruned.theory.nonzeros < 0.6 * dense.theory.nonzeros
    assert thin.theory.parameters < dense.theory.parameters
    assert any("layers" in note for note in thin.notes)
    assert taught.theory.macs == thin.theory.macs
    assert taught.accuracy.value > max(thin.accuracy.value, 0.8)


@pytest.mark.parametrize("changed", ["train", "test"])
def test_a_run_goes_on_with_its_own_data_alone(tmp_path, changed, monkeypatch):
    """Of the same name and number of samples, but other values."""
    net, x, y = small_net(), torch.rand(40, 1, 8, 8), torch.arange(40) % 10
    recipe = [{"prune": {"sparsity": 0.5, "schedule": "one-shot", "epochs": 0}}]

    def run(**splits):
        data = ab.Data(**{"train": (x, y), "val": (x, y), "test": (x, y), **splits})
        return ab.compress(net, data, recipe=recipe, out=tmp_path / "run", resume=True)

    monkeypatch.setattr(running, "_run", lambda *_: None)
    run()
    run()
    with pytest.raises(ab.InputError, match="the run there differs in data;"):
        run(**{changed: (x + 1, y)})


@pytest.mark.parametrize(
    "options",
    [
        {"sparsity": 0.8, "regrow": "rigl", "every": 4},
        {"sparsity": 0.8, "regrow": {"grow": "random", "fraction": 0.2}, "every": 4},
        {"sparsity": 0.6, "of": "macs"},
        {"allocation": {"0": 0.2, "4": 0.9}},
        {"pattern": "2:4", "include": ["4", "8"]},
        {"sparsity": 0.5, "schedule": "one-shot", "solver": "least-squares", "reestimate": True},
    ],
    ids=lambda options: " ".join(map(str, options)),
)
def test_a_recipe_prunes_as_the_function_does(options):
    data = ab.Data(
        (torch.randn(64, 1, 8, 8), torch.randint(0, 10, (64,))), (torch.randn(8, 1, 8, 8), torch.zeros(8).long())
    )
    (step,) = recipes.load([{"prune": {**options, "epochs": 2, "batch_size": 8, "teacher": "none"}}]).compression
    work = Work(small_net(), small_net(), data, seed=0)
    RUNNERS["prune"](work, step, None)
    zeros = {name: 1 - float(mask.float().mean()) for name, mask in work.masks.items()}
    assert all(not bool((work.model.get_parameter(name)[~mask]).any()) for name, mask in work.masks.items())
    if "allocation" in options:
        assert zeros == pytest.approx({"0.weight": 0.2, "4.weight": 0.9}, abs=0.01)
    elif options.get("of") == "macs":
        macs = {"0.weight": 64, "4.weight": 16, "8.weight": 1}
        cost = {name: macs[name] * mask.numel() for name, mask in work.masks.items()}
        assert sum(zeros[name] * cost[name] for name in cost) / sum(cost.values()) == pytest.approx(0.6, abs=0.02)
    else:
        assert work.masks.sparsity == pytest.approx(step.sparsity, abs=0.01)


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([{"prune": {"sparsity": 0.5, "pattern": "channel", "regrow": "rigl"}}], "regrow does not go with pattern"),
        ([{"prune": {"sparsity": 0.5, "pattern": "channel", "of": "macs", "epochs": 0}}], "of does not go with"),
        ([{"prune": {"sparsity": 0.5, "pattern": "heads", "epochs": 0}}], "nothing to prune"),
        ([{"prune": {"sparsity": 0.5, "round_to": 4}}], "round_to does not go with"),
        ([{"prune": {"macs": 0.5}}], "macs does not go with"),
        ([{"prune": {"pattern": "2:4"}}], "multiple of 4"),
        ([{"prune": {"pattern": "2:4", "include": ["8"], "allocation": "global"}}], "allocation='uniform'"),
        ([{"prune": {"pattern": "channel", "sparsity": 0.01, "epochs": 0}}, "shrink"], "removes no channel"),
        ([{"prune": {"allocation": {"nowhere": 0.5}}}], "'nowhere' matches no parameter"),
        ([{"distill": {}}, {"factorize": {"ratio": 0.001}}], "ratio 0.001 cannot be reached"),
        ([{"prune": {"sparsity": 0.5}}, {"factorize": {"rank": 2}}], "^recipe: factorize after prune loses the zeros"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(tmp_path, steps, words):
    data = ab.Data(
        (torch.randn(64, 1, 8, 8), torch.randint(0, 10, (64,))), (torch.randn(8, 1, 8, 8), torch.zeros(8).long())
    )
    with pytest.raises(ab.AbridgedError, match=words):
        ab.compress(small_net(), data, recipe=steps, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_artifact_that_scores_otherwise_is_refused(done):
    row = Ledger.load(done[1] / "ledger.json").final
    off = row.practice[0].accuracy.model_copy(update={"value": row.test_accuracy.value - 0.1})
    with pytest.raises(ab.GateError, match="apart on the same 96 samples"):
        running._same_accuracy(row, row.practice[0].model_copy(update={"accuracy": off}))


def test_a_noisy_machine_is_a_warning(done):
    ledger = Ledger.load(done[1] / "ledger.json")
    latency = ledger.final.practice[0].latency.model_copy(update={"spread": 0.5})
    practice = ledger.final.practice[0].model_copy(update={"latency": latency})
    noisy = ledger.model_copy(update={"rows": (ledger.final.model_copy(update={"practice": (practice,)}),)})
    assert "noisy" in running.warnings((), noisy)[0]


def test_the_ledger_and_the_run_are_json(done):
    assert json.loads((done[1] / "run.json").read_text())["model"] == MODEL
    with pytest.raises(ab.InputError, match="not a ledger"):
        Ledger.load(done[1] / "run.json")
