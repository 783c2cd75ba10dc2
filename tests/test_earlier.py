"""What earlier shards hold is copied: the same bytes as if it were made again, and nothing decoded or computed."""

from dataclasses import replace

import h5py
import pytest
from conftest import moving_texture, write_video
from stages import FLOW, FRAMES, INLINE, flow_of, sums

from pipeline import store
from pipeline.catalog import UNREADABLE, read_dataset
from pipeline.preprocess import make_frames
from pipeline.preprocess.jobs import flow_pipeline
from pipeline.preprocess.jobs import frames as frames_job
from pipeline.preprocess.jobs.earlier import Earlier
from pipeline.specs import DatasetSpec, FlowSpec, FrameSpec

FRAMES_EACH = 5
NAMES = [f"{label}/{person}_{label}.avi" for label in ("down", "right") for person in ("ann", "bob", "cat")]
BACKWARD = FlowSpec(method="dis_medium", backward=True, scaling="minmax")


def frames_of(videos, folder, *, renamed=False, spec=FRAMES):
    catalog = read_dataset(DatasetSpec(videos=str(videos), group_pattern=r"/(?P<group>[a-z]+)_"), "1")
    if renamed:  # every class, so that every shard is written again
        clips = tuple(replace(clip, class_name=clip.class_name.upper()) for clip in catalog.clips)
        catalog = replace(catalog, clips=clips, classes=tuple(name.upper() for name in catalog.classes))
    make_frames(folder, catalog, videos=videos, spec=spec, cluster=INLINE)
    return store.open_frames(folder)


@pytest.fixture
def videos(tmp_path):
    for number, name in enumerate(NAMES):
        write_video(tmp_path / "videos" / name, moving_texture(FRAMES_EACH, seed=number))
    return tmp_path / "videos"


