"""Scores computed again from the files alone, as docs/format.md describes them: h5py, OpenCV, numpy and torch."""

import itertools
import json

import cv2
import h5py
import numpy as np
import pytest
import torch
from chains import build, fresh
from torch import nn

from tasks import FullPipeline

FRAMES, CROPS, LENGTH, RESIZE, CROP, UNIT = 3, 10, 4, 56, 40, 5.0
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture(params=[("stack", "forward"), ("trajectory", "bidirectional")], ids="-".join)
def artifacts(request, config, tmp_path):
    """Folders of a whole chain on clips of 8 fields, whose frames of 48 x 64 are enlarged before they are cropped."""
    kind, direction = request.param
    config.read_dict(
        {
            "flow": {"backward": "true"},
            "stack": {"kind": kind, "direction": direction, "length": str(LENGTH)},
            "spatial": {"resize_px": str(RESIZE), "crop_px": str(CROP)},
            "temporal": {"resize_px": str(RESIZE), "crop_px": str(CROP), "flow_unit_px": str(UNIT)},
            "score": {"frames": str(FRAMES), "crops": str(CROPS)},
        }
    )
    assert build(fresh(FullPipeline))
    return kind, direction, tmp_path / "artifacts/four"


def only(folder, pattern):
    (found,) = folder.glob(pattern)
    return found


def image(clip, k, how):
    group, offsets = clip["jpeg"], clip["offsets"]
    return cv2.imdecode(group[offsets[k] : offsets[k + 1]], how)


def field(clip, t, bound):
    planes = [image(clip, 2 * t + k, cv2.IMREAD_GRAYSCALE) for k in (0, 1)]
    return np.stack(planes).astype(np.float64) * 2 * bound / 255 - bound


def at(values, x, y):
    """Values (2, H, W) between pixels, those of the nearest border point outside."""
    height, width = values.shape[1:]
    x, y = x.clip(0, width - 1), y.clip(0, height - 1)
    left, top = np.minimum(x.astype(int), width - 2), np.minimum(y.astype(int), height - 2)
    right, down = x - left, y - top
    upper = values[:, top, left] * (1 - right) + values[:, top, left + 1] * right
    lower = values[:, top + 1, left] * (1 - right) + values[:, top + 1, left + 1] * right
    return upper * (1 - down) + lower * down


def along_paths(fields):
    y, x = np.mgrid[: fields[0].shape[1], : fields[0].shape[2]].astype(np.float64)
    sampled = []
    for values in fields:
        sampled.append(at(values, x, y))
        x, y = x + sampled[-1][0], y + sampled[-1][1]
    return sampled


def stack(clip, begin, kind, direction):
    bound = clip.attrs["bound_px"]
    if direction == "forward":
        halves = [[field(clip, begin + k, bound) for k in range(LENGTH)]]
    else:
        frame, half = begin + LENGTH // 2, LENGTH // 2
        halves = [
            [field(clip, frame + k, bound) for k in range(half)],
            [field(clip["backward"], frame - 1 - k, bound) for k in range(half)],
        ]
    halves = [along_paths(half) if kind == "trajectory" else half for half in halves]
    return np.concatenate([values - values.mean((1, 2), keepdims=True) for half in halves for values in half])


def pictures(stream, clip, kind, direction):
    """(C, H, W) of each of the test frames or windows, enlarged and scaled."""
    count = len(clip["offsets"]) - 1 if stream == "spatial" else (len(clip["offsets"]) - 1) // 2 - LENGTH + 1
    for j in range(FRAMES):
        place = int(np.floor(j * (count - 1) / (FRAMES - 1) + 0.5))
        if stream == "spatial":
            read = image(clip, place, cv2.IMREAD_COLOR)[..., ::-1]
        else:
            read = stack(clip, place, kind, direction).transpose(1, 2, 0)
        height, width = read.shape[:2]
        size = RESIZE, round(width * RESIZE / height)
        large = cv2.resize(np.ascontiguousarray(read), size[::-1], interpolation=cv2.INTER_LINEAR)
        if stream == "spatial":
            yield ((large / 255 - MEAN) / STD).transpose(2, 0, 1)
        else:
            factors = np.array([size[1] / width, size[0] / height] * LENGTH) / UNIT
            yield (large * factors).transpose(2, 0, 1)


