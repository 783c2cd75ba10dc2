"""How far things move in a store, against fields that were made to move so far."""

import numpy as np
import pytest
from stores import write_flow

from pipeline import store
from pipeline.artifacts import inspection
from pipeline.store import motion
from pipeline.system.errors import DamagedFile, MachineFault


def of(folder, fields, **how):
    return motion.sample(store.open_flow(write_flow(folder, fields, **how)))


def test_motion_in_pixels(tmp_path):
    """One vector in ten moves by (3, -4), the others not at all."""
    fields = np.zeros((6, 2, 40, 50), np.float32)
    fields[:, 0, :4], fields[:, 1, :4] = 3, -4
    found = of(tmp_path, fields)
    assert found.fields == motion.FIELDS and found.at_bound == 0
    assert found.rms_px == pytest.approx((0.1 * 25) ** 0.5, abs=0.1)
    assert found.p99_px == pytest.approx(5, abs=0.2) and found.max_px == pytest.approx(5, abs=0.2)


def test_all_of_a_clip_counts(tmp_path):
    """Of 70 fields only the last 7 move, by (6, -8)."""
    fields = np.zeros((70, 2, 16, 16), np.float32)
    fields[-7:, 0], fields[-7:, 1] = 6, -8
    found = motion.of_clip(store.open_flow(write_flow(tmp_path, fields))["a"])
    expected = {"mean_x_px": 0.6, "mean_y_px": -0.8, "mean_speed_px": 1.0, "max_speed_px": 10.0}
    assert found == pytest.approx(expected, abs=0.12)


@pytest.mark.parametrize("minmax", (False, True))
def test_what_is_cut_off_at_the_bound(tmp_path, minmax):
    """A quarter of x is faster than the bound of 20 px; min-max scaling cuts off nothing."""
    fields = np.zeros((3, 2, 40, 48), np.float32)
    fields[:, 0, :, :12] = 30
    found = of(tmp_path, fields, minmax=minmax)
    assert found.at_bound == pytest.approx(0 if minmax else 1 / 8, abs=0.002)
    assert found.max_px == pytest.approx(30 if minmax else 20, abs=0.3)


def test_short_clips_and_none(tmp_path):
    assert of(tmp_path / "one", np.ones((1, 2, 16, 16), np.float32)).fields == 1
    assert motion.sample({}) is None


@pytest.mark.parametrize("error", [DamagedFile, MachineFault])
def test_a_damaged_store_is_shown_anyway(tmp_path, monkeypatch, error):
    path = write_flow(tmp_path, np.ones((3, 2, 16, 16), np.float32))

    def damaged(opened):
        raise error("a: image 0 does not decode")

    assert inspection.describe(path)["summary"]["motion_fields"] == 2
    monkeypatch.setattr(motion, "sample", damaged)
    assert inspection.describe(path)["summary"]["motion"] == "not measured: a: image 0 does not decode"
