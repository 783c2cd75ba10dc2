"""Sampling statistics, determinism, windows of short clips, failures; on stores in memory, and one on disk."""

import errno
import os
import pickle
import re
from collections import Counter

import numpy as np
import pytest
import torch
from fakes import BrokenClip, FakeClip, FakeStore, clip_row, two_classes, use_store

from pipeline.dataset import (
    ClassUniform,
    EvalSet,
    Pictures,
    TrainingSet,
    pictures,
    snippet_positions,
    stack_items,
)
from pipeline.dataset.inputs import to_inputs
from pipeline.dataset.loading import loader
from pipeline.specs import StackSpec, StreamSpec
from pipeline.store import Record, create_shard, open_frames, write_index
from pipeline.video import jpeg


def spec(stream="spatial", **values):
    stack = StackSpec(length=3, subtract_mean=False) if stream == "temporal" else None
    defaults = {
        "stack": stack,
        "resize_px": 0,
        "crop_px": 16,
        "batch": 4,
        "steps": 6,
        "jitter": 0.2 if stream == "spatial" else 0.0,
    }
    return StreamSpec(stream=stream, network="small", **{**defaults, **values})


def items(dataset, workers=0, first=0):
    numbers = range(first, len(dataset))
    batches = loader(dataset, numbers, batch=4, workers=workers, pin=False, collate=stack_items)
    return [(to_inputs(views, torch.device("cpu")), labels) for views, labels in batches]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_of_the_program_is_not_taken_for_a_damaged_clip(monkeypatch, workers):
    catalog, fake = two_classes("frames")
    use_store(monkeypatch, fake)
    found = EvalSet(spec(), "i", catalog.part("test"), frames=2, crops=1)
    found.views = None
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        list(loader(found, range(2), batch=1, workers=workers, pin=False, collate=list))
    with pytest.raises(TypeError) as caught:
        found[0]
    assert caught.value.__notes__ == [f"while reading test clip {catalog.part('test')[0].id!r}"]


def test_classes_come_equally_often_whatever_their_size():
    labels = [0] * 50 + [1] * 3 + [3] * 1  # class 2 has no clip
    choose = ClassUniform(labels, seed=1)
    drawn = [choose(n) for n in range(3000)]
    assert Counter(labels[place] for place in drawn) == {0: 1000, 1: 1000, 3: 1000}
    counts = Counter(drawn)
    assert all(counts[place] == 20 for place in range(50))
    assert all(333 <= counts[place] <= 334 for place in range(50, 53))


def test_every_block_has_one_clip_of_each_class_in_a_new_order():
    labels = [0, 0, 1, 1, 2, 2]
    choose = ClassUniform(labels, seed=0)
    blocks = [tuple(labels[choose(3 * b + k)] for k in range(3)) for b in range(60)]
    assert all(sorted(block) == [0, 1, 2] for block in blocks)
    assert len(set(blocks)) == 6
    assert [choose(n) for n in range(50)] != [ClassUniform(labels, seed=2)(n) for n in range(50)]


def test_which_clip_is_drawn_does_not_depend_on_what_was_drawn_before():
    labels = [0] * 7 + [1] * 3
    in_order, numbers = ClassUniform(labels, seed=4), np.random.default_rng(0).permutation(200)
    drawn, anyhow = [in_order(n) for n in range(200)], ClassUniform(labels, seed=4)
    assert [anyhow(int(n)) for n in numbers] == [drawn[n] for n in numbers]
    assert [ClassUniform(labels, seed=4)(n) for n in range(0, 200, 17)] == drawn[::17]


@pytest.mark.parametrize("stream", ["spatial", "temporal"])
def test_items_depend_on_seed_step_and_place_only(monkeypatch, stream):
    catalog, fake = two_classes("frames" if stream == "spatial" else "flow")
    use_store(monkeypatch, fake)
    once = TrainingSet(spec(stream), "index.h5", catalog.part("train"))
    batches = items(once)
    assert len(batches) == 6 and batches[0][0].shape == (4, 3 if stream == "spatial" else 6, 16, 16)
    assert torch.equal(items(once, first=12)[0][0], batches[3][0])  # a resumed run
    assert torch.equal(torch.stack([torch.from_numpy(once[n][0].inputs()) for n in (9, 8)]), batches[2][0][[1, 0]])
    other = TrainingSet(spec(stream, seed=1), "index.h5", catalog.part("train"))
    assert not torch.equal(items(other)[0][0], batches[0][0])


