"""The demo dataset: its files, and that each stream alone sees only half of the class."""

import cv2
import numpy as np
import pytest

from pipeline import catalog
from pipeline.catalog import read_dataset
from pipeline.demo import (
    FPS,
    MOTIONS,
    SPLITS,
    TEXTURES,
    check_split,
    class_names,
    is_written,
    outline,
    render,
    write_demo,
)
from pipeline.specs import DatasetSpec, DemoSpec

TINY = DemoSpec(groups=3, clips=1, frames=8, width_px=48, height_px=40)


def gray(frames):
    return frames.astype(float) @ [0.299, 0.587, 0.114]


def object_box(frame, background):
    """Center of what differs from the background, in pixels (x, y)."""
    rows, columns = np.nonzero(np.abs(frame.astype(int) - background).sum(axis=-1) > 60)
    return np.median(columns), np.median(rows)


def decode(file):
    capture, frames = cv2.VideoCapture(str(file)), []
    while (step := capture.read())[0]:
        frames.append(step[1][..., ::-1])
    return np.stack(frames), capture.get(cv2.CAP_PROP_FPS)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "demo"
    assert write_demo(folder, TINY) is True
    return folder


def test_six_classes_of_texture_and_motion():
    assert class_names() == ["ChecksLift", "ChecksSlide", "DotsLift", "DotsSlide", "StripesLift", "StripesSlide"]


def test_videos_read_back_as_they_were_drawn(demo):
    drawn = render(TINY, "Dots", "Slide", group=2, number=1)
    read, fps = decode(demo / "videos/DotsSlide/v_DotsSlide_g02_c01.avi")
    assert read.shape == drawn.shape
    assert drawn.shape[1:] == (40, 48, 3)
    assert 7 <= len(drawn) <= 9
    assert fps == FPS
    assert np.abs(gray(read) - gray(drawn)).mean() < 2.0  # gray levels; what Motion JPEG loses


def test_the_catalog_reads_it_as_ucf101(demo):
    spec = DatasetSpec(layout="ucf101", videos=str(demo / "videos"), lists=str(demo / "ucfTrainTestlist"))
    tested = set()
    for split in "123":
        catalog = read_dataset(spec, split)
        assert [len(catalog.part(part)) for part in ("train", "val", "test")] == [6, 6, 6]
        assert {clip.group[-3:] for clip in catalog.part("test")} == {f"g0{split}"}
        tested |= {clip.id for clip in catalog.part("test")}
    assert tested == {clip.id for clip in catalog.clips}


def test_lists_are_in_the_official_style(demo):
    lists = demo / "ucfTrainTestlist"
    assert (lists / "classInd.txt").read_text().splitlines()[0] == "1 ChecksLift"
    assert (lists / "testlist01.txt").read_text().splitlines()[0] == "ChecksLift/v_ChecksLift_g01_c01.avi"
    assert (lists / "trainlist01.txt").read_text().splitlines()[-1] == "StripesSlide/v_StripesSlide_g03_c01.avi 6"


def test_the_same_spec_is_not_written_twice_and_another_is(tmp_path):
    folder = tmp_path / "demo"
    write_demo(folder, TINY)
    video = folder / "videos/DotsLift/v_DotsLift_g01_c01.avi"
    before = video.stat().st_mtime_ns, video.read_bytes()
    assert write_demo(folder, TINY) is False
    assert video.stat().st_mtime_ns == before[0]
    other = DemoSpec(groups=3, clips=1, frames=8, width_px=48, height_px=40, seed=1)
    assert write_demo(folder, other) is True
    assert video.read_bytes() != before[1]
    assert write_demo(folder, TINY) is True
    assert video.read_bytes() == before[1]  # same spec, same bytes


def test_what_a_killed_run_left_is_swept_away(tmp_path):
    (tmp_path / "demo.writing/videos/OldClass").mkdir(parents=True)
    write_demo(tmp_path / "demo", TINY)
    assert [file.name for file in tmp_path.iterdir()] == ["demo"]
    assert not (tmp_path / "demo/videos/OldClass").exists()


def test_files_of_others_are_not_overwritten(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="no demo dataset"):
        write_demo(tmp_path, TINY)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_writer_that_does_not_open_is_an_error_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(cv2.VideoWriter, "isOpened", lambda self: False)
    with pytest.raises(OSError, match="OpenCV cannot write"):
        write_demo(tmp_path / "demo", TINY)
    assert list(tmp_path.iterdir()) == []


