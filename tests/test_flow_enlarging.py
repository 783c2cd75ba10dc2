"""Flow of enlarged frames: in the pixels of the frames as they are, the same wherever and with whomever it is computed."""

import re
import tracemalloc

import cv2
import numpy as np
import pytest
import torch
from conftest import middlebury
from motions import CLASSICAL, MOTIONS, error_px, moved

from pipeline.flow import device, enlarging, estimate, estimate_on_device, pairs_of
from pipeline.specs import FlowSpec

pytestmark = pytest.mark.usefixtures("one_torch_thread")
QUICK = {"tvl1_warps": 1, "tvl1_iterations": 4}


@pytest.mark.parametrize("motion", ("right", "subpixel", "rotation"))
@pytest.mark.parametrize("method", ("tvl1", "brox", "dis_medium", "farneback"))
def test_known_motion_in_pixels_of_the_frames_as_they_are(method, motion):
    frames, truth = moved(MOTIONS[motion], 97, 121)
    flow = estimate(frames, FlowSpec(method=method, enlarge=2), device="cpu")
    assert flow.shape == (1, 2, 97, 121) and flow.dtype == np.float32 and flow.flags.c_contiguous
    assert error_px(flow[0], truth) < CLASSICAL[method]


def test_enlarged_pictures_show_the_same_at_every_point():
    """A ramp stays a ramp: the middle of each block of 3 x 3 has the value of the pixel that it was."""
    ramp = np.add.outer(np.arange(40), 2 * np.arange(60)).astype(np.uint8)
    wide = enlarging.enlarged(ramp[None], 3)[0]
    assert wide.shape == (120, 180)
    assert np.abs(wide[1::3, 1::3].astype(int) - ramp)[2:-2, 2:-2].max() <= 1
    color = enlarging.enlarged(np.stack([ramp] * 3, -1)[None], 3)[0]
    assert color.shape == (120, 180, 3) and np.array_equal(color[..., 1], wide)


@pytest.mark.parametrize("kind", (np.asarray, torch.from_numpy), ids=("array", "tensor"))
def test_vectors_are_means_over_blocks_in_smaller_pixels(kind):
    flow = np.random.default_rng(0).normal(size=(3, 2, 8, 12)).astype(np.float32)
    back = np.asarray(enlarging.brought_back(kind(flow), 4))
    assert back.shape == (3, 2, 2, 3) and back.dtype == np.float32
    for n, c, y, x in np.ndindex(back.shape):
        block = flow[n, c, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4].astype(np.float64)
        assert back[n, c, y, x] == pytest.approx(block.mean() / 4, abs=1e-6)
    assert enlarging.brought_back(flow, 1) is flow and enlarging.enlarged(flow, 1) is flow


def test_something_thin_that_is_lost_otherwise():
    """A bar three pixels wide moves by 6 px over a textured wall: enlarged, its motion is seen in most of its pixels."""
    wall = cv2.GaussianBlur(np.random.default_rng(1).uniform(0, 255, (80, 120)), (0, 0), 3)
    wall = cv2.normalize(wall, None, 110, 160, cv2.NORM_MINMAX)
    stripes = 40 + 30 * np.sin(np.arange(44) * 0.9)[:, None]
    frames = np.stack([wall, wall])
    for frame, x in zip(frames, (50, 56), strict=True):
        frame[18:62, x : x + 3] = stripes
    frames = frames.round().astype(np.uint8)
    found = [estimate(frames, FlowSpec(enlarge=k), device="cpu")[0, 0, 22:58, 50:53] for k in (1, 2)]
    assert np.median(np.abs(found[1] - 6)) < np.median(np.abs(found[0] - 6))


def test_a_pair_alone_cuts_and_both_directions():
    frames = np.concatenate([moved(MOTIONS[name], 40, 56)[0] for name in ("right", "zoom", "rotation")])
    spec = FlowSpec(enlarge=3, **QUICK)
    whole = estimate(frames, spec, device="cpu")
    alone = np.concatenate([estimate(frames[t : t + 2], spec, device="cpu") for t in range(5)])
    assert whole.tobytes() == alone.tobytes()
    cut = estimate_on_device(frames, spec, device="cpu", cuts=[2, 4])
    assert np.asarray(cut).tobytes() == whole[[0, 2, 4]].tobytes()
    back = estimate(frames, spec, device="cpu", direction="backward")
    assert np.array_equal(back, estimate(frames[::-1], spec, device="cpu")[::-1])
    assert not estimate(frames[[0, 0]], spec, device="cpu").any()


def test_memory_is_that_of_the_enlarged_frames():
    one, two = (pairs_of((240, 320), FlowSpec(enlarge=k), device="cpu") for k in (1, 2))
    assert one == device.HOST_PIXELS // (240 * 320) and two == one // 4


def test_settings():
    assert FlowSpec(enlarge=1).digest() == FlowSpec().digest() != FlowSpec(enlarge=2).digest()
    assert "enlarge" not in FlowSpec().identity() and FlowSpec(enlarge=2).identity()["enlarge"] == 2
    with pytest.raises(ValueError, match=re.escape("[flow] enlarge is 5")):
        FlowSpec(enlarge=5)


def test_dis_on_middlebury(shared):
    """Enlarged, DIS is as good as many a slower method: 0.178 px for 0.254."""
    errors = []
    for name in ("RubberWhale", "Venus", "Dimetrodon", "Hydrangea"):
        frames, truth, known = middlebury(shared, name)
        flow = estimate(frames, FlowSpec(method="dis_medium", enlarge=2), device="cpu")[0]
        errors.append(np.linalg.norm(flow - truth, axis=0)[known].mean())
    assert np.mean(errors) < 0.19


@pytest.mark.needs_cuda
def test_cuda_gives_what_the_cpu_gives():
    frames = np.concatenate([moved(MOTIONS[name], 61, 83)[0] for name in ("right", "rotation")])
    spec = FlowSpec(enlarge=2)
    there = torch.as_tensor(estimate(frames, spec, device="cuda")).cpu().numpy()
    difference = np.abs(there - estimate(frames, spec, device="cpu"))
    assert difference.mean() <= 1e-3 and difference.max() <= 0.02


def test_enlarged_flow_of_a_clip_is_never_held_as_a_whole():
    """59 enlarged fields of 480 x 640 are 145 MB, what is returned is 9 MB."""
    frames = np.random.default_rng(3).integers(0, 256, (60, 120, 160), dtype=np.uint8)
    tracemalloc.start()
    flow = estimate(frames, FlowSpec(method="dis_ultrafast", enlarge=4), device="cpu")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert flow.shape == (59, 2, 120, 160) and peak < 60e6