def test_training_items_end_like_a_list(monkeypatch):
    catalog, fake = two_classes("frames")
    use_store(monkeypatch, fake)
    dataset = TrainingSet(spec(steps=2), "index.h5", catalog.part("train"))
    assert sum(1 for _ in dataset) == len(dataset) == 8
    with pytest.raises(IndexError, match="there is no training item -1; there are 8"):
        dataset[-1]


def test_loader_processes_change_nothing(monkeypatch):
    catalog, fake = two_classes("flow")
    use_store(monkeypatch, fake)
    dataset = TrainingSet(spec("temporal"), "index.h5", catalog.part("train"))
    for alone, parallel in zip(items(dataset), items(dataset, workers=2), strict=True):
        assert torch.equal(alone[0], parallel[0]) and torch.equal(alone[1], parallel[1])


def test_positions_cover_the_clip_evenly(monkeypatch):
    catalog, fake = two_classes("frames", per_class=1, frames=8)
    for clip in fake.values():  # the frame's number is its brightness
        clip._frames = np.broadcast_to(np.arange(8, dtype=np.uint8)[:, None, None, None], (8, 16, 16, 3)) * 30
    use_store(monkeypatch, fake)
    dataset = TrainingSet(spec(jitter=0.0, steps=400), "index.h5", catalog.part("train"))
    seen = Counter(round((float(dataset[n][0].inputs()[0, 0, 0]) * 0.229 + 0.485) * 255 / 30) for n in range(1600))
    assert set(seen) == set(range(8)) and all(140 <= count <= 260 for count in seen.values())  # 200 +- 4.5 sigma


def test_snippets_lie_one_in_each_equal_part():
    assert snippet_positions(10, [0.5, 0.5, 0.99]) == [1, 5, 9]
    assert snippet_positions(10, [0.0, 0.0, 0.0]) == [0, 3, 6]
    assert snippet_positions(2, [0.5, 0.5, 0.5, 0.5]) == [0, 0, 1, 1]
    assert snippet_positions(1, [0.9] * 7) == [0] * 7
    assert snippet_positions(5, [*[0.0] * 63, 1 - 2**-53])[-1] == 4  # a sum that is rounded up to 64
    draws = np.random.default_rng(0).random((6000, 3))
    seen = [Counter(snippet_positions(10, draw)[part] for draw in draws) for part in range(3)]
    for part in range(3):  # position p covers [p, p + 1) of 10, part k covers [k 10/3, (k + 1) 10/3)
        for position in range(10):
            share = max(0, min(position + 1, (part + 1) * 10 / 3) - max(position, part * 10 / 3)) / (10 / 3)
            assert seen[part][position] / 6000 == pytest.approx(share, abs=0.03)


def test_an_item_of_segments_is_a_picture_of_each_cropped_alike(monkeypatch):
    rows, columns = np.mgrid[:40, :48].astype(np.float32)
    moving = np.stack([np.stack([columns + 100 * t, rows + 100 * t]) for t in range(9)])  # says where and when it is
    catalog, fake = two_classes("flow", per_class=1)
    for video_id in fake.clips:
        fake.clips[video_id] = FakeClip("flow", None, moving, -moving)
    use_store(monkeypatch, fake)
    settings = spec("temporal", segments=3, flow_unit_px=1.0, flip=False)
    dataset = TrainingSet(settings, "index.h5", catalog.part("train"))
    for number in range(20):
        views, _ = dataset[number]
        corner = views.inputs()[:, :2, 0, 0]  # of the first field of each snippet
        assert views.values.shape == (3, 6, 16, 16) and len(set(map(tuple, corner % 100))) == 1
        starts = (corner[:, 0] // 100).astype(int)  # of 7 starts
        assert all(part * 7 / 3 - 1 < start < (part + 1) * 7 / 3 for part, start in enumerate(starts))
    batch, labels = items(dataset)[0]
    assert batch.shape == (4, 3, 6, 16, 16) and labels.shape == (4,)


def test_one_segment_draws_what_a_plain_item_draws(monkeypatch):
    catalog, fake = two_classes("frames")
    use_store(monkeypatch, fake)
    dataset = TrainingSet(spec(), "index.h5", catalog.part("train"))
    for number in range(6):
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((0, 0, *divmod(number, 4)))))
        clip = dataset.clips[dataset.choose(number)]
        picture = fake[clip.id]._frames[int(rng.random() * 9)]
        np.testing.assert_array_equal(dataset[number][0].inputs(), dataset.view(picture, rng.random(6)).inputs())


