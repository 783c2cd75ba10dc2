"""Estimates by hand: which items stand for all, and what each stage comes to."""

import pytest

from pipeline import estimates
from pipeline.estimates import MOMENTS, Cached, PairCost, StepCost, Videos, Work, extrapolated, middles_of_equal_shares
from pipeline.specs import ScoreSpec, StackSpec, StreamSpec

CACHED = Cached(clips=10, frames=1010.0, samples=())
VIDEOS = Videos(bytes=5000, cached=CACHED, byte_seconds=0.01, frame_seconds=0.2, frame_bytes=984.0)
PAIR = PairCost(flow_seconds=0.3, code_seconds=0.1, bytes=84.0)
STEP = StepCost(step_seconds=2.0, clip_seconds=0.5, view_seconds=0.25, weights_bytes=100, resume_bytes=300, features=16)


def test_items_in_the_middle_of_equal_shares_are_chosen():
    assert middles_of_equal_shares([1, 1, 2, 8, 12], 2) == [3, 4]
    assert middles_of_equal_shares([12, 8, 2, 1, 1], 2) == [1, 0]  # places, whatever the order
    assert middles_of_equal_shares([5, 5, 5, 5], 2) == [0, 2]
    assert middles_of_equal_shares([1, 100], 3) == [1]  # the large one stands for the small one as well
    assert middles_of_equal_shares([], 3) == []
    assert middles_of_equal_shares([0, 0], 1) == [0]


def test_every_item_stands_for_its_size():
    assert extrapolated([3.0, 8.0], [1, 2], 10) == 35  # 3 and 4 each, so 3.5 times 10
    assert extrapolated([3.0, 8.0], [1, 0], 10) == 30
    with pytest.raises(ValueError, match="nothing could be measured"):
        extrapolated([], [], 10)


def test_a_catalog_reads_what_is_new():
    work = estimates.catalog_work(VIDEOS, new_bytes=1000, threads=2)
    assert (work.seconds, work.disk_bytes) == (5.0, 10 * estimates.TABLE_ROW_BYTES)


def test_frames_are_decoded_by_all_workers():
    work = estimates.frames_work(VIDEOS, share=0.5, clips=4, workers=2)
    assert work.seconds == pytest.approx(505 * 0.2 / 2)
    assert work.disk_bytes == 505 * (984 + 16) + 4 * 6144


@pytest.mark.parametrize(
    ("on_gpu", "threads", "each"),
    [(False, 1, 0.4), (False, 4, 0.4), (True, 1, 0.3), (True, 4, 0.3)],
)
def test_flow_is_one_pair_less_a_clip(on_gpu, threads, each):
    how = {"workers": 2, "threads": threads, "on_gpu": on_gpu}
    work = estimates.flow_work(PAIR, CACHED, share=1.0, clips=10, **how)
    assert work.seconds == pytest.approx(1000 * each / 2)
    assert work.disk_bytes == 1000 * (84 + 16) + 10 * 6144


def test_a_gpu_waits_for_cores_that_are_slower():
    slow = PAIR._replace(code_seconds=1.2)
    work = estimates.flow_work(slow, CACHED, share=0.5, clips=5, workers=1, threads=2, on_gpu=True)
    assert work.seconds == pytest.approx(500 * 0.6)


def test_a_training_is_steps_and_validations():
    spec = StreamSpec(batch=4, steps=100, milestones=(), validate_every=30)
    work = estimates.training_work(STEP, spec, steps=100, validation_views=8)
    assert work.seconds == 100 * (2 + 4 * 0.5) + 4 * 8 * 0.25  # validated after 30, 60, 90 and 100
    assert (work.disk_bytes, work.meanwhile_bytes) == (100, 300)
    assert work.note == "100 steps of 4 clips, without loading data"
    two = estimates.training_work(STEP, spec, steps=60, validation_views=0, sharing=2)
    assert two.seconds == 60 * (2 + 2 * 0.5)


def test_two_heads_take_a_batch_of_each_set():
    how = {"with_dataset": "other", "with_how": "heads", "stream": "temporal", "stack": StackSpec()}
    spec = StreamSpec(batch=4, steps=10, milestones=(), **how)
    assert estimates.training_work(STEP, spec, steps=10, validation_views=0).seconds == 10 * (2 + 8 * 0.5)


def test_scores_are_a_pass_a_view():
    work = estimates.scoring_work(STEP, ScoreSpec(frames=5, crops=2), clips=3, classes=4)
    assert work.seconds == 30 * 0.25 and work.disk_bytes == 3 * 4 * 20 + 3 * 400
    every = estimates.scoring_work(STEP, ScoreSpec(frames=5, crops=2, per_view=True), clips=3, classes=4)
    assert every.disk_bytes == 33 * 4 * 20 + 3 * 400


def test_notes_are_added():
    assert estimates.noted(Work(1.0, 2, note="a"), "b") == Work(1.0, 2, note="a, b")
    assert estimates.noted(MOMENTS, "b").note == "b"


def test_the_most_that_is_needed_is_not_the_sum():
    works = [Work(1.0, 100), Work(2.0, 10, meanwhile_bytes=50), Work(), Work(4.0, 5, meanwhile_bytes=1)]
    found = estimates.total(works)
    assert (found.seconds, found.disk_bytes, found.most_bytes, found.unknown) == (7.0, 115, 160, 1)
    assert found.as_dict() == {"seconds": 7.0, "disk_bytes": 115, "most_bytes": 160, "unknown": 1}
    assert estimates.total([]).most_bytes == 0
