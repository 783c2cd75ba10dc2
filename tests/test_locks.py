"""A folder has one writer, or many readers."""

import errno
import multiprocessing
import subprocess
import sys
import threading
import time

import pytest

from pipeline.system import locks


def _hold(folder, entered, seconds):
    with locks.one_writer(folder):
        entered.set()
        time.sleep(seconds)
        (folder / "ended").write_text(str(time.time()))


def test_who_writes_already_may_enter_again(tmp_path):
    with locks.one_writer(tmp_path), locks.one_writer(tmp_path), locks.try_exclusive_lock(tmp_path) as free:
        assert not free
    with locks.try_exclusive_lock(tmp_path) as free:
        assert free


def test_a_second_writer_waits_and_says_for_whom(tmp_path, capsys):
    entered = multiprocessing.get_context("spawn").Event()
    holder = multiprocessing.get_context("spawn").Process(target=_hold, args=(tmp_path, entered, 1.0))
    holder.start()
    assert entered.wait(20)
    with locks.one_writer(tmp_path):
        assert not holder.is_alive() or holder.join(5) is None
    assert f"is being written by process {holder.pid}" in capsys.readouterr().err
    holder.join()


def test_a_script_without_a_guard_is_reported_by_the_process_that_imports_it_again(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, pathlib\n"
        "from pipeline.system import locks\n"
        "with locks.one_writer(pathlib.Path('folder')):\n"
        "    child = multiprocessing.get_context('spawn').Process(target=print)\n"
        "    child.start()\n"
        "    child.join(60)\n"
        "print(child.exitcode)\n"
    )
    ran = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True)
    assert ran.stdout == "1\n"
    told = 'put what it does under `if __name__ == "__main__":`, so that they do not do it too'
    assert f"RuntimeError: this script starts processes, which import it again; {told}" in ran.stderr


def test_readers_share_a_folder_and_a_writer_waits_for_all_of_them(tmp_path, capsys):
    order, said = [], ""

    def write():
        with locks.one_writer(tmp_path):
            order.append("written")

    def read():
        with locks.reading(tmp_path):
            order.append("read too")

    with locks.reading(tmp_path):
        writer, reader = (threading.Thread(target=target, daemon=True) for target in (write, read))
        writer.start()
        for _ in range(500):
            if said := capsys.readouterr().err:
                break
            time.sleep(0.01)
        reader.start()
        reader.join(20)
        with pytest.raises(ValueError, match=f"{tmp_path} is being written or read; wait for that to end"):
            locks.nobody_else(tmp_path).__enter__()
        order.append("read")
    writer.join(20)
    assert order == ["read too", "read", "written"]
    assert f"{tmp_path} is being read by another run; waiting for that to end" in said


def test_a_reader_waits_for_the_writer(tmp_path, capsys):
    entered = multiprocessing.get_context("spawn").Event()
    holder = multiprocessing.get_context("spawn").Process(target=_hold, args=(tmp_path, entered, 1.0))
    holder.start()
    assert entered.wait(20)
    began = time.time()
    with locks.reading(tmp_path):
        ended = float((tmp_path / "ended").read_text())
    assert began < ended < time.time()
    assert f"is being written by process {holder.pid}" in capsys.readouterr().err
    holder.join()


def test_a_reader_that_has_ended_keeps_nobody_out_by_a_child_that_it_forked(tmp_path):
    with locks.reading(tmp_path):
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=[60])
        child.start()
    with locks.try_exclusive_lock(tmp_path) as free:
        assert free
    child.kill()


NOT_OPENED = [("os.open", number) for number in (errno.EROFS, errno.EACCES, errno.EPERM)]
NOT_LOCKED = [("fcntl.flock", number) for number in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)]


@pytest.mark.parametrize(("call", "number"), [*NOT_OPENED, *NOT_LOCKED])
def test_where_there_can_be_no_lock_a_folder_is_read_without(tmp_path, monkeypatch, call, number):
    def refuse(*given):
        raise OSError(number, "no")

    monkeypatch.setattr(f"pipeline.system.locks.{call}", refuse)
    done = []
    with locks.reading(tmp_path):
        done.append(True)
    assert done


def test_another_fault_of_the_disk_is_no_leave_to_read_without_a_lock(tmp_path):
    with pytest.raises(FileNotFoundError), locks.reading(tmp_path / "none"):
        pass
    with pytest.raises(OSError, match="mine"), locks.reading(tmp_path):
        raise OSError(errno.EROFS, "mine")


def test_a_folder_loses_first_what_makes_it_whole(tmp_path, monkeypatch):
    (tmp_path / "made/folder").mkdir(parents=True)
    for name in ("last", "folder/other"):
        (tmp_path / "made" / name).write_text("")
    monkeypatch.setattr(locks.shutil, "rmtree", lambda folder: 1 / 0)  # killed at once
    with pytest.raises(ZeroDivisionError):
        locks.remove_artifact(tmp_path / "made", first="last")
    assert {path.name for path in (tmp_path / "made").rglob("*")} == {"folder", "other", locks.LOCK}
    monkeypatch.undo()
    with locks.one_writer(tmp_path / "made"):
        assert not locks.remove_artifact(tmp_path / "made", first="last") and (tmp_path / "made/folder/other").exists()
    assert locks.remove_artifact(tmp_path / "made", first="last")
    assert not (tmp_path / "made").exists()