def views(picture, stream):
    down, right = picture.shape[1] - CROP, picture.shape[2] - CROP
    corners = [(0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2)]
    for mirrored, (top, left) in itertools.product((False, True), corners):
        view = picture[:, top : top + CROP, left : left + CROP].copy()
        if mirrored:
            view = view[..., ::-1].copy()
            if stream == "temporal":
                view[0::2] *= -1
        yield view


def small(state):
    layers = []
    for weight in [value for name, value in state.items() if name.startswith("body.") and value.ndim == 4]:
        made, read, size = weight.shape[:3]
        layers += [
            nn.Conv2d(read, made, size, stride=2, padding=size // 2, bias=False),
            nn.BatchNorm2d(made),
            nn.ReLU(),
        ]
    body, head = nn.Sequential(*layers), nn.Linear(*state["head.weight"].shape[::-1])
    body.load_state_dict({name.removeprefix("body."): v for name, v in state.items() if name.startswith("body.")})
    head.load_state_dict({name.removeprefix("head."): v for name, v in state.items() if name.startswith("head.")})
    return body.eval(), head


def text(array):
    return [value.decode() for value in array[()]]


def softmax(values):
    exponents = np.exp(values - values.max(-1, keepdims=True))
    return exponents / exponents.sum(-1, keepdims=True)


@torch.no_grad()
def test_scores_follow_from_the_files_and_the_documents(artifacts):
    kind, direction, folder = artifacts
    tested = {}
    for stream, part in itertools.product(("spatial", "temporal"), ("val", "test")):
        body, head = small(
            torch.load(only(folder, f"train_stream/{stream}-*/checkpoint.pt"), weights_only=True)["state"]
        )
        data = only(folder, f"{'frames' if stream == 'spatial' else 'flow'}/*/index.h5")
        scores = only(folder, f"score_stream/{stream}-{part}-*/scores.h5")
        with h5py.File(data) as store, h5py.File(scores) as found:
            (name,) = text(found["video_ids"])
            rows = pictures(stream, store["clips"][name], kind, direction)
            batch = np.stack([view for picture in rows for view in views(picture, stream)]).astype(np.float32)
            features = body(torch.from_numpy(batch)).mean((2, 3))
            probabilities = softmax(head(features).numpy().astype(np.float64)).mean(0)
            assert len(batch) == FRAMES * CROPS
            np.testing.assert_allclose(found["probabilities"][0], probabilities, atol=2e-6)
            np.testing.assert_allclose(found["features"][0], features.mean(0).numpy(), rtol=1e-4, atol=1e-5)
            tested[stream, part] = found["probabilities"][0].astype(np.float64)
    spatial, temporal = tested["spatial", "test"], tested["temporal", "test"]
    chosen = json.loads(only(folder, "fuse/*/fusion.json").read_text())["parameters"]
    weight, svm = chosen["weighted"]["weight"], chosen["svm"]
    intercepts = np.array([-np.inf if value is None else value for value in svm["intercepts"]])
    joined = np.concatenate([row / np.linalg.norm(row) for row in (spatial, temporal)])
    margins = np.array(svm["coefficients"]) @ joined + intercepts
    expected = {
        "average": (spatial + temporal) / 2,
        "weighted": (1 - weight) * spatial + weight * temporal,
        "svm": softmax(margins / svm["temperature"]),
    }
    for fusion, row in expected.items():
        with h5py.File(only(folder, f"fuse/*/{fusion}/scores.h5")) as found:
            np.testing.assert_allclose(found["probabilities"][0], row, atol=1e-6)
