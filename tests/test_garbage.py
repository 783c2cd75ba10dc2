"""What may go: on folders made by hand, whose records say what was made from what, and on the chain itself."""

import contextlib
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from chains import build, fresh, luigi_command, snapshot
from conftest import ROOT

from pipeline.__main__ import main
from pipeline.artifacts import garbage
from pipeline.artifacts.status import STAGE_FILES
from pipeline.system import files, locks
from tasks import AllSplits, Flow, Frames, FullPipeline, PaperTable, ScoreStream, TrainStream
from tasks.session import writing_nothing

A, B, C = "aaaaaaaaaaaa", "bbbbbbbbbbbb", "cccccccccccc"


class Made:
    """A folder of artifacts; each is younger than the one before."""

    def __init__(self, folder: Path):
        self.folder, self.clock = folder, 0

    def add(self, name: str, *made_from: str, done: bool = True) -> Path:
        folder = self.folder / name
        folder.mkdir(parents=True)
        files.record_made_from(folder, self.folder, [self.folder / other for other in made_from])
        (folder / "payload").write_bytes(bytes(100))
        if done:
            for file in (*STAGE_FILES[folder.parent.name], "checkpoint.pt"):
                (folder / file).write_text("")
                self.clock += 1
                os.utime(folder / file, (self.clock, self.clock))
        return folder

    def waste(self, **options) -> dict[str, str]:
        found = garbage.find(self.folder, **options)
        return {item.path.relative_to(self.folder).as_posix(): item.reason for item in found}


@pytest.fixture
def made(tmp_path) -> Made:
    """Frames; three flows of one name, the first reported, the second given up, the third the newest."""
    made = Made(tmp_path / "artifacts")
    made.add(f"d/frames/native-{A}")
    for digest in (A, B, C):
        made.add(f"d/flow/tvl1-{digest}", f"d/frames/native-{A}")
    made.add(f"d/train_stream/temporal-{A}", f"d/flow/tvl1-{A}")
    made.add(f"d/report/1-{A}", f"d/train_stream/temporal-{A}", f"d/frames/native-{A}")
    return made


GIVEN_UP = {f"d/flow/tvl1-{B}": "there is a newer one, and no result was made from this"}


def test_what_is_not_the_newest_and_served_no_result_may_go(made):
    assert made.waste() == GIVEN_UP
    made.add(f"d/report/1-{B}", f"d/train_stream/temporal-{A}", f"d/flow/tvl1-{B}")
    assert made.waste() == {}


def test_the_only_one_of_its_name_stays_whether_it_served_or_not(made):
    made.add(f"d/flow/brox-{A}", f"d/frames/native-{A}")
    made.add(f"e/flow/tvl1-{A}")
    assert made.waste() == GIVEN_UP


def test_old_results_go_on_request_with_what_only_they_need(made):
    made.add(f"d/train_stream/temporal-{B}", f"d/flow/tvl1-{C}")
    made.add(f"d/report/1-{B}", f"d/train_stream/temporal-{B}")
    assert made.waste() == GIVEN_UP
    old = [f"flow/tvl1-{A}", f"flow/tvl1-{B}", f"train_stream/temporal-{A}", f"report/1-{A}"]
    assert list(made.waste(old=True)) == [f"d/{name}" for name in old]
    made.add(f"d/report/2-{C}", f"d/train_stream/temporal-{A}")  # the newest of another split
    assert set(made.waste(old=True)) == {f"d/flow/tvl1-{B}", f"d/report/1-{A}"}


def test_features_are_a_result(made):
    """Of a stream whose training part was scored, which nothing but ExtractFeatures needs; and of its other parts."""
    made.add(f"d/train_stream/temporal-{B}", f"d/flow/tvl1-{C}")
    made.add(f"d/score_stream/temporal-test-1-{C}", f"d/train_stream/temporal-{B}")
    for digest in (A, B):
        for part in ("train", "test"):
            made.add(f"d/score_stream/temporal-{part}-1-{digest}", f"d/train_stream/temporal-{A}")
    made.add("d/score_stream/mine-old")  # a folder of the user's
    assert made.waste() == GIVEN_UP | {f"d/score_stream/temporal-test-1-{C}": GIVEN_UP[f"d/flow/tvl1-{B}"]}
    features = {f"d/score_stream/temporal-{part}-1-{A}" for part in ("train", "test")}
    assert set(made.waste(old=True)) >= features


