"""Two runs are compared clip by clip; the figures are counted by hand, the p-value by scipy."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from chains import build, fresh
from scipy.stats import binomtest
from scored import table
from trainings import spec

from pipeline.__main__ import main
from pipeline.artifacts.comparison import compare, text
from pipeline.artifacts.differences import settings_of, with_settings
from pipeline.artifacts.status import status
from pipeline.catalog import Catalog
from pipeline.networks.checkpoint import save_checkpoint
from pipeline.scores import Scores
from pipeline.system import files
from pipeline.system.errors import UserError
from tasks import Report

IDS = [f"clip{i:02d}" for i in range(24)]
GROUPS = [f"g{i // 2}" for i in range(24)]
OLD = "1" * 12 + "0" * 12
NEW = "0" * 2 + "1" * 18 + "0" * 3 + "-"  # two clips lost, eight gained; the last failed


def written(folder, right, *, ids=IDS, groups=GROUPS):
    scores = table(right, ids, groups)
    scores.write(folder / "scores.h5")
    return scores


def reported(root, digest, *, settings, **right):
    """A report and what it was made from, as far as `compare` reads it; tables as strings of right and wrong clips."""
    fuse, report = (root / f"d/{stage}/1-{digest}" for stage in ("fuse", "report"))
    parts = []
    for name, said in right.items():
        if name in ("spatial", "temporal"):
            parts += [root / f"d/score_stream/{name}-{part}-1-{digest}" for part in ("test", "val")]
            written(parts[-2], said)
            written(parts[-1], "01" * 3, ids=IDS[:6], groups=GROUPS[:6])
        else:
            written(fuse / name, said)
    files.record_made_from(fuse, root, parts)
    files.record_made_from(report, root, [fuse])
    (report / "metrics.json").write_text(json.dumps({"settings": settings}))
    return report


def test_two_reports_are_compared_by_each_table_that_both_have(tmp_path, capsys):
    old = {"frames": {"short_side_px": 64}, "temporal": {"dropout": 0.5, "stack": {"length": 10}, "start": ""}}
    new = {"frames": {"short_side_px": 64}, "temporal": {"dropout": 0.9, "stack": {"length": 5}, "start": "a.pth"}}
    new["dataset"] = {"val_fraction": 0.2}  # of the first that section is unknown
    a = reported(tmp_path, "a", settings=old, spatial=OLD, temporal=OLD, average=OLD, svm=OLD)
    b = reported(tmp_path, "b", settings=new, spatial=OLD, temporal=NEW, average=NEW)
    found = compare(a, b)
    assert found["settings"] == {
        "temporal_dropout": ["0.5", "0.9"],
        "stack_length": ["10", "5"],
        "temporal_start": ['""', "a.pth"],
    }
    assert list(found["tables"]) == ["spatial", "temporal", "average"] and found["note"] == ""
    assert found["unknown"] == ["dataset"]
    row = found["tables"]["temporal"]
    assert (row["clips"], row["first"], row["second"]) == (24, 12 / 24, 18 / 24)
    assert row["difference"] == pytest.approx(6 / 24) and (row["only_first"], row["only_second"]) == (2, 8)
    assert row["mcnemar_p"] == pytest.approx(binomtest(2, 10).pvalue)
    low, high = row["interval"]
    assert low < 6 / 24 < high
    assert found["tables"]["spatial"]["interval"] is None and found["tables"]["spatial"]["mcnemar_p"] == 1
    (b.parent / "latest").symlink_to(b.name)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "d/report").rename(tmp_path / "elsewhere/report")
    (tmp_path / "d/report").symlink_to(tmp_path / "elsewhere/report")  # on another disk
    assert compare(a / "report.html", b.parent / "latest") == compare(a, b) == found
    assert compare(b, a)["tables"]["temporal"]["difference"] == -row["difference"]

    assert main(["compare", str(a), str(b)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:6] == [
        "  temporal_dropout: 0.5 -> 0.9",
        "  stack_length: 10 -> 5",
        '  temporal_start: "" -> a.pth',
        "one of the two does not tell its settings of dataset",
    ]
    assert lines[8].split()[:5] == ["temporal", "24", "50.0%", "75.0%", "+25.0%"] and lines[8].endswith("0.11")
    notes = ["the interval draws groups, with classes as ", "no interval: fewer than five groups (or clips, without"]
    assert [line.startswith(note) for line, note in zip(lines[10:], notes, strict=True)] == [True, True]
    assert main(["compare", str(a), str(b), "--json"]) == 0 and json.loads(capsys.readouterr().out) == found


def test_two_files_of_scores_are_compared_whatever_the_order_of_their_clips(tmp_path):
    first = written(tmp_path / "a", OLD, groups=None)
    order = np.random.default_rng(0).permutation(24)
    table(NEW, IDS).take(order).write(tmp_path / "b/scores.h5")
    found = compare(tmp_path / "a", tmp_path / "b/scores.h5")
    assert list(found["tables"]) == ["scores"] and found["settings"] == {}
    row = found["tables"]["scores"]
    assert (row["first"], row["only_first"], row["only_second"]) == (first.top1(), 2, 8)
    assert found["note"].startswith("groups are unknown, so clips are resampled")
    table(NEW, IDS, GROUPS).write(tmp_path / "b/scores.h5")
    grouped = [compare(*map(tmp_path.joinpath, order)) for order in ("ab", "ba")]  # the groups of either
    assert [of["note"] for of in grouped] == ["", ""]
    there, back = (of["tables"]["scores"]["interval"] for of in grouped)
    assert there == pytest.approx([-end for end in reversed(back)], abs=0.02)
    said = text(found)
    assert "the interval draws clips" in said
    assert "no setting is known to differ" in said and said.endswith(f"intervals: {found['note']}")


def test_what_cannot_be_compared_is_refused(tmp_path):
    report = reported(tmp_path, "a", settings={}, spatial=OLD, temporal=OLD, average=OLD)
    written(tmp_path / "one", OLD)
    written(tmp_path / "fewer", OLD[:20], ids=IDS[:20], groups=GROUPS[:20])
    unlabeled = Scores(IDS[:2], [[0.5, 0.5]] * 2, [-1, -1], ("x", "y"))
    unlabeled.write(tmp_path / "none/scores.h5")
    with pytest.raises(
        ValueError, match=r"has spatial, temporal, average; .*one has scores: no table of both; give two"
    ):
        compare(report, tmp_path / "one")
    with pytest.raises(
        ValueError, match=r"different clips: 4 \('clip20', .*\) only in the first, 0 only in the second"
    ):
        compare(tmp_path / "one", tmp_path / "fewer")
    with pytest.raises(ValueError, match="none holds no clip with a label; there is nothing to compare"):
        compare(tmp_path / "none", tmp_path / "none")
    with pytest.raises(ValueError, match="is not the folder of a report, of a fusion or of scores"):
        compare(tmp_path, report)
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        compare(tmp_path / "nowhere", report)
    for moved in (tmp_path / "report/1-a", Path("/report-of-this-test/report/1-a")):
        with pytest.raises((UserError, FileNotFoundError), match="was moved, or the scores .* are gone|does not exist"):
            shutil.copytree(report, moved) if tmp_path in moved.parents else None
            compare(moved, report)


def test_what_a_training_starts_from_does_not_hide_its_own_settings(tmp_path):
    """Weights of another flow, or of the other stream: `start` names them, their settings are not those of the run."""

    def training(digest, made_from, settings):
        folder = tmp_path / f"d/train_stream/{settings.stream}-small-1-{digest}"
        save_checkpoint(folder / "checkpoint.pt", {}, settings, Catalog((), ("x",), "1", ()))
        (folder / "curve.json").write_text("{}")
        files.record_made_from(folder, tmp_path, made_from)
        return folder

    first = training("a", [], spec("spatial", dropout=0.2))
    own = training("b", [], spec("spatial", dropout=0.5))
    started = training("c", [first], spec("temporal", start=str(first / "checkpoint.pt")))
    fuse = tmp_path / "d/fuse/1-d"
    files.record_made_from(fuse, tmp_path, [own, started])
    told = settings_of(fuse)
    assert told["spatial"]["spatial_dropout"] == "0.5"
    assert told["temporal"]["temporal_start"] == str(first / "checkpoint.pt")
    assert settings_of(tmp_path / "d/tables/1b-e") == {} and settings_of(Path("/1-a")) == {}


def test_reports_fusions_and_scores_of_one_name_tell_their_settings_and_those_before(config, tmp_path):
    assert build(fresh(Report))
    config["score"]["frames"], config["fusion"] = "3", {"weight_step": "0.25"}
    assert build(fresh(Report))
    rows = with_settings(status(tmp_path / "artifacts"))
    told = {(row["stage"], row["label"]): [] for row in rows}
    for row in rows:
        told[row["stage"], row["label"]].append(row["settings"])
    assert sorted(told["score_stream", "temporal-test-1"]) == ["score_frames 2", "score_frames 3"]
    both = ["score_frames 2, fusion_weight_step 0.05", "score_frames 3, fusion_weight_step 0.25"]
    assert sorted(told["fuse", "1"]) == both
    assert sorted(told["report", "1"]) in (both, [", ".join(reversed(each.split(", "))) for each in both])
    reports = [row["path"] for row in rows if row["stage"] == "report"]
    assert set(compare(*map(tmp_path.joinpath, reports))["settings"]) == {"score_frames", "fusion_weight_step"}
