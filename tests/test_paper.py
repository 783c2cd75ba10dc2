"""The tables of the paper as data, against figures and recipes transcribed here once more."""

from dataclasses import replace

import pytest

from pipeline import specs
from pipeline.report.paper import SETS, TABLES, TEST_CLIPS, changes, measured_on, why_not

# arXiv 1406.2199, tables 1 to 4, in the order in which they are printed; None where there is a dash
PUBLISHED = {
    "1a": {"ucf101": [42.5, 52.3, 70.8, 72.8, 72.7, 59.9]},
    "1b": {"ucf101": [56.4, 73.9, 80.4, 79.9, 81.0, 79.6, 80.2, 81.2, 81.5]},
    "2": {"hmdb51": [46.6, 49.0, 52.8, 55.4]},
    "3": {"ucf101": [85.6, 85.9, 86.2, 87.0]},
    "4": {
        "ucf101": [85.9, 87.9, None, 65.4, 73.0, 83.7, 86.9, 88.0],
        "hmdb51": [57.2, 61.1, 66.8, None, 40.5, 54.6, 58.0, 59.4],
    },
}
SCRATCH = specs.StreamSpec()
WEIGHTS = specs.StreamSpec(start="weights.pth", steps=20_000, milestones=(14_000,))


def row(table: str, key: str):
    (found,) = [row for row in TABLES[table].rows if row.key == key]
    return found


def test_figures_are_those_of_the_paper():
    assert list(TABLES) == list(PUBLISHED)
    for name, columns in PUBLISHED.items():
        assert {n for r in TABLES[name].rows for n in r.paper} == set(columns)
        for of, figures in columns.items():
            assert [r.paper.get(of) for r in TABLES[name].rows] == figures, (name, of)


def test_the_svm_is_not_run_without_validation_clips():
    for table, key in (("3", "multi-task-svm"), ("4", "svm")):
        assert "validation clips" not in why_not(row(table, key), WEIGHTS, "other")
        assert "needs validation clips, which the SVM is" in why_not(row(table, key), WEIGHTS, "other", lacks_val=True)
    assert why_not(row("4", "average"), WEIGHTS, lacks_val=True) == ""


def test_short_names_are_unique_and_every_row_says_what_it_is():
    for table in TABLES.values():
        keys = [r.key for r in table.rows]
        assert len(set(keys)) == len(keys) and all(r.words for r in table.rows)
        assert len({r.words for r in table.rows}) == len(table.rows)
    assert [name for name, table in TABLES.items() if table.split == "all"] == ["4"]
    assert [table.streams for table in TABLES.values()] == [
        ("spatial",),
        ("temporal",),
        ("temporal",),
        ("spatial", "temporal"),
        ("spatial", "temporal"),
    ]


def test_every_changed_setting_exists_and_gives_the_rows_specs():
    for table in TABLES.values():
        for r in table.rows:
            for name, text in r.settings.items():
                section, _, setting = name.partition("_")
                spec = {"stack": specs.StackSpec, "spatial": specs.StreamSpec}[section]
                assert getattr(spec.parse({setting: text}), setting) is not None


def stack(table: str, key: str) -> specs.StackSpec:
    found = {name.removeprefix("stack_"): text for name, text in changes(row(table, key), SCRATCH, SCRATCH).items()}
    return specs.StackSpec.parse(found)


@pytest.mark.parametrize(
    ("key", "length", "kind", "direction", "subtract"),
    [
        ("l1", 1, "stack", "forward", True),
        ("l5", 5, "stack", "forward", True),
        ("l10-raw", 10, "stack", "forward", False),
        ("l10", 10, "stack", "forward", True),
        ("trajectory-raw", 10, "trajectory", "forward", False),
        ("trajectory", 10, "trajectory", "forward", True),
        ("bidirectional", 10, "stack", "bidirectional", True),
    ],
)
def test_stacks_of_table_1b(key, length, kind, direction, subtract):
    expected = specs.StackSpec(length=length, kind=kind, direction=direction, subtract_mean=subtract)
    assert stack("1b", key) == expected