def test_what_was_begun_stays_with_what_it_reads(made):
    made.add(f"d/train_stream/temporal-{C}", f"d/flow/tvl1-{B}", done=False)
    assert made.waste() == {}
    begun = {f"d/train_stream/temporal-{C}": "begun, and not ended"}
    assert made.waste(unfinished=True) == GIVEN_UP | begun


def test_another_datasets_artifact_is_kept_for_what_was_made_from_it(made):
    made.add(f"e/flow/tvl1-{A}")
    made.add(f"e/flow/tvl1-{B}")
    assert made.waste() == GIVEN_UP | {f"e/flow/tvl1-{A}": "there is a newer one, and no result was made from this"}
    made.add(f"d/train_stream/temporal-heads-e-{A}", f"e/flow/tvl1-{A}")
    assert made.waste() == GIVEN_UP


@pytest.mark.parametrize("text", [None, "", "{}", "[1]", '{"artifacts": 5}', '{"artifacts": [["a"]]}'])
def test_nothing_goes_if_something_does_not_say_what_it_was_made_from(made, text, capsys):
    record = made.folder / f"d/report/1-{A}" / "made_from.json"
    record.unlink() if text is None else record.write_text(text)
    message = f"report/1-{A}/made_from.json is missing or damaged, so .* run the command that made it again to .* delete the folder .*/report/1-{A} if you can"
    with pytest.raises(ValueError, match=message):
        garbage.find(made.folder)
    assert (
        main(["gc", "--yes", "--artifacts", str(made.folder)]) == 2
        and "is missing or damaged" in capsys.readouterr().err
    )


def test_remains_of_killed_runs_go_unless_a_run_is_at_work(made):
    remains = made.folder / f"d/flow/tvl1-{C}/shards/.shard-0.tmp-77.h5"
    remains.parent.mkdir()
    remains.write_bytes(bytes(10))
    found = garbage.find(made.folder)
    assert [(item.path, item.bytes) for item in found][1] == (remains, 10) and len(found) == 2
    with locks.one_writer(found[0].artifact):  # no folder of remains
        assert [gone for _, gone in garbage.remove(found)] == [False, True]
    assert found[0].path.is_dir() and not remains.exists()
    again = garbage.find(made.folder)
    assert [gone for _, gone in garbage.remove(again)] == [True] and not found[0].path.exists()


def test_the_command_lists_and_removes_when_told(made, capsys):
    options = ["--artifacts", str(made.folder)]
    before = snapshot(made.folder)
    assert main(["gc", *options]) == 0 and snapshot(made.folder) == before
    said = capsys.readouterr().out
    assert (
        f"tvl1-{B}" in said
        and "there is a newer one, and no result was made from this" in said
        and "in all; --yes removes them" in said
    )
    assert main(["gc", "--yes", *options]) == 0
    said = capsys.readouterr().out
    assert f"removed {made.folder}/d/flow/tvl1-{B}\n" in said and said.endswith(" B freed\n")
    assert main(["gc", *options]) == 0 and "there is nothing to remove in" in capsys.readouterr().out
    assert set(snapshot(made.folder)) - {locks.IN_USE} < set(before)


