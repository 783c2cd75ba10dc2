"""Artifacts of one name are told apart by the settings that differ."""

import dataclasses
import json
import shutil

import pytest
from conftest import moving_texture
from scored import table
from stores import ATTRS, write_frames
from trainings import spec

from pipeline import store
from pipeline.__main__ import main
from pipeline.artifacts import differences
from pipeline.artifacts.differences import with_settings
from pipeline.artifacts.status import status
from pipeline.catalog import Catalog
from pipeline.networks.checkpoint import save_checkpoint
from pipeline.system.errors import MachineFault


def training(folder, settings):
    catalog = Catalog(clips=(), classes=("x",), split_name="1", absent=())
    save_checkpoint(folder / "checkpoint.pt", {}, settings, catalog)
    (folder / "curve.json").write_text("{}")


def settings_of(artifacts):
    rows = with_settings(status(artifacts))
    return {f"{row['stage']} {row['digest']}": row["settings"] for row in rows}


def test_trainings_of_one_name_show_what_differs(tmp_path, capsys):
    streams = tmp_path / "demo/train_stream"
    training(streams / "temporal-small-1-a", spec("temporal", dropout=0.3))
    training(streams / "temporal-small-1-b", spec("temporal", dropout=0.9, milestones=(3, 9)))
    training(streams / "spatial-small-1-c", spec("spatial"))
    assert settings_of(tmp_path) == {
        "train_stream a": "temporal_dropout 0.3, temporal_milestones [9]",
        "train_stream b": "temporal_dropout 0.9, temporal_milestones [3, 9]",
        "train_stream c": "",
    }
    assert main(["status", "--artifacts", str(tmp_path)]) == 0
    head, spatial, first, _ = capsys.readouterr().out.splitlines()
    assert (
        head.endswith("  settings")
        and first.endswith("  temporal_dropout 0.3, temporal_milestones [9]")
        and "drop" not in spatial
    )
    (streams / "temporal-small-1-b/checkpoint.pt").write_bytes(b"damaged")
    shutil.copytree(streams / "temporal-small-1-a", streams / "temporal-small-1-d")
    assert set(settings_of(tmp_path).values()) == {""}


@pytest.mark.parametrize(
    ("artifact", "content"),
    [
        ("frames/native-a/index.h5", "damaged"),
        ("score_stream/temporal-test-1-a/scores.h5", "damaged"),
        ("fuse/1-a/fusion.json", "{"),
        ("fuse/1-a/fusion.json", '{"spec": 5}'),
        ("report/1-a/metrics.json", "{}"),
        ("report/1-a/metrics.json", '{"settings": [1]}'),
    ],
)
def test_damaged_artifacts_and_earlier_ones_tell_no_settings(tmp_path, artifact, content):
    file = tmp_path / "d" / artifact
    file.parent.mkdir(parents=True)
    file.write_text(content)
    assert differences.settings_of(file.parent) == {}


def test_what_hdf5_takes_for_a_lack_of_memory_does_not_end_the_list(tmp_path, monkeypatch):
    def too_little(path):
        raise MachineFault("there is too little memory")

    for digest in "ab":
        table("10", ["a", "b"]).write(tmp_path / f"d/score_stream/temporal-test-1-{digest}/scores.h5")
    monkeypatch.setattr(differences.store, "read_attrs", too_little)
    assert settings_of(tmp_path) == {"score_stream a": "", "score_stream b": ""}


def test_settings_within_settings_and_of_stores(tmp_path):
    streams = tmp_path / "demo/train_stream"
    long = spec("temporal")
    training(streams / "temporal-small-1-a", long)
    training(streams / "temporal-small-1-b", dataclasses.replace(long, stack=dataclasses.replace(long.stack, length=5)))
    for name, side in (("e", 0), ("f", 64)):
        path = write_frames(tmp_path / f"demo/frames/native-{name}", {"a": moving_texture(2)})
        found = [(record, "shard-all") for record in store.read_records(path.parent / "shards/shard-all.h5", "frames")]
        attrs = {**ATTRS, "split_name": "1", "spec": json.dumps({"short_side_px": side, "jpeg_quality": 95})}
        store.write_index(path, "frames", found, {}, attrs)
    assert settings_of(tmp_path) == {
        "frames e": "frames_short_side_px 0",
        "frames f": "frames_short_side_px 64",
        "train_stream a": "stack_length 3",
        "train_stream b": "stack_length 5",
    }
