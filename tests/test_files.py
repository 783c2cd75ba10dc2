"""A file is whole or absent."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.system import digests, files, locks


def test_commit_shows_the_file_only_at_the_end(tmp_path):
    path = tmp_path / "deep" / "a.h5"
    with files.commit(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert temporary.parent == path.parent and temporary.suffix == ".h5"
    assert path.read_text() == "half"
    assert os.listdir(path.parent) == ["a.h5"]


def test_two_writers_of_a_file_do_not_share_the_one_they_write(tmp_path):
    """A thread that a killed run left in a worker may still write a shard that the next run has given to another."""
    path = tmp_path / "a.h5"
    with files.commit(path) as late:
        with files.commit(path) as early:
            late.write_text("late, and not at its end")
            early.write_text("whole")
        assert path.read_text() == "whole"
        late.write_text("whole")
    assert os.listdir(tmp_path) == ["a.h5"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_commit_leaves_nothing_after_an_error_and_says_where(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error) as caught, files.commit(path) as temporary:
        temporary.write_text("half")
        raise error("stop")
    assert caught.value.__notes__ == [f"while writing {path}"]
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_what_a_killed_process_left_is_removed_by_the_next_writer(tmp_path):
    code = (
        "import os, signal, sys; from pipeline.system import files\n"
        "with files.commit(sys.argv[1]) as t: t.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.h5")])
    assert killed.returncode == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 1 and not (tmp_path / "a.h5").exists()
    with locks.one_writer(tmp_path):
        pass
    assert os.listdir(tmp_path) == [".lock"]


def test_small_files_and_names(tmp_path):
    files.write_json(tmp_path / "a.json", {"b": [1, 2], "a": "é"})
    assert (tmp_path / "a.json").read_text() == '{\n "a": "\\u00e9",\n "b": [\n  1,\n  2\n ]\n}\n'
    assert files.plain_name("../-a b!") == "a-b"
    assert files.plain_name("..") == "x"


def test_content_of_a_file_is_its_blake2b(tmp_path):
    import hashlib

    data = bytes(range(256)) * 9000  # more than one block
    (tmp_path / "a").write_bytes(data)
    assert digests.file_hash(tmp_path / "a") == hashlib.blake2b(data, digest_size=8).hexdigest()


def test_link_is_replaced_in_one_step(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        files.link(tmp_path / "latest", tmp_path / name)
    assert os.readlink(tmp_path / "latest") == "two"
    assert sorted(os.listdir(tmp_path)) == ["latest", "one", "two"]


def test_where_no_link_is_possible_it_is_said(tmp_path, monkeypatch, capsys):
    def refused(path, target):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "symlink_to", refused)
    number = errno.EPERM
    files.link(tmp_path / "latest", tmp_path / "one")
    said = "latest does not point to one, because links are not possible there (Operation not permitted)"
    assert said in capsys.readouterr().err and not os.listdir(tmp_path)
    number = errno.ENOSPC
    with pytest.raises(OSError, match="No space left"):
        files.link(tmp_path / "latest", tmp_path / "one")


def test_room_is_that_of_the_nearest_folder_that_exists(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: asked.append(path) or SimpleNamespace(free=12_400_000))
    assert files.free_space_text(tmp_path / "a/b") == f"12 MB are free on the disk of {tmp_path / 'a/b'}"
    assert asked == [tmp_path]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"curve.json is damaged \(Expecting value: line 1 .*\); delete it and run the same command again"),
        (b"\x00\xff", r"curve.json is damaged \('utf-8' codec .*\); delete it and run the same command again"),
        (b"[1]", r"curve.json is damaged \(it holds no mapping\); delete it and run the same command again"),
    ],
)
def test_damaged_json_is_named_with_its_cure(tmp_path, content, message):
    path = tmp_path / "curve.json"
    files.write_json(path, {"a": 1})
    assert files.read_json(path) == {"a": 1}
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        files.read_json(path)


def test_what_vanishes_while_a_folder_is_measured_has_no_size(tmp_path, monkeypatch):
    (tmp_path / "there").write_bytes(b"123")
    (tmp_path / "gone").write_bytes(b"4567")
    is_file = Path.is_file

    def is_file_and_gone(path):
        found = is_file(path)
        if path.name == "gone":
            path.unlink(missing_ok=True)
        return found

    monkeypatch.setattr(Path, "is_file", is_file_and_gone)
    assert files.size_of(tmp_path) == 3


def test_processes_of_two_machines_write_beside_each_other(tmp_path, monkeypatch):
    names = []
    for machine in ("one", "two"):
        monkeypatch.setattr(files.socket, "gethostname", lambda machine=machine: machine)
        with files.commit(tmp_path / "x.json") as temporary:
            temporary.write_text("")
            names.append(temporary.name)
    assert len(set(names)) == 2 and all(name.endswith(".json") for name in names)


def test_the_size_of_a_folder_follows_no_link(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/one").write_bytes(b"123")
    (tmp_path / "a/b/.two").write_bytes(b"45")
    (tmp_path / "a/link").symlink_to(tmp_path / "a/one")
    assert files.size_of(tmp_path / "a") == 5 and files.size_of(tmp_path / "none") == 0


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_file_without_a_name_holds_what_is_written_and_leaves_nothing(tmp_path, monkeypatch, in_memory):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    if not in_memory:  # macOS
        monkeypatch.delattr(os, "memfd_create")
    number = files.nameless_file()
    assert os.write(number, b"a line\n") == 7 and os.pread(number, 100, 0) == b"a line\n"
    os.close(number)
    assert not list(tmp_path.iterdir())
