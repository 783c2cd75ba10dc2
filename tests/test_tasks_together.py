"""A stream trained together with another dataset, as tasks: what is required, made again, refused."""

import json
import shutil
from types import SimpleNamespace

import pytest
from chains import build, fresh, luigi_command, snapshot, write_four_clips
from conftest import ROOT, moving_texture, write_video

from pipeline.networks.checkpoint import load_checkpoint
from pipeline.scores import Scores
from tasks import Catalog, Flow, Frames, PaperTable, Report, ScoreStream, TrainStream


@pytest.fixture
def two(config, tmp_path):
    """The four clips, and four more of which one class has the same name but for its case."""
    section = write_four_clips(tmp_path / "more", seed=20)
    listed = tmp_path / "more" / "clips.csv"
    listed.write_text(listed.read_text().replace(",right,", ",RIGHT,").replace(",down,", ",fall,"))
    config.read_dict({"dataset.more": section})
    return config


def together(config, how, dataset="four", other="more", stream="temporal", **values):
    given = {"with_dataset": other, "with_how": how, **values}
    config.read_dict({f"dataset.{dataset}": {f"{stream}_{name}": value for name, value in given.items()}})


@pytest.mark.parametrize(
    ("how", "others"),
    [("heads", ("RIGHT", "fall")), ("classes", ("fall",)), ("start", ())],
    ids=lambda value: str(value),
)
def test_a_stream_is_trained_together_and_scored_on_its_own_classes(two, tmp_path, how, others):
    together(two, how)
    task = fresh(ScoreStream, stream="temporal", part="test")
    assert build(task)
    trained = fresh(TrainStream, stream="temporal")
    assert trained.folder.name.startswith(f"temporal-small-1-{how}-more-")
    found = load_checkpoint(trained.weights, classes=("down", "right"))
    assert found.other_classes == others and found.spec.with_how == how
    scores = Scores.read(task.path)
    assert scores.classes == ("down", "right") and scores.video_ids == ("d",) and not scores.failed
    assert (tmp_path / "artifacts/more/train_stream").exists() == (how == "start")
    assert not (tmp_path / "artifacts/more/score_stream").exists()

    before = snapshot(tmp_path / "artifacts")
    assert build(fresh(ScoreStream, stream="temporal", part="test"))
    assert snapshot(tmp_path / "artifacts") == before
    write_video(tmp_path / "more/videos/b.avi", moving_texture(11, seed=99))
    assert not fresh(TrainStream, stream="temporal").complete()
    assert build(fresh(Catalog, dataset="more"), fresh(Flow, dataset="more"))
    assert not fresh(TrainStream, stream="temporal").complete() and fresh(Flow).complete()


def test_a_group_held_out_here_and_trained_on_there_is_reported(two, tmp_path, capsys):
    listed = tmp_path / "more/clips.csv"
    listed.write_text(listed.read_text().replace(",d,test", ",d,train"))
    together(two, "heads")
    assert build(fresh(TrainStream, stream="temporal"))
    assert "1 groups that are held out here have training clips in more, by their names: 'd'" in capsys.readouterr().err


def test_the_report_says_what_it_was_trained_together_with(two):
    together(two, "heads")
    assert build(fresh(Report))
    folder = fresh(Report).folder
    metrics = json.loads((folder / "metrics.json").read_text())
    labels = {row["label"] for row in metrics["stages"] if row["stage"] == "TrainStream"}
    assert labels == {"spatial-small-1", "temporal-small-1-heads-more"} and metrics["num_test"] == 1
    page = (folder / "report.html").read_text()
    assert "<td>with_dataset</td><td>more</td>" in page


def test_two_sets_may_each_start_from_the_other(two):
    together(two, "start")
    together(two, "start", dataset="more", other="four")
    four, more = (fresh(TrainStream, stream="temporal", dataset=name) for name in ("four", "more"))
    assert [type(task).__name__ for task in four.requires()] == ["Flow", "Catalog", "TrainStream"]
    start = four.requires()[2]
    assert (start.dataset_name, start.alone, len(start.requires())) == ("more", True, 2)
    assert four.digest != more.digest and start.folder not in (four.folder, more.folder)
    two.read_dict({"dataset.more": {"temporal_with_dataset": "", "temporal_with_how": ""}})
    plain = fresh(TrainStream, stream="temporal", dataset="more")
    assert plain.folder == start.folder  # it is the training that `more` has without another