def ramp(count):
    """Forward field t is t everywhere (x and y), backward field t is -t."""
    forward = np.broadcast_to(np.arange(count, dtype=np.float32)[:, None, None, None], (count, 2, 16, 16))
    return FakeClip("flow", None, forward, -forward)


def test_temporal_pictures_are_windows_of_flow(monkeypatch):
    use_store(monkeypatch, FakeStore({"long": ramp(7), "short": ramp(2)}))
    pictures = Pictures(spec("temporal"), "index.h5")
    assert (pictures.count("long"), pictures.count("short")) == (5, 1)
    assert pictures.read("long", 2).pixels()[:, 0, 0].tolist() == [2, 2, 3, 3, 4, 4]
    assert pictures.read("short", 0).pixels()[:, 0, 0].tolist() == [0, 0, 1, 1, 1, 1]
    stack = StackSpec(length=4, direction="bidirectional", subtract_mean=False)
    both = Pictures(spec("temporal", stack=stack), "index.h5")
    assert both.read("long", 1).pixels()[:, 0, 0].tolist() == [3, 3, 4, 4, -2, -2, -1, -1]


def test_test_views_are_equally_spaced(monkeypatch):
    use_store(monkeypatch, FakeStore({"a": ramp(11)}))
    views = EvalSet(spec("temporal", flow_unit_px=1.0), "index.h5", [clip_row("a", 0, "test", "xy")], frames=3, crops=2)
    assert len(views) == 3
    found = [views[j].views.inputs()[:, :, 0, 0].tolist() for j in range(3)]  # of 9 starts: 0, 4, 8
    assert found == [[[s, s, s + 1, s + 1, s + 2, s + 2], [-s, s, -s - 1, s + 1, -s - 2, s + 2]] for s in (0, 4, 8)]


def test_a_clip_that_failed_is_left_out_of_training_and_said(monkeypatch, capsys):
    catalog, fake = two_classes("frames")
    del fake.clips["left_1"]
    fake.failed["left_1"] = "decodes no frame"
    use_store(monkeypatch, fake)
    dataset = TrainingSet(spec(), "index.h5", catalog.part("train"))
    assert "spatial: 1 of 8 training clips are left out, such as left_1: decodes no frame" in capsys.readouterr().err
    assert "left_1" not in {dataset.clips[dataset.choose(n)].id for n in range(200)}


def test_a_class_that_lost_all_its_training_clips_is_said(monkeypatch, capsys):
    catalog, fake = two_classes("frames")
    for clip in catalog.part("train"):
        if clip.class_name == "left":
            del fake.clips[clip.id]
    use_store(monkeypatch, fake)
    TrainingSet(spec(), "index.h5", catalog.part("train"))
    said = capsys.readouterr().err
    assert "4 of 8 training clips are left out" in said
    assert "spatial: no training clip is left of 'left', which will not be learned" in said


def test_nothing_to_train_on_is_an_error(monkeypatch):
    catalog, _ = two_classes("frames")
    use_store(monkeypatch, FakeStore({}))
    with pytest.raises(ValueError, match="none of the 8 training clips is in index.h5"):
        TrainingSet(spec(), "index.h5", catalog.part("train"))


