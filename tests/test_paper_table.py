"""A table of the paper as one command: what a row changes, what rows share, what is reused, and what a failure costs."""

import gc
import json
import weakref
from types import SimpleNamespace

import pytest
from chains import build, fresh, luigi_command, snapshot
from conftest import ROOT, moving_texture, write_video
from luigi.cmdline_parser import CmdlineParser
from pages import Page

from pipeline.artifacts import garbage, inspection
from pipeline.artifacts.status import status
from pipeline.report import paper
from pipeline.system.errors import StageFailed
from tasks import Catalog, Flow, Frames, FullPipeline, Fuse, PaperTable, ScoreStream, TrainStream, mistakes, settings
from tasks.finish import NotMade, finish
from tasks.tables import RowsFailed

TWO_ROWS = {"table": "1b", "rows": "l1,l5"}


def table(of: PaperTable) -> dict:
    return json.loads(of.path.read_text())


def states(of: PaperTable) -> dict[str, str]:
    return {row["key"]: row["state"] for row in table(of)["rows"]}


def state_on_disk(of: PaperTable) -> str:
    (state,) = [row["state"] for row in status(of.folder.parents[2]) if row["path"] == str(of.folder)]
    return state


# --- changes


def test_a_changed_setting_wins_over_everything_and_reaches_what_reads_it(config):
    config.read_dict({"dataset.four": {"stack_length": "3", "temporal_dropout": "0.1"}})
    changes = {"stack_length": 4, "flow_backward": "true", "temporal_seed": "8", "val_fraction": "0.2"}
    task = fresh(TrainStream, stream="temporal", changes=changes, seed=2)
    assert (task.stream_spec.stack.length, task.stream_spec.dropout, task.stream_spec.seed) == (4, 0.1, 8)
    assert task.spec("dataset").val_fraction == 0.2
    flow, catalog = task.requires()
    assert flow.spec("flow").backward and not fresh(Flow).spec("flow").backward
    assert dict(flow.changes) == {"flow_backward": "true", "val_fraction": "0.2"}
    assert dict(catalog.changes) == {"val_fraction": "0.2"}
    with CmdlineParser.global_instance(["Flow", "--stack-length", "5"], allow_override=True):
        assert settings.resolve("stack", "four").length == 5
        assert settings.resolve("stack", "four", changes).length == 4


def test_what_is_changed_and_what_is_configured_is_one_artifact(config):
    changed = {"stack_length": "4", "stack_kind": "trajectory", "temporal_dropout": "0.25"}
    tasks = [(ScoreStream, {"stream": "temporal", "part": "test"}), (Fuse, {}), (Flow, {}), (Frames, {}), (Catalog, {})]
    folders = [fresh(task, changes=changed, **of).folder for task, of in tasks]
    report = fresh(FullPipeline, changes=changed).requires().folder
    before = [fresh(task, **of).folder for task, of in tasks]
    config.read_dict({"stack": {"length": "4", "kind": "trajectory"}, "dataset.four": {"temporal_dropout": "0.25"}})
    assert [fresh(task, **of).folder for task, of in tasks] == folders
    assert [a == b for a, b in zip(before, folders, strict=True)] == [False, False, True, True, True]
    assert fresh(FullPipeline).requires().folder == report


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flow_metod": "tvl1"}, "setting flow_metod in changes does not exist; did you mean 'flow_method'"),
        ({"layuot": "csv"}, "setting layuot in changes does not exist; did you mean 'layout'"),
        ({"demo_groups": "3"}, "setting demo_groups in changes does not exist"),
        ({"run_seed": "3"}, "setting run_seed in changes does not exist"),
        ({"flow_method": "tvl2"}, r"\[flow\] method is 'tvl2'; allowed"),
        ({"stack_direction": "bidirectional"}, "which needs backward flow"),
    ],
)
def test_wrong_changes_are_refused(config, changes, message):
    with pytest.raises(ValueError, match=message):
        fresh(TrainStream, stream="temporal", changes=changes)