def test_what_is_read_of_the_other_is_part_of_the_digest(two):
    alone = fresh(TrainStream, stream="spatial").digest
    together(two, "heads", stream="spatial")
    heads = fresh(TrainStream, stream="spatial")
    digests = {alone, heads.digest}
    assert [type(task) for task in heads.requires()] == [Frames, Catalog, Frames, Catalog]
    assert [task.dataset_name for task in heads.requires()] == ["four", "four", "more", "more"]
    two.read_dict({"dataset.more": {"val_fraction": "0.3"}})
    assert len(digests | {fresh(TrainStream, stream="spatial").digest}) == 3


def test_rows_of_a_table_use_the_other_set_as_they_say_and_not_as_is_configured(two):
    two.read_dict({"temporal": {"steps": "40", "milestones": "25, 35", "warmup": "8"}})
    together(two, "heads")
    together(two, "heads", stream="spatial")
    trained = {p.row.key: p.tasks[0].requires()[0] for p in fresh(PaperTable, table="2").plan}
    assert {key: task.stream_spec.with_how for key, task in trained.items()} == {
        "alone": "",
        "tuned": "start",
        "classes": "classes",
        "multi-task": "heads",
    }
    fused = [
        task for p in fresh(PaperTable, table="3").plan if p.row.key == "average" for task in p.tasks[0].requires()
    ]
    assert not any(t.requires()[0].stream_spec.with_dataset for t in fused if isinstance(t, ScoreStream))
    catalogs = [SimpleNamespace(part=lambda name: [0])]
    assert "starts from" not in fresh(PaperTable, table="2")._setup(catalogs)["temporal"]  # as one row does not
    # fine-tuning is shorter, the training that it starts from is not
    assert (trained["tuned"].stream_spec.steps, trained["tuned"].stream_spec.milestones) == (10, (7,))
    start = trained["tuned"].requires()[2]
    assert trained["tuned"].stream_spec.warmup == 2
    assert start.dataset_name == "more" and (start.stream_spec.steps, start.stream_spec.warmup) == (40, 8)


def test_another_set_that_was_asked_for_and_does_not_go_with_this_one_is_refused(two):
    two.read_dict({"dataset.more": {"flow_bound_px": "9"}})
    with pytest.raises(ValueError, match=r"\[flow\] bound_px is 20.0 for four, but 9.0 for more"):
        assert fresh(PaperTable, table="2", with_dataset="more").plan
    together(two, "heads")  # configured, and not asked for in this table: its other rows are run
    assert [p.row.key for p in fresh(PaperTable, table="2").plan if not p.reason] == ["alone"]


@pytest.mark.parametrize(("layout", "lists", "split"), [("hmdb51", "l", "2"), ("folder", "", "3")])
def test_official_lists_have_the_same_split_and_others_their_own(two, layout, lists, split):
    two.read_dict({"dataset.u": {"layout": "ucf101", "videos": "v", "lists": "l"}})
    two.read_dict({"dataset.h": {"layout": layout, "videos": "v", "lists": lists, "split": "3"}})
    together(two, "heads", dataset="u", other="h")
    *_, flow, catalog = fresh(TrainStream, stream="temporal", dataset="u", split="2").requires()
    assert flow.dataset_name == catalog.dataset_name == "h" and catalog.split_name == split


