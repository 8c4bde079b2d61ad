import errno
import os

import pytest

from abridged.errors import InputError
from abridged.files import directory_atomic, sha256, tree_bytes, write_atomic


def test_a_file_is_written_whole(tmp_path):
    write_atomic(tmp_path / "new" / "a.bin", b"abc")
    assert (tmp_path / "new" / "a.bin").read_bytes() == b"abc"
    assert [item.name for item in (tmp_path / "new").iterdir()] == ["a.bin"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    write_atomic(tmp_path / "a.bin", b"old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="the disk is full"):
        write_atomic(tmp_path / "a.bin", b"new")
    assert (tmp_path / "a.bin").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be written"):
        write_atomic(tmp_path / "file" / "a.bin", b"abc")


def test_a_directory_appears_when_it_is_complete(tmp_path):
    with directory_atomic(tmp_path / "run") as fresh:
        (fresh / "a").write_text("1")
        assert not (tmp_path / "run").exists()
    assert tree_bytes(tmp_path / "run") == {"a": 1}
    with directory_atomic(tmp_path / "run") as fresh:
        (fresh / "b").write_text("22")
    assert tree_bytes(tmp_path / "run") == {"b": 2}
    assert [item.name for item in tmp_path.iterdir()] == ["run"]


def test_a_failed_directory_leaves_the_old_one(tmp_path):
    with directory_atomic(tmp_path / "run") as fresh:
        (fresh / "a").write_text("1")

    def fail():
        with directory_atomic(tmp_path / "run") as fresh:
            (fresh / "b").write_text("22")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert tree_bytes(tmp_path) == {"run/a": 1}


def test_checksum_and_sizes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert tree_bytes(tmp_path / "a") == {"a": 3}