@pytest.mark.parametrize("command", [["gc", "--yes", "--old"], ["invalidate", "flow"]])
def test_a_file_that_is_open_does_not_keep_its_folder_on_nfs(made, monkeypatch, command):
    """Instead of removing a file that this machine has open, NFS renames it."""
    unlink = os.unlink

    def unlink_of_nfs(path, *, dir_fd=None):
        about = os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
        if not any(os.path.samestat(about, other) for other in _open_files()):
            unlink(path, dir_fd=dir_fd)
            return
        renamed = Path(path).with_name(f".nfs{about.st_ino:x}")
        os.rename(path, renamed, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", unlink_of_nfs)
    assert main([*command, "--artifacts", str(made.folder)]) == 0
    assert not (made.folder / f"d/flow/tvl1-{B}").exists()


def _open_files():
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the listing itself
            yield os.fstat(int(number))


def test_the_command_says_what_stays(made, capsys):
    with locks.one_writer(made.folder / f"d/flow/tvl1-{B}"):
        assert main(["gc", "--yes", "--artifacts", str(made.folder)]) == 0
    assert f"tvl1-{B} is being written or read by another run, and stays\n0 B freed\n" in capsys.readouterr().out


def test_the_chain_writes_down_what_it_was_made_from(config, tmp_path):
    assert build(fresh(FullPipeline))
    artifacts = tmp_path / "artifacts"
    stages = {path.parent.parent.name for path in artifacts.rglob("made_from.json")}
    assert stages == {"catalog", "frames", "flow", "train_stream", "score_stream", "fuse", "report"}
    scored = fresh(ScoreStream, stream="temporal", part="test")
    record = json.loads((scored.folder / "made_from.json").read_text())["artifacts"]
    assert [name.split("/")[1] for name in record] == ["catalog", "flow", "train_stream"]
    assert garbage.find(artifacts) == []
    first = fresh(TrainStream, stream="temporal").folder
    config.set("temporal", "steps", "5")
    assert build(fresh(FullPipeline)) and garbage.find(artifacts) == []  # each has its report
    old = {item.path for item in garbage.find(artifacts, old=True)}
    assert first in old and {path.parent.name for path in old} == {"train_stream", "score_stream", "fuse", "report"}
    assert all(gone for _, gone in garbage.remove(garbage.find(artifacts, old=True)))
    before = snapshot(artifacts)
    assert build(fresh(FullPipeline)) and snapshot(artifacts) == before  # nothing had to be made again


def test_what_an_artifact_was_made_from_is_written_down_again(config, tmp_path):
    """Without it `gc` removes nothing at all; to remove a training only for that would cost days."""
    assert build(fresh(Flow))
    for task, text in ((fresh(Flow), None), (fresh(Frames), "{")):
        record = task.folder / files.MADE_FROM
        before = record.read_text()
        record.unlink() if text is None else record.write_text(text)
        assert fresh(Flow).complete() and record.read_text() == before


def test_a_table_under_way_keeps_its_rows(config, tmp_path, monkeypatch):
    table = {"table": "1b", "rows": "l1,l5"}
    real, scored = ScoreStream.make, []

    def second_fails(task):
        if scored:
            raise RuntimeError("broken on purpose")
        scored.append(task.folder)
        real(task)

    monkeypatch.setattr(ScoreStream, "make", second_fails)
    assert not build(fresh(PaperTable, **table))
    monkeypatch.undo()
    config.set("run", "artifacts", str(tmp_path / "artifacts"))
    assert scored[0].is_dir() and garbage.find(tmp_path / "artifacts") == []


def test_finished_seeds_are_kept_for_a_summary_under_way(tiny, config, tmp_path):
    given = {"dataset": tiny, "splits": "anna", "seeds": "0,1"}
    config.set("run", "artifacts", str(tmp_path / "artifacts"))
    assert not fresh(AllSplits, **given).complete()
    for seed in (0, 1):
        assert build(fresh(TrainStream, dataset=tiny, split="anna", stream="spatial", seed=seed))
    assert garbage.find(tmp_path / "artifacts") == []


def test_weights_that_its_trainings_start_from_are_written_down_for_a_summary_under_way(tiny, config, tmp_path):
    start = tmp_path / "artifacts/tiny/train_stream/spatial-small-anna-aaaaaaaaaaaa/checkpoint.pt"
    start.parent.mkdir(parents=True)
    start.write_text("")
    config.set("run", "artifacts", str(tmp_path / "artifacts"))
    config.read_dict({"temporal": {"start": str(start)}})
    table = fresh(AllSplits, dataset=tiny, splits="anna")
    table.record()
    assert "tiny/train_stream/spatial-small-anna-aaaaaaaaaaaa" in files.read_made_from(table.folder)


def test_a_plan_writes_down_nothing(tiny, config, tmp_path):
    config.set("run", "artifacts", str(tmp_path / "artifacts"))
    with writing_nothing():
        assert not fresh(AllSplits, dataset=tiny, splits="anna").complete()
    assert not (tmp_path / "artifacts").exists()


def test_weights_that_a_training_starts_from_are_kept(config, tmp_path):
    first = fresh(TrainStream, stream="spatial")
    assert build(first)
    weights = first.weights
    config.read_dict({"spatial": {"start": str(weights)}})
    second = fresh(TrainStream, stream="spatial")
    assert build(second) and weights.parent != second.folder
    assert garbage.find(tmp_path / "artifacts") == []
    scored = fresh(ScoreStream, stream="spatial", checkpoint=os.path.relpath(weights))
    assert build(scored)
    names = files.read_made_from(scored.folder)
    assert weights.parent.relative_to(tmp_path / "artifacts").as_posix() in names


def test_nothing_was_read_yet_where_nothing_is_written_down(made):
    (made.folder / f"d/train_stream/temporal-{C}").mkdir()
    assert made.waste() == GIVEN_UP


def test_an_artifact_may_lie_elsewhere_and_be_linked_to(made, tmp_path):
    (made.folder / f"d/report/latest-{A}").symlink_to(f"1-{A}")
    assert made.waste() == GIVEN_UP
    flow = made.folder / f"d/flow/tvl1-{C}"
    made.add(f"d/frames/native-{B}")
    files.record_made_from(flow, made.folder, [made.folder / f"d/frames/native-{A}"])
    flow.rename(tmp_path / "elsewhere")
    flow.symlink_to(tmp_path / "elsewhere")
    assert made.waste() == GIVEN_UP
    made.add(f"d/flow/tvl1-{'d' * 12}")  # a newer one
    assert set(made.waste()) == {f"d/flow/tvl1-{B}", f"d/flow/tvl1-{C}"}
    assert all(gone for _, gone in garbage.remove(garbage.find(made.folder)))
    assert not flow.is_symlink() and not (tmp_path / "elsewhere").exists() and made.waste() == {}


@pytest.mark.parametrize("command", ["invalidate", "repair"])
def test_nothing_is_taken_from_under_a_run(made, capsys, command):
    folder = made.folder / f"d/flow/tvl1-{A}"
    given = ["flow", "--artifacts", str(made.folder)] if command == "invalidate" else [str(folder)]
    run = locks.hold_shared_lock(made.folder, create=True)
    assert main([command, *given]) == 2 and "a run is going on in" in capsys.readouterr().err and folder.exists()
    if command == "repair":  # a link to the store, in a folder without artifacts
        (made.folder.parent / "link").symlink_to(folder)
        assert main([command, str(made.folder.parent / "link")]) == 2
        assert f"a run is going on in {made.folder.resolve()}" in capsys.readouterr().err
    os.close(run)
    main([command, *given])
    assert "a run is going on in" not in capsys.readouterr().err and folder.exists() == (command == "repair")


def test_a_run_that_waits_for_a_removal_says_so(made, capsys):
    said = ""
    with ThreadPoolExecutor(1) as pool:
        with locks.try_exclusive_lock(made.folder, locks.IN_USE):
            waiting = pool.submit(locks.hold_shared_lock, made.folder, create=True)
            for _ in range(500):
                if said := capsys.readouterr().err:
                    break
                time.sleep(0.01)
            assert not waiting.done()
        os.close(waiting.result(timeout=10))
    assert said == f"something is being removed from {made.folder}; waiting for that to end\n"


def test_nothing_is_removed_while_a_run_is_going_on(made, capsys):
    options = ["--artifacts", str(made.folder)]
    assert locks.hold_shared_lock(made.folder, create=False) == -1 and not (made.folder / locks.IN_USE).exists()
    run = locks.hold_shared_lock(made.folder, create=True)
    again = locks.hold_shared_lock(made.folder, create=False)  # several runs are no trouble to each other
    assert main(["gc", "--yes", *options]) == 2
    assert "a run is going on in" in capsys.readouterr().err and main(["gc", *options]) == 0
    os.close(run)
    assert main(["gc", "--yes", *options]) == 2
    os.close(again)
    assert main(["gc", "--yes", *options]) == 0 and made.waste() == {}
    assert main(["gc", "--yes", "--artifacts", str(made.folder / "none")]) == 0


def test_the_state_of_a_training_that_was_killed_after_its_last_file_may_go(made):
    folder = made.folder / f"d/train_stream/temporal-{A}"
    (folder / "resume.pt").write_bytes(bytes(10))
    assert made.waste()[f"d/train_stream/temporal-{A}/resume.pt"] == "of a training that is done"
    (folder / "curve.json").unlink()  # it is under way, and goes on from there
    assert f"d/train_stream/temporal-{A}/resume.pt" not in made.waste()


def test_a_command_takes_part(overlay, tmp_path):
    done = luigi_command("Catalog", cwd=ROOT, PYTHONPATH=str(ROOT), **overlay)
    assert done.returncode == 0 and list(tmp_path.rglob(locks.IN_USE))
