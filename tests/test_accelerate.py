"""Several processes: two real ones on the CPU (gloo) agree to the bit, and with one process within rounding."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("accelerate")

WORKER = '''
import json, os, sys
from pathlib import Path
import torch
from torch import nn
from abridged.data import Data
from abridged.distillation.distill import distill_fit
from abridged.errors import InputError
from abridged.pruning.prune import prune
from abridged.training import Callback, EarlyStop, fit
from abridged.data.content import digest

torch.set_num_threads(1)
home, rank = Path(sys.argv[1]), int(os.environ.get("RANK", 0))
x = torch.randn(203, 1, 8, 8, generator=torch.Generator().manual_seed(0))
y = (x.flatten(1)[:, :40].view(-1, 10, 4).sum(2)).argmax(1)
data = Data((x[:150], y[:150]), (x[150:], y[150:]))

class Split(nn.Module):
    """One branch is never used in training: its parameters get no gradient anywhere."""
    def __init__(self, norm):
        super().__init__()
        self.a, self.unused, self.b = nn.Linear(64, 32), nn.Linear(3, 3), nn.Linear(32, 10)
        self.norm = nn.BatchNorm1d(32) if norm else nn.Identity()
    def forward(self, x):
        return self.b(torch.relu(self.norm(self.a(x.flatten(1)))))

def network(norm=False, seed=0):
    torch.manual_seed(seed)
    return Split(norm)

def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-3)

class Once(Callback):
    """Only the second process wants to stop."""
    def on_epoch(self, moment):
        return int(os.environ.get("RANK", 0)) == 1 and moment.epoch == 2

answers = {}
def tell(name, model, history, **more):
    answers[name] = {
        "digest": digest(model.state_dict().values()), "loss": history.loss, "metric": history.metric,
        "epochs": history.epochs, **more,
    }
    answers[name]["weights"] = model.a.weight.flatten().tolist()

model = network(seed=rank)  # each process starts elsewhere: the first one's weights count
tell("plain", model, fit(model, data, epochs=4, batch_size=20, optimizer=sgd, clip=1.0, accumulate=2))

model = network(norm=True)
masks = prune(model, 0.8, schedule="cubic", steps=20)
history = fit(model, data, epochs=4, batch_size=20, optimizer=sgd, masks=masks)
zeros = all(bool((model.get_parameter(n)[~m] == 0).all()) for n, m in masks.items())
tell("masks", model, history, zeros=zeros, density=masks.density, masks=digest(masks.values()))

model, teacher = network(), network(seed=5)
tell("distilled", model, distill_fit(model, teacher, data, epochs=2, batch_size=20, optimizer=sgd))

loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x[:150], y[:150]), batch_size=20, shuffle=True)
model = network()
tell("loader", model, fit(model, Data(loader, (x[150:], y[150:])), epochs=2, optimizer=sgd))

model = network()
callbacks = [Once()] if "RANK" in os.environ else []
tell("stopped", model, fit(model, data, epochs=4, batch_size=20, optimizer=sgd, callbacks=callbacks))

class Interrupt(Callback):
    def on_step(self, moment):
        if moment.step == 11:
            raise KeyboardInterrupt

def kept(callback):
    model = network()
    history = fit(model, data, epochs=3, batch_size=20, optimizer=sgd, checkpoint=home / "shared", callbacks=[callback])
    return model, history
try:
    kept(Interrupt())
except KeyboardInterrupt:
    pass
files = [path.name for path in (home / "shared").iterdir()]
model, history = kept(Callback())
straight = network()
fit(straight, data, epochs=3, batch_size=20, optimizer=sgd)
tell("resumed", model, history, straight=digest(straight.state_dict().values()), files=files)

if "RANK" in os.environ:
    for name, change in {"few": {"batch_size": 1}, "fp16": {"precision": "fp16"}}.items():
        try:
            fit(network(), data, epochs=1, **change)
        except InputError as error:
            answers[name] = str(error)
    try:  # a directory that only the first process sees
        where = home / f"own{rank}"
        if rank == 0:
            (where).mkdir()
            (where / "training.safetensors").write_bytes((home / "shared" / "training.safetensors").read_bytes())
        fit(network(), data, epochs=3, batch_size=20, optimizer=sgd, checkpoint=where, callbacks=[Callback()])
    except InputError as error:
        answers["own"] = str(error)
(home / f"answers{rank}.json").write_text(json.dumps(answers))
if "RANK" in os.environ:
    torch.distributed.destroy_process_group()
'''


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch(home: Path, processes: int) -> list[dict[str, Any]]:
    """The answers of every process of the worker, run as torchrun or `accelerate launch` would run it."""
    script = home / "worker.py"
    script.write_text(WORKER)
    clean = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    shared = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes)}
    runs = [
        subprocess.Popen(
            [sys.executable, str(script), str(home)],
            env={**clean, **shared, **({**address, "RANK": str(r), "LOCAL_RANK": str(r)} if processes > 1 else {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for r in range(processes)
    ]
    for run in runs:
        out, _ = run.communicate(timeout=150)
        assert run.returncode == 0, out[-3000:]
        assert not out or "it/s" not in out
    return [json.loads((home / f"answers{r}.json").read_text()) for r in range(processes)]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Of one process alone, and of the two of a pair."""
    (alone,) = launch(tmp_path_factory.mktemp("alone"), 1)
    first, second = launch(tmp_path_factory.mktemp("pair"), 2)
    return alone, first, second