# --- rows


def test_rows_of_a_stream_need_that_stream_alone_and_share_one_flow(config):
    of = fresh(PaperTable, table="1b")
    planned = {p.row.key: p for p in of.plan}
    run = [p for p in of.plan if p.tasks]
    assert [p.row.key for p in of.plan if p.reason] == ["slow-fusion", "multi-task"]
    assert len(run) == 7 and len({p.tasks[0].digest for p in run}) == 7
    assert all(isinstance(p.tasks[0], ScoreStream) and p.tasks[0].stream == "temporal" for p in run)
    assert all(p.tasks[0].part == "test" for p in run)  # validation clips chose among the weights
    flows = {task for p in run for task in p.tasks[0].before() if isinstance(task, Flow)}
    assert len(flows) == 1 and next(iter(flows)).spec("flow").backward
    assert {type(task) for task in of.requires()} == {Catalog, Frames, Flow} and len(of.requires()) == 3
    lengths = {key: p.tasks[0].requires()[0].stream_spec.stack.length for key, p in planned.items() if p.tasks}
    assert lengths["l1"] == 1 and lengths["l5"] == 5 and lengths["trajectory"] == 10
    alone = fresh(PaperTable, table="1b", rows="l1,trajectory")
    assert not any(t.spec("flow").backward for t in alone.requires())  # no row needs it
    assert [p.reason for p in alone.plan].count("left out by --rows") == 5


def test_spatial_rows_need_no_flow(config, tmp_path):
    of = fresh(PaperTable, table="1a", seeds="0,3")
    assert {type(task) for task in of.requires()} == {Catalog, Frames}
    assert [p.row.key for p in of.plan if p.tasks] == ["scratch-0.5", "scratch-0.9"]
    assert [task.run_spec.seed for task in of.plan[0].tasks] == [0, 3]
    assert "--spatial-start FILE" in of.plan[2].reason
    config.read_dict({"spatial": {"start": str(tmp_path / "weights.pth"), "steps": "8"}})
    specs = [p.tasks[0].requires()[0].stream_spec for p in fresh(PaperTable, table="1a").plan]
    assert [s.start == "scratch" for s in specs] == [True, True, False, False, False, False]
    assert [s.steps for s in specs] == [32, 32, 8, 8, 8, 8] and specs[0].milestones == (20, 28)
    assert [(s.dropout, s.train_layers) for s in specs[3:5]] == [(0.9, "all"), (0.5, "last")]


def test_fused_rows_are_fusions(config):
    tasks = [p.tasks[0] for p in fresh(PaperTable, table="4").plan if p.tasks]
    assert [type(task) for task in tasks] == [ScoreStream, ScoreStream, Fuse, Fuse]
    assert tasks[2] == tasks[3]
    assert [task.stream for task in tasks[:2]] == ["spatial", "temporal"]


def test_splits_are_the_datasets_own_or_all(config, tiny):
    assert fresh(PaperTable, dataset=tiny, table="1b").split_list == ["dan"]
    assert fresh(PaperTable, dataset=tiny, table="4").split_list == ["anna", "ben", "cleo", "dan"]
    assert fresh(PaperTable, dataset=tiny, table="1b", splits="all").split_list == ["anna", "ben", "cleo", "dan"]
    assert fresh(PaperTable, dataset=tiny, table="4", splits="ben").split_list == ["ben"]


