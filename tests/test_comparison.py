"""Two runs are compared clip by clip; the figures are counted by hand, the p-value by scipy."""

import json

import numpy as np
import pytest
from chains import build, fresh
from scipy.stats import binomtest
from scored import table

from pipeline.__main__ import main
from pipeline.artifacts.comparison import compare, text
from pipeline.artifacts.differences import with_settings
from pipeline.artifacts.status import status
from pipeline.scores import Scores
from pipeline.system import files
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
    shared = {"frames": {"short_side_px": 64}, "run": {"artifacts": "x"}}
    old, new = shared | {"temporal": {"dropout": 0.5, "stack": {"length": 10}}}, shared | {"run": {"artifacts": "y"}}
    new["temporal"] = {"dropout": 0.9, "stack": {"length": 5}, "segments": 3}
    a = reported(tmp_path, "a", settings=old, spatial=OLD, temporal=OLD, average=OLD, svm=OLD)
    b = reported(tmp_path, "b", settings=new, spatial=OLD, temporal=NEW, average=NEW)
    found = compare(a, b)
    assert found["settings"] == {
        "temporal_dropout": ["0.5", "0.9"],
        "stack_length": ["10", "5"],
        "temporal_segments": [None, "3"],
    }
    assert list(found["tables"]) == ["spatial", "temporal", "average"] and found["note"] == ""
    row = found["tables"]["temporal"]
    assert (row["clips"], row["first"], row["second"]) == (24, 12 / 24, 18 / 24)
    assert row["difference"] == pytest.approx(6 / 24) and (row["only_first"], row["only_second"]) == (2, 8)
    assert row["mcnemar_p"] == pytest.approx(binomtest(2, 10).pvalue)
    low, high = row["interval"]
    assert low < 6 / 24 < high
    assert found["tables"]["spatial"]["interval"] is None and found["tables"]["spatial"]["mcnemar_p"] == 1
    (tmp_path / "latest").symlink_to(b)
    assert compare(a, tmp_path / "latest") == found
    assert compare(b, a)["tables"]["temporal"]["difference"] == -row["difference"]

    assert main(["compare", str(a), str(b)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:5] == ["  temporal_dropout: 0.5 -> 0.9", "  stack_length: 10 -> 5", "  temporal_segments: None -> 3"]
    assert lines[7].split()[:5] == ["temporal", "24", "50.0%", "75.0%", "+25.0%"] and lines[7].endswith("0.11")
    assert lines[9] == "no interval: fewer than five groups (or clips, if there are no groups) tell the two apart"
    assert main(["compare", str(a), str(b), "--json"]) == 0 and json.loads(capsys.readouterr().out) == found


def test_two_files_of_scores_are_compared_whatever_the_order_of_their_clips(tmp_path):
    first = written(tmp_path / "a", OLD, groups=None)
    order = np.random.default_rng(0).permutation(24)
    table(NEW, IDS).take(order).write(tmp_path / "b/scores.h5")
    found = compare(tmp_path / "a", tmp_path / "b/scores.h5")
    assert list(found["tables"]) == ["top-1"] and found["settings"] == {}
    row = found["tables"]["top-1"]
    assert (row["first"], row["only_first"], row["only_second"]) == (first.top1(), 2, 8)
    assert found["note"].startswith("groups are unknown, so clips are resampled")
    said = text(found)
    assert "no setting is known to differ" in said and said.endswith(f"intervals: {found['note']}")


def test_what_cannot_be_compared_is_refused(tmp_path):
    report = reported(tmp_path, "a", settings={}, spatial=OLD, temporal=OLD, average=OLD)
    written(tmp_path / "one", OLD)
    written(tmp_path / "fewer", OLD[:20], ids=IDS[:20], groups=GROUPS[:20])
    unlabeled = Scores(IDS[:2], [[0.5, 0.5]] * 2, [-1, -1], ("x", "y"))
    unlabeled.write(tmp_path / "none/scores.h5")
    with pytest.raises(
        ValueError, match=r"has spatial, temporal, average; .*one has top-1: no table of both; give two"
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
