"""Statistics of the motion in a flow store, for judging its scaling and the temporal stream's input."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.store import Store, StoredClip

CLIPS, FIELDS = 128, 2
"""Size of the sample: at most this many clips, and fields of each clip."""
_AT_ONCE = 32  # fields of a clip in memory
_VECTORS = 1 << 15  # about this many vectors per field enter the percentile, since fields may be large


class Motion(NamedTuple):
    """Statistics of a sample of flow fields; lengths in pixels per frame."""

    fields: int
    """Number of fields in the sample."""
    rms_px: float
    """Root mean square of the speeds, including static background."""
    p99_px: float
    """Speed that 99 of 100 vectors do not exceed."""
    max_px: float
    """Highest speed."""
    at_bound: float
    """Share of the components at `bound_px`, where motion is clipped; 0 with `scaling = minmax`."""


def sample(store: Store) -> Motion | None:
    """Measure equally spaced fields of equally spaced clips; None if no clip holds a field."""
    ids = list(store)
    chosen = [ids[i] for i in np.unique(np.linspace(0, len(ids) - 1, min(CLIPS, len(ids))).round().astype(int))]
    speeds, squares, at_bound, fastest = [], 0.0, 0.0, 0.0
    for video_id in chosen:
        clip = store[video_id]
        for first in _middles(len(clip)):
            flow = clip.flow(first, first + 1)
            squares += float((flow.astype(np.float64) ** 2).sum(1).mean())
            at_bound += float((np.abs(flow) > _cut(clip.attrs)).mean())
            speed = np.hypot(flow[:, 0], flow[:, 1]).ravel()
            fastest = max(fastest, float(speed.max()))
            speeds.append(speed[:: max(1, speed.size // _VECTORS)])
    if not speeds:
        return None
    fields, p99_px = len(speeds), float(np.percentile(np.concatenate(speeds), 99))
    return Motion(fields, (squares / fields) ** 0.5, p99_px, fastest, at_bound / fields)


def of_clip(clip: StoredClip) -> dict[str, float]:
    """Mean motion of a clip, its mean and its highest speed, pixels per frame."""
    sums, fastest = np.zeros(3), 0.0  # x, y, speed
    for first in range(0, len(clip), _AT_ONCE):
        flow = clip.flow(first, min(first + _AT_ONCE, len(clip)))
        speed = np.hypot(flow[:, 0], flow[:, 1])
        sums += [float(part.mean(dtype=np.float64)) * len(flow) for part in (flow[:, 0], flow[:, 1], speed)]
        fastest = max(fastest, float(speed.max()))
    means = zip(("mean_x_px", "mean_y_px", "mean_speed_px"), sums / len(clip), strict=True)
    return {name: float(mean) for name, mean in means} | {"max_speed_px": fastest}


def _middles(length: int) -> np.ndarray:
    """Indices of the fields to measure: the middles of FIELDS equal parts of a clip of `length` fields."""
    count = min(FIELDS, length)
    return ((np.arange(count) + 0.5) * length / count).astype(int)


def _cut(attrs: dict) -> float:
    """Size in pixels above which a component counts as clipped: JPEG changes a byte at the bound by one or two."""
    if attrs["scaling"] != "bound":
        return np.inf
    return float(attrs["bound_px"]) * (1 - 2 * 2.5 / 255)