def test_a_row_that_the_settings_forbid_says_so(config, monkeypatch):
    monkeypatch.setattr(paper, "changes", lambda row, *_: {"temporal_nonsense": "1"} if row.key == "l5" else {})
    (l5,) = [p for p in fresh(PaperTable, **TWO_ROWS).plan if p.row.key == "l5"]
    assert not l5.tasks and l5.reason.startswith("setting temporal_nonsense in changes does not exist")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"rows": "l6"}, "--rows: row 'l6' of table 1b does not exist; allowed: bidirectional, l1, "),
        ({"rows": "slow-fusion"}, "row 'slow-fusion' of table 1b does not exist"),
        ({"with_dataset": "hmdb"}, "--with-dataset 'hmdb' does not exist"),
        ({"with_dataset": "four"}, "--with-dataset 'four' does not exist"),  # itself
        ({"seeds": "0,x"}, "--seeds is '0,x'"),
        ({"seeds": "0,1", "changes": {"temporal_seed": "3"}}, r"--seeds is '0,1', but \[temporal\] seed is given"),
    ],
)
def test_wrong_parameters_are_refused(config, parameters, message):
    with pytest.raises(ValueError, match=message):
        assert fresh(PaperTable, table="1b", **parameters).complete()


def test_what_all_rows_have_in_common_is_what_none_of_them_changes(config):
    config.read_dict({"spatial": {"start": "w.pth", "steps": "80", "milestones": "50"}})
    catalogs = [SimpleNamespace(part=lambda name, count=count: [0] * count) for count in (9, 7, 8)]
    found = fresh(PaperTable, table="1a")._setup(catalogs)
    assert "w.pth" not in found["spatial"] and "80" not in found["spatial"] and "batch 4" in found["spatial"]
    assert found["training"] == "7 to 9 clips, and 7 to 9 for validation"
    assert "80 steps" in fresh(PaperTable, table="3")._setup(catalogs)["spatial"]


def test_a_row_tells_what_distinguishes_its_training(config):
    config.read_dict({"spatial": {"start": "w.pth", "steps": "80", "milestones": "50"}})
    of = fresh(PaperTable, table="1a")
    told = {planned.row.key: of._training_of(planned) for planned in of.plan}
    assert told["scratch-0.5"] == "spatial: starts from scratch, 320 steps"
    assert told["tuned-0.9"] == told["last-0.5"] == "spatial: starts from w.pth, 80 steps"


@pytest.mark.parametrize("number", ["3", "4"])
def test_a_split_without_validation_clips_is_refused_before_any_work(config, tmp_path, number):
    """Table 4 has rows of one stream, which do without, but its fusions are chosen on validation clips."""
    config.read_dict({"dataset.four": {"group_pattern": "(?P<group>[ab]|[cd])", "layout": "folder", "lists": ""}})
    (tmp_path / "videos").rename(tmp_path / "before")
    for name, path in zip("abcd", sorted((tmp_path / "before").rglob("*.avi")), strict=True):
        folder = tmp_path / "videos" / ("first" if name in "ac" else "second")
        folder.mkdir(parents=True, exist_ok=True)
        path.rename(folder / f"{'x' if name in 'ab' else 'y'}_{name}.avi")
    config.set("dataset.four", "group_pattern", "(?P<group>[xy])_")
    with pytest.raises(ValueError, match="split x has no validation clips, on which fusions are chosen"):
        fresh(PaperTable, table=number, splits="x,y").complete()
    assert not (tmp_path / "artifacts").exists()


def test_settings_that_cannot_be_trained_are_refused_before_any_work(config, tmp_path):
    config.read_dict({"temporal": {"network": "nonsense"}})
    with pytest.raises(ValueError, match="nonsense"):
        fresh(PaperTable, **TWO_ROWS).complete()
    assert not (tmp_path / "artifacts").exists()


# --- the way