@pytest.mark.parametrize(
    ("how", "other", "settings", "message"),
    [
        ("heads", "four", {}, r"\[temporal\] with_dataset is 'four', which is this dataset itself; name another, or"),
        ("heads", "mor", {}, r"\[temporal\] with_dataset: dataset 'mor' does not exist; did you mean 'more'"),
        ("", "more", {}, "with_dataset is 'more' and with_how is ''; give both"),
        (
            "heads",
            "more",
            {"flow_bound_px": "9"},
            r"\[flow\] bound_px is 20.0 for four, but 9.0 for more; what is trained",
        ),
        (
            "classes",
            "more",
            {"frames_short_side_px": "40"},
            r"\[frames\] short_side_px is .* for four, but 40 for more",
        ),
        ("start", "more", {"temporal_crop_px": "24"}, r"\[temporal\] crop_px is 32 for four, but 24 for more"),
        (
            "start",
            "more",
            {"temporal_flow_unit_px": "8"},
            r"\[temporal\] flow_unit_px is .* for four, but 8.0 for more",
        ),
        (
            "start",
            "more",
            {"stack_length": "3"},
            r"\[temporal\] stack is StackSpec\(length=2.* but StackSpec\(length=3",
        ),
        (
            "start",
            "more",
            {"temporal_train_layers": "last"},
            r"'more' and with_how is start, but train_layers applies to the training of more too, .*"
            r"; set temporal_train_layers = all in \[dataset.more\]",
        ),
        (
            "start",
            "more",
            {"temporal_partial_bn": "true"},
            r"but partial_bn applies .*; set temporal_partial_bn = false in \[dataset.more\]",
        ),
    ],
)
def test_what_cannot_be_trained_together_is_refused_before_any_work(two, tmp_path, how, other, settings, message):
    together(two, how, other=other)
    two.read_dict({"dataset.more": settings})
    with pytest.raises(ValueError, match=message):
        fresh(TrainStream, stream="temporal").complete()
    assert not (tmp_path / "artifacts").exists()


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ("down:fal", r"with_same has 'down:fal': class 'fal' of the other set does not exist; did you mean 'fall'"),
        ("down:fall", "with_how is classes, but every class of more is a class of this set"),
    ],
)
def test_classes_are_compared_before_anything_is_made(two, tmp_path, pairs, message):
    together(two, "classes", with_same=pairs)
    with pytest.raises(ValueError, match=message):
        fresh(TrainStream, stream="temporal").complete()
    assert not (tmp_path / "artifacts").exists()


def test_layers_that_fine_tuning_keeps_are_learned_in_the_training_it_starts_from(two):
    together(two, "start")
    tuned = fresh(TrainStream, stream="temporal", changes={"temporal_train_layers": "last"})
    assert tuned.stream_spec.train_layers == "last" and tuned.requires()[2].stream_spec.train_layers == "all"


@pytest.mark.parametrize(
    ("classes", "message"),
    [(",x,", "more has one class, 'x', and a network learns"), (None, "the videos of more are unlabeled, so that")],
)
def test_another_set_from_which_nothing_can_be_learned_is_refused_before_any_work(two, tmp_path, classes, message):
    if classes:
        listed = tmp_path / "more/clips.csv"
        listed.write_text(listed.read_text().replace(",RIGHT,", classes).replace(",fall,", classes))
    else:
        two.read_dict({"dataset.more": {"layout": "unlabelled", "lists": ""}})
    together(two, "heads")
    with pytest.raises(ValueError, match=message):
        fresh(TrainStream, stream="temporal").complete()
    assert not (tmp_path / "artifacts").exists()


@pytest.mark.parametrize("catalogs", [False, True])
def test_a_start_from_test_clips_of_this_set_is_refused_before_anything_is_made(two, tmp_path, catalogs):
    shutil.copy(tmp_path / "videos/d.avi", tmp_path / "more/videos/a.avi")  # tested here, trained on there
    together(two, "start")
    assert not catalogs or build(fresh(Catalog), fresh(Catalog, dataset="more"))
    with pytest.raises(
        ValueError, match=r"with_how is start, but 1 training or validation clips of more are .* of this set: 'a'; take"
    ):
        fresh(TrainStream, stream="temporal").complete()
    assert not (tmp_path / "artifacts/more/frames").exists()
    two.read_dict({"dataset.four": {"temporal_with_how": "heads"}})
    assert not fresh(TrainStream, stream="temporal").complete()


def test_settings_that_the_other_set_keeps_to_itself_do_no_harm(two):
    two.read_dict({"dataset.more": {"temporal_steps": "2", "spatial_network": "resnet18"}})
    together(two, "start")
    assert fresh(TrainStream, stream="temporal").requires()[2].stream_spec.steps == 2


def test_videos_of_the_command_line_belong_to_one_set_only(overlay, tmp_path):
    flags = ["--temporal-with-dataset", "folder", "--temporal-with-how", "heads"]
    videos = ["--data-videos", str(tmp_path / "videos"), "--data-lists", str(tmp_path / "clips.csv")]
    refused = luigi_command("TrainStream", "--stream", "temporal", *flags, *videos, cwd=ROOT, **overlay)
    assert refused.returncode != 0 and "--data-videos and --data-lists would name the videos of both" in refused.stderr
    assert not list(tmp_path.rglob("*.h5")) and "Traceback" not in refused.stderr