@pytest.fixture
def work(monkeypatch):
    """Names of the videos that are decoded, and of whole clips whose flow is computed "flow", from now on."""
    done = []
    video, estimate = frames_job.Video, flow_pipeline.estimate_on_device

    def counting(frames, *given, **how):
        assert len(frames) % FRAMES_EACH == 0
        done.extend(["flow"] * (len(frames) // FRAMES_EACH))
        return estimate(frames, *given, **how)

    monkeypatch.setattr(frames_job, "Video", lambda path, **how: done.append(path.name) or video(path, **how))
    monkeypatch.setattr(flow_pipeline, "estimate_on_device", counting)
    return done


def add_class(videos):
    write_video(videos / "air" / "ann_air.avi", moving_texture(FRAMES_EACH, seed=9))
    return {}


CHANGES = {"a new class": add_class, "other names": lambda videos: {"renamed": True}}


@pytest.mark.parametrize("flow", [FLOW, BACKWARD], ids=["forward", "both, minmax"])
@pytest.mark.parametrize("change", CHANGES)
def test_other_labels_move_no_pixel(videos, tmp_path, work, change, flow):
    before = flow_of(frames_of(videos, tmp_path / "frames"), tmp_path / "flow", spec=flow)
    old = {name: before[name].checksum() for name in before}
    given = CHANGES[change](videos)
    work.clear()
    frames = frames_of(videos, tmp_path / "frames", **given)
    assert work == (["ann_air.avi"] if change == "a new class" else [])
    made = flow_of(frames, tmp_path / "flow", spec=flow)
    assert work.count("flow") == (1 + flow.backward) * (change == "a new class")
    assert all(made[name].checksum() == old[name] for name in old)
    if change == "a new class":
        assert {row["class"]: row["label"] for row in made.rows.values()} == {"air": 0, "down": 1, "right": 2}
    else:
        assert {row["class"]: row["label"] for row in made.rows.values()} == {"DOWN": 0, "RIGHT": 1}
    fresh = flow_of(frames_of(videos, tmp_path / "fresh", **given), tmp_path / "fresh flow", spec=flow)
    assert (
        sums(tmp_path / "frames") == sums(tmp_path / "fresh")
        and frames.key == store.open_frames(tmp_path / "fresh").key
    )
    assert sums(tmp_path / "flow") == sums(tmp_path / "fresh flow") and made.key == fresh.key


def test_a_shard_that_is_divided_or_joined_is_copied(videos, tmp_path, work):
    sizes = [FrameSpec(short_side_px=0, shard_clips=clips) for clips in (6, 2, 3)]
    for spec in sizes:
        made = flow_of(frames_of(videos, tmp_path / "frames", spec=spec), tmp_path / "flow")
        assert len(made) == 6
    assert sorted(name for name in work if name != "flow") == sorted(name.split("/")[1] for name in NAMES)
    assert work.count("flow") == 6
    frames_of(videos, tmp_path / "fresh", spec=sizes[-1])
    assert sums(tmp_path / "frames") == sums(tmp_path / "fresh")


def test_a_video_that_changed_is_decoded(videos, tmp_path, work):
    frames_of(videos, tmp_path / "frames")
    flow_of(store.open_frames(tmp_path / "frames"), tmp_path / "flow")
    work.clear()
    write_video(videos / NAMES[0], moving_texture(FRAMES_EACH, seed=77))  # as long as it was
    made = frames_of(videos, tmp_path / "frames")
    assert work == ["ann_down.avi"]
    flow_of(made, tmp_path / "flow")
    assert work == ["ann_down.avi", "flow"]
    flow_of(frames_of(videos, tmp_path / "fresh"), tmp_path / "fresh flow")
    assert sums(tmp_path / "flow") == sums(tmp_path / "fresh flow")


@pytest.mark.parametrize("changed", [(0,), (2, 3), (1, 4), (5,)])
def test_copied_and_computed_clips_of_a_shard_keep_their_order(videos, tmp_path, work, changed):
    spec = FrameSpec(short_side_px=0, shard_clips=6)
    flow_of(frames_of(videos, tmp_path / "frames", spec=spec), tmp_path / "flow", spec=BACKWARD)
    work.clear()
    for number in changed:
        write_video(
            videos / NAMES[number], moving_texture(FRAMES_EACH, seed=50 + number, height=48 + 16 * (number % 2))
        )
    flow_of(frames_of(videos, tmp_path / "frames", spec=spec), tmp_path / "flow", spec=BACKWARD)
    assert work.count("flow") == 2 * len(changed) == 2 * (len(work) - work.count("flow"))
    flow_of(frames_of(videos, tmp_path / "fresh", spec=spec), tmp_path / "fresh flow", spec=BACKWARD)
    assert sums(tmp_path / "flow") == sums(tmp_path / "fresh flow")


def damage_table(file):
    file.move("table", "elsewhere")


def damage_image(file):
    file["clips/down__ann_down/jpeg"][100] ^= 255


def flip_bit(array):
    """As a disk may: HDF5's checksum of the array stays that of what was written."""
    start = (0,) * array.ndim
    mask, data = array.id.read_direct_chunk(start)
    array.id.write_direct_chunk(start, bytes([data[0] ^ 1, *data[1:]]), mask)


def damage_times(file):
    flip_bit(file["clips/down__ann_down/seconds"])


def remove_times(file):
    del file["clips/down__ann_down/seconds"]


def remove_attribute(file):
    del file["clips/down__ann_down"].attrs["promised_frames"]


@pytest.mark.parametrize("damage", [damage_table, damage_image, damage_times, remove_times, remove_attribute])
def test_damage_is_not_copied(videos, tmp_path, work, damage):
    made = frames_of(videos, tmp_path / "frames")
    home = made.rows["down__ann_down"]["shard"]
    others = [row["id"].split("__")[1] for row in made.rows.values() if row["shard"] == home]
    with h5py.File(tmp_path / "frames" / "shards" / f"{home}.h5", "r+") as file:
        damage(file)
    work.clear()
    made = frames_of(videos, tmp_path / "frames", renamed=True)
    expected = others if damage is damage_table else ["ann_down"]
    assert sorted(work) == sorted(f"{name}.avi" for name in expected) and len(made) == 6


def test_damaged_ranges_are_not_copied(videos, tmp_path, work):
    made = flow_of(frames_of(videos, tmp_path / "frames"), tmp_path / "flow", spec=BACKWARD)
    with h5py.File(tmp_path / "flow" / "shards" / f"{made.rows['down__ann_down']['shard']}.h5", "r+") as file:
        flip_bit(file["clips/down__ann_down/backward/range_px"])
    work.clear()
    flow_of(frames_of(videos, tmp_path / "frames", renamed=True), tmp_path / "flow", spec=BACKWARD)
    assert work == ["flow", "flow"]  # both directions of one clip


def test_a_clip_whose_content_nobody_knows_is_not_copied(videos, tmp_path):
    paths = frames_of(videos, tmp_path / "frames").shard_paths()
    for path in paths:
        with h5py.File(path, "r+") as file:
            for clip in file["clips"].values():
                clip.attrs["made_from"] = UNREADABLE
    with Earlier(paths, "frames", FRAMES.digest()) as earlier:
        assert not earlier.clip("down__ann_down", UNREADABLE)


def test_what_other_settings_made_or_cannot_be_read_is_left_aside(videos, tmp_path):
    made = frames_of(videos, tmp_path / "frames")
    content = made["down__ann_down"].attrs["made_from"]
    paths = made.shard_paths()
    with Earlier(paths, "frames", FRAMES.digest()) as earlier:
        assert earlier.clip("down__ann_down", content) and not earlier.clip("down__ann_down", "0" * 16)
        assert not earlier.clip("down__nobody", content)
    for kind, digest in (("frames", "g"), ("flow", FRAMES.digest())):
        with Earlier(paths, kind, digest) as earlier:
            assert not earlier.clip("down__ann_down", content)
    for path in paths:
        path.write_bytes(path.read_bytes()[:2000])
    with Earlier([*paths, tmp_path / "none.h5"], "frames", FRAMES.digest()) as earlier:
        assert not earlier.clip("down__ann_down", content)