def test_two_rows_go_all_the_way_and_are_reused(config, tmp_path):
    assert build(fresh(PaperTable, **TWO_ROWS))
    of = fresh(PaperTable, **TWO_ROWS)
    assert of.folder.parent == tmp_path / "artifacts/four/tables"
    measured = {key for key, state in states(of).items() if state == "measured"}
    assert measured == {"l1", "l5"} and states(of)["slow-fusion"] == "published" and states(of)["l10"] == "not run"
    (row,) = [row for row in table(of)["rows"] if row["key"] == "l5"]
    assert row["top1"] in (0.0, 1.0) and row["clips"] == 1 and row["difference"] is None
    assert row["paper"] == {"ucf101": 0.804} and row["changes"]["stack_length"] == "5"
    assert (of.folder.parent / "latest-1b").resolve() == of.folder.resolve()
    assert table(of)["setup"]["training"] == "2 clips, and 1 for validation"
    shown = Page((of.folder / "table.html").read_text())
    assert "80.4" in shown.text and "left out by --rows" in shown.text and not shown.addresses

    before = snapshot(tmp_path / "artifacts")
    assert fresh(PaperTable, **TWO_ROWS).complete() and build(fresh(PaperTable, **TWO_ROWS))
    assert snapshot(tmp_path / "artifacts") == before  # nothing to do: nothing is written

    trained = {path.name for path in (tmp_path / "artifacts/four/train_stream").iterdir()}
    config.read_dict({"stack": {"length": "5"}})
    assert build(fresh(FullPipeline))  # has the row's settings
    new = {path.name for path in (tmp_path / "artifacts/four/train_stream").iterdir()} - trained
    assert [name.split("-")[0] for name in new] == ["spatial"]

    (found,) = [row for row in status(tmp_path / "artifacts") if row["stage"] == "tables"]
    assert (found["label"], found["state"]) == ("1b", "done")
    assert inspection.describe(of.folder)["summary"]["table"] == "1b"
    assert garbage.invalidate(tmp_path / "artifacts", "tables") == [of.folder]
    assert not fresh(PaperTable, **TWO_ROWS).complete()


def test_a_row_that_fails_loses_no_other_and_is_made_on_the_next_run(config, monkeypatch, capsys):
    make, tried = TrainStream.make, []

    def make_or_diverge(self):
        tried.append(self.stream_spec.stack.length)
        if self.stream_spec.stack.length == 1:
            raise RuntimeError("the loss is nan")
        make(self)

    monkeypatch.setattr(TrainStream, "make", make_or_diverge)
    assert not build(fresh(PaperTable, **TWO_ROWS))
    of = fresh(PaperTable, **TWO_ROWS)
    assert (states(of)["l1"], states(of)["l5"]) == ("failed", "measured") and not of.complete()
    assert "failed: TrainStream temporal-small-1: the loss is nan" in (of.folder / "table.md").read_text()
    assert state_on_disk(of) == "unfinished"
    assert tried == [1, 5]
    with pytest.raises(RowsFailed, match="rows that failed: l1; run the command again to go on with them") as failed:
        of.run()
    assert mistakes.line_unless_bug(failed.value) == str(failed.value)  # a line, not a traceback
    assert tried.pop() == 1 and 'RuntimeError("the loss is nan")' in capsys.readouterr().err  # the line of a traceback
    monkeypatch.setattr(TrainStream, "make", lambda self: (tried.append(self.stream_spec.stack.length), make(self)))
    assert build(fresh(PaperTable, **TWO_ROWS))
    assert tried == [1, 5, 1]
    assert states(of)["l1"] == "measured" and fresh(PaperTable, **TWO_ROWS).complete()
    assert state_on_disk(of) == "done"


def test_a_row_that_fails_shows_no_scores_that_lay_there_before(config, tmp_path, monkeypatch):
    assert build(fresh(PaperTable, **TWO_ROWS))
    of = fresh(PaperTable, **TWO_ROWS)
    (l1,) = [planned.tasks[0] for planned in of.plan if planned.row.key == "l1"]
    l1.path.write_bytes(l1.path.read_bytes()[:200])
    of.path.unlink()
    with pytest.raises(RowsFailed, match="rows that failed: l1"):
        fresh(PaperTable, **TWO_ROWS).run()
    rows = {row["key"]: row for row in table(of)["rows"]}
    assert "is no HDF5 file, or a damaged one" in rows["l1"]["reason"] and not rows["l1"]["trials"]
    assert rows["l5"]["state"] == "measured" and rows["l5"]["trials"]

    write_video(tmp_path / "videos/b.avi", moving_texture(9, seed=77))  # the row that is there is out of date
    monkeypatch.setattr(TrainStream, "make", lambda self: 1 / 0)
    assert not build(fresh(PaperTable, **TWO_ROWS))
    rows = {row["key"]: row for row in table(fresh(PaperTable, **TWO_ROWS))["rows"]}
    assert rows["l5"]["state"] == "failed" and not rows["l5"]["trials"]


