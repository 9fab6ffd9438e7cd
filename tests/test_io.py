"""A write is whole or not there, and leaves nothing beside it."""

import errno
import os
from pathlib import Path

import pytest

from llm4rec_jax import io


def _full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_a_folder_and_a_link_take_their_places(tmp_path):
    io.write_text(tmp_path / "file", "ü\n")
    with io.replacing(tmp_path / "folder") as scratch:
        scratch.mkdir()
        (scratch / "inner").write_text("inside")
    with io.replacing(tmp_path / "link") as scratch:
        scratch.symlink_to("file")
    with io.replacing(tmp_path / "link") as scratch:
        scratch.symlink_to(Path("folder") / "inner")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "link"]
    assert (tmp_path / "file").read_bytes() == "ü\n".encode()
    assert (tmp_path / "link").read_text() == "inside"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), ValueError()])
def test_after_any_error_the_old_file_is_there_and_no_scratch_file(tmp_path, error):
    io.write_bytes(tmp_path / "x", b"old")
    expected = io.NotWritten if isinstance(error, OSError) else type(error)

    def fail_half_way():
        with io.replacing(tmp_path / "x") as scratch:
            scratch.write_bytes(b"half")
            raise error

    with pytest.raises(expected):
        fail_half_way()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"x": b"old"}


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_is_full_at_the_end_is_named_too(tmp_path, monkeypatch, call):
    io.write_bytes(tmp_path / "x", b"old")
    monkeypatch.setattr(os, call, _full)
    with pytest.raises(io.NotWritten, match=r"cannot write .*/x \(No space left on device\): make room"):
        io.write_bytes(tmp_path / "x", b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"x": b"old"}


def test_a_process_id_that_comes_again_finds_a_free_name(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with io.replacing(tmp_path / "x") as first, io.replacing(tmp_path / "x") as second:
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "x").read_text() == "first"
    assert len(list(tmp_path.iterdir())) == 1


def test_new_files_have_the_usual_permissions(tmp_path):
    (tmp_path / "usual").write_text("")
    io.write_text(tmp_path / "x", "")
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_folder_that_is_gone_is_named(tmp_path):
    with pytest.raises(io.NotWritten, match=r"gone is not there any more"):
        io.write_text(tmp_path / "gone" / "x", "")