def test_gray_tells_nothing_of_the_texture():
    """Matched clips of the three textures are the same to optical flow, but not to a color network."""
    first, *others = (render(DemoSpec(), texture, "Slide", group=1, number=2) for texture in TEXTURES)
    for other in others:
        assert np.abs(gray(other) - gray(first)).max() < 1.5  # rounding to bytes
        assert np.abs(other.astype(int) - first).max() > 60


def test_both_motions_begin_with_the_same_picture_and_move_along_their_axis():
    lift, slide = (render(DemoSpec(), "Checks", motion, group=3, number=1) for motion in MOTIONS)
    np.testing.assert_array_equal(lift[0], slide[0])
    background = np.median(np.concatenate([lift, slide]), axis=0)
    path = {"lift": [object_box(f, background) for f in lift], "slide": [object_box(f, background) for f in slide]}
    spread = {name: np.std(centers, axis=0) for name, centers in path.items()}
    assert spread["lift"][1] > 8 > 3 > spread["lift"][0]
    assert spread["slide"][0] > 8 > 3 > spread["slide"][1]


def test_dis_flow_tells_the_motions_apart():
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    for number in (1, 2, 3):
        for motion in MOTIONS:
            frames = gray(render(DemoSpec(), "Stripes", motion, group=number, number=number)).astype(np.uint8)
            flow = np.stack([dis.calc(a, b, None) for a, b in zip(frames[:10], frames[1:11], strict=True)])
            along_x, along_y = np.abs(flow).mean(axis=(0, 1, 2))
            assert (along_x > 2 * along_y) == (motion == "Slide")
            assert (along_y > 2 * along_x) == (motion == "Lift")


def test_a_frame_lies_anywhere_in_the_same_box_for_both_motions():
    """Positions of the last frame over many clips: same mean and spread for both motions, to sampling error."""
    spec = DemoSpec(width_px=64, height_px=48, frames=12)
    centers = {motion: [] for motion in MOTIONS}
    for group in range(1, 41):
        clips = {motion: render(spec, "Stripes", motion, group=group, number=1) for motion in MOTIONS}
        background = np.median(np.concatenate([*clips.values()]), axis=0)
        for motion, frames in clips.items():
            centers[motion].append(object_box(frames[-1], background))
    lift, slide = (np.array(centers[motion]) for motion in MOTIONS)
    sampling_error = np.hypot(lift.std(axis=0), slide.std(axis=0)) / np.sqrt(40)
    assert (np.abs(lift.mean(axis=0) - slide.mean(axis=0)) < 3 * sampling_error).all()
    assert (np.abs(np.log(lift.std(axis=0) / slide.std(axis=0))) < 0.4).all()


def test_no_color_is_clipped():
    frames = render(DemoSpec(), "Dots", "Lift", group=4, number=3)
    assert np.isin(frames, (0, 255)).mean() < 1e-3


def test_clips_of_a_group_share_the_background_and_groups_do_not():
    corner = np.s_[:, :4, :4]
    clips = ((1, 1), (1, 2), (2, 1))
    one, same, other = (render(DemoSpec(), "Dots", "Lift", group=g, number=n)[corner] for g, n in clips)
    middle = [np.median(clip, axis=0) for clip in (one, same, other)]
    assert np.abs(middle[0] - middle[1]).mean() < 4 < np.abs(middle[0] - middle[2]).mean()


def test_a_damaged_marker_is_no_reason_to_write_over_the_folder(tmp_path):
    (tmp_path / "demo.json").write_text("")
    with pytest.raises(ValueError, match=rf"demo.json is damaged; delete the folder {tmp_path}, if it is the demo's"):
        is_written(tmp_path, DemoSpec())


def test_a_split_that_the_demo_will_not_have_is_refused_before_it_is_written():
    for split in SPLITS:
        check_split(split)
    with pytest.raises(ValueError, match="split '4' of the demo does not exist; allowed: 1, 2, 3"):
        check_split("4")


@pytest.mark.parametrize("split", SPLITS)
def test_the_outline_is_the_catalog_of_what_is_written(tmp_path, split):
    spec = DemoSpec(groups=6, clips=2, frames=8)
    write_demo(tmp_path / "demo", spec)
    lists = {"videos": str(tmp_path / "demo/videos"), "lists": str(tmp_path / "demo/ucfTrainTestlist")}
    dataset = DatasetSpec(layout="ucf101", **lists)
    written, drawn = catalog.outline(dataset, split), outline(spec, dataset, split)
    names = ("id", "path", "label", "class_name", "group", "part")
    told = [[[getattr(clip, name) for name in names] for clip in found.clips] for found in (written, drawn)]
    assert told[0] == told[1] and written.classes == drawn.classes