def test_what_changes_while_it_is_read_fails_its_row(config, monkeypatch):
    monkeypatch.setattr(TrainStream, "make", lambda self: None)  # after which nothing is there
    of = fresh(PaperTable, table="1b", rows="l1")
    with pytest.raises(RowsFailed, match="rows that failed: l1"):
        of.run()
    assert "is not complete after its run: what it reads has changed meanwhile" in next(
        row["reason"] for row in table(of)["rows"] if row["key"] == "l1"
    )


def test_what_failed_does_not_stay_in_memory(config, monkeypatch):
    class Network:
        pass

    networks = []

    def make_and_fail(self):
        network = Network()
        networks.append(weakref.ref(network))
        try:
            raise RuntimeError(f"no memory for {network}")
        except RuntimeError as error:
            raise StageFailed("no memory") from error

    monkeypatch.setattr(TrainStream, "make", make_and_fail)
    broken = {}
    with pytest.raises(NotMade, match="TrainStream spatial.*: no memory"):
        finish(fresh(TrainStream, stream="spatial"), broken)
    gc.collect()
    assert broken and networks[0]() is None


def test_what_failed_for_one_row_is_not_tried_for_the_next(config, monkeypatch):
    make, tried = TrainStream.make, []

    def make_or_fail(self):
        tried.append(self.stream)
        if self.stream == "temporal":
            raise RuntimeError("no")
        make(self)

    monkeypatch.setattr(TrainStream, "make", make_or_fail)
    assert not build(fresh(PaperTable, table="4"))
    assert sorted(tried) == ["spatial", "temporal"]
    found = states(fresh(PaperTable, table="4"))
    assert [found[key] for key in ("spatial", "temporal", "average", "svm")] == ["measured", *["failed"] * 3]


def test_the_clips_of_all_persons_are_pooled(config, tiny):
    given = {"dataset": tiny, "table": "1b", "rows": "l1", "splits": "anna,dan"}
    assert build(fresh(PaperTable, **given))
    numbers = table(fresh(PaperTable, **given))
    (row,) = [row for row in numbers["rows"] if row["key"] == "l1"]
    assert numbers["accuracy"] == "of the clips of all splits" and numbers["splits"] == ["anna", "dan"]
    assert row["clips"] == 4 and row["top1"] == sum(t["correct"] for t in row["trials"]) / 4


def test_official_splits_count_alike_as_in_the_paper(config, tiny, monkeypatch):
    monkeypatch.setattr(paper, "SETS", {**paper.SETS, "folder": "one with official splits"})
    given = {"dataset": tiny, "table": "1b", "rows": "l1", "splits": "anna,dan"}
    assert build(fresh(PaperTable, **given))
    numbers = table(fresh(PaperTable, **given))
    (row,) = [row for row in numbers["rows"] if row["key"] == "l1"]
    assert numbers["accuracy"] == "mean over splits"
    assert row["top1"] == pytest.approx(sum(t["top1"] for t in row["trials"]) / 2)


def test_a_mistake_is_reported_in_one_line(overlay):
    failed = luigi_command("PaperTable", "--table", "1b", "--rows", "l6", cwd=ROOT, PYTHONPATH=str(ROOT), **overlay)
    assert failed.returncode != 0 and "Traceback" not in failed.stderr
    assert "error: --rows: row 'l6' of table 1b does not exist" in failed.stderr