CASES = ("plain", "masks", "distilled", "loader", "stopped", "resumed")


@pytest.mark.parametrize("case", CASES)
def test_both_processes_have_the_same_bits(answers: Any, case: str) -> None:
    _, first, second = answers
    assert first[case] == second[case]


@pytest.mark.parametrize("case", ["plain", "distilled", "loader", "resumed"])
def test_two_processes_equal_one_with_the_same_batches(answers: Any, case: str) -> None:
    alone, first, _ = answers
    assert torch.allclose(torch.tensor(first[case]["weights"]), torch.tensor(alone[case]["weights"]), atol=2e-6)
    assert first[case]["loss"] == pytest.approx(alone[case]["loss"], rel=1e-5)
    assert first[case]["metric"] == pytest.approx(alone[case]["metric"], abs=0.02)


def test_masks_hold_in_every_process(answers: Any) -> None:
    alone, first, second = answers
    for answer in (alone, first, second):
        assert answer["masks"]["zeros"]
        assert answer["masks"]["density"] == pytest.approx(0.2, abs=0.01)
    assert first["masks"]["masks"] == second["masks"]["masks"]


def test_one_process_may_stop_all(answers: Any) -> None:
    alone, first, second = answers
    assert (alone["stopped"]["epochs"], first["stopped"]["epochs"], second["stopped"]["epochs"]) == (4, 2, 2)


def test_a_pair_resumes_exactly_and_writes_once(answers: Any) -> None:
    for answer in answers:
        assert answer["resumed"]["digest"] == answer["resumed"]["straight"]
        assert answer["resumed"]["files"] == ["training.safetensors"]


def test_mistakes_of_a_pair(answers: Any) -> None:
    for answer in answers[1:]:
        assert answer["few"] == "train: a batch of 1 cannot be divided among 2 processes"
        assert answer["fp16"] == "precision fp16 needs a GPU: use bf16 or fp32 on a CPU"
        assert "must be a directory that every process sees" in answer["own"]


LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--nproc_per_node", "2", "--master_port"],
    "accelerate launch": [
        "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port",
    ],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_launchers_themselves(tmp_path: Path, launcher: str) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    done = subprocess.run(
        [sys.executable, "-m", *LAUNCHERS[launcher], str(free_port()), str(script), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"answers{rank}.json").read_text()) for rank in range(2))
    for case in CASES:
        assert first[case] == second[case]


def test_processes_that_do_not_find_each_other_are_refused() -> None:
    """A world size without an address to meet at: nobody trains alone by mistake."""
    code = (
        "import torch; from torch import nn; from abridged.data import Data; from abridged.training import fit;"
        "x, y = torch.randn(8, 4), torch.arange(8) % 2; import accelerate; accelerate.Accelerator();"
        "import os; os.environ['WORLD_SIZE'] = '2'; fit(nn.Linear(4, 2), Data((x, y), (x, y)), epochs=1)"
    )
    clean = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "launched as 2 processes, but accelerate joined 1" in done.stderr
