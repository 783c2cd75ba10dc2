"""Artifacts of one name are told apart by the settings that differ."""

import dataclasses
import json
import shutil

from conftest import moving_texture
from stores import ATTRS, write_frames
from trainings import spec

from pipeline import store
from pipeline.__main__ import main
from pipeline.artifacts.differences import with_settings
from pipeline.artifacts.status import status
from pipeline.catalog import Catalog
from pipeline.networks.checkpoint import save_checkpoint


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
