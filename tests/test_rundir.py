import json

import pytest
import torch

from abridged.errors import InputError
from abridged.rundir import fingerprint, prepare

ASKED = {"model": "m", "seed": 0}


def names(path):
    return sorted(item.name for item in path.iterdir())


def test_a_new_or_empty_directory_is_taken(tmp_path):
    prepare(tmp_path / "a" / "b", ASKED, resume=False, force=False)
    assert json.loads((tmp_path / "a" / "b" / "run.json").read_text()) == ASKED
    (tmp_path / "empty").mkdir()
    prepare(tmp_path / "empty", ASKED, resume=True, force=False)
    assert names(tmp_path / "empty") == ["run.json"]


def test_what_is_there_is_kept(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    (tmp_path / "work").mkdir()
    for force in (False, True):
        with pytest.raises(InputError, match="not empty"):
            prepare(tmp_path, ASKED, resume=False, force=force)
    with pytest.raises(InputError, match="no run to resume"):
        prepare(tmp_path, ASKED, resume=True, force=False)
    assert names(tmp_path) == ["mine.txt", "work"]


def test_force_removes_only_what_a_run_wrote(tmp_path):
    prepare(tmp_path / "run", ASKED, resume=False, force=False)
    (tmp_path / "run" / "steps" / "0-dense").mkdir(parents=True)
    (tmp_path / "run" / "mine.txt").write_text("keep")
    prepare(tmp_path / "run", {"model": "other"}, resume=False, force=True)
    assert names(tmp_path / "run") == ["mine.txt", "run.json"]


def test_resume_takes_the_same_run_and_no_other(tmp_path):
    prepare(tmp_path, ASKED, resume=False, force=False)
    (tmp_path / "steps" / ".1-prune.half").mkdir(parents=True)
    (tmp_path / "steps" / "0-dense").mkdir()
    prepare(tmp_path, ASKED, resume=True, force=False)
    assert names(tmp_path / "steps") == ["0-dense"]
    with pytest.raises(InputError, match="the run there differs in seed"):
        prepare(tmp_path, {**ASKED, "seed": 1}, resume=True, force=False)
    with pytest.raises(InputError, match="--resume to continue"):
        prepare(tmp_path, ASKED, resume=False, force=False)
    with pytest.raises(InputError, match="not both"):
        prepare(tmp_path, ASKED, resume=True, force=True)


def test_a_file_is_not_a_directory(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        prepare(tmp_path / "file", ASKED, resume=False, force=True)


def test_the_fingerprint_sees_every_byte():
    net = torch.nn.Linear(3, 2)
    before = fingerprint(net)
    assert fingerprint(net) == before
    with torch.no_grad():
        net.bias[1] += 1e-6
    assert fingerprint(net) != before