def test_tables_share_the_stack_of_ten_with_its_mean_subtracted():
    for table, key in [("2", "alone"), ("3", "average"), ("4", "temporal"), ("4", "svm")]:
        assert stack(table, key) == stack("1b", "l10")
    assert stack("3", "bidirectional") == stack("1b", "bidirectional")


def test_rows_of_table_1a_start_as_the_paper_says():
    for key, dropout, layers in [
        ("tuned", 0.5, "all"),
        ("tuned", 0.9, "all"),
        ("last", 0.5, "last"),
        ("last", 0.9, "last"),
    ]:
        found = changes(row("1a", f"{key}-{dropout}"), WEIGHTS, SCRATCH)
        assert found == {"spatial_dropout": str(dropout), "spatial_train_layers": layers}
    # 20,000 steps of fine-tuning with a fall at 14,000; from scratch 80,000 with falls at 50,000 and 70,000
    tuned, own = (changes(row("1a", "scratch-0.9"), spatial, SCRATCH) for spatial in (WEIGHTS, SCRATCH))
    assert tuned["spatial_steps"] == "80000" and tuned["spatial_milestones"] == "50000, 70000"
    assert tuned["spatial_start"] == own["spatial_start"] == "scratch" and "spatial_steps" not in own
    by_default = replace(WEIGHTS, steps=SCRATCH.steps, milestones=SCRATCH.milestones)  # only the weights were given
    assert "spatial_steps" not in changes(row("1a", "scratch-0.9"), by_default, SCRATCH)
    for key in ("tuned-0.9", "last-0.5"):
        found = changes(row("1a", key), by_default, SCRATCH)
        assert (found["spatial_steps"], found["spatial_milestones"]) == ("20000", "14000")
    for table, key, steps in [("3", "average", "20000"), ("4", "spatial", "20000"), ("4", "temporal", None)]:
        assert changes(row(table, key), by_default, SCRATCH).get("spatial_steps") == steps  # as table 1a's
    assert tuned["spatial_partial_bn"] == "false"  # of a network that has learned nothing no statistics are kept


def test_what_a_row_lacks_is_said():
    assert why_not(row("1a", "tuned-0.5"), SCRATCH).startswith("needs weights to start from: give --spatial-start FILE")
    assert why_not(row("1a", "tuned-0.5"), WEIGHTS) == why_not(row("1a", "scratch-0.5"), SCRATCH) == ""
    assert why_not(row("1b", "multi-task"), SCRATCH) == "needs a second dataset: give --with-dataset NAME"
    assert why_not(row("1b", "multi-task"), SCRATCH, "hmdb51") == ""
    assert why_not(row("4", "average"), SCRATCH) == ""
    assert why_not(row("1b", "slow-fusion"), SCRATCH) == "published only"


def test_rows_of_two_data_sets_name_the_second_and_what_it_is_for():
    def second(table, key):
        found = changes(row(table, key), SCRATCH, SCRATCH, "hmdb51")
        return found.get("temporal_with_dataset"), found.get("temporal_with_how")

    assert second("1b", "multi-task") == second("3", "multi-task-svm") == second("4", "svm") == ("hmdb51", "heads")
    assert second("2", "tuned") == ("hmdb51", "start") and second("2", "classes") == ("hmdb51", "classes")
    assert second("2", "multi-task") == ("hmdb51", "heads")
    assert second("2", "alone") == second("4", "spatial") == second("3", "average") == (None, None)
    assert "temporal_with_dataset" not in changes(row("4", "temporal"), SCRATCH, SCRATCH)


def test_rows_without_a_second_data_set_leave_one_aside_that_is_configured():
    together = specs.StreamSpec(with_dataset="ucf101", with_how="heads")
    for table in TABLES.values():
        for r in table.rows:
            found = changes(r, together, together, "ucf101")
            assert (found["temporal_with_dataset"], found["temporal_with_how"]) == (r.with_how and "ucf101", r.with_how)
            assert found["spatial_with_dataset"] == found["spatial_with_how"] == ""