def test_a_training_clip_that_cannot_be_read_is_named(monkeypatch):
    catalog, fake = two_classes("frames")
    fake.clips = {video_id: BrokenClip("frames", clip._frames) for video_id, clip in fake.clips.items()}
    use_store(monkeypatch, fake)
    with pytest.raises(OSError, match="bad JPEG") as caught:
        TrainingSet(spec(), "index.h5", catalog.part("train"))[0]
    assert "while reading training clip" in caught.value.__notes__[0]


def test_a_test_clip_that_failed_is_an_item_with_its_reason_and_one_that_cannot_be_read_an_error(monkeypatch):
    catalog, fake = two_classes("frames")
    fake.clips["left_5"] = BrokenClip("frames", fake.clips["left_5"]._frames)
    del fake.clips["right_5"]
    fake.failed["right_5"] = "decodes no frame"
    use_store(monkeypatch, fake)
    tested = EvalSet(spec(), "index.h5", catalog.part("test"), frames=1, crops=1)
    numbers = {clip.id: number for number, clip in enumerate(tested.clips)}  # one frame a clip
    assert tested[numbers["right_5"]] == (numbers["right_5"], None, "decodes no frame")
    with pytest.raises(OSError, match="bad JPEG") as caught:
        tested[numbers["left_5"]]
    assert "while reading test clip 'left_5'" in caught.value.__notes__[0]


class FailingClip(FakeClip):
    """A clip whose disk fails `times` times with the error number `number`."""

    def __init__(self, clip, number, times):
        super().__init__("frames", clip._frames)
        self.number, self.left = number, times

    def frames(self, first, last):
        self.left -= 1
        if self.left >= 0:
            raise OSError(self.number, os.strerror(self.number))
        return super().frames(first, last)


@pytest.fixture
def failing(monkeypatch):
    """Makes a training set of one clip whose disk fails; with it, the closings and the pauses that follow."""
    seen = []

    def make(number, times):
        catalog, fake = two_classes("frames")
        fake.clips["left_1"] = FailingClip(fake.clips["left_1"], number, times)
        fake.close = lambda: seen.append("closed")
        use_store(monkeypatch, fake)
        return TrainingSet(spec(), "index.h5", [clip for clip in catalog.part("train") if clip.id == "left_1"]), seen

    monkeypatch.setattr(pictures, "_pause", seen.append)
    return make


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_disk_that_fails_for_a_moment_is_waited_for(failing, number, capsys):
    undisturbed, _ = failing(number, 0)
    dataset, seen = failing(number, 3)
    np.testing.assert_array_equal(dataset[1][0].inputs(), undisturbed[1][0].inputs())
    assert seen == ["closed", 2, "closed", 15, "closed", 120]
    told = f"spatial: index.h5 cannot be read ({os.strerror(number)}); trying again in"
    assert capsys.readouterr().err == "".join(f"{told} {pause} s\n" for pause in (2, 15, 120))


def test_a_disk_that_keeps_failing_or_refuses_ends_the_reading(failing):
    for number, times, pauses in ((errno.EIO, 4, 3), (errno.EACCES, 1, 0)):
        dataset, seen = failing(number, times)
        seen.clear()
        with pytest.raises(OSError, match=re.escape(os.strerror(number))) as raised:
            dataset[0]
        assert raised.value.errno == number and len(seen) == 2 * pauses


def test_pictures_of_a_real_store_also_after_pickling(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (4, 16, 24, 3)).astype(np.uint8)
    record = Record(id="a/b c", class_name="x", label=0, group="g", frames=4, status="ok", reason="", crc32=0)
    with create_shard(tmp_path / "shards" / "s.h5", "frames", {"digest": "d"}) as shard:
        writer = shard.clip(record.id)
        for frame in frames:
            writer.append(jpeg.encode(frame, quality=95))
        record = record._replace(crc32=writer.finish({"height": 16, "width": 24}))
        shard.record(record)
    write_index(tmp_path / "index.h5", "frames", [(record, "s")], {}, {"digest": "d"})
    pictures = Pictures(spec(), tmp_path / "index.h5")
    expected = open_frames(tmp_path / "index.h5")[record.id].frames(0, 4)
    for read in (pictures, pickle.loads(pickle.dumps(pictures))):
        assert read.count(record.id) == 4
        np.testing.assert_array_equal(read.read(record.id, 2), expected[2])
