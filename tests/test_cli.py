"""The command: every mistake is one line and exit status 2, and leaves nothing behind."""

import os
import re
import resource
import shlex
import subprocess
import sys

import pytest
import torch
from test_run import project  # noqa: F401  (a fixture)

from abridged.catalogue import TABLES, entries
from abridged.cli import main


@pytest.fixture
def command(capsys, monkeypatch):
    """Run the command in this process → (status, stdout, stderr)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["abridged", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        return left.value.code or 0, out, err

    return call


def compress(model="strangers_net:Net", data="strangers_data:data", recipe="quick.yaml", *more):
    return "compress", model, "--data", data, "--recipe", recipe, "--out", "run", *more


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (compress("nowhere:Net"), "no module 'nowhere'"),
        (compress("strangers_net:Nett"), "did you mean 'Net'"),
        (compress("strangers_net:number"), "must give a torch.nn.Module, not int"),
        (compress("strangers_net:bent"), "strangers_net.py:24"),
        (compress("strangers_net:poisoned"), "stem.weight"),
        (compress("strangers_net:small"), "label 3 is out of range: the model has 2 outputs"),
        (compress("torchvision:resnet5"), "did you mean 'resnet50'"),
        (compress("net.pt2"), "cannot be trained"),
        (compress(data="digitz"), "did you mean 'digits'"),
        (compress(data="cifar10:none"), "curl"),
        (compress(data="strangers_data:wrong_shape"), "the model refuses a batch of val, float32 (2, 5)"),
        (compress(data="strangers_data:empty"), "empty"),
        (compress(data="strangers_data:far_labels"), "label 8 is out of range"),
        (compress(data="strangers_data:nan"), "NaN"),
        (compress(data="strangers_data:number"), "must give an abridged.Data"),
        (compress(recipe="defalt"), "did you mean 'default'"),
        (compress(recipe="bad.yaml"), "bad.yaml, line 2: sparsity"),
        (("compress", "strangers_net:Net", "--data", "strangers_data:data", "--target", "onnxruntim", "--out", "run"), "did you mean 'onnxruntime'"),
        (compress("strangers_net:Net", "strangers_data:data", "quick.yaml", "--weights", "none.safetensors"), "none.safetensors"),
        (compress("strangers_net:Net", "strangers_data:data", "quick.yaml", "--weights", "cut.safetensors"), "cut.safetensors"),
        (compress("strangers_net:Net", "strangers_data:data", "quick.yaml", "--weights", "other.safetensors"), "stem.weight"),
        (compress("strangers_net:Net", "strangers_data:data", "quick.yaml", "--weights", "code.pt"), "code.pt"),
        (compress("strangers_net:Net", "strangers_data:data", "quick.yaml", "--resume", "--force"), "not both"),
        (compress("strangers_net:Net", "strangers_data:data", "quick.yaml", "--seed", "9" * 30), "seed must be"),
        (compress("strangers_net:Net", "strangers_data:data", "option.yaml"), "has no option 'spars'"),
        (compress("strangers_net:Net", "strangers_data:data", "half.yaml"), "needs a GPU"),
        (("deploy", "strangers_net:Net", "--out", "run"), "say what goes in"),
        (("deploy", "strangers_net:Net", "--out", "run", "--input", "1x5x8x8"), "strangers_net.py"),
        (("deploy", "strangers_net:Net", "--out", "run", "--input", "1x3x8x8", "--target", "tflite"), "unknown target 'tflite'"),
        (("measure", "run"), "not an artifact"),
        (("report", "run"), "no ledger.json"),
        (("list", "criterions"), "did you mean 'criteria'"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_leaves_nothing(project, command, arguments, words):  # noqa: F811
    class Evil:
        def __reduce__(self):
            return os.system, ("touch run",)

    (project / "option.yaml").write_text("steps:\n  - finetune\n  - deploy: {options: {spars: 1}}\n")
    (project / "half.yaml").write_text("steps:\n  - finetune: {precision: fp16}\n")
    (project / "bad.yaml").write_text("steps:\n  - prune: {sparsity: 1.5}\n")
    (project / "cut.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    torch.save({"a": Evil()}, project / "code.pt")
    from abridged.weights import save

    save({"other.weight": torch.ones(2)}, project / "other.safetensors")
    status, out, err = command(*arguments)
    assert words in err
    assert status == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("abridged: ")
    assert not (project / "run").exists()


def test_an_output_directory_that_is_not_empty_is_kept(project, command):  # noqa: F811
    (project / "run").mkdir()
    (project / "run" / "thesis.txt").write_text("years of work")
    status, _, err = command(*compress())
    assert (status, "not empty" in err) == (2, True)
    assert [item.name for item in (project / "run").iterdir()] == ["thesis.txt"]


def test_deploy_measure_and_report(project, command):  # noqa: F811
    status, out, err = command("deploy", "strangers_net:Net", "--out", "net", "--input", "1x3x8x8", "--threads", "1")
    assert (status, err) == (0, "")
    first, equal, speed, after, *_ = out.splitlines()
    assert re.fullmatch(r"net: [\d.]+ kB for target onnxruntime, [\d.]+ kB of them model\.onnx", first)
    assert re.fullmatch(r"Equals PyTorch: off by \S+ at most, where \S+ is allowed", equal)
    assert re.fullmatch(r"[\d.]+ ms a call on 1 thread of .+ \(median of \d+ runs, spread \d+%\)", speed)
    assert after == "Next: abridged measure net --against strangers_net:Net"
    status, out, _ = command(
        "measure",
        "net",
        "--against",
        "strangers_net:Net",
        "--data",
        "strangers_data:data",
        "--threads",
        "1",
        "--json",
        "m.json",
    )
    assert status == 0
    assert "onnxruntime" in out
    assert "pytorch" in out
    assert (project / "m.json").read_text().startswith("{")


@pytest.mark.parametrize("given", [False, True])
def test_what_is_typed_next_measures_a_network_by_name_against_itself(
    project,  # noqa: F811
    command,
    torchvision_models,
    given,
):
    name, weights = "torchvision:squeezenet1_1", project / "my weights.pt"
    torch.save(torchvision_models.squeezenet1_1().state_dict(), weights)
    more = ("--weights", "my weights.pt") if given else ()
    status, out, err = command("deploy", name, "--out", "net", "--input", "1x3x40x40", "--threads", "1", *more)
    assert (status, err.count("are random")) == (0, not given)
    typed = out.partition("Next: ")[2].splitlines()[0]
    assert typed == f"abridged measure net --against {name}" + given * " --weights 'my weights.pt'"
    torch.manual_seed(17)  # as in another process
    status, out, _ = command(*shlex.split(typed)[1:])
    assert status == 0
    assert "another network" not in out


def test_an_exported_program_deploys(project, command):  # noqa: F811
    program = torch.export.export(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU()), (torch.zeros(2, 4),))
    torch.export.save(program, project / "net.pt2")
    status, out, err = command("deploy", "net.pt2", "--out", "net")
    assert (status, err) == (0, "")
    assert "abridged measure net --against net.pt2" in out
    status, out, err = command("measure", "net", "--against", "net.pt2")
    assert (status, err) == (0, "")
    assert "pytorch" in out
    status, _, err = command("deploy", "net.pt2", "--out", "net")
    assert (status, "replace it with --force" in err) == (2, True)


@pytest.mark.parametrize(("target", "usage"), [("native", "python net/run.py x.npy"), ("c", "make -s -C net bench")])
def test_deploy_says_how_to_go_on_without_abridged(project, command, target, usage):  # noqa: F811
    arguments = ("strangers_net:Net", "--out", "net", "--target", target, "--input", "1x3x8x8", "--threads", "1")
    status, out, err = command("deploy", *arguments, *(("--option", "tune=0") if target == "native" else ()))
    assert (status, err) == (0, "")
    assert f"Next: {usage}" in out
    assert ("ms a call" in out) == (target == "native")  # nothing is timed in place of a device
    status, _, err = command("deploy", "net.pt2", "--out", "net2", "--input", "1x4")
    assert (status, "brings its own" in err) == (2, True)


@pytest.mark.parametrize("table", TABLES)
def test_every_table_lists_its_entries_with_a_line_each(table, command):
    status, out, _ = command("list", table)
    assert status == 0
    assert len(out.splitlines()) == len(entries(table)) > 0
    assert all(line.strip() for _, line in entries(table))
    assert table in command("list")[1]


def test_version_and_help(command):
    assert command("--version")[1] == "abridged 0.1.0\n"
    assert "compress" in command("--help")[1]


@pytest.mark.parametrize("name", ["deploy", "compress"])
def test_help_says_that_target_c_has_one_thread(command, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "200")
    assert "target c has one" in command(name, "--help")[1]


def test_help_starts_fast_and_without_torch():
    code = "import sys; sys.argv = ['abridged', '--help']\nfrom abridged.cli import main\ntry: main()\nfinally: assert 'torch' not in sys.modules"
    plain = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    times = []
    for _ in range(3):  # processor time: the wall clock also counts what else the machine does
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=plain)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 0.5


def test_ctrl_c_says_how_to_go_on(project, command, monkeypatch):  # noqa: F811
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("abridged.run.compress", interrupted)
    status, _, err = command(*compress())
    assert status == 130
    assert "--resume" in err


def test_a_missed_budget_is_status_1_and_the_artifact_is_written(project, command):  # noqa: F811
    (project / "once.yaml").write_text("steps:\n  - prune: {sparsity: 0.5, schedule: one-shot, epochs: 0}\n")
    status, out, _ = command(*compress("strangers_net:Net", "strangers_data:data", "once.yaml", "--max-bytes", "10"))
    assert status == 1
    assert "missed" in out.lower()
    assert (project / "run" / "artifact" / "abridged.json").exists()
    status, out, _ = command("report", "run")
    assert (status, out.strip()) == (0, "run/report.html")