def test_fine_tuning_from_the_other_set_takes_the_papers_steps():
    """Section 5: 20,000 and a fall after 14,000, where training from scratch takes 80,000."""
    tuned = changes(row("2", "tuned"), SCRATCH, SCRATCH, "ucf101")
    assert SCRATCH.steps == 80_000
    assert (tuned["temporal_steps"], tuned["temporal_milestones"]) == ("20000", "14000")
    for key, temporal in (("alone", SCRATCH), ("classes", SCRATCH), ("multi-task", SCRATCH), ("tuned", WEIGHTS)):
        assert "temporal_steps" not in changes(row("2", key), SCRATCH, temporal, "ucf101")


def test_a_row_of_other_steps_warms_up_for_the_same_share_of_them():
    temporal = specs.StreamSpec(steps=2000, milestones=(1250, 1750), warmup=400)
    assert changes(row("2", "tuned"), SCRATCH, temporal, "ucf101")["temporal_warmup"] == "100"
    short = specs.StreamSpec(steps=8, milestones=(5, 7), warmup=7)
    found = changes(row("2", "tuned"), SCRATCH, short, "ucf101")
    assert (found["temporal_steps"], found["temporal_warmup"]) == ("2", "1")  # less than the steps, as it must be
    spatial = specs.StreamSpec(start="imagenet", steps=1000, milestones=(700,), warmup=50)
    found = changes(row("1a", "scratch-0.5"), spatial, SCRATCH)
    assert (found["spatial_steps"], found["spatial_warmup"]) == ("4000", "200")


def test_steps_configured_for_fine_tuning_from_the_other_set_are_taken_for_that():
    configured = specs.StreamSpec(with_dataset="ucf101", with_how="start", steps=20_000, milestones=(14_000,))
    assert "temporal_steps" not in changes(row("2", "tuned"), SCRATCH, configured, "ucf101")
    for key in ("alone", "classes", "multi-task"):
        found = changes(row("2", key), SCRATCH, configured, "ucf101")
        assert (found["temporal_steps"], found["temporal_milestones"]) == ("80000", "50000, 70000")
    assert "temporal_steps" not in changes(row("1a", "scratch-0.5"), SCRATCH, configured)


def test_what_was_to_start_from_the_other_set_and_does_not_learns_in_all_layers_from_scratch():
    """Fine-tuning's steps, and layers kept as the other training left them, suit no random weights."""
    kept = specs.StreamSpec(
        with_dataset="ucf101",
        with_how="start",
        steps=20_000,
        milestones=(14_000,),
        partial_bn=True,
        train_layers="last",
    )
    for table, key in (("1a", "scratch-0.5"), ("3", "average"), ("4", "spatial"), ("4", "average")):
        found = changes(row(table, key), kept, SCRATCH)
        assert (found["spatial_steps"], found["spatial_milestones"]) == ("80000", "50000, 70000"), (table, key)
        assert (found["spatial_partial_bn"], found["spatial_train_layers"]) == ("false", "all")
    assert "spatial_steps" not in changes(row("4", "temporal"), kept, SCRATCH)
    for key in ("alone", "classes", "multi-task"):
        found = changes(row("2", key), SCRATCH, kept, "ucf101")
        assert (found["temporal_partial_bn"], found["temporal_train_layers"]) == ("false", "all")
    assert not {"temporal_partial_bn", "temporal_train_layers"} & set(
        changes(row("2", "tuned"), SCRATCH, kept, "ucf101")
    )


def test_the_papers_sets_are_told_by_layout_and_classes():
    assert measured_on("ucf101", 101) == "ucf101" and measured_on("hmdb51", 51) == "hmdb51"
    assert measured_on("ucf101", 6) == measured_on("folder", 101) == measured_on("hmdb51", 101) == ""
    assert TEST_CLIPS["ucf101"] == {"1": 3783, "2": 3734, "3": 3696}
    assert set(TEST_CLIPS["hmdb51"].values()) == {1530} and list(SETS) == list(TEST_CLIPS)
